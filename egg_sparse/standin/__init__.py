"""A stand-in for the part of EGG's ``egg.core`` that this package uses, where EGG itself is not installed.

Names, signatures, defaults, option flags, printed lines and semantics are those of EGG 0.1.0
(facebookresearch/EGG, MIT license); the code is this package's own. One test suite holds both to the same
contract. Submodules carry EGG's names too, so ``host.core.baselines.MeanBaseline`` works on either host.
"""

from egg_sparse.standin import baselines, batch, distributed
from egg_sparse.standin.callbacks import (
    Callback,
    CheckpointSaver,
    ConsoleLogger,
    InteractionSaver,
    ProgressBarLogger,
    TemperatureUpdater,
    TensorboardLogger,
)
from egg_sparse.standin.early_stopping import EarlyStopperAccuracy
from egg_sparse.standin.gs_wrappers import (
    GumbelSoftmaxWrapper,
    RelaxedEmbedding,
    RnnReceiverGS,
    RnnSenderGS,
    SenderReceiverRnnGS,
    SymbolGameGS,
    SymbolReceiverWrapper,
)
from egg_sparse.standin.interaction import Interaction, LoggingStrategy, dump_interactions
from egg_sparse.standin.language_analysis import MessageEntropy, TopographicSimilarity
from egg_sparse.standin.population import FullSweepAgentSampler, PopulationGame, UniformAgentSampler
from egg_sparse.standin.reinforce_wrappers import (
    CommunicationRnnReinforce,
    ReinforceDeterministicWrapper,
    ReinforceWrapper,
    RnnReceiverDeterministic,
    RnnReceiverReinforce,
    RnnSenderReinforce,
    SenderReceiverRnnReinforce,
    SymbolGameReinforce,
    TransformerReceiverDeterministic,
    TransformerSenderReinforce,
)
from egg_sparse.standin.rnn import RnnEncoder
from egg_sparse.standin.trainers import Trainer
from egg_sparse.standin.util import build_optimizer, close, find_lengths, get_opts, get_summary_writer, init, move_to

__all__ = [
    "Callback",
    "CheckpointSaver",
    "CommunicationRnnReinforce",
    "ConsoleLogger",
    "EarlyStopperAccuracy",
    "FullSweepAgentSampler",
    "GumbelSoftmaxWrapper",
    "Interaction",
    "InteractionSaver",
    "LoggingStrategy",
    "MessageEntropy",
    "PopulationGame",
    "ProgressBarLogger",
    "ReinforceDeterministicWrapper",
    "ReinforceWrapper",
    "RelaxedEmbedding",
    "RnnEncoder",
    "RnnReceiverDeterministic",
    "RnnReceiverGS",
    "RnnReceiverReinforce",
    "RnnSenderGS",
    "RnnSenderReinforce",
    "SenderReceiverRnnGS",
    "SenderReceiverRnnReinforce",
    "SymbolGameGS",
    "SymbolGameReinforce",
    "SymbolReceiverWrapper",
    "TemperatureUpdater",
    "TensorboardLogger",
    "TopographicSimilarity",
    "Trainer",
    "TransformerReceiverDeterministic",
    "TransformerSenderReinforce",
    "UniformAgentSampler",
    "baselines",
    "batch",
    "build_optimizer",
    "close",
    "distributed",
    "dump_interactions",
    "find_lengths",
    "get_opts",
    "get_summary_writer",
    "init",
    "move_to",
]
