"""Writes VISOR's sparse release: one annotation file for each video, and its frames in one of the known packagings."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

SIZE = (1920, 1080)

Packaging = Literal["zip", "folder of the video", "folder of the participant"]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


RIGHT_HAND = [rectangle(1000.0, 500.0, 1200.0, 900.0)]
LEFT_HAND = [rectangle(300.75, 400.25, 700.5, 800.99), rectangle(400.0, 500.0, 500.0, 600.0), []]
"""A hand with a hole, and an empty ring; cut to whole pixels."""


def entity(name: str, segments: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"{zlib.crc32(name.encode()):032x}",
        "name": name,
        "class_id": {"left hand": 300, "right hand": 301}.get(name, 60),
        "exhaustive": "y",
        "segments": segments,
    } | fields


def hands() -> list[dict[str, Any]]:
    return [
        entity("left hand", LEFT_HAND, in_contact_object="hand-not-in-contact"),
        entity("right hand", RIGHT_HAND, in_contact_object="hand-not-in-contact"),
    ]


def element(video: str, frame: int, annotations: Any, subsequence: int = 1) -> dict[str, Any]:
    name = f"{video}_frame_{frame:010d}.jpg"
    return {
        "image": {
            "name": name,
            "image_path": f"{video}/Part_001/{video}_seq_{subsequence:05d}/frame_{frame:010d}/{name}",
            "video": video,
            "subsequence": f"{video}_seq_{subsequence:05d}",
        },
        "annotations": annotations,
    }


def write_annotations(base: Path, split: str, video: str, elements: Sequence[Any]) -> Path:
    path = base / "annotations" / split / f"{video}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {"Dataset Name": "VISOR"}, "video_annotations": list(elements)}))
    return path


def write_images(
    base: Path,
    split: str,
    video: str,
    frames: Sequence[int],
    packaging: Packaging = "folder of the video",
    size: tuple[int, int] = SIZE,
) -> None:
    participant = base / "rgb_frames" / split / video.partition("_")[0]
    folder = participant if packaging == "folder of the participant" else participant / video
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{video}_frame_{frame:010d}.jpg" for frame in frames]
    for path in paths:
        Image.new("RGB", size, (120, 90, 60)).save(path)
    if packaging == "zip":
        with zipfile.ZipFile(participant / f"{video}.zip", "w") as archive:
            for path in paths:
                archive.write(path, path.name)
                path.unlink()
        folder.rmdir()


def write_visor(root: Path, packaging: Packaging = "folder of the video") -> None:
    """Write a video of each split: 4 + 1 + 2 frames, of which one of train is missing; one has no hand."""
    base = root / "GroundTruth-SparseAnnotations"
    glove = entity("left glove", [rectangle(100, 100, 200, 200)], on_which_hand=["left hand"])
    board = entity("chopping board", [rectangle(0, 0, 900, 900)])
    train = [
        element("P01_01", 121, [entity("hand blender", RIGHT_HAND), board], subsequence=2),
        element("P01_01", 61, hands()),
        element("P01_01", 31, [entity("right hand", RIGHT_HAND), board]),
        element("P01_01", 181, hands(), subsequence=2),
    ]
    write_annotations(base, "train", "P01_01", train)
    write_annotations(base, "val", "P02_101", [element("P02_101", 51, [*hands(), glove])])
    write_images(base, "train", "P01_01", [31, 61, 121], packaging)
    write_images(base, "val", "P02_101", [51], packaging)
    write_images(base, "test", "P03_05", [7, 8], packaging)
    (root / "frame_mapping.json").write_text("{}")
