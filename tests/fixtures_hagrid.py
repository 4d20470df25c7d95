"""Writes HaGRID's layouts: pictures, and one annotation file for each gesture and split."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 90, 160

Box = tuple[float, float, float, float]

LEFT_OF_PICTURE: Box = (0.05, 0.3, 0.25, 0.2)
RIGHT_OF_PICTURE: Box = (0.65, 0.35, 0.25, 0.2)


def points_in(box: Box) -> list[list[float]]:
    """Return 21 points on a diagonal of a box, each different."""
    x, y, width, height = box
    return [[x + width * (index + 0.5) / 21, y + height * (20.5 - index) / 21] for index in range(21)]


def entry_v1(
    boxes: Sequence[Box],
    labels: Sequence[str],
    leading_hand: str,
    landmarks: list[Any] | None = None,
    user_id: str = "5f0c",
) -> dict[str, Any]:
    return {
        "bboxes": [list(box) for box in boxes],
        "labels": list(labels),
        "landmarks": [points_in(box) for box in boxes] if landmarks is None else landmarks,
        "leading_hand": leading_hand,
        "leading_conf": 1.0,
        "user_id": user_id,
    }


def entry_v2(
    boxes: Sequence[Box], labels: Sequence[str], landmarks: list[Any] | None = None, with_landmarks: bool = True
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "bboxes": [list(box) for box in boxes],
        "labels": list(labels),
        "united_bbox": None,
        "united_label": None,
        "user_id": "77aa",
        "meta": {"age": [24.41], "gender": ["female"], "race": ["White"]},
    }
    if with_landmarks:
        entry["hand_landmarks"] = [points_in(box) for box in boxes] if landmarks is None else landmarks
    return entry


def write_images(folder: Path, uuids: Sequence[str], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for uuid in uuids:
        Image.new("RGB", size, (120, 90, 60)).save(folder / f"{uuid}.jpg")


def write_annotations(path: Path, entries: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


def write_hagrid_v1(root: Path) -> None:
    """Write v1: two gestures of train_val, one of test, a subsample, one annotation without its image."""
    one = entry_v1([LEFT_OF_PICTURE], ["call"], "right")
    two = entry_v1([RIGHT_OF_PICTURE, LEFT_OF_PICTURE], ["no_gesture", "call"], "right", user_id="9e11")
    write_annotations(root / "ann_train_val/call.json", {"call-b": one, "call-a": two, "call-missing": one})
    write_annotations(root / "ann_train_val/fist.json", {"fist-a": entry_v1([RIGHT_OF_PICTURE], ["fist"], "left")})
    write_annotations(root / "ann_test/call.json", {"test-a": entry_v1([LEFT_OF_PICTURE], ["call"], "right", [])})
    write_annotations(root / "ann_subsample/call.json", {"call-b": one})
    write_images(root / "train_val_call", ["call-a", "call-b"])
    write_images(root / "fist", ["fist-a"])
    write_images(root / "test/call", ["test-a"])


def write_hagrid_v2(root: Path, with_landmarks: bool = True) -> None:
    """Write v2-1M (or v2, without landmarks): three splits, whose images share a folder for each gesture."""
    for split in ("train", "val", "test"):
        entries = {
            f"{split}-one": entry_v2([RIGHT_OF_PICTURE], ["like"], with_landmarks=with_landmarks),
            f"{split}-two": entry_v2(
                [RIGHT_OF_PICTURE, LEFT_OF_PICTURE], ["like", "no_gesture"], with_landmarks=with_landmarks
            ),
        }
        write_annotations(root / f"hagrid_annotations/{split}/like.json", entries)
        write_images(root / "hagrid_dataset/like", list(entries))
