"""Other flags, dropped records and annotating again change a dataset at once, once, and whatever is interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.quality import JUDGED_COLUMNS, flags_of
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.records.tombstones import proposed_tombstones, write_tombstones
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings, QualitySettings
from handdata.pipeline.shards import list_shards, read_index, read_manifest, read_markers
from handdata.pipeline.shards.lease import Lease, take_lease
from handdata.pipeline.shards.settle import drop, flag, is_settled
from handdata.pipeline.shards.state import read_state
from handdata.pipeline.storage import Dataset, Storage, blob_ranges
from handdata.schemas import SAMPLE_SCHEMA, UsageError
from tests.fixtures.samples import make_older

SMALL = AnnotateSettings(masks="dataset", image_size=64)


@pytest.fixture
def workspace(annotated_synthetic: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(annotated_synthetic, tmp_path / "w"))


def committed(storage: Storage) -> Counter[str]:
    return Counter(read_index(storage, list_shards(Dataset(storage)), ["record_id"])["record_id"].to_list())


def in_folder(workspace: Path) -> Counter[str]:
    return Counter(pq.read_table(workspace / "dataset" / "data", columns=["record_id"])["record_id"].to_pylist())


def all_text(workspace: Path, column: str) -> set[str]:
    """Every value of a column in any Parquet file, whoever wrote it."""
    values: set[str] = set()
    for path in workspace.rglob("*.parquet"):
        if column in pq.read_schema(path).names:
            values.update(pq.ParquetFile(path).read([column])[column].to_pylist())
    return values


def subject_of(workspace: Path) -> str:
    return min(filter(None, all_text(workspace / "records", "subject_id")))


def test_empty_frames_are_flagged_by_contrast_and_shards_without_it_are_left_alone(workspace: Path) -> None:
    dataset = Dataset(Storage(workspace))
    lowest = min(read_index(dataset.storage, list_shards(dataset), ["contrast"])["contrast"].to_list())
    assert lowest > 5 * QualitySettings().min_contrast
    assert flag(dataset, {"min_contrast": lowest + 0.01}).settled.flags_after["no_content"] >= 1
    assert flag(dataset, {"min_contrast": 1.5}).settled.flags_after["no_content"] == 0
    make_older(dataset.storage)
    assert flag(dataset, {"min_contrast": 1000}).settled.flags_after["no_content"] == 0
    assert len(committed(dataset.storage)) == 48


def test_records_are_dropped_from_a_dataset_that_an_older_version_planned(workspace: Path) -> None:
    storage = Storage(workspace)
    make_older(storage)
    subject = subject_of(workspace)
    assert drop(storage, "subject", [subject], "synthetic").datasets["dataset"].samples
    assert subject not in all_text(workspace, "subject_id")


def test_a_dataset_of_an_older_version_that_is_continued_gets_the_same_columns_everywhere(workspace: Path) -> None:
    storage, data = Storage(workspace), workspace / "dataset" / "data"
    make_older(storage)
    files = sorted(data.rglob("*.parquet"))
    before = {file: pq.read_table(file, partitioning=None) for file in files}
    one = next((workspace / "dataset" / "units").rglob("*.json"))
    one.unlink()  # a unit that is still to be done
    annotate(AnnotateRequest(Dataset(storage)), AnnotateSettings(masks="dataset", image_size=64))
    assert pl.read_parquet(data / "**/*.parquet").height == 48  # which fails where columns differ
    for file in files:
        now = pq.read_table(file, partitioning=None) if file.exists() else None
        if now is not None and now["contrast"].null_count:
            assert now.drop_columns("contrast").equals(before[file])
            assert now.schema.names == SAMPLE_SCHEMA.names
    assert annotate(AnnotateRequest(Dataset(storage)), AnnotateSettings(masks="dataset", image_size=64)).records == 0


def test_flags_follow_other_thresholds_without_a_model(workspace: Path) -> None:
    storage = Storage(workspace)
    before = pq.read_table(workspace / "dataset" / "data").to_pylist()
    files = set((workspace / "dataset" / "data").rglob("*.parquet"))
    assert flag(Dataset(storage), {"min_hand_px": 48}).settled.units == 0
    summary = flag(Dataset(storage), {"min_hand_px": 10_000})
    assert summary.settled.flags_after["small_hand"] == 48
    assert set((workspace / "dataset" / "data").rglob("*.parquet")) == files
    manifest = read_manifest(Dataset(storage))
    assert manifest.quality["min_hand_px"] == 10_000
    assert sum(counts.flags["small_hand"] for counts in manifest.sources["synthetic"].values()) == 48
    settings = QualitySettings(**manifest.quality)
    for shard in list_shards(Dataset(storage)):
        rows = storage.read_parquet(shard.name, list(JUDGED_COLUMNS))
        assert [tuple(flags) for flags in rows["flags"].to_pylist()] == flags_of(rows, 64, settings)
    flag(Dataset(storage), {"min_hand_px": 48})
    assert pq.read_table(workspace / "dataset" / "data").to_pylist() == before


def test_further_records_get_the_flags_of_the_dataset(workspace: Path) -> None:
    storage = Storage(workspace)
    flag(Dataset(storage), {"min_hand_px": 10_000})
    marker = next((workspace / "dataset" / "units").rglob("*.json"))
    marker.unlink()
    assert annotate(AnnotateRequest(Dataset(storage)), SMALL).flags["small_hand"] > 0
    with pytest.raises(UsageError, match=r"min_hand_px 10000 -> 48.*handdata flag --min-hand-px 48"):
        annotate(
            AnnotateRequest(Dataset(storage)), SMALL.model_copy(update={"quality": QualitySettings(min_hand_px=48)})
        )


def test_a_dropped_subject_is_nowhere_any_more_and_never_comes_back(
    workspace: Path, synthetic_root: Path, run_command
) -> None:
    storage = Storage(workspace)
    subject = subject_of(workspace)
    before = in_folder(workspace)
    preview = json.loads(run_command("drop", "-w", workspace, "--subject", subject, "--dry-run", "--json").out)
    assert in_folder(workspace) == before
    summary = json.loads(run_command("drop", "-w", workspace, "--subject", subject, "--json").out)
    assert summary["records"] == summary["datasets"]["dataset"]["samples"] == preview["records"] > 0
    assert {**summary, "dry_run": True} == preview
    assert subject not in all_text(workspace, "subject_id")
    assert in_folder(workspace) == committed(storage)
    assert sum(before.values()) - sum(in_folder(workspace).values()) == summary["records"]
    assert read_manifest(Dataset(storage)).complete
    again = ingest(SyntheticAdapter, synthetic_root, storage)
    assert again.dropped == summary["records"]
    assert annotate(AnnotateRequest(Dataset(storage)), SMALL).records == 0
    assert subject not in all_text(workspace, "subject_id")
    assert drop(storage, "subject", [subject], "synthetic").records == 0


@pytest.mark.parametrize("what", ["drop", "flag"])
def test_images_are_found_by_their_byte_ranges_and_stale_latents_are_gone(workspace: Path, what: str) -> None:
    storage, subject = Storage(workspace), subject_of(workspace)
    shards = list_shards(Dataset(storage))
    for shard in shards:
        storage.write_bytes(shard.name.replace("/data/", "/latents/kind-0-64px/"), b"latents")
    lost_rows = set()
    for shard in shards:
        if subject in storage.read_parquet(shard.name, ["subject_id"])["subject_id"].to_pylist():
            lost_rows.add(shard.name.replace("/data/", "/latents/kind-0-64px/"))
    assert lost_rows
    if what == "drop":
        drop(storage, "subject", [subject], None)
    else:
        lost_rows = set()
        flag(Dataset(storage), {"min_hand_px": 10_000})
    left = set(storage.list_files("dataset/latents", ".parquet"))
    assert left == {shard.name.replace("/data/", "/latents/kind-0-64px/") for shard in shards} - lost_rows
    for shard in list_shards(Dataset(storage)):
        data = storage.read_bytes(shard.name)
        with storage.open_parquet(shard.name) as file:
            ranges = blob_ranges(file, "image")
            assert ranges is not None
            images = file.read(["image"])["image"].to_pylist()
        assert [data[first : first + size] for first, size in ranges.tolist()] == [row["bytes"] for row in images]


def test_a_dropped_source_cannot_be_ingested_again(workspace: Path, synthetic_root: Path) -> None:
    storage = Storage(workspace)
    drop(storage, "source", [], "synthetic")
    assert not list(workspace.rglob("*.parquet"))
    assert read_markers(Dataset(storage)) == []
    with pytest.raises(UsageError, match="synthetic was dropped"):
        ingest(SyntheticAdapter, synthetic_root, storage)


def test_an_id_that_no_record_has_is_an_error(workspace: Path, run_command) -> None:
    result = run_command("drop", "-w", workspace, "--subject", "nobody")
    assert result.code == 2
    assert "subject nobody" in result.err
    assert run_command("drop", "-w", workspace).code == 2
    lease = (workspace / "dataset" / "plan" / "lease.json").read_bytes()
    subject, known = subject_of(workspace), ("-w", workspace, "-s", "synthetic")
    for wrong in (
        ("--subject", "nobody", *known),
        ("--subject", subject, "--subject", "nobody", *known),
        ("--sequence", "nowhere", *known, "--dry-run"),
        ("--sequence", "not-utf-8-\udcff", *known),
        ("--record", subject, *known),
        ("-s", "syntetic", "-w", workspace),
        ("-s", "syntetic", "--subject", subject, "-w", workspace),
    ):
        result = run_command("drop", *wrong)
        assert result.code == 2, wrong
        assert "error:" in result.err
    assert not (workspace / "dropped").exists()
    assert (workspace / "dataset" / "plan" / "lease.json").read_bytes() == lease
    assert run_command("status", "-w", workspace, "--dataset", "../w/dataset").code == 2


def test_what_was_dropped_before_is_told_apart_and_is_no_error(workspace: Path, run_command) -> None:
    shutil.rmtree(workspace / "dataset")  # a subject that is in the records alone
    subject = subject_of(workspace)
    assert run_command("drop", "-w", workspace, "--subject", subject).code == 0
    again = run_command("drop", "-w", workspace, "--subject", subject, "--json")
    assert again.code == 0
    document = json.loads(again.out)
    assert (document["dropped_before"], document["records"], document["datasets"]) == (True, 0, {})
    assert len(list((workspace / "dropped").rglob("*.json"))) == 1
    assert run_command("drop", "-w", workspace, "--subject", "nobody", "-s", "synthetic").code == 2
    assert run_command("drop", "-w", workspace, "-s", "synthetic").code == 0
    whole = run_command("drop", "-w", workspace, "-s", "synthetic")
    assert (whole.code, "Dropped before" in whole.out) == (0, True)


_KILLED = """
import os, signal, sys
from handdata.pipeline.shards import settle
from handdata.pipeline.storage import Dataset, Storage
step = int(sys.argv[2])
for name in ("write_bytes", "remove"):
    def counted(self, *arguments, change=getattr(Storage, name)):
        global step
        step -= 1
        if step < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(self, *arguments)
    setattr(Storage, name, counted)
storage = Storage(sys.argv[1])
if sys.argv[3] == "flag":
    settle.flag(Dataset(storage), {"min_hand_px": 10_000})
else:
    settle.drop(storage, "subject", [sys.argv[4]], "synthetic")
"""


@pytest.mark.parametrize("step", [1, 3, 5, 8])
@pytest.mark.parametrize("what", ["drop", "flag"])
def test_killed_at_any_point_readers_see_each_row_once_and_the_command_goes_on(
    annotated_synthetic: Path, tmp_path: Path, what: str, step: int
) -> None:
    workspace = Path(shutil.copytree(annotated_synthetic, tmp_path / "w"))
    storage, subject = Storage(workspace), subject_of(annotated_synthetic)
    before = committed(storage)
    arguments = [sys.executable, "-c", _KILLED, str(workspace), str(step), what, subject]
    done = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert in_folder(workspace) == committed(storage)
    assert in_folder(workspace) <= before
    if what == "flag":
        assert in_folder(workspace) == before
        flag(Dataset(storage), {"min_hand_px": 10_000})
        assert all("small_hand" in row["flags"] for row in pq.read_table(workspace / "dataset" / "data").to_pylist())
    else:
        drop(storage, "subject", [subject], "synthetic")
        assert subject not in all_text(workspace, "subject_id")
    assert is_settled(read_state(Dataset(storage)))
    counts = read_manifest(Dataset(storage)).sources["synthetic"].values()
    assert sum(of.samples for of in counts) == sum(in_folder(workspace).values())


def test_what_is_dropped_while_a_run_starts_is_gone_when_the_run_ends(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, subject = Storage(workspace), subject_of(workspace)
    next((workspace / "dataset" / "units").rglob("*.json")).unlink()

    def take_after_a_drop_that_stops(dataset: Dataset) -> Lease:
        write_tombstones(storage, proposed_tombstones(storage, "synthetic", "subject", [subject]))
        return take_lease(dataset)

    monkeypatch.setattr("handdata.pipeline.run.annotate.take_lease", take_after_a_drop_that_stops)
    assert annotate(AnnotateRequest(Dataset(storage)), SMALL).manifest.complete
    assert is_settled(read_state(Dataset(storage)))
    assert subject not in all_text(workspace / "dataset", "subject_id")
    assert in_folder(workspace) == committed(storage)


def test_thresholds_that_change_while_a_run_starts_hold(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(Storage(workspace))
    next((workspace / "dataset" / "units").rglob("*.json")).unlink()

    def take_after_a_flag(dataset: Dataset) -> Lease:
        flag(dataset, {"min_hand_px": 10_000})
        return take_lease(dataset)

    monkeypatch.setattr("handdata.pipeline.run.annotate.take_lease", take_after_a_flag)
    assert annotate(AnnotateRequest(dataset), SMALL).manifest.quality["min_hand_px"] == 10_000
    assert is_settled(read_state(dataset))
    rows = pq.read_table(workspace / "dataset" / "data").to_pylist()
    assert len(rows) == 48
    assert all("small_hand" in row["flags"] for row in rows)


def test_a_manifest_that_was_removed_is_written_again_as_it_was(workspace: Path) -> None:
    dataset = Dataset(Storage(workspace))
    flag(dataset, {"min_hand_px": 10_000})
    before = read_manifest(dataset)
    (workspace / "dataset" / "dataset.json").unlink()
    assert annotate(AnnotateRequest(dataset), SMALL).records == 0
    assert read_manifest(dataset) == before


def test_an_interrupted_drop_is_finished_by_annotate(workspace: Path) -> None:
    subject = subject_of(workspace)
    subprocess.run([sys.executable, "-c", _KILLED, str(workspace), "3", "drop", subject], timeout=120)
    annotate(AnnotateRequest(Dataset(Storage(workspace))), SMALL)
    assert subject not in all_text(workspace / "dataset", "subject_id")
    assert read_manifest(Dataset(Storage(workspace))).complete


def test_drop_and_flag_work_on_s3(annotated_synthetic: Path, s3_bucket: str) -> None:
    storage = Storage(f"{s3_bucket}/{uuid.uuid4().hex[:8]}")
    for path in annotated_synthetic.rglob("*"):
        if path.is_file():
            storage.write_bytes(str(path.relative_to(annotated_synthetic)), path.read_bytes())
    # Names inside plans, markers and summaries are relative to the workspace, so that a copy is a workspace too.
    assert flag(Dataset(storage), {"min_hand_px": 10_000}).settled.flags_after["small_hand"] == 48
    summary = drop(storage, "subject", [subject_of(annotated_synthetic)], None)
    assert summary.datasets["dataset"].samples == summary.records > 0
    assert sum(committed(storage).values()) == 48 - summary.records


def test_other_settings_are_a_named_error_or_overwrite_or_go_beside(workspace: Path) -> None:
    storage = Storage(workspace)
    other = AnnotateSettings(masks="none", image_size=32)
    with pytest.raises(UsageError, match="image_size 64 -> 32; masks dataset -> none"):
        annotate(AnnotateRequest(Dataset(storage)), other)
    assert annotate(AnnotateRequest(Dataset(storage, "small")), other).samples == 48
    assert sum(in_folder(workspace).values()) == 48
    assert annotate(AnnotateRequest(Dataset(storage), overwrite=True), other).samples == 48
    assert annotate(AnnotateRequest(Dataset(storage), overwrite=True), other).records == 0
    assert in_folder(workspace) == committed(storage)
    assert read_manifest(Dataset(storage)).image_size == 32
    assert len(read_markers(Dataset(storage))) == len({marker.unit_id for marker in read_markers(Dataset(storage))})
    drop(storage, "sequence", [min(all_text(workspace / "records", "sequence_id"))], None)
    assert in_folder(workspace) == committed(storage)
    assert (
        sum(in_folder(workspace).values())
        == read_index(storage, list_shards(Dataset(storage, "small")), ["record_id"]).height
    )


def test_a_gate_that_rejects_keeps_its_threshold(synthetic_root: Path, tmp_path: Path, ray_cluster: None) -> None:
    storage = Storage(tmp_path)
    ingest(SyntheticAdapter, synthetic_root, storage)
    gates = QualitySettings(reject={"near_duplicate"}, min_phash_distance=6)
    summary = annotate(AnnotateRequest(Dataset(storage)), SMALL.model_copy(update={"quality": gates}))
    assert summary.rejected["quality_near_duplicate"] + summary.samples == 48
    assert summary.manifest.sources["synthetic"]["train"].rejected["quality_near_duplicate"] > 0
    assert "near_duplicate" not in summary.flags
    with pytest.raises(UsageError, match="near_duplicate rejects records"):
        flag(Dataset(storage), {"min_phash_distance": 3})
    assert flag(Dataset(storage), {"min_hand_px": 10_000}).settled.flags_after["near_duplicate"] == 0
