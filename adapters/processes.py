"""Pools of processes that leave signals to the process that started them, and end when it does.

They do not run its main file, as spawned processes otherwise do: a script without ``if __name__ == "__main__":`` would
begin anew in each of them, and a notebook has no such file. So what they call must not be defined there.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import spawn
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a terminal or a service manager sends to a whole group of processes."""

_MAIN_FILE = ("init_main_from_name", "init_main_from_path")
"""What names the parent's main file in the data that a spawned process is prepared with."""

_starting = threading.Lock()


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
            with _main_file_left_out(self.name):
                super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Do the pool's work as long as the parent lives."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


@contextmanager
def _main_file_left_out(process: str) -> Iterator[None]:
    """Let the process of this name, started within the block, not run the main file. Python has no option for it."""

    def without_main_file(name: str) -> dict[str, Any]:
        data = prepare(name)
        return {key: value for key, value in data.items() if name != process or key not in _MAIN_FILE}

    with _starting:
        prepare = spawn.get_preparation_data
        spawn.get_preparation_data = without_main_file
        try:
            yield
        finally:
            spawn.get_preparation_data = prepare


class _Context(SpawnContext):
    """Spawned, not forked: a fork would copy the locks of whatever threads the parent runs."""

    Process = _Process


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
