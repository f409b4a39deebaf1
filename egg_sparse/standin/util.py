"""Common options, seeds, the optimizer and the summary writer of a run."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from egg_sparse.standin.distributed import maybe_init_distributed

common_opts: argparse.Namespace | None = None
optimizer: type[torch.optim.Optimizer] | None = None
summary_writer: Any = None

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    option, switch = parser.add_argument, {"default": False, "action": "store_true"}
    option("--random_seed", type=int, default=None, help="seed of all random numbers (default: drawn)")
    option("--checkpoint_dir", type=str, default=None, help="folder of the checkpoints")
    option("--preemptable", **switch, help="start from the newest checkpoint in checkpoint_dir, if any")  # type: ignore[arg-type]
    option("--checkpoint_freq", type=int, default=0, help="epochs between checkpoints, 0 for the last only")
    option("--validation_freq", type=int, default=1, help="epochs between validations, 0 for none")
    option("--n_epochs", type=int, default=10, help="training epochs (default: 10)")
    option("--load_from_checkpoint", type=str, default=None, help="checkpoint to go on from")
    option("--no_cuda", **switch, help="run on the CPU")  # type: ignore[arg-type]
    option("--batch_size", type=int, default=32, help="examples per training batch (default: 32)")
    option("--optimizer", type=str, default="adam", help="adam, sgd or adagrad (default: adam)")
    option("--lr", type=float, default=1e-2, help="learning rate (default: 1e-2)")
    option("--update_freq", type=int, default=1, help="batches per optimizer step (default: 1)")
    option("--vocab_size", type=int, default=10, help="symbols in the vocabulary (default: 10)")
    option("--max_len", type=int, default=1, help="longest message (default: 1)")
    option("--tensorboard", **switch, help="write TensorBoard summaries")  # type: ignore[arg-type]
    option("--tensorboard_dir", type=str, default="runs/", help="folder of the TensorBoard summaries")
    option("--distributed_port", default=18363, type=int, help="port for processes started by SLURM")
    option("--fp16", **switch, help="mixed precision")  # type: ignore[arg-type]


def init(arg_parser: argparse.ArgumentParser | None = None, params: list[str] | None = None) -> argparse.Namespace:
    """Parses the common options together with the parser's own, seeds everything, picks the optimizer.

    Args:
        arg_parser: a parser that already has the game's options.
        params: the arguments; those of the command line if None.

    Returns:
        All options, with ``device``, ``cuda`` and ``distributed_context`` added.
    """
    global common_opts, optimizer, summary_writer
    parser = argparse.ArgumentParser() if arg_parser is None else arg_parser
    _add_common_options(parser)
    opts = parser.parse_args(sys.argv[1:] if params is None else params)
    opts.cuda = not opts.no_cuda and torch.cuda.is_available()
    opts.no_cuda = not opts.cuda
    opts.device = torch.device("cuda" if opts.cuda else "cpu")
    opts.distributed_context = maybe_init_distributed(opts)
    common_opts = opts

    if opts.random_seed is None:
        opts.random_seed = random.randint(0, 2**31)
    else:
        opts.random_seed += opts.distributed_context.rank
    _set_seed(opts.random_seed)

    if opts.optimizer not in _OPTIMIZERS:
        raise NotImplementedError(f"Unknown optimizer name {opts.optimizer}!")
    optimizer = _OPTIMIZERS[opts.optimizer]

    if summary_writer is None and opts.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Cannot load tensorboard module; makes sure you installed everything required"
            ) from error
        summary_writer = SummaryWriter(log_dir=opts.tensorboard_dir)

    if opts.update_freq <= 0:
        raise RuntimeError("update_freq should be an integer, >= 1.")
    return opts


def close() -> None:
    """Closes the summary writer, if there is one."""
    if summary_writer:
        summary_writer.close()


def get_opts() -> argparse.Namespace:
    """The options of the last :func:`init`."""
    return common_opts  # type: ignore[return-value]


def build_optimizer(params: Iterable) -> torch.optim.Optimizer:
    """The optimizer that the options name, with their learning rate."""
    return optimizer(params, lr=get_opts().lr)  # type: ignore[misc,call-arg]


def get_summary_writer() -> Any:
    """The TensorBoard writer of this run; None without --tensorboard."""
    return summary_writer


def _set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def move_to(x: Any, device: torch.device) -> Any:
    """Moves tensors in lists, tuples (which become lists) and dicts (in place) to a device."""
    if hasattr(x, "to"):
        return x.to(device)
    if isinstance(x, (list, tuple)):
        return [move_to(item, device) for item in x]
    if isinstance(x, dict):
        for key, value in x.items():
            x[key] = move_to(value, device)
    return x


def find_lengths(messages: torch.Tensor) -> torch.Tensor:
    """Lengths of messages ``(B, max_len)`` of symbol ids, up to and including the first 0, which ends a message.

    >>> find_lengths(torch.tensor([[1, 1, 0, 0, 0, 1], [1, 1, 1, 10, 7, 5]]))
    tensor([3, 6])
    """
    ended = (messages == 0).cumsum(dim=1) > 0
    return ((~ended).sum(dim=1) + 1).clamp(max=messages.size(1))
