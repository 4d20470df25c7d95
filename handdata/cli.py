"""The entry point: the command line runs here, and ends in order, whether it is done or interrupted.

It imports the commands only once its signal handlers stand, so that Ctrl-C during the imports is one line, too.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final

GRACE_S: Final = 10.0
"""Seconds that an interrupted or failed command has for cleaning up; a second signal ends it at once."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that interrupt: Ctrl-C, what Kubernetes and spot machines send, and a terminal that is closed."""

_CONTINUES: Final = "the same command continues"
_STARTS_ANEW: Final = "the same command starts anew"
_AFTERWARDS: Final = {
    "card": _STARTS_ANEW,
    "demo": _STARTS_ANEW,
    "doctor": _STARTS_ANEW,
    "evaluate": _STARTS_ANEW,
    "export": _STARTS_ANEW,
    "ingest": f"{_STARTS_ANEW}; earlier records stay in force until it is done",
    "inspect": _STARTS_ANEW,
    "rejected": _STARTS_ANEW,
    "report": _STARTS_ANEW,
    "sample": _STARTS_ANEW,
    "show": _STARTS_ANEW,
    "sources": _STARTS_ANEW,
    "status": _STARTS_ANEW,
    "submit": "the cluster goes on with a job that it has received",
    "synth": _STARTS_ANEW,
    "weights": _STARTS_ANEW,
}


def main() -> None:
    """Run the command line; the entry point ``handdata``."""
    # A process that is ended at once leaves semaphores to multiprocessing's tracker, whose word on them helps nobody.
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [warnings, "ignore:resource_tracker:UserWarning"]))
    # Where the driver's parent is init, as in a container, Ray ends the driver without a word once its raylet is gone,
    # unless it is told of another process that matters.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    _Ending(after_interruption(sys.argv[1:])).run(_run_commands)


def after_interruption(arguments: Sequence[str]) -> str:
    """Return what a command line does when it is typed again after it was interrupted."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command == "train":
        resume = "" if "--resume" in arguments else " with --resume"
        return f"the same command{resume} continues from the last checkpoint"
    if command == "export" and "dataset" in arguments[:2]:
        return _CONTINUES
    if command == "evaluate" and "--out" in arguments:
        return f"{_CONTINUES}: images that were drawn stay"
    only_shows = {"--plan", "--dry-run"} & {*arguments}
    return _AFTERWARDS.get(command, _STARTS_ANEW if only_shows else _CONTINUES)


def _run_commands() -> None:
    try:
        from handdata.app import app
        from handdata.console import errors_in_one_line
    except ModuleNotFoundError as error:
        if (error.name or "handdata").partition(".")[0] == "handdata":
            raise
        sys.stderr.write(f"error: this needs the package {error.name}, which is not installed\n")
        sys.stderr.write("hint: pip install handdata\n")
        sys.exit(1)

    with errors_in_one_line():
        app()


class _Ending:
    """Ends this process: with the command's code, or with one line and 128 plus the number of the signal.

    A signal raises ``KeyboardInterrupt`` in the main thread, which waits of all libraries let through. A thread that
    reads the signals' numbers ends the process where cleaning up takes longer than ``GRACE_S``, or where the main
    thread is somewhere in C and does not hear of it.

    The process ends in an exit function that runs after all others: what the interpreter does after that would end
    threads of C++ libraries inside their code, which aborts the process now and then.

    Args:
        afterwards: What the same command does after an interruption.

    """

    def __init__(self, afterwards: str) -> None:
        self._afterwards = afterwards
        self._signal: int | None = None
        self._code: int | None = None
        self._stderr = 2
        self._settling = threading.Lock()

    def run(self, command: Callable[[], None]) -> None:
        """Run a command and exit."""
        _open_closed_streams()
        self._stderr = os.dup(2)  # while Ray connects, 2 leads nowhere
        atexit.register(self._flush_and_leave)  # the first to be registered is the last to run
        code = 1
        # Each of these may be where a signal finds the main thread. Python calls no handler between them.
        try:  # noqa: SIM105 - leaving `suppress` is a call, after which Python calls handlers
            code = self._outcome(command)
        except KeyboardInterrupt:
            pass
        try:
            self._end(code)
        except KeyboardInterrupt:
            self._end(code)
        if self._code:  # exit functions may wait for what has failed
            late = threading.Timer(GRACE_S, os._exit, [self._code])
            late.daemon = True
            late.start()
        sys.exit(self._code)

    def _outcome(self, command: Callable[[], None]) -> int:
        """Run a command and return its exit code."""
        try:
            self._listen()
            command()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except BaseException:
            if self._signal is None:
                traceback.print_exc()
            return 1
        return 0

    def _listen(self) -> None:
        """Install the handlers, except for signals that this process was started to ignore, as by nohup."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        threading.Thread(target=self._follow, args=(reader,), name="signals", daemon=True).start()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self._signal is None:
            self._signal = number
        if self._code is None:
            # What fails in other threads and destructors from now on follows from the interruption.
            sys.unraisablehook = lambda _: None
            threading.excepthook = lambda _: None
            raise KeyboardInterrupt

    def _follow(self, reader: socket.socket) -> None:
        """End the process some time after the first signal, and at once after the second."""
        number = _next_signal(reader)
        if self._signal is None:
            self._signal = number
        reader.settimeout(GRACE_S)
        with suppress(TimeoutError):
            _next_signal(reader)
        self._end(128 + number)
        os._exit(self._code or 0)

    def _end(self, code: int) -> None:
        """Settle the exit code; the first caller's stands. Say so where a signal kept the command from its end."""
        with self._settling:
            if self._code is not None:
                return
            interrupted = bool(self._signal and code)
            self._code = 128 + self._signal if self._signal and code else code
        if interrupted:
            with suppress(OSError):  # the terminal has gone: its end is what SIGHUP says
                os.write(self._stderr, f"interrupted: {self._afterwards}\n".encode())

    def _flush_and_leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # whoever read it has gone
                stream.flush()
        os._exit(1 if self._code is None else self._code)


def _open_closed_streams() -> None:
    """Let closed standard streams (``2>&-``) lead nowhere; the next file that is opened would take their place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is the stream's
            os.set_inheritable(nowhere, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - open as long as the process lives


def _next_signal(reader: socket.socket) -> int:
    """Wait for one of our signals. Python writes the number of each one that arrives."""
    while True:
        number = reader.recv(1)[0]
        if number in SIGNALS:
            return number
