"""What a worker holds does not grow with the records that it has seen."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.records.stored import IngestSummary
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest, Cluster
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.storage import Dataset, Storage, table_to_parquet
from handdata.pipeline.storage.layout import INGEST_SUMMARY, records_folder
from handdata.schemas import HandRecord, UnitMarker, records_to_table

RECORDS = 100_000
FILE_RECORDS = 9_600


def copies(root: Path) -> Iterator[HandRecord]:
    """Yield the frames of a small dataset again and again, each time as other sequences."""
    adapter = SyntheticAdapter()
    rows = (row for partition in adapter.partitions(root) for row in adapter.records(root, partition))
    frames = [row for row in rows if isinstance(row, HandRecord)]
    for copy in range(-(-RECORDS // len(frames))):
        for frame in frames:
            yield frame.model_copy(update={"sequence_id": f"{frame.sequence_id}-{copy:05d}"})


def store(storage: Storage, root: Path) -> None:
    files, rows = [], []
    for number, record in enumerate(copies(root), start=1):
        rows.append(record)
        if len(rows) == FILE_RECORDS or number == RECORDS:
            files.append(f"{records_folder('synthetic')}/part-{len(files):05d}-0000.parquet")
            storage.write_bytes(files[-1], table_to_parquet(records_to_table(rows), 4096))
            rows.clear()
        if number == RECORDS:
            break
    summary = IngestSummary("synthetic", str(root), 1, RECORDS, {}, {}, "Apache-2.0", tuple(files), ())
    storage.write_bytes(f"{records_folder('synthetic')}/{INGEST_SUMMARY}", json.dumps(asdict(summary)).encode())


@pytest.mark.soak
def test_memory_of_worker_and_driver_is_flat_over_100_000_records(
    synthetic_root: Path, tmp_path: Path, ray_cluster: None
) -> None:
    storage = Storage(tmp_path)
    store(storage, synthetic_root)
    worker: list[float] = []
    driver: list[float] = []

    def measure(_: UnitMarker) -> None:
        processes = psutil.Process().children(recursive=True)
        resident = [p.memory_info().rss for p in processes if "ray::AnnotateWorker" in " ".join(p.cmdline())]
        worker.append(max(resident) / 2**20)
        driver.append(psutil.Process(os.getpid()).memory_info().rss / 2**20)

    annotate(
        AnnotateRequest(Dataset(storage)),
        AnnotateSettings(masks="none", image_size=64),
        cluster=Cluster(cpus=1),
        on_unit=measure,
    )
    quarter = len(worker) // 4
    assert max(worker[-quarter:]) < max(worker[:quarter]) + 64, worker
    assert max(driver[-quarter:]) < max(driver[:quarter]) + 64, driver
