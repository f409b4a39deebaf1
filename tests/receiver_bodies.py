"""Receivers, one for each kind of operation that reads the message and a receiver input, ``(B, G, F)`` candidates."""

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, CANDIDATES, FEATURES = 17, 3, 4


class Body(nn.Module):
    """A receiver that embeds the message and hands it to a function with the candidates and its modules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        self.read = nn.Embedding(VOCABULARY, FEATURES)
        self.parts = nn.ModuleDict(modules)
        self.weight = nn.Parameter(torch.randn(2, FEATURES, FEATURES))

    def forward(self, message, candidates, aux_input=None):
        return self.function(self, self.read(message), candidates).flatten(1)


def _self(body, query, memory):
    """Attention of candidates to each other and to the message."""
    both = torch.cat((query.unsqueeze(1), memory), 1)
    return body.parts["attention"](both, both, both)[0]


def _packed(body, read, candidates):
    lengths = torch.ones(len(read), dtype=torch.long)
    packed = nn.utils.rnn.pack_padded_sequence(read.unsqueeze(1), lengths, batch_first=True)
    return body.parts["rnn"](packed)[1][0] + candidates.sum(1)


def _as_image(read):
    return read.view(len(read), FEATURES, 1, 1).expand(-1, -1, 5, 5)


def _rnn(kind):
    def function(body, read, candidates):
        sequence = torch.cat((read.unsqueeze(1), candidates), 1)
        return body.parts["rnn"](sequence)[0]

    return lambda: Body(function, rnn=kind(FEATURES, 5, batch_first=True))


def _cell(kind):
    def function(body, read, candidates):
        state = body.parts["cell"](candidates[:, 0], read if kind is not nn.LSTMCell else (read, candidates[:, 1]))
        return state[0] + state[1] if isinstance(state, tuple) else state

    return lambda: Body(function, cell=kind(FEATURES, FEATURES))


def _mha(**options):
    def function(body, read, candidates):
        output, weights = body.parts["attention"](read.unsqueeze(1), candidates, candidates, **options)
        return output if weights is None else torch.cat((output, weights), -1)

    return lambda: Body(function, attention=nn.MultiheadAttention(FEATURES, 2, batch_first=True))


def _simple(function, **modules):
    return lambda: Body(function, **{name: make() for name, make in modules.items()})


BODIES = {
    "bmm": _simple(lambda _, m, c: torch.bmm(c, m.unsqueeze(-1))),
    "bmm, message first": _simple(lambda _, m, c: m.unsqueeze(1).bmm(c.transpose(1, 2))),
    "matmul": _simple(lambda _, m, c: torch.matmul(c, m.unsqueeze(-1))),
    "@ of four axes": _simple(lambda body, m, c: c.unsqueeze(1) @ (body.weight @ m[:, None, :, None])),
    "@ with a vector": _simple(lambda body, m, c: (c.unsqueeze(1) * m[:, None, None]) @ body.weight[0, 0]),
    "weight @ message": _simple(lambda body, m, c: (body.weight[0] @ m.t()).t() + c.sum(1)),
    "einsum": _simple(lambda _, m, c: torch.einsum("be,bge->bg", m, c)),
    "einsum of three": _simple(lambda body, m, c: torch.einsum("be,oef,bgf->bgo", m, body.weight, c)),
    "einsum, sublists": _simple(lambda _, m, c: torch.einsum(m, [0, 1], c, [0, 2, 1], [0, 2])),
    "baddbmm": _simple(lambda _, m, c: torch.baddbmm(c[:, :, :1], c, m.unsqueeze(-1), beta=0.5, alpha=2)),
    "linear": _simple(
        lambda body, m, c: body.parts["out"](torch.cat((m, c.flatten(1)), 1)), out=lambda: nn.Linear(16, 3)
    ),
    "mlp per candidate": _simple(
        lambda body, m, c: body.parts["out"](torch.cat((m.unsqueeze(1).expand_as(c), c), -1)),
        out=lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1)),
    ),
    "bilinear": _simple(lambda body, m, c: F.bilinear(c[:, 0], m, body.weight)),
    "bilinear, message first": _simple(
        lambda body, m, c: body.parts["both"](m, c[:, 0]), both=lambda: nn.Bilinear(4, 4, 3)
    ),
    "bilinear, message twice": _simple(lambda body, m, c: F.bilinear(m, m + c[:, 0], body.weight)),
    "cosine similarity": _simple(lambda _, m, c: F.cosine_similarity(m.unsqueeze(1), c, dim=-1)),
    "distances": _simple(lambda _, m, c: torch.cdist(m.unsqueeze(1), c)),
    "distances, many": _simple(lambda _, m, c: torch.cdist(c.repeat(1, 9, 1) + 1, m.unsqueeze(1))),
    "attention": _simple(lambda _, m, c: F.scaled_dot_product_attention(m.unsqueeze(1), c, c)),
    "attention, masked": _simple(
        lambda _, m, c: F.scaled_dot_product_attention(
            torch.stack((m, -m), 1), c, c, torch.tensor([[0, 1, 1], [1, 0, 1]]).bool()
        )
    ),
    "attention, message as key": _simple(lambda _, m, c: F.scaled_dot_product_attention(c, m[:, None], m[:, None])),
    "multi-head attention": _mha(),
    "multi-head attention, masked": _mha(need_weights=False, attn_mask=torch.tensor([[False, True, False]])),
    "multi-head attention, padded": lambda: Body(
        lambda body, m, c: body.parts["attention"](
            m.unsqueeze(1) * c, c, m.unsqueeze(1) + c, key_padding_mask=(c[:, :, 0] > 1e9), need_weights=False
        )[0],
        attention=nn.MultiheadAttention(FEATURES, 2, batch_first=True),
    ),
    "attention, causal": _simple(
        lambda _, m, c: F.scaled_dot_product_attention(m[:, None] * c, c, m[:, None] + c, is_causal=True)
    ),
    "gather": _simple(
        lambda body, m, c: c.flatten(1).gather(1, (m.detach() > 0).long() * 5 + 1) * m,
    ),
    "self-attention": _simple(_self, attention=lambda: nn.MultiheadAttention(FEATURES, 2, batch_first=True)),
    "transformer decoder": _simple(
        lambda body, m, c: body.parts["layer"](m.unsqueeze(1), c),
        layer=lambda: nn.TransformerDecoderLayer(FEATURES, 2, 8, dropout=0.0, batch_first=True),
    ),
    "convolution": _simple(
        lambda body, m, c: body.parts["conv"](_as_image(m)) + c.sum((1, 2))[:, None, None, None],
        conv=lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.MaxPool2d(2)),
    ),
    "transposed convolution": _simple(
        lambda body, m, c: body.parts["conv"](m[:, :, None, None]) + c.mean((1, 2))[:, None, None, None],
        conv=lambda: nn.ConvTranspose2d(4, 2, 3),
    ),
    "layer norm": _simple(lambda body, m, c: body.parts["norm"](m.unsqueeze(1) * c), norm=lambda: nn.LayerNorm(4)),
    "index_select": _simple(lambda body, m, c: c.flatten(0, 1).index_select(0, (m.detach().sum(1) > 0).long()) * m),
    "RNNCell": _cell(nn.RNNCell),
    "GRUCell": _cell(nn.GRUCell),
    "LSTMCell": _cell(nn.LSTMCell),
    "RNN": _rnn(nn.RNN),
    "GRU": _rnn(nn.GRU),
    "LSTM": _rnn(nn.LSTM),
    "packed GRU": _simple(_packed, rnn=lambda: nn.GRU(FEATURES, FEATURES, batch_first=True)),
}
