"""MediaPipe's log lines, kept from the terminal: its C++ code writes them to standard error and has no switch for them.

They are taken out by a small process behind this one's standard error, which passes on all other lines. It outlives a
crash, so that what C++ says of it, and Python's traceback, are read. Python itself goes on writing to the terminal.
"""

import atexit
import os
import stat
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from typing import Final

_FILTER: Final = r"""
import re, sys
noise = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:\S+ +\d+ \S+:\d+\] |INFO: (?:Created|Initialized) TensorFlow|"
    rb"WARNING: (?:Logging|All log messages) before \S+ (?:is|are) written to STDERR"
)
for line in sys.stdin.buffer:
    if not noise.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""
"""Program of the process: log lines of severities I and W, and what TensorFlow Lite says of itself."""
_STDERR: Final = 2
_END_S: Final = 1.0
"""Seconds that the last lines have at the end of this process; one that it has started may still write."""

_changing = Lock()
_pipes: set[tuple[int, int]] = set()
"""Device and number of the pipes of the processes that filter."""


def hide_log_lines() -> None:
    """Keep log lines of C++ from the terminal from now on; a file that standard error was sent to gets them all."""
    with _changing, suppress(OSError):  # standard error is closed
        now = os.fstat(_STDERR)
        if sys.executable and not stat.S_ISREG(now.st_mode) and (now.st_dev, now.st_ino) not in _pipes:
            _put_filter(os.dup(_STDERR))


def _put_filter(terminal: int) -> None:
    # A session of its own: Ctrl-C must not end it before the messages that follow.
    running = subprocess.Popen(  # noqa: S603  this Python with the text above
        [sys.executable, "-I", "-S", "-c", _FILTER],
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    assert running.stdin is not None
    with running.stdin as pipe:
        if _is_standard_error(sys.stderr):
            # Progress bars ask whether they are on a terminal, and their lines do not end.
            sys.stderr.flush()
            sys.stderr = open(  # noqa: SIM115  as Python opened it
                terminal,
                "w",
                encoding=sys.stderr.encoding,
                errors=sys.stderr.errors,
                buffering=1,
                closefd=False,
            )
        os.dup2(pipe.fileno(), _STDERR)
        found = os.fstat(_STDERR)
        _pipes.add((found.st_dev, found.st_ino))
    atexit.register(_end, running, terminal, os.getpid())


def _end(running: "subprocess.Popen[bytes]", terminal: int, owner: int) -> None:
    """Let the last lines be written before this process ends."""
    if os.getpid() != owner:  # a copy of it, by fork
        return
    os.dup2(terminal, _STDERR)
    try:
        running.wait(_END_S)
    except subprocess.TimeoutExpired:
        running.returncode = 0  # it ends with the last process that writes to it


def _is_standard_error(stream: object) -> bool:
    try:
        return stream.fileno() == _STDERR  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):  # none, or that of a notebook or a test
        return False
