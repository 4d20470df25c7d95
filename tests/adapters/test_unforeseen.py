"""What nobody foresaw, over one frame, through every registered adapter: one rejected row, and no more."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handdata.adapters.registry import registered_adapters
from handdata.adapters.roots import find_root
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.records.provenance import absolute_uri
from handdata.pipeline.storage import Storage
from handdata.schemas import RejectReason
from tests.fixtures.sources import ADAPTER_FIXTURES, AdapterFixture

READERS = ("read_image_size", "read_upright_size", "video_info")


@pytest.mark.parametrize("fixture", ADAPTER_FIXTURES, ids=lambda fixture: fixture.name)
def test_it_costs_the_frames_of_its_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixture: AdapterFixture
) -> None:
    error = KeyError("unforeseen")
    fixture.write(tmp_path / "dataset")
    adapter = registered_adapters()[fixture.source]
    root = find_root(adapter, tmp_path / "dataset")
    pristine = rows_of(ingest(adapter, root, Storage(tmp_path / "before"), limit=10**9), tmp_path / "before")
    images = sorted({row["image_uri"] for row in pristine["records"].values()})
    spoilt = images[len(images) // 2]
    module = sys.modules[adapter.__module__]
    for name in READERS:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, failing(getattr(module, name), absolute_uri(spoilt, str(root)), error))
    found = rows_of(ingest(adapter, root, Storage(tmp_path / "after"), limit=10**9), tmp_path / "after")
    lost = pristine["records"].keys() - found["records"].keys()
    assert lost == {name for name, row in pristine["records"].items() if row["image_uri"] == spoilt}
    assert all(found["records"][name] == pristine["records"][name] for name in found["records"])
    failed = [row for row in found["rejected"].values() if row["reason"] == RejectReason.ADAPTER_FAILED]
    assert {row["image_uri"] for row in failed} == {spoilt}
    assert all("unforeseen" in row["detail"] and "KeyError" in row["detail"] for row in failed)
    assert not any(row["record_id"].endswith("/rest") for row in failed)


def failing(read: Callable[..., Any], spoilt: str, error: Exception) -> Callable[..., Any]:
    def reader(path: Path | str) -> Any:
        if str(path) == spoilt:
            raise error
        return read(path)

    return reader


def rows_of(summary: Any, workspace: Path) -> dict[str, dict[str, dict[str, Any]]]:
    storage = Storage(workspace)
    return {
        kind: {row["record_id"]: row for name in names for row in storage.read_parquet(name).to_pylist()}
        for kind, names in (("records", summary.files), ("rejected", summary.rejected_files))
    }
