"""When the records of an ingest take the place of earlier ones, and what an ingest that fails leaves."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import UnidentifiedImageError

from handdata.adapters import AdapterOptions, Layout, Partition
from handdata.adapters.registry import registered_adapters
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.records.replacing import remove_earlier
from handdata.pipeline.records.stored import IngestSummary, drop_records, read_ingest_summary, read_record_keys
from handdata.pipeline.records.tombstones import DropKind, proposed_tombstones, write_tombstones
from handdata.pipeline.shards.plan import plan_source
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    SOURCE_CARDS,
    DatasetReadError,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    RunError,
    SourceCard,
    Split,
    StorageError,
    UsageError,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection
from tests.fixtures.sources import ADAPTER_FIXTURES

SUMMARY = "records/source=counted/_ingest.json"
LIMIT = 1000
"""With a limit no process is started, which takes a second."""


class CountedAdapter:
    """A source with as many records and rejected rows of each split as a test says."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["synthetic"].model_copy(update={"name": "counted"})
    layouts: ClassVar[tuple[Layout, ...]] = (Layout("any", ("*",)),)
    records_of: ClassVar[Mapping[Split, int]] = {}
    rejected_of: ClassVar[Mapping[Split, int]] = {}

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        pass

    def partitions(self, root: Path) -> Iterator[Partition]:
        for split in ("train", "val", "test"):
            yield Partition(split, split, (f"{split}.json",))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        split = partition.split
        for number in range(self.records_of.get(split, 0)):
            yield HandRecord(
                source="counted",
                split=split,
                sequence_id=f"{split}-{number}",
                frame_index=0,
                subject_id=split,
                image_uri=f"{root}/{split}/{number}.jpg",
                width=8,
                height=8,
                viewpoint="exo",
                keypoints_2d=np.zeros((42, 2)),
                keypoints_valid=np.zeros(42, bool),
                hand_state=("unknown", "unknown"),
            )
        for number in range(self.rejected_of.get(split, 0)):
            uri = f"{root}/{split}/away-{number}.jpg"
            error = RecordError(RejectReason.IMAGE_MISSING, f"{uri} does not exist")
            yield rejection(f"counted/{split}/away-{number}/000000-0", uri, error)

    def open_mask(self, record: HandRecord) -> BoolArray:
        raise AssertionError("no record has a mask")


Counts = Mapping[Split, int]
NONE: Counts = {}


def counted(
    records: Counts, rejected: Counts = NONE, base: type[CountedAdapter] = CountedAdapter
) -> type[CountedAdapter]:
    return type("Counted", (base,), {"records_of": records, "rejected_of": rejected})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train.json").touch()
    return tmp_path / "root"


@pytest.fixture
def workspace(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "w")


def bytes_of(storage: Storage) -> dict[Path, bytes]:
    """Return the files that are not hidden: a failure may leave some of these, for the next ingest to remove."""
    files = (path for path in Path(storage.root).rglob("[!.]*") if path.is_file())
    return {path: path.read_bytes() for path in files if ".staging-counted" not in path.parts}


FIRST: Counts = {"train": 80, "val": 10, "test": 10}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"train": 80, "val": 10}, "test 10 -> 0"),
        ({"train": 70, "val": 9, "test": 10}, "train 80 -> 70, val 10 -> 9"),
        ({"train": 120, "val": 1, "test": 7}, "val 10 -> 1, test 10 -> 7"),
        ({"train": 200, "test": 200}, "val 10 -> 0"),
    ],
)
def test_an_ingest_that_lacks_what_the_last_one_had_needs_force(
    root: Path, workspace: Storage, now: Counts, said: str
) -> None:
    ingest(counted(FIRST, {"train": 3}), root, workspace, limit=LIMIT)
    before = bytes_of(workspace)
    poorer = counted(now, {"test": 5})
    with pytest.raises(RunError) as caught:
        ingest(poorer, root, workspace, limit=LIMIT)
    assert f"that the last ingest had: {said}; rejected: image_missing 5; the first: image_missing, " in str(
        caught.value
    )
    assert "/test/away-0.jpg does not exist" in str(caught.value)
    assert "--force" in caught.value.hint
    assert caught.value.exit_code == 1
    assert bytes_of(workspace) == before
    assert ingest(poorer, root, workspace, limit=LIMIT, force=True).splits == now
    assert read_ingest_summary(workspace, "counted").rejected == {"image_missing": 5}


@pytest.mark.parametrize(
    "now",
    [{"train": 70, "val": 10, "test": 10}, {"train": 79, "val": 1, "test": 10}, {"train": 200, "val": 1, "test": 9}],
)
def test_a_tenth_may_be_missing(root: Path, workspace: Storage, now: Counts) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    assert ingest(counted(now), root, workspace, limit=LIMIT).splits == now


@pytest.mark.parametrize("asked", [{"split": "train"}, {"limit": 5}, {"stride": 2}])
def test_an_ingest_of_other_records_is_not_compared(root: Path, workspace: Storage, asked: dict[str, Any]) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    assert ingest(counted({"train": 9}), root, workspace, **({"limit": LIMIT} | asked)).records <= 9


@pytest.mark.parametrize("asked", [{"split": "train", "limit": LIMIT}, {"limit": 20}, {"stride": 2, "limit": LIMIT}])
def test_an_ingest_of_the_same_part_is_compared(root: Path, workspace: Storage, asked: dict[str, Any]) -> None:
    ingest(counted(FIRST), root, workspace, **asked)
    with pytest.raises(RunError, match=r"train \d+ -> 9"):
        ingest(counted({"train": 9}), root, workspace, **asked)


def test_an_ingest_is_compared_with_the_last_one_of_the_same_part_whatever_came_between(
    root: Path, workspace: Storage
) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    ingest(counted(FIRST), root, workspace, limit=LIMIT, stride=2)
    ingest(counted({"train": 50, "val": 3}), root, workspace, limit=LIMIT, split="train")
    for asked, said in (({}, "val 10 -> 0"), ({"stride": 2}, "train 80 -> 9"), ({"split": "train"}, "train 50 -> 9")):
        with pytest.raises(RunError, match=said):
            ingest(counted({"train": 9}), root, workspace, limit=LIMIT, **asked)  # type: ignore[arg-type]
    assert ingest(counted({"train": 9}), root, workspace, limit=LIMIT, force=True).splits == {"train": 9}
    assert ingest(counted({"train": 9}), root, workspace, limit=LIMIT).splits == {"train": 9}, "it was meant"
    with pytest.raises(RunError, match="train 80 -> 9"):
        ingest(counted({"train": 9}), root, workspace, limit=LIMIT, stride=2)
    counts = json.loads(workspace.read_bytes(SUMMARY))["earlier"]
    assert [(found["split"], found["limit"], found["stride"], found["records"]) for found in counts] == [
        (None, LIMIT, 2, 100),
        ("train", LIMIT, 1, 50),
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": -2}, "stride is -2"),
    ],
)
def test_a_limit_or_stride_below_one_is_wrong_usage(
    root: Path, workspace: Storage, asked: dict[str, Any], said: str
) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    before = bytes_of(workspace)
    with pytest.raises(UsageError, match=said) as caught:
        ingest(counted(FIRST), root, workspace, **asked)
    assert (caught.value.exit_code, bytes_of(workspace)) == (2, before)


@pytest.mark.parametrize(
    ("removed", "said"), [(("split", "limit", "stride"), "train 80 -> 9"), (("splits",), "records 100 -> 9")]
)
def test_summaries_of_earlier_versions_are_compared_as_far_as_they_tell(
    root: Path, workspace: Storage, removed: tuple[str, ...], said: str
) -> None:
    # One partition: several without a limit would start processes, which do not have these classes.
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    document = json.loads(workspace.read_bytes(SUMMARY))
    document["limit"] = None
    for name in removed:
        document.pop(name) if name != "splits" else document.update(splits={})
    workspace.write_bytes(SUMMARY, json.dumps(document).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        with pytest.raises(RunError, match=said):
            ingest(counted({"train": 9}), root, workspace)


def test_a_folder_whose_name_is_no_text_is_named_with_escapes(root: Path, workspace: Storage) -> None:
    folder = root / os.fsdecode(b"caf\xe9\n\x1b[31m")
    folder.mkdir()
    (folder / "labels.bin").touch()
    summary = ingest(counted(FIRST), root, workspace, limit=LIMIT)
    assert summary.warnings[-1].endswith(r"may belong to the dataset: caf\udce9\n\x1b[31m")
    assert read_ingest_summary(workspace, "counted") == summary
    assert len(read_record_keys(workspace, "counted", ["record_id"])) == 100


def test_a_summary_that_cannot_be_read_costs_no_records(root: Path, workspace: Storage) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    workspace.write_bytes(SUMMARY, b"{")
    before = bytes_of(workspace)
    remove_earlier(workspace, "counted")
    assert bytes_of(workspace) == before


def test_a_damaged_summary_does_not_prevent_the_ingest_that_mends_it(root: Path, workspace: Storage) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    workspace.write_bytes(SUMMARY, b'{"source": ')
    assert ingest(counted({"train": 9}), root, workspace, limit=LIMIT).records == 9
    assert len(read_record_keys(workspace, "counted", ["record_id"])) == 9


def test_the_command_is_one_line_and_force_replaces(
    root: Path, workspace: Storage, run_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    monkeypatch.setattr("handdata.adapters.registry.find_adapter", lambda name: counted({"train": 80}))
    command = ("ingest", "-s", "counted", "--root", root, "-w", workspace.root, "--limit", LIMIT)
    result = run_command(*command)
    assert result.code == 1
    assert "val 10 -> 0, test 10 -> 0" in result.err
    assert "hint: nothing was changed" in result.err
    assert "Traceback" not in result.err
    assert run_command(*command, "--force").code == 0
    assert read_ingest_summary(workspace, "counted").splits == {"train": 80}


# ---------------------------------------------------------------------------------------------------- tombstones


def bury(storage: Storage, kind: DropKind, *values: str, honoured: bool = True) -> None:
    """Write a tombstone as ``handdata drop`` does, or as one leaves it that is killed right after."""
    tombstones = proposed_tombstones(storage, "counted", kind, values)
    write_tombstones(storage, tombstones)
    if honoured:
        drop_records(storage, tombstones)


@pytest.mark.parametrize("honoured", [True, False])
def test_dropped_records_are_not_missed(root: Path, workspace: Storage, honoured: bool) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    bury(workspace, "subject", "test", "val", honoured=honoured)
    summary = ingest(counted(FIRST), root, workspace, limit=LIMIT)
    assert (summary.splits, summary.dropped) == ({"train": 80}, 20)
    with pytest.raises(RunError, match="train 80 -> 30"):
        ingest(counted({**FIRST, "train": 30}), root, workspace, limit=LIMIT)


def test_what_was_dropped_since_is_not_missed_by_an_ingest_of_another_part(root: Path, workspace: Storage) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    ingest(counted(FIRST), root, workspace, limit=LIMIT, stride=2)
    bury(workspace, "subject", "test", "val")
    with pytest.raises(RunError, match="train 80 -> 60"):
        ingest(counted({**FIRST, "train": 60}), root, workspace, limit=LIMIT)
    assert ingest(counted(FIRST), root, workspace, limit=LIMIT).splits == {"train": 80}


@pytest.mark.parametrize("honoured", [True, False])
@pytest.mark.parametrize("now", [FIRST, {"train": 5}])
def test_where_every_record_was_dropped_none_is_left(
    root: Path, workspace: Storage, honoured: bool, now: Counts
) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    bury(workspace, "subject", "train", "val", "test", honoured=honoured)
    with pytest.raises(RunError, match=r"all \d+ records of counted that .* gave were dropped before: none is left"):
        ingest(counted(now), root, workspace, limit=LIMIT)
    assert read_ingest_summary(workspace, "counted").records == 0
    assert len(read_record_keys(workspace, "counted", ["record_id"])) == 0
    assert plan_source(Dataset(workspace), "counted", 64) == []
    assert not workspace.exists(".staging-counted")


def test_where_an_ingest_gives_none_dropped_records_do_not_return(root: Path, workspace: Storage) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    bury(workspace, "subject", "train", honoured=False)
    with pytest.raises(RunError, match="gave no record"):
        ingest(counted({}, FIRST), root, workspace, limit=LIMIT)
    assert set(read_record_keys(workspace, "counted", ["split"])["split"].to_pylist()) == {"val", "test"}


def test_records_that_were_not_dropped_are_not_lost_to_an_ingest_of_dropped_ones(
    root: Path, workspace: Storage
) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    bury(workspace, "subject", "test")
    before = bytes_of(workspace)
    with pytest.raises(RunError, match="train 80 -> 0, val 10 -> 0; dropped before: 10"):
        ingest(counted({"test": 10}), root, workspace, limit=LIMIT)
    assert bytes_of(workspace) == before


# ---------------------------------------------------------------------------------------------------- failures


class FailingAdapter(CountedAdapter):
    """A source whose last split raises after some rows."""

    error: ClassVar[BaseException]

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        yield from super().records(root, partition)
        if partition.split == "test":
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EIO, "Input/output error", "/data/3.jpg"), DatasetReadError),
        (PermissionError(errno.EACCES, "Permission denied", "/data/3.jpg"), DatasetReadError),
        (OSError(errno.ESTALE, "Stale file handle"), DatasetReadError),
        (StorageError("the store is away"), StorageError),
        (MemoryError(), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
def test_an_ingest_that_fails_midway_changes_nothing(
    root: Path, workspace: Storage, error: BaseException, raised: type[BaseException]
) -> None:
    ingest(counted(FIRST, {"train": 2}), root, workspace, limit=LIMIT)
    before = bytes_of(workspace)
    failing = counted(FIRST, {"train": 4}, FailingAdapter)
    failing.error = error  # type: ignore[attr-defined]
    with pytest.raises(raised):
        ingest(failing, root, workspace, limit=LIMIT)
    assert bytes_of(workspace) == before
    assert not workspace.exists(".staging-counted")


class KilledAdapter(CountedAdapter):
    """A source over which a process dies, as the system kills one where memory is short."""

    records_of: ClassVar[Mapping[Split, int]] = {"train": 80, "val": 10, "test": 10}

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        if partition.split == "test":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().records(root, partition)


def test_a_process_that_is_killed_ends_the_ingest_in_one_line(root: Path, workspace: Storage) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    before = bytes_of(workspace)
    with pytest.raises(RunError, match=f"a process that read {root} was killed"):
        ingest(KilledAdapter, root, workspace)
    assert bytes_of(workspace) == before
    assert not workspace.exists(".staging-counted")


def failing_at(step: int, error: BaseException, *, afterwards: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what lets the ``step``-th change of a storage fail, before it is carried out or afterwards."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        changes = iter(range(1000))

        def wrap(change: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*arguments: Any) -> Any:
                fails = next(changes) == step
                if fails and not afterwards:
                    raise error
                result = change(*arguments)
                if fails:
                    raise error
                return result

            return changed

        for name in ("write_bytes", "move", "remove", "make_folder"):
            monkeypatch.setattr(Storage, name, wrap(getattr(Storage, name)))

    return patch


def in_force(storage: Storage) -> tuple[IngestSummary, set[str], set[str]]:
    """Return the ingest in force, the files it names, and all files of records and rejected rows."""
    summary = read_ingest_summary(storage, "counted")
    there = {name for folder in ("records", "rejected") for name in storage.list_files(folder, ".parquet")}
    return summary, {*summary.files, *summary.rejected_files}, there


@pytest.mark.parametrize("afterwards", [False, True])
@pytest.mark.parametrize(
    "error", [StorageError("No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"]
)
def test_a_change_that_fails_leaves_one_ingest_whole(
    root: Path, workspace: Storage, error: BaseException, afterwards: bool
) -> None:
    ingest(counted(FIRST, {"train": 2}), root, workspace, limit=LIMIT)
    fuller = counted({"train": 90, "val": 20, "test": 10}, {"train": 4, "val": 1})
    for step in range(30):
        before = bytes_of(workspace)
        with pytest.MonkeyPatch.context() as monkeypatch:
            failing_at(step, error, afterwards=afterwards)(monkeypatch)
            try:
                ingest(fuller, root, workspace, limit=LIMIT)
                failed = False
            except type(error):
                failed = True
        summary, named, there = in_force(workspace)
        assert named <= there
        assert len(read_record_keys(workspace, "counted", ["record_id"])) == summary.records
        if summary.records == 100:
            assert failed
            assert bytes_of(workspace) == before
            continue
        break
    assert summary.records == 120
    ingest(fuller, root, workspace, limit=LIMIT)
    _, named, there = in_force(workspace)
    assert named == there


@pytest.mark.parametrize(
    ("source", "part", "said"),
    [
        ("hoi4d", "handpose", "labelled hands 9 -> 0"),
        ("hoi4d", "HOI4D_annotations", "masks 3 -> 0"),
        ("hoi4d", "camera_params", "cameras 12 -> 0"),
        ("reinterhand", "**/orig_fits/left", "labelled hands 78 -> 39"),
        ("reinterhand", "**/masks", "masks 39 -> 0"),
    ],
)
def test_a_part_of_the_labels_that_is_away_at_a_later_ingest_needs_force(
    tmp_path: Path, source: str, part: str, said: str
) -> None:
    root, storage, adapter = tmp_path / "root", Storage(tmp_path / "w"), registered_adapters()[source]
    next(fixture for fixture in ADAPTER_FIXTURES if fixture.source == source).write(root)
    before = ingest(adapter, root, storage, limit=LIMIT)
    for folder in list(root.glob(part)):
        shutil.rmtree(folder)
    with pytest.raises(RunError, match=f"lacks labels of source {source} that the last ingest had: .*{said}"):
        ingest(adapter, root, storage, limit=LIMIT)
    assert read_ingest_summary(storage, source) == before
    assert ingest(adapter, root, storage, limit=LIMIT, force=True).records == before.records
    ingest(adapter, root, storage, limit=LIMIT)  # it was meant


def test_of_two_ingests_at_once_the_one_that_began_last_counts_whole(root: Path, workspace: Storage) -> None:
    ingest(counted(FIRST), root, workspace, limit=LIMIT)
    fuller = counted({"train": 90, "val": 20, "test": 10}, {"val": 1})
    changes = {name: getattr(Storage, name) for name in ("write_bytes", "move", "remove", "make_folder")}
    overtaken = 0
    for step in range(100):
        done = 0

        def changed(name: str) -> Callable[..., Any]:
            def change(*arguments: Any) -> Any:
                nonlocal done
                result = changes[name](*arguments)
                done += 1
                if done == step + 1:  # noqa: B023
                    with pytest.MonkeyPatch.context() as inner:
                        for each, original in changes.items():
                            inner.setattr(Storage, each, original)
                        ingest(counted(FIRST), root, workspace, limit=LIMIT, force=True)
                return result

            return change

        with pytest.MonkeyPatch.context() as outer:
            for name in changes:
                outer.setattr(Storage, name, changed(name))
            try:
                ingest(fuller, root, workspace, limit=LIMIT, force=True)
            except RunError as error:
                overtaken += 1
                assert "another ingest of counted" in error.message
                assert in_force(workspace)[0].records == 100
        summary, named, there = in_force(workspace)
        assert named <= there
        assert len(read_record_keys(workspace, "counted", ["record_id"])) == summary.records
        assert not workspace.exists(".staging-counted")
        if done <= step:
            break
    assert overtaken > 10


# ---------------------------------------------------------------------------------------------------- warnings


class OddAdapter(CountedAdapter):
    """A source that warns, and whose last split raises what nobody foresaw."""

    def warnings(self, root: Path) -> Iterator[str]:
        yield "subject [1] has 99 of its 100 sequences"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        yield from super().records(root, partition)
        if partition.split == "test":
            raise KeyError("joints")


def test_what_an_adapter_failed_over_is_a_warning(
    root: Path, workspace: Storage, run_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handdata.adapters.registry.find_adapter", lambda name: counted(FIRST, base=OddAdapter))
    command = ("ingest", "-s", "counted", "--root", root, "-w", workspace.root, "--limit", LIMIT)
    result = run_command(*command, "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["rejected"] == {"adapter_failed": 1}
    subject, failures = document["warnings"]
    assert subject == "subject [1] has 99 of its 100 sequences"
    assert failures.startswith("adapter_failed: ")
    assert list(read_ingest_summary(workspace, "counted").warnings) == [subject, failures]
    shown = run_command(*command).out
    assert subject in shown
    assert "adapter_failed: " in shown
    assert run_command(*command, "--strict").code == 1


@pytest.mark.parametrize(
    "error", [UnidentifiedImageError("cannot identify"), OSError("truncated"), FileNotFoundError(errno.ENOENT, "gone")]
)
def test_what_is_no_error_of_the_disk_costs_one_partition(root: Path, workspace: Storage, error: OSError) -> None:
    """Libraries derive their own errors from ``OSError``, and a file may vanish."""

    class LibraryAdapter(CountedAdapter):
        def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
            yield from super().records(root, partition)
            if partition.split == "test":
                raise error

    summary = ingest(counted(FIRST, base=LibraryAdapter), root, workspace, limit=LIMIT)
    assert (summary.records, summary.rejected) == (sum(FIRST.values()), {"adapter_failed": 1})


class UnlistableAdapter(CountedAdapter):
    def partitions(self, root: Path) -> Iterator[Partition]:
        yield from super().partitions(root)
        raise IndexError("list index out of range")


def test_an_adapter_that_fails_to_list_partitions_is_one_line(
    root: Path, workspace: Storage, run_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handdata.adapters.registry.find_adapter", lambda name: counted(FIRST, base=UnlistableAdapter))
    result = run_command("ingest", "-s", "counted", "--root", root, "-w", workspace.root)
    assert result.code == 1
    assert f"the adapter of counted failed while it listed {root}: IndexError: list index out of range" in result.err
    assert "Traceback" not in result.err
