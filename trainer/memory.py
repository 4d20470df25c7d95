"""Memory of a GPU: how many pairs fit into it at once, found by trying, and errors that say what to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from handdata.schemas import RunError


def smaller_micro_batch(share: int, micro: int) -> int | None:
    """Return the largest micro batch of at most half as many pairs that a process's share can be cut into.

    Args:
        share: Pairs of a process's share of a batch.
        micro: Pairs of a micro batch that did not fit.

    Returns:
        Number of pairs; None where a single pair did not fit.

    """
    return next((number for number in range(micro // 2, 0, -1) if share % number == 0), None)


def largest_that_fits(share: int, attempt: Callable[[int], None]) -> int | None:
    """Return the largest micro batch, of those that ``smaller_micro_batch`` leads to, that an attempt has room for.

    Args:
        share: Pairs of a process's share of a batch.
        attempt: Does with a number of pairs what a step does, or raises ``torch.OutOfMemoryError``.

    Returns:
        Number of pairs; None where a single pair does not fit.

    """
    micro: int | None = share
    while micro is not None:
        try:
            attempt(micro)
        except torch.OutOfMemoryError:
            micro = smaller_micro_batch(share, micro)
        else:
            return micro
    return None


def advice(share: int, micro: int) -> str:
    """Return what to do where a micro batch does not fit."""
    smaller = smaller_micro_batch(share, micro)
    if smaller is None:
        return (
            "set `activation_checkpointing = true` below `[optimisation]` in the file that --config names, or choose a "
            "smaller --preset"
        )
    return f"set `micro_batch_size = {smaller}` below `[optimisation]` in the file that --config names: the same result"


@contextmanager
def memory_errors(doing: str, hint: str) -> Iterator[None]:
    """Turn what PyTorch says where memory is exhausted, of a GPU or of this machine, into one line.

    Raises:
        RunError: It is.

    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"the GPU is out of memory, {doing}", hint) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise RunError(f"this machine is out of memory, {doing}", hint) from error
