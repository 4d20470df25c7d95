"""``annotate --plan``: what a run would do, from a probe that leaves no trace."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.annotation.annotator import Annotator
from handdata.pipeline.annotation.factory import LocalSam, ModelFiles
from handdata.pipeline.annotation.meter import StageTally
from handdata.pipeline.annotation.sam import SamSegmenter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.estimate import Probe, RunEstimate, SourceEstimate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.plan import preview_source, read_previewed
from handdata.pipeline.storage import Dataset, Storage
from tests.fixtures.sam import build_small_sam

pytestmark = pytest.mark.usefixtures("ray_cluster")


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture
def workspace(synthetic_root: Path, tmp_path: Path) -> Path:
    ingest(SyntheticAdapter, synthetic_root, Storage(tmp_path))
    return tmp_path


def test_a_plan_tells_what_a_run_would_do_and_writes_nothing(workspace: Path, run_command) -> None:
    before = content(workspace)
    options = ("annotate", "-w", workspace, "--masks", "grabcut", "--image-size", 64)
    estimate = json.loads(run_command(*options, "--plan", "--json").out)
    shown = run_command(*options, "--plan").out
    assert content(workspace) == before

    assert estimate["records_to_do"] == 48
    assert estimate["records_done"] == 0
    assert estimate["sources"]["synthetic"]["probed"] >= 16
    assert (estimate["cpu_actors"], estimate["sam_actors"], estimate["gpus"]) == (2, 0, 0)
    stages = estimate["stage_ms_per_record"]
    assert set(stages) == {"decode", "keypoints", "crop", "mask", "encode", "judge", "write"}
    assert estimate["start_seconds"] > 0
    work = estimate["seconds"] - estimate["start_seconds"]
    assert work == pytest.approx(48 * sum(stages.values()) / 1000 / 2)
    assert estimate["settings"]["masks"] == "grabcut"
    assert Path(estimate["models"]["hand_landmarker"]).is_file()
    assert "Plan (nothing was done)" in shown
    assert "kB per record" in shown

    summary = annotate(AnnotateRequest(Dataset(Storage(workspace))), AnnotateSettings(masks="grabcut", image_size=64))
    made = sum(path.stat().st_size for path in (workspace / "dataset" / "data").rglob("*.parquet"))
    assert summary.records == estimate["records_to_do"]
    assert sum(1 for _ in (workspace / "dataset" / "units").rglob("*.json")) == estimate["units_to_do"]
    assert estimate["bytes"] == pytest.approx(made, rel=0.3)


def test_a_plan_of_a_run_under_way_counts_what_is_left(workspace: Path, run_command) -> None:
    annotate(AnnotateRequest(Dataset(Storage(workspace)), limit=24), AnnotateSettings(masks="none", image_size=64))
    marker = next((workspace / "dataset" / "units").rglob("*.json"))
    unfinished = json.loads(marker.read_bytes())["records"]
    marker.unlink()
    options = ("annotate", "-w", workspace, "--masks", "none", "--image-size", 64, "--plan", "--json")
    estimate = json.loads(run_command(*options).out)
    assert estimate["records_to_do"] == 24 + unfinished
    assert estimate["records_done"] == 24 - unfinished


def test_a_plan_of_a_finished_dataset_has_nothing_to_do(workspace: Path, run_command) -> None:
    annotate(AnnotateRequest(Dataset(Storage(workspace))), AnnotateSettings(masks="none", image_size=64))
    options = ("annotate", "-w", workspace, "--masks", "none", "--image-size", 64, "--plan")
    assert json.loads(run_command(*options, "--json").out)["seconds"] == 0
    assert "Nothing to do" in run_command(*options).out


def test_a_plan_raises_what_the_run_would_raise(workspace: Path, run_command) -> None:
    result = run_command("annotate", "-w", workspace, "--gpus", 8, "--plan")
    assert result.code == 2
    assert "--gpus 8 was asked for, the cluster has 0" in result.err


@pytest.mark.parametrize(("gpus", "seconds"), [(0, 1000 * (0.2 / 4 + 0.5)), (2, 1000 * 0.25), (10, 1000 * 0.05)])
def test_the_slower_of_cpu_and_gpu_decides(gpus: int, seconds: float) -> None:
    probe = Probe(records=10, samples=10, seconds={"decode": 0.5, "encode": 1.5, "mask": 5.0}, masked=10, bytes=400)
    estimate = RunEstimate(
        sources={"rhd": SourceEstimate(1000, 0, 1, probe), "visor": SourceEstimate(0, 5, 0, None)},
        cpu_actors=4,
        sam_actors=max(gpus, 1),
        gpus=gpus,
        models=ModelFiles(None, Path("sam.pth"), "sam_vit_h", grabcut=False, hashes={}),
        settings=AnnotateSettings(),
    )
    assert estimate.seconds == pytest.approx(seconds)
    assert replace(estimate, start_s=7.0).seconds == pytest.approx(seconds + 7)
    assert estimate.bytes == 40_000


class RandomSam(LocalSam):
    """SAM with a small model of random weights."""

    def __init__(self) -> None:
        self.origin = "sam_vit_b"
        self._segmenter = SamSegmenter(build_small_sam(), "cpu")


def test_the_probes_sam_makes_a_mask_for_each_crop(workspace: Path) -> None:
    storage = Storage(workspace)
    _, units = preview_source(Dataset(storage), "synthetic", 64)
    records = read_previewed(storage, "synthetic", units[0].head(5))
    tally = StageTally()
    annotator = Annotator(
        open_mask=SyntheticAdapter().open_mask,
        license="",
        settings=AnnotateSettings(masks="sam", image_size=64),
        annotator_hash="",
        detector=None,
        mask_model=RandomSam(),
        meter=tally,
    )
    samples, _ = annotator.process("probe", records)
    assert [sample.mask_origin for sample in samples] == ["sam_vit_b"] * 5
    assert tally.rows["mask"] == 5
