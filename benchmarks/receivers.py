"""Time of one training step with receivers of many kinds, beside the same receivers with their messages folded by hand.

The receivers are those of EGG's zoo, and others with operations that receivers use: 64 examples with 16 candidates of
64 features (4 for the Transformer), embeddings of 64, 256 symbols, and K of them with non-zero probability for every
example. A step is forward and backward of the expected squared output. By hand, in plain PyTorch, what does not depend
on the message is computed once, and the K messages of an example become columns of a matrix product, or rows of the
batch. ``torch.func.vmap`` is PyTorch's, with the same sum by hand; the other columns are whole steps of SymbolGameMarg.
Ratios are to the step by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.measure import Settings, Step, Table, milliseconds, ratio, seconds_in_turns
from egg_sparse import SymbolGameMarg
from egg_sparse.distribution import SparseDistribution
from egg_sparse.games.calls import Strategy

BATCH, VOCABULARY, CANDIDATES, SIZE, HEADS = 64, 256, 16, 64, 4
SUPPORTS = (3, 30, 256)

Computation = Callable[[], Tensor]


class Receiver(nn.Module):
    """A receiver that reads a symbol, embeds it, and makes an answer of it and of the message-independent part.

    A subclass implements :meth:`answer`, and :meth:`prepare` if it reads the candidates ``(B, 16, 64)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding(VOCABULARY, SIZE)

    def prepare(self, candidates: Tensor) -> Any:
        """What does not depend on the message."""
        return None

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        """The output ``(N, ...)`` for one embedded symbol per example, ``(N, 64)``."""
        raise NotImplementedError

    def forward(self, message: Tensor, receiver_input: Tensor, aux_input: object = None) -> Tensor:
        return self.answer(self.read(message), self.prepare(receiver_input))

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        """The outputs ``(K, B, ...)`` of messages ``(K, B)``, here with K * B rows."""
        prepared = self.prepare(candidates)
        if prepared is not None:
            prepared = prepared.expand(len(messages), *prepared.shape).flatten(0, 1)
        return self.answer(self.read(messages).flatten(0, 1), prepared).unflatten(0, messages.shape)

    def folded_losses(self, messages: Tensor, candidates: Tensor) -> Tensor:
        """The losses ``(K, B)`` of messages ``(K, B)``."""
        return losses_of(self.folded(messages, candidates), 2)


class Embedding(Receiver):
    """The embedding alone (EGG's SymbolReceiverWrapper around an agent that returns the message)."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return symbol


class Linear(Receiver):
    """A linear map of the symbol (basic_games.RecoReceiver, compo_vs_generalization.Receiver, channel, external)."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(SIZE, SIZE)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.output(symbol)


class Classifier(Receiver):
    """language_bottleneck.mnist_classification.Receiver."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 10)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return F.log_softmax(self.output(F.leaky_relu(self.hidden(F.leaky_relu(symbol)))), dim=1)


class Decoder(Receiver):
    """mnist_autoenc.Receiver: a leaky ReLU, a linear map to 784 pixels, a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(SIZE, 784)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return torch.sigmoid(self.output(F.leaky_relu(symbol)))


class OneHot(Receiver):
    """compo_vs_generalization.NonLinearReceiver: a fixed embedding with one-hot rows, two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding.from_pretrained(torch.eye(VOCABULARY))
        self.hidden, self.output = nn.Linear(VOCABULARY, SIZE), nn.Linear(SIZE, SIZE)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.output(F.leaky_relu(self.hidden(symbol.view(symbol.shape[0], -1))))


class ConvDecoder(Receiver):
    """dsprites_bvae.VisualReceiver, for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Sequential(
            nn.Linear(SIZE, 32),
            nn.Unflatten(1, (32, 1, 1)),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 8, 4),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.decode(symbol)


class Acting(Linear):
    """external_game.ReinforceReceiver, which returns (action, log-probability, entropy)."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        policy = Categorical(logits=self.output(symbol))
        action = policy.sample()
        return action, policy.log_prob(action), policy.entropy()

    def folded_losses(self, messages: Tensor, candidates: Tensor) -> Tensor:
        answers = self.answer(self.read(messages).flatten(0, 1), None)
        action, log_prob, _ = (answer.view(messages.shape) for answer in answers)
        losses = action.float()
        return losses + (losses - losses.mean()) * log_prob


class Discriminator(Receiver):
    """objects_game.Receiver, basic_games.DiscriReceiver: torch.matmul of embedded candidates and symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, SIZE)

    def prepare(self, candidates: Tensor) -> Tensor:
        return self.embed(candidates).tanh()

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return torch.matmul(prepared, symbol.unsqueeze(-1)).squeeze(-1)

    def columns(self, messages: Tensor) -> Tensor:
        """The embedded symbols ``(B, 64, K)``."""
        return self.read(messages).permute(1, 2, 0)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        return (self.prepare(candidates) @ self.columns(messages)).permute(2, 0, 1)


class SignalGame(Discriminator):
    """signal_game.Receiver: torch.bmm and log_softmax."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return F.log_softmax(torch.bmm(prepared, symbol.unsqueeze(-1)).squeeze(-1), dim=1)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        return F.log_softmax(super().folded(messages, candidates), dim=2)


class Einsum(Discriminator):
    """torch.einsum of candidates and symbol."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return torch.einsum("bge,be->bg", prepared, symbol)


class ElementwiseDot(Discriminator):
    """The sum of an elementwise product of candidates and symbol."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return (prepared * symbol.unsqueeze(1)).sum(2)


class Cosine(Discriminator):
    """pop.Receiver: the cosine similarity of the symbol with one candidate of every example."""

    def prepare(self, candidates: Tensor) -> Tensor:
        return self.embed(candidates[:, 0])

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return F.cosine_similarity(symbol.unsqueeze(1), prepared.unsqueeze(0), dim=2)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        return F.normalize(self.read(messages), dim=2) @ F.normalize(self.prepare(candidates), dim=1).t()


class Distance(Discriminator):
    """torch.cdist between candidates and symbol."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return torch.cdist(prepared, symbol.unsqueeze(1)).squeeze(2)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        return torch.cdist(self.prepare(candidates), self.read(messages).transpose(0, 1)).permute(2, 0, 1)


class Bilinear(Discriminator):
    """nn.Bilinear of one candidate and the symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(SIZE, SIZE, CANDIDATES)

    def prepare(self, candidates: Tensor) -> Tensor:
        return self.embed(candidates[:, 0])

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.product(prepared, symbol)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        of_example = torch.einsum("be,oef->bof", self.prepare(candidates), self.product.weight)
        return (of_example @ self.columns(messages)).permute(2, 0, 1) + self.product.bias


class DotProductAttention(Discriminator):
    """F.scaled_dot_product_attention: the symbol is the query, the candidates are keys and values."""

    @staticmethod
    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        keys = self.heads(prepared)
        return F.scaled_dot_product_attention(self.heads(symbol.unsqueeze(1)), keys, keys).flatten(1)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        keys = self.heads(self.prepare(candidates))
        attended = F.scaled_dot_product_attention(self.heads(self.read(messages).transpose(0, 1)), keys, keys)
        return attended.permute(2, 0, 1, 3).flatten(2)


class MultiheadAttention(Discriminator):
    """nn.MultiheadAttention: the symbol is the query, the candidates are keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.attend(symbol.unsqueeze(1), prepared, prepared, need_weights=False)[0].squeeze(1)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        prepared = self.prepare(candidates)
        queries = self.read(messages).transpose(0, 1)
        return self.attend(queries, prepared, prepared, need_weights=False)[0].transpose(0, 1)


class Transformer(Receiver):
    """nn.TransformerEncoderLayer over the symbol and four candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, SIZE)
        self.layer = nn.TransformerEncoderLayer(SIZE, HEADS, SIZE, dropout=0, batch_first=True)

    def prepare(self, candidates: Tensor) -> Tensor:
        return self.embed(candidates[:, :4])

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.layer(torch.cat((symbol.unsqueeze(1), prepared), dim=1))[:, 0]


class Concatenation(Receiver):
    """language_bottleneck.guess_number.Receiver: two linear maps of the embedded input and the symbol, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, SIZE)
        self.hidden, self.output = nn.Linear(2 * SIZE, 2 * SIZE), nn.Linear(2 * SIZE, 8)

    def prepare(self, candidates: Tensor) -> Tensor:
        return self.embed(candidates[:, 0])

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        hidden = F.leaky_relu(self.hidden(torch.cat((prepared, symbol), dim=1)))
        return torch.sigmoid(self.output(hidden))


class Dropout(Concatenation):
    """The same with dropout."""

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return super().answer(F.dropout(symbol, 0.5), prepared)


class Normalized(Concatenation):
    """nn.LayerNorm of the sum of embedded input and symbol, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.output = nn.LayerNorm(SIZE), nn.Linear(SIZE, 8)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.output(self.norm(prepared + symbol))


class Recurrent(Concatenation):
    """nn.GRUCell: the embedded input is the state, the symbol the input."""

    def __init__(self) -> None:
        super().__init__()
        self.cell: nn.Module = nn.GRUCell(SIZE, SIZE)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.cell(symbol, prepared)


class LongMemory(Recurrent):
    """nn.LSTMCell in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(SIZE, SIZE)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.cell(symbol, (prepared, prepared))[0]


class Gated(Concatenation):
    """All candidates, multiplied by a gate that the symbol opens, and a linear map (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(SIZE, 1)

    def prepare(self, candidates: Tensor) -> Tensor:
        return self.embed(candidates)

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        return self.output(F.relu(prepared * torch.sigmoid(symbol).unsqueeze(1))).squeeze(2)


class Convolution(Receiver):
    """A convolution of an image to which the symbol adds a plane, and another one of the image alone before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Linear(SIZE, 64), nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(5, 4, 3)

    def prepare(self, candidates: Tensor) -> Tensor:
        return F.relu(self.first(candidates[:, 0].view(-1, 1, 8, 8)))

    def answer(self, symbol: Tensor, prepared: Any) -> Any:
        plane = self.embed(symbol).view(-1, 1, 8, 8)
        return self.second(torch.cat((prepared, plane), dim=1)).flatten(1)


class Lookup(Receiver):
    """torch.gather of the symbol's column from a table that the receiver makes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(SIZE, VOCABULARY)

    def forward(self, message: Tensor, receiver_input: Tensor, aux_input: object = None) -> Tensor:
        scores = self.table(receiver_input)
        return scores.gather(2, message.view(-1, 1, 1).expand(-1, CANDIDATES, 1)).squeeze(2)

    def folded(self, messages: Tensor, candidates: Tensor) -> Tensor:
        columns = messages.t().unsqueeze(1).expand(-1, CANDIDATES, -1)
        return self.table(candidates).gather(2, columns).permute(2, 0, 1)


READING_THE_EXAMPLE = {
    "matmul (objects_game)": Discriminator,
    "bmm, log_softmax (signal_game)": SignalGame,
    "einsum": Einsum,
    "elementwise product, sum": ElementwiseDot,
    "cosine_similarity (pop)": Cosine,
    "cdist": Distance,
    "nn.Bilinear": Bilinear,
    "scaled_dot_product_attention": DotProductAttention,
    "nn.MultiheadAttention": MultiheadAttention,
    "nn.TransformerEncoderLayer": Transformer,
    "cat, two Linear (guess_number)": Concatenation,
    "the same with dropout": Dropout,
    "LayerNorm, Linear": Normalized,
    "nn.GRUCell": Recurrent,
    "nn.LSTMCell": LongMemory,
    "gate, Linear (FiLM)": Gated,
    "Conv2d": Convolution,
    "gather from a table": Lookup,
}
SHARED = {
    "Embedding": Embedding,
    "Linear (basic_games)": Linear,
    "two Linear, log_softmax (mnist_classification)": Classifier,
    "Linear to 784, sigmoid (mnist_autoenc)": Decoder,
    "one-hot Embedding (compo_vs_generalization)": OneHot,
    "ConvTranspose2d (dsprites_bvae)": ConvDecoder,
    "Categorical action (external_game)": Acting,
}
#: torch.func.vmap has no batching rule for the cell, and a receiver that acts returns a tuple, which has no loss here.
NOT_TRACED_BY_VMAP = (LongMemory, Acting)


class Sender(nn.Module):
    """A sender with a support of exactly K random symbols for every example."""

    messages: Tensor

    def __init__(self, support: int, batch: int) -> None:
        super().__init__()
        symbols = torch.rand(batch, VOCABULARY).argsort(1)[:, :support].t()
        self.register_buffer("messages", symbols.contiguous())
        self.scores = nn.Parameter(torch.randn(support, batch).sort(0, descending=True).values)

    def forward(self, sender_input: Tensor, aux_input: object = None) -> SparseDistribution:
        return SparseDistribution(self.messages, self.scores.softmax(0), VOCABULARY, validate_args=False)


def losses_of(output: Tensor, rows: int) -> Tensor:
    """A loss per message of an output with this number of axes for messages; an action is its own loss."""
    return output.square().flatten(rows).mean(rows) if output.dim() > rows else output.float()


def loss(
    sender_input: Tensor,
    message: Tensor,
    receiver_input: Tensor,
    output: Tensor,
    labels: None,
    aux_input: None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the game, as EGG calls it."""
    return losses_of(output, 1), {}


def computations_of(
    kind: type[Receiver], support: int, batch: int, device: torch.device
) -> tuple[dict[str, Computation], list[nn.Module]]:
    """The expected loss by hand, with PyTorch's vmap and with the strategies, by name; and the two agents."""
    torch.manual_seed(0)
    sender, receiver = Sender(support, batch).to(device), kind().to(device)
    candidates = torch.randn(batch, CANDIDATES, SIZE, device=device)

    def expected(losses: Tensor) -> Tensor:
        return (sender.scores.softmax(0) * losses).sum(0).mean()

    def by_hand() -> Tensor:
        return expected(receiver.folded_losses(sender.messages, candidates))

    def by_vmap() -> Tensor:
        def played(message: Tensor) -> Tensor:
            return losses_of(receiver(message, candidates), 1)

        return expected(torch.func.vmap(played, randomness="different")(sender.messages))

    def by_game(strategy: Strategy) -> Computation:
        game = SymbolGameMarg(sender, receiver, loss, strategy=strategy, receiver_acts=kind is Acting)
        return lambda: game(candidates, None, candidates)[0]

    computations = {"by hand": by_hand, "torch.func.vmap": by_vmap, "auto": by_game("auto")}
    if kind is not Cosine:  # whose candidates are those of all examples
        computations["gather"] = by_game("gather")
    return computations, [sender, receiver]


def tables(settings: Settings) -> list[Table]:
    supports, batch = ((2,), 4) if settings.quick else (SUPPORTS, BATCH)
    found = []
    for name, title, receivers in (
        ("receivers", "Receivers that read the example: ratio of a step to the same one by hand", READING_THE_EXAMPLE),
        ("shared_receivers", "Receivers of the message alone: ratio of a step to the same one by hand", SHARED),
    ):
        table = Table(name, title)
        for label, kind in receivers.items():
            for support in supports:
                table.rows.append({"receiver": label, "K": str(support), **measured(kind, support, batch, settings)})
        found.append(table)
    return found


def measured(kind: type[Receiver], support: int, batch: int, settings: Settings) -> dict[str, float]:
    """The columns of one row."""
    computations, agents = computations_of(kind, support, batch, settings.device)
    if kind in NOT_TRACED_BY_VMAP:
        del computations["torch.func.vmap"]

    def stepping(compute: Computation) -> Step:
        def step() -> None:
            for agent in agents:
                agent.zero_grad(set_to_none=True)
            compute().backward()

        return step

    steps = {name: stepping(compute) for name, compute in computations.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "strategy auto calls the receiver once per message")
        warnings.filterwarnings("ignore", "There is a performance drop")  # which is what the table shows
        seconds = seconds_in_turns(steps, settings.repeated(7), settings.device, most_seconds=3)
    by_hand = seconds.pop("by hand")
    return {"by hand, ms": milliseconds(by_hand)} | {name: ratio(times, by_hand) for name, times in seconds.items()}
