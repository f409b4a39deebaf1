"""SparseMAP by the optional lp-sparsemap package, the reference for the native solvers.

It solves one example after the other, on the CPU. Its generic sequence factor has a variable for each bit and state and
a score for each pair of neighboring states: it expresses chains, and independent bits if these scores are 0. Its budget
factor has marginals in closed form, but no distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from egg_sparse.distribution import SparseDistribution
from egg_sparse.mappings.scores import message_type, probability_type

SOLVERS = ("native", "lpsmap")


def check_solver(solver: str) -> None:
    """Raises ValueError unless the solver is known."""
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")


def import_factors() -> tuple[Any, Any]:
    """The classes of lp-sparsemap's factor graph and sequence factor.

    Raises:
        ImportError: the package is not installed; the error says how to get it.
    """
    try:
        from lpsmap.ad3ext.sequence import PFactorSequence
        from lpsmap.ad3qp.factor_graph import PFactorGraph
    except ImportError as error:
        raise ImportError(
            'solver="lpsmap" needs the lp-sparsemap package, which is not installed: its release has wheels for '
            "Python 3.8 and 3.9, for later ones it must be built from https://github.com/deep-spin/lp-sparsemap "
            '(docs/lp-sparsemap.md says how); solver="native" needs no other package'
        ) from error
    return PFactorGraph, PFactorSequence


def chain(scores: torch.Tensor, transitions: torch.Tensor, max_iter: int) -> SparseDistribution:
    """SparseMAP over binary sequences; see :func:`egg_sparse.mappings.sparsemap_chain`."""
    wide = scores.to(probability_type(scores))
    probs, sequences = _Sequence.apply(wide, transitions.expand(len(scores), -1), max_iter)
    sequences = torch.where(probs[:, :, None] > 0, sequences, sequences[:1])  # padded rows repeat the first
    return SparseDistribution(sequences.to(message_type(scores)), probs, validate_args=False)


def bits(scores: torch.Tensor, max_iter: int) -> SparseDistribution:
    """SparseMAP over bit-vectors: a chain without transition scores."""
    return chain(scores, scores.new_zeros(scores.shape[1] - 1), max_iter)


def budget_marginals(scores: torch.Tensor, budget: int) -> torch.Tensor:
    """The SparseMAP marginals ``(B, D)`` of bit-vectors with at most ``budget`` bits on."""
    mu: torch.Tensor = _Budget.apply(scores.to(probability_type(scores)), budget)
    return mu


class _Sequence(torch.autograd.Function):
    """Probabilities (K, B) and sequences (K, B, D), most probable first."""

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, transitions: torch.Tensor, max_iter: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        graph_type, factor_type = import_factors()
        batch, n_bits = scores.shape
        states = np.zeros((batch, n_bits, 2))
        states[..., 1] = scores.detach().cpu().double().numpy()
        pairs = np.zeros((batch, max(n_bits - 1, 0), 2, 2))
        pairs[..., 1, 1] = transitions.detach().cpu().double().numpy()
        factors, supports = [], []
        for state_scores, pair_scores in zip(states, pairs, strict=True):
            graph, factor = graph_type(), factor_type()
            graph.set_verbosity(0)
            factor.initialize([2] * n_bits)
            graph.declare_factor(factor, [graph.create_binary_variable() for _ in range(2 * n_bits)])
            factor.solve_qp(state_scores.ravel(), pair_scores.ravel(), max_iter=max_iter)
            found, probs = factor.get_sparse_solution()
            supports.append((np.array(found, dtype=float), np.array(probs[: len(found)])))
            factors.append((graph, factor))
        rows = max((len(probs) for _, probs in supports), default=1)
        probs, sequences = np.zeros((rows, batch)), np.zeros((rows, batch, n_bits))
        orders = []
        for example, (found, found_probs) in enumerate(supports):
            order = np.argsort(-found_probs, kind="stable")
            probs[: len(order), example] = found_probs[order]
            sequences[: len(order), example] = found[order]
            orders.append(order)
        messages = torch.from_numpy(sequences).to(scores)
        ctx.factors, ctx.orders = factors, orders
        ctx.save_for_backward(messages)
        ctx.mark_non_differentiable(messages)
        ctx.set_materialize_grads(False)
        return torch.from_numpy(probs).to(scores), messages

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_probs: torch.Tensor | None, _: None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        if grad_probs is None:
            return None, None, None
        grads = grad_probs.detach().cpu().double().numpy()
        grad_scores = np.zeros_like(grads)
        for example, ((_, factor), order) in enumerate(zip(ctx.factors, ctx.orders, strict=True)):
            grad_found, product = np.zeros(len(order)), np.zeros(len(order))
            grad_found[order] = grads[: len(order), example]
            factor.q_vec(grad_found, product)
            grad_scores[: len(order), example] = product[order]
        (messages,) = ctx.saved_tensors
        weighted = torch.from_numpy(grad_scores).to(messages)[:, :, None] * messages
        return weighted.sum(0), (weighted[..., :-1] * messages[..., 1:]).sum(0), None


class _Budget(torch.autograd.Function):
    """Marginals (B, D) under a budget.

    lp-sparsemap's budget factor has no off-indicators. Its problem max <y, mu> - 1/2 ||mu||^2 is, for y = (x + 1) / 2,
    half of the problem with both indicators.
    """

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, budget: int) -> torch.Tensor:
        graph_type, _ = import_factors()
        batch, n_bits = scores.shape
        halved = (scores.detach().cpu().double().numpy() + 1) / 2
        factors, mu = [], np.zeros((batch, n_bits))
        for example, bit_scores in enumerate(halved):
            graph = graph_type()
            factor = graph.create_factor_budget([graph.create_binary_variable() for _ in range(n_bits)], budget)
            mu[example] = factor.solve_qp(bit_scores, np.zeros(0))[0]
            factors.append((graph, factor))
        ctx.factors, ctx.like = factors, scores.new_empty(0)
        return torch.from_numpy(mu).to(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mu: torch.Tensor) -> tuple[torch.Tensor, None]:
        grads = grad_mu.detach().cpu().double().numpy()
        grad_scores = [factor.jacobian_vec(grad)[0] for (_, factor), grad in zip(ctx.factors, grads, strict=True)]
        return torch.from_numpy(np.array(grad_scores).reshape(grads.shape) / 2).to(ctx.like), None
