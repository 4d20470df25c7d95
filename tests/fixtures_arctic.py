"""Writes ARCTIC's layout: pickled split files of both protocols, misc.json and cropped or full images."""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EGO_DISTORTION = (0.35, -0.12, 0.0011, -0.0007, 0.02, 0.6, 0.03, 0.004)
EGO_K = np.array([[1250.0, 0, 1395.5], [0, 1248.0, 1003.25], [0, 0, 1]])
OFFSETS = {"s01": 3, "s02": 0, "s03": 5, "s05": 7}
FRAMES = 6
FIRST_FRAME = {"s01": 4, "s02": 2, "s03": 6, "s05": 9}
"""Number of the first listed image; the files list two of each sequence."""
DATA = "arctic_data/data"

Image_ = tuple[str, int, int]
"""Sequence ("s01/box_grab_01"), view, frame number."""


def size_of_view(view: int) -> tuple[int, int]:
    """Return width and height of the full image; some static cameras stand upright."""
    return (2000, 2800) if view in (2, 5) else (2800, 2000)


def static_k(view: int) -> NDArray[np.float64]:
    width, height = size_of_view(view)
    return np.array([[3300.0 + view, 0, width / 2 + 3], [0, 3290.0, height / 2 - view], [0, 0, 1]])


def world_t_static(view: int) -> tuple[float, float]:
    return 0.3 * (view - 4), 0.05 * view


def camera_t_world(sequence: str, row: int, view: int) -> NDArray[np.float64]:
    """Return the 4x4 of a view; the head camera (0) is near and moves with the frame."""
    if view == 0:
        turn, distance, lift = 0.05 * row, 0.45, 0.02 * row
    else:
        (turn, lift), distance = world_t_static(view), 1.4
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    matrix[:3, 3] = (0.01 * view, lift, distance)
    return matrix


def world_points(sequence: str, row: int, side: str) -> NDArray[np.float64]:
    """Return the (21, 3) joints of a hand in MANO's order, metres in the world frame."""
    rng = np.random.default_rng([*sequence.encode(), row, side == "left"])
    offset = (-0.12, 0, 0) if side == "right" else (0.12, 0, 0)
    return rng.uniform(-0.07, 0.07, (21, 3)) + offset


def distort(x: float, y: float) -> tuple[float, float]:
    """Return a normalised point as the head camera's lens bends it (OpenCV's rational model, term by term)."""
    k1, k2, p1, p2, k3, k4, k5, k6 = EGO_DISTORTION
    r2 = x**2 + y**2
    gain = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * gain + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
        y * gain + 2 * p2 * x * y + p1 * (r2 + 2 * y**2),
    )


def project(
    sequence: str, row: int, view: int, point: Sequence[float], distorted: bool = False
) -> tuple[float, float, float]:
    """Return u, v in pixels of the full image and the depth in metres, coordinate by coordinate."""
    matrix = camera_t_world(sequence, row, view)
    x, y, z = (float(sum(matrix[i, j] * point[j] for j in range(3)) + matrix[i, 3]) for i in range(3))
    k = EGO_K if view == 0 else static_k(view)
    a, b = distort(x / z, y / z) if distorted else (x / z, y / z)
    return k[0, 0] * a + k[0, 2], k[1, 1] * b + k[1, 2], z


def box_of(sequence: str, row: int, view: int) -> tuple[float, float, float]:
    """Return centre and scale of the label's box, as the authors choose it: all of the head camera's picture."""
    if view == 0:
        return 1400.0, 1000.0, 14.0
    u, v, _ = project(sequence, row, view, (0.0, 0.0, 0.0))
    return u + 11.3, v - 7.6, 4.37 + 0.1 * row


def labels_of(
    sequence: str,
    *,
    with_hands: bool = True,
    flags: Mapping[tuple[int, int, str], int] | None = None,
    replace: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return ``data_dict[sequence]``; ``flags`` sets the flag of a (row, view, side), ``replace`` a ``group/key``."""
    views = [*range(9), 0]
    cam: dict[str, Any] = {}
    two_d: dict[str, Any] = {}
    for side in ("right", "left"):
        points = np.zeros((FRAMES, 10, 21, 3), dtype=np.float32)
        pixels = np.zeros((FRAMES, 10, 21, 2), dtype=np.float32)
        for row in range(FRAMES):
            world = world_points(sequence, row, side)
            for index, view in enumerate(views):
                matrix = camera_t_world(sequence, row, view)
                points[row, index] = world @ matrix[:3, :3].T + matrix[:3, 3]
                for joint in range(21):
                    pixels[row, index, joint] = project(sequence, row, view, world[joint], index == 9)[:2]
        for row in range(FRAMES):  # what the distorted view stores is no real 3D
            z = points[row, 9, :, 2]
            points[row, 9, :, 0] = (pixels[row, 9, :, 0] - EGO_K[0, 2]) / EGO_K[0, 0] * z
            points[row, 9, :, 1] = (pixels[row, 9, :, 1] - EGO_K[1, 2]) / EGO_K[1, 1] * z
        cam[f"joints.{side}"], two_d[f"joints.{side}"] = points, pixels
        cam[f"{side}_valid"] = np.ones((FRAMES, 9), dtype=np.int64)
    for (row, view, side), flag in (flags or {}).items():
        cam[f"{side}_valid"][row, view] = flag
    # What the authors' loader reads beside the hands.
    for key, count in (("bbox3d", 16), ("kp3d", 32)):
        cam[key] = np.ones((FRAMES, 10, count, 3), dtype=np.float32)
        two_d[key] = np.ones((FRAMES, 10, count, 2), dtype=np.float32)
    cam |= {name: np.zeros((FRAMES, 9, 3), dtype=np.float32) for name in ("rot_r_cam", "rot_l_cam", "obj_rot_cam")}
    cam["is_valid"] = np.ones((FRAMES, 9), dtype=np.int64)
    params = {
        "K_ego": np.tile(EGO_K.astype(np.float32), (FRAMES, 1, 1)),
        "dist": np.tile(np.array(EGO_DISTORTION, dtype=np.float32), (FRAMES, 1)),
        "world2ego": np.stack([camera_t_world(sequence, row, 0) for row in range(FRAMES)]).astype(np.float32),
        "obj_arti": np.zeros(FRAMES, dtype=np.float32),
        **{f"pose_{side}": np.zeros((FRAMES, 45), dtype=np.float32) for side in "rl"},
        **{f"shape_{side}": np.zeros((FRAMES, 10), dtype=np.float32) for side in "rl"},
    }
    boxes = [[box_of(sequence, row, view) for view in range(9)] for row in range(FRAMES)]
    labels: dict[str, Any] = {"bbox": np.array(boxes, dtype=np.float32), "params": params}
    if with_hands:
        labels |= {"cam_coord": cam, "2d": two_d}
    for name, value in (replace or {}).items():
        group, _, key = name.partition("/")
        if key:
            labels[group][key] = value
        else:
            labels[group] = value
    return labels


def image_name(sequence: str, view: int, frame: int) -> str:
    return f"./arctic_data/data/images/{sequence}/{view}/{frame:05d}.jpg"


def listed_frames(sequence: str) -> list[int]:
    first = FIRST_FRAME[sequence[:3]]
    return [first, first + 1]


def write_split_file(root: Path, protocol: str, split: str, labels: Mapping[str, Any], names: Sequence[Any]) -> Path:
    path = root / DATA / f"splits/{protocol}_{split}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, {"data_dict": dict(labels), "imgnames": list(names)})  # type: ignore[arg-type]  # as the authors do
    return path


def write_misc(root: Path, subjects: Collection[str] = tuple(OFFSETS)) -> Path:
    document = {
        subject: {
            "gender": "female",
            "ioi_offset": OFFSETS[subject],
            "image_size": [list(size_of_view(view)) for view in range(9)],
            "intris_mat": [static_k(view).tolist() for view in range(1, 9)],
            "world2cam": [camera_t_world("", 0, view).tolist() for view in range(1, 9)],
        }
        for subject in subjects
    }
    path = root / DATA / "meta/misc.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


@cache
def _jpeg(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, 90).save(stream, format="JPEG")
    return stream.getvalue()


def write_image(root: Path, image: Image_, *, full: bool = False, size: tuple[int, int] | None = None) -> Path:
    sequence, view, frame = image
    usual = size_of_view(view) if full else (840, 600) if view == 0 else (1000, 1000)
    folder = "images" if full else "cropped_images"
    path = root / DATA / folder / sequence / str(view) / f"{frame:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_jpeg(size or usual))
    return path


def write_sequences(
    root: Path,
    split: str,
    labels: Mapping[str, Mapping[str, Any]],
    *,
    static_views: Sequence[int] = (1, 2),
    full: Collection[Image_] = (),
    missing: Collection[Image_] = (),
) -> None:
    """Write both protocols' files of a split, and the images that they list."""
    for protocol, views in (("p1", static_views), ("p2", (0,))):
        images = [(name, view, frame) for name in labels for frame in listed_frames(name) for view in views]
        write_split_file(root, protocol, split, labels, [image_name(*image) for image in images])
        for image in images:
            if image not in missing:
                write_image(root, image, full=image in full)


def write_arctic(root: Path) -> None:
    """Write three splits: 24 records of which 6 have no labels, and one image that is missing."""
    write_misc(root)
    train = {
        "s01/box_grab_01": labels_of("s01/box_grab_01", flags={(2, 1, "left"): 0, (1, 0, "right"): 0}),
        "s02/scissors_use_01_retake": labels_of("s02/scissors_use_01_retake"),
    }
    write_sequences(
        root,
        "train",
        train,
        full=[("s02/scissors_use_01_retake", 2, 3), ("s02/scissors_use_01_retake", 0, 2)],
        missing=[("s01/box_grab_01", 2, 5)],
    )
    write_sequences(root, "val", {"s05/box_use_01": labels_of("s05/box_use_01")})
    write_sequences(root, "test", {"s03/box_use_02": labels_of("s03/box_use_02", with_hands=False)})
