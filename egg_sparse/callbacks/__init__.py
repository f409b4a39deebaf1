"""EGG callbacks: metrics and loggers, statistics of messages and gradients, checkpoints, seeds and schedules."""

from egg_sparse.callbacks.checkpoints import BestCheckpoint
from egg_sparse.callbacks.gradients import GradientVariance
from egg_sparse.callbacks.language import LanguageStatistics, interaction_of
from egg_sparse.callbacks.messages import MessageEntropy, MessageUsage, TopographicSimilarity, symbols_of
from egg_sparse.callbacks.metrics import MetricsWriter, SenderState, TensorboardMetrics, WandbMetrics, mean_metrics
from egg_sparse.callbacks.progress import TrainingProgress
from egg_sparse.callbacks.schedules import Schedule, StepTemperature, SupportSchedule
from egg_sparse.callbacks.seeds import EpochSeeds, EpochSetter

__all__ = [
    "BestCheckpoint",
    "EpochSeeds",
    "EpochSetter",
    "GradientVariance",
    "LanguageStatistics",
    "MessageEntropy",
    "MessageUsage",
    "MetricsWriter",
    "Schedule",
    "SenderState",
    "StepTemperature",
    "SupportSchedule",
    "TensorboardMetrics",
    "TopographicSimilarity",
    "TrainingProgress",
    "WandbMetrics",
    "interaction_of",
    "mean_metrics",
    "symbols_of",
]
