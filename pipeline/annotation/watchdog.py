"""A watchdog that ends a worker process whose work is stuck: it counts as crashed, and its supervisor goes on.

A model or decoder that hangs in native code can only be stopped from outside the interpreter. Python's ``faulthandler``
does so: its thread needs no lock of the interpreter, and it leaves the stack in the worker's log.
"""

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_lock = threading.Lock()
_limit_s: float | None = None
_deadlines: dict[int, float] = {}
"""Time by which each watched thread must give its next sign of progress, by thread id."""


def set_limit(seconds: float) -> None:
    """Set how long a watched thread of this process may go without a sign of progress."""
    global _limit_s
    _limit_s = seconds


@contextmanager
def watched() -> Iterator[None]:
    """Watch this thread in the block. Without ``set_limit`` before, nothing is watched."""
    _set_deadline(_limit_s)
    try:
        yield
    finally:
        _set_deadline(None)


@contextmanager
def resting() -> Iterator[None]:
    """Stop watching this thread in the block, where it waits for another process that is watched itself."""
    was_watched = threading.get_ident() in _deadlines
    _set_deadline(None)
    try:
        yield
    finally:
        if was_watched:
            _set_deadline(_limit_s)


def beat() -> None:
    """Give a sign of progress."""
    if threading.get_ident() in _deadlines:
        _set_deadline(_limit_s)


def _set_deadline(seconds: float | None) -> None:
    now = time.monotonic()
    with _lock:
        if seconds is None:
            _deadlines.pop(threading.get_ident(), None)
        else:
            _deadlines[threading.get_ident()] = now + seconds
        if _deadlines:
            faulthandler.dump_traceback_later(max(0.001, min(_deadlines.values()) - now), exit=True, file=_STDERR)
        else:
            faulthandler.cancel_dump_traceback_later()
