"""The experiments of the zoo, and which of them a run is of."""

from __future__ import annotations

from collections.abc import Container

EXPERIMENTS = {
    "signal_game": "game_size",
    "semi_supervised_vae": "n_labeled",
    "bit_vector_vae": "topksparse",
    "compo_vs_generalization": "n_attributes",
}
"""The folders of the experiments, and an option that each has and the others do not."""


def experiment_of(options: Container[str]) -> str | None:
    """The name of the experiment that a run's options are of; None if they are of none.

    Example:
        >>> experiment_of({"mode": "marg", "game_size": 16})
        'signal_game'
    """
    return next((name for name, own in EXPERIMENTS.items() if own in options), None)
