"""DexYCB: a hand grasps YCB objects in front of eight synchronised RealSense cameras.

Layout (https://dex-ycb.github.io, https://github.com/NVlabs/dex-ycb-toolkit)::

    <root>/<date>-subject-<NN>/<sequence>/meta.yml
    <root>/<date>-subject-<NN>/<sequence>/<serial>/color_<frame>.jpg, labels_<frame>.npz
    <root>/calibration/intrinsics/<serial>_640x480.yml
    <root>/calibration/extrinsics_<id>/extrinsics.yml

A label holds ``joint_2d`` (1, 21, 2) pixels and ``joint_3d`` (1, 21, 3) metres in the camera frame, already in
handdata's joint order and all -1 where the frame has no annotation (such frames are kept, without joints), and ``seg``
(480, 640), 255 on the hand. A sequence labels one hand, which ``meta.yml`` names; the other one is ``unknown``.

**Splits** are those of setup s0: the position of a sequence among its subject's hundred decides. The names of all
thousand are in ``dexycb_sequences.txt``, so that a subject may be unpacked in part. Where a subject has a sequence that
is not listed there, the position among its folders on the disk decides, and ``warnings`` says so. Folders that are not
named as sequences are (``20200709_141754``) do not count.

**No timestamps**: the cameras ran at 30 fps, synchronising them dropped frames, and the rate that is left was never
measured (the authors, https://github.com/NVlabs/handover-sim/issues/14).
"""

import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import yaml

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import numbers, read_npz_and_shapes, require_finite
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import Array, intrinsics, invert_rigid, place_hands, place_validity
from handdata.adapters.reading.images import read_image_size, require_size
from handdata.adapters.reading.listing import files_in, folders_in, holds_match
from handdata.adapters.reading.masks import read_npz_labels
from handdata.adapters.reading.paths import Fence, read_text, resolve_below
from handdata.schemas import (
    KEYPOINTS_PER_HAND,
    SIDES,
    SOURCE_CARDS,
    HandRecord,
    LayoutError,
    RecordError,
    Rejection,
    RejectReason,
    Side,
    SourceCard,
    Split,
    hand_states,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection

SEQUENCES_PER_PARTITION: Final = 10
MAX_YAML_BYTES: Final = 2**17
"""The longest of these files has less than a tenth of this; YAML of megabytes takes minutes to parse."""
MAX_FRAMES: Final = 100_000
"""Sequences have about 73 frames; a larger number than this is a damaged ``meta.yml``."""

_OBJECTS: Final = (
    *("002_master_chef_can", "003_cracker_box", "004_sugar_box", "005_tomato_soup_can", "006_mustard_bottle"),
    *("007_tuna_fish_can", "008_pudding_box", "009_gelatin_box", "010_potted_meat_can", "011_banana"),
    *("019_pitcher_base", "021_bleach_cleanser", "024_bowl", "025_mug", "035_power_drill", "036_wood_block"),
    *("037_scissors", "040_large_marker", "051_large_clamp", "052_extra_large_clamp", "061_foam_brick"),
)
"""Names of the YCB objects, which the labels number from 1."""

SEQUENCES_PER_SUBJECT: Final = 100

_SUBJECT_NAME: Final = re.compile(r"[0-9]{8}-subject-[0-9]{2}")
_SUBJECT_NUMBER: Final = re.compile(r"-subject-([0-9]+)")
"""Part of the name of a subject's folder and of all copies of it."""
_SEQUENCE_NAME: Final = re.compile(r"[0-9]{8}_[0-9]{6}")
_IMAGE_NAME: Final = re.compile(r"color_([0-9]{6})\.jpg")
_RENAME: Final = "give it the name of its archive, such as 20200709-subject-01"
_SIZE: Final = (640, 480)
"""Width and height of all images, whose pixels the labels count."""
_HAND_LABEL: Final = 255
_MISSING: Final = -1.0
_VAL_SUBJECTS: Final = frozenset({"01", "02"})
"""Setup s0 puts the held-out sequences of these subjects into val, those of the others into test."""


class DexYCBAdapter:
    """Reads any number of subject archives, unpacked into one folder with the calibration archive."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["dexycb"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("subject and calibration archives", ("*-subject-*/*/meta.yml", "calibration/intrinsics/*_640x480.yml")),
    )
    unused: ClassVar[tuple[str, ...]] = (
        "calibration/mano_*",
        "models",
        "bop",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield runs of sequences, each of one subject and one split.

        Raises:
            LayoutError: A subject is there twice, or its folder has another name than its archive gives it.

        """
        found = []
        for subject in _subjects(root):
            splits: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
            for sequence, position in subject.positions().items():
                splits[_split(subject.name, position)].append(f"{subject.name}/{sequence}")
            found += [
                Partition(
                    name=f"{subject.name}/{split}/{start // SEQUENCES_PER_PARTITION:02d}",
                    split=split,
                    paths=tuple(sequences[start : start + SEQUENCES_PER_PARTITION]),
                )
                for split, sequences in splits.items()
                for start in range(0, len(sequences), SEQUENCES_PER_PARTITION)
            ]
        yield from sorted(found, key=lambda partition: partition.name)

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line for each subject that has not its hundred sequences, and for folders that are none."""
        for subject in _subjects(root):
            count = len(subject.sequences)
            if count != SEQUENCES_PER_SUBJECT and subject.is_listed:
                yield (
                    f"{subject.name} has {count} of its {SEQUENCES_PER_SUBJECT} sequences; "
                    "their splits are those of the papers"
                )
            elif count != SEQUENCES_PER_SUBJECT:
                yield (
                    f"{subject.name} has {count} sequences, not {SEQUENCES_PER_SUBJECT}, and not all are known: their "
                    "splits come from their positions and may differ from those of the papers"
                )
            elif subject.name in published_sequences() and not subject.is_listed:
                yield (
                    f"{subject.name} has {SEQUENCES_PER_SUBJECT} sequences, and not all are those of the papers: their "
                    "splits come from their positions and may differ"
                )
            if subject.others:
                yield f"{subject.name}: these folders are no sequences and are not read: {', '.join(subject.others)}"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the frames of a partition, sequence by sequence, in the order of frame number and camera."""
        fence = Fence(root, self.options.follow_links)
        for relative in partition.paths:
            try:
                sequence = _read_sequence(root, relative)
            except RecordError as error:
                name = f"{self.card.name}/{partition.split}/{relative}"
                yield rejection(name, str(root / relative / "meta.yml"), error)
                continue
            for frame in range(sequence.frames):
                for camera in sequence.cameras:
                    yield _read_frame(root, partition.split, sequence, camera, frame, fence)
            yield from _images_beyond_meta(root, partition.split, sequence)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the pixels that the segmentation labels as hand.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        labels = read_npz_labels(_label_path(Path(record.image_uri)), "seg", (record.width, record.height))
        return np.asarray(labels == _HAND_LABEL)


@dataclass(frozen=True, slots=True)
class _Camera:
    serial: str
    k: Array
    t_world: Array


@dataclass(frozen=True, slots=True)
class _Sequence:
    name: str
    """Subject folder / sequence folder."""
    side: Side
    frames: int
    cameras: list[_Camera]
    object_name: str | None
    """Name of the object that the hand grasps."""


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    sequences: list[str]
    """Sorted names of the folders that are named as sequences are."""
    others: list[str]
    """Names of its other folders."""

    @property
    def is_listed(self) -> bool:
        """Return whether all sequences are among those that the authors published."""
        return set(self.sequences) <= set(published_sequences().get(self.name, ()))

    def positions(self) -> dict[str, int]:
        """Return the position of each sequence among the subject's hundred, or among those there are."""
        ordered = published_sequences()[self.name] if self.is_listed and self.sequences else self.sequences
        return {name: position for position, name in enumerate(ordered) if name in set(self.sequences)}


@lru_cache(maxsize=1)
def published_sequences() -> dict[str, list[str]]:
    """Return the sorted names of all sequences by subject.

    The names are those in the lists ``left_side.csv`` and ``right_side.csv`` of
    https://github.com/Shurui8860/dexYCB_dataloader (499 and 501). The first and last five are those that the readme of
    https://github.com/NVlabs/dex-ycb-toolkit shows.
    """
    lines = read_text(Path(__file__).with_name("dexycb_sequences.txt")).splitlines()
    fields = [line.split() for line in lines]
    return {subject: [f"{subject.partition('-')[0]}_{time}" for time in times] for subject, *times in fields}


def _subjects(root: Path) -> list[_Subject]:
    """Return the subjects below ``root`` in the order of their names.

    Raises:
        LayoutError: A subject is there twice, or its folder has another name than its archive gives it.

    """
    by_number: dict[str, list[str]] = {}
    found = []
    for folder in folders_in(root):
        number = _SUBJECT_NUMBER.search(folder.name)
        if number is None:
            if holds_match(folder, "*/meta.yml"):
                raise LayoutError(f"{folder} holds sequences and is not named as a subject is", _RENAME)
            continue
        by_number.setdefault(number[1], []).append(folder.name)
        inside = [path.name for path in folders_in(folder)]
        nested = [name for name in inside if _SUBJECT_NUMBER.search(name)]
        if nested:
            raise LayoutError(
                f"{folder} holds the folder of a subject, {nested[0]}",
                f"move {nested[0]} up: subjects lie side by side in {root}",
            )
        found.append(
            _Subject(
                folder.name,
                [name for name in inside if _SEQUENCE_NAME.fullmatch(name)],
                [name for name in inside if not _SEQUENCE_NAME.fullmatch(name)],
            )
        )
    for number_text, names in by_number.items():
        if len(names) > 1:
            raise LayoutError(
                f"{root} holds subject {number_text} more than once: {', '.join(names)}",
                "keep one of these folders and move the others away",
            )
        if not _SUBJECT_NAME.fullmatch(names[0]):
            raise LayoutError(
                f"{root / names[0]} is not named as a subject is",
                _RENAME,
            )
    return found


def _split(subject: str, position: int) -> Split:
    """Return the split of setup s0, from a sequence's position among the sorted ones of its subject."""
    if position % 5 != 4:
        return "train"
    return "val" if subject.rpartition("-")[2] in _VAL_SUBJECTS else "test"


def _label_path(image_path: Path) -> Path:
    return image_path.with_name(image_path.name.replace("color_", "labels_", 1)).with_suffix(".npz")


def _read_sequence(root: Path, relative: str) -> _Sequence:
    """Return what ``meta.yml`` and the calibration files say about a sequence.

    Raises:
        RecordError: ``label_missing``, ``label_corrupt``, ``label_not_finite`` or ``path_escapes_root``.

    """
    path = root / relative / "meta.yml"
    meta = _read_yaml(path)
    try:
        serials = [_text(serial) for serial in meta["serials"]]
        frames = int(meta["num_frames"])
        (named_side,) = meta["mano_sides"]
        extrinsics_id = _text(meta["extrinsics"])
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, f"should name serials, num_frames, extrinsics and one of mano_sides: {error!r}") from None
    side = next((side for side in SIDES if side == named_side), None)
    if side is None or not 0 < frames <= MAX_FRAMES or len(set(serials)) != len(serials):
        raise _corrupt(path, f"has the side {reprlib.repr(named_side)}, {frames} frames and the cameras {serials}")
    for serial in serials:
        resolve_below(root, serial)
    calibration = root / "calibration"
    extrinsics_path = resolve_below(calibration, f"extrinsics_{extrinsics_id}/extrinsics.yml")
    extrinsics = _read_yaml(extrinsics_path).get("extrinsics")
    cameras = []
    for serial in serials:
        intrinsics_path = calibration / f"intrinsics/{serial}_640x480.yml"
        colour = _read_yaml(intrinsics_path).get("color")
        fx, fy, cx, cy = (_number_list(intrinsics_path, colour, name, 1)[0] for name in ("fx", "fy", "ppx", "ppy"))
        world_t_camera = _number_list(extrinsics_path, extrinsics, serial, 12).reshape(3, 4)
        try:
            camera_t_world = invert_rigid(world_t_camera)
        except ValueError as error:
            raise _corrupt(extrinsics_path, f"{serial}: {error}") from None
        cameras.append(_Camera(serial, intrinsics((fx, fy), (cx, cy)), camera_t_world))
    return _Sequence(relative, side, frames, cameras, _grasped_object(meta))


def _grasped_object(meta: dict[str, Any]) -> str | None:
    """Return the name of the object that the hand grasps; None where ``meta.yml`` does not say."""
    try:
        number = int(meta["ycb_ids"][int(meta["ycb_grasp_ind"])])
        return _OBJECTS[number - 1] if number >= 1 else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _images_beyond_meta(root: Path, split: Split, sequence: _Sequence) -> Iterator[Rejection]:
    """Yield a rejection for each camera with images that ``meta.yml`` does not count or name."""
    cameras = {camera.serial for camera in sequence.cameras}
    for folder in folders_in(root / sequence.name):
        numbers_found = (_IMAGE_NAME.fullmatch(path.name) for path in files_in(folder))
        frames = [int(match[1]) for match in numbers_found if match is not None]
        counted = sequence.frames if folder.name in cameras else 0
        beyond = [frame for frame in frames if frame >= counted]
        if beyond:
            detail = (
                f"{root / sequence.name / 'meta.yml'} has {counted} frames of {folder.name}, which has {max(beyond)}"
            )
            name = f"{DexYCBAdapter.card.name}/{split}/{sequence.name}/{folder.name}"
            yield rejection(name, str(folder), RecordError(RejectReason.LABEL_MISSING, f"{detail} too"))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{reprlib.repr(value)} is no name")
    return value


class _YamlLoader(yaml.BaseLoader):
    """PyYAML's loader of texts, lists and mappings, to which a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.most_common(1):
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML mapping with all scalars as text.

    Text, because YAML 1.1 takes an unquoted ``20200702_151821`` for an integer. The loader that does so is also the one
    that ignores tags: extrinsics are tagged ``!!python/tuple``, which safe loaders reject.

    Raises:
        RecordError: ``label_missing`` or ``label_corrupt``.

    """
    try:
        text = read_text(path, MAX_YAML_BYTES)
        document = yaml.load(text, Loader=_YamlLoader)  # noqa: S506  it builds text, lists and mappings only
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise _corrupt(path, str(error)) from None
    if not isinstance(document, dict):
        raise _corrupt(path, "is no mapping")
    return document


def _number_list(path: Path, mapping: object, key: str, count: int) -> Array:
    """Return the ``count`` finite numbers below a key, a list of them or one of rows."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    try:
        # A few hundred bytes of YAML name billions of numbers by lists of references to lists of references.
        listed = value if isinstance(value, list) else [value]
        rows = [row if isinstance(row, list) else [row] for row in listed[: count + 1]]
        flat = [number for row in rows for number in row[: count + 1]]
        array = np.array([float(_text(number)) for number in flat])
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.size != count:
        raise _corrupt(path, f"{key} should be {count} numbers, is {reprlib.repr(value)}")
    require_finite(path, key, array)
    return array


def _corrupt(path: Path, problem: str) -> RecordError:
    return RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {problem}")


def _read_frame(
    root: Path, split: Split, sequence: _Sequence, camera: _Camera, frame: int, fence: Fence
) -> HandRecord | Rejection:
    image_path = root / sequence.name / camera.serial / f"color_{frame:06d}.jpg"
    label_path = _label_path(image_path)
    source = DexYCBAdapter.card.name
    try:
        width, height = read_image_size(image_path)
        require_size(image_path, (width, height), _SIZE)
        fence.check(str(label_path))
        arrays, shapes = read_npz_and_shapes(label_path, ("joint_2d", "joint_3d"))
        if shapes.get("seg", (height, width)) != (height, width):
            detail = f"{image_path} is {width} x {height}, its segmentation has the shape {shapes['seg']}"
            raise RecordError(RejectReason.IMAGE_SIZE_MISMATCH, detail)
        pixels = numbers(label_path, "joint_2d", arrays["joint_2d"], (1, KEYPOINTS_PER_HAND, 2))[0]
        metres = numbers(label_path, "joint_3d", arrays["joint_3d"], (1, KEYPOINTS_PER_HAND, 3))[0]
        # Exactly the filler: joints beyond the left and upper border have negative coordinates too.
        annotated = ~((pixels == _MISSING).all(axis=1) | (metres == _MISSING).all(axis=1))
        require_finite(label_path, "joint_2d", pixels[annotated])
        require_finite(label_path, "joint_3d", metres[annotated])
        valid = place_validity(**{sequence.side: annotated})
        return HandRecord(
            source=source,
            split=split,
            sequence_id=sequence.name,
            frame_index=frame,
            camera_id=camera.serial,
            subject_id=sequence.name.partition("/")[0],
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint="exo",
            keypoints_valid=valid,
            keypoints_2d=place_hands(**{sequence.side: pixels}),
            hand_state=hand_states(valid, "unknown"),
            keypoints_3d=place_hands(**{sequence.side: metres}, dimensions=3),
            camera_k=camera.k,
            camera_t_world=camera.t_world,
            has_mask="seg" in shapes,
            mask_extent="hand" if "seg" in shapes else None,
            attributes=None if sequence.object_name is None else {"object": sequence.object_name},
        )
    except Exception as error:
        return frame_rejection(
            record_name(source, split, sequence.name, frame, camera.serial), str(image_path), error, label_path
        )
