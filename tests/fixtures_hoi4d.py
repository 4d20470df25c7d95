"""Writes HOI4D's layout: clips with videos, hand pickles, masks, trajectories and cameras."""

import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fixtures_wlasl import write_clip
from numpy.typing import NDArray
from PIL import Image

SIZE = (1920, 1080)
MUG = "ZY20210800001/H1/C2/N19/S100/s02/T1"
CHAIR = "ZY20210800004/H4/C20/N03/S71/s01/T2"
LAMP = "ZY20210800001/H1/C17/N01/S100/s01/T1"
HELD_OUT = "ZY20210800002/H2/C1/N05/S12/s01/T1"
FRAMES = 3
PALETTE = {
    1: (128, 0, 0),
    2: (0, 128, 0),
    3: (128, 128, 0),
    4: (0, 0, 128),
    5: (128, 0, 128),
    6: (0, 128, 128),
}
K = np.array([[1060.5, 0, 962.25], [0, 1059.0, 540.5], [0, 0, 1]])


def camera_points(clip: str, frame: int, side: str) -> NDArray[np.float64]:
    """Return the (21, 3) joints of a hand in our order, metres in the camera frame; joint 20 lies off the picture."""
    rng = np.random.default_rng([*clip.encode(), frame, side == "left"])
    points = np.c_[rng.uniform(-0.09, 0.09, (21, 2)), rng.uniform(0.4, 0.5, 21)]
    points[:, 0] += 0.1 if side == "right" else -0.1
    points[20] = (0.6, 0.05, 0.45)
    return points


def project(point: Sequence[float]) -> tuple[float, float]:
    """Return u, v in pixels."""
    x, y, z = point
    return K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]


def pixels_of(clip: str, frame: int, side: str) -> NDArray[np.int64]:
    """Return (21, 2) as the pickles hold them: whole numbers."""
    return np.array([project(point) for point in camera_points(clip, frame, side)]).round().astype(np.int64)


def world_t_camera(frame: int) -> NDArray[np.float64]:
    turn = 0.1 + 0.05 * frame
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    matrix[:3, 3] = (0.2, -0.1 * frame, 1.5)
    return matrix


def hand_content(pixels: NDArray[Any], **changes: Any) -> dict[str, Any]:
    return {
        "poseCoeff": np.zeros(48, dtype=np.float32),
        "beta": np.zeros(10, dtype=np.float32),
        "trans": np.array([0, 0, 0.45], dtype=np.float32),
        "kps2D": pixels,
    } | changes


def write_pickle(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def hand_path(root: Path, clip: str, frame: int, side: str, newer: bool = False) -> Path:
    folder = f"Hand_pose/handpose_{side}_hand" if newer else f"handpose/refinehandpose_{side}"
    return root / folder / clip / f"{frame}.pickle"


def mask_region(label: int) -> tuple[slice, slice]:
    """Return the rows and columns that every mask gives to a label."""
    return slice(100 * label, 100 * label + 60), slice(300 * label, 300 * label + 90)


def write_mask(path: Path, labels: Collection[int], mode: str = "RGB") -> Path:
    picture = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
    for label in labels:
        picture[mask_region(label)] = PALETTE[label]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).convert(mode).save(path, compress_level=1)
    return path


def write_camera(root: Path, cameras: Collection[str]) -> None:
    for camera in cameras:
        path = root / "camera_params" / camera / "intrin.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, K)


def trajectory_text(frames: int) -> str:
    lines = []
    for frame in range(frames):
        lines.append(f"{frame} {frame} {frame + 1}")
        lines += [" ".join(f"{value:.10f}" for value in row) for row in world_t_camera(frame)]
    return "\n".join([*lines, ""])


def write_sequence(
    root: Path,
    clip: str,
    *,
    hands: Mapping[str, Collection[int]] | None = None,
    masks: Mapping[int, Collection[int]] | None = None,
    mask_folder: str = "mask",
    frames: int = FRAMES,
    with_video: bool = True,
    decoded: Collection[int] = (),
    poses: int = FRAMES,
    newer: bool = False,
    content: Callable[[str, int, str], Any] = lambda clip, frame, side: hand_content(pixels_of(clip, frame, side)),
) -> None:
    """Write one clip; ``hands`` are the frames with a pickle of a side, ``masks`` the labels seen in a frame."""
    pictures = root / "HOI4D_release" / clip / "align_rgb"
    pictures.mkdir(parents=True)
    if with_video:
        write_clip(pictures / "image.mp4", frames, size=SIZE)
    for frame in decoded:
        Image.new("RGB", SIZE).save(pictures / f"{frame:05d}.jpg")
    annotations = root / "HOI4D_annotations" / clip
    for frame, labels in (masks or {}).items():
        write_mask(annotations / "2Dseg" / mask_folder / f"{frame:05d}.png", labels)
    log = annotations / "3Dseg/output.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(trajectory_text(poses))
    for side, numbers in (hands or {"right": range(FRAMES)}).items():
        for frame in numbers:
            write_pickle(hand_path(root, clip, frame, side, newer), content(clip, frame, side))


def write_hoi4d(root: Path) -> None:
    """Write four clips of three frames: 12 records; a pickle of a frame past the end of a video is refused."""
    write_camera(root, {clip.partition("/")[0] for clip in (MUG, CHAIR, LAMP, HELD_OUT)})
    write_sequence(root, MUG, hands={"right": (0, 1, 7), "left": (1,)}, masks={0: (1, 2, 3), 1: (1, 2)})
    write_sequence(root, CHAIR, hands={"right": (0,), "left": (0, 2)}, masks={0: (1, 2, 3)}, mask_folder="shift_mask")
    write_sequence(root, LAMP, masks={2: (2, 3, 6)}, poses=2)
    write_sequence(root, HELD_OUT, hands={"right": ()})
    (root / "release.txt").write_text("\n".join([MUG, CHAIR, LAMP, ""]))
    (root / "testset.txt").write_text(f"{HELD_OUT}\n")
