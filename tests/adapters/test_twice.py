"""What label files say twice about one thing: rejected, whichever of the two a parser would have taken."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.schemas import HandRecord, RejectReason, records_to_table
from tests.adapters.test_joins import ingest, reasons
from tests.fixtures.assemblyhands import write_assemblyhands
from tests.fixtures.dexycb import write_dexycb
from tests.fixtures.ego4d import write_ego4d
from tests.fixtures.hoi4d import write_hoi4d
from tests.fixtures.interhand26m import write_interhand26m
from tests.fixtures.reinterhand import CAMERAS, write_reinterhand
from tests.fixtures.visor import write_visor


def again(pattern: str, *keys: str, moved: bool = True, name: str | None = None) -> Callable[[Path], None]:
    """Return a change of a JSON file: what stands below some keys stands there again, with other numbers."""

    def change(root: Path) -> None:
        path = min(root.glob(pattern))
        document = json.loads(path.read_text())
        parent, key = document, ""
        for place in keys:
            key = min(parent) if place == "*" else place
            parent, value = parent[key], parent
        other = re.sub(r"\.(\d)", r".1\1", json.dumps(parent)) if moved else "[]"
        value["~"] = "?"
        text = json.dumps(document).replace('"~": "?"', f"{json.dumps(name or key)}: {other}")
        path.write_text(text)

    return change


def double_calib_block(root: Path) -> None:
    path = min(root.glob("videos/exo_videos_rectified/*/calib.txt"))
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    path.write_text("\n".join([*lines, *lines[:8]]))


def double_yaml_key(root: Path) -> None:
    path = min(root.glob("*-subject-*/*/meta.yml"))
    side, other = ("right", "left") if "right" in path.read_text() else ("left", "right")
    path.write_text(f"{path.read_text()}\nmano_sides:\n- {other}\n")
    assert side in path.read_text()


def double_member(root: Path) -> None:
    path = min(root.glob("*-subject-*/*/*/labels_*.npz"))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("joint_2d.npy", archive.read("joint_2d.npy"))


def double_pickle(root: Path) -> None:
    path = min(root.glob("handpose/refinehandpose_right/*/*/*/*/*/*/*/*.pickle"))
    shutil.copy(path, path.with_name(f"0000{path.name}"))


def double_image(root: Path) -> None:
    path = min(root.glob("m--*/Mugsy_cameras/*/images/*/0*.png"))
    shutil.copy(path, path.with_name(path.name.lstrip("0")))


def double_annotation(pattern: str, position: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = min(root.glob(pattern))
        document = json.loads(path.read_text())
        entry = document["annotations"][position]
        flags = [[0]] * 42 if isinstance(entry["joint_valid"][0], list) else [0] * 42
        document["annotations"].insert(position % len(document["annotations"]) + 1, {**entry, "joint_valid": flags})
        path.write_text(json.dumps(document))

    return change


INTERHAND, ASSEMBLY = "annotations/train/InterHand2.6M_train", "annotations/train/assemblyhands_train"
CASES: dict[str, tuple[Callable[[Path], object], Callable[[Path], None]]] = {
    "interhand26m, a capture of joint_3d": (write_interhand26m, again(f"{INTERHAND}_joint_3d.json", "*")),
    "interhand26m, a frame of joint_3d": (write_interhand26m, again(f"{INTERHAND}_joint_3d.json", "*", "*")),
    "interhand26m, joints of a frame": (
        write_interhand26m,
        again(f"{INTERHAND}_joint_3d.json", "*", "*", "world_coord"),
    ),
    "interhand26m, a capture of cameras": (write_interhand26m, again(f"{INTERHAND}_camera.json", "*")),
    "interhand26m, images": (write_interhand26m, again(f"{INTERHAND}_data.json", "images", moved=False)),
    "interhand26m, annotations": (write_interhand26m, again(f"{INTERHAND}_data.json", "annotations", moved=False)),
    **{
        f"{source}, annotation {position}": (write, double_annotation(pattern, position))
        for source, write, pattern in (
            ("interhand26m", write_interhand26m, f"{INTERHAND}_data.json"),
            ("assemblyhands", write_assemblyhands, f"{ASSEMBLY}_ego_data_v1-1.json"),
        )
        for position in (0, 3, -1)
    },
    "assemblyhands, a sequence": (write_assemblyhands, again(f"{ASSEMBLY}_joint_3d_v1-1.json", "annotations", "*")),
    "assemblyhands, a frame": (write_assemblyhands, again(f"{ASSEMBLY}_joint_3d_v1-1.json", "annotations", "*", "*")),
    "assemblyhands, images": (write_assemblyhands, again(f"{ASSEMBLY}_ego_data_v1-1.json", "images", moved=False)),
    "assemblyhands, annotations": (
        write_assemblyhands,
        again(f"{ASSEMBLY}_ego_data_v1-1.json", "annotations", moved=False),
    ),
    "assemblyhands, a calibration": (write_assemblyhands, again(f"{ASSEMBLY}_ego_calib_v1-1.json", "calibration")),
    "assemblyhands, intrinsics": (
        write_assemblyhands,
        again(f"{ASSEMBLY}_ego_calib_v1-1.json", "calibration", "*", "intrinsics"),
    ),
    "assemblyhands, a camera of calib.txt": (write_assemblyhands, double_calib_block),
    "reinterhand, a camera": (write_reinterhand, again("m--*/Mugsy_cameras/cam_params.json", CAMERAS[0])),
    "reinterhand, a field of the head camera": (
        write_reinterhand,
        again("m--*/Ego_cameras/*/cam_params/*.json", "focal"),
    ),
    "reinterhand, an image": (write_reinterhand, double_image),
    "ego4d, clips": (write_ego4d, again("v1/annotations/fho_hands_train.json", "clips", moved=False)),
    "visor, annotations": (
        write_visor,
        again("GroundTruth-SparseAnnotations/annotations/train/*.json", "video_annotations", moved=False),
    ),
    "dexycb, a side": (write_dexycb, double_yaml_key),
    "dexycb, an array": (write_dexycb, double_member),
    "hoi4d, a pickle": (write_hoi4d, double_pickle),
}


@pytest.mark.parametrize(("name", "write", "change"), [(name, *case) for name, case in CASES.items()], ids=CASES)
def test_what_a_label_file_says_twice_is_rejected(
    tmp_path: Path, name: str, write: Callable[[Path], object], change: Callable[[Path], None]
) -> None:
    source = name.partition(",")[0]
    write(tmp_path)
    before = ingest(source, tmp_path)
    change(tmp_path)
    after = ingest(source, tmp_path)
    new = {row: reason for row, reason in reasons(after).items() if row not in reasons(before)}
    assert new and set(new.values()) <= {RejectReason.LABEL_CORRUPT, RejectReason.LABEL_MISSING}
    known = {row.record_id: row for row in before if isinstance(row, HandRecord)}
    left = [row for row in after if isinstance(row, HandRecord)]
    expected = [known[row.record_id] for row in left]
    # Hints for the search may be lost with the file that has them.
    plain = [[row.model_copy(update={"extra": None}) for row in rows] for rows in (left, expected)]
    assert records_to_table(plain[0]).equals(records_to_table(plain[1]))


def test_two_images_of_assemblyhands_with_one_id_are_rejected(tmp_path: Path) -> None:
    write_assemblyhands(tmp_path)
    before = reasons(ingest("assemblyhands", tmp_path))
    (path,) = tmp_path.glob(f"{ASSEMBLY}_ego_data_v1-1.json")
    document: dict[str, Any] = json.loads(path.read_text())
    document["images"][1]["id"] = document["images"][0]["id"]
    path.write_text(json.dumps(document))
    new = {name: reason for name, reason in reasons(ingest("assemblyhands", tmp_path)).items() if name not in before}
    assert sorted(new.values()) == [RejectReason.LABEL_CORRUPT] * 2 + [RejectReason.LABEL_MISSING]


@pytest.mark.parametrize("image_id", [True, None, 1.0])
def test_what_is_no_id_names_no_image(tmp_path: Path, image_id: object) -> None:
    write_assemblyhands(tmp_path)
    before = reasons(ingest("assemblyhands", tmp_path))
    (path,) = tmp_path.glob(f"{ASSEMBLY}_ego_data_v1-1.json")
    document: dict[str, Any] = json.loads(path.read_text())
    document["images"][0]["id"], document["annotations"][0]["image_id"] = image_id, 1 if image_id else None
    path.write_text(json.dumps(document))
    new = {name: reason for name, reason in reasons(ingest("assemblyhands", tmp_path)).items() if name not in before}
    assert set(new.values()) == {RejectReason.LABEL_MISSING}


def test_two_spellings_of_one_frame_of_assemblyhands_are_rejected(tmp_path: Path) -> None:
    write_assemblyhands(tmp_path)
    before = reasons(ingest("assemblyhands", tmp_path))
    (path,) = tmp_path.glob(f"{ASSEMBLY}_joint_3d_v1-1.json")
    document: dict[str, Any] = json.loads(path.read_text())
    frames = min(document["annotations"].items())[1]
    frame = min(frames)
    frames[str(int(frame))] = {**frames[frame], "world_coord": np.zeros((42, 3)).tolist()}
    path.write_text(json.dumps(document))
    new = {name: reason for name, reason in reasons(ingest("assemblyhands", tmp_path)).items() if name not in before}
    assert new and set(new.values()) == {RejectReason.LABEL_CORRUPT}
