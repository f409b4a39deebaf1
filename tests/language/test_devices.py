"""Languages on an emulated accelerator, and in single precision."""

import pytest
import torch

from egg_sparse import SparsemaxWrapper
from egg_sparse.language import Language, exact_and_greedy, language_of, standard_errors, write_elcc
from egg_sparse.mappings import sparsemax

ATTRIBUTES = torch.cartesian_prod(torch.arange(3), torch.arange(3))
SCORES = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("distance", ["hamming", "cosine", lambda a, b: (a[:, None] - b).abs().sum(2)])
def test_an_accelerator_gives_the_same_numbers(accelerator, distance):
    here = exact_and_greedy(Language(sparsemax(SCORES)), ATTRIBUTES, ATTRIBUTES + 1.0, distance)
    there = Language(sparsemax(SCORES.to(accelerator.device)))
    assert there.marginal.device.type == accelerator.device.type
    found = exact_and_greedy(
        there, ATTRIBUTES.to(accelerator.device), ATTRIBUTES.to(accelerator.device) + 1.0, distance
    )
    for name in ("exact", "greedy"):
        assert found[name] == pytest.approx(here[name], abs=1e-9)


def test_standard_errors_and_exports_there(accelerator, tmp_path):
    language = Language(sparsemax(SCORES.to(accelerator.device)))
    here = standard_errors(Language(sparsemax(SCORES)), ATTRIBUTES, n_resamples=3)
    assert standard_errors(language, ATTRIBUTES, n_resamples=3) == pytest.approx(here, abs=1e-9)
    assert len(write_elcc(language, tmp_path, "game", samples=2).read_text().splitlines()) == 18


def test_a_sender_there_is_given_inputs_that_are_here(accelerator):
    class Agent(torch.nn.Linear):
        def forward(self, sender_input, aux_input=None):
            return super().forward(sender_input)

    sender = SparsemaxWrapper(Agent(6, 5)).to(accelerator.device)
    assert language_of(sender, SCORES, batch_size=4).index.device.type == accelerator.device.type


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers():
    here = exact_and_greedy(Language(sparsemax(SCORES)), ATTRIBUTES)
    found = exact_and_greedy(Language(sparsemax(SCORES.cuda())), ATTRIBUTES.cuda())
    for name in ("exact", "greedy"):
        assert found[name] == pytest.approx(here[name], abs=1e-9)
