"""How time and memory grow with the vocabulary, the bits, the batch, the messages per example, and uneven supports.

Each step is a forward and a backward pass. The last row of a table has the exponents of the power laws that fit the
upper half of the sizes. Memory is the peak of a process of its own, less that of one that makes the step with 10
symbols, of the game or of the product, and so loads what the others load (on a CPU: Linux only); ``quick`` leaves it
out.

- ``vocabulary``: a training step of ``SymbolGameMarg`` with a linear sender and sparsemax, 64 examples, beside the
  product of the sender's score layer alone with a gradient that is dense. The receiver does not depend on the size.
- ``bits``: mappings of 64 examples to bit-vectors. Of each example 8 bits are undecided, or, under "all undecided",
  all of them, so that there are as many bit-vectors as bits. The output is messages and probabilities.
- ``batch``: a training step of ``SymbolGameMarg`` with 64 symbols, or 32 bits.
- ``terms``: a training step with a given number of messages for each of 32 examples, with and without ``chunk_size``.
- ``uneven_supports``: a training step with a support of 500 for one of 32 examples and 1 for all others, beside the
  receiver and the loss called on these 531 pairs of message and example by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Settings, Step, Table, fitted_exponent, milliseconds, peak_gigabytes, seconds_in_turns
from egg_sparse import SparseMAPBitVectorWrapper, SparsemaxWrapper, SymbolGameMarg
from egg_sparse.mappings import sparsemap_bit_vectors, topk_sparsemax

EXAMPLES, CHUNK, LARGE_SUPPORT = 64, 32, 500


class Sender(nn.Module):
    """Scores of symbols or bits, linear in the input."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.scores = nn.Linear(hidden, size)

    def forward(self, sender_input: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.scores(sender_input)


class GivenScores(nn.Module):
    """Scores that give an example the support of the size that its input says."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.ids: torch.Tensor
        self.register_buffer("ids", torch.arange(vocab_size))

    def forward(self, sender_input: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        return self.scale * torch.where(self.ids < sender_input[:, None], 0.0, -10.0)


class Receiver(nn.Module):
    """A receiver of symbols or bit-vectors that classifies its own input."""

    def __init__(self, width: int, n_bits: int | None = None) -> None:
        super().__init__()
        self.read = nn.Embedding(1024, width) if n_bits is None else nn.Linear(n_bits, width)
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, message: torch.Tensor, receiver_input: torch.Tensor, aux_input: Any = None) -> torch.Tensor:
        read = self.read(message if message.is_floating_point() else message % 1024)
        return self.layers(torch.cat((read, receiver_input), -1))


def loss(
    sender_input: torch.Tensor,
    message: torch.Tensor,
    receiver_input: torch.Tensor,
    receiver_output: torch.Tensor,
    labels: torch.Tensor,
    aux_input: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return F.cross_entropy(receiver_output, labels, reduction="none"), {}


def training_step(game: nn.Module, sender_input: torch.Tensor, width: int) -> Callable[[], torch.Tensor]:
    """A forward and a backward pass of a game; it returns the supports' sizes."""
    device, batch = sender_input.device, len(sender_input)
    game.to(device)
    labels, receiver_input = torch.zeros(batch, dtype=torch.long, device=device), torch.randn(batch, width).to(device)

    def step() -> torch.Tensor:
        game.zero_grad(set_to_none=True)
        value, interaction = game(sender_input, labels, receiver_input)
        value.backward()
        return interaction.aux["support"]

    return step


def vocabulary_step(vocab_size: int, hidden: int, device: str) -> Callable[[], torch.Tensor]:
    sender = SparsemaxWrapper(Sender(hidden, vocab_size), temperature=1.0)
    return training_step(SymbolGameMarg(sender, Receiver(16), loss), torch.randn(EXAMPLES, hidden).to(device), 16)


def product_step(vocab_size: int, hidden: int, device: str) -> Step:
    layer, x = nn.Linear(hidden, vocab_size).to(device), torch.randn(EXAMPLES, hidden).to(device)
    gradient = torch.randn(EXAMPLES, vocab_size).to(device)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).backward(gradient)

    return step


MAPPINGS: dict[str, Callable[[torch.Tensor], Any]] = {
    "systematic": sparsemap_bit_vectors,
    "threshold": lambda x: sparsemap_bit_vectors(x, None, "threshold"),
    "budget": lambda x: sparsemap_bit_vectors(x, x.shape[1] // 4),
    "active set": lambda x: sparsemap_bit_vectors(x, None, "active_set"),
    "top-k": lambda x: topk_sparsemax(x, 10),
    "all undecided": sparsemap_bit_vectors,
}


def mapping_step(name: str, n_bits: int, device: str) -> Step:
    """A forward and a backward pass of a mapping to bit-vectors; it returns the number of values in its output."""
    torch.manual_seed(0)
    sign = torch.where(torch.rand(EXAMPLES, n_bits) < 0.3, 1.0, -1.0)
    decided = 1.1 + 2 * torch.rand(EXAMPLES, n_bits)
    undecided = torch.rand(EXAMPLES, n_bits).argsort(1) < (n_bits if name == "all undecided" else 8)
    scores = (
        torch.where(undecided, 1.8 * torch.rand(EXAMPLES, n_bits) - 0.9, sign * decided).to(device).requires_grad_()
    )

    def step() -> int:
        scores.grad = None
        distribution = MAPPINGS[name](scores)
        distribution.probs.square().sum().backward()
        return distribution.messages.numel() + distribution.probs.numel()

    return step


def batch_step(kind: str, batch: int, device: str) -> Callable[[], torch.Tensor]:
    sender_input = torch.randn(batch, 64).to(device)
    if kind == "symbols":
        game = SymbolGameMarg(SparsemaxWrapper(Sender(64, 64), temperature=1.0), Receiver(16), loss)
    else:
        sender = SparseMAPBitVectorWrapper(Sender(64, 32), temperature=0.05)
        game = SymbolGameMarg(sender, Receiver(16, n_bits=32), loss)
    return training_step(game, sender_input, 16)


def terms_step(terms: int, chunk_size: int | None, device: str) -> Callable[[], torch.Tensor]:
    sender = SparsemaxWrapper(GivenScores(1024), temperature=1.0)
    game = SymbolGameMarg(sender, Receiver(128), loss, chunk_size=chunk_size, max_support=None)
    return training_step(game, torch.full((32,), terms, device=device), 128)


def uneven_sizes(device: str) -> torch.Tensor:
    return torch.tensor([LARGE_SUPPORT] + [1] * 31, device=device)


def uneven_step(strategy: Any, device: str, even: bool = False) -> Callable[[], torch.Tensor]:
    sizes = uneven_sizes(device)
    if even:
        sizes = torch.full_like(sizes, -(-int(sizes.sum()) // len(sizes)))
    sender = SparsemaxWrapper(GivenScores(1024), temperature=1.0)
    game = SymbolGameMarg(sender, Receiver(128), loss, strategy=strategy, max_support=None)
    return training_step(game, sizes, 128)


def by_hand_step(device: str) -> Step:
    sizes, receiver = uneven_sizes(device), Receiver(128).to(device)
    examples = torch.arange(32, device=device).repeat_interleave(sizes)
    messages = torch.cat([torch.arange(int(size), device=device) for size in sizes])
    weights, inputs = 1 / sizes[examples], torch.randn(32, 128).to(device)[examples]
    labels = torch.zeros(len(examples), dtype=torch.long, device=device)

    def step() -> None:
        receiver.zero_grad(set_to_none=True)
        losses, _ = loss(sizes, messages, inputs, receiver(messages, inputs), labels, None)
        ((weights * losses).sum() / 32).backward()

    return step


STEPS: dict[str, Callable[..., Step]] = {
    "vocabulary": vocabulary_step,
    "product": product_step,
    "bits": mapping_step,
    "batch": batch_step,
    "terms": terms_step,
    "uneven": uneven_step,
    "even": lambda device: uneven_step("vmap", device, True),
    "by hand": by_hand_step,
}


def run(name: str, *arguments: Any) -> None:
    """Makes two steps, in the process whose memory is measured."""
    torch.manual_seed(0)
    step = STEPS[name](*arguments)
    step()
    step()


@functools.cache
def peak(name: str, *arguments: Any) -> float:
    return 1e3 * peak_gigabytes("benchmarks.scale", "run", name, *arguments)


def memory(settings: Settings, name: str, *arguments: Any) -> float | None:
    """The peak memory of a step, in MB above that of a small one."""
    if settings.quick:
        return None
    device = str(settings.device)
    small = peak("vocabulary" if name in ("vocabulary", "batch", "terms", "uneven") else "product", 10, 64, device)
    return max(0.0, peak(name, *arguments, device) - small)


def exponents(rows: Sequence[dict[str, Any]], size: str, columns: Sequence[str]) -> dict[str, Any]:
    """A row with the exponents that fit columns over the upper half of the sizes."""
    upper = rows[len(rows) // 2 :] if len(rows) > 2 else rows
    fitted = {
        column: fitted_exponent([row[size] for row in upper], [row[column] for row in upper])
        for column in columns
        if all(row.get(column) for row in upper)
    }
    return {size: "exponent", **fitted}


def vocabulary_table(settings: Settings, hidden: int, sizes: Sequence[int]) -> Table:
    device, rows = settings.device, []
    for size in sizes:
        step, product_alone = vocabulary_step(size, hidden, str(device)), product_step(size, hidden, str(device))
        support = step()
        seconds = seconds_in_turns({"product": product_alone, "step": step}, settings.repeated(7), device)
        product, whole = milliseconds(seconds["product"]), milliseconds(seconds["step"])
        rows.append(
            {
                "symbols": size,
                "mean support": float(support.mean()),
                "product ms": product,
                "step ms": whole,
                "rest ms": whole - product,
                "rest / product": (whole - product) / product,
                "product MB": memory(settings, "product", size, hidden),
                "step MB": memory(settings, "vocabulary", size, hidden),
            }
        )
    why = (
        "The product is linear. The rest is the step's constant costs and a few passes over the scores (maxima, "
        "minima, a comparison, zeros for the gradient), which dominate only in the largest vocabularies. Memory is "
        "that of the layer's weights, of the scores, and of their gradients; the product alone also keeps the gradient "
        "that it is given."
    )
    rows.append(exponents(rows, "symbols", ["product ms", "step ms", "rest ms", "product MB", "step MB"]))
    title = f"A training step with {EXAMPLES} examples and {hidden} hidden units, and the score layer's product alone"
    return Table(f"scale_vocabulary_{hidden}", title, rows, [why])


def bits_table(settings: Settings) -> Table:
    device, rows = settings.device, []
    sizes = [8, 16] if settings.quick else [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    linear = "a constant number of passes over the bits, beside a sort of them, and 9 bit-vectors to write"
    quadratic = (
        "a share of the bits is undecided, so that there are as many bit-vectors; writing them is most of the work"
    )
    why = {
        "budget": quadratic,
        "active set": "its systems of equations are those of the undecided bits; all bits are in its passes",
        "top-k": "selecting the smallest scores and writing k bit-vectors are linear, and not yet all of the time",
        "all undecided": quadratic,
    }
    for name in MAPPINGS:
        of_mapping = []
        for size in sizes:
            if name == "all undecided" and size > 1024:
                continue
            step = mapping_step(name, size, str(device))
            seconds = seconds_in_turns({name: step}, settings.repeated(7), device)
            of_mapping.append(
                {
                    "mapping": name,
                    "bits": size,
                    "output values": step(),
                    "ms": milliseconds(seconds[name]),
                    "MB": memory(settings, "bits", name, size) if size >= 256 else None,
                }
            )
        fitted = exponents(of_mapping, "bits", ["output values", "ms", "MB"])
        rows += [*of_mapping, {"mapping": name, **fitted}]
    notes = [f"{name}: {why.get(name, linear)}." for name in MAPPINGS]
    return Table("scale_bits", f"A mapping of {EXAMPLES} examples to bit-vectors, forward and backward", rows, notes)


def batch_table(settings: Settings) -> Table:
    device, rows = settings.device, []
    sizes = [1, 16] if settings.quick else [4**power for power in range(9)]
    for size in sizes:
        steps = {kind: batch_step(kind, size, str(device)) for kind in ("symbols", "bits")}
        supports = {kind: step() for kind, step in steps.items()}
        seconds = seconds_in_turns(steps, settings.repeated(7), device)
        row: dict[str, Any] = {"examples": size}
        for kind, support in supports.items():
            row |= {
                f"{kind}: largest support": int(support.max()),
                f"{kind}: ms": milliseconds(seconds[kind]),
                f"{kind}: MB": memory(settings, "batch", kind, size),
            }
        rows.append(row)
    why = "Linear in the number of examples; the constant costs of a step still have a share."
    columns = [f"{kind}: {unit}" for kind in ("symbols", "bits") for unit in ("ms", "MB")]
    rows.append(exponents(rows, "examples", columns))
    return Table("scale_batch", "A training step with 64 symbols, and with 32 bits", rows, [why])


def terms_table(settings: Settings) -> Table:
    device, rows = settings.device, []
    for terms in [1, 4] if settings.quick else [4**power for power in range(6)]:
        steps = {name: terms_step(terms, size, str(device)) for name, size in (("all", None), ("chunks", CHUNK))}
        seconds = seconds_in_turns(steps, settings.repeated(7), device)
        rows.append(
            {
                "terms": terms,
                "ms": milliseconds(seconds["all"]),
                f"ms, chunk_size={CHUNK}": milliseconds(seconds["chunks"]),
                "MB": memory(settings, "terms", terms, None),
                f"MB, chunk_size={CHUNK}": memory(settings, "terms", terms, CHUNK),
            }
        )
    why = (
        "Linear in the terms, above the constant costs of a step. With chunk_size one chunk's activations are in "
        "memory, and computed twice."
    )
    rows.append(exponents(rows, "terms", [column for column in rows[0] if column != "terms"]))
    return Table("scale_terms", "A training step with 32 examples of equally many messages", rows, [why])


LABELS = {"even": "vmap, as many pairs in even supports of 17", "by hand": "receiver and loss of these pairs alone"}


def uneven_table(settings: Settings) -> Table:
    device = settings.device
    strategies = ("auto", "gather", "vmap")
    steps: dict[str, Step] = {"even": uneven_step("vmap", str(device), True), "by hand": by_hand_step(str(device))}
    steps |= {strategy: uneven_step(strategy, str(device)) for strategy in strategies}
    seconds = seconds_in_turns(steps, settings.repeated(15), device)
    even = milliseconds(seconds["even"])
    rows: list[dict[str, Any]] = []
    for name in steps:
        if name == "by hand":
            arguments: tuple[Any, ...] = ("by hand",)
        else:
            arguments = ("even",) if name == "even" else ("uneven", name)
        pairs = 32 * LARGE_SUPPORT if name == "vmap" else 31 + LARGE_SUPPORT
        rows.append(
            {
                "strategy": LABELS.get(name, name),
                "pairs at least": pairs,
                "ms": milliseconds(seconds[name]),
                "even = 1": milliseconds(seconds[name]) / even,
                "MB": memory(settings, *arguments),
            }
        )
    title = f"A support of {LARGE_SUPPORT} for one of 32 examples and 1 for all others"
    return Table("scale_uneven_supports", title, rows)


def tables(settings: Settings) -> list[Table]:
    """The tables of the module's docstring."""
    torch.manual_seed(0)
    if settings.quick:
        return [
            vocabulary_table(settings, 64, [10, 1000]),
            bits_table(settings),
            batch_table(settings),
            terms_table(settings),
            uneven_table(settings),
        ]
    sizes = [10, 100, 1000, 10_000, 100_000, 1_000_000]
    return [
        vocabulary_table(settings, 64, sizes),
        vocabulary_table(settings, 512, sizes[:-1]),
        bits_table(settings),
        batch_table(settings),
        terms_table(settings),
        uneven_table(settings),
    ]
