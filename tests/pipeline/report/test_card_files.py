"""The card's files beside a dataset: Hugging Face opens the folder by them, and mlcroissant validates and reads it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import mlcroissant
import pytest
from datasets import load_dataset

from handdata.pipeline.storage import Storage
from handdata.schemas import SAMPLE_SCHEMA
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset


@pytest.fixture
def folder(tmp_path: Path, run_command: Callable[..., CommandResult]) -> Path:
    rows = [sample("a", frame, subject_id="s") for frame in range(3)] + [sample("b", 0, split="val", hand_mask=None)]
    write_dataset(Storage(tmp_path / "w"), rows)
    result = run_command("card", "-w", tmp_path / "w")
    assert result.code == 0 and "croissant.json" in result.out, result.err
    return tmp_path / "w" / "dataset"


@pytest.mark.filterwarnings("ignore")  # of mlcroissant's own packages
def test_mlcroissant_validates_the_metadata_and_reads_every_sample(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="absl"):
        dataset = mlcroissant.Dataset(folder / "croissant.json")
        assert not caplog.messages and dataset.metadata.issues.report() == ""
        records = list(dataset.records("samples"))
    assert {record["samples/sample_id"].decode().split("/", 1)[1] for record in records} == {
        *(f"train/a/00000{frame}-0" for frame in range(3)),
        "val/b/000000-0",
    }
    assert set(records[0]) == {f"samples/{name}" for name in SAMPLE_SCHEMA.names}
    assert all(record["samples/image"].size == (48, 48) for record in records)
    assert len(records[0]["samples/keypoints_2d"]) == 84


def test_the_metadata_says_licence_makers_and_faults(folder: Path) -> None:
    document = json.loads((folder / "croissant.json").read_text())
    assert document["license"] == ["https://spdx.org/licenses/Apache-2.0.html"]
    assert document["rai:dataLimitations"][0].startswith("synthetic: Splits are by identity")
    assert "/tmp" not in json.dumps(document)  # nobody's folders


def test_hugging_face_opens_the_folder_with_its_splits(folder: Path, tmp_path: Path) -> None:
    hands = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in hands.items()} == {"train": 3, "validation": 1}
    assert hands["train"][0]["image"].size == (48, 48)


def test_a_card_is_written_on_an_object_store(s3_bucket: str, run_command: Callable[..., CommandResult]) -> None:
    storage = Storage(f"{s3_bucket}/carded")
    write_dataset(storage, [sample("a", 0)])
    assert run_command("card", "-w", storage.url()).code == 0
    assert storage.read_bytes("dataset/README.md").startswith(b"---\nlicense: apache-2.0\n")
    assert storage.exists("dataset/LICENSE.md") and storage.exists("dataset/croissant.json")


def test_the_licences_lie_beside_it(folder: Path) -> None:
    assert "## synthetic: " in (folder / "LICENSE.md").read_text()


def test_a_missing_dataset_and_a_stray_option_are_usage_errors(
    tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    assert run_command("card", "-w", tmp_path / "none").code == 2
    assert run_command("card", "-w", tmp_path, "--evaluation", "x.json").code == 2
