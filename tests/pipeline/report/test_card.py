"""The dataset card: what it says follows from the dataset, and the Hugging Face Hub can read its YAML."""

import json
from datetime import date
from pathlib import Path

import pytest
import yaml

from handdata.pipeline.report.card import FLAG_MEANINGS, dataset_card, hub_licence, known_faults
from handdata.pipeline.report.card_files import write_card
from handdata.pipeline.report.labels import read_labels
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import SOURCE_CARDS, DatasetManifest, SplitCounts
from handdata.schemas.sample import Flag
from tests.fixtures.samples import sample, write_dataset


def part_of(card: str, heading: str) -> str:
    return card.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    found = ("mediapipe", None)
    rows = [
        sample("a", 0, flags=("small_hand",), source_release="1.1"),
        sample("a", 1, keypoints_origin=found, mask_origin=None, mask_extent=None, mask_score=None, mask_spill=None),
        sample("b", 0, agreement_px=(2.0, None), subject_id="s1"),
        sample("b", 1, agreement_px=(4.0, None), subject_id="s1", split="val"),
    ]
    write_dataset(Storage(tmp_path), rows)
    return Dataset(Storage(tmp_path))


def test_labels_count_who_made_them_and_how_good_they_measure(dataset: Dataset) -> None:
    of = read_labels(dataset)["synthetic"]
    assert (of.samples, of.sequences, of.subjects, of.is_all) == (4, 2, 1, True)
    assert of.keypoints == {"dataset": 3, "mediapipe": 1}
    assert of.masks == {("dataset", "hand"): 3}
    assert of.releases == {"1.1": 1}
    assert (of.with_3d, of.with_camera) == (0, 0)
    assert (of.measures["agreement_px"].count, of.measures["agreement_px"].median) == (2, 3.0)
    assert of.measures["hand_px"].count == 4  # the hand that is not there has none


def test_a_large_source_is_read_in_part_and_says_so(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handdata.pipeline.report.labels._MOST_SHARDS", 1)
    labels = read_labels(dataset)
    assert not labels["synthetic"].is_all and labels["synthetic"].samples < 4
    assert "drawn at random" in dataset_card(read_manifest(dataset), labels)


def test_the_card_says_what_the_dataset_holds(dataset: Dataset) -> None:
    card = dataset_card(read_manifest(dataset), read_labels(dataset), usage="Open it.")
    assert "4 pictures of 48 x 48 px" in card and "Open it." in part_of(card, "How to open it")
    assert "| 1.1 | 3 | 1 | 0 |" in part_of(card, "Sources")
    assert "Apache-2.0" in part_of(card, "Licences, and what they ask")
    made = part_of(card, "How each label was made")
    assert "found by MediaPipe 25%" in made and "none 25%" in made
    assert "| 2.1 | 3 | 3.9 |" in part_of(card, "Measured quality of the labels")
    assert "`small_hand` | 1 | 25%" in part_of(card, "Flags")
    assert "Splits are by identity" in part_of(card, "Known faults")
    assert ".md)" not in card.replace("(LICENSE.md)", "")  # it links to no file that is not beside it


def test_the_yaml_is_what_the_hub_reads(dataset: Dataset) -> None:
    hub = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*"}]}]}
    fields = yaml.safe_load(dataset_card(read_manifest(dataset), hub=hub).split("---\n")[1])
    assert fields["license"] == "apache-2.0" and fields["size_categories"] == ["n<1K"]
    assert fields["configs"] == hub["configs"] and "synthetic" in fields["tags"]


def test_licences_that_the_hub_does_not_know_are_named(dataset: Dataset) -> None:
    manifest = read_manifest(dataset)
    licences = {name: card.license for name, card in SOURCE_CARDS.items()}
    counts = {name: {"train": SplitCounts(samples=1000, records=1000)} for name in licences}
    everything = manifest.model_copy(update={"sources": counts, "licenses": licences, "license_ids": {}})
    fields = yaml.safe_load(dataset_card(everything).split("---\n")[1])
    assert fields["license"] == ["apache-2.0", "cc-by-nc-4.0", "other"]
    assert fields["license_link"] == "LICENSE.md" and fields["size_categories"] == ["10K<n<100K"]
    assert [hub_licence(name) for name in ("CC-BY-SA-4.0", "ODbL-1.0", "GPL-3.0-only", "LicenseRef-RHD")] == [
        *("cc-by-sa-4.0", "odbl", "gpl-3.0", "other"),
    ]


def test_a_card_has_the_licences_that_samples_name_beside_the_manifest_s(tmp_path: Path) -> None:
    later = sample("b", 0, license="CC BY-NC 4.0", license_id="CC-BY-NC-4.0")
    write_dataset(Storage(tmp_path / "w"), [sample("a", 0), later])
    dataset = Dataset(Storage(tmp_path / "w"))
    write_card(dataset, date(2026, 1, 1))
    card = (tmp_path / "w" / "dataset" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == ["apache-2.0", "cc-by-nc-4.0"]
    assert "No commercial use." in (tmp_path / "w" / "dataset" / "LICENSE.md").read_text()
    document = json.loads((tmp_path / "w" / "dataset" / "croissant.json").read_text())
    assert "https://spdx.org/licenses/CC-BY-NC-4.0.html" in document["license"]


def test_a_source_without_a_card_has_what_the_manifest_says(dataset: Dataset) -> None:
    manifest = read_manifest(dataset)
    renamed = manifest.model_copy(
        update={"sources": {"theirs": manifest.sources["synthetic"]}, "licenses": {"theirs": "MIT"}}
    )
    assert "| `theirs` | theirs |" in dataset_card(renamed)


def test_faults_are_whole_sentences() -> None:
    manifest = DatasetManifest(
        handdata_version="1",
        image_size=64,
        annotator_hashes={},
        sources={source: {} for source in SOURCE_CARDS},
        licenses={},
        complete=True,
    )
    faults = known_faults(manifest, SOURCE_CARDS)
    assert set(faults) >= {"arctic", "coco", "synthetic"}
    assert all(fault.endswith(".") for of_source in faults.values() for fault in of_source)


def test_every_flag_has_a_meaning() -> None:
    assert set(FLAG_MEANINGS) == set(Flag.__args__)  # type: ignore[attr-defined]
