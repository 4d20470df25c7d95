"""Ingest: records replace records, bad input becomes rejected rows, errors are one line."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from handdata.adapters import AdapterOptions, Layout, Partition
from handdata.adapters.foundhand10m import FoundHand10MAdapter
from handdata.adapters.hagrid import HagridAdapter
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.adapters.wlasl import WlaslAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.records.stored import read_ingest_summary, read_record_keys
from handdata.pipeline.shards.plan import plan_source, read_unit
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    SOURCE_CARDS,
    DuplicateRecordError,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    RunError,
    SourceCard,
    records_from_table,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection
from tests.fixtures.hagrid import (
    LEFT_OF_PICTURE,
    entry_v1,
    entry_v2,
    write_annotations,
    write_hagrid_v1,
    write_images,
)
from tests.fixtures.wlasl import write_wlasl


def read_records(workspace: Path, source: str) -> list[HandRecord]:
    return list(records_from_table(pq.read_table(workspace / "records" / f"source={source}")))


def read_reasons(workspace: Path, stage: str, source: str) -> Counter[str]:
    folder = workspace / "rejected" / stage / f"source={source}"
    return Counter(pq.read_table(folder)["reason"].to_pylist())


def test_ingest_writes_every_frame_once(synthetic_root: Path, tmp_path: Path) -> None:
    summary = ingest(SyntheticAdapter, synthetic_root, Storage(tmp_path))
    records = read_records(tmp_path, "synthetic")
    assert len({record.record_id for record in records}) == len(records) == summary.records == 48
    assert summary.splits.keys() == {"train", "val", "test"}
    assert all((synthetic_root / record.image_uri).is_file() for record in records)  # relative to the root


def test_a_second_ingest_replaces_the_first(synthetic_root: Path, tmp_path: Path) -> None:
    ingest(SyntheticAdapter, synthetic_root, Storage(tmp_path))
    ingest(SyntheticAdapter, synthetic_root.parent, Storage(tmp_path), split="train", limit=5)
    assert len(read_records(tmp_path, "synthetic")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "rejected"]


def test_stride_keeps_multiples_of_the_frame_number(synthetic_root: Path, tmp_path: Path) -> None:
    ingest(SyntheticAdapter, synthetic_root, Storage(tmp_path), stride=2)
    assert {record.frame_index % 2 for record in read_records(tmp_path, "synthetic")} == {0}


class DoubledAdapter:
    """A third-party adapter that yields one id from two partitions."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["synthetic"].model_copy(update={"name": "doubled"})
    layouts: ClassVar[tuple[Layout, ...]] = (Layout("any", ("*",)),)

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        pass

    def partitions(self, root: Path) -> Iterator[Partition]:
        yield Partition("a", "train", ("a.json",))
        yield Partition("b", "train", ("b.json",))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        yield HandRecord(
            source="doubled",
            split="train",
            sequence_id="s",
            frame_index=1,
            image_uri=f"{root}/{partition.name}.jpg",
            width=8,
            height=8,
            viewpoint="exo",
            keypoints_2d=np.zeros((42, 2)),
            keypoints_valid=np.zeros(42, bool),
            hand_state=("unknown", "unknown"),
        )

    def open_mask(self, record: HandRecord) -> BoolArray:
        raise AssertionError("no record has a mask")


def test_an_id_that_occurs_twice_fails_and_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.json").touch()
    with pytest.raises(DuplicateRecordError) as caught:
        ingest(DoubledAdapter, tmp_path / "root", Storage(tmp_path / "w"), limit=10)
    assert "/a.jpg (labels: a.json)" in str(caught.value)
    assert "/b.jpg (labels: b.json)" in str(caught.value)
    assert list((tmp_path / "w").iterdir()) == []


def test_a_key_that_a_label_file_names_twice_is_one_record_and_one_rejection(tmp_path: Path) -> None:
    root, workspace = tmp_path / "hagrid", tmp_path / "w"
    write_images(root / "train_val_call", ["a", "b"])
    entry, other = (json.dumps(entry_v1([LEFT_OF_PICTURE], ["call"], "right", user_id=who)) for who in ("one", "two"))
    (root / "ann_train_val").mkdir()
    (root / "ann_train_val/call.json").write_text(f'{{"a": {entry}, "b": {entry}, "a": {other}}}')
    summary = ingest(HagridAdapter, root, Storage(workspace))
    assert (summary.records, summary.splits, summary.rejected) == (2, {"train": 2}, {"label_corrupt": 1})
    records = read_records(workspace, "hagrid")
    assert [(record.sequence_id, record.subject_id) for record in records] == [("a", "one"), ("b", "one")]
    (rejected,) = pq.read_table(workspace / "rejected/ingest/source=hagrid").to_pylist()
    assert (rejected["record_id"], rejected["image_uri"]) == ("hagrid/train/a/000000-0", records[0].image_uri)
    assert "ann_train_val/call.json: names hagrid/train/a/000000-0 more than once" in rejected["detail"]


def test_two_images_of_a_folder_with_one_id_fail_and_are_both_named(tmp_path: Path, shared_dir: Path) -> None:
    frames = next((shared_dir / "data" / "FoundHand10M").rglob("capture0-pose"))
    folder = tmp_path / "FoundHand10M/InterHand2.6M/processed/test/capture0"
    folder.mkdir(parents=True)
    for name in ("1-0", "01-0"):
        for suffix in (".jpg", ".npz"):
            shutil.copyfile(frames / f"11929-400002{suffix}", folder / f"{name}{suffix}")
    with pytest.raises(DuplicateRecordError, match=r"01-0\.jpg .* and from .*/1-0\.jpg"):
        ingest(FoundHand10MAdapter, tmp_path / "FoundHand10M", Storage(tmp_path / "w"))


def test_a_photograph_in_two_splits_of_two_releases_fails_and_names_both_label_files(tmp_path: Path) -> None:
    write_hagrid_v1(tmp_path / "hagrid")
    entry = entry_v2([LEFT_OF_PICTURE], ["call"])
    write_annotations(tmp_path / "hagrid/annotations/test/call.json", {"call-a": entry})
    with pytest.raises(DuplicateRecordError) as caught:
        ingest(HagridAdapter, tmp_path / "hagrid", Storage(tmp_path / "w"), limit=100)
    message = str(caught.value)
    assert "train_val_call/call-a.jpg" in message
    assert "train (labels: ann_train_val/call.json)" in message
    assert "test (labels: annotations/test/call.json)" in message
    assert list((tmp_path / "w").iterdir()) == []


def test_a_clip_that_one_label_file_has_in_two_splits_is_of_the_first(tmp_path: Path) -> None:
    write_wlasl(tmp_path / "wlasl")
    labels = tmp_path / "wlasl/WLASL_v0.3.json"
    words = json.loads(labels.read_text())
    instances = [instance for word in words for instance in word["instances"]]
    before = ingest(WlaslAdapter, tmp_path / "wlasl", Storage(tmp_path / "before"), limit=100)
    in_test = next(instance for instance in instances if instance["split"] == "test")
    words[0]["instances"].append({**in_test, "split": "train"})
    labels.write_text(json.dumps(words))
    summary = ingest(WlaslAdapter, tmp_path / "wlasl", Storage(tmp_path / "w"), limit=100)
    assert (summary.records, summary.splits) == (before.records, before.splits)
    kept, expected = (pq.read_table(tmp_path / name / "records/source=wlasl") for name in ("w", "before"))
    assert kept.equals(expected)
    rejected = pq.read_table(tmp_path / "w/rejected/ingest/source=wlasl").to_pylist()
    video = in_test["video_id"]
    assert [row["record_id"] for row in rejected if "of the split test too" in row["detail"]] == [
        f"wlasl/train/{video}/{frame:06d}-0" for frame in range(before.splits["test"])
    ]


@pytest.fixture
def damaged_pack(shared_dir: Path, tmp_path: Path) -> Path:
    """The real FoundHand-10M files with one defect in each of seven frames; 7 frames stay good."""
    root = tmp_path / "FoundHand10M"
    shutil.copytree(shared_dir / "data" / "FoundHand10M", root, copy_function=shutil.copyfile)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    frames = next(root.rglob("capture0-pose"))

    def labels(camera: int) -> dict[str, np.ndarray]:
        with np.load(frames / f"11929-{camera}.npz") as archive:
            return {name: archive[name] for name in archive.files}

    truncated = frames / "11929-400002.jpg"
    truncated.write_bytes(truncated.read_bytes()[:4000])
    (frames / "11929-400009.jpg").write_bytes(b"")
    Image.open(frames / "11929-400012.jpg").save(frames / "11929-400012.jpg", format="GIF")
    write_huge_jpeg(frames / "11929-400018.jpg", frames / "11929-400023.jpg")
    np.savez(
        frames / "11929-400027.npz", hand_mask=labels(400027)["hand_mask"], kpts=np.array([{"a": 1}], dtype=object)
    )
    broken = labels(400030)
    broken["kpts"][3] = np.nan
    np.savez(frames / "11929-400030.npz", **broken)
    (frames / "11929-400037.jpg").unlink()
    return root


def write_huge_jpeg(target: Path, like: Path) -> None:
    """Write a JPEG whose header says 40,000 x 40,000 pixels."""
    data = bytearray(like.read_bytes())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (40_000).to_bytes(2, "big") * 2
    target.write_bytes(data)


EXPECTED_AT_INGEST = {
    RejectReason.IMAGE_EMPTY: 1,
    RejectReason.IMAGE_CORRUPT: 1,
    RejectReason.IMAGE_TOO_LARGE: 1,
    RejectReason.LABEL_UNSAFE: 1,
    RejectReason.LABEL_NOT_FINITE: 1,
    RejectReason.IMAGE_MISSING: 1,
}


def test_each_defect_is_one_rejected_row_with_its_own_reason(
    damaged_pack: Path, tmp_path: Path, run_command, ray_cluster: None
) -> None:
    workspace = tmp_path / "w"
    result = run_command("ingest", "-s", "foundhand10m", "--root", damaged_pack, "-w", workspace, "--json")
    assert result.code == 0
    assert json.loads(result.out)["records"] == 7
    assert read_reasons(workspace, "ingest", "foundhand10m") == EXPECTED_AT_INGEST

    result = run_command("annotate", "-w", workspace, "--masks", "dataset", "--image-size", 128, "--json")
    assert result.code == 0
    assert json.loads(result.out)["samples"] == 6
    assert read_reasons(workspace, "annotate", "foundhand10m") == {RejectReason.FRAME_MISSING: 1}


def test_strict_exits_with_1_where_a_record_was_rejected(damaged_pack: Path, tmp_path: Path, run_command) -> None:
    result = run_command("ingest", "-s", "foundhand10m", "--root", damaged_pack, "-w", tmp_path / "w", "--strict")
    assert result.code == 1
    assert "image_missing 1" in result.out
    assert re.search(r"labels +. \d+ labelled hands, \d+ masks, \d+ cameras", result.out)  # what is not there is seen


def test_a_label_that_leaves_the_root_is_rejected(tmp_path: Path, run_command) -> None:
    root = tmp_path / "hagrid"
    (root / "hagrid_annotations" / "train").mkdir(parents=True)
    (root / "hagrid_dataset" / "ok").mkdir(parents=True)
    entry = {"bboxes": [[0.1, 0.1, 0.2, 0.2]], "labels": ["ok"], "user_id": "u", "hand_landmarks": [[]]}
    labels = {"../../../etc/passwd": entry, "a": entry}
    (root / "hagrid_annotations" / "train" / "ok.json").write_text(json.dumps(labels))
    Image.new("RGB", (40, 30)).save(root / "hagrid_dataset" / "ok" / "a.jpg")
    result = run_command("ingest", "-s", "hagrid", "--root", root, "-w", tmp_path / "w", "--json")
    assert result.code == 0
    assert json.loads(result.out)["records"] == 1
    assert read_reasons(tmp_path / "w", "ingest", "hagrid") == {RejectReason.PATH_ESCAPES_ROOT: 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-s", "hagrod"), 2, "unknown source 'hagrod'"),
        (("-s", "generated"), 2, "`handdata sample domain-transfer --all`"),
        (("-s", "hagrid", "--root", "/nowhere"), 2, "the root /nowhere of source hagrid does not exist"),
        (("-s", "hagrid", "--root", os.curdir), 2, "does not look like hagrid"),
    ],
)
def test_a_wrong_command_is_one_line_and_a_hint(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, run_command
) -> None:
    result = run_command("ingest", *arguments, "-w", tmp_path)
    assert result.code == code
    assert message in result.err
    assert "hint: " in result.err
    assert "Traceback" not in result.err + result.out


def test_a_workspace_that_cannot_be_written_is_one_line(synthetic_root: Path, tmp_path: Path, run_command) -> None:
    (tmp_path / "file").touch()
    result = run_command("ingest", "-s", "synthetic", "--root", synthetic_root, "-w", tmp_path / "file" / "w")
    assert result.code == 1
    assert f"cannot write to {tmp_path}/file/w" in result.err
    assert "Traceback" not in result.err


class StillsAdapter(DoubledAdapter):
    """A source of a few stills, whose names say which ingest read them."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["synthetic"].model_copy(update={"name": "stills"})
    version: ClassVar[str] = "old"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        for record in super().records(root, partition):
            assert isinstance(record, HandRecord)
            yield record.model_copy(update={"source": "stills", "sequence_id": f"{self.version}-{partition.name}"})


class NewStillsAdapter(StillsAdapter):
    version: ClassVar[str] = "new"


class Stopped(BaseException):
    """A process that ends here and now."""


@pytest.mark.parametrize("step", range(12))
def test_an_ingest_may_stop_at_any_step(storage: Storage, tmp_path: Path, step: int) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.json").touch()
    ingest(StillsAdapter, tmp_path / "root", storage, limit=10)
    changes = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            if changes == step:
                raise Stopped
            changes += 1
            return change(*arguments, **options)

        return changed

    def sequences() -> set[str]:
        return set(read_record_keys(storage, "stills", ["sequence_id"])["sequence_id"].to_pylist())

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_bytes", "move", "remove"):
            patch.setattr(Storage, name, counted(getattr(Storage, name)))
        with suppress(Stopped):
            ingest(NewStillsAdapter, tmp_path / "root", storage, limit=10)
    assert sequences() in ({"old-a", "old-b"}, {"new-a", "new-b"})
    ingest(NewStillsAdapter, tmp_path / "root", storage, limit=10)
    assert sequences() == {"new-a", "new-b"}
    assert len(storage.list_files("records/source=stills", ".parquet")) == 2
    assert not storage.exists(".staging-stills")


class EmptyStillsAdapter(StillsAdapter):
    """The same source while the disk with its images is away."""

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        for record in super().records(root, partition):
            assert isinstance(record, HandRecord)
            error = RecordError(RejectReason.IMAGE_MISSING, f"{record.image_uri} does not exist")
            yield rejection(record.record_id, record.image_uri, error)


def file_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class SilentStillsAdapter(StillsAdapter):
    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        yield from ()


@pytest.mark.parametrize(
    ("empty", "said"),
    [
        (
            EmptyStillsAdapter,
            r"no record of source stills; rejected: image_missing 2; the first: image_missing, .*a\.jpg",
        ),
        (SilentStillsAdapter, "no record of source stills"),
    ],
)
def test_an_ingest_without_a_record_fails_and_leaves_the_earlier_ones(
    tmp_path: Path, empty: type[StillsAdapter], said: str
) -> None:
    storage = Storage(tmp_path / "w")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.json").touch()
    ingest(StillsAdapter, tmp_path / "root", storage, limit=10)
    before = file_bytes(tmp_path / "w")
    with pytest.raises(RunError, match=said) as caught:
        ingest(empty, tmp_path / "root", storage, limit=10)
    assert caught.value.exit_code == 1
    assert file_bytes(tmp_path / "w") == before
    assert set(read_record_keys(storage, "stills", ["sequence_id"])["sequence_id"].to_pylist()) == {"old-a", "old-b"}
    assert not storage.exists(".staging-stills")


class WarningStillsAdapter(StillsAdapter):
    def warnings(self, root: Path) -> Iterator[str]:
        yield "subject [1] has 99 of its 100 sequences"


def test_warnings_stand_in_the_summary_and_are_printed(
    tmp_path: Path, run_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handdata.adapters.registry.find_adapter", lambda name: WarningStillsAdapter)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.json").touch()
    command = ("ingest", "-s", "stills", "--root", tmp_path / "root", "-w", tmp_path / "w", "--limit", 10)
    warning = "subject [1] has 99 of its 100 sequences"
    assert warning in run_command(*command).out
    assert json.loads(run_command(*command, "--json").out)["warnings"] == [warning]
    assert list(read_ingest_summary(Storage(tmp_path / "w"), "stills").warnings) == [warning]


def test_a_summary_of_an_earlier_version_has_no_warnings(synthetic_root: Path, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    written = ingest(SyntheticAdapter, synthetic_root, storage, limit=1)
    document = json.loads(storage.read_bytes("records/source=synthetic/_ingest.json"))
    del document["warnings"]
    storage.write_bytes("records/source=synthetic/_ingest.json", json.dumps(document).encode())
    assert read_ingest_summary(storage, "synthetic").warnings == written.warnings == ()


def test_ingest_and_planning_work_on_any_storage(storage: Storage, synthetic_root: Path) -> None:
    summary = ingest(SyntheticAdapter, synthetic_root, storage)
    ingest(SyntheticAdapter, synthetic_root, storage)
    units = plan_source(Dataset(storage), "synthetic", 64)
    ids = [record.record_id for unit in units for record in read_unit(storage, unit)]
    assert len(ids) == len(set(ids)) == summary.records == 48
