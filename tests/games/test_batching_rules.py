"""The batching rules: vmapped receivers equal plain calls, and nothing is repeated per message."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from egg_sparse import SymbolGameMarg
from egg_sparse.games.batching_rules import BatchingRules
from egg_sparse.games.calls import vmap_can_be_recomputed
from receiver_bodies import BODIES, CANDIDATES, FEATURES, VOCABULARY
from small_games import Sender, fixed_sender

K, B, G, E = 5, 4, 3, 6


def mapped(function, *operands, in_dims=0):
    """The function over messages, with torch's rules and with ours."""

    def with_rules(*values):
        with BatchingRules():
            return function(*values)

    return [
        torch.func.vmap(each, in_dims=in_dims, randomness="different")(*operands) for each in (function, with_rules)
    ]


def squared_output(sender_input, message, receiver_input, receiver_output, labels, aux_input):
    return (receiver_output - sender_input.flatten(1).sum(1, keepdim=True)).pow(2).mean(1), {}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    ("strategy", "chunk_size"),
    [
        ("vmap", None),
        pytest.param("vmap", 2, marks=pytest.mark.slow),
        pytest.param("auto", None, marks=pytest.mark.slow),
    ],
)
def test_receivers_give_the_result_of_plain_calls(name, strategy, chunk_size):
    if chunk_size and not vmap_can_be_recomputed():
        pytest.skip("needs torch 2.6")
    torch.manual_seed(0)
    game = SymbolGameMarg(fixed_sender(Sender(FEATURES, VOCABULARY, 0), "entmax15"), BODIES[name](), squared_output)
    game.double()
    images = torch.randn(B, CANDIDATES, FEATURES, dtype=torch.float64)
    candidates = images.flip(2).requires_grad_()
    results = []
    for game.strategy, game.chunk_size in (("loop", None), (strategy, chunk_size)):
        if game.strategy == "vmap" and name == "packed GRU":
            pytest.skip("vmap cannot trace packed sequences")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(1 + (game.strategy == "auto")):
                loss, _ = game(images, None, candidates)
        wanted = [candidates, *game.parameters()]
        derivatives = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([loss, *(part for part in derivatives if part is not None)])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BODIES.keys() - {"packed GRU"}))
def test_under_autocast_receivers_are_close_to_float32(name):
    torch.manual_seed(0)
    if name == "LSTM":
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                nn.LSTM(4, 4)(torch.randn(3, 2, 4))
        except RuntimeError:
            pytest.skip("PyTorch has no LSTM in bfloat16 for this CPU")
    sender = fixed_sender(Sender(FEATURES, VOCABULARY, 0))
    game = SymbolGameMarg(sender, BODIES[name](), squared_output, strategy="vmap")
    images = torch.randn(B, CANDIDATES, FEATURES)
    exact = game(images, None, images.flip(2))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = game(images, None, images.flip(2))
    torch.testing.assert_close(loss, exact, atol=0.1, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda m, c: torch.bmm(c, m.unsqueeze(-1)),
        lambda m, c: torch.einsum("be,bge->bg", m, c),
        lambda m, c: F.cosine_similarity(m.unsqueeze(1), c, dim=-1),
        lambda m, c: F.bilinear(m, c[:, 0], c[:2, 0, :, None].expand(2, E, E)),
        lambda m, c: torch.baddbmm(c[:, :, :1], c, m.unsqueeze(-1)),
    ],
)
def test_second_derivatives_are_exact(function):
    m = torch.randn(K, B, E, dtype=torch.float64, requires_grad=True)
    c = torch.randn(B, G, E, dtype=torch.float64, requires_grad=True)

    def with_rules(m, c):
        return mapped(function, m, c, in_dims=(0, None))[1]

    assert torch.autograd.gradcheck(with_rules, (m, c))
    assert torch.autograd.gradgradcheck(with_rules, (m, c))


axis = st.sampled_from([1, 2, 3])
shapes = st.tuples(
    st.lists(axis, max_size=2), axis, axis, st.lists(axis, max_size=2), axis, st.booleans(), st.booleans()
)


@given(shapes, st.booleans())
@settings(max_examples=200, deadline=None)
def test_matmul_broadcasts_as_torch_does(sizes, left_is_mapped):
    left_batch, i, j, right_batch, n, is_vector, is_right_vector = sizes
    left = torch.randn(K, *left_batch, *([] if is_vector else [i]), j, dtype=torch.float64)
    right = torch.randn(K, *right_batch, j, *([] if is_right_vector else [n]), dtype=torch.float64)
    pair, in_dims = ((left, right[0]), (0, None)) if left_is_mapped else ((left[0], right), (None, 0))
    for function in (torch.matmul, lambda a, b: a @ b, torch.Tensor.matmul, lambda a, b: b.__rmatmul__(a)):
        try:
            expected = torch.func.vmap(function, in_dims=in_dims)(*pair)
        except RuntimeError:  # the batch axes do not broadcast
            with pytest.raises(RuntimeError):
                mapped(function, *pair, in_dims=in_dims)
            continue
        torch.testing.assert_close(mapped(function, *pair, in_dims=in_dims)[1], expected)


@pytest.mark.parametrize(("left", "right"), [((2, 3, 4), (2, 1, 5)), ((2, 3, 4), (3, 4, 5)), ((3, 4), (4, 5))])
def test_products_that_do_not_fit_raise_torchs_error(left, right):
    a, b = torch.randn(left), torch.randn(K, *right)
    with pytest.raises(RuntimeError):
        mapped(torch.bmm, a, b, in_dims=(None, 0))


CELL = nn.GRUCell(E, 3)
WEIGHTS = {"w_ih": CELL.weight_ih, "w_hh": CELL.weight_hh, "b_ih": CELL.bias_ih, "b_hh": CELL.bias_hh}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, c: torch.matmul(input=c, other=m.unsqueeze(-1)),
        lambda m, c: c.matmul(other=m.unsqueeze(-1)),
        lambda m, c: torch.bmm(input=c, mat2=m.unsqueeze(-1)),
        lambda m, c: torch.baddbmm(input=c[:, :, :1], batch1=c, batch2=m.unsqueeze(-1), beta=2, alpha=3),
        lambda m, c: F.bilinear(input1=m, input2=c[:, 0], weight=c[:2, 0, :, None].expand(2, E, E)),
        lambda m, c: F.cosine_similarity(x1=m.unsqueeze(1), x2=c, dim=-1),
        lambda m, c: torch.cdist(x1=m.unsqueeze(1), x2=c),
        lambda m, c: F.scaled_dot_product_attention(query=m.unsqueeze(1), key=c, value=c),
        lambda m, c: torch.index_select(input=c[0], dim=1, index=m.argsort(1)[0]),
        lambda m, c: torch.gather(input=c[:, 0], dim=1, index=m.argsort(1)),
        lambda m, c: F.group_norm(input=m, num_groups=2),
        lambda m, c: F.cross_entropy(input=m, target=c[:, 0].argmax(1), reduction="none"),
        lambda m, c: torch.gru_cell(input=m, hx=c[:, 0, :3], **WEIGHTS),
    ],
)
def test_operations_that_are_called_by_keywords(function):
    expected, found = mapped(function, torch.randn(K, B, E), torch.randn(B, G, E), in_dims=(0, None))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "equation", ["be,bge->bg", "be,bge", "...e,...ge->...g", "be,bgf->bgef", "bb,bge->bg", "be , bge"]
)
def test_einsum_in_every_notation(equation):
    message = torch.randn(K, B, B if "bb" in equation else E)
    operands = (message, torch.randn(B, G, E))
    expected, found = mapped(lambda m, c: torch.einsum(equation, m, c), *operands, in_dims=(0, None))
    torch.testing.assert_close(found, expected)
    expected, found = mapped(lambda m, c: torch.einsum(equation, [m, c]), *operands, in_dims=(0, None))
    torch.testing.assert_close(found, expected)


def test_vmap_within_a_receiver_is_allowed():
    c = torch.randn(B, G, E)

    def function(m):
        return torch.func.vmap(lambda one, of_one: torch.einsum("e,ge->g", one, of_one))(m, c)

    expected, found = mapped(function, torch.randn(K, B, E))
    torch.testing.assert_close(found, expected)


def test_gradients_within_a_receiver_are_allowed():
    c = torch.randn(B, G, E)

    def function(m):
        return torch.func.grad(lambda x: torch.bmm(c, x.unsqueeze(-1)).square().sum())(m)

    expected, found = mapped(function, torch.randn(K, B, E))
    torch.testing.assert_close(found, expected)


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the largest tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, torch.Tensor) and part.untyped_storage().nbytes() == part.numel() * part.element_size():
                self.largest = max(self.largest, part.numel())
        return result


@pytest.mark.parametrize(
    "function",
    [
        lambda m, c: torch.bmm(c, m.unsqueeze(-1)),
        lambda m, c: c @ m.unsqueeze(-1),
        lambda m, c: torch.einsum("be,bge->bg", m, c),
        lambda m, c: torch.baddbmm(c[:, :, :1], c, m.unsqueeze(-1)),
        lambda m, c: F.cosine_similarity(m.unsqueeze(1), c, dim=-1),
    ],
)
def test_what_does_not_depend_on_the_message_is_not_repeated(function):
    n_messages, n_candidates = 40, 50
    m = torch.randn(n_messages, B, E, requires_grad=True)
    c = torch.randn(B, n_candidates, E, requires_grad=True)
    with Sizes() as sizes:
        mapped(function, m, c, in_dims=(0, None))[0].sum().backward()
    assert sizes.largest >= n_messages * c.numel(), "torch's own rule repeats the candidates"

    def with_rules(m, c):
        with BatchingRules():
            return function(m, c)

    with Sizes() as sizes:
        torch.func.vmap(with_rules, in_dims=(0, None))(m, c).sum().backward()
    assert sizes.largest <= n_messages * B * n_candidates


def test_lstm_cells_and_recurrent_networks_need_no_loop(caplog):
    caplog.set_level("INFO", logger="egg_sparse")
    for name in ("LSTMCell", "GRU", "LSTM", "RNN"):
        caplog.clear()
        game = SymbolGameMarg(fixed_sender(Sender(FEATURES, VOCABULARY, 0)), BODIES[name](), squared_output)
        images = torch.randn(B, CANDIDATES, FEATURES)
        game(images, None, images)
        assert caplog.messages == ["strategy auto plays this receiver with vmap"], name


def test_dropout_in_attention_differs_between_messages():
    c = torch.ones(B, 2000, E)
    m = torch.zeros(3, B, E)

    def function(m):
        with BatchingRules():
            return F.scaled_dot_product_attention(m.unsqueeze(1), c, c, dropout_p=0.5)

    first, second, third = torch.func.vmap(function, randomness="different")(m)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    torch.testing.assert_close(first, torch.ones_like(first), atol=0.2, rtol=0)


def test_nothing_outside_of_the_context_changes():
    a, b = torch.randn(B, G, E), torch.randn(B, E, G)
    with BatchingRules():
        inside = a @ b
    assert torch.equal(inside, a @ b)
    assert isinstance(nn.Linear(E, G)(a), torch.Tensor)
