"""MediaPipe's log lines do not reach the terminal; everything else that is written to standard error does."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ctypes, faulthandler, logging, os, subprocess, sys
from handdata.pipeline.annotation.quiet import hide_log_lines
logging.basicConfig()
hide_log_lines()
hide_log_lines()
for line in (
    "W0000 00:00:1795978720.877352   10328 feedback_manager.cc:121] Feedback manager requires a model",
    "I0000 00:00:1795978720.877352   10328 gl_context.cc:369] GL version: 3.2",
    "WARNING: Logging before InitGoogle() is written to STDERR",
    "WARNING: All log messages before absl::InitializeLog() are written to STDERR",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    "F0000 00:00:1795978720.877352   10328 graph.cc:12] Check failed",
    "WARNING: of someone else",
):
    os.write(2, line.encode() + b"\\n")
os.write(2, b"W0000 00:00:1795978720.8 7 half.cc:1] of a li"); os.write(2, b"ne\\n")
logging.warning("logged")
subprocess.run(["sh", "-c", "echo child >&2"])
print("own", file=sys.stderr)
print("terminal", sys.stderr.isatty(), file=sys.stderr)
if "crash" in sys.argv:
    faulthandler.enable()
    ctypes.CDLL(None).abort()
raise ValueError("the end")
"""
KEPT = ("Check failed", "WARNING: of someone else", "WARNING:root:logged", "child", "own")
HIDDEN = ("Feedback", "GL version", "STDERR", "TensorFlow", "half.cc")


def run(*words: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-c", SCRIPT, *words]
    return subprocess.run(command, stderr=stderr, text=True, timeout=60)


def test_log_lines_are_hidden_and_nothing_else_is() -> None:
    said = run().stderr
    assert all(text in said for text in (*KEPT, "ValueError: the end", "terminal False")), said
    assert not any(text in said for text in (*HIDDEN, "ResourceWarning")), said


def test_the_reason_of_a_crash_is_read() -> None:
    done = run("crash")
    assert done.returncode == -signal.SIGABRT
    assert all(text in done.stderr for text in (*KEPT, "Fatal Python error: Aborted")), done.stderr
    assert not any(text in done.stderr for text in HIDDEN)


def test_on_a_terminal_python_still_writes_to_it() -> None:
    ours, theirs = pty.openpty()
    run(stderr=theirs)
    os.close(theirs)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "terminal True" in said and "ValueError: the end" in said
    assert all(text in said for text in KEPT) and not any(text in said for text in HIDDEN)


def test_a_log_file_gets_all_lines(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        run(stderr=log.fileno())
    assert all(text in (tmp_path / "log").read_text() for text in (*KEPT, *HIDDEN))
