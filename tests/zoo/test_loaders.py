"""Loaders: batches that depend on seed, epoch and number alone, and that several processes share."""

import numpy as np
import pytest
import torch

from egg_sparse.zoo import images
from egg_sparse.zoo.bit_vector_vae.data import ImageLoader
from egg_sparse.zoo.loaders import OnDevice, part_of
from egg_sparse.zoo.semi_supervised_vae.data import SemiSupervisedLoader
from egg_sparse.zoo.signal_game.data import GameLoader, Images

DIGITS = images.digits().take(np.arange(40))
FEATURES = Images.from_labels(DIGITS.pixels.astype(float), np.arange(40))

LOADERS = {
    "games": lambda **options: GameLoader(FEATURES, 3, 8, 5, **{"seed": 1, **options}),
    "images": lambda **options: ImageLoader(DIGITS, 8, **{"seed": 1, **options}),
    "labeled images": lambda **options: SemiSupervisedLoader(DIGITS, DIGITS, 8, **{"seed": 1, **options}),
}


def examples(loader):
    """What identifies the examples of every batch, with the examples on axis 0."""
    batches = list(loader)
    return [batch[0].transpose(0, 1) if batch[0].dim() == 3 else batch[0] for batch in batches]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("n_processes", [2, 3, 8])
def test_processes_share_a_batch_equally_and_leave_out_the_remainder(kind, n_processes):
    whole = examples(LOADERS[kind]())
    parts = [examples(LOADERS[kind](part=(i, n_processes))) for i in range(n_processes)]
    for number, batch in enumerate(whole):
        mine = [part[number] for part in parts]
        assert {len(each) for each in mine} == {8 // n_processes}
        torch.testing.assert_close(torch.cat(mine), batch[: 8 // n_processes * n_processes], rtol=0, atol=0)


@pytest.mark.parametrize("kind", LOADERS)
def test_an_epoch_can_be_drawn_again(kind):
    loader = LOADERS[kind]()
    first, second = examples(loader), examples(loader)
    assert any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
    loader.set_epoch(2)
    for one, other in zip(second, examples(loader), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LOADERS)
def test_fixed_epochs_are_all_the_same(kind):
    loader = LOADERS[kind](fixed=True)
    for one, other in zip(examples(loader), examples(loader), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_part_of_a_batch():
    assert part_of(np.arange(7), (1, 3)).tolist() == [2, 3]


def test_batches_on_the_device(accelerator):
    """The same values, in the same structure; a tensor that a batch has twice is one tensor there."""
    batches = list(SemiSupervisedLoader(DIGITS, DIGITS.take(np.arange(7)), 8, seed=1))
    loader = OnDevice(SemiSupervisedLoader(DIGITS, DIGITS.take(np.arange(7)), 8, seed=1), accelerator.device)
    loader.set_epoch(1)
    with accelerator.count() as counted:
        there = list(loader)
    assert len(loader) == len(there) == len(batches)
    for (pixels, classes, again, labeled), expected in zip(there, batches, strict=True):
        assert again is pixels
        parts = [pixels, classes, *labeled.values()]
        for found, wanted in zip(parts, [*expected[:2], *expected[3].values()], strict=True):
            assert torch.equal(accelerator.host(found), wanted)
    assert counted.synchronizations == []
    assert len(counted.copies_to_device) == 4 * len(batches)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_the_image_at_position_i_comes_with_labeled_image_i_modulo_their_number(fixed, part):
    unlabeled = DIGITS.take(np.arange(40))
    unlabeled.classes = np.arange(40)  # so that classes are positions
    labeled = DIGITS.take(np.arange(7))
    labeled.classes = np.arange(7)
    loader = SemiSupervisedLoader(unlabeled, labeled, 8, seed=1, fixed=fixed, part=part)
    for _, positions, _, batch in loader:
        assert batch["classes"].tolist() == [position % 7 for position in positions.tolist()]
        on = torch.from_numpy(labeled.pixels[batch["classes"]] == 16)
        off = torch.from_numpy(labeled.pixels[batch["classes"]] == 0)
        assert (batch["images"][on] == 1).all()
        assert (batch["images"][off] == 0).all()
