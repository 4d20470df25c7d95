"""Parts of datasets that are there twice, or under names that no source gives: an error, or a line that names them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handdata.adapters.base import warnings_of
from handdata.adapters.reading.listing import refuse_copies
from handdata.adapters.registry import registered_adapters
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, Rejection, RejectReason
from tests.fixtures.sources import ADAPTER_FIXTURES

FIXTURES = {fixture.name: fixture for fixture in ADAPTER_FIXTURES}


def only(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def rename(root: Path, pattern: str, name: str) -> None:
    path = only(root, pattern)
    path.rename(path.with_name(name))


def copy(root: Path, pattern: str, name: str) -> None:
    path = only(root, pattern)
    shutil.copytree(path, path.parent / name.format(path.name))


NAMES_OF_COPIES = [
    *("{} copy", "{} copy 2", "{} 2", "{} (1)", "{}(1)", "{} - Copy", "{} - Copy (3)", "{} (copy)"),
    *("{} (another copy)", "Copy of {}", "{}_copy", "{}-copy", "{}.bak", "{}.old", "{}~"),
]


@pytest.mark.parametrize("name", NAMES_OF_COPIES)
def test_folders_named_as_copies_are_refused_beside_the_first_alone(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "s01-box_grab_01", tmp_path / name.format("s01-box_grab_01")
    with pytest.raises(LayoutError, match="is named as a copy of 's01-box_grab_01' beside it"):
        refuse_copies([second, first])
    refuse_copies([second])
    refuse_copies([first, tmp_path / "elsewhere" / second.name])


def test_names_that_only_begin_alike_are_no_copies(tmp_path: Path) -> None:
    names = ["photo", "photocopy", "T1", "T12", "processed", "processed_seq", "box_01", "box_02", "box_01_retake"]
    refuse_copies([tmp_path / name for name in names])


TWICE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("hoi4d", lambda root: copy(root, "HOI4D_release/ZY*/H*/C*/N*/S*/s*/T*", "{} (1)"), "is not named as a clip is"),
    ("hoi4d", lambda root: copy(root, "HOI4D_release/ZY*/H*/C*", "{} copy"), "is not named as a clip is"),
    (
        "reinterhand",
        lambda root: copy(root, "m--*", "{} copy"),
        "several folders of the capture m--20221007--1215--HIR112",
    ),
    ("foundhand10m", lambda root: copy(root, "*/processed/test/*", "{} - Copy"), "is named as a copy of"),
    ("foundhand10m", lambda root: copy(root, "*/processed", "{} (1)"), "is named as a copy of 'processed'"),
    ("foundhand10m", lambda root: copy(root, "*", "Copy of {}"), "is named as a copy of"),
    ("interhand26m", lambda root: copy(root, "images", "InterHand2.6M_30fps/images"), "several folders of images"),
    ("dexycb", lambda root: rename(root, "*-subject-03", "20200820_subject_03"), "holds sequences and is not named"),
    ("dexycb", lambda root: rename(root, "*-subject-03", "subject-03"), "holds sequences and is not named"),
]


@pytest.mark.parametrize(("source", "change", "message"), TWICE)
def test_a_part_that_is_there_twice_or_under_another_name_is_an_error(
    tmp_path: Path, source: str, change: Callable[[Path], Any], message: str
) -> None:
    root = tmp_path / "data"
    FIXTURES[source].write(root)
    change(root)
    with pytest.raises(LayoutError, match=message):
        list(registered_adapters()[source]().partitions(root))


def empty_test_list(root: Path) -> None:
    only(root, "**/testset.txt").write_text("")


UNREAD: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("hagrid-v2", lambda root: rename(root, "hagrid_annotations/train", "Train"), ["not read: hagrid_annotations/Tr"]),
    ("interhand26m", lambda root: shutil.rmtree(root / "annotations/val"), ["are not read: images/val"]),
    (
        "interhand26m",
        lambda root: rename(root, "annotations/val", "Val"),
        ["are not read: annotations/Val, images/val"],
    ),
    (
        "assemblyhands",
        lambda root: shutil.rmtree(root / "annotations/val"),
        ["no labels of these images, which are not read: val", "annotations has no val: the videos"],
    ),
    (
        "assemblyhands",
        lambda root: only(root, "annotations/train/*joint_3d*").unlink(),
        ["train has no joint_3d: its images are read without joints, its videos are not read"],
    ),
    ("foundhand10m", lambda root: rename(root, "*/processed_seq/val", "validation"), ["processed_seq/validation"]),
    ("hoi4d", lambda root: rename(root, "**/testset.txt", "testset.txt.txt"), ["there is no testset.txt"]),
    ("hoi4d", empty_test_list, ["testset.txt names no clip that is there"]),
]


@pytest.mark.parametrize(("fixture", "change", "messages"), UNREAD)
def test_a_part_that_is_not_read_is_named(
    tmp_path: Path, fixture: str, change: Callable[[Path], Any], messages: list[str]
) -> None:
    root = tmp_path / "data"
    FIXTURES[fixture].write(root)
    adapter = registered_adapters()[FIXTURES[fixture].source]()
    assert not warnings_of(adapter, root)
    change(root)
    warnings = warnings_of(adapter, root)
    assert len(warnings) == len(messages)
    assert all(message in warning for message, warning in zip(messages, warnings, strict=True))


def read(source: str, root: Path) -> list[HandRecord | Rejection]:
    adapter = registered_adapters()[source]()
    root = find_root(registered_adapters()[source], root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def test_a_test_list_in_the_folder_of_the_repository_is_found(tmp_path: Path) -> None:
    FIXTURES["hoi4d"].write(tmp_path)
    before = [row.record_id for row in read("hoi4d", tmp_path)]
    (tmp_path / "code/HOI4D-Instructions").mkdir(parents=True)
    only(tmp_path, "**/testset.txt").rename(tmp_path / "code/HOI4D-Instructions/testset.txt")
    assert [row.record_id for row in read("hoi4d", tmp_path)] == before
    assert any(record_id.startswith("hoi4d/test/") for record_id in before)


def test_a_sequence_of_foundhand_without_files_is_label_missing(tmp_path: Path) -> None:
    FIXTURES["foundhand10m"].write(tmp_path)
    sequence = only(tmp_path, "*/processed/test/*")
    (sequence.parent / "deeper").mkdir()
    sequence.rename(sequence.parent / "deeper" / sequence.name)
    rows = [row for row in read("foundhand10m", tmp_path) if row.record_id.endswith("/deeper")]
    assert [(type(row), row.reason) for row in rows if isinstance(row, Rejection)] == [
        (Rejection, RejectReason.LABEL_MISSING)
    ]


@pytest.mark.parametrize("subject", [True, ["a"], 1.5])
def test_a_subject_of_interhand_that_is_no_name_is_label_corrupt(tmp_path: Path, subject: Any) -> None:
    FIXTURES["interhand26m"].write(tmp_path)
    path = tmp_path / "annotations/train/InterHand2.6M_train_data.json"
    labels = json.loads(path.read_text())
    labels["images"][0]["subject"] = subject
    path.write_text(json.dumps(labels))
    row = next(row for row in read("interhand26m", tmp_path) if "/train/" in row.record_id)
    assert isinstance(row, Rejection) and row.reason is RejectReason.LABEL_CORRUPT


def test_images_of_interhand_that_share_an_id_do_not_share_an_annotation(tmp_path: Path) -> None:
    FIXTURES["interhand26m"].write(tmp_path)
    path = tmp_path / "annotations/train/InterHand2.6M_train_data.json"
    labels = json.loads(path.read_text())
    labels["images"][2]["id"] = labels["images"][0]["id"]
    path.write_text(json.dumps(labels))
    rows = [row for row in read("interhand26m", tmp_path) if "/train/" in row.record_id]
    repeated = [row for row in rows if isinstance(row, Rejection) and "more than once" in row.detail]
    assert [(row.reason, row.image_uri.endswith(labels["images"][2]["file_name"])) for row in repeated] == [
        (RejectReason.LABEL_CORRUPT, True)
    ]


@pytest.mark.parametrize("segment", [None, 0, "", False, {}])
def test_a_ring_of_visor_that_is_no_list_is_label_corrupt(tmp_path: Path, segment: Any) -> None:
    FIXTURES["visor"].write(tmp_path)
    path = only(tmp_path, "*/annotations/val/*.json")
    labels = json.loads(path.read_text())
    entities = [entity for element in labels["video_annotations"] for entity in element["annotations"]]
    for entity in entities:
        entity["segments"] = [segment]
    path.write_text(json.dumps(labels))
    rows = [row for row in read("visor", tmp_path) if "/val/" in row.record_id]
    assert [row.reason for row in rows if isinstance(row, Rejection)] == [RejectReason.LABEL_CORRUPT]
    assert not any(isinstance(row, HandRecord) for row in rows)
