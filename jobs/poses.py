"""Files of keypoints, and 3D joints of samples, as the targets of tasks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handdata.jobs.outputs import NamedFrame
from handdata.pipeline.annotation.crop import square_around
from handdata.pipeline.annotation.photo import read_photo
from handdata.schemas import SIDES, RecordError, UsageError, hand_rows
from handdata.trainer.data.augment import Frame
from handdata.trainer.poses import KEYPOINT_FILES, Pose, pose_frame, read_poses, require_keypoints, turntable

_PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of pictures that keypoints may lie beside, under the same name."""

KeypointsSize = tuple[int, int]
"""Width and height of the image that keypoints are pixels of."""

NamedPair = tuple[tuple[NamedFrame, ...], NamedFrame]
"""References and a target."""


def is_keypoint_file(name: str | Path) -> bool:
    """Return whether a name is that of a file of keypoints."""
    return Path(name).suffix.lower() in KEYPOINT_FILES


def targets_in(
    path: Path, side: int, crop_scale: float, note: Callable[[str], None], size: KeypointsSize | None = None
) -> list[NamedFrame]:
    """Return the poses in a file of keypoints, or of 3D joints and cameras, as frames of a generated image.

    Args:
        path: The file; ``read_poses`` says what it holds.
        side: Side of the generated image, pixels.
        crop_scale: Side of the square around hands over the longer side of their joints' box.
        note: Called with a line where joints lie outside the generated image.
        size: Width and height of the image that the keypoints are pixels of. None takes those in the file; else those
            of the picture beside it, of the same name; else the generated image's.

    Raises:
        UsageError: The file cannot be read, or none of a pose lies inside the generated image.

    """
    poses = read_poses(path)
    names = [str(path)] if len(poses) == 1 else [f"{path}, pose {number}" for number in range(len(poses))]
    if any(pose.valid.any() for pose in poses):
        for name, pose in zip(names, poses, strict=True):
            if not pose.valid.any():
                note(f"passed over {name}: it has no keypoint")
    beside = next((file for ending in _PICTURES if (file := path.with_suffix(ending)).is_file()), None)
    if size is None and beside is not None and poses[0].size is None:
        height, width, _ = read_photo(beside).shape
        size = width, height
    return [
        NamedFrame(
            name, target_frame(Pose(pose.keypoints, pose.valid, size or pose.size), side, crop_scale, name, note)
        )
        for name, pose in zip(names, poses, strict=True)
        if pose.valid.any() or len(poses) == 1
    ]


def target_of_array(
    keypoints: NDArray[np.generic],
    side: int,
    crop_scale: float,
    note: Callable[[str], None],
    size: KeypointsSize | None,
) -> Frame:
    """Return keypoints (42, 2) or (2, 21, 2) as the frame of a generated image; as ``targets_in`` otherwise."""
    pose = Pose(*require_keypoints(keypoints, "the target"), size)
    return target_frame(pose, side, crop_scale, "the target", note)


def target_frame(pose: Pose, side: int, crop_scale: float, name: str, note: Callable[[str], None]) -> Frame:
    """Return the frame that a generated image of a pose has.

    A square image is taken as it is, and scaled. Of another one the square around the hands is, as of a photograph.

    Args:
        pose: Keypoints, and the size of their image; without one they are pixels of the generated image.
        side: Side of the generated image, pixels.
        crop_scale: Side of the square around hands over the longer side of their joints' box.
        name: What the keypoints are called in messages.
        note: Called with a line where some lie outside the image.

    Raises:
        UsageError: All lie outside the image.

    """
    width, height = pose.size or (side, side)
    keypoints = pose.keypoints
    there = pose.valid
    if width == height:
        keypoints = np.where(there[:, None], (keypoints + 0.5) * (side / width) - 0.5, 0).astype(np.float32)
    else:
        there = there & (keypoints >= -0.5).all(axis=1) & (keypoints < np.array([width, height]) - 0.5).all(axis=1)
        if there.any():
            try:
                square = square_around(keypoints[there], width, height, crop_scale, side)
            except RecordError as error:
                raise UsageError(f"{name}: {error.detail}") from None
            keypoints = np.where(there[:, None], square.to_crop(keypoints), 0).astype(np.float32)
    frame = pose_frame(keypoints, there, side)
    image = f"the {'image' if pose.size else 'generated image'} of {width} x {height} pixels"
    outside = int(pose.valid.sum() - frame.valid.sum())
    if not frame.valid.any():
        raise UsageError(
            f"{name} has no keypoint inside {image}",
            "say the size of the image that they are pixels of: --keypoints-size",
        )
    if outside:
        note(f"{outside} of {pose.valid.sum()} keypoints of {name} lie outside {image}")
    return frame


def around(
    sample: Mapping[str, Any], stored_side: int, count: int, side: int, crop_scale: float, note: Callable[[str], None]
) -> list[NamedFrame]:
    """Return a sample's hands seen by cameras that go around them in a full turn, as frames of a generated image.

    Args:
        sample: Columns ``sample_id``, ``source``, ``keypoints_3d`` and ``camera_k``.
        stored_side: Side of the sample's image, pixels, which ``camera_k`` is of.
        count: Number of cameras.
        side: Side of the generated image, pixels.
        crop_scale: As in ``target_frame``.
        note: Called with a line where joints lie outside the generated image.

    Raises:
        UsageError: The sample has no 3D joints or no camera.

    """
    for what, column in (("3D joints", "keypoints_3d"), ("camera", "camera_k")):
        if sample[column] is None:
            raise UsageError(
                f"{sample['sample_id']} has no {what} to turn: its source, {sample['source']}, gives none for it",
                "`handdata sources` lists what each source labels",
            )
    joints = np.asarray(sample["keypoints_3d"], np.float32).reshape(-1, 3)
    camera = np.asarray(sample["camera_k"], np.float32).reshape(3, 3)
    views = []
    for number, pose in enumerate(turntable(joints, camera, (stored_side, stored_side), count)):
        name = f"{sample['sample_id']}, turned by {360 * number / count:g} degrees"
        views.append(NamedFrame(name, target_frame(pose, side, crop_scale, name, note)))
    return views


def other_hands(pairs: Sequence[NamedPair]) -> str | None:
    """Return a warning about pairs whose target has a hand that no reference shows; None where there are none."""
    others = []
    for references, target in pairs:
        seen = {side for each in references for side in _sides(each.frame)}
        if seen and not _sides(target.frame) <= seen:
            others.append((references[0].name, target.name, " and a ".join(sorted(_sides(target.frame) - seen))))
    if not others:
        return None
    reference, target_name, hands = others[0]
    further = f" (and so on, {len(others)} pairs)" if others[1:] else ""
    return f"warning: {target_name} has a {hands} hand, which {reference} does not show{further}: it is imagined"


def _sides(frame: Frame) -> set[str]:
    """Return the sides of the hands that a frame has."""
    return {side for side in SIDES if frame.valid[hand_rows(side)].any()}
