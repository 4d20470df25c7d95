"""Write the synthetic dataset to disk (its layout: ``layout``).

Every sequence is drawn from its own random stream, so the same arguments give the same bytes however many processes
write them.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from handdata.adapters.processes import process_pool
from handdata.adapters.synthesis.layout import (
    DATASET_FILE,
    DATASET_FORMAT,
    FORMAT_VERSION,
    LABEL_FILE,
    image_path,
    mask_path,
)
from handdata.adapters.synthesis.scene import Identity, build_identity
from handdata.adapters.synthesis.sequence import FRAMES_PER_SECOND, HandSequence, sample_sequence
from handdata.schemas.errors import RunError, StorageError, UsageError
from handdata.schemas.joints import KEYPOINT_COUNT, Side, hand_rows
from handdata.schemas.record import SPLITS, Split

_HELD_OUT_SHARE: Final = 0.1
_JPEG_QUALITY = 95
_SMALLEST_SIZE_PX = 16

# First numbers of the random streams: one for each thing that is drawn on its own.
_IDENTITY_STREAM, _SIDES_STREAM, _SEQUENCE_STREAM, _NOISE_STREAM = range(4)


@dataclass(frozen=True)
class SynthesisSummary:
    """What ``write_dataset`` wrote."""

    out: Path
    identities: int
    sequences: int
    images: int
    sequences_per_split: dict[Split, int]


@dataclass(frozen=True)
class SequencePlan:
    """What a process needs to know to write one sequence."""

    seed: int
    index: int
    identity: int
    split: Split
    sides: tuple[Side, ...]
    frames: int
    cameras: int
    size: int
    frames_per_second: int = FRAMES_PER_SECOND

    @property
    def sequence_id(self) -> str:
        """Name of the sequence's folder."""
        return f"identity{self.identity:03d}-sequence{self.index:04d}"


def write_dataset(
    out: Path,
    identities: int,
    sequences: int,
    frames: int,
    cameras: int,
    size: int,
    seed: int,
    frames_per_second: int = FRAMES_PER_SECOND,
    on_progress: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> SynthesisSummary:
    """Write a synthetic dataset into the folder ``out``, replacing the synthetic dataset that may be there.

    A third of the sequences each shows the right hand, the left hand and both. Identities are held out whole: with
    three or more, a tenth (at least one) each goes to val and to test.

    Args:
        out: Folder of the dataset.
        identities: Number of rendered people.
        sequences: Number of sequences in total, dealt to the identities in turn.
        frames: Number of frames of a sequence.
        cameras: Number of views of each frame.
        size: Width and height of the images in pixels.
        seed: Seed of all random streams.
        frames_per_second: Number of frames a second, which divides 30. A sequence at 5 shows every sixth frame of the
            one at 30 that lasts as long.
        on_progress: Function that receives the number of images written since its last call.
        processes: Number of processes; the number of CPUs by default.

    Raises:
        UsageError: Arguments that make no dataset, or a folder that holds something else.
        StorageError: The folder cannot be written.

    """
    counts = {"identities": identities, "sequences": sequences, "frames": frames, "cameras": cameras}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if size < _SMALLEST_SIZE_PX:
        raise UsageError(f"size must be at least {_SMALLEST_SIZE_PX} pixels, got {size}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}")
    if processes is not None and processes < 1:
        raise UsageError(f"processes must be at least 1, got {processes}")

    if not 1 <= frames_per_second <= FRAMES_PER_SECOND or FRAMES_PER_SECOND % frames_per_second:
        raise UsageError(f"the frame rate must divide {FRAMES_PER_SECOND}, got {frames_per_second}")
    plans = plan_sequences(identities, sequences, frames, cameras, size, seed, frames_per_second)
    per_split = {split: [plan.sequence_id for plan in plans if plan.split == split] for split in SPLITS}
    description = {
        "format": DATASET_FORMAT,
        "format_version": FORMAT_VERSION,
        "seed": seed,
        **counts,
        "size": size,
        "frames_per_second": frames_per_second,
        "splits": per_split,
    }
    try:
        with _replacing(out) as partial:
            _write_sequences(partial, plans, on_progress, processes or _available_cpus())
            (partial / DATASET_FILE).write_text(json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write the synthetic dataset to {out}: {error}") from error
    return SynthesisSummary(
        out=out,
        identities=len({plan.identity for plan in plans}),
        sequences=sequences,
        images=sequences * frames * cameras,
        sequences_per_split={split: len(ids) for split, ids in per_split.items()},
    )


def plan_sequences(
    identities: int,
    sequences: int,
    frames: int,
    cameras: int,
    size: int,
    seed: int,
    frames_per_second: int = FRAMES_PER_SECOND,
) -> list[SequencePlan]:
    """Deal sequences to identities, splits and hands."""
    used = min(identities, sequences)
    splits = identity_splits(used)
    plans = []
    for index in range(sequences):
        identity = index % used
        sides = _sides(seed, index)
        plan = SequencePlan(seed, index, identity, splits[identity], sides, frames, cameras, size, frames_per_second)
        plans.append(plan)
    return plans


def identity_splits(identities: int) -> list[Split]:
    """Return each identity's split: the last ones are held out."""
    if identities < 3:
        held_out: dict[Split, int] = {"val": identities - 1, "test": 0}
    else:
        held_out = dict.fromkeys(("val", "test"), max(1, round(_HELD_OUT_SHARE * identities)))
    splits: list[Split] = ["train"] * (identities - sum(held_out.values()))
    for split, count in held_out.items():
        splits += [split] * count
    return splits


def sample_planned_sequence(plan: SequencePlan) -> HandSequence:
    """Draw the sequence that a plan describes."""
    rng = np.random.default_rng([plan.seed, _SEQUENCE_STREAM, plan.index])
    identity = _identity(plan.seed, plan.identity)
    step = FRAMES_PER_SECOND // plan.frames_per_second
    return sample_sequence(rng, identity, plan.sides, plan.frames, plan.cameras, plan.size, step)


def noise_generator(plan: SequencePlan, frame: int, camera: int) -> np.random.Generator:
    """Return the random stream of one image's sensor noise."""
    return np.random.default_rng([plan.seed, _NOISE_STREAM, plan.index, frame, camera])


def sequence_labels(plan: SequencePlan, sequence: HandSequence) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a sequence's label file, see ``layout.LABEL_ARRAYS``."""
    world = np.zeros((plan.frames, KEYPOINT_COUNT, 3))
    pixels = np.zeros((plan.frames, plan.cameras, KEYPOINT_COUNT, 2))
    valid = np.zeros(KEYPOINT_COUNT, dtype=bool)
    for motion in sequence.motions:
        rows = hand_rows(motion.side)
        valid[rows] = True
        world[:, rows] = sequence.joints(motion)
        for index, view in enumerate(sequence.views):
            pixels[:, index, rows] = view.camera.project(world[:, rows])
    frame_index = np.arange(plan.frames)
    return {
        "frame_index": frame_index,
        "camera_id": np.array([_camera_id(camera) for camera in range(plan.cameras)]),
        "timestamp_s": frame_index / plan.frames_per_second,
        "keypoints_3d_world": world,
        "keypoints_valid": valid,
        "keypoints_2d": pixels,
        "camera_k": np.stack([view.camera.k for view in sequence.views]),
        "camera_t_world": np.stack([view.camera.t_world for view in sequence.views]),
        "image_size": np.array([plan.size, plan.size]),
        "identity": np.array(plan.identity),
    }


def write_sequence(folder: Path, plan: SequencePlan) -> int:
    """Render one sequence into its folder below ``folder``; return the number of images."""
    sequence = sample_planned_sequence(plan)
    target = folder / plan.split / plan.sequence_id
    for camera in range(plan.cameras):
        (target / _camera_id(camera)).mkdir(parents=True)
    np.savez(target / LABEL_FILE, **sequence_labels(plan, sequence))  # type: ignore[arg-type]
    for frame in range(plan.frames):
        scene = sequence.scene(frame)
        for camera in range(plan.cameras):
            rendering = sequence.render(scene, camera, noise_generator(plan, frame, camera))
            bgr = cv2.cvtColor(rendering.image, cv2.COLOR_RGB2BGR)
            name = _camera_id(camera), frame
            _write_image(target / image_path(*name), bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            _write_image(target / mask_path(*name), rendering.mask, [])
    return plan.frames * plan.cameras


def is_synthetic_dataset(folder: Path) -> bool:
    """Return whether a folder is one that ``write_dataset`` wrote."""
    try:
        description = json.loads((folder / DATASET_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and description.get("format") == DATASET_FORMAT


def _sides(seed: int, index: int) -> tuple[Side, ...]:
    """Draw which hands a sequence shows: every three sequences in a row show each kind once, in random order."""
    kinds: tuple[tuple[Side, ...], ...] = (("right",), ("left",), ("right", "left"))
    order = np.random.default_rng([seed, _SIDES_STREAM, index // len(kinds)]).permutation(len(kinds))
    return kinds[order[index % len(kinds)]]


@lru_cache(maxsize=32)
def _identity(seed: int, index: int) -> Identity:
    return build_identity(np.random.default_rng([seed, _IDENTITY_STREAM, index]))


def _camera_id(camera: int) -> str:
    return f"cam{camera}"


def _write_image(path: Path, pixels: NDArray[Any], options: list[int]) -> None:
    done, encoded = cv2.imencode(path.suffix, pixels, options)
    if not done:
        raise StorageError(f"cannot encode {path.name}")
    path.write_bytes(encoded.tobytes())


def _write_sequences(
    folder: Path, plans: list[SequencePlan], on_progress: Callable[[int], None] | None, processes: int
) -> None:
    report = on_progress or (lambda images: None)
    workers = min(processes, len(plans))
    if workers == 1:
        for plan in plans:
            report(write_sequence(folder, plan))
        return
    with process_pool(workers, _use_one_thread) as pool:
        futures = [pool.submit(write_sequence, folder, plan) for plan in plans]
        try:
            for future in as_completed(futures):
                report(future.result())
        except BrokenProcessPool as error:
            raise RunError("a rendering process died", "memory may be short: try fewer processes") from error


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _use_one_thread() -> None:
    """Keep OpenCV from starting a thread for every core in every process."""
    cv2.setNumThreads(1)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` to write to, which takes its place when all went well and vanishes otherwise."""
    if out.is_dir():
        if any(out.iterdir()) and not is_synthetic_dataset(out):
            raise UsageError(f"{out} is not empty and not a synthetic dataset", "name a new or empty folder")
    elif out.exists():
        raise UsageError(f"{out} is a file", "name a new or empty folder")
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    replaced = out.with_name(f".{out.name}.replaced-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.is_dir():
            out.rename(replaced)
        try:
            partial.rename(out)
        except OSError:
            replaced.rename(out)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
