"""Writes what the Ego4D command line tool downloads for hands and objects, and HInt beside it."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
FRAMES = 24

CLIP_A = "00ccfa33-b669-420a-ba8d-4767a1565f23"
CLIP_B = "0a3097fc-baed-4d11-a4c9-30f07eb91af6"
CLIP_C = "f84f7484-5109-43bc-a54c-7e66478dfb6f"
ACTION = "06520a38-4e3d-4b20-b450-b2e7dbe69ead"
OTHER_ACTION = "263f9792-1da5-4313-96fa-87ae33f98b9a"


def video_of(clip: str) -> str:
    return f"video-of-{clip}"


def write_clip(root: Path, clip: str, frames: int = FRAMES) -> Path:
    """Write a clip whose frames are grey: 10 x their index."""
    path = root / "clips" / f"{clip}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            picture = np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def key_frame(clip_frame: Any, boxes: Any = None) -> dict[str, Any]:
    frame = {"frame": 9000, "clip_frame": clip_frame}
    return frame if boxes is None else frame | {"boxes": boxes}


def action(**key_frames: Any) -> dict[str, Any]:
    seconds = {"action_start_sec": 0.0, "action_end_sec": 8.0, "action_clip_start_sec": 0.0, "action_clip_end_sec": 8.0}
    frames = {"action_start_frame": 0, "action_end_frame": 240, "action_clip_start_frame": 0}
    return seconds | frames | {"action_clip_end_frame": 240} | key_frames


def hands_clip(clip: str, actions: Any) -> dict[str, Any]:
    return {"clip_id": 7, "clip_uid": clip, "video_uid": video_of(clip), "frames": actions}


def write_hands(root: Path, split: str, clips: Sequence[Any]) -> Path:
    content = {"version": "v1", "date": "220216", "description": "", "manifest": "m.csv", "split": split}
    return _write(root / f"annotations/fho_hands_{split}.json", content | {"clips": list(clips)})


def scod_frame(number: Any, objects: Sequence[tuple[str, tuple[float, float, float, float]]]) -> dict[str, Any]:
    """Return a key frame of a picture of twice the clip's size."""
    boxes = [
        {
            "object_type": kind,
            "structured_noun": None,
            "instance_number": None,
            "bbox": dict(zip(("x", "y", "width", "height"), box, strict=True)),
        }
        for kind, box in objects
    ]
    size = {"width": 2 * WIDTH, "height": 2 * HEIGHT}
    return {"frame_number": 9000, "clip_frame_number": number, "bbox": boxes} | size


def write_scod(root: Path, split: str, clips: Sequence[tuple[str, dict[str, Any]]]) -> Path:
    entries = [{"video_uid": video_of(clip), "clip_id": "7", "clip_uid": clip} | frames for clip, frames in clips]
    return _write(root / f"annotations/fho_scod_{split}.json", {"version": "v1", "split": split, "clips": entries})


def hint_points(seed: int) -> list[list[float]]:
    """Return 21 points in the frame, each different."""
    return [[10.25 + 3 * joint + seed, 8.5 + 2 * joint] for joint in range(21)]


def write_hint(
    folder: Path, clip: str, frame: int, side: str, points: Any, action_uid: str = ACTION, picture: bool = False
) -> Path:
    name = f"{clip}_{action_uid}_{frame}_pre_45_{side}"
    hand = {"keypoints": points, "occlusion": [0] * 10 + [1] * 11, "bbox": [[8, 6, 80, 60]]}
    path = _write(folder / f"{name}.json", [hand])
    if picture:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 60, 30)).save(folder / f"{name}.jpg")
    return path


def write_metadata(root: Path, participants: dict[str, int | None]) -> Path:
    videos = [{"video_uid": video_of(clip), "fb_participant_id": number} for clip, number in participants.items()]
    clips = [{"clip_uid": clip, "video_uid": video_of(clip)} for clip in participants]
    return _write(root / "ego4d.json", {"date": "", "version": "v1", "videos": videos, "clips": clips})


def write_ego4d(root: Path) -> None:
    """Write 3 splits: 9 frames of three clips, of which one lies behind its clip's end.

    ``CLIP_A`` (train) has key frames and joints of both hands on one of them, ``CLIP_B`` (val) joints alone, on a
    picture and on a frame of the clip, ``CLIP_C`` (test) key frames without labels.
    """
    first = action(
        pre_45=key_frame(2, [{"left_hand": [20.5, 30.0]}, {"right_hand": [70, 40]}]),
        pre_30=key_frame(5, []),
        pnr_frame=key_frame(8),
    )
    second = action(pre_45=key_frame(5, [{"right_hand": [60, 41]}]), post_frame=key_frame(FRAMES + 3, []))
    version = root / "v1"
    write_hands(version, "train", [hands_clip(CLIP_A, [first, second])])
    write_hands(version, "test_unannotated", [hands_clip(CLIP_C, [action(pre_45=key_frame(1), pre_30=key_frame(4))])])
    boxes = [("left_hand", (20.0, 40.0, 40.0, 20.0)), ("object_of_change", (0.0, 0.0, 9.0, 9.0))]
    write_scod(version, "train", [(CLIP_A, {"pre_frame": scod_frame(2, boxes), "pnr_frame": scod_frame(11, [])})])
    write_metadata(version, {CLIP_A: 12, CLIP_B: 13, CLIP_C: None})
    for clip in (CLIP_A, CLIP_B, CLIP_C):
        write_clip(version, clip)
    hint = root / "HInt_annotation"
    write_hint(hint / "TRAIN_ego4d_img", CLIP_A, 2, "r", hint_points(0))
    write_hint(hint / "TRAIN_ego4d_img", CLIP_A, 2, "l", hint_points(5), OTHER_ACTION)
    write_hint(hint / "VAL_ego4d_img", CLIP_B, 3, "l", [[0, 0], *hint_points(1)[1:]], picture=True)
    write_hint(hint / "VAL_ego4d_seq", CLIP_B, 6, "r", hint_points(2))


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
