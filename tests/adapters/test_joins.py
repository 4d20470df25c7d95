"""Rules over label files that belong together, for every source that has them: validity, splits, missing partners."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.adapters.registry import registered_adapters
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, Rejection, RejectReason
from tests.fixtures.arctic import write_arctic
from tests.fixtures.ego4d import write_ego4d
from tests.fixtures.foundhand10m import write_foundhand10m
from tests.fixtures.interhand26m import write_interhand26m
from tests.fixtures.rhd import write_rhd


def ingest(source: str, root: Path) -> list[HandRecord | Rejection]:
    adapter = registered_adapters()[source]()
    found = find_root(type(adapter), root)
    return [row for partition in adapter.partitions(found) for row in adapter.records(found, partition)]


def reasons(rows: list[HandRecord | Rejection]) -> dict[str, RejectReason]:
    return {row.record_id: row.reason for row in rows if isinstance(row, Rejection)}


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# ---------------------------------------------------------------------------------------------------- validity


def image_flags_of_interhand(root: Path, value: Any) -> None:
    path = root / "annotations/val/InterHand2.6M_val_data.json"
    change_json(path, lambda data: data["annotations"][0].update(joint_valid=[value] * 42))


def moment_flags_of_interhand(root: Path, value: Any) -> None:
    path = root / "annotations/test/InterHand2.6M_test_joint_3d.json"
    change_json(path, lambda data: data["1"]["2017"].update(joint_valid=[value] * 42))


def flags_of_rhd(root: Path, value: Any) -> None:
    path = root / "training/anno_training.pickle"
    samples = pickle.loads(path.read_bytes())
    samples[0]["uv_vis"][5, 2] = value
    path.write_bytes(pickle.dumps(samples))


def flags_of_foundhand(root: Path, value: Any) -> None:
    path = root / "InterHand/processed/test/0032_pinkytip/7-400002.npz"
    with np.load(path) as label:
        arrays = {**label, "joint_valid": np.full(42, value)}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def flags_of_arctic(root: Path, value: Any) -> None:
    (path,) = root.rglob("p1_val.npy")
    document = np.load(path, allow_pickle=True).item()
    labels = document["data_dict"]["s05/box_use_01"]["cam_coord"]
    labels["right_valid"] = np.full(labels["right_valid"].shape, value, dtype=np.float64)
    np.save(path, document)


FLAGS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path, Any], None], int]] = {
    "interhand26m data": ("interhand26m", write_interhand26m, image_flags_of_interhand, 1),
    "interhand26m joint_3d": ("interhand26m", write_interhand26m, moment_flags_of_interhand, 3),
    "rhd": ("rhd", write_rhd, flags_of_rhd, 1),
    "foundhand10m": ("foundhand10m", write_foundhand10m, flags_of_foundhand, 1),
    "arctic": ("arctic", write_arctic, flags_of_arctic, 4),
}


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
@pytest.mark.parametrize(("source", "write", "spoil", "count"), FLAGS.values(), ids=FLAGS)
def test_validity_that_is_no_boolean_is_label_corrupt(
    tmp_path: Path,
    source: str,
    write: Callable[[Path], object],
    spoil: Callable[[Path, Any], None],
    count: int,
    value: float,
) -> None:
    write(tmp_path)
    before = reasons(ingest(source, tmp_path))
    spoil(tmp_path, value)
    new = {name: reason for name, reason in reasons(ingest(source, tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT] * count


# ---------------------------------------------------------------------------------------------------- splits


SPLIT_FILES: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "rhd": ("rhd", write_rhd, "evaluation/anno_evaluation.pickle", "test"),
    "interhand26m": ("interhand26m", write_interhand26m, "annotations/val/InterHand2.6M_val_data.json", "val"),
    "ego4d": ("ego4d", write_ego4d, "v1/annotations/fho_hands_train.json", "train"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize(("source", "write", "relative", "split"), SPLIT_FILES.values(), ids=SPLIT_FILES)
def test_a_split_whose_label_file_is_no_file_is_label_missing(
    tmp_path: Path, source: str, write: Callable[[Path], object], relative: str, split: str, kind: str
) -> None:
    write(tmp_path)
    (tmp_path / relative).unlink()
    if kind == "folder":
        (tmp_path / relative).mkdir()
    else:
        os.mkfifo(tmp_path / relative)
    rows = ingest(source, tmp_path)
    named = [row for row in rows if isinstance(row, Rejection) and Path(relative).name in row.detail]
    assert [row.reason for row in named] == [RejectReason.LABEL_MISSING]
    assert named[0].record_id.startswith(f"{source}/{split}/")
    assert any(isinstance(row, HandRecord) for row in rows)


def test_a_split_of_rhd_that_has_images_and_no_labels_is_label_missing(tmp_path: Path) -> None:
    write_rhd(tmp_path)
    (tmp_path / "evaluation/anno_evaluation.pickle").unlink()
    new = reasons(ingest("rhd", tmp_path))
    assert new["rhd/test/evaluation/anno_evaluation.pickle"] is RejectReason.LABEL_MISSING


@pytest.mark.parametrize("kind", ["camera", "joint_3d"])
def test_a_split_of_interhand_with_other_label_files_alone_is_label_missing(tmp_path: Path, kind: str) -> None:
    write_interhand26m(tmp_path)
    for other in {"data", "camera", "joint_3d"} - {kind}:
        (tmp_path / f"annotations/val/InterHand2.6M_val_{other}.json").unlink()
    rows = [row for row in ingest("interhand26m", tmp_path) if row.record_id.startswith("interhand26m/val/")]
    assert [row.reason for row in rows if isinstance(row, Rejection)] == [RejectReason.LABEL_MISSING]


def test_a_split_that_was_not_downloaded_is_nothing(tmp_path: Path) -> None:
    write_rhd(tmp_path)
    shutil.rmtree(tmp_path / "evaluation")
    assert {row.record_id.split("/")[1] for row in ingest("rhd", tmp_path)} == {"train"}


# ---------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("value", [7, "text", [1], True])
def test_a_key_frame_of_ego4d_that_is_no_object_is_label_corrupt(tmp_path: Path, value: Any) -> None:
    write_ego4d(tmp_path)
    before = reasons(ingest("ego4d", tmp_path))
    path = tmp_path / "v1/annotations/fho_hands_train.json"
    change_json(path, lambda data: data["clips"][0]["frames"][0].update(pnr_frame=value))
    new = {name: reason for name, reason in reasons(ingest("ego4d", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT]


@pytest.mark.parametrize("change", [{"camera": ["400012"]}, {"capture": None}, {"seq_name": {"a": 1}}])
def test_a_name_of_interhand_that_is_no_text_is_label_corrupt(tmp_path: Path, change: dict[str, Any]) -> None:
    write_interhand26m(tmp_path)
    before = reasons(ingest("interhand26m", tmp_path))
    path = tmp_path / "annotations/val/InterHand2.6M_val_data.json"
    change_json(path, lambda data: data["images"][0].update(change))
    new = {name: reason for name, reason in reasons(ingest("interhand26m", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT]
