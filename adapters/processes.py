"""Pools of processes that leave signals to the process that started them, and end when it does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess

_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a terminal or a service manager sends to a whole group of processes."""


@contextmanager
def process_pool(workers: int, initializer: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes, and end them with the block: at once where it raises.

    Args:
        workers: Number of processes.
        initializer: Function that each process calls first.

    """
    pool = ProcessPoolExecutor(workers, mp_context=_Context(), initializer=initializer)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if isinstance(process, _Process):
                process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    """A process that is deaf to the signals of its parent's group from its first instruction on."""

    def start(self) -> None:
        """Start the process; it inherits the mask of signals."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Do the pool's work as long as the parent lives."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


class _Context(SpawnContext):
    """Spawned, not forked: a fork would copy the locks of whatever threads the parent runs."""

    Process = _Process


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
