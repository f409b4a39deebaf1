"""Time and memory of one training step of the signal game, beside EGG's games and the direct product.

The size is the paper's: 64 examples, a vocabulary of 256, 16 candidates of 4096 features, embeddings of 256, 512
filters, with the paper's agents. The receiver reads the example, so that no output can be shared between examples. The
direct product is the same sum in plain PyTorch, with the messages as columns of one matrix product: what the terms
cost. A support of K is random symbols. "gather" is measured with examples on axis 0, where it needs them, and not for
all 256 messages, since it copies the candidates of an example for each of its messages. A step is forward and backward;
ratios are to EGG's Gumbel-Softmax game; memory is the peak of a process of its own, less that game's.

A second table has EGG's games and SymbolGameMarg on each host that can be imported, each in a process of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
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
from egg_sparse.games.calls import vmap_can_be_recomputed
from egg_sparse.zoo.signal_game.archs import PaperSender, Receiver
from egg_sparse.zoo.signal_game.games import loss_nll


@dataclass(frozen=True)
class Size:
    """The size of the game."""

    batch: int = 64
    vocabulary: int = 256
    candidates: int = 16
    features: int = 4096
    embedding: int = 256
    filters: int = 512


PAPER, QUICK = Size(), Size(4, 40, 3, 8, 8, 8)


class BatchFirst(nn.Module):
    """An agent that sees images ``(B, 16, F)``, with the examples on axis 0."""

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, *args: Any) -> Tensor:
        return self.agent(*(arg.transpose(0, 1) if isinstance(arg, Tensor) and arg.dim() == 3 else arg for arg in args))


@dataclass
class Row:
    """A step of the table.

    Attributes:
        label: what is measured.
        messages: the number of messages per example: a number, or "all".
        kind: "gumbel", "score function", "product" or a strategy of SymbolGameMarg.
        chunk_size: the chunk_size of SymbolGameMarg.
    """

    label: str
    messages: str
    kind: str
    chunk_size: int | None = None

    @property
    def key(self) -> str:
        return f"{self.label}, {self.messages}"

    def step(self, size: Size, device: torch.device) -> Step:
        torch.manual_seed(0)
        agent = PaperSender(size.features, size.embedding, size.filters, size.vocabulary, temperature=10.0)
        receiver = Receiver(size.features, size.embedding, size.vocabulary, one_hot=self.kind == "gumbel")
        images = nn.functional.normalize(torch.randn(size.candidates, size.batch, size.features), dim=-1).to(device)
        labels = torch.zeros(size.batch, dtype=torch.long, device=device)
        game = self._game(agent, receiver, size).to(device)
        if self.kind == "gather":
            images = images.transpose(0, 1).contiguous()

        def step() -> Tensor:
            game.zero_grad(set_to_none=True)
            loss, _ = game(images, labels, images)
            loss.backward()
            return loss.detach()

        return step

    def _game(self, agent: Any, receiver: Any, size: Size) -> nn.Module:
        if self.kind == "gumbel":
            return host.core.SymbolGameGS(host.core.GumbelSoftmaxWrapper(agent), receiver, loss_nll)
        if self.kind == "score function":
            deterministic = host.core.ReinforceDeterministicWrapper(receiver)
            return host.core.SymbolGameReinforce(host.core.ReinforceWrapper(agent), deterministic, loss_nll)
        if self.kind == "gather":
            agent, receiver = BatchFirst(agent), BatchFirst(receiver)
        sender = sender_of_support(agent, self.messages, size.batch, size.vocabulary)
        if self.kind == "product":
            return DirectProduct(sender, receiver)
        strategy: Any = self.kind
        return SymbolGameMarg(sender, receiver, loss_nll, strategy=strategy, chunk_size=self.chunk_size)


class DirectProduct(nn.Module):
    """The expected loss with the K messages of an example as columns: ``(B, 16, 256) x (B, 256, K)``."""

    def __init__(self, sender: nn.Module, receiver: Receiver) -> None:
        super().__init__()
        self.sender, self.receiver = sender, receiver

    def forward(self, images: Tensor, labels: Tensor, candidates: Tensor) -> tuple[Tensor, None]:
        distribution = self.sender(images)
        embedded = self.receiver.embed(candidates).transpose(0, 1)
        scores = embedded @ self.receiver.read(distribution.messages).permute(1, 2, 0)
        of_target = scores.gather(1, labels.view(-1, 1, 1).expand(-1, 1, scores.shape[2])).squeeze(1)
        losses = scores.logsumexp(1) - of_target
        return (distribution.probs * losses.t()).sum(0).mean(), None


ROWS = [
    Row("EGG's Gumbel-Softmax game", "1", "gumbel"),
    Row("EGG's score-function game", "1", "score function"),
    *(Row("direct product in plain PyTorch", messages, "product") for messages in ("3", "30", "all")),
    *(
        Row(f'SymbolGameMarg, strategy="{strategy}"', messages, strategy)
        for strategy, supports in (
            ("auto", ("1", "3", "10", "30", "all")),
            ("vmap", ("3", "30", "all")),
            ("gather", ("3", "30")),
            ("loop", ("3", "30", "all")),
        )
        for messages in supports
    ),
    *(
        Row(f'SymbolGameMarg, strategy="vmap", chunk_size={size}', "all", "vmap", size)
        for size in (64, 16)
        if vmap_can_be_recomputed()
    ),
]
ON_BOTH_HOSTS = [row for row in ROWS if row.kind in ("gumbel", "score function", "auto")]


def two_steps(row: int, quick: bool, device: str) -> None:
    """Runs the step whose memory is measured."""
    step = ROWS[row].step(QUICK if quick else PAPER, torch.device(device))
    for _ in range(2):
        step()


def seconds_of(rows: list[Row], quick: bool, repeats: int, device: str) -> dict[str, list[float]]:
    """The seconds of the steps, by the rows' keys."""
    size, where = QUICK if quick else PAPER, torch.device(device)
    return seconds_in_turns({row.key: row.step(size, where) for row in rows}, repeats, where, most_seconds=5)


def table_of_hosts(settings: Settings, title: str) -> Table:
    """The rows of both hosts."""
    table = Table("signal_game_hosts", f"{title}, by host")
    arguments = f"b.ON_BOTH_HOSTS, {settings.quick}, {settings.repeated(11)}, {str(settings.device)!r}"
    for name in ("standin", "egg"):
        code = (
            "import json, benchmarks.signal_game_step as b; "
            f"print(json.dumps([b.host.describe(), b.seconds_of({arguments})]))"
        )
        try:
            described, seconds = json.loads(in_fresh_process(code, EGG_SPARSE_HOST=name))
        except RuntimeError as error:
            if "EGG cannot be used" not in str(error):
                raise
            table.notes.append("EGG is not installed, so that its rows are missing.")
            continue
        for row in ON_BOTH_HOSTS:
            measured, gumbel = seconds[row.key], seconds[ROWS[0].key]
            table.rows.append(
                {
                    "host": described,
                    "step": row.label,
                    "messages per example": row.messages,
                    "ms": milliseconds(measured),
                    "ratio": ratio(measured, gumbel),
                }
            )
    return table


def tables(settings: Settings) -> list[Table]:
    size, device = QUICK if settings.quick else PAPER, str(settings.device)
    title = (
        f"One step of the signal game: {size.batch} examples, {size.vocabulary} symbols, {size.candidates} candidates"
    )
    table = Table("signal_game_step", title)
    seconds = seconds_of(ROWS, settings.quick, settings.repeated(11), device)
    peaks = [
        peak_gigabytes("benchmarks.signal_game_step", "two_steps", i, settings.quick, device)
        for i in range(1 if settings.quick else len(ROWS))
    ]
    for i, row in enumerate(ROWS):
        table.rows.append(
            {
                "step": row.label,
                "messages per example": row.messages,
                "ms": milliseconds(seconds[row.key]),
                "ratio": ratio(seconds[row.key], seconds[ROWS[0].key]),
                "GB above Gumbel": peaks[i] - peaks[0] if i < len(peaks) else None,
            }
        )
    return [table, table_of_hosts(settings, title)]
