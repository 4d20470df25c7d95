"""Which folder is the dataset's root, and what of it is read: nothing is chosen in silence."""

import errno
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handdata.adapters import AdapterOptions, Layout, Partition
from handdata.adapters.arctic import ArcticAdapter
from handdata.adapters.assemblyhands import AssemblyHandsAdapter
from handdata.adapters.ego4d import Ego4dAdapter
from handdata.adapters.hoi4d import Hoi4dAdapter
from handdata.adapters.rhd import RhdAdapter
from handdata.adapters.roots import find_root
from handdata.adapters.visor import VisorAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.storage import Storage
from handdata.schemas import DatasetReadError, HandRecord, LayoutError, Rejection, StorageError, UsageError
from tests.fixtures.ego4d import write_ego4d
from tests.fixtures.sources import ADAPTER_FIXTURES


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def rhd(root: Path) -> Path:
    touch(root / "training" / "anno_training.pickle")
    return root


def test_of_several_datasets_in_a_folder_none_is_taken(tmp_path: Path) -> None:
    one, two = rhd(tmp_path / "RHD"), rhd(tmp_path / "RHD copy")
    with pytest.raises(LayoutError, match=r"holds rhd more than once: RHD, RHD copy") as caught:
        find_root(RhdAdapter, tmp_path)
    assert f"--root {one}" in caught.value.hint
    assert find_root(RhdAdapter, two) == two.resolve()
    shutil.rmtree(two)
    two.symlink_to(one)
    assert find_root(RhdAdapter, tmp_path) == one.resolve()


@pytest.mark.parametrize("name", [".RHD", "__MACOSX", ".snapshot", "@eaDir"])
def test_copies_that_systems_keep_are_no_datasets(tmp_path: Path, name: str) -> None:
    one = rhd(tmp_path / "RHD")
    rhd(tmp_path / name)
    assert find_root(RhdAdapter, tmp_path) == one.resolve()


@pytest.mark.parametrize(
    ("adapter", "layouts"),
    [
        (ArcticAdapter, ("data/splits/p1_train.npy data/meta/misc.json", "splits/p1_train.npy meta/misc.json")),
        (
            VisorAdapter,
            (
                "GroundTruth-SparseAnnotations/annotations/train/P01_01.json "
                "GroundTruth-SparseAnnotations/rgb_frames/train/P01",
                "annotations/train/P01_01.json rgb_frames/train/P01",
            ),
        ),
        (Hoi4dAdapter, ("HOI4D_release/ZY1/a", "HOI4D_videos/HOI4D_release/ZY1/a")),
    ],
)
def test_two_layouts_that_hold_the_same_part_are_an_error_that_names_them(
    tmp_path: Path, adapter: Any, layouts: tuple[str, str]
) -> None:
    for layout in layouts:
        assert isinstance(layout, str)
        touch(*(tmp_path / name for name in layout.split()))
    with pytest.raises(LayoutError, match=r"in two layouts: .* and .*") as caught:
        find_root(adapter, tmp_path)
    assert "--root" in caught.value.hint


@pytest.mark.parametrize("fixture", ADAPTER_FIXTURES, ids=lambda fixture: fixture.name)
def test_no_dataset_as_it_unpacks_has_rival_layouts(fixture: Any, tmp_path: Path) -> None:
    fixture.write(tmp_path / "dataset")
    adapter = ingesting_adapter(fixture.source)
    root = find_root(adapter, tmp_path / "dataset")
    (tmp_path / "by-link").symlink_to(tmp_path / "dataset")
    assert find_root(adapter, tmp_path / "by-link") == root


def ingesting_adapter(source: str) -> Any:
    from handdata.adapters.registry import find_adapter

    return find_adapter(source)


@pytest.mark.parametrize("shared", [("images", "videos", "annotations"), ("images",), ("annotations", "videos")])
def test_folders_linked_as_the_readme_of_assemblyhands_says_are_read(
    tmp_path: Path, shared_dir: Path, monkeypatch: pytest.MonkeyPatch, shared: tuple[str, ...]
) -> None:
    case = shared_dir / "cases" / "03-linked-folders" / "make.py"
    if not case.exists():
        pytest.skip("the shared case is not there")
    monkeypatch.setattr(sys, "argv", [str(case), str(tmp_path)])
    runpy.run_path(str(case))
    linked, disk = tmp_path / "data" / "assemblyhands", tmp_path / "disk"
    for name in {"images", "videos", "annotations"} - set(shared):
        (linked / name).unlink()
        shutil.copytree(disk / name, linked / name)
    for root in (linked, tmp_path / "data"):
        summary = ingest(AssemblyHandsAdapter, root, Storage(tmp_path / "w"))
        assert (summary.records, dict(summary.splits), summary.rejected) == (2, {"train": 2}, {})
    row = Storage(tmp_path / "w").read_parquet(summary.files[0]).to_pylist()[0]
    assert row["keypoints_2d"][:2] == [366, 256]


def test_a_link_deep_in_the_dataset_is_followed_on_request_only(tmp_path: Path) -> None:
    fixture = next(fixture for fixture in ADAPTER_FIXTURES if fixture.source == "synthetic")
    fixture.write(tmp_path / "dataset")
    adapter = ingesting_adapter("synthetic")
    root = find_root(adapter, tmp_path / "dataset")
    images = sorted(root.rglob("*.jpg"))
    images[0].rename(tmp_path / "away.jpg")
    images[0].symlink_to(tmp_path / "away.jpg")
    kept = ingest(adapter, root, Storage(tmp_path / "w"))
    assert kept.rejected == {"path_escapes_root": 1}
    followed = ingest(adapter, root, Storage(tmp_path / "w"), options=AdapterOptions(follow_links=True))
    assert (followed.rejected, followed.records) == ({}, kept.records + 1)


@pytest.mark.parametrize("part", ["HInt_annotation", "v1/annotations"])
def test_a_part_that_cannot_be_read_does_not_make_another_part_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    write_ego4d(tmp_path)
    scandir = os.scandir

    def refused(path: str | Path) -> Any:
        if Path(path) == tmp_path / part:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert find_root(ingesting_adapter("ego4d"), tmp_path) == tmp_path


class Failing:
    """An adapter of two partitions whose first one fails over its second frame."""

    card = RhdAdapter.card
    layouts = (Layout("all", ("*",)),)
    error: Exception = KeyError("unforeseen")

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        yield Partition("a", "train", ("labels.json",))
        yield Partition("b", "train", ("labels.json",))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        yield record(f"{partition.name}1")
        if partition.name == "a":
            raise self.error
        yield record(f"{partition.name}2")


def record(sequence: str) -> HandRecord:
    return HandRecord(
        source="rhd",
        split="train",
        sequence_id=sequence,
        frame_index=0,
        image_uri="s3://bucket/a.jpg",
        width=8,
        height=8,
        viewpoint="exo",
        keypoints_valid=[False] * 42,
        keypoints_2d=[0.0] * 84,
        hand_state=("unknown", "unknown"),
    )


def test_a_failure_outside_a_frame_costs_the_rest_of_its_partition_only(tmp_path: Path) -> None:
    touch(tmp_path / "d" / "labels.json")
    summary = ingest(Failing, tmp_path / "d", Storage(tmp_path / "w"), limit=100)  # type: ignore[type-abstract]
    assert (summary.records, summary.rejected) == (3, {"adapter_failed": 1})
    (row,) = Storage(tmp_path / "w").read_parquet(summary.rejected_files[0]).to_pylist()
    assert row["record_id"] == "rhd/train/a/rest" and row["image_uri"].endswith("labels.json")
    assert "the rest of partition a (labels.json): KeyError: 'unforeseen'" in row["detail"]


@pytest.mark.parametrize("error", [StorageError("full"), MemoryError(), DatasetReadError("away"), OSError(5, "gone")])
def test_what_is_not_the_dataset_s_fault_ends_the_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    touch(tmp_path / "d" / "labels.json")
    monkeypatch.setattr(Failing, "error", error)
    expected = DatasetReadError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        ingest(Failing, tmp_path / "d", Storage(tmp_path / "w"), limit=100)  # type: ignore[type-abstract]
    assert not list((tmp_path / "w").rglob("*.parquet"))


@pytest.mark.parametrize("given", ["the root", "its holder", "a link to it"])
def test_a_root_whose_name_is_no_text_is_one_line(tmp_path: Path, given: str) -> None:
    root = tmp_path / "holder" / os.fsdecode(b"caf\xe9")
    write_ego4d(root)
    (tmp_path / "link").symlink_to(root)
    path = {"the root": root, "its holder": root.parent, "a link to it": tmp_path / "link"}[given]
    with pytest.raises(UsageError, match=r"holder/caf\\udce9 has a name that is no text in UTF-8"):
        find_root(Ego4dAdapter, path)
