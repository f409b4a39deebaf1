"""The one place that knows EGG: ``host.core`` is the real ``egg.core`` where it imports, else the stand-in.

The environment variable ``EGG_SPARSE_HOST`` forces one of them: ``egg`` or ``standin``. The choice is made when
``core`` is first asked for, so that ``import egg_sparse`` costs no more than ``import torch``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pathlib
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    # Types are those of the stand-in; EGG's own are the same by contract but carry no annotations.
    pass

_HOW_TO_GET_EGG = "pip install git+https://github.com/facebookresearch/EGG.git"
_NEEDED = ("Trainer", "Interaction", "LoggingStrategy", "SymbolGameReinforce", "GumbelSoftmaxWrapper", "init")
_ACTING = ("ReinforceWrapper", "ReinforceDeterministicWrapper", "RnnReceiverReinforce", "RnnReceiverDeterministic")

_OF_SEVERAL_SYMBOLS = (
    "SenderReceiverRnnReinforce",
    "SenderReceiverRnnGS",
    "CommunicationRnnReinforce",
    "RnnSenderReinforce",
    "RnnSenderGS",
    "RnnReceiverReinforce",
    "RnnReceiverDeterministic",
    "RnnReceiverGS",
    "TransformerSenderReinforce",
    "TransformerReceiverDeterministic",
)

_resolved: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    if name == "core":
        return _resolve()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _resolve() -> Any:
    if "core" not in _resolved:
        wanted = os.environ.get("EGG_SPARSE_HOST", "")
        if wanted not in ("", "egg", "standin"):
            raise ValueError(f'EGG_SPARSE_HOST must be "egg" or "standin", got {wanted!r}')
        core = None
        if wanted != "standin":
            core, why_not = _import_egg()
            if core is None and wanted == "egg":
                raise ImportError(
                    f"EGG_SPARSE_HOST=egg, but EGG cannot be used: {why_not}. To get it: {_HOW_TO_GET_EGG}"
                )
            if core is None and why_not != _ABSENT:
                warnings.warn(
                    f"EGG cannot be used, so egg_sparse runs on its stand-in: {why_not}. "
                    f"To get EGG: {_HOW_TO_GET_EGG}; to silence this, set EGG_SPARSE_HOST=standin",
                    RuntimeWarning,
                    stacklevel=4,
                )
        if core is None:
            core = importlib.import_module("egg_sparse.standin")
        _allow_loading(core)
        _resolved["core"] = core
    return _resolved["core"]


_ABSENT = "there is no package egg"


def _import_egg() -> tuple[Any, str]:
    """EGG's core and "", or None and why it cannot be had."""
    try:
        core = importlib.import_module("egg.core")
    except ModuleNotFoundError as error:
        if error.name == "egg":
            return None, _ABSENT
        if error.name == "egg.core":
            return None, "the package egg that is installed is not EGG (it has no egg.core)"
        return None, f"egg.core needs the package {error.name}, which is not installed"
    except Exception as error:  # whatever an unrelated or broken package raises while it is imported
        return None, f"importing egg.core failed with {type(error).__name__}: {error}"
    missing = [name for name in _NEEDED if not hasattr(core, name)]
    if missing:
        return None, f"the egg.core that is installed is not EGG's (it has no {', '.join(missing)})"
    return core, ""


def _allow_loading(core: Any) -> None:
    """Lets ``torch.load(weights_only=True)`` read checkpoints and interactions, of either host.

    Only these two classes become loadable; weights_only stays on.
    """
    from egg_sparse.standin.callbacks import Checkpoint
    from egg_sparse.standin.interaction import Interaction

    callbacks = importlib.import_module(f"{core.__name__}.callbacks")
    allowed: list[Any] = [Checkpoint, Interaction, callbacks.Checkpoint, core.Interaction]
    torch.serialization.add_safe_globals(allowed)
    aliases_are_known = torch.torch_version.TorchVersion(torch.__version__) >= (2, 6)  # type: ignore[operator]
    if core.__name__ != "egg.core" and aliases_are_known:
        # so that EGG's checkpoints can be read without EGG
        aliases = [(Checkpoint, "egg.core.callbacks.Checkpoint"), (Interaction, "egg.core.interaction.Interaction")]
        torch.serialization.add_safe_globals(aliases)  # type: ignore[arg-type]


def is_egg() -> bool:
    """Whether the host is the real EGG."""
    return _resolve().__name__ == "egg.core"


def describe() -> str:
    """The host in words, with EGG's version where it says one."""
    if not is_egg():
        return "egg_sparse's stand-in for egg.core"
    try:
        return f"EGG {importlib.metadata.version('EGG')}"
    except importlib.metadata.PackageNotFoundError:
        return "EGG"


def classes(name: str) -> list[type]:
    """The classes of this name in the host and in the stand-in; none if neither has it."""
    hosts = (_resolve(), importlib.import_module("egg_sparse.standin"))
    return [getattr(core, name) for core in hosts if hasattr(core, name)]


def is_acting(receiver: Any) -> bool:
    """Whether a receiver is one of EGG's, or of the stand-in's, that return (action, log-probability, entropy).

    It may be compiled, in a DataParallel, or in EGG's wrapper that embeds the message.
    """
    acting = tuple(found for name in _ACTING for found in classes(name))
    symbol_receivers = tuple(classes("SymbolReceiverWrapper"))
    while receiver is not None and not isinstance(receiver, acting):
        if isinstance(receiver, symbol_receivers):
            receiver = getattr(receiver, "agent", None)
        elif isinstance(receiver, torch.nn.DataParallel):
            receiver = receiver.module
        else:
            receiver = getattr(receiver, "_orig_mod", None)
    return receiver is not None


def without_deterministic_wrapper(receiver: Any) -> Any:
    """The receiver in a ``ReinforceDeterministicWrapper``, or the receiver itself."""
    return getattr(receiver, "agent", receiver) if is_deterministic_wrapper(receiver) else receiver


def is_deterministic_wrapper(receiver: Any) -> bool:
    """Whether a receiver is in EGG's ``ReinforceDeterministicWrapper``."""
    return isinstance(receiver, tuple(classes("ReinforceDeterministicWrapper")))


def refuse_drawn_messages(sender: Any) -> None:
    """Raises TypeError if the agent of a sender is in one of EGG's wrappers, which draws a message of its own."""
    agent = getattr(sender, "agent", None)
    for cls in type(agent).__mro__:
        if cls.__name__ in ("ReinforceWrapper", "GumbelSoftmaxWrapper") and _is_of_a_host(cls):
            raise TypeError(
                f"the sender's agent is in a {cls.__name__}, which draws a message: give {type(sender).__name__} the "
                "agent alone, which returns scores"
            )


def _is_of_a_host(cls: type) -> bool:
    return cls.__module__.startswith(("egg.core", "egg_sparse.standin"))


def refuse_several_symbols(module: Any) -> None:
    """Raises TypeError if a game or an agent, wrapped or not, is one of EGG's for messages of several symbols."""
    while module is not None:
        for cls in type(module).__mro__:
            if cls.__name__ in _OF_SEVERAL_SYMBOLS and _is_of_a_host(cls):
                raise TypeError(
                    f"{cls.__name__} is for messages of several symbols, which cannot be marginalized: egg_sparse sums "
                    "over messages of one symbol (SparsemaxWrapper around an agent that returns scores (B, V)), or "
                    "over bit-vectors"
                )
        module = getattr(module, "agent", None)


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Reads a checkpoint that a host's CheckpointSaver wrote, on the CPU, executing nothing that is in it.

    Returns:
        A named tuple with ``epoch``, ``model_state_dict``, ``optimizer_state_dict`` and
        ``optimizer_scheduler_state_dict``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or corrupted, holds objects other than tensors and plain values, or is not a
            checkpoint.
    """
    _resolve()
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever zip, pickle or torch happen to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a checkpoint, it is damaged or of another kind: {reason}"
        ) from error
    if type(checkpoint).__name__ != "Checkpoint":
        raise ValueError(f"{path} is not a checkpoint of EGG's Trainer: it holds a {type(checkpoint).__name__}")
    if not (isinstance(checkpoint.epoch, int) and isinstance(checkpoint.model_state_dict, dict)):
        raise ValueError(f"{path} is not a checkpoint of EGG's Trainer: it has no number of an epoch, or no weights")
    return checkpoint


def _check_sums(path: str | os.PathLike[str]) -> None:
    """Compares the checksums that torch.save writes, which torch.load ignores."""
    if not zipfile.is_zipfile(path):
        return  # the format of PyTorch before 1.6, which has none
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which no checkpoint is")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def check_architecture(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Raises ValueError, naming the first difference, unless ``state`` fits the model."""
    expected, found = (
        {name: tuple(getattr(value, "shape", ())) for name, value in entries.items()}
        for entries in (model.state_dict(), state)
    )
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            there, here = found.get(name, "absent"), expected.get(name, "absent")
            raise ValueError(
                f"checkpoint {path} is of another architecture: {name} is {there} there and {here} here; "
                "give the options of the run that wrote it"
            )
