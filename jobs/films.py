"""``handdata sample video``: where the poses of a video come from."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from handdata.jobs.outputs import NamedFrame
from handdata.jobs.poses import KeypointsSize, target_frame
from handdata.pipeline.annotation.clips import annotate_clip
from handdata.pipeline.annotation.crop import square_around
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import RecordError, UsageError, samples_to_table
from handdata.trainer.data.reading import decode_frame
from handdata.trainer.poses import Pose, read_poses

FPS: Final = 10.0
"""Frames per second of a video whose poses have no rate."""
_LEAST_SIDE, _LARGEST_SIDE = 32, 2048
"""Sides of crops that annotation takes."""


@dataclass(frozen=True, slots=True)
class FilmPoses:
    """The poses of a video.

    Args:
        targets: Frame by frame, those whose poses are drawn.
        first: The first of them with image and mask, which may be the reference; None where there are poses alone.
        fps: Frames per second; None where nobody says.

    """

    targets: list[NamedFrame]
    first: NamedFrame | None
    fps: float | None


def poses_of_clip(
    path: Path,
    numbers: range,
    side: int,
    settings: AnnotateSettings,
    weights: Path | None,
    note: Callable[[str], None],
) -> FilmPoses:
    """Return the poses of the hands in a video file or a folder of frames, all in one square around all hands.

    Args:
        path: Video file, or folder of images.
        numbers: Frames that are asked for, from 0 on; up to ``sys.maxsize`` for all.
        side: Side of the generated frames, pixels.
        settings: Annotation of photographs.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        note: Called with a line on what is not drawn, and why.

    Raises:
        UsageError: As ``annotate_clip`` says.
        NoHandError: MediaPipe finds no hand.

    """
    size = min(max(side, _LEAST_SIDE), _LARGEST_SIDE)
    clip = annotate_clip(path, numbers, settings.model_copy(update={"image_size": size}), weights)
    frames = [decode_frame(samples_to_table([sample]), 0) for sample in clip.samples]
    names = [f"{path}, frame {number}" for number in clip.numbers]
    _say_what_is_left(path, numbers, clip.total, clip.left_out, note)
    mask = clip.mask.astype(np.uint8) * np.uint8(255)
    return FilmPoses(
        targets=[NamedFrame(name, frame) for name, frame in zip(names, frames, strict=True)],
        first=NamedFrame(names[0], replace(frames[0], mask=mask)),
        fps=clip.fps or None,
    )


def poses_of_file(
    path: Path,
    numbers: range,
    side: int,
    crop_scale: float,
    note: Callable[[str], None],
    size: KeypointsSize | None = None,
) -> FilmPoses:
    """Return poses (N, 42, 2) in a file of keypoints.

    A square image is taken as it is, and scaled. Of another one the square around the hands of all poses is.

    Args:
        path: The file; ``read_poses`` says what it holds.
        numbers: Poses that are asked for, from 0 on; up to ``sys.maxsize`` for all.
        side: Side of the generated frames, pixels.
        crop_scale: Side of the square around hands over the longer side of their joints' box.
        note: Called with a line on what is not drawn, and why.
        size: Width and height of the image that the keypoints are pixels of; None takes those in the file, else the
            generated image's.

    Raises:
        UsageError: The file cannot be read, or none of its keypoints lies inside the image.

    """
    poses = read_poses(path)
    wanted = range(numbers.start, min(numbers.stop, len(poses)))
    if not wanted:
        raise UsageError(f"{path} has {len(poses)} poses, and none from number {numbers.start} on")
    width, height = size or poses[0].size or (side, side)
    placed = [Pose(poses[number].keypoints, poses[number].valid, (width, height)) for number in wanted]
    joints = np.concatenate([pose.keypoints[pose.valid] for pose in placed])
    if width != height and len(joints):
        try:
            square = square_around(joints, width, height, crop_scale, side)
        except RecordError as error:
            raise UsageError(f"{path}: {error.detail}") from None
        placed = [Pose(square.to_crop(pose.keypoints), pose.valid, (side, side)) for pose in placed]
    targets, left_out = [], {}
    outside: list[str] = []
    for number, pose in zip(wanted, placed, strict=True):
        name = f"{path}, pose {number}"
        try:
            targets.append(NamedFrame(name, target_frame(pose, side, crop_scale, name, outside.append)))
        except UsageError as error:
            left_out[number] = "no keypoint lies inside the image"
            problem = error
    if not targets:
        raise problem
    if outside:
        note(f"in {len(outside)} of {len(targets)} poses of {path} some keypoints lie outside the image")
    _say_what_is_left(path, numbers, len(poses), left_out, note)
    return FilmPoses(targets, None, None)


def _say_what_is_left(
    path: Path, numbers: range, total: int, left_out: Mapping[int, str], note: Callable[[str], None]
) -> None:
    """Say which frames are not drawn: those without a pose, and those that are not there or were not asked for."""
    for reason in dict.fromkeys(left_out.values()):
        which = [number for number, why in left_out.items() if why == reason]
        note(f"left out of {path}: {_runs(which)}: {reason}")
    if numbers.stop == sys.maxsize:  # all were asked for
        return
    if numbers.stop > total:
        note(f"{path} ends with frame {total - 1}: {total - numbers.start} frames are drawn from, not {len(numbers)}")
    elif len(numbers) < total:
        note(f"{path} has {total} frames: {_runs(list(numbers))} of them are drawn from (--start, --n)")


def _runs(numbers: Sequence[int]) -> str:
    """Return rising numbers as text, such as ``frames 0-4, 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"frame{'s' if len(numbers) > 1 else ''} {', '.join(parts)}"
