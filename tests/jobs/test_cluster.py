"""Jobs on a real Ray head of its own, with and without authentication, and the status of what they made."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

import handdata
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.shards.progress import dataset_progress
from handdata.pipeline.storage import Dataset, Storage
from tests.fixtures.commands import clean_environment

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-this-test-0123456789abcdef"
VERSION = "0.0.0+travelled"


class Head(NamedTuple):
    """A running head node."""

    dashboard: str
    address: str
    metrics: str


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def ray_head(cpus: int, **variables: str) -> Iterator[Head]:
    """Start a head node on ports of its own, and stop it however the block ends."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: the path of a socket has at most 107 bytes
    command = [
        f"{Path(sys.executable).parent}/ray", "start", "--head", "--block", f"--num-cpus={cpus}",
        "--disable-usage-stats", "--include-log-monitor=false", f"--temp-dir={folder}",
        f"--port={gcs}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    environment = clean_environment(**variables, RAY_metrics_report_interval_ms="500")
    with Path(folder, "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        text = wait_for(lambda: re.search(r"--address='([\d.:]+)'", Path(folder, "head.log").read_text()), 120)
        yield Head(f"http://127.0.0.1:{dashboard}", text[1], f"http://127.0.0.1:{metrics}/metrics")
    finally:
        head.terminate()
        try:
            head.wait(30)
        finally:
            subprocess.run(["pkill", "-KILL", "-f", folder], check=False)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for(found: Callable[[], re.Match[str] | None], timeout_s: float) -> re.Match[str]:
    deadline = time.monotonic() + timeout_s
    while (match := found()) is None:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return match


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head that asks for a token."""
    with ray_head(2, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def travelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this package that differs in its version: rows made by it show that the code travelled."""
    folder = tmp_path_factory.mktemp("travelling")
    package = Path(handdata.__file__).parent
    shutil.copytree(package, folder / "handdata", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "handdata" / "_version.py").write_text(f'"""Version."""\n\n__version__ = "{VERSION}"\n')
    return folder


class Shell:
    """Runs ``handdata`` in a process of its own, in an empty folder and home."""

    def __init__(self, folder: Path, code: Path) -> None:
        self.folder = folder
        self._environment = clean_environment(HOME=str(folder), PYTHONPATH=str(code))

    def start(self, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "handdata", *map(str, arguments)],
            cwd=self.folder,
            env=self._environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def shell(tmp_path: Path, travelling: Path) -> Shell:
    return Shell(tmp_path, travelling)


@pytest.fixture(scope="module")
def annotated(
    head: Head, synthetic_root: Path, travelling: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A workspace whose records and samples were made by jobs, and Ray's metrics while the actors were there."""
    folder = tmp_path_factory.mktemp("submitted")
    shell, workspace = Shell(folder, travelling), folder / "workspace"
    root = shutil.copytree(synthetic_root, folder / "synthetic")
    (folder / "handdata.toml").write_text("[annotate]\nimage_size = 64\nmasks = 'grabcut'\n")
    ingest = shell.run(
        "submit", "ingest", "--address", head.dashboard, "--",
        "--source", "synthetic", "--root", root, "--workspace", workspace, RAY_AUTH_TOKEN=TOKEN,
    )  # fmt: skip
    assert ingest.returncode == 0, ingest.stdout + ingest.stderr
    assert "Ingested synthetic" in ingest.stdout
    for image in sorted(root.rglob("*.jpg"))[:2]:
        image.write_bytes(image.read_bytes()[:600])
    (folder / "token").write_text(TOKEN)
    annotate = shell.run(
        "submit", "annotate", "--",
        RAY_ADDRESS=head.dashboard, RAY_AUTH_TOKEN_PATH=str(folder / "token"), HANDDATA_WORKSPACE=str(workspace),
    )  # fmt: skip
    assert annotate.returncode == 0, annotate.stdout + annotate.stderr
    assert "Annotated" in annotate.stdout
    with urllib.request.urlopen(head.metrics, timeout=30) as response:
        return workspace, response.read().decode()


def test_jobs_run_the_code_and_settings_of_the_submitter(annotated: tuple[Path, str]) -> None:
    workspace, _ = annotated
    manifest = read_manifest(Dataset(Storage(workspace)))
    assert manifest.handdata_version == VERSION
    assert manifest.image_size == 64
    assert manifest.complete
    assert pq.read_table(workspace / "dataset" / "data").num_rows == 46


def test_rays_metrics_count_rows_and_rejections_of_each_stage(annotated: tuple[Path, str]) -> None:
    _, metrics = annotated
    found = re.findall(r"^(ray_handdata_\w+)\{(.*)\} ([\d.e+]+)$", metrics, re.MULTILINE)
    sums: dict[tuple[str, ...], float] = {}
    for name, labels, value in found:
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = name, tags["Stage"], tags.get("Reason", "")
        sums[key] = sums.get(key, 0) + float(value)
    rows = {stage: value for (name, stage, _), value in sums.items() if name == "ray_handdata_rows_total"}
    assert rows == dict.fromkeys(("decode", "keypoints", "crop", "mask", "encode", "judge", "write"), 46)
    assert sums["ray_handdata_rejected_total", "decode", "frame_missing"] == 2
    assert sums["ray_handdata_stage_seconds_sum", "keypoints", ""] > 0


def test_the_commands_exit_code_is_the_jobs(head: Head, shell: Shell) -> None:
    done = shell.run(
        "submit", "annotate", "--address", head.dashboard, "--", "--source", "rhd", "-w", shell.folder / "none",
        RAY_AUTH_TOKEN=TOKEN, RAY_ADDRESS="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "has no records of source rhd" in done.stdout


@pytest.mark.parametrize(("token", "problem"), [("", "asks for a token"), ("wrong-" + TOKEN, "refuses the token")])
def test_a_missing_or_wrong_token_is_one_line(head: Head, shell: Shell, token: str, problem: str) -> None:
    done = shell.run("submit", "annotate", "--address", head.dashboard, "--", "-w", "/w", RAY_AUTH_TOKEN=token)
    assert done.returncode == 1
    _, error, hint = done.stderr.splitlines()
    assert error == f"error: the Ray cluster at {head.dashboard} {problem}"
    assert "RAY_AUTH_TOKEN" in hint


def test_annotating_on_a_cluster_that_refuses_the_token_is_one_line(
    head: Head, annotated: tuple[Path, str], shell: Shell
) -> None:
    shutil.copytree(annotated[0] / "records", shell.folder / "w" / "records")
    done = shell.run(
        "annotate", "--address", head.address, "-w", shell.folder / "w", "--masks", "none",
        RAY_AUTH_TOKEN="wrong", RAY_NUM_REDIS_GET_RETRIES="2",
    )  # fmt: skip
    assert done.returncode == 1
    assert "refuses the token" in done.stderr
    assert "InvalidAuthToken" not in done.stderr
    assert "Traceback" not in done.stderr


def test_without_waiting_the_jobs_id_is_all_there_is(head: Head, shell: Shell) -> None:
    done = shell.run(
        "submit", "train", "--no-wait", "--address", head.dashboard, "--", "--gpus", 8, "-w", "/w", RAY_AUTH_TOKEN=TOKEN
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"raysubmit_\w+\n", done.stdout)


def test_interrupting_says_that_the_job_goes_on(head: Head, shell: Shell) -> None:
    process = shell.start(
        "submit", "ingest", "--address", head.dashboard, "--", "-s", "rhd", "-w", "/w", RAY_AUTH_TOKEN=TOKEN
    )
    assert process.stderr
    assert process.stderr.readline() == f"connecting to the Ray cluster at {head.dashboard} ...\n"
    job_id = process.stderr.readline().split()[1]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"job {job_id} goes on" in err
    assert f"RAY_AUTH_MODE=token ray job stop --address {head.dashboard} {job_id}" in err
    assert "Traceback" not in err


def test_a_cluster_without_authentication_needs_no_token(shell: Shell) -> None:
    with ray_head(0, RAY_AUTH_MODE="disabled") as head:
        failed = shell.run(
            "submit", "ingest", "--address", head.dashboard, "--", "-s", "rhd", "--root", "/no", "-w", "/w"
        )
        assert failed.returncode == 2, failed.stdout + failed.stderr


def test_nobody_there_is_one_line(shell: Shell) -> None:
    done = shell.run("submit", "train", "--address", "http://127.0.0.1:9", "--", "-w", "/w")
    assert done.returncode == 1
    assert "no Ray dashboard answers at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("annotate", "--", "--no-such-option"), "No such option"),
        (("annotate",), "the workspace ./workspace is relative to a folder of this machine"),
        (("ingest", "--", "-s", "rhd", "--root", "data/rhd", "-w", "/w"), "--root data/rhd is relative"),
        (("report",), "Invalid value"),
    ],
)
def test_what_cannot_work_on_a_cluster_is_wrong_usage_here(
    run_command, arguments, message, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_command("submit", *arguments)
    assert result.code == 2
    assert message in result.err


def test_status_of_a_finished_dataset_needs_no_cluster(annotated: tuple[Path, str], run_command) -> None:
    workspace, _ = annotated
    document = json.loads(run_command("status", "-w", workspace, "--json").out)
    assert document["complete"]
    assert (document["records"], document["done"], document["samples"]) == (48, 48, 46)
    assert document["rejected"] == {"frame_missing": 2}
    assert sum(split["done"]["samples"] for split in document["sources"]) == 46
    assert document["seconds_left"] in (0, None)
    assert "Complete" in run_command("status", "-w", workspace).out


def test_status_of_a_running_dataset_tells_rate_and_time_left(annotated: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(annotated[0], tmp_path, dirs_exist_ok=True)
    markers = sorted((tmp_path / "dataset" / "units").rglob("*.json"))
    rows = [json.loads(path.read_bytes())["records"] for path in markers]
    now = time.time()
    markers[0].unlink()
    for path, age in zip(markers[1:], (140, 40), strict=True):
        os.utime(path, (now - age, now - age))
    for path in (tmp_path / "dataset" / "plan").rglob("*.json"):
        os.utime(path, (now - 240, now - 240))
    progress = dataset_progress(Dataset(Storage(tmp_path)))
    assert progress.records_to_do == rows[0]
    assert progress.total.records == sum(rows[1:])
    assert progress.records_per_s == pytest.approx(sum(rows[1:]) / 200)
    assert progress.seconds_left == pytest.approx(rows[0] / sum(rows[1:]) * 200)
    assert progress.last_unit_age_s == pytest.approx(40, abs=10)


def test_status_without_a_dataset_says_what_to_run(tmp_path: Path, run_command) -> None:
    result = run_command("status", "-w", tmp_path)
    assert result.code == 2
    assert "run `handdata annotate` first" in result.err
