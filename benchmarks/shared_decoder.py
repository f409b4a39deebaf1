"""Time and memory of one training step with a shared decoder, beside EGG's games, plain PyTorch, Pyro and storchastic.

An autoencoder of 64 binary images of 784 pixels: encoder 784-512-256, 256 symbols, decoder 256-512-784, which reads the
message alone. Its output for a symbol is the same for every example, so that a decoder that is evaluated once per
symbol costs little, however many messages are summed. The loss is the squared error of the example's pixels, or, in the
second table, their binary cross-entropy. In plain PyTorch, the losses of all pairs of example and symbol are one matrix
product, or are computed pixel by pixel, which costs more than all outputs of the decoder do. Pyro enumerates all
symbols in parallel (TraceEnum_ELBO); storchastic's estimators play 3 and 30 messages, and all 256. They are measured
where they are installed: ``pip install pyro-ppl storchastic``. storchastic changes functions of torch when it is
imported, so that it is measured in a process of its own, with the Gumbel-Softmax game beside it. Supports of 3 and 30
are random symbols; in "uneven" one example has all 256 and every other example a single one. A step is forward and
backward; ratios are to EGG's Gumbel-Softmax game; memory is the peak of a process of its own, less that game's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.agents import sender_of_support
from benchmarks.measure import (
    Settings,
    Step,
    Table,
    in_fresh_process,
    milliseconds,
    peak_gigabytes,
    ratio,
    seconds_in_turns,
)
from egg_sparse import SymbolGameMarg, host

BATCH, PIXELS, HIDDEN, VOCABULARY = 64, 784, 512, 256
SUPPORTS = ("3", "30", "all", "uneven")


class Encoder(nn.Sequential):
    """Scores ``(B, 256)`` of images ``(B, 784)``."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, VOCABULARY))

    def forward(self, images: Tensor, aux_input: object = None) -> Tensor:
        return super().forward(images)


class Decoder(nn.Module):
    """Logits ``(..., 784)`` of an embedded message ``(..., 512)``."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(HIDDEN, PIXELS)

    def forward(self, message: Tensor, receiver_input: object = None, aux_input: object = None) -> Tensor:
        return self.output(F.relu(message))


class SquaredError:
    """The mean squared error per pixel."""

    name = "squared error"

    def __call__(
        self, sender_input: Tensor, message: Tensor, receiver_input: None, output: Tensor, labels: None, aux_input: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss per example, as EGG calls it."""
        return self.pixelwise(output, sender_input).mean(1), {}

    def pixelwise(self, output: Tensor, images: Tensor) -> Tensor:
        return F.mse_loss(output, images, reduction="none")

    def of_pairs(self, outputs: Tensor, images: Tensor) -> Tensor:
        """The losses ``(B, V)`` of all outputs ``(V, 784)`` for all images ``(B, 784)``, by one matrix product."""
        squares = outputs.square().mean(1) + images.square().mean(1, keepdim=True)
        return squares - 2 * images @ outputs.t() / PIXELS

    def broadcast(self, output: Any, images: Any) -> Any:
        """The loss per pixel of tensors that broadcast, which F.mse_loss warns of."""
        return (output - images).square()

    def likelihood(self, distributions: Any, output: Tensor) -> Any:
        """The distribution of a pixel whose negative log-likelihood is the loss and a constant."""
        return distributions.Normal(output, 0.5**0.5)


class CrossEntropy(SquaredError):
    """The binary cross-entropy per pixel."""

    name = "binary cross-entropy"

    def pixelwise(self, output: Tensor, images: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, images, reduction="none")

    def of_pairs(self, outputs: Tensor, images: Tensor) -> Tensor:
        return F.softplus(outputs).mean(1) - images @ outputs.t() / PIXELS

    def broadcast(self, output: Any, images: Any) -> Any:
        return F.softplus(output) - images * output

    def likelihood(self, distributions: Any, output: Tensor) -> Any:
        return distributions.Bernoulli(logits=output)


SQUARED_ERROR, CROSS_ENTROPY = SquaredError(), CrossEntropy()


@dataclass
class Problem:
    """The images and the agents, always the same."""

    images: Tensor
    encoder: nn.Module
    receiver: Any
    loss: SquaredError

    @classmethod
    def of(cls, batch: int, device: torch.device, loss: SquaredError) -> Problem:
        torch.manual_seed(0)
        receiver = host.core.SymbolReceiverWrapper(Decoder(), VOCABULARY, HIDDEN)
        images = torch.bernoulli(torch.full((batch, PIXELS), 0.2))
        return cls(images.to(device), Encoder().to(device), receiver.to(device), loss)

    @property
    def outputs(self) -> Tensor:
        """The decoder's logits ``(256, 784)`` of all symbols."""
        return self.receiver.agent(self.receiver.embedding.weight)

    def stepping(self, compute: Callable[[], Tensor]) -> Step:
        """A step that computes a loss and its gradients, and returns the loss."""

        def step() -> Tensor:
            self.encoder.zero_grad(set_to_none=True)
            self.receiver.zero_grad(set_to_none=True)
            loss = compute()
            loss.backward()
            return loss.detach()

        return step

    def playing(self, game: nn.Module) -> Step:
        return self.stepping(lambda: game(self.images, None)[0])

    def gumbel(self) -> Step:
        return self.playing(
            host.core.SymbolGameGS(host.core.GumbelSoftmaxWrapper(self.encoder), self.receiver, self.loss)
        )

    def score_function(self) -> Step:
        receiver = host.core.ReinforceDeterministicWrapper(self.receiver)
        return self.playing(
            host.core.SymbolGameReinforce(host.core.ReinforceWrapper(self.encoder), receiver, self.loss)
        )

    def by_product(self) -> Step:
        def compute() -> Tensor:
            losses = self.loss.of_pairs(self.outputs, self.images)
            return (self.encoder(self.images).softmax(1) * losses).sum(1).mean()

        return self.stepping(compute)

    def by_pairs(self) -> Step:
        def compute() -> Tensor:
            pairs = (len(self.images), VOCABULARY, PIXELS)
            outputs, images = self.outputs.expand(pairs), self.images.unsqueeze(1).expand(pairs)
            losses = self.loss.pixelwise(outputs, images).mean(2)
            return (self.encoder(self.images).softmax(1) * losses).sum(1).mean()

        return self.stepping(compute)

    def marginalized(self, support: str, strategy: Any) -> Step:
        sender = sender_of_support(self.encoder, support, len(self.images), VOCABULARY)
        return self.playing(SymbolGameMarg(sender, self.receiver, self.loss, strategy=strategy).to(self.images.device))

    def pyro(self) -> Step:
        import pyro
        from pyro import distributions
        from pyro.infer import TraceEnum_ELBO, config_enumerate

        size = len(self.images)
        uniform = torch.zeros(VOCABULARY, device=self.images.device)

        def model() -> None:
            with pyro.plate("examples", size):
                symbol = pyro.sample("symbol", distributions.Categorical(logits=uniform))
                pixels = self.loss.likelihood(distributions, self.receiver(symbol))
                pyro.sample("pixels", pixels.to_event(1), obs=self.images)

        def guide() -> None:
            with pyro.plate("examples", size):
                pyro.sample("symbol", distributions.Categorical(logits=self.encoder(self.images)))

        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        enumerating = config_enumerate(guide, "parallel")

        def compute() -> Tensor:
            with pyro.validation_enabled(False):
                return elbo.differentiable_loss(model, enumerating) / size

        return self.stepping(compute)

    def storchastic(self, estimator: str, messages: int) -> Step:
        import storch

        options = {
            "Expect": lambda: storch.method.Expect("symbol"),
            "ScoreFunction": lambda: storch.method.ScoreFunction(
                "symbol", n_samples=messages, baseline_factory="batch_average"
            ),
            "GumbelSoftmax": lambda: storch.method.GumbelSoftmax("symbol", n_samples=messages),
            "RaoBlackwellSF": lambda: storch.method.RaoBlackwellSF("symbol", n_samples=messages),
            "UnorderedSetEstimator": lambda: storch.method.UnorderedSetEstimator("symbol", k=messages),
        }
        method = options[estimator]()

        def step() -> Tensor:
            self.encoder.zero_grad(set_to_none=True)
            self.receiver.zero_grad(set_to_none=True)
            storch.reset()
            images = storch.denote_independent(self.images, 0, "examples")
            symbols = method(torch.distributions.OneHotCategorical(probs=self.encoder(images).softmax(-1)))
            outputs = self.receiver.agent(symbols @ self.receiver.embedding.weight)
            storch.add_cost(self.loss.broadcast(outputs, images).mean(-1), "loss")
            return storch.backward()

        return step


@dataclass
class Row:
    """A step of the table, the number of messages per example that it plays, and what makes it of a Problem."""

    label: str
    messages: str
    method: str
    arguments: tuple[Any, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.label}, {self.messages}"

    def step(self, batch: int, device: torch.device, loss: SquaredError = SQUARED_ERROR) -> Step:
        return getattr(Problem.of(batch, device, loss), self.method)(*self.arguments)


ROWS = [
    Row("EGG's Gumbel-Softmax game", "1", "gumbel"),
    Row("EGG's score-function game", "1", "score_function"),
    Row("plain PyTorch, softmax, losses as one matrix product", "all", "by_product"),
    Row("plain PyTorch, softmax, losses pixel by pixel", "all", "by_pairs"),
    Row("Pyro, TraceEnum_ELBO, parallel enumeration", "all", "pyro"),
    *(
        Row(f'SymbolGameMarg, strategy="{strategy}"', support, "marginalized", (support, strategy))
        for support in SUPPORTS
        for strategy in ("auto", "vmap", "gather")
    ),
]
STORCHASTIC = [
    Row("storchastic, Expect", "all", "storchastic", ("Expect", 256)),
    *(
        Row(f"storchastic, {estimator}", str(messages), "storchastic", (estimator, messages))
        for messages in (3, 30)
        for estimator in ("ScoreFunction", "GumbelSoftmax", "RaoBlackwellSF", "UnorderedSetEstimator")
    ),
]


def two_steps(row: int, batch: int, device: str) -> None:
    """Runs the step whose memory is measured."""
    step = ROWS[row].step(batch, torch.device(device))
    for _ in range(2):
        step()


def seconds_of(
    rows: Sequence[Row], batch: int, repeats: int, device: str, loss: SquaredError = SQUARED_ERROR
) -> dict[str, list[float]]:
    """The seconds of the steps, by the rows' keys."""
    where = torch.device(device)
    steps = {row.key: row.step(batch, where, loss) for row in rows}
    return seconds_in_turns(steps, repeats, where, most_seconds=5)


def seconds_of_storchastic(batch: int, repeats: int, device: str) -> dict[str, list[float]]:
    """The seconds of the estimators and of the Gumbel-Softmax game, in a process of their own."""
    code = (
        "import json, benchmarks.shared_decoder as b; "
        f"print(json.dumps(b.seconds_of([b.ROWS[0], *b.STORCHASTIC], {batch}, {repeats}, {device!r})))"
    )
    return json.loads(in_fresh_process(code))


def tables(settings: Settings) -> list[Table]:
    batch, device, repeats = 4 if settings.quick else BATCH, str(settings.device), settings.repeated(15)
    title = f"One step with a decoder of the message alone, {batch} examples, 256 symbols"
    table = Table("shared_decoder", f"{title}, {SQUARED_ERROR.name}")
    other = Table("shared_decoder_cross_entropy", f"{title}, {CROSS_ENTROPY.name}")
    rows = [row for row in ROWS if row.method != "pyro" or is_installed("pyro", "pyro-ppl", table)]
    peaks = {
        row.key: peak_gigabytes("benchmarks.shared_decoder", "two_steps", ROWS.index(row), batch, device)
        for row in rows[: 1 if settings.quick else None]
    }
    fill(table, rows, seconds_of(rows, batch, repeats, device), peaks)
    if is_installed("storch", "storchastic", table):
        fill(table, STORCHASTIC, seconds_of_storchastic(batch, repeats, device), peaks)
    rows = [row for row in rows if row.method != "marginalized" or row.arguments[1] == "auto"]
    fill(other, rows, seconds_of(rows, batch, repeats, device, CROSS_ENTROPY), {})
    return [table, other]


def fill(table: Table, rows: Sequence[Row], seconds: dict[str, list[float]], peaks: dict[str, float]) -> None:
    """Adds the rows, with memory where it is known."""
    baseline = ROWS[0].key
    for row in rows:
        memory = {"GB above Gumbel": peaks[row.key] - peaks[baseline]} if row.key in peaks else {}
        table.rows.append(
            {
                "step": row.label,
                "messages per example": row.messages,
                "ms": milliseconds(seconds[row.key]),
                "ratio": ratio(seconds[row.key], seconds[baseline]),
                **memory,
            }
        )


def is_installed(module: str, package: str, table: Table) -> bool:
    """Whether a peer is installed; if not, the table says so."""
    found = importlib.util.find_spec(module) is not None
    if not found:
        table.notes.append(f"{package} is not installed, so that its rows are missing: pip install {package}")
    return found
