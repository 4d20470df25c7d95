"""A damaged file of a workspace is one line that names it and says what to do, whatever kind of file it is."""

import json

import pytest

from handdata.pipeline.records.stored import IngestSummary
from handdata.pipeline.records.tombstones import Tombstone
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.damage import advice, parse_curves, parse_document
from handdata.pipeline.storage.layout import (
    ingest_summary_file,
    latents_settings_file,
    metrics_file,
    records_folder,
    rejected_folder,
    tombstones_folder,
)
from handdata.schemas import DatasetManifest, StorageError, UnitMarker

DATASET = Dataset(Storage("/w"))
OTHER = Dataset(Storage("/w"), "second")
SHARD = DATASET.path(DATASET.shard_in_dataset("rhd", "train", "u-0.parquet"))


@pytest.mark.parametrize(
    ("name", "advised"),
    [
        (ingest_summary_file("rhd"), "`handdata ingest --source rhd` again"),
        (f"{records_folder('rhd')}/part.parquet", "`handdata ingest --source rhd` again"),
        (f"{rejected_folder('ingest', 'rhd')}/part.parquet", "`handdata ingest --source rhd` again"),
        (f"{tombstones_folder('rhd')}/a.json", "repeat the `handdata drop`"),
        (DATASET.lease_file, "the same command again"),
        (DATASET.generation_file("rhd", 0), "dataset/plan/source=rhd and dataset/units/source=rhd"),
        (OTHER.generation_records_file("rhd", 0, "a"), "second/units/source=rhd: `handdata annotate --dataset second`"),
        (DATASET.marker_file("rhd", "u"), "remove it: `handdata annotate` does its unit again"),
        (OTHER.manifest_file, "remove it: `handdata annotate --dataset second` with the options of before"),
        (SHARD, "remove it: `handdata annotate --repair` does its unit again"),
        (f"{DATASET.rejected_folder('rhd')}/u.parquet", "`handdata annotate --repair`"),
        (
            "generated/data/source=generated/split=train/u.parquet",
            "`handdata sample domain-transfer --dataset generated --repair`",
        ),
        (f"{OTHER.rejected_folder('rhd')}/u.parquet", "`handdata annotate --dataset second --repair`"),
        (latents_settings_file(f"{DATASET.latents_folder}/vae"), "remove its folder: `handdata encode`"),
        (f"{DATASET.latents_folder}/vae/source=rhd/split=train/u.parquet", "remove it: `handdata encode`"),
        (metrics_file("first"), "remove the damaged lines"),
    ],
)
def test_each_kind_of_file_has_its_advice(name: str, advised: str) -> None:
    assert advised in advice(name)


def test_a_file_that_is_gone_need_not_be_removed() -> None:
    assert advice(SHARD, gone=True) == "`handdata annotate --repair` does its unit again"
    assert advice("elsewhere.json") == ""


WHOLE = {
    UnitMarker: UnitMarker(
        unit_id="u", source="rhd", split="train", files=(), rejected_files=(), records=0, samples=0, annotator_hash="h"
    ).model_dump_json(),
    Tombstone: Tombstone(source="rhd", kind="subject", values=("s",), when="2026").model_dump_json(),
    IngestSummary: json.dumps(
        {
            "source": "rhd", "root": "/", "partitions": 1, "records": 1, "splits": {}, "rejected": {}, "license": "x",
            "files": ["a"], "rejected_files": [],
        }
    ),
    DatasetManifest: DatasetManifest(
        handdata_version="1", image_size=64, annotator_hashes={}, sources={}, licenses={}, complete=True
    ).model_dump_json(),
}  # fmt: skip


@pytest.mark.parametrize("form", WHOLE)
def test_what_is_no_such_document_is_one_line_that_names_the_file(form: type) -> None:
    whole = WHOLE[form].encode()
    assert isinstance(parse_document(whole, form, "/w/a.json", "a.json"), form)
    others = [other.encode() for kind, other in WHOLE.items() if kind is not form]
    for data in (b"", b" \n", whole[: len(whole) // 2], whole[:-1], b"\xff\xfe" + whole, b"[]", b"3", b"null", *others):
        with pytest.raises(StorageError, match=r"^/w/a\.json is damaged: \S") as caught:
            parse_document(data, form, "/w/a.json", "a.json")
        assert "\n" not in str(caught.value)


def test_curves_that_are_damaged_name_the_line() -> None:
    whole = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n'
    assert [row["step"] for row in parse_curves(whole, "/w/m", "m")] == [1, 2]
    assert parse_curves(b"", "/w/m", "m") == []  # a run that was lost before its first line
    for line in (b'{"step"', b"[1]", b"7", b"\xff", b'{"loss": 1}', b'{"step": 1, "loss": "x"}'):
        with pytest.raises(StorageError, match="/w/m is damaged: line 3"):
            parse_curves(whole + line + b"\n", "/w/m", "m")
