"""Writes the WLASL start kit's result: one label file and a folder of clips."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT = 96, 64
BOX = [10, 4, 80, 64]


def write_clip(
    path: Path, frames: int = 3, rate: Fraction = Fraction(25), size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    """Write a clip whose frames are grey: 20 + 40 x their index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            picture = np.full((size[1], size[0], 3), 20 + 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def instance(video_id: str, split: str, **changes: Any) -> dict[str, Any]:
    return {
        "bbox": BOX,
        "fps": 25,
        "frame_end": -1,
        "frame_start": 1,
        "instance_id": 0,
        "signer_id": 118,
        "source": "aslbrick",
        "split": split,
        "url": f"http://aslbricks.org/New/ASL-Videos/{video_id}.mp4",
        "variation_id": 0,
        "video_id": video_id,
    } | changes


def youtube(video_id: str, split: str, frame_start: int, frame_end: int) -> dict[str, Any]:
    url = "https://www.youtube.com/watch?v=0123456789A"
    return instance(video_id, split, source="aslu", url=url, frame_start=frame_start, frame_end=frame_end, signer_id=7)


def write_labels(root: Path, glosses: dict[str, Sequence[Any]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "WLASL_v0.3.json"
    content = [{"gloss": gloss, "instances": list(instances)} for gloss, instances in glosses.items()]
    path.write_text(json.dumps(content, indent=4))
    return path


def write_wlasl(root: Path) -> None:
    """Write two signs in three splits: four clips of 3 frames, one clip that has vanished, one empty file."""
    write_labels(
        root,
        {
            "book": [
                instance("00335", "train"),
                youtube("00336", "train", 5710, 5712),
                instance("00337", "val"),
                instance("00338", "train"),
            ],
            "drink": [instance("01011", "test"), instance("01012", "train")],
        },
    )
    for video_id in ("00335", "00336", "00337", "01011"):
        write_clip(root / f"videos/{video_id}.mp4")
    (root / "videos/01012.mp4").write_bytes(b"")
    (root / "missing.txt").write_text("00338")
