"""An interrupted command ends in one line with the signal's code and leaves no process; none aborts at its end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handdata.cli import after_interruption
from tests.fixtures.commands import clean_environment

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Let commands hear of SIGHUP though the tests may run under nohup, whose ignoring they would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(*arguments: object, **variables: str) -> "subprocess.Popen[str]":
    """Start ``handdata`` as a process of its own, which prints what it says at once."""
    return start_python("-m", "handdata", *arguments, **variables)


def start_python(*arguments: object, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=clean_environment(PYTHONUNBUFFERED="1", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def handles(process: "subprocess.Popen[str]", number: signal.Signals) -> bool:
    """Return whether a process has installed its handlers, or has ended."""
    if process.poll() is not None:
        return True
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:\t")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1) and bool(caught >> (number - 1) & 1)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def ended(process: "subprocess.Popen[str]", offspring: list[psutil.Process]) -> tuple[int, str, str]:
    """Wait for a process; return its code and output once its children are gone, too."""
    out, err = process.communicate(timeout=60)
    wait_until(lambda: not any(map(is_alive, offspring)), 20)
    assert "Traceback" not in err + out, err
    assert "Fatal" not in err + out, err
    return process.returncode, out, err


@pytest.fixture(scope="module")
def slow_to_render(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A command that renders for a long time, in several processes."""
    folder = tmp_path_factory.mktemp("rendered") / "synthetic"
    return "synth", "--out", folder, "--sequences", 500, "--frames", 200, "--size", 512


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_command_and_its_processes_is_one_line(
    slow_to_render: tuple[object, ...], number: signal.Signals
) -> None:
    running = start(*slow_to_render)
    wait_until(lambda: len(children(running)) > 2)
    offspring = children(running)
    for process in (*offspring, psutil.Process(running.pid)):  # as a terminal and `timeout` do
        process.send_signal(number)
    code, _, err = ended(running, offspring)
    assert code == CODES[number]
    assert err.splitlines()[1:] == ["interrupted: the same command starts anew"]


def test_processes_of_a_command_that_was_killed_end_by_themselves(slow_to_render: tuple[object, ...]) -> None:
    running = start(*slow_to_render)
    wait_until(lambda: len(children(running)) > 2)
    offspring = children(running)
    running.kill()
    ended(running, offspring)


def test_a_signal_during_the_imports_is_one_line() -> None:
    slow = "import sys, time, handdata.cli as cli; cli._run_commands = lambda: (print(), time.sleep(60)); cli.main()"
    running = start_python("-c", slow, "drop")
    assert running.stdout
    running.stdout.readline()
    running.terminate()
    assert ended(running, []) == (143, "", "interrupted: the same command continues\n")


SIGNAL_AT_THE_END = """
import handdata.cli as cli, os, signal, sys
end, signals = cli._Ending._end, [signal.SIGTERM]
def end_late(self, code):
    if signals:
        os.kill(os.getpid(), signals.pop())
    end(self, code)
cli._Ending._end = end_late
cli._run_commands = lambda: sys.exit(int(sys.argv[1]))
cli.main()
"""


@pytest.mark.parametrize(
    ("code", "outcome"), [(0, (0, "", "")), (2, (143, "", "interrupted: the same command continues\n"))]
)
def test_a_signal_right_behind_the_end_of_a_command_is_no_traceback(code: int, outcome: tuple[int, str, str]) -> None:
    assert ended(start_python("-c", SIGNAL_AT_THE_END, code), []) == outcome


STUBBORN = """
import handdata.cli as cli, os, time
cli.GRACE_S = 0.5
def run():
    os.close(2)  # as good as Ray's silence while it connects
    print()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
cli._run_commands = run
cli.main()
"""


def test_a_command_that_does_not_hear_of_a_signal_ends_after_a_while() -> None:
    running = start_python("-c", STUBBORN)
    assert running.stdout
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    assert ended(running, []) == (130, "", "interrupted: the same command continues\n")


STUBBORN_WITH_PROCESSES = """
import handdata.cli as cli, os, time
cli.GRACE_S = 0.5
def run():
    from handdata.adapters.processes import process_pool
    with process_pool(1) as pool:
        pool.submit(print).result()
        while True:
            try:
                pool.submit(time.sleep, 60).result()
            except BaseException:
                pass
cli._run_commands = run
if __name__ == "__main__":
    cli.main()
"""


def test_a_command_that_is_ended_at_once_does_not_speak_of_its_semaphores(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN_WITH_PROCESSES)
    running = start_python(script, PYTHONWARNINGS="ignore::ResourceWarning")
    assert running.stdout
    running.stdout.readline()
    offspring = children(running)
    running.send_signal(signal.SIGINT)
    assert ended(running, offspring) == (130, "", "interrupted: the same command continues\n")


def test_a_failed_command_does_not_wait_for_exit_functions_that_never_return() -> None:
    code = """
import atexit, handdata.cli as cli, sys, time
cli.GRACE_S = 0.5
def run():
    atexit.register(time.sleep, 60)
    sys.exit(1)
cli._run_commands = run
cli.main()
"""
    assert ended(start_python("-c", code), []) == (1, "", "")


@pytest.mark.parametrize("reader", ["has gone", "reads no more"])
def test_a_command_ends_by_a_signal_though_its_line_cannot_be_written(reader: str) -> None:
    code = "import time, handdata.cli as cli; cli.GRACE_S = 0.5; cli._run_commands = lambda: (print(), time.sleep(60))"
    source, sink = os.pipe()
    running = subprocess.Popen(
        [sys.executable, "-c", f"{code}; cli.main()"],
        env=clean_environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=sink,
    )
    assert running.stdout
    running.stdout.readline()
    if reader == "has gone":  # as a terminal has that was closed
        os.close(source)
    else:
        os.set_blocking(sink, False)
        with suppress(BlockingIOError):
            while True:
                os.write(sink, b"x")
        os.set_blocking(sink, True)
    running.send_signal(signal.SIGHUP)
    assert running.communicate(timeout=20) and running.returncode == CODES[signal.SIGHUP]


LOGS = """
import handdata.cli as cli, os, sys
def run():
    with open(sys.argv[1], "wb", buffering=0) as file:
        file.write(b"data")
        print("result")
        for stream in (1, 2):
            os.write(stream, b"what a library logs")
cli._run_commands = run
cli.main()
"""


def test_what_is_printed_on_closed_streams_does_not_get_into_files(tmp_path: Path) -> None:
    closed = ("bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash")
    done = subprocess.run([*closed, sys.executable, "-c", LOGS, tmp_path / "a"], env=clean_environment(), check=False)
    assert (done.returncode, (tmp_path / "a").read_bytes()) == (0, b"data")


ENDS_WHILE_ARROW_READS = """
import handdata.cli as cli, io, sys, threading, time
import pyarrow.parquet as pq

class Slow(io.FileIO):
    def read(self, size=-1):
        reading.set()
        time.sleep(0.3)
        return super().read(size)

reading = threading.Event()
def run():
    file = pq.ParquetFile(Slow(sys.argv[1], "rb"), metadata=pq.read_metadata(sys.argv[1]), pre_buffer=True)
    threading.Thread(target=file.read, daemon=True).start()
    reading.wait()
    print("done")

if sys.argv[2] == "ours":
    cli._run_commands = run
    cli.main()
run()
"""


def test_a_command_ends_in_order_while_threads_of_libraries_are_at_work(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": list(range(10_000))}), tmp_path / "a.parquet", row_group_size=100)
    codes = {}
    for way in ("ours", "the interpreter's"):
        running = start_python("-c", ENDS_WHILE_ARROW_READS, tmp_path / "a.parquet", way)
        assert running.communicate(timeout=60)[0] == "done\n"
        codes[way] = running.returncode
    # The second shows what the first avoids: the interpreter ends Arrow's threads inside their C++ code.
    assert codes == {"ours": 0, "the interpreter's": -signal.SIGABRT}


@pytest.mark.parametrize(
    ("line", "promise"),
    [
        ("annotate -w W", "the same command continues"),
        ("annotate --plan", "the same command starts anew"),
        ("submit annotate -- --plan", "the cluster goes on with a job that it has received"),
        ("drop --subject s", "the same command continues"),
        ("ingest -s rhd", "the same command starts anew; earlier records stay in force until it is done"),
        ("train --run a", "the same command with --resume continues from the last checkpoint"),
        ("train --resume", "the same command continues from the last checkpoint"),
        ("sample video", "the same command starts anew"),
        ("", "the same command continues"),
    ],
)
def test_the_line_says_what_the_same_command_does(line: str, promise: str) -> None:
    assert after_interruption(line.split()) == promise


LINES = {
    "ingest": "--source synthetic --root {root} -w {w}",
    "annotate": "--keypoints dataset --masks grabcut --image-size 64 -w {w}",
    "flag": "--min-hand-px {step} -w {w}",
    "drop": "--source synthetic --sequence identity000-sequence0000 -w {w}",
    "encode": "--preset tiny --image-size 64 --gpus 0 -w {w}",
    "train": "--preset tiny --steps 60 --gpus 0 --run r{step} -w {w}",
    "report": "--out {w}/report -w {w}",
    "synth": "--out {w}/synthetic --sequences 60",
    "inspect": "--source synthetic --root {root} --out {w}/sheet.png",
    "status": "-w {w}",
    "demo": "--out {w}/demo",
}
MOMENTS: dict[str, float | str] = {
    **{f"after {delay} s": delay for delay in (0.0, 0.2, 0.5, 1.0, 1.6, 2.5, 4.0, 7.0)},
    "at the end": "the first line of the result",
}


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", LINES)
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_any_command_is_interrupted_at_any_moment(
    command: str, number: signal.Signals, annotated_synthetic: Path, synthetic_root: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "w"

    def refill() -> None:
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(annotated_synthetic, workspace)
        if command == "annotate":
            shutil.rmtree(workspace / "dataset")

    def line(step: int) -> list[str]:
        return [command, *LINES[command].format(root=synthetic_root, w=workspace, step=step).split()]

    refill()
    for step, moment in enumerate(MOMENTS.values()):
        if command == "drop":  # else only the first would find something to drop
            refill()
        running = start(*line(step))
        assert running.stdout
        if isinstance(moment, str):
            running.stdout.readline()
        else:
            wait_until(partial(handles, running, number))
            time.sleep(moment)
        offspring = children(running)
        running.send_signal(number)
        code, _, err = ended(running, offspring)
        if code:
            assert code == CODES[number], err
            assert err.splitlines()[-1] == f"interrupted: {after_interruption(line(step))}"
    if command not in ("demo", "train"):  # the same command now does all
        running = start(*line(len(MOMENTS) - 1))
        assert running.communicate(timeout=600)
        assert running.returncode == 0


@pytest.mark.soak
def test_no_command_aborts_at_its_end_under_load(annotated_synthetic: Path, tmp_path: Path) -> None:
    codes = []
    for _ in range(10):
        running = []
        for place in range(10):
            workspace = tmp_path / str(place)
            shutil.rmtree(workspace, ignore_errors=True)
            shutil.copytree(annotated_synthetic, workspace)
            running.append(start("drop", "--source", "synthetic", "--subject", "nobody", "-w", workspace))
        for process in running:
            process.communicate(timeout=300)
            codes.append(process.returncode)
    assert set(codes) <= {0, 2}
