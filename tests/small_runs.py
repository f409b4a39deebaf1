"""Runs of a second of all entries and modes of the zoo, and whether two of them ended alike."""

import numpy as np
import torch

from egg_sparse.zoo import checkpoints, run_folder

OPTIONS = {
    "signal_game": "--n_epochs=4 --batches_per_epoch=10 --vocab_size=20 --game_size=4 --batch_size=16",
    "semi_supervised_vae": "--n_epochs=3 --n_labeled=50 --warm_start_epochs=2",
    "bit_vector_vae": "--n_epochs=3 --latent_size=6 --nll_samples=2 --nll_images=5 --validation_nll_samples=1",
    "compo_vs_generalization": "--n_epochs=3 --n_values=4 --vocab_size=5 --data_scaler=2 --batch_size=8",
}
MODES = {
    "signal_game": [
        "marg", "sfe", "sfe --baseline_type=sample", "nvil", "sumsample", "gs --temperature_update_freq=7",
        "gs --straight_through",
    ],
    "semi_supervised_vae": [
        "marg", "marg --normalizer=softmax", "sfe", "sfe --baseline_type=sample", "nvil", "sumsample", "gs",
        "gs --straight_through",
    ],
    "bit_vector_vae": [
        "sparsemap --temperature=5 --temperature_end=1 --entropy_warmup=2", "sparsemap --budget=3",
        "sparsemap --decomposition=active_set", "topksparse --max_support=3", "sfe", "sfe --baseline_type=sample",
        "nvil", "gs", "gs --straight_through",
    ],
    "compo_vs_generalization": [
        "marg", "marg --max_support=3", "marg --normalizer=softmax --sender_cell=transformer", "rf",
        "rf --sender_cell=transformer --receiver_cell=transformer", "gs", "gs --straight_through",
    ],
}  # fmt: skip
RUNS = [f"{entry} --mode={mode}" for entry, modes in MODES.items() for mode in modes]


def command(name):
    """The entry of a run, and its options."""
    entry, *params = name.split()
    return entry, [*params, *OPTIONS[entry].split()]


def same(first, second, checkpoint="final.tar"):
    """Whether two runs have the same metrics and the same checkpoint, bit for bit."""
    metrics = [(folder / run_folder.METRICS_FILE).read_bytes() for folder in (first, second)]
    states = [checkpoints.read(folder / "checkpoints" / checkpoint) for folder in (first, second)]

    def equal(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return metrics[0] == metrics[1] and all(
        equal(getattr(states[0], part), getattr(states[1], part)) for part in states[0]._fields
    )
