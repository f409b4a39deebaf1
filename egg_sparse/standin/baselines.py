"""Baselines for the score-function estimator: what is subtracted from the loss to lower the variance."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Baseline(ABC):
    """Predicts a batch's losses from those seen before, or from the batch's other examples."""

    @abstractmethod
    def update(self, loss: torch.Tensor) -> None:
        """Learn from a batch of losses."""

    @abstractmethod
    def predict(self, loss: torch.Tensor) -> torch.Tensor:
        """The baseline of a batch of losses; broadcasts with them."""


class NoBaseline(Baseline):
    """Always zero."""

    def update(self, loss: torch.Tensor) -> None:
        return

    def predict(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, device=loss.device)


class MeanBaseline(Baseline):
    """The mean over all batches seen, each with equal weight."""

    def __init__(self) -> None:
        self.mean_baseline = torch.zeros(1)
        self.n_points = 0.0

    def update(self, loss: torch.Tensor) -> None:
        self.n_points += 1
        current = self.predict(loss)
        self.mean_baseline = current + (loss.detach().mean() - current) / self.n_points

    def predict(self, loss: torch.Tensor) -> torch.Tensor:
        self.mean_baseline = self.mean_baseline.to(loss.device)
        return self.mean_baseline


class BuiltInBaseline(Baseline):
    """For every example the mean loss of the batch's others. Examples must be independent."""

    def update(self, loss: torch.Tensor) -> None:
        return

    def predict(self, loss: torch.Tensor) -> torch.Tensor:
        if loss.dim() == 0 or loss.size(0) <= 1:
            return loss
        others = loss.size(0) - 1
        return (loss.detach().sum() - loss.detach()) / others
