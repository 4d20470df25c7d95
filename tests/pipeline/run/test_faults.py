"""Whatever is killed, stuck, full or away: every accepted record ends in the dataset once, every rejected one once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from ray.cluster_utils import Cluster

from handdata.pipeline.shards import plan, read_markers
from handdata.pipeline.shards.settle import drop
from handdata.pipeline.storage import Dataset, Storage
from tests.fixtures.faults import (
    SETTINGS,
    FaultyS3,
    driver,
    install_poisoned_source,
    leftovers,
    processes,
    rejected_of,
    rejected_rows,
    rows_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Head:
    """A running head with two cores, and a workspace on which nothing is annotated yet."""

    cluster: Cluster
    proxy: FaultyS3
    ingested: Path
    poison: Path
    undisturbed: dict[str, dict[str, Any]]

    def annotate(
        self, workspace: Path | str, *options: object, stuck_after_s: float = 600, address: str = ""
    ) -> "subprocess.Popen[str]":
        environment = {"HANDDATA_STUCK_AFTER_S": str(stuck_after_s), "AWS_ENDPOINT_URL": self.proxy.url}
        return driver(workspace, address or self.cluster.address, environment, *options)

    def finish(self, workspace: Path | str, *options: object, stuck_after_s: float = 600) -> dict[str, Any]:
        """Run the command to its end with one worker, since each costs a start, and return its summary."""
        return self.finished(self.annotate(workspace, "--json", "--cpus", 1, *options, stuck_after_s=stuck_after_s))

    def finished(self, started: "subprocess.Popen[str]") -> dict[str, Any]:
        out, err = started.communicate(timeout=900)
        assert started.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        assert summary["dataset"]["complete"]
        return summary

    def set_poison(self, poison: dict[str, str | float]) -> None:
        """Say what records do to their worker from now on; workers may be reading."""
        new = self.poison.with_suffix(".new")
        new.write_text(json.dumps(poison))
        new.replace(self.poison)

    def new_workspace(self, folder: Path, poison: dict[str, str | float] | None = None) -> Path:
        self.set_poison(poison or {})
        shutil.copytree(self.ingested, folder)
        return folder


@pytest.fixture(scope="module")
def head(synthetic_root: Path, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    site = tmp_path_factory.mktemp("site")
    install_poisoned_source(site)
    poison = site / "poison.json"
    poison.write_text("{}")
    ingested = tmp_path_factory.mktemp("ingested") / "w"
    proxy = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("POISON", str(poison))
        # A head of Cluster asks for no token, whatever `ray start` has left in the home folder.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.syspath_prepend(site)
        from handdata_poisoned import PoisonedAdapter

        from handdata.pipeline.records.ingest import ingest

        ingest(PoisonedAdapter, synthetic_root, Storage(ingested))
        patch.setattr(plan, "MIN_UNIT_ROWS", 2)
        assert len(plan.plan_source(Dataset(Storage(ingested)), "poisoned", 64)) == 24
        with pytest.MonkeyPatch.context() as head_only:
            head_only.setenv("AWS_ENDPOINT_URL", proxy.url)
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        head = Head(cluster, proxy, ingested, poison, {})
        workspace = head.new_workspace(tmp_path_factory.mktemp("undisturbed") / "w")
        assert head.finish(workspace)["samples"] == 48
        head.undisturbed = rows_of(workspace)
        yield head
        cluster.shutdown()
    proxy.stop()


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for_units(workspace: Path, count: int, running: "subprocess.Popen[str]") -> None:
    """Wait until so many units are committed, or the driver has ended."""
    while running.poll() is None and len(read_markers(Dataset(Storage(workspace)))) < count:
        time.sleep(0.02)


def kill_some(name: str, chance: random.Random, running: "subprocess.Popen[str]", kills: int) -> int:
    """Kill random processes of an actor class at random moments, while the driver runs; return how many."""
    done = 0
    while running.poll() is None and done < kills:
        time.sleep(chance.uniform(0.1, 1.5))
        victims = processes(name)
        if victims:
            with suppress(psutil.NoSuchProcess):
                chance.choice(victims).kill()
            done += 1
    return done


@pytest.mark.parametrize("seed", [7, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(10, 20))])
def test_drivers_and_workers_are_killed_twenty_times(head: Head, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    # The long runs kill workers that have loaded MediaPipe; the labels are whole, so that the rows are the same.
    models = () if seed == 7 else ("--keypoints", "prefer-dataset")
    workspace = head.new_workspace(tmp_path / "w", {"pause_s": 0.15})
    kills = 0
    for _ in range(4):
        committed = len(read_markers(Dataset(Storage(workspace))))
        running = head.annotate(workspace, *models)
        wait_for_units(workspace, committed + chance.randrange(3), running)
        time.sleep(chance.uniform(0, 1))
        kill(running)  # the next one starts at once, while Ray still ends this one's workers
        kills += 1
    head.set_poison({"pause_s": 0.5})  # so long that the run cannot end before the last kill
    running = head.annotate(workspace, "--json", *models)
    kills += kill_some("AnnotateWorker", chance, running, 16)
    head.set_poison({})
    head.finished(running)
    assert kills == 20
    ignored = {"annotator_hash"} if models else set()
    assert without(rows_of(workspace), *ignored) == without(head.undisturbed, *ignored)
    assert rejected_of(workspace) == {}
    assert leftovers(workspace) == []


def test_a_worker_that_outlives_its_driver_adds_nothing(head: Head, tmp_path: Path) -> None:
    workspace = head.new_workspace(tmp_path / "w", {"pause_s": 0.3})
    late = head.annotate(workspace)
    wait_for_units(workspace, 1, late)
    stopped = processes("AnnotateWorker")
    for process in stopped:
        process.suspend()
    kill(late)
    running = head.annotate(workspace, "--json")
    time.sleep(3)
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    head.finished(running)
    psutil.wait_procs(stopped, timeout=60)
    assert rows_of(workspace) == head.undisturbed
    assert leftovers(workspace) == []


def test_a_worker_that_outlives_its_driver_brings_no_dropped_record_back(head: Head, tmp_path: Path) -> None:
    workspace = head.new_workspace(tmp_path / "w", {"pause_s": 0.3})
    late = head.annotate(workspace)
    wait_for_units(workspace, 1, late)
    stopped = processes("AnnotateWorker")
    for process in stopped:
        process.suspend()
    kill(late)
    sequences = {row["sequence_id"] for row in head.undisturbed.values()}
    done = {row["sequence_id"] for row in rows_of(workspace).values()}
    dropped = {min(done), min(sequences - done)}
    drop(Storage(workspace), "sequence", sorted(dropped), "poisoned")
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    psutil.wait_procs(stopped, timeout=60)
    assert not dropped & {row["sequence_id"] for row in rows_of(workspace).values()}
    head.set_poison({})
    head.finish(workspace)
    kept = {name: row for name, row in head.undisturbed.items() if row["sequence_id"] not in dropped}
    # A drop plans unfinished units anew.
    assert without(rows_of(workspace), "unit_id") == without(kept, "unit_id")
    assert leftovers(workspace) == []


def without(rows: dict[str, dict[str, Any]], *columns: str) -> dict[str, dict[str, Any]]:
    """What rows say beside some columns."""
    return {name: {key: value for key, value in row.items() if key not in columns} for name, row in rows.items()}


def test_two_drivers_at_once_add_every_record_once(head: Head, tmp_path: Path) -> None:
    workspace = head.new_workspace(tmp_path / "w", {"pause_s": 0.2})
    first = head.annotate(workspace, "--cpus", 1)
    wait_for_units(workspace, 1, first)
    second = head.annotate(workspace, "--cpus", 1, "--json")
    head.finished(second)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 1
    assert "was taken over by process" in err
    assert "Traceback" not in err
    assert rows_of(workspace) == head.undisturbed


def test_a_finished_command_does_nothing_and_needs_no_cluster(head: Head, tmp_path: Path) -> None:
    workspace = head.new_workspace(tmp_path / "w")
    head.finish(workspace)
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()}
    summary = head.finished(head.annotate(workspace, "--json", address="127.0.0.1:1"))
    assert summary["records"] == 0
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()} == before


def test_a_node_is_lost_with_its_workers(head: Head, tmp_path: Path) -> None:
    workspace = head.new_workspace(tmp_path / "w", {"pause_s": 0.3})
    node = head.cluster.add_node(num_cpus=2)
    head.cluster.wait_for_nodes()
    running = head.annotate(workspace, "--json")
    wait_for_units(workspace, 6, running)
    head.cluster.remove_node(node, allow_graceful=False)
    head.finished(running)
    assert rows_of(workspace) == head.undisturbed
    assert rejected_of(workspace) == {}


@pytest.fixture
def remote_workspace(head: Head, s3_bucket: str, tmp_path: Path) -> str:
    head.set_poison({"pause_s": 0.1})
    url = f"{s3_bucket}/{tmp_path.name}"
    fsspec.filesystem("s3").put(f"{head.ingested}/", url, recursive=True)
    return url


def downloaded(url: str, folder: Path) -> Path:
    fsspec.filesystem("s3").get(f"{url}/", str(folder), recursive=True)
    return folder


def test_s3_fails_at_random_and_is_away_for_a_while(head: Head, remote_workspace: str, tmp_path: Path) -> None:
    head.proxy.faults = 0
    head.proxy.failing = 0.15
    running = head.annotate(remote_workspace, "--json")
    try:
        while running.poll() is None and len(read_markers(Dataset(Storage(remote_workspace)))) < 4:
            time.sleep(0.1)
        head.proxy.failing = 1
        time.sleep(4)
    finally:
        head.proxy.failing = 0.15
    try:
        head.finished(running)
    finally:
        head.proxy.failing = 0
    assert head.proxy.faults > 20
    assert rows_of(downloaded(remote_workspace, tmp_path / "copy")) == head.undisturbed


FULL_DISK = """
mount -t tmpfs -o size=400k tmpfs {workspace}
cp -r {ingested}/. {workspace}
{command}; echo "code: $?"
cp -r {workspace} {copy}
"""


def test_a_full_disk_stops_the_run_in_one_line_and_the_same_command_finishes(head: Head, tmp_path: Path) -> None:
    head.set_poison({})
    (tmp_path / "w").mkdir()
    command = f"{sys.executable} -m handdata annotate --cpus 1 -w {tmp_path}/w {' '.join(SETTINGS)}"
    # A name space of its own: the small disk is there for this command and its own head only, and needs no root.
    script = FULL_DISK.format(workspace=tmp_path / "w", ingested=head.ingested, command=command, copy=tmp_path / "copy")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=900)
    assert "code: 1" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "No space left on device" in line
    assert "Traceback" not in done.stderr
    head.finish(tmp_path / "copy")  # a copy is a workspace, too: this is the same command with room on the disk
    assert rows_of(tmp_path / "copy") == head.undisturbed
    assert leftovers(tmp_path / "copy") == []


FULL_RAY_DISK = """
mount -t tmpfs -o size=40m tmpfs {disk}
dd if=/dev/zero of={disk}/fill bs=1k count={filled}
RAY_TMPDIR={disk} {command}; echo "code: $?"
"""


@pytest.mark.soak
@pytest.mark.parametrize(("filled", "code"), [(39_500, 0), (40_960, 1)])
def test_the_disk_on_which_ray_spills_is_nearly_or_wholly_full(
    head: Head, tmp_path: Path, filled: int, code: int
) -> None:
    workspace = head.new_workspace(tmp_path / "w")
    command = f"{sys.executable} -m handdata annotate -w {workspace} {' '.join(SETTINGS)}"
    disk = Path(tempfile.mkdtemp(prefix="ray-"))  # its path must be short: Ray's sockets lie below it
    script = FULL_RAY_DISK.format(disk=disk, filled=filled, command=command)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=900)
    disk.rmdir()
    assert f"code: {code}" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert "error: cannot start Ray on this machine" in done.stderr
        head.finish(workspace)
    assert rows_of(workspace) == head.undisturbed


def test_records_that_crash_their_worker_are_rejected_and_the_rest_goes_through(head: Head, tmp_path: Path) -> None:
    ids = sorted(head.undisturbed)
    # Units hold two records: the first of one, both of another, the second of a third. Stuck costs four seconds a call.
    poison = {ids[2]: "segfault", ids[20]: "error", ids[21]: "error", ids[41]: "stuck"}
    workspace = head.new_workspace(tmp_path / "w", poison)
    summary = head.finish(workspace, "--cpus", 2, stuck_after_s=4)
    assert summary["rejected"] == {"worker_crashed": 4}
    assert rejected_of(workspace) == dict.fromkeys(poison, "worker_crashed")
    expected = {name: row for name, row in head.undisturbed.items() if name not in poison}
    assert rows_of(workspace) == expected


@pytest.mark.soak
def test_a_record_that_eats_all_memory_is_rejected_and_the_rest_goes_through(head: Head, tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + (3 << 30)) / memory.total
    system = {"memory_usage_threshold": limit, "memory_monitor_refresh_ms": 50}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": system},
    )
    poisoned = sorted(head.undisturbed)[5]
    workspace = head.new_workspace(tmp_path / "w", {poisoned: "memory"})
    try:
        summary = head.finished(head.annotate(workspace, "--json", address=cluster.address))
    finally:
        cluster.shutdown()
    assert summary["rejected"] == {"worker_crashed": 1}
    (row,) = rejected_rows(workspace)
    assert row["record_id"] == poisoned
    assert "ran low on memory" in row["detail"]
    assert rows_of(workspace) == {name: row for name, row in head.undisturbed.items() if name != poisoned}
