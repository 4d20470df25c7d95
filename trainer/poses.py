"""Poses without an image: from files of keypoints or of 3D joints and cameras, and as frames that are targets.

A file of keypoints (``.npy``, ``.npz``, ``.json``) holds 42 rows of x and y, the right hand's 21 joints first. ``.npy``
is the array, ``.json`` the list. A ``.npz`` file, or a ``.json`` file that is an object, names what it holds:

    keypoints        (42, 2), or (N, 42, 2) of N poses, pixels of an image of ``size``; or ``kpts``, as published
    size             width and height of that image

or, of one or several views (V) of a moment:

    keypoints_3d     (42, 3), metres, in the world's frame
    camera_t_world   (4, 4) or (V, 4, 4), world to camera; left out where the joints are in the camera's frame
    camera_k         (3, 3) or (V, 3, 3), pixels of an image of ``size``
    size             width and height of that image

Absent joints are null, NaN or zeros.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handdata.schemas import KEYPOINT_COUNT, UsageError, inside
from handdata.schemas.arrays import BoolArray, FloatArray, is_intrinsics, is_rigid_matrix
from handdata.trainer.data.augment import Frame

KEYPOINT_FILES: Final = (".npy", ".npz", ".json")
"""Endings of files of keypoints."""
_EXPECTED: Final = "expected 42 rows of x and y, the right hand's 21 joints first"
_IN_FILES: Final = f"{_EXPECTED}, in a .npy, .npz or .json file; docs/python.md says what else these may hold"
_MOST_OF_FRACTIONS: Final = 2.0
"""Largest number that fractions of an image have: joints may lie a little outside it. No hand is as small in pixels."""
_NAMES: Final = ("keypoints", "kpts", "size", "keypoints_3d", "camera_k", "camera_t_world")


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """The keypoints of an image that is not there.

    Args:
        keypoints: Keypoints (42, 2), pixels of that image, zeros where absent.
        valid: Which of them are there (42,).
        size: Width and height of that image; None where nobody says.

    """

    keypoints: FloatArray
    valid: BoolArray
    size: tuple[int, int] | None = None


def read_poses(path: Path) -> list[Pose]:
    """Read the poses in a file of keypoints, or of 3D joints and cameras.

    Raises:
        UsageError: The file holds anything else.

    """
    try:
        content = _content(path)
        named = content if isinstance(content, dict) else {"keypoints": content}
        arrays = {name: _numbers(value) for name, value in named.items() if name in _NAMES}
    except (OSError, ValueError, TypeError, EOFError, MemoryError, RecursionError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read keypoints from {path}: {error}", _IN_FILES) from error
    size = _size(arrays.get("size"), path)
    if "keypoints_3d" in arrays:
        return _views(arrays, size, path)
    keypoints = arrays.get("keypoints", arrays.get("kpts"))
    if keypoints is None:
        raise UsageError(f"{path} holds neither keypoints nor keypoints_3d, but {', '.join(named)}", _IN_FILES)
    if keypoints.ndim == 3 and keypoints.shape[1:] == (KEYPOINT_COUNT, 2):
        if not len(keypoints):
            raise UsageError(f"{path} holds no poses", _IN_FILES)
        return [
            Pose(*require_keypoints(each, f"{path}, pose {number}"), size)
            if _there(each).any()
            else Pose(np.zeros((KEYPOINT_COUNT, 2), np.float32), np.zeros(KEYPOINT_COUNT, np.bool_), size)
            for number, each in enumerate(keypoints)
        ]
    return [Pose(*require_keypoints(keypoints, str(path)), size)]


def _content(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind == ".json":
        return json.loads(path.read_text("utf-8-sig"))
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        return {name: loaded[name] for name in loaded.files if name in _NAMES} or dict.fromkeys(loaded.files)


def _numbers(value: Any) -> NDArray[np.float64]:
    if isinstance(value, list):
        widths = {len(row) for row in value if isinstance(row, list)}
        width = widths.pop() if len(widths) == 1 else 2
        value = [[np.nan] * width if row is None else row for row in value]
    return np.array(value, dtype=np.float64)


def _size(value: NDArray[np.float64] | None, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if value.shape != (2,) or not (value >= 1).all() or not (value == np.round(value)).all():
        raise UsageError(f"{path}: its size is {value.tolist()}", "expected width and height in pixels")
    return int(value[0]), int(value[1])


def _views(arrays: dict[str, NDArray[np.float64]], size: tuple[int, int] | None, path: Path) -> list[Pose]:
    """Return the poses of 3D joints in some cameras."""
    joints, k = arrays["keypoints_3d"], arrays.get("camera_k")
    if joints.shape != (KEYPOINT_COUNT, 3) or k is None or size is None:
        what = (
            f"keypoints_3d has shape {joints.shape}"
            if joints.shape != (KEYPOINT_COUNT, 3)
            else ("there is no camera_k" if k is None else "there is no size")
        )
        raise UsageError(f"{path}: {what}", "expected keypoints_3d (42, 3), camera_k (3, 3) or (V, 3, 3), and size")
    world = arrays.get("camera_t_world", np.eye(4))
    k, world = (each[None] if each.ndim == 2 else each for each in (k, world))
    views = max(len(k), len(world))
    if k.shape not in ((1, 3, 3), (views, 3, 3)) or world.shape not in ((1, 4, 4), (views, 4, 4)):
        raise UsageError(
            f"{path}: camera_k has shape {k.shape} and camera_t_world {world.shape}",
            "expected (3, 3) or (V, 3, 3), and (4, 4) or (V, 4, 4)",
        )
    if not all(map(is_intrinsics, k)) or not all(map(is_rigid_matrix, world)):
        raise UsageError(
            f"{path}: its cameras are none",
            "camera_k is of focal lengths and a principal point, camera_t_world of a rotation and a translation",
        )
    there = _there(joints)
    poses = []
    for number in range(views):
        camera, to_camera = k[number % len(k)], world[number % len(world)]
        turned = joints @ to_camera[:3, :3].T + to_camera[:3, 3]
        poses.append(Pose(*_projected(turned, there, camera), size))
        if not poses[-1].valid.any():
            raise UsageError(
                f"{path}: no joint lies before camera {number}",
                "cameras look along z; camera_t_world maps world to camera",
            )
    return poses


def _projected(joints: NDArray[np.float64], there: BoolArray, k: NDArray[np.float64]) -> tuple[FloatArray, BoolArray]:
    """Return the pixels (42, 2) of joints (42, 3) in the camera's frame, and which are there and before the camera."""
    valid = there & (joints[:, 2] > 0)
    pixels = np.zeros((KEYPOINT_COUNT, 2), np.float32)
    seen = joints[valid] @ k.T
    pixels[valid] = seen[:, :2] / seen[:, 2:]
    return pixels, valid


def turntable(joints: FloatArray, camera_k: FloatArray, size: tuple[int, int], count: int) -> list[Pose]:
    """Return the poses of joints seen by cameras that go around them in a full turn, the first the given one.

    Each camera is the given one, turned about the vertical line through the joints' centre: nearer and farther joints
    change their places, and the hands stay where they are in the image.

    Args:
        joints: Joints (42, 3) in the camera's frame, zeros where absent.
        camera_k: Its intrinsics (3, 3), pixels of an image of ``size``.
        size: Width and height of that image.
        count: Number of cameras.

    """
    there = (joints != 0).any(axis=1)
    centre = joints[there].mean(axis=0, dtype=np.float64)
    poses = []
    for angle in 2 * np.pi * np.arange(count) / count:
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        turned = (joints - centre) @ turn.T + centre
        poses.append(Pose(*_projected(turned, there, np.asarray(camera_k, np.float64)), size))
    return poses


def require_keypoints(keypoints: NDArray[Any], name: str) -> tuple[FloatArray, BoolArray]:
    """Check that an array holds 42 keypoints, or those of two hands (2, 21, 2); absent ones are NaN or (0, 0).

    Args:
        keypoints: The array.
        name: What it is called in messages.

    Returns:
        Keypoints (42, 2), zeros where absent, and which are there (42,).

    Raises:
        UsageError: It has another shape, no keypoint, or fractions of an image instead of pixels.

    """
    if keypoints.shape not in ((KEYPOINT_COUNT, 2), (2, KEYPOINT_COUNT // 2, 2)):
        raise UsageError(f"{name} has shape {keypoints.shape}", _EXPECTED)
    found = np.array(keypoints, dtype=np.float32).reshape(KEYPOINT_COUNT, 2)
    valid = _there(found)
    if not valid.any():
        raise UsageError(f"{name} has no keypoints", _EXPECTED)
    largest = float(np.abs(found[valid]).max())
    if largest <= _MOST_OF_FRACTIONS:
        raise UsageError(
            f"{name} has numbers of at most {largest:.3g}: fractions of an image, where pixels are wanted",
            "multiply x by the width and y by the height of the image that they belong to",
        )
    found[~valid] = 0
    return found, valid


def _there(joints: NDArray[np.floating]) -> BoolArray:
    """Return which rows of an array are not absent."""
    return np.asarray(np.isfinite(joints).all(axis=1) & (joints != 0).any(axis=1))


def pose_frame(keypoints: FloatArray, valid: BoolArray, size: int) -> Frame:
    """Return a frame of ``size`` pixels that has keypoints (42, 2), in its pixels, and no image."""
    empty = np.zeros((size, size), np.uint8)
    return Frame(
        image=np.zeros((size, size, 3), np.uint8),
        mask=empty,
        known=empty,
        keypoints=keypoints,
        valid=valid & inside(keypoints, size, size),
    )
