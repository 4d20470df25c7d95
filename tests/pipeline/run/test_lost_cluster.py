"""A driver whose Ray node or head is killed beside it says so and ends, and the same command finishes the work."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.storage import Storage
from tests.fixtures.commands import clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ANNOTATE = ("annotate", "--image-size", "64", "--keypoints", "dataset", "--masks", "grabcut", "--cpus", "1")
SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
}
"""Lets a head notice a dead node within seconds; by default it takes up to half a minute."""


@pytest.fixture(scope="module")
def ingested(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("ingested") / "w"
    ingest(SyntheticAdapter, synthetic_root, Storage(workspace))
    return workspace


def start(workspace: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "handdata", *arguments, "-w", str(workspace)],
        env=clean_environment(**SOON),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def named(process: "subprocess.Popen[str] | psutil.Process", name: str) -> list[psutil.Process]:
    """Processes below a process whose name or title has a part."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if name in child.name() or name in " ".join(child.cmdline()[:1]):
                    found.append(child)
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def send(process: "subprocess.Popen[str]", when: str, whom: str, number: signal.Signals) -> tuple[int, str, str]:
    """Wait for a process of Ray's, send a signal to one, and return how the driver ends; nothing of it is left."""
    wait_until(lambda: named(process, when) or process.poll() is not None)
    seen = named(process, when)
    with suppress(psutil.NoSuchProcess):
        for one in seen:
            one.suspend()  # or a short run might end before the signal
    below = named(process, "")
    victims = [process] if whom == "driver" else named(process, whom)
    for victim in victims:
        victim.send_signal(number)
    with suppress(psutil.NoSuchProcess):
        for one in seen:
            if one not in victims:
                one.resume()
    out, err = process.communicate(timeout=100)
    wait_until(lambda: not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
    assert victims, err
    assert "Traceback" not in err + out
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        ("raylet", "error: the Ray node of this machine has died: its raylet is gone"),
        pytest.param("gcs_server", "error: Ray's head has died or does not answer", marks=pytest.mark.soak),
    ],
)
def test_a_driver_ends_when_its_node_or_head_is_killed_and_the_same_command_continues(
    ingested: Path, tmp_path: Path, victim: str, message: str
) -> None:
    for attempt in range(3):  # on a busy machine a run may have ended before its worker is seen
        workspace = shutil.copytree(ingested, tmp_path / f"w{attempt}")
        running = start(workspace, *ANNOTATE)
        code, _, err = send(running, "ray::AnnotateWorker", victim, signal.SIGKILL)
        if code != 0:
            break
    assert code == 1
    said = [line for line in err.splitlines() if not line.startswith("Annotating")]
    assert said[0].startswith(message)
    assert said[1:] == ["hint: was it short of memory, or stopped? the same command continues"]


ORPHAN = """
import os, sys, time
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
print(os.getpid(), flush=True)
from handdata.cli import main
main()
"""


@pytest.mark.soak
def test_a_driver_whose_parent_is_init_says_so_too(ingested: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(ingested, tmp_path / "w")
    started = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, *ANNOTATE, "-w", str(workspace)],
        env=clean_environment(**SOON),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout
    driver = psutil.Process(int(started.stdout.readline()))
    wait_until(lambda: named(driver, "ray::AnnotateWorker"))
    for raylet in named(driver, "raylet"):
        raylet.kill()
    _, err = started.communicate(timeout=100)
    assert "error: the Ray node of this machine has died: its raylet is gone" in err


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["raylet", "ray::AnnotateWorker", "ray::_ProbeWorker"])
def test_a_driver_ends_whatever_happens_to_its_cluster(
    ingested: Path, tmp_path: Path, victim: str, number: signal.Signals, moment: str
) -> None:
    workspace = shutil.copytree(ingested, tmp_path / "w")
    plan = ("--plan",) if "Probe" in moment else ()
    code, _, err = send(start(workspace, *ANNOTATE, *plan), moment, victim, number)
    done = code == 0 and number == signal.SIGSTOP and victim == "raylet"  # its workers go on without it
    assert done or (code == 1 and "error: " in err), (code, err)
    finished = start(workspace, *ANNOTATE)
    assert finished.communicate(timeout=200) and finished.returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["gcs_server", "raylet", "ray::IDLE", "ray::AnnotateWorker"])
def test_a_signal_while_ray_starts_or_works_is_one_line(
    ingested: Path, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    workspace = shutil.copytree(ingested, tmp_path / "w")
    code, _, err = send(start(workspace, *ANNOTATE), moment, "driver", number)
    assert code == 128 + number
    assert err.splitlines()[-1] == "interrupted: the same command continues"


HEAD = """
import ray, time
cluster = ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(cluster.address_info["gcs_address"], flush=True)
time.sleep(1000)
"""


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_joining_a_head_whose_node_here_is_gone_or_silent_is_one_line(
    ingested: Path, tmp_path: Path, number: signal.Signals
) -> None:
    workspace = shutil.copytree(ingested, tmp_path / "w")
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD], env=clean_environment(**SOON), stdout=subprocess.PIPE, text=True
    )
    assert head.stdout
    address = head.stdout.readline().strip()
    raylets = named(head, "raylet")
    try:
        for raylet in raylets:
            raylet.send_signal(number)
        joining = start(workspace, *ANNOTATE, "--address", address)
        _, err = joining.communicate(timeout=60)
    finally:
        for process in (*raylets, head):
            process.kill()
        head.communicate()
    assert joining.returncode == 1
    assert f"error: no node of the Ray cluster at {address} answers on this machine" in err
    assert "Traceback" not in err


TRAIN = """
import sys
import handdata.cli as cli
def run():
    from handdata.console import errors_in_one_line
    from handdata.jobs.train import train_in_processes
    from handdata.pipeline.storage import Storage
    from tests.fixtures.training import SMALL, changed, write_two_sequences
    storage = Storage(sys.argv[1])
    write_two_sequences(storage)
    with errors_in_one_line():
        train_in_processes(
            changed(SMALL, batch_size=8), storage, "run", processes=2, use_gpus=False, steps=int(sys.argv[2]),
            on_step=lambda step, *_: print(step, flush=True),
        )
    print("done")
cli._run_commands = run
cli.main()
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("victim", "outcome"),
    [
        ("raylet", "error: the Ray node of this machine has died: its raylet is gone"),
        ("gcs_server", "error: Ray's head has died or does not answer"),
        ("ray::TrainController", "error: the process that directs the training died"),
        ("ray::_QueueActor", "done"),
        ("driver", "interrupted: "),
    ],
)
def test_training_in_processes_ends_in_one_line_when_one_of_rays_is_killed(
    tmp_path: Path, victim: str, outcome: str
) -> None:
    steps = 40 if outcome == "done" else 100_000
    running = subprocess.Popen(
        [sys.executable, "-c", TRAIN, tmp_path / "w", str(steps)],
        env=clean_environment(**SOON, PYTHONPATH=str(Path(__file__).parents[3])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    assert running.stdout.readline() == "1\n"
    number = signal.SIGTERM if victim == "driver" else signal.SIGKILL
    code, out, err = send(running, "ray::RayTrainWorker", victim, number)
    assert code == {"done": 0, "interrupted: ": 143}.get(outcome, 1), err
    assert any(line.startswith(outcome) for line in (out + err).splitlines()), out + err
