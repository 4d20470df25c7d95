"""ARCTIC: two hands handle articulated objects before eight static cameras and one on the head.

Layout (https://github.com/zc-alexfan/arctic, docs/data), where one of the two image folders is enough::

    <root>/arctic_data/data/images/<subject>/<sequence>/<view>/<frame>.jpg           full images
    <root>/arctic_data/data/cropped_images/<subject>/<sequence>/<view>/<frame>.jpg   1000 x 1000, head camera 840 x 600
    <root>/arctic_data/data/meta/misc.json                                           static cameras, frame offsets
    <root>/arctic_data/data/splits/p1_<split>.npy, p2_<split>.npy                    the labels, pickled

Protocol p1 lists the static views 1 to 8, p2 the head camera, view 0; together they are the dataset. Each file is one
pickled dict of many gigabytes, whose arrays stay views of the mapped file. Label arrays have ten views: 0 is the head
camera without its lens distortion, 9 with it. The images are distorted, so their pixels are those of view 9, their 3D
points those of view 0 (``common/transforms.py`` and ``src/arctic/processing.py`` of the repository).

A hand's flag is 1 where its wrist and two more joints lie in the view. A flag of 0 says nothing: the hand may still
reach into the image, so it is ``unknown``. **No timestamps**: the authors do not state the rate (issue 60).
"""

import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import number_array, numbers, require_finite
from handdata.adapters.reading.fields import label_flags
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import (
    Array,
    apply_affine,
    pixel_affine,
    place_hands,
    place_validity,
    rational_fold_radius,
    reorder_joints,
)
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.json_stream import read_json
from handdata.adapters.reading.listing import exists, is_file, is_folder, is_named
from handdata.adapters.reading.paths import resolve_below
from handdata.adapters.reading.pickles import load_object_npy
from handdata.schemas import (
    SIDES,
    SOURCE_CARDS,
    SPLITS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    SourceCard,
    Split,
    hand_states,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection

PARTITIONS_PER_SPLIT: Final = 16
"""Each walks the split's files (seconds) and then reads its share of the sequences (minutes)."""

_FOLDERS: Final = ("arctic_data/data", "data", ".")
"""Where ``splits`` may lie, seen from the root."""
_PROTOCOLS: Final = ("p1", "p2")
_JOINT_ORDER: Final = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
"""MANO's order: the little finger comes before the ring finger, and all tips at the end."""
_EGO, _EGO_DISTORTED, _STATIC_VIEWS, _LABEL_VIEWS = 0, 9, 8, 10
_IMAGE_NAME: Final = re.compile(r"(?:\A|/)([^/]+/[^/]+)/([0-8])/([0-9]{1,9})\.jpg\Z")
"""Only the end of a listed name is a path; what stands before it belongs to the authors' machine."""
_CROP_MARGIN: Final = 1.5
_BBOX_UNIT_PX: Final = 200.0


class ArcticAdapter:
    """Reads the ready-made splits with full or cropped images; no body model is needed."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["arctic"]
    layouts: ClassVar[tuple[Layout, ...]] = tuple(
        Layout(name, (f"{prefix}splits/p[12]_*.npy", f"{prefix}meta/misc.json"), "the labels")
        for name, prefix in (
            ("as unpacked", "arctic_data/data/"),
            ("the folder arctic_data", "data/"),
            ("the folder arctic_data/data", ""),
        )
    )
    unused: ClassVar[tuple[str, ...]] = (
        "*cropped_images",
        "*images.zip",
        "*raw_seqs",
        "*splits_json",
        "*_vtemplates",
        "*feat",
        "*mocap",
        "*models",
        "*meta/*",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield shares of the sequences of each split; both protocols of a split belong to each."""
        folder = next((name for name in _FOLDERS if is_folder(root / name / "splits")), _FOLDERS[0])
        for split in sorted(SPLITS):
            files = [Path(folder, "splits", f"{protocol}_{split}.npy") for protocol in _PROTOCOLS]
            paths = tuple(path.as_posix() for path in files if is_named(root / path))
            if paths:
                for share in range(PARTITIONS_PER_SPLIT):
                    yield Partition(f"{split}/{share:02d}", split, paths, str(share))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the listed images of the partition's sequences, in the order of sequence, frame number and view."""
        share = int(partition.selection)
        data = (root / partition.paths[0]).parents[1]
        files: list[_SplitFile] = []
        problems: list[Rejection] = []
        for relative in partition.paths:
            name = f"{self.card.name}/{partition.split}/{Path(relative).name}"
            try:
                files.append(_read_split_file(root / relative))
            except RecordError as error:
                problems.append(rejection(name, str(root / relative), error))
                continue
            for unusable in files[-1].unusable:
                problem = RecordError(RejectReason.LABEL_CORRUPT, f"{root / relative} lists the image {unusable}")
                problems.append(rejection(f"{name}/{unusable}", unusable, problem))
        listed = {name for file in files for name in file.images}
        for name in sorted({str(name) for file in files for name in file.sequences} - listed):
            problem = RecordError(RejectReason.LABEL_MISSING, f"{data / 'splits'} lists no image of {name!r}")
            problems.append(rejection(f"{self.card.name}/{partition.split}/{name}", str(data / "splits"), problem))
        if share == 0:
            yield from problems  # what belongs to no sequence is reported once
        sequences = sorted(listed)[share::PARTITIONS_PER_SPLIT]
        cameras = _read_cameras(data / "meta/misc.json") if sequences else {}
        for name in sequences:
            images = {image: file for file in reversed(files) for image in file.images.get(name, ())}
            labels = {file.path: _read_sequence(file, name, cameras) for file in set(images.values())}
            for (frame, view), file in sorted(images.items(), key=lambda item: item[0]):
                yield _read_image(data, partition.split, name, frame, view, labels[file.path])

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"arctic has no masks, asked for that of {record.image_uri}")


@dataclass(frozen=True, slots=True, eq=False)
class _SplitFile:
    path: Path
    sequences: dict[str, Any]
    images: dict[str, set[tuple[int, int]]]
    """The (frame, view) of the listed images, by sequence."""
    unusable: list[str]
    """Listed names that are not names of images."""


@dataclass(frozen=True, slots=True)
class _Cameras:
    """What ``misc.json`` says of a subject's recordings."""

    frame_offset: int
    sizes: Array
    """(9, 2) width and height of each view."""
    k: Array
    """(8, 3, 3) intrinsics of the static views."""
    t_world: Array
    """(8, 4, 4) world to camera of the static views, metres."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    """The labels of a sequence; arrays of one row a frame are views of the mapped file."""

    path: Path
    cameras: _Cameras
    frames: int
    boxes: NDArray[np.generic]
    ego_k: NDArray[np.generic]
    ego_distortion: NDArray[np.generic]
    ego_t_world: NDArray[np.generic]
    hands: dict[str, NDArray[np.generic]] | None
    """Pixels, metres and flags by ``<side>_2d``, ``<side>_3d``, ``<side>_valid``; None in the test split."""


def _read_split_file(path: Path) -> _SplitFile:
    """Return a split file's labels and its image list by sequence.

    Raises:
        RecordError: ``label_missing``, ``label_unsafe`` or ``label_corrupt``.

    """
    found = load_object_npy(path)
    sequences = found.get("data_dict") if isinstance(found, dict) else None
    names = found.get("imgnames") if isinstance(found, dict) else None
    if not isinstance(sequences, dict) or not isinstance(names, list | tuple | np.ndarray):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} should be a dict of data_dict and imgnames")
    images: dict[str, set[tuple[int, int]]] = {}
    unusable: dict[str, None] = {}
    for name in names:
        match = _IMAGE_NAME.search(name) if isinstance(name, str) else None
        if match is None:
            unusable[name[:200] if isinstance(name, str) else reprlib.repr(name)] = None
        else:
            images.setdefault(match[1], set()).add((int(match[3]), int(match[2])))
    return _SplitFile(path, sequences, images, list(unusable))


def _read_cameras(path: Path) -> dict[str, _Cameras | RecordError]:
    """Return the static cameras of each subject, or what is wrong with them; "" stands for the file as a whole."""
    try:
        document = read_json(path)
    except RecordError as error:
        return {"": error}
    if not isinstance(document, dict):
        return {"": RecordError(RejectReason.LABEL_CORRUPT, f"{path} is no object of subjects")}
    cameras: dict[str, _Cameras | RecordError] = {}
    for subject, entry in document.items():
        try:
            offset = entry["ioi_offset"]
            if type(offset) is not int or abs(offset) >= 2**31:
                raise TypeError(f"ioi_offset is {offset!r}")
            shapes = {"image_size": (9, 2), "intris_mat": (8, 3, 3), "world2cam": (8, 4, 4)}
            arrays = [number_array(path, f"{subject} {name}", entry[name], shape) for name, shape in shapes.items()]
            for name, array in zip(shapes, arrays, strict=True):
                require_finite(path, f"{subject} {name}", array)
            cameras[subject] = _Cameras(offset, *arrays)
        except (KeyError, TypeError, ValueError) as error:
            cameras[subject] = RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {subject}: {error!r}")
        except RecordError as error:
            cameras[subject] = error
    return cameras


def _read_sequence(file: _SplitFile, name: str, cameras: dict[str, _Cameras | RecordError]) -> _Sequence | RecordError:
    """Return the labels of a sequence, or why none of its images can be used."""
    subject = name.partition("/")[0]
    missing = RecordError(RejectReason.LABEL_MISSING, f"misc.json has no subject {subject!r}")
    camera = cameras.get("") or cameras.get(subject, missing)
    if isinstance(camera, RecordError):
        return camera
    labels = file.sequences.get(name)
    if labels is None:
        return RecordError(RejectReason.LABEL_MISSING, f"{file.path} lists images of {name!r} but has no labels of it")
    try:
        boxes = _rows(file.path, name, labels, ("bbox",), (_STATIC_VIEWS + 1, 3))
        frames = len(boxes)
        hands = None
        if "cam_coord" in labels or "2d" in labels:  # the test split has neither
            hands = {}
            for side in SIDES:
                for key, group, shape in (
                    (f"{side}_2d", ("2d", f"joints.{side}"), (_LABEL_VIEWS, 21, 2)),
                    (f"{side}_3d", ("cam_coord", f"joints.{side}"), (_LABEL_VIEWS, 21, 3)),
                    (f"{side}_valid", ("cam_coord", f"{side}_valid"), (_STATIC_VIEWS + 1,)),
                ):
                    hands[key] = _rows(file.path, name, labels, group, shape, frames)
        return _Sequence(
            path=file.path,
            cameras=camera,
            frames=frames,
            boxes=boxes,
            ego_k=_rows(file.path, name, labels, ("params", "K_ego"), (3, 3), frames),
            ego_distortion=_rows(file.path, name, labels, ("params", "dist"), (8,), frames),
            ego_t_world=_rows(file.path, name, labels, ("params", "world2ego"), (4, 4), frames),
            hands=hands,
        )
    except RecordError as error:
        return error


def _rows(
    path: Path, name: str, labels: Any, keys: tuple[str, ...], shape: tuple[int, ...], frames: int | None = None
) -> NDArray[np.generic]:
    """Return the array below ``keys``, one row of ``shape`` a frame; where it is stored once, it is repeated.

    (The documentation gives ``K_ego`` and ``dist`` one row for the sequence, the authors' loader indexes by frame.)

    Raises:
        RecordError: ``label_corrupt``.

    """
    found = labels
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    where = f"{path}: {name}: {'/'.join(keys)}"
    kinds = "biuf" if keys[-1].endswith("_valid") else "iuf"
    if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} should be an array of numbers")
    if found.shape == shape and frames is not None:
        return np.broadcast_to(found, (frames, *shape))
    if found.shape[1:] != shape or (frames is not None and len(found) != frames):
        detail = f"{where} should have the shape {(frames or 'frames', *shape)}, has {found.shape}"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    return found


def _attributes(name: str) -> dict[str, str] | None:
    """Return the object and the action that the name of a sequence says: ``s01/capsulemachine_use_02``."""
    parts = name.rpartition("/")[2].split("_")
    return {"object": parts[0], "action": parts[1]} if len(parts) >= 2 and all(parts[:2]) else None


def _read_image(
    data: Path, split: Split, name: str, frame: int, view: int, labels: _Sequence | RecordError
) -> HandRecord | Rejection:
    source = ArcticAdapter.card.name
    relative = f"{name}/{view}/{frame:05d}.jpg"
    image_uri = str(data / "images" / relative)
    try:
        image_path = resolve_below(data / "images", relative)
        cropped = not is_file(image_path)
        if cropped:
            image_path = resolve_below(data / "cropped_images", relative)
            image_uri = str(image_path) if exists(image_path.parent) else image_uri
        if isinstance(labels, RecordError):
            raise labels
        row = frame - labels.cameras.frame_offset
        if not 0 <= row < labels.frames:
            detail = f"{labels.path}: {name} has {labels.frames} frames, frame {frame} would be row {row}"
            raise RecordError(RejectReason.LABEL_MISSING, detail)
        width, height = read_image_size(image_path)
        affine = _image_affine(labels, row, view, (width, height), cropped, image_path)
        k, t_world, distortion = _camera(labels, row, view)
        valid, pixels, metres = _hands(labels, row, view, distortion)
        return HandRecord(
            source=source,
            split=split,
            sequence_id=name,
            frame_index=frame,
            camera_id=str(view),
            subject_id=name.partition("/")[0],
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint="ego" if view == _EGO else "exo",
            keypoints_valid=valid,
            keypoints_2d=apply_affine(affine, pixels),
            hand_state=hand_states(valid, "unknown"),
            keypoints_3d=metres,
            camera_k=affine @ k,
            camera_t_world=t_world,
            attributes=_attributes(name),
            camera_model="pinhole" if distortion is None else "opencv_rational",
            camera_dist=distortion,
        )
    except Exception as error:
        return frame_rejection(
            record_name(source, split, name, frame, str(view)), image_uri, error, f"{name}: row of frame {frame}"
        )


def _image_affine(
    labels: _Sequence, row: int, view: int, size: tuple[int, int], cropped: bool, image_path: Path
) -> Array:
    """Return the 3x3 from pixels of the full image to those of the file (``transform_2d_for_speedup`` of the authors).

    Cropped images of the static views are a square of 1.5 times the label's box, resized; those of the head camera
    are the whole image, resized. (The authors rounded the square to whole pixels: half a pixel of error stays.)

    Raises:
        RecordError: ``image_size_mismatch``, or the box is not finite.

    """
    full_size = labels.cameras.sizes[view]
    if cropped and view != _EGO:
        box = numbers(labels.path, "bbox", labels.boxes[row, view], (3,))
        require_finite(labels.path, f"bbox of row {row}, view {view}", box)
        side = _CROP_MARGIN * _BBOX_UNIT_PX * box[2]
        if size[0] == size[1] and side > 0:
            scale = size[0] / side
            return pixel_affine((scale, scale), -(box[:2] - side / 2) * scale)
        expected = f"a square of {side:.1f} pixels of the full image"
    else:
        scale = size[0] / full_size[0]
        # The height may be off by the rounding of its own resize.
        if (cropped or scale == 1) and abs(full_size[1] * scale - size[1]) < 1:
            return pixel_affine((scale, scale))
        expected = f"{full_size[0]:.0f} x {full_size[1]:.0f}" + (", resized" if cropped else "")
    detail = f"{image_path} is {size[0]} x {size[1]}, expected {expected}"
    raise RecordError(RejectReason.IMAGE_SIZE_MISMATCH, detail)


def _camera(labels: _Sequence, row: int, view: int) -> tuple[Array, Array, tuple[float, ...] | None]:
    """Return intrinsics of the full image, world to camera in metres, and the head camera's distortion."""
    if view != _EGO:
        return labels.cameras.k[view - 1], labels.cameras.t_world[view - 1], None
    k = numbers(labels.path, "K_ego", labels.ego_k[row], (3, 3))
    t_world = numbers(labels.path, "world2ego", labels.ego_t_world[row], (4, 4))
    distortion = numbers(labels.path, "dist", labels.ego_distortion[row], (8,))
    for name, values in (("K_ego", k), ("world2ego", t_world), ("dist", distortion)):
        require_finite(labels.path, f"{name} of row {row}", values)
    return k, t_world, tuple(distortion.tolist())


def _hands(
    labels: _Sequence, row: int, view: int, distortion: tuple[float, ...] | None
) -> tuple[BoolArray, Array, Array | None]:
    """Return (42,) validity, (42, 2) pixels of the full image and (42, 3) metres."""
    if labels.hands is None:
        return place_validity(), place_hands(), None
    valid: dict[str, BoolArray] = {}
    pixels: dict[str, Array] = {}
    metres: dict[str, Array] = {}
    pixel_view = _EGO_DISTORTED if view == _EGO else view
    for side in SIDES:
        flag = label_flags(labels.path, f"{side}_valid", labels.hands[f"{side}_valid"][row, view : view + 1], 1)[0]
        where = f"of row {row}, view {view}"
        points = reorder_joints(labels.hands[f"{side}_3d"][row, view], _JOINT_ORDER).astype(np.float64)
        if flag:
            require_finite(labels.path, f"cam_coord/joints.{side} {where}", points)
        metres[side] = points
        pixels[side] = reorder_joints(labels.hands[f"{side}_2d"][row, pixel_view], _JOINT_ORDER).astype(np.float64)
        valid[side] = _not_folded(points, distortion) & flag
        require_finite(labels.path, f"2d/joints.{side} {where}", pixels[side][valid[side]])
    return (
        place_validity(**valid),
        place_hands(pixels["right"], pixels["left"]),
        place_hands(metres["right"], metres["left"], dimensions=3),
    )


def _not_folded(points: Array, distortion: tuple[float, ...] | None) -> BoolArray:
    """Return which points lie where the lens model holds; beyond, it folds them back into the image (issue 51)."""
    if distortion is None:
        return np.ones(len(points), dtype=np.bool_)
    x, y, z = points.T
    return np.asarray((z > 0) & (np.hypot(x, y) < _fold_radius(distortion) * z))


@lru_cache(maxsize=64)
def _fold_radius(distortion: tuple[float, ...]) -> float:
    return rational_fold_radius(distortion)  # one lens a subject, thousands of frames
