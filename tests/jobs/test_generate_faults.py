"""Whatever is killed while a dataset is generated: every child is in it once, and the same command goes on."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from ray.cluster_utils import Cluster

from handdata.pipeline.shards import read_manifest, read_markers
from handdata.pipeline.storage import Dataset, Storage
from handdata.trainer.trainer import Trainer
from tests.fixtures.faults import leftovers, processes
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHILDREN = 16


def command(workspace: Path, address: str, dataset: str) -> "subprocess.Popen[str]":
    """Start a run on a running head: units of two images, and a second or more for each."""
    words = ["--reference-source", "hagrid", "--target-source", "synthetic", "--all", "--dataset", dataset]
    words += ["--batch-size", "2", "--steps", "25", "--device", "cpu", "--address", address, "-w", str(workspace)]
    return subprocess.Popen(
        [sys.executable, "-m", "handdata", "sample", "domain-transfer", *words],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_of(workspace: Path, dataset: str) -> dict[str, dict[str, Any]]:
    """All rows that a reader of the folder sees; fails where one is there twice."""
    files = sorted((workspace / dataset / "data").rglob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    assert len({row["record_id"] for row in rows}) == len(rows)
    return {row["record_id"]: row for row in rows}


def wait_for_units(workspace: Path, count: int, running: "subprocess.Popen[str]") -> None:
    dataset = Dataset(Storage(workspace), "generated")
    while running.poll() is None and len(read_markers(dataset)) < count:
        time.sleep(0.02)
    assert running.poll() is None, running.communicate()


def finish(running: "subprocess.Popen[str]") -> None:
    _, err = running.communicate(timeout=600)
    assert running.returncode == 0, err


def test_a_driver_and_workers_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a head of Cluster asks for no token
    rows = [sample(f"wave{number}", frame) for number in range(CHILDREN // 4) for frame in range(4)]
    looks = {"sample_id": "hagrid/train/me/000000-0", "record_id": "hagrid/train/me/000000-0", "source": "hagrid"}
    write_dataset(Storage(tmp_path), [*rows, sample("me", 0, **looks)])
    trainer = Trainer(SMALL, "cpu")
    torch.manual_seed(0)
    for weights in trainer.averaged_model.parameters():  # a new network ignores what it is given
        weights.data += 0.05 * torch.randn_like(weights)
    trainer.save(Storage(tmp_path).url("runs/default"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        undisturbed = command(tmp_path, cluster.address, "undisturbed")
        finish(undisturbed)
        killed = command(tmp_path, cluster.address, "generated")
        wait_for_units(tmp_path, 1, killed)
        killed.kill()
        killed.communicate()
        running = command(tmp_path, cluster.address, "generated")  # at once, while Ray still ends the other's worker
        for committed in (2, 4):
            wait_for_units(tmp_path, committed, running)
            for worker in processes("GenerateWorker"):
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
        finish(running)
    finally:
        cluster.shutdown()
    expected = rows_of(tmp_path, "undisturbed")
    assert len(expected) == CHILDREN
    assert rows_of(tmp_path, "generated") == expected
    manifest = read_manifest(Dataset(Storage(tmp_path), "generated"))
    assert manifest.complete and not manifest.sources["generated"]["train"].rejected
    assert leftovers(tmp_path) == []
