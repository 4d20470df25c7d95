"""FoundHand-10M as its authors pack it: square crops around hands from thirteen datasets, a ``.npz`` beside each.

Layout (readme of https://github.com/arthurchen0518/FoundHand)::

    FoundHand10M/<Source>/<processed|processed_seq>/<split>/<sequence>/<frame>-<camera>.jpg
    FoundHand10M/<Source>/<processed|processed_seq>/<split>/<sequence>/<frame>-<camera>.npz

The label holds ``hand_mask`` (H, W) and ``kpts`` (42, 2), pixels of the crop, right hand first. The files published
with the code also hold the camera (``campos``, ``camrot``, ``focal``, ``princpt``), ``joint3d`` and ``joint_valid``.
Missing joints are (0, 0), joints outside the crop keep their real coordinates.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import numbers, read_npz, read_npz_and_shapes, require_finite
from handdata.adapters.reading.fields import label_flags
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.listing import copied_from, files_in, find_all, folders_in, is_folder, refuse_copies
from handdata.adapters.reading.paths import Fence
from handdata.schemas import (
    SOURCE_CARDS,
    SPLITS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    SourceCard,
    Split,
    Viewpoint,
    hand_states,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection

SEQUENCES_PER_PARTITION: Final = 64

_CAMERA_KEYS = ("campos", "camrot", "focal", "princpt")
_EGO_SOURCES = frozenset({"ego4d", "epickitchensvisor", "visor", "hoi4d"})
_UPSTREAM_SOURCES = {"interhand": "interhand26m", "epickitchensvisor": "visor"}
"""Names in the pack of those sources that have another name here."""
_MILLIMETRES_PER_METRE = 1000.0


class FoundHand10MAdapter:
    """Reads the packed release, whole or in part, of any of its sources."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["foundhand10m"]
    layouts: ClassVar[tuple[Layout, ...]] = (Layout("packed release", ("*/processed*/*/*/*.npz",)),)

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield runs of sequences, each within one source, processed folder and split.

        Raises:
            LayoutError: A folder is named as a copy of another one beside it.

        """
        groups: list[tuple[str, Split, list[str]]] = []
        for folder in _split_folders(root):
            split = _split_of(folder)
            if split is not None and is_folder(folder):
                prefix = folder.relative_to(root).as_posix()
                found = folders_in(folder)
                refuse_copies(found)
                sequences = [child.name for child in found]
                groups.append((prefix, split, sequences))
        yield from sorted(
            (
                Partition(
                    name=f"{prefix}/{start // SEQUENCES_PER_PARTITION:05d}",
                    split=split,
                    paths=tuple(f"{prefix}/{name}" for name in sequences[start : start + SEQUENCES_PER_PARTITION]),
                )
                for prefix, split, sequences in groups
                for start in range(0, len(sequences), SEQUENCES_PER_PARTITION)
            ),
            key=lambda partition: partition.name,
        )

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line that names the folders beside those of the splits."""
        places = sorted({folder.parent for folder in _split_folders(root)})
        folders = [folder for place in places for folder in folders_in(place) if _split_of(folder) is None]
        others = [folder.relative_to(root).as_posix() for folder in folders]
        if others:
            yield f"these folders are not named as splits are, and are not read: {', '.join(others)}"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the frames of a partition, sequence by sequence, in the order of frame number and camera."""
        fence = Fence(root, self.options.follow_links)
        for relative in partition.paths:
            folder = root / relative
            if not is_folder(folder):
                gone = RecordError(RejectReason.LABEL_MISSING, f"{folder} does not exist any more")
                yield rejection(f"{self.card.name}/{partition.split}/{relative}", str(folder), gone)
                continue
            stems = {path.stem for path in files_in(folder, ".jpg", ".npz")}
            if not stems:
                empty = RecordError(RejectReason.LABEL_MISSING, f"{folder} holds neither images nor labels")
                yield rejection(f"{self.card.name}/{partition.split}/{relative}", str(folder), empty)
            for frame in sorted(_frame(relative, stem) for stem in stems):
                first = copied_from(frame.stem, stems)
                if first is None:
                    yield _read_frame(folder, partition.split, frame, fence)
                else:  # it would be a frame of another camera
                    copied = RecordError(RejectReason.LABEL_CORRUPT, f"{frame.stem} is named as a copy of {first}")
                    name = f"{self.card.name}/{partition.split}/{relative}/{frame.stem}"
                    yield rejection(name, str(folder / f"{frame.stem}.jpg"), copied)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the pack's own mask of both hands, at the size of the image.

        It was made by SAM from keypoints, often with the forearm, and sometimes it misses the hand altogether.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        path = Path(record.image_uri).with_suffix(".npz")
        try:
            mask = read_npz(path, ("hand_mask",))["hand_mask"]
            _mask_size(path, mask.shape)
        except RecordError as error:
            raise RecordError(RejectReason.MASK_UNREADABLE, error.detail) from None
        # The nearest pixels, taken before anything else is made of a mask that may be far larger than the image.
        rows, columns = (
            ((np.arange(pixels) + 0.5) * stored / pixels).astype(np.int64)
            for pixels, stored in zip((record.height, record.width), mask.shape, strict=True)
        )
        return np.asarray(mask[rows[:, None], columns] != 0)


def _split_folders(root: Path) -> list[Path]:
    """Return what lies where the folders of the splits do, sorted.

    Raises:
        LayoutError: One of them, or of the folders around them, is named as a copy of another one.

    """
    found = find_all(root, "*/processed*/*")
    for folders in ({path.parents[1] for path in found}, {path.parent for path in found}, found):
        refuse_copies(folders)
    return found


def _split_of(folder: Path) -> Split | None:
    return next((split for split in SPLITS if split == folder.name.lower()), None)


class _Frame(NamedTuple):
    """One image of a sequence folder; frames sort by number, then by name."""

    frame_index: int
    stem: str
    upstream: str
    sequence_id: str
    camera_id: str
    origin_id: str
    """Identity of the frame in its own dataset: the same in both processed folders and in any split."""


def _frame(folder: str, stem: str) -> _Frame:
    """Return a file's identity, from its folder (``<Source>/<processed>/<split>/<sequence>``) and name without suffix.

    The name is split at its last ``-``: the uuids of stills hold more of them, camera names none. A frame whose id is
    no number is a still, a sequence of its own. The processed folder is kept in the sequence id, for nothing says that
    ``processed`` and ``processed_seq`` of one source do not share sequence names.
    """
    upstream, processed, _, sequence = folder.split("/")
    sequence_id = f"{upstream}__{processed}__{sequence}"
    name = _plain(upstream)
    origin_id = f"{_UPSTREAM_SOURCES.get(name, name)}/{sequence}/{stem}"
    frame_id, _, camera_id = stem.rpartition("-")
    if not frame_id or not camera_id:
        frame_id, camera_id = stem, "0"
    if frame_id.isascii() and frame_id.isdecimal() and int(frame_id) < 2**31:
        return _Frame(int(frame_id), stem, upstream, sequence_id, camera_id, origin_id)
    return _Frame(0, stem, upstream, f"{sequence_id}__{frame_id}", camera_id, origin_id)


def _plain(upstream: str) -> str:
    """Return a source folder's name without case and punctuation: only two of the thirteen spellings are published."""
    return "".join(character for character in upstream.lower() if character.isalnum())


def _viewpoint(upstream: str, camera_id: str) -> Viewpoint:
    """Return ``ego`` for head-mounted cameras.

    Camera 0 of ARCTIC is on the head, and so are the cameras of AssemblyHands whose names begin with HMC.
    """
    name = _plain(upstream)
    on_head = (
        name in _EGO_SOURCES
        or (name == "arctic" and camera_id == "0")
        or (name == "assemblyhands" and "HMC" in camera_id.upper())
    )
    return "ego" if on_head else "exo"


def _read_frame(folder: Path, split: Split, frame: _Frame, fence: Fence) -> HandRecord | Rejection:
    image_path = folder / f"{frame.stem}.jpg"
    label_path = folder / f"{frame.stem}.npz"
    try:
        width, height = read_image_size(image_path)
        fence.check(str(label_path))
        optional = ("joint_valid", "joint3d", *_CAMERA_KEYS)
        arrays, shapes = read_npz_and_shapes(label_path, ("kpts",), optional)
        # Only where the image was resized after the label was written do the two sizes differ.
        mask_width, mask_height = _mask_size(label_path, shapes.get("hand_mask", (height, width)))
        scale = np.array([width / mask_width, height / mask_height])

        keypoints = numbers(label_path, "kpts", arrays["kpts"], (42, 2))
        require_finite(label_path, "kpts", keypoints)
        labels_validity = "joint_valid" in arrays
        if labels_validity:
            valid = label_flags(label_path, "joint_valid", arrays["joint_valid"], 42)
        else:
            valid = (keypoints != 0).any(axis=1)
        camera = _read_camera(label_path, arrays, scale) if arrays.keys() & set(_CAMERA_KEYS) else None
        return HandRecord(
            source=FoundHand10MAdapter.card.name,
            split=split,
            sequence_id=frame.sequence_id,
            frame_index=frame.frame_index,
            camera_id=frame.camera_id,
            origin_id=frame.origin_id,
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint=_viewpoint(frame.upstream, frame.camera_id),
            keypoints_valid=valid,
            keypoints_2d=keypoints * scale,
            # Without joint_valid a hand of zeros may be one that the pack's own detector missed.
            hand_state=hand_states(valid, "absent" if labels_validity else "unknown"),
            keypoints_3d=_read_keypoints_3d(label_path, arrays["joint3d"], valid, camera[1])
            if camera is not None and "joint3d" in arrays
            else None,
            camera_k=None if camera is None else camera[0],
            camera_t_world=None if camera is None else camera[1],
            has_mask="hand_mask" in shapes,
            mask_extent="unknown" if "hand_mask" in shapes else None,
        )
    except Exception as error:
        name = record_name(FoundHand10MAdapter.card.name, split, frame.sequence_id, frame.frame_index, frame.camera_id)
        return frame_rejection(name, str(image_path), error, label_path)


def _mask_size(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (width, height) of a mask.

    Raises:
        RecordError: ``label_corrupt``: it is not an image.

    """
    if len(shape) != 2 or 0 in shape:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: hand_mask should be (height, width), is {shape}")
    return shape[1], shape[0]


def _read_camera(
    path: Path, arrays: dict[str, NDArray[np.generic]], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (3, 3) intrinsics in pixels of the image and the (4, 4) transform world to camera in metres.

    The pack gives X_camera = camrot (X_world - campos) in millimetres. The two focal lengths differ, because crops at
    the border of the original image were stretched to a square.

    Raises:
        RecordError: ``label_corrupt``: a part of the camera is missing; or ``label_not_finite``.

    """
    missing = set(_CAMERA_KEYS) - arrays.keys()
    if missing:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} has a camera without {', '.join(sorted(missing))}")
    shapes = {"campos": (3,), "camrot": (3, 3), "focal": (2,), "princpt": (2,)}
    values = {name: numbers(path, name, arrays[name], shape) for name, shape in shapes.items()}
    for name, value in values.items():
        require_finite(path, name, value)
    camera_k = np.eye(3)
    camera_k[[0, 1], [0, 1]] = values["focal"] * scale
    camera_k[:2, 2] = values["princpt"] * scale
    camera_t_world = np.eye(4)
    camera_t_world[:3, :3] = values["camrot"]
    camera_t_world[:3, 3] = -values["camrot"] @ values["campos"] / _MILLIMETRES_PER_METRE
    return camera_k, camera_t_world


def _read_keypoints_3d(
    path: Path, joint3d: NDArray[np.generic], valid: BoolArray, camera_t_world: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (42, 3) metres in the camera frame, 0 where not valid."""
    world = numbers(path, "joint3d", joint3d, (42, 3)) / _MILLIMETRES_PER_METRE
    require_finite(path, "joint3d", world[valid])
    camera = world @ camera_t_world[:3, :3].T + camera_t_world[:3, 3]
    return np.where(valid[:, None], camera, 0.0)
