"""Format version 2: rows that say where they are from, workspaces that move, and datasets of version 1 beside it."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

import handdata
from handdata._version import __version__
from handdata.adapters.hagrid import HagridAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import list_shards, read_index, read_manifest, read_markers
from handdata.pipeline.shards.settle import drop, flag
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import FORMAT_VERSION, SAMPLE_SCHEMA, UsageError
from handdata.schemas.sample import VERSION_2_COLUMNS
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.presets import DataConfig
from tests.fixtures.hagrid import write_hagrid_v1
from tests.fixtures.version1 import make_version_1

SETTINGS = AnnotateSettings(masks="none", keypoints="dataset", image_size=64)


def rows_of(workspace: Path, *columns: str) -> pl.DataFrame:
    table = pq.read_table(workspace / "dataset/data", columns=list(columns) or None, partitioning=None)
    return pl.DataFrame(table)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder with three photographs of HaGRID and an annotated workspace of them."""
    folder = tmp_path_factory.mktemp("format")
    write_hagrid_v1(folder / "sources/hagrid")
    ingest(HagridAdapter, folder / "sources", Storage(folder / "w"))
    annotate(AnnotateRequest(Dataset(Storage(folder / "w"))), SETTINGS)
    return folder


def test_rows_and_manifest_say_where_they_are_from(photographs: Path) -> None:
    workspace, root = photographs / "w", photographs / "sources/hagrid"
    rows = rows_of(workspace)
    assert rows["license_id"].unique().to_list() == ["LicenseRef-HaGRID"]
    assert rows["source_release"].unique().to_list() == ["v1"]
    assert rows["handdata_version"].unique().to_list() == [__version__]
    assert set(rows["attributes"].map_elements(lambda text: json.loads(text)["gesture"], pl.String)) == {"call", "fist"}
    assert all((root / uri).is_file() for uri in rows["image_uri"])
    manifest = json.loads((workspace / "dataset/dataset.json").read_text())
    assert (manifest["format_version"], manifest["roots"]) == (FORMAT_VERSION, {"hagrid": str(root.resolve())})
    assert manifest["license_ids"] == {"hagrid": "LicenseRef-HaGRID"}
    summary = json.loads((workspace / "records/source=hagrid/_ingest.json").read_text())
    assert (summary["root"], summary["license_id"]) == (str(root.resolve()), "LicenseRef-HaGRID")


def test_samples_are_chosen_by_what_their_source_says(photographs: Path) -> None:
    calls = handdata.open_dataset(photographs / "w", where="attributes.gesture = 'call'")
    assert len(calls) == 2 and {sample.attributes["gesture"] for sample in calls} == {"call"}
    assert calls[0].license_id == "LicenseRef-HaGRID"
    assert len(handdata.open_dataset(photographs / "w", where="attributes.none IS NULL AND width > 0")) == 3
    assert len(handdata.open_dataset(photographs / "w", where="'attributes.gesture' = 'call'")) == 0  # a text
    texts = calls.to_polars(["attributes"])["attributes"].to_list()
    assert sorted(map(json.loads, texts), key=len) == sorted((sample.attributes for sample in calls), key=len)


@pytest.mark.parametrize("name", ["50 % #1", "a::b/zip:/é", "link"])
def test_a_workspace_and_its_dataset_move(photographs: Path, tmp_path: Path, run_command, name: str) -> None:
    shutil.copytree(photographs / "w/records", tmp_path / "w/records")
    moved = tmp_path / name / "hagrid"
    shutil.copytree(photographs / "sources/hagrid", tmp_path / "there" if name == "link" else moved)
    if name == "link":
        moved = tmp_path / "link"
        moved.symlink_to(tmp_path / "there")
    away = photographs / "sources.away"
    (photographs / "sources").rename(away)
    line = ("annotate", "-w", tmp_path / "w", "--masks", "none", "--keypoints", "dataset", "--image-size", 64)
    try:
        refused = run_command(*line)
        assert refused.code == 2 and "--root hagrid=DIR" in refused.err and "are not in" in refused.err
        assert not (tmp_path / "w/dataset/units").exists()
        given = moved.parent if "::" in name else moved  # the folder itself, or the one that holds it
        made = run_command(*line, "--root", f"hagrid={given}", "--json")
    finally:
        away.rename(photographs / "sources")
    assert (made.code, json.loads(made.out)["samples"]) == (0, 3), made.err
    rows, columns = rows_of(tmp_path / "w"), ["sample_id", "image_uri", "keypoints_2d", "image", "attributes"]
    before = rows_of(photographs / "w")
    assert rows.select(columns).sort("sample_id").equals(before.select(columns).sort("sample_id"))
    assert read_manifest(Dataset(Storage(tmp_path / "w"))).roots == {"hagrid": str(moved)}


@pytest.mark.parametrize(
    ("roots", "problem"),
    [
        (["hagrid"], "names no source and folder"),
        (["=x"], "names no source and folder"),
        (["rhd=."], "the run has no source rhd"),
        (["hagrid=/no/where"], "there is no such folder"),
        (["hagrid=s3://bucket/hagrid"], "there is no such folder"),
        (["hagrid=.", "hagrid=."], "twice"),
        (["hagrid=/usr"], "are not in /usr"),
    ],
)
def test_a_wrong_root_is_an_error_in_one_line(photographs: Path, run_command, roots: list[str], problem: str) -> None:
    given = [word for root in roots for word in ("--root", root)]
    line = ("annotate", "-w", photographs / "w", "--masks", "none", "--keypoints", "dataset", "--image-size", 64)
    result = run_command(*line, *given)
    assert result.code == 2 and problem in result.err.replace("\n", " ")


def test_another_folder_under_equal_names_is_not_taken_for_the_planned_one(photographs: Path, tmp_path: Path) -> None:
    storage = Storage(shutil.copytree(photographs / "w", tmp_path / "w"))
    other = shutil.copytree(photographs / "sources/hagrid", tmp_path / "other")
    ingest(HagridAdapter, other, storage)
    request = AnnotateRequest(Dataset(storage))
    with pytest.raises(UsageError, match=r"holds hagrid from .*sources/hagrid, its records now are of .*other"):
        annotate(request, SETTINGS)
    moved = AnnotateRequest(Dataset(storage), roots={"hagrid": other})
    assert annotate(moved, SETTINGS).manifest.roots == {"hagrid": str(other)}
    over = annotate(AnnotateRequest(Dataset(storage), overwrite=True), SETTINGS)
    assert (over.records, over.manifest.roots) == (4, {"hagrid": str(other)})
    assert annotate(request, SETTINGS).records == 0


def test_a_dataset_of_version_1_is_read_changed_and_annotated_again(
    annotated_synthetic: Path, synthetic_root: Path, tmp_path: Path, run_command
) -> None:
    workspace = Path(shutil.copytree(annotated_synthetic, tmp_path / "w"))
    storage, dataset = Storage(workspace), Dataset(Storage(workspace))
    make_version_1(storage)
    assert {marker.format_version for marker in read_markers(dataset)} == {1}
    samples = handdata.open_dataset(workspace)
    assert samples.to_polars(sorted(VERSION_2_COLUMNS)).null_count().row(0) == (48, 48, 48, 48)
    assert samples.to_arrow().num_rows == 48 and samples.to_huggingface().column_names == SAMPLE_SCHEMA.names
    assert (samples[0].attributes, samples[0].license_id) == ({}, "Apache-2.0")
    assert Path(samples[0].row["image_uri"]).is_file()  # a whole path
    assert len(handdata.open_dataset(workspace, where="license_id = 'Apache-2.0'")) == 48
    pairs = PairDataset(dataset, image_size=32, split="train", data=DataConfig(licences=("apache 2.0",)))
    assert pairs.licences == ["Apache-2.0"]

    line = ("annotate", "-w", workspace, "--masks", "dataset", "--image-size", 64)
    refused = run_command(*line)
    assert refused.code == 2 and "format version 1" in refused.err and "--overwrite" in refused.err
    assert run_command("annotate", "--plan", *line[1:]).code == 2
    assert flag(dataset, {"min_hand_px": 10_000}).settled.flags_after["small_hand"] == 48
    subject = samples.to_polars(["subject_id"])["subject_id"].drop_nulls()[0]
    assert drop(storage, "subject", [subject], "synthetic").datasets["dataset"].samples
    left = pl.read_parquet(workspace / "dataset/data/**/*.parquet")  # which fails where columns differ
    assert not VERSION_2_COLUMNS & {*left.columns} and read_manifest(dataset).format_version == 1
    assert read_index(storage, list_shards(dataset), ["license_id"])["license_id"].null_count() == left.height
    for command in (("status",), ("report", "--out", tmp_path / "page")):
        assert run_command(*command, "-w", workspace).code == 0

    again = run_command(*line, "--overwrite", "--json")
    assert json.loads(again.out)["samples"] == left.height, again.err
    rows = rows_of(workspace)
    assert rows["handdata_version"].unique().to_list() == [__version__]
    assert all((synthetic_root / uri).is_file() and not uri.startswith("/") for uri in rows["image_uri"])
    assert (read_manifest(dataset).format_version, run_command(*line).code) == (FORMAT_VERSION, 0)


def test_shards_of_both_versions_in_one_dataset_are_read_together(
    annotated_synthetic: Path, photographs: Path, tmp_path: Path
) -> None:
    """An ``annotate --overwrite`` that was interrupted leaves such a dataset."""
    workspace = Path(shutil.copytree(annotated_synthetic, tmp_path / "w"))
    make_version_1(Storage(workspace))
    for folder in ("dataset/data", "dataset/units", "dataset/plan", "records"):
        shutil.copytree(photographs / "w" / folder / "source=hagrid", workspace / folder / "source=hagrid")
    samples = handdata.open_dataset(workspace)
    assert len(samples) == 51 and {sample.license_id for sample in samples} == {"Apache-2.0", "LicenseRef-HaGRID"}
    assert samples.to_arrow(SAMPLE_SCHEMA.names).num_rows == samples.to_polars()["license_id"].null_count() + 3
    assert len(handdata.open_dataset(workspace, where="attributes.gesture = 'call' OR source = 'synthetic'")) > 48
    with pytest.raises(UsageError, match="holds synthetic in format version 1"):
        annotate(AnnotateRequest(Dataset(Storage(workspace))), SETTINGS)
    for folder in ("units", "data"):  # as a run of the first version that was killed at once
        shutil.rmtree(workspace / "dataset" / folder)
    with pytest.raises(UsageError, match="holds synthetic in format version 1"):
        annotate(AnnotateRequest(Dataset(Storage(workspace))), SETTINGS)


def test_a_manifest_of_a_newer_format_is_an_error_for_every_command(
    photographs: Path, tmp_path: Path, run_command
) -> None:
    workspace = Path(shutil.copytree(photographs / "w", tmp_path / "w"))
    manifest = workspace / "dataset/dataset.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 9, "later": 1}))
    before = manifest.read_bytes()
    for command in (("annotate",), ("status",), ("flag", "--min-hand-px", 9), ("report", "--out", tmp_path / "page")):
        result = run_command(*command, "-w", workspace)
        assert result.code == 2 and re.search(r"has format 9, this\s+handdata\s+reads 2", result.err), command
    assert manifest.read_bytes() == before


def test_licences_that_match_nothing_are_listed(annotated_synthetic: Path, tmp_path: Path, run_command) -> None:
    workspace = Path(shutil.copytree(annotated_synthetic, tmp_path / "w"))
    train = ("train", "-w", workspace, "--steps", 1, "--run", "none")
    for asked in (("--licence", "CC-BY-4.0"), ("--licence", "MIT,CC-BY-4.0"), ("--commercial", "--licence", "MIT")):
        result = run_command(*train, *asked)
        assert result.code == 2 and "there are Apache-2.0 (synthetic)" in result.err.replace("\n", " ")
    manifest = workspace / "dataset/dataset.json"
    manifest.write_text(manifest.read_text().replace('"synthetic": "Apache-2.0"', '"synthetic": "CC-BY-NC-4.0"'))
    result = run_command(*train, "--commercial")
    assert result.code == 2 and "there are CC-BY-NC-4.0 (synthetic)" in result.err.replace("\n", " ")
