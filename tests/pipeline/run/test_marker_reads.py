"""How often a run reads the markers of a dataset: on an object store each reading is a request a unit."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import plan, read_manifest, read_markers
from handdata.pipeline.shards.settle import flag
from handdata.pipeline.storage import Dataset, Storage

SMALL = AnnotateSettings(masks="none", keypoints="dataset", image_size=64)


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the readings of all markers, and the markers of each, before and after the lease is taken."""
    counts: Counter[str] = Counter()

    def counting_markers(self: Storage, names: list[str], read=Storage.read_many) -> list[bytes]:
        when = "after" if counts["leases"] else "before"
        counts[f"markers {when}"] += sum("/units/" in name for name in names)
        return read(self, names)

    def counting_listings(self: Storage, folder: str, suffix: str, listed=Storage.list_files) -> list[str]:
        if folder.endswith("/units") and suffix == ".json":
            counts["readings after" if counts["leases"] else "readings before"] += 1
        return listed(self, folder, suffix)

    def counting_leases(self: Storage, name: str, data: bytes, write=Storage.write_bytes) -> None:
        counts["leases"] += name.endswith("lease.json")
        write(self, name, data)

    with patch.context() as context:
        context.setattr(Storage, "read_many", counting_markers)
        context.setattr(Storage, "list_files", counting_listings)
        context.setattr(Storage, "write_bytes", counting_leases)
        yield counts


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_reads_the_markers_once_before_the_lease_and_once_after_it(
    synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MIN_UNIT_ROWS", 4)
    storage = Storage(tmp_path)
    dataset = Dataset(storage)
    ingest(SyntheticAdapter, synthetic_root, storage)

    with counted(monkeypatch) as first:
        made = annotate(AnnotateRequest(dataset), SMALL)
    units = len(read_markers(dataset))
    assert units > 4
    assert made.manifest == read_manifest(dataset)
    assert (first["readings before"], first["readings after"], first["leases"]) == (1, 1, 1)

    with counted(monkeypatch) as idle:
        annotate(AnnotateRequest(dataset), SMALL)
    assert (idle["readings before"], idle["readings after"], idle["leases"]) == (1, 0, 0)
    assert idle["markers before"] == units

    next((tmp_path / "dataset" / "units").rglob("*.json")).unlink()
    with counted(monkeypatch) as continued:
        again = annotate(AnnotateRequest(dataset), SMALL)
    assert again.manifest == made.manifest == read_manifest(dataset)
    assert (continued["readings before"], continued["readings after"], continued["leases"]) == (1, 1, 1)
    assert continued["markers before"] == continued["markers after"] == units - 1

    with counted(monkeypatch) as flagged:
        flag(dataset, {"min_hand_px": 10_000})
    assert (flagged["readings before"], flagged["readings after"]) == (1, 1)
