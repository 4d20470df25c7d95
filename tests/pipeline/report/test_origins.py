"""`show` and `rejected` on a dataset with damaged images: where everything is from, and what became of the rest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Dataset, Storage
from tests.fixtures.commands import CommandResult


def width_of(picture: Path) -> int:
    with Image.open(picture) as opened:
        return opened.width


@pytest.fixture(scope="module")
def workspace(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """One image is gone before the ingest, two are cut in half after it."""
    folder = tmp_path_factory.mktemp("spoilt")
    root = folder / "synthetic"
    shutil.copytree(synthetic_root, root)
    images = sorted((root / "train").rglob("*.jpg"))
    images[0].unlink()
    ingest(SyntheticAdapter, root, Storage(folder / "w"))
    for image in images[1:3]:
        image.write_bytes(image.read_bytes()[:1500])
    annotate(AnnotateRequest(Dataset(Storage(folder / "w"))), AnnotateSettings(masks="grabcut", image_size=64))
    return folder / "w"


@pytest.fixture
def rejected(workspace: Path, run_command: Callable[..., CommandResult]) -> dict[str, list[dict[str, str]]]:
    found = json.loads(run_command("rejected", "-w", workspace, "--json").out)["records"]
    return {stage: [row for row in found if row["stage"] == stage] for stage in ("ingest", "annotate")}


def test_rejections_are_counted_and_listed_with_their_details(
    workspace: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command("rejected", "-w", workspace, "--sheet", tmp_path / "sheet.png")
    assert result.code == 0, result.err
    assert "image_missing" in result.out and "frame_missing" in result.out and "All of them" in result.out
    assert width_of(tmp_path / "sheet.png") > 3 * 256
    only = run_command("rejected", "-w", workspace, "--reason", "frame_missing", "--n", "1", "--json")
    document = json.loads(only.out)
    assert document["counts"] == [
        {"stage": "annotate", "source": "synthetic", "reason": "frame_missing", "records": 2},
    ]
    (row,) = document["records"]
    assert Path(row["image_uri"]).is_file() and row["detail"]


def test_a_reason_or_source_that_is_none_is_a_usage_error_that_names_the_nearest(
    workspace: Path, run_command: Callable[..., CommandResult]
) -> None:
    reason = run_command("rejected", "-w", workspace, "--reason", "frame_mising")
    assert reason.code == 2 and "did you mean frame_missing?" in reason.err
    source = run_command("rejected", "-w", workspace, "--source", "syntetic")
    assert source.code == 2 and "did you mean synthetic?" in source.err
    assert run_command("rejected", "-w", workspace, "--sheet", "sheet.tiff").code == 2
    assert run_command("rejected", "-w", workspace, "--reason", "label_unsafe").out == "No record was rejected\n"


def test_a_sample_says_where_everything_is_from(
    workspace: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    dataset = Dataset(Storage(workspace))
    annotator, settings = next(iter(read_manifest(dataset).annotator_hashes.items()))
    record = "synthetic/val/identity002-sequence0002/000001-cam0"
    result = run_command("show", record, "-w", workspace, "--out", tmp_path / "record.png", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["state"] == "annotated" and facts["licence"].startswith("Apache-2.0")
    image = Path(facts["picture"].partition(",")[0])
    assert image.is_file()
    hands = facts["right hand"], facts["left hand"]
    assert any("keypoints of the dataset's label; its side is the dataset's" in hand for hand in hands)
    assert facts["mask"].startswith("GrabCut")
    assert annotator in facts["settings"] and "masks grabcut" in facts["settings"]
    assert str(settings["models"]["hand_landmarker"]) in facts["model files (SHA-256)"]  # type: ignore[index]
    assert Path(facts["stored in"]).is_file()
    assert width_of(tmp_path / "record.png") > 2 * 512


def test_a_rejected_record_says_why(
    workspace: Path,
    tmp_path: Path,
    run_command: Callable[..., CommandResult],
    rejected: dict[str, list[dict[str, str]]],
) -> None:
    for stage, rows in rejected.items():
        result = run_command("show", rows[0]["record_id"], "-w", workspace, "--out", tmp_path / "r.png")
        assert result.code == 0 and f"rejected by {stage}" in result.out and rows[0]["reason"] in result.out, result.err


def test_a_sample_whose_image_is_away_is_drawn_from_the_crop_alone(
    workspace: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    copy = tmp_path / "w"
    shutil.copytree(workspace, copy)
    manifest = copy / "dataset" / "dataset.json"
    manifest.write_text(manifest.read_text().replace(str(workspace.parent / "synthetic"), "/nowhere"))
    record = "synthetic/val/identity002-sequence0002/000001-cam0"
    result = run_command("show", record, "-w", copy, "--out", tmp_path / "r.png")
    assert result.code == 0 and "cannot be opened" in result.out, result.err
    assert width_of(tmp_path / "r.png") < 2 * 512


def test_a_copy_without_its_plan_still_says_where_a_sample_is_from(
    workspace: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    for name in ("data", "units", "dataset.json"):
        place = workspace / "dataset" / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / "w" / "dataset" / name)
    record = "synthetic/val/identity002-sequence0002/000001-cam0"
    result = run_command("show", record, "-w", tmp_path / "w", "--out", tmp_path / "r.png")
    assert result.code == 0 and "GrabCut" in result.out, result.err


def test_an_id_that_is_nearly_right_is_suggested(workspace: Path, run_command: Callable[..., CommandResult]) -> None:
    result = run_command("show", "synthetic/val/identity002-sequence0002/000001-cam7", "-w", workspace)
    assert result.code == 2
    assert "did you mean synthetic/val/identity002-sequence0002/000001-cam" in result.err


def test_a_record_that_is_not_annotated_and_one_that_is_dropped_say_so(
    synthetic_root: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    ingest(SyntheticAdapter, synthetic_root, Storage(tmp_path / "w"))
    record = "synthetic/val/identity002-sequence0002/000001-cam0"
    assert "not planned" in run_command("show", record, "-w", tmp_path / "w").out
    assert run_command("drop", "--source", "synthetic", "--record", record, "-w", tmp_path / "w").code == 0
    assert "dropped for good" in run_command("show", record, "-w", tmp_path / "w").out


@pytest.mark.parametrize("command", [("rejected",), ("show", "synthetic/train/a/000000-0")])
def test_a_workspace_or_dataset_that_is_not_there_is_a_usage_error(
    command: tuple[str, ...], workspace: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    nothing = run_command(*command, "-w", tmp_path / "nothing")
    assert nothing.code == 2 and "has no annotated dataset" in nothing.err
    other = run_command(*command, "-w", workspace, "--dataset", "datset")
    assert other.code == 2 and "did you mean dataset?" in other.err
