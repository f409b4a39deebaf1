"""The one place that knows EGG: ``host.core`` is the real ``egg.core`` where it can be imported, else the stand-in.

The environment variable ``EGG_SPARSE_HOST`` forces one of them: ``egg`` or ``standin``. The choice is made when
``core`` is first used, so that ``import egg_sparse`` costs no more than ``import torch``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    # EGG has no annotations; the stand-in has the same names and signatures
    from egg_sparse import standin as core  # noqa: F401
else:

    def __getattr__(name: str) -> Any:
        if name == "core":
            return _resolve()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_HOW_TO_GET_EGG = "pip install git+https://github.com/facebookresearch/EGG.git"
_ABSENT = "there is no package egg"
_REQUIRED_NAMES = ("Trainer", "Interaction", "LoggingStrategy", "SymbolGameReinforce", "GumbelSoftmaxWrapper", "init")
_ACTING_RECEIVERS = (
    "ReinforceWrapper",
    "ReinforceDeterministicWrapper",
    "RnnReceiverReinforce",
    "RnnReceiverDeterministic",
    "TransformerReceiverDeterministic",
)
SENDERS_OF_SEVERAL_SYMBOLS = ("RnnSenderReinforce", "RnnSenderGS", "TransformerSenderReinforce")
_CLASSES_FOR_SEVERAL_SYMBOLS = (
    *SENDERS_OF_SEVERAL_SYMBOLS,
    "SenderReceiverRnnReinforce",
    "SenderReceiverRnnGS",
    "CommunicationRnnReinforce",
    "RnnReceiverReinforce",
    "RnnReceiverDeterministic",
    "RnnReceiverGS",
    "TransformerReceiverDeterministic",
)

_resolved: dict[str, Any] = {}


def _resolve() -> Any:
    """The host, chosen at the first call."""
    if "core" not in _resolved:
        wanted = os.environ.get("EGG_SPARSE_HOST", "")
        if wanted not in ("", "egg", "standin"):
            raise ValueError(f'EGG_SPARSE_HOST must be "egg" or "standin", got {wanted!r}')
        found = None
        if wanted != "standin":
            found, why_not = _import_egg()
            if found is None and wanted == "egg":
                raise ImportError(
                    f"EGG_SPARSE_HOST=egg, but EGG cannot be used: {why_not}. To get it: {_HOW_TO_GET_EGG}"
                )
            if found is None and why_not != _ABSENT:
                warnings.warn(
                    f"EGG cannot be used, so egg_sparse runs on its stand-in: {why_not}. "
                    f"To get EGG: {_HOW_TO_GET_EGG}; to silence this, set EGG_SPARSE_HOST=standin",
                    RuntimeWarning,
                    stacklevel=4,
                )
        if found is None:
            found = importlib.import_module("egg_sparse.standin")
        _allow_loading(found)
        _resolved["core"] = found
    return _resolved["core"]


def _import_egg() -> tuple[Any, str]:
    """``egg.core`` and "", or None and the reason why it cannot be used."""
    try:
        found = importlib.import_module("egg.core")
    except ModuleNotFoundError as error:
        if error.name == "egg":
            return None, _ABSENT
        if error.name == "egg.core":
            return None, "the package egg that is installed is not EGG (it has no egg.core)"
        return None, f"egg.core needs the package {error.name}, which is not installed"
    except Exception as error:  # whatever an unrelated or broken package raises while it is imported
        return None, f"importing egg.core failed with {type(error).__name__}: {error}"
    missing = [name for name in _REQUIRED_NAMES if not hasattr(found, name)]
    if missing:
        return None, f"the egg.core that is installed is not EGG's (it has no {', '.join(missing)})"
    return found, ""


def _allow_loading(chosen: Any) -> None:
    """Allows ``torch.load(weights_only=True)`` to read the checkpoints and Interactions of both hosts.

    Only these two classes become loadable; weights_only stays on.
    """
    from egg_sparse.standin.callbacks import Checkpoint
    from egg_sparse.standin.interaction import Interaction

    callbacks = importlib.import_module(f"{chosen.__name__}.callbacks")
    allowed: list[Any] = [Checkpoint, Interaction, callbacks.Checkpoint, chosen.Interaction]
    torch.serialization.add_safe_globals(allowed)
    aliases_are_supported = torch.torch_version.TorchVersion(torch.__version__) >= (2, 6)  # type: ignore[operator]
    if chosen.__name__ != "egg.core" and aliases_are_supported:
        # so that EGG's checkpoints can be read without EGG
        aliases = [(Checkpoint, "egg.core.callbacks.Checkpoint"), (Interaction, "egg.core.interaction.Interaction")]
        torch.serialization.add_safe_globals(aliases)  # type: ignore[arg-type]


def is_egg() -> bool:
    """Whether the host is the real EGG."""
    return _resolve().__name__ == "egg.core"


def describe() -> str:
    """The host in words, with EGG's version where the package has one."""
    if not is_egg():
        return "egg_sparse's stand-in for egg.core"
    try:
        return f"EGG {importlib.metadata.version('EGG')}"
    except importlib.metadata.PackageNotFoundError:
        return "EGG"


def egg_class(obj: Any, *names: str) -> type | None:
    """The first class of EGG's or the stand-in's, of one of these names, that an object is an instance of, or None."""
    for cls in type(obj).__mro__:
        if cls.__name__ in names and cls.__module__.startswith(("egg.core", "egg_sparse.standin")):
            return cls
    return None


def is_acting(receiver: Any) -> bool:
    """Whether a receiver is one of EGG's, or the stand-in's, that return (action, log-probability, entropy).

    It may be compiled, in a DataParallel, or in EGG's wrapper that embeds the message.
    """
    while receiver is not None and egg_class(receiver, *_ACTING_RECEIVERS) is None:
        if egg_class(receiver, "SymbolReceiverWrapper"):
            receiver = getattr(receiver, "agent", None)
        elif isinstance(receiver, torch.nn.DataParallel):
            receiver = receiver.module
        else:
            receiver = getattr(receiver, "_orig_mod", None)
    return receiver is not None


def without_deterministic_wrapper(receiver: Any) -> Any:
    """The agent of a ``ReinforceDeterministicWrapper``; any other receiver as it is."""
    return receiver.agent if egg_class(receiver, "ReinforceDeterministicWrapper") else receiver


def refuse_sampling_wrappers(sender: Any) -> None:
    """Raises TypeError if a sender's agent is in a wrapper of EGG's, which samples a message."""
    cls = egg_class(getattr(sender, "agent", None), "ReinforceWrapper", "GumbelSoftmaxWrapper")
    if cls is not None:
        raise TypeError(
            f"the sender's agent is in a {cls.__name__}, which samples a message: give {type(sender).__name__} the "
            "agent alone, which returns scores"
        )


def refuse_several_symbols(module: Any) -> None:
    """Raises TypeError if a game or an agent, wrapped or not, is one of EGG's for messages of several symbols."""
    while module is not None:
        cls = egg_class(module, *_CLASSES_FOR_SEVERAL_SYMBOLS)
        if cls is not None:
            raise TypeError(
                f"{cls.__name__} is for messages of several symbols, and this game for one symbol or a bit-vector: use "
                "RnnSenderSparsemax and SenderReceiverRnnMarg, or marginalize(game) on EGG's game"
            )
        module = getattr(module, "agent", None)
