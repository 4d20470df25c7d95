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
from handdata.schemas import HandDataError, HandRecord, Rejection, RejectReason
from tests.fixtures.arctic import write_arctic
from tests.fixtures.assemblyhands import write_assemblyhands
from tests.fixtures.dart import write_dart
from tests.fixtures.dexycb import write_dexycb
from tests.fixtures.ego4d import write_ego4d
from tests.fixtures.foundhand10m import write_foundhand10m
from tests.fixtures.hagrid import write_hagrid_v1
from tests.fixtures.hoi4d import write_hoi4d
from tests.fixtures.interhand26m import write_interhand26m
from tests.fixtures.reinterhand import write_reinterhand
from tests.fixtures.rhd import write_rhd
from tests.fixtures.visor import write_visor


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
    "arctic": ("arctic", write_arctic, "arctic_data/data/splits/p1_test.npy", "test"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link", "loop"])
@pytest.mark.parametrize(("source", "write", "relative", "split"), SPLIT_FILES.values(), ids=SPLIT_FILES)
def test_a_split_whose_label_file_is_no_file_is_rejected(
    tmp_path: Path, source: str, write: Callable[[Path], object], relative: str, split: str, kind: str
) -> None:
    write(tmp_path)
    (tmp_path / relative).unlink()
    if kind == "folder":
        (tmp_path / relative).mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / relative)
    else:
        (tmp_path / relative).symlink_to("not-there" if kind == "broken link" else Path(relative).name)
    rows = ingest(source, tmp_path)
    named = [row for row in rows if isinstance(row, Rejection) and Path(relative).name in row.detail]
    assert [row.reason for row in named][:1] in ([RejectReason.LABEL_MISSING], [RejectReason.LABEL_CORRUPT])
    assert len(named) == 1
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


# ---------------------------------------------------------------------------------------------------- links, parts

LINKED_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "arctic": (write_arctic, "arctic_data/data/splits"),
    "dexycb": (write_dexycb, "20200820-subject-03"),
    "dart": (write_dart, "test"),
    "ego4d": (write_ego4d, "HInt_annotation/VAL_ego4d_img"),
    "foundhand10m": (write_foundhand10m, "Arctic"),
    "hagrid": (write_hagrid_v1, "ann_test"),
    "hoi4d": (write_hoi4d, "handpose"),
    "interhand26m": (write_interhand26m, "annotations/val"),
    "reinterhand": (write_reinterhand, "m--20221007--1215--HIR112--pilot--ProjectGoliathScript--Hands--two-hands"),
    "rhd": (write_rhd, "evaluation"),
    "visor": (write_visor, "GroundTruth-SparseAnnotations/rgb_frames/test/P03/P03_05"),
}


@pytest.mark.parametrize("kind", ["broken link", "loop"])
@pytest.mark.parametrize(("source", "write", "relative"), [(s, *rest) for s, rest in LINKED_FOLDERS.items()])
def test_a_folder_that_is_a_link_to_a_disk_that_is_away_ends_the_ingest(
    tmp_path: Path, source: str, write: Callable[[Path], object], relative: str, kind: str
) -> None:
    write(tmp_path / "dataset")
    folder = tmp_path / "dataset" / relative
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    assert any(isinstance(row, HandRecord) for row in ingest(source, tmp_path / "dataset"))
    if kind == "loop":
        folder.unlink()
        folder.symlink_to(folder)
    else:
        (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(HandDataError, match=rf"(?s){folder.name}.*(which is not there|leads back to itself|found )"):
        ingest(source, tmp_path / "dataset")


OPTIONAL_LABELS: dict[str, tuple[Callable[[Path], object], str, RejectReason]] = {
    "hoi4d": (
        write_hoi4d,
        "HOI4D_annotations/ZY20210800004/H4/C20/N03/S71/s01/T2/3Dseg/output.log",
        RejectReason.LABEL_MISSING,
    ),
    "hoi4d of hands": (
        write_hoi4d,
        "handpose/refinehandpose_right/ZY20210800001/H1/C2/N19/S100/s02/T1/0.pickle",
        RejectReason.LABEL_MISSING,
    ),
    "reinterhand": (
        write_reinterhand,
        "m--20221007--1215--HIR112--pilot--ProjectGoliathScript--Hands--two-hands/orig_fits/left/Keypoints/"
        "keypoint-095967.json",
        RejectReason.LABEL_MISSING,
    ),
    "assemblyhands": (
        write_assemblyhands,
        "annotations/train/assemblyhands_train_joint_3d_v1-1.json",
        RejectReason.LABEL_MISSING,
    ),
}


@pytest.mark.parametrize(("name", "write", "relative", "reason"), [(n, *rest) for n, rest in OPTIONAL_LABELS.items()])
def test_a_label_that_may_be_missing_is_not_missing_where_a_link_leads_nowhere(
    tmp_path: Path, name: str, write: Callable[[Path], object], relative: str, reason: RejectReason
) -> None:
    source = name.partition(" ")[0]
    write(tmp_path)
    before = reasons(ingest(source, tmp_path))
    (tmp_path / relative).unlink()
    (tmp_path / relative).symlink_to("not-there")
    new = {name: found for name, found in reasons(ingest(source, tmp_path)).items() if name not in before}
    assert new and set(new.values()) == {reason}


def test_a_part_of_arctic_s_labels_is_label_corrupt(tmp_path: Path) -> None:
    write_arctic(tmp_path)
    before = reasons(ingest("arctic", tmp_path))
    (path,) = tmp_path.rglob("p1_val.npy")
    document = np.load(path, allow_pickle=True).item()
    del document["data_dict"]["s05/box_use_01"]["cam_coord"]
    np.save(path, document)
    new = {name: reason for name, reason in reasons(ingest("arctic", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT] * 4


@pytest.mark.parametrize("name", ["campos", "camrot", "focal", "princpt"])
def test_a_camera_of_foundhand_without_one_of_its_parts_is_label_corrupt(tmp_path: Path, name: str) -> None:
    write_foundhand10m(tmp_path)
    before = reasons(ingest("foundhand10m", tmp_path))
    path = tmp_path / "InterHand/processed/test/0032_pinkytip/7-400002.npz"
    with np.load(path) as label:
        arrays = {key: label[key] for key in label.files if key != name}
    np.savez(path, **arrays)
    new = {name: reason for name, reason in reasons(ingest("foundhand10m", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT]


def test_a_head_camera_of_reinterhand_without_its_lens_is_label_corrupt(tmp_path: Path) -> None:
    write_reinterhand(tmp_path)
    before = reasons(ingest("reinterhand", tmp_path))
    path = min(tmp_path.rglob("cam_params/095967.json"))
    change_json(path, lambda camera: camera.pop("D"))
    new = {name: reason for name, reason in reasons(ingest("reinterhand", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT]


def test_a_folder_in_the_place_of_a_frame_of_visor_is_a_rejected_row(tmp_path: Path) -> None:
    write_visor(tmp_path)
    frame = min(tmp_path.rglob("P03_05_frame_*.jpg"))
    frame.unlink()
    frame.mkdir()
    assert reasons(ingest("visor", tmp_path))["visor/test/P03_05/000007-0"] is RejectReason.IMAGE_CORRUPT


def test_what_lies_beside_the_masks_of_reinterhand_is_none(tmp_path: Path) -> None:
    write_reinterhand(tmp_path)
    mask = min(tmp_path.rglob("masks/095967.png"))
    mask.with_suffix(".txt").write_text("drawn on Monday")
    mask.with_suffix(".png.bak").write_bytes(b"")
    masks = {row.extra["mask"] for row in ingest("reinterhand", tmp_path) if isinstance(row, HandRecord) and row.extra}
    assert str(mask.resolve()) in masks and all(path.endswith(".png") for path in masks)


# ---------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("value", [7, "text", [1], True])
def test_a_key_frame_of_ego4d_that_is_no_object_is_label_corrupt(tmp_path: Path, value: Any) -> None:
    write_ego4d(tmp_path)
    before = reasons(ingest("ego4d", tmp_path))
    path = tmp_path / "v1/annotations/fho_hands_train.json"
    change_json(path, lambda data: data["clips"][0]["frames"][0].update(pnr_frame=value))
    new = {name: reason for name, reason in reasons(ingest("ego4d", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT]


def of_npz(pattern: str, name: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = min(root.glob(pattern))
        with np.load(path) as label:
            arrays = {**label, name: label[name].astype(np.bool_)}
        np.savez(path, **arrays)  # type: ignore[arg-type]

    return spoil


def of_arctic(root: Path) -> None:
    (path,) = root.rglob("p1_val.npy")
    document = np.load(path, allow_pickle=True).item()
    hands = document["data_dict"]["s05/box_use_01"]["cam_coord"]
    hands["joints.right"] = hands["joints.right"].astype(np.bool_)
    np.save(path, document)


def of_rhd(root: Path) -> None:
    path = root / "training/anno_training.pickle"
    samples = pickle.loads(path.read_bytes())
    samples[0]["xyz"] = samples[0]["xyz"].astype(np.bool_)
    path.write_bytes(pickle.dumps(samples))


BOOLEANS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], None], int]] = {
    "foundhand10m": ("foundhand10m", write_foundhand10m, of_npz("InterHand/*/*/*/7-400002.npz", "kpts"), 1),
    "dexycb": ("dexycb", write_dexycb, of_npz("*/*/*/labels_000001.npz", "joint_3d"), 1),
    "arctic": ("arctic", write_arctic, of_arctic, 4),
    "rhd": ("rhd", write_rhd, of_rhd, 1),
}


@pytest.mark.parametrize(("source", "write", "spoil", "count"), BOOLEANS.values(), ids=BOOLEANS)
def test_booleans_are_no_numbers(
    tmp_path: Path, source: str, write: Callable[[Path], object], spoil: Callable[[Path], None], count: int
) -> None:
    write(tmp_path)
    before = reasons(ingest(source, tmp_path))
    spoil(tmp_path)
    new = {name: reason for name, reason in reasons(ingest(source, tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT] * count


@pytest.mark.parametrize("change", [{"camera": ["400012"]}, {"capture": None}, {"seq_name": {"a": 1}}])
def test_a_name_of_interhand_that_is_no_text_is_label_corrupt(tmp_path: Path, change: dict[str, Any]) -> None:
    write_interhand26m(tmp_path)
    before = reasons(ingest("interhand26m", tmp_path))
    path = tmp_path / "annotations/val/InterHand2.6M_val_data.json"
    change_json(path, lambda data: data["images"][0].update(change))
    new = {name: reason for name, reason in reasons(ingest("interhand26m", tmp_path)).items() if name not in before}
    assert list(new.values()) == [RejectReason.LABEL_CORRUPT]


@pytest.mark.parametrize("change", [{"camera": "410028"}, {"seq_name": "0000_other"}])
def test_labels_of_interhand_on_an_image_that_is_named_otherwise_are_label_corrupt(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    write_interhand26m(tmp_path)
    path = tmp_path / "annotations/train/InterHand2.6M_train_data.json"
    change_json(path, lambda data: data["images"][0].update(change))
    named = f"{json.loads(path.read_text())['images'][0]['file_name']} is named as another image"
    found = [row for row in ingest("interhand26m", tmp_path) if isinstance(row, Rejection) and named in row.detail]
    assert [row.reason for row in found] == [RejectReason.LABEL_CORRUPT]


def test_a_sample_of_rhd_that_a_boolean_names_is_label_corrupt(tmp_path: Path) -> None:
    write_rhd(tmp_path)
    path = tmp_path / "training/anno_training.pickle"
    samples = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({bool(key) if key < 2 else key: sample for key, sample in samples.items()}))
    new = reasons(ingest("rhd", tmp_path))
    assert new["rhd/train/training/anno_training.pickle"] is RejectReason.LABEL_CORRUPT


def test_hands_of_visor_are_known_however_their_names_are_spelled(tmp_path: Path) -> None:
    write_visor(tmp_path)
    before = [row.has_mask for row in ingest("visor", tmp_path) if isinstance(row, HandRecord)]
    for path in tmp_path.glob("GroundTruth-SparseAnnotations/annotations/*/*.json"):
        path.write_text(
            path.read_text().replace('"left hand"', '"Left  Hand"').replace('"right hand"', '" RIGHT hand"')
        )
    assert [row.has_mask for row in ingest("visor", tmp_path) if isinstance(row, HandRecord)] == before
    assert any(before)
