"""InterHand2.6M v1.0, at 5 or 30 fps: single and interacting hands in a studio of about a hundred cameras.

Layout (https://mks0601.github.io/InterHand2.6M/, https://github.com/facebookresearch/InterHand2.6M)::

    images/<split>/Capture<N>/<sequence>/cam<camera>/image<frame>.jpg
    annotations/<split>/InterHand2.6M_<split>_data.json       {"images": [...], "annotations": [...]}, one to one
    annotations/<split>/InterHand2.6M_<split>_camera.json     {capture: {campos|camrot|focal|princpt: {camera: ...}}}
    annotations/<split>/InterHand2.6M_<split>_joint_3d.json   {capture: {frame: {world_coord, joint_valid, ...}}}

``images`` may lie one folder deeper, where its archive is unpacked (``InterHand2.6M_5fps_batch1/images``). Lengths are
millimetres; X_camera = camrot (X_world - campos). A finger's joints are stored from tip to palm, the wrist last, the
right hand first. A joint is valid where both the frame (``joint_3d``) and the image (``data``) say so; a hand without
valid joints is ``unknown``, whatever ``hand_type`` says, for images with two hands are labelled for one (issues 99,
113). Frame numbers are those of the recording: ``timestamp_s`` counts from the start of the capture's clock.

**A gigabyte of labels, many workers.** The two lists of ``data.json`` run in step. Each partition takes a range of
bytes of the list ``images``, searches (without parsing) the annotation of its first image, and reads both lists from
there. Of ``joint_3d.json``, smaller by the number of cameras, it keeps the captures that it meets.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import number_array, require_finite
from handdata.adapters.reading.fields import label_flags
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import (
    Array,
    camera_t_world_at,
    intrinsics,
    metres_from_millimetres,
    project,
    transform_points,
)
from handdata.adapters.reading.images import read_image_size, require_size
from handdata.adapters.reading.json_stream import read_object, stream_items, stream_list, stream_list_part
from handdata.adapters.reading.listing import (
    NotRegularFileError,
    find_all,
    folders_in,
    is_file,
    is_folder,
    is_named,
    only_one,
    open_file,
    size_of,
)
from handdata.adapters.reading.paths import path_below
from handdata.adapters.reading.recording_rate import recorded_hz
from handdata.schemas import (
    KEYPOINT_COUNT,
    SOURCE_CARDS,
    SPLITS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    SourceCard,
    Split,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.record_batch import RecordBatch, gather, hand_states_of_rows
from handdata.schemas.rejection import rejection

PARTITION_BYTES: Final = 16 << 20
"""Share of ``data.json`` for one partition: about 30,000 records."""
MAX_PARTITIONS: Final = 32
"""Most partitions of a split: each searches the file once, which must stay a small share of the work."""

_HAND_ORDER: Final = (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16)
_NAME_TYPES: Final = frozenset({str, int})
_ORDER: Final = np.array([*_HAND_ORDER, *(row + 21 for row in _HAND_ORDER)])
"""Row in the dataset of each of the 42 keypoints."""

_IMAGES = re.compile(rb'"images"\s*:\s*\[')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[\s*')
_FILE_NAME = re.compile(r"(Capture[0-9]+/[^/]+)/cam([^/]+)/image([0-9]{1,9})\.jpg")
_SEARCH_BYTES = 1 << 20
_LONGEST_MATCH = 256
_LONGEST_ANNOTATION = 1 << 16


class InterHand26MAdapter:
    """Reads the 5 fps and the 30 fps release, whole or only some splits."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["interhand26m"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("v1.0", ("annotations/*/InterHand2.6M_*_data.json", "images/*/Capture*"), "the images", release="v1.0"),
        Layout(
            "v1.0, images a folder deeper",
            ("annotations/*/InterHand2.6M_*_data.json", "*/images/*/Capture*"),
            release="v1.0",
        ),
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield ranges of each split's label file, by its size alone.

        Raises:
            LayoutError: There are several folders of images.

        """
        _images_folder(root)
        for split in sorted(SPLITS):
            labels = [
                f"annotations/{split}/InterHand2.6M_{split}_{kind}.json" for kind in ("data", "camera", "joint_3d")
            ]
            # Where one of the three is there and the labels are none, the split is rejected, never omitted.
            if any(is_named(root / label) for label in labels):
                size = size_of(root / labels[0]) if is_file(root / labels[0]) else 0
                parts = min(MAX_PARTITIONS, 1 + size // PARTITION_BYTES)
                for part in range(parts):
                    yield Partition(f"{split}/{part:02d}", split, tuple(labels), selection=f"{part}/{parts}")

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line that names folders of images without labels, and of labels of no known split."""
        read = {partition.split for partition in self.partitions(root)}
        places = [*folders_in(_images_folder(root)), *find_all(root, "annotations/*/InterHand2.6M_*_data.json")]
        folders = {place.parent if place.suffix == ".json" else place for place in places}
        others = sorted(folder.relative_to(root).as_posix() for folder in folders if folder.name not in read)
        if others:
            yield f"these folders belong to no split whose labels are there, and are not read: {', '.join(others)}"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the images of a partition in the order of the label file."""
        for batch in self.record_batches(root, partition):
            yield from batch.rows()

    def record_batches(self, root: Path, partition: Partition) -> Iterator[RecordBatch]:
        """Yield the same rows as batches."""
        data_path, camera_path, joints_path = (root / relative for relative in partition.paths)
        images = f"{_images_folder(root)}/{partition.split}"
        part, parts = (int(number) for number in partition.selection.split("/"))
        try:
            captures = _Captures(camera_path, joints_path)
            for entries in gather(enumerate(_labelled_images(data_path, part, parts))):
                yield _read_images(images, partition, captures, entries)
        except RecordError as error:
            name = f"{self.card.name}/{partition.split}/{partition.selection}"
            yield RecordBatch({}, {}, (), [(0, rejection(name, str(data_path), error))])

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"interhand26m has no masks, asked for {record.image_uri}")


def _images_folder(root: Path) -> Path:
    """Return the folder of the images of all splits.

    Raises:
        LayoutError: There are several, such as those of 5 and of 30 frames a second: one of them would go unread.

    """
    folders = [root / "images", *find_all(root, "*/images")]
    return only_one(filter(is_folder, folders), "folders of images") or folders[0]


# ---------------------------------------------------------------------------------------------------- data.json

_Valid = BoolArray | RecordError


class _Unlisted(str):
    """The place of an annotation that belongs to no entry of ``images``, where an entry is expected."""


def _labelled_images(path: Path, part: int, parts: int) -> Iterator[tuple[Any, _Valid]]:
    """Yield each entry of a part of ``images`` with the (42,) ``joint_valid`` of its annotation, or what is wrong.

    An annotation that belongs to no entry is yielded by one part: that of the last entry annotated before it.

    Raises:
        RecordError: ``label_missing`` or ``label_corrupt``: the file ends the part here, or has a list twice.

    """
    try:
        with open_file(path) as stream:
            start, stop, end, annotations_at = _part_of_images(path, stream, part, parts)
            images = stream_list_part(path, start, stop)
            first = next(images, None)
            if first is None and part:
                return
            annotation_start = (
                _find_annotation(stream, first, annotations_at) if part else _first_annotation(stream, annotations_at)
            )
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except NotRegularFileError as error:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} {error}") from None
    annotations = iter(()) if annotation_start is None else stream_list_part(path, annotation_start, size_of(path))
    entries = chain([] if first is None else [first], images)
    name = str(path)
    before: int | None = None
    for image in entries:
        annotation = next(annotations, None)
        image_id = _id(image, "id")
        if image_id is None or image_id != _id(annotation, "image_id"):
            yield from _joined_by_id(path, [image, *entries], before, start, stop)
            return
        before = image_id
        yield image, _joint_valid(name, annotation)
    try:
        left, after = next(annotations, None), next(stream_list_part(path, stop, end), None)
    except RecordError:
        if part + 1 == parts:
            raise
        return  # the next part reports it
    if left is not None and (after is None or _id(left, "image_id") != _id(after, "id")):
        yield from _joined_by_id(path, [], before, start, stop)


def _joined_by_id(
    path: Path, images: list[Any], before: int | None, start: int, stop: int
) -> Iterator[tuple[Any, _Valid]]:
    """Yield images with their annotations where the lists are not in step, then annotations that are left over.

    An image and an annotation at the same place that do not belong together are one row. All this is slow, and holds
    the rest of the part and the ids of all images in memory.

    Args:
        path: The label file.
        images: What is left of the part's entries of ``images``.
        before: Id of the entry before them in this part.
        start: First byte of the part.
        stop: Byte at which the next part begins.

    """
    ours = {_id(image, "id") for image in stream_list_part(path, start, stop)}
    repeated: set[int | None] = set()
    wanted = {_id(image, "id") for image in images}
    try:
        ids = [_id(image, "id") for image in stream_list(path, "images")]
    except RecordError:  # the part that holds the fault reports it, and nothing tells what is not listed
        ids = None
    if ids is not None:
        repeated = {image_id for image_id, count in Counter(ids).items() if count > 1}
    is_first = not ids or ids[0] in ours
    listed = (ours if ids is None else set(ids)) - {None}
    found: dict[int | None, _Valid] = {}
    annotated: set[int | None] = set()
    unlisted: list[tuple[int | None, int, RecordError]] = []
    last: int | None = None
    for number, annotation in enumerate(stream_list(path, "annotations")):
        image_id = _id(annotation, "image_id")
        if image_id in listed:
            last = image_id
            if image_id in annotated:
                detail = f"{path}: annotation {number} is another one of image {image_id}"
                another = RecordError(RejectReason.LABEL_CORRUPT, detail)
                if image_id in wanted:
                    found[image_id] = another
                else:  # the image has been read already
                    unlisted.append((last, number, another))
            elif image_id in ours:
                annotated.add(image_id)
                if image_id in wanted:
                    found[image_id] = _joint_valid(str(path), annotation)
        elif ids is not None and (is_first if last is None else last in ours):
            unlisted.append((last, number, _no_image(path, number, image_id)))
    lacking: Counter[int | None] = Counter()
    for image in images:
        image_id = _id(image, "id")
        if image_id in found:
            before = image_id
        else:
            lacking[before] += 1
        missing = RecordError(RejectReason.LABEL_MISSING, f"{path}: image {image_id} has no annotation")
        if image_id is not None and image_id in repeated:
            detail = f"{path}: the list images has {image_id} more than once: nothing tells whose its annotation is"
            yield image, RecordError(RejectReason.LABEL_CORRUPT, detail)
        else:
            yield image, found.get(image_id, missing)
    for last, number, problem in unlisted:
        lacking[last] -= 1
        if lacking[last] < 0:
            yield _Unlisted(f"annotations/{number}"), problem


def _no_image(path: Path, number: int, image_id: int | None) -> RecordError:
    if image_id is None:
        return RecordError(RejectReason.LABEL_CORRUPT, f"{path}: annotation {number} has no image_id")
    detail = f"{path}: annotation {number} is of image {image_id}, which the list images does not have"
    return RecordError(RejectReason.LABEL_MISSING, detail)


def _id(entry: Any, key: str) -> int | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if type(value) is int else None


def _joint_valid(path: str, annotation: Any) -> _Valid:
    where = f"{path}: annotation of image {annotation['image_id']}"
    try:
        flags = label_flags(where, "joint_valid", annotation.get("joint_valid"), KEYPOINT_COUNT)
        return np.asarray(flags[_ORDER])
    except RecordError as error:
        return error


def _part_of_images(path: Path, stream: BinaryIO, part: int, parts: int) -> tuple[int, int, int, int]:
    """Return the bytes at which this part of ``images`` begins and ends, the list ends, and ``annotations`` begins.

    Entries hold no braces but their own, so that one begins at each opening brace. The list ends where the list
    ``annotations`` begins, if that follows.
    """
    images_at = _find(stream, _IMAGES, 0)
    if images_at is None:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} has no list 'images'")
    annotations_at = _find(stream, _ANNOTATIONS, images_at)
    end = stream.seek(0, 2) if annotations_at is None else annotations_at
    cuts = [images_at + (end - images_at) * number // parts for number in (part, part + 1)]
    starts = [_find(stream, re.compile(rb"\{"), cut) if cut < end else end for cut in cuts]
    start, stop = (end if at is None else min(at, end) for at in starts)
    first = _find(stream, _ANNOTATIONS, 0) if annotations_at is None else annotations_at
    _require_once(path, stream, part, parts, {_IMAGES: images_at, _ANNOTATIONS: first})
    return start, stop, end, annotations_at or 0


def _require_once(
    path: Path, stream: BinaryIO, part: int, parts: int, lists: dict[re.Pattern[bytes], int | None]
) -> None:
    """Raise where this part's share of the file has a list that is elsewhere too: each part searches its share alone.

    Raises:
        RecordError: ``label_corrupt``.

    """
    size = stream.seek(0, 2)
    start, stop = (size * number // parts for number in (part, part + 1))
    for pattern, known in lists.items():
        at = _find(stream, pattern, start, stop)
        if at is not None and at == known:
            at = _find(stream, pattern, at + 1, stop)
        if at is not None:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}, byte {at}: a list is there twice")


def _first_annotation(stream: BinaryIO, start: int) -> int | None:
    """Return the byte at which the list ``annotations`` has its first element; None where it is empty or missing."""
    at = _find(stream, _ANNOTATIONS, start)
    if at is None:
        return None
    stream.seek(at)
    match = _ANNOTATIONS.match(stream.read(_LONGEST_MATCH))
    if match is None:
        return None
    stream.seek(at + match.end())
    return None if stream.read(1) in (b"]", b"") else at + match.end()


def _find_annotation(stream: BinaryIO, image: Any, start: int) -> int | None:
    """Return the byte at which the annotation of an image begins, searching from ``start`` on."""
    image_id = _id(image, "id")
    if image_id is None:
        return None
    at = _find(stream, re.compile(rb'"image_id"\s*:\s*%d\s*[,}]' % image_id), start)
    if at is None:
        return None
    before = max(0, at - _LONGEST_ANNOTATION)
    stream.seek(before)
    brace = stream.read(at - before).rfind(b"{")
    return before + brace if brace >= 0 else None


def _find(stream: BinaryIO, pattern: re.Pattern[bytes], start: int, stop: int | None = None) -> int | None:
    """Return the byte, before ``stop``, at which a pattern first matches from ``start`` on; two gigabytes a second."""
    stream.seek(start)
    window, position = b"", start
    while (stop is None or position < stop + _LONGEST_MATCH) and (block := stream.read(_SEARCH_BYTES)):
        kept = window[-_LONGEST_MATCH:]
        window = kept + block
        if match := pattern.search(window):
            at = position - len(kept) + match.start()
            return at if stop is None or at < stop else None
        position += len(block)
    return None


# ---------------------------------------------------------------------------------------------------- captures


@dataclass(frozen=True, slots=True)
class _Pose:
    """What ``joint_3d.json`` says about one moment, in handdata's order."""

    world_m: Array
    valid: BoolArray


@dataclass(frozen=True, slots=True)
class _Camera:
    k: Array
    t_world: Array


class _Captures:
    """Cameras and poses of a split, read as they are asked for."""

    def __init__(self, camera_path: Path, joints_path: Path) -> None:
        self._camera_path = camera_path
        self._joints_path = joints_path
        self._camera_labels: dict[str, Any] = read_object(camera_path)
        self._cameras: dict[tuple[str, str], _Camera] = {}
        self._poses: dict[str, dict[str, _Pose | RecordError]] = {}
        self._problems: dict[str, RecordError] = {}
        self._hz: dict[str, int | None] = {}

    def camera(self, capture: str, camera: str) -> _Camera:
        """Return a camera of a capture.

        Raises:
            RecordError: ``label_missing``, ``label_corrupt`` or ``label_not_finite``.

        """
        key = (capture, camera)
        if key not in self._cameras:
            self._cameras[key] = self._read_camera(capture, camera)
        return self._cameras[key]

    def pose(self, capture: str, frame: int) -> _Pose:
        """Return the joints of a moment.

        Raises:
            RecordError: ``label_missing``, ``label_corrupt`` or ``label_not_finite``.

        """
        self._read_poses(capture)
        pose = self._poses[capture].get(str(frame), self._problems.get(capture))
        if pose is None:
            detail = f"{self._joints_path} has no frame {frame} of capture {capture}"
            raise RecordError(RejectReason.LABEL_MISSING, detail)
        if isinstance(pose, RecordError):
            raise pose
        return pose

    def recorded_hz(self, capture: str) -> int | None:
        """Return how many frame numbers of a capture make a second."""
        self._read_poses(capture)
        return self._hz[capture]

    def _read_camera(self, capture: str, camera: str) -> _Camera:
        where = f"{self._camera_path}: capture {capture}, camera {camera}"
        shapes = {"campos": (3,), "camrot": (3, 3), "focal": (2,), "princpt": (2,)}
        values = {}
        for name, shape in shapes.items():
            try:
                value = self._camera_labels[capture][name][camera]
            except (KeyError, TypeError):
                raise RecordError(RejectReason.LABEL_MISSING, f"{where} has no {name}") from None
            values[name] = number_array(where, name, value, shape, any_nesting=True)
            require_finite(where, name, values[name])
        return _Camera(
            k=intrinsics(values["focal"].tolist(), values["princpt"].tolist()),
            t_world=camera_t_world_at(values["camrot"], metres_from_millimetres(values["campos"])),
        )

    def _read_poses(self, capture: str) -> None:
        if capture in self._poses:
            return
        poses: dict[str, _Pose | RecordError] = {}
        self._poses[capture] = poses
        try:
            for frame, label in stream_items(self._joints_path, capture):
                where = f"{self._joints_path}: capture {capture}, frame {frame}"
                is_new = frame not in poses
                twice = RecordError(RejectReason.LABEL_CORRUPT, f"{where} is there twice")
                poses[frame] = self._read_pose(where, label) if is_new else twice
        except RecordError as error:  # the poses before the fault are good
            self._problems[capture] = error
        self._hz[capture] = recorded_hz(int(frame) for frame in poses if re.fullmatch("[0-9]{1,9}", frame))

    def _read_pose(self, where: str, label: Any) -> _Pose | RecordError:
        try:
            listed = number_array(where, "world_coord", label["world_coord"], (KEYPOINT_COUNT, 3), any_nesting=True)
            world = metres_from_millimetres(listed)[_ORDER]
            valid = label_flags(where, "joint_valid", label["joint_valid"], KEYPOINT_COUNT)[_ORDER]
            require_finite(where, "world_coord", world[valid])
            world[~valid] = 0  # the filler is 1, 1, 1, sometimes a real looking point
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            detail = f"{where}: world_coord should be 42 points and joint_valid 42 flags: {error!r}"
            return RecordError(RejectReason.LABEL_CORRUPT, detail)
        except RecordError as error:
            return error
        return _Pose(world, valid)


# ---------------------------------------------------------------------------------------------------- one image


class _Image(NamedTuple):
    """An entry of ``images``."""

    file_name: str
    size: tuple[int, int]
    capture: str
    sequence: str
    camera: str
    frame: int
    subject: str | None

    def require_own_file(self, where: str) -> None:
        """Raise where the file is named as that of another camera or moment: its labels would be on its pixels.

        Raises:
            RecordError: ``label_corrupt``.

        """
        if self.file_name == f"{self.sequence}/cam{self.camera}/image{self.frame}.jpg":
            return
        named = _FILE_NAME.fullmatch(self.file_name)
        if named is not None and (named[1], named[2], int(named[3])) != (self.sequence, self.camera, self.frame):
            raise RecordError(
                RejectReason.LABEL_CORRUPT,
                f"{where}: {self.file_name} is named as another image than {self.sequence}, camera {self.camera}, "
                f"frame {self.frame}",
            )

    def record_name(self, split: Split) -> str:
        """Return the ``record_id`` that the image gets."""
        return record_name(InterHand26MAdapter.card.name, split, self.sequence, self.frame, self.camera)


def _parse_image(where: str, entry: Any) -> _Image:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    try:
        image = _Image(
            file_name=fields["file_name"],
            size=(fields["width"], fields["height"]),
            capture=str(fields["capture"]),
            sequence=f"Capture{fields['capture']}/{fields['seq_name']}",
            camera=str(fields["camera"]),
            frame=fields["frame_idx"],
            subject=None if fields.get("subject") is None else str(fields["subject"]),
        )
    except KeyError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} has no {error}: {entry!r}") from None
    names = (fields["capture"], fields["seq_name"], fields["camera"])
    if not _NAME_TYPES.issuperset(map(type, names)) or not (
        image.subject is None or type(fields["subject"]) in _NAME_TYPES
    ):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: capture, seq_name, camera and subject should be names")
    if not isinstance(image.file_name, str) or type(image.frame) is not int or not 0 <= image.frame < 2**31:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} has no file_name or no frame_idx: {entry!r}")
    return image


def _read_images(
    images: str, partition: Partition, captures: _Captures, entries: Sequence[tuple[int, tuple[Any, _Valid]]]
) -> RecordBatch:
    """Return entries of ``images``, each with its number in the partition, as records and rejections."""
    read: list[tuple[_Image, str, BoolArray, _Pose, _Camera]] = []
    places: list[str] = []
    rejections: list[tuple[int, Rejection]] = []
    of_split = f"{InterHand26MAdapter.card.name}/{partition.split}"
    place, of_part = f"{partition.paths[0]}, part {partition.selection}", f"{of_split}/{partition.selection}"
    for number, (entry, valid) in entries:
        where = f"{place}, entry {number}"
        name, image_uri = f"{of_part}/{number}", images
        if isinstance(entry, _Unlisted) and isinstance(valid, RecordError):
            name = f"{of_split}/{entry}"
            rejections.append((len(read), rejection(name, images, valid)))
            continue
        try:
            image = _parse_image(where, entry)
            name = image.record_name(partition.split)
            image_uri = f"{images}/{image.file_name}"
            image_uri = path_below(images, image.file_name)
            if isinstance(valid, RecordError):
                raise valid
            require_size(image_uri, read_image_size(image_uri), image.size)
            pose, camera = captures.pose(image.capture, image.frame), captures.camera(image.capture, image.camera)
            image.require_own_file(where)
        except Exception as error:
            rejections.append((len(read), frame_rejection(name, image_uri, error, where)))
        else:
            read.append((image, image_uri, valid, pose, camera))
            places.append(where)
    return RecordBatch(
        {"source": InterHand26MAdapter.card.name, "split": partition.split, "viewpoint": "exo"},
        _columns(captures, read) if read else {},
        places,
        rejections,
    )


def _columns(
    captures: _Captures, read: Sequence[tuple[_Image, str, BoolArray, _Pose, _Camera]]
) -> dict[str, Sequence[Any] | NDArray[Any]]:
    """Return the columns of images whose labels and files are there."""
    images, image_uris, image_valid, poses, cameras = zip(*read, strict=True)
    k = np.stack([camera.k for camera in cameras])
    t_world = np.stack([camera.t_world for camera in cameras])
    points = transform_points(t_world, np.stack([pose.world_m for pose in poses]))
    keypoints = project(points, k)
    valid = np.stack([pose.valid for pose in poses]) & np.stack(image_valid) & np.isfinite(keypoints[..., 0])
    rates = [captures.recorded_hz(image.capture) for image in images]
    return {
        "sequence_id": [image.sequence for image in images],
        "frame_index": [image.frame for image in images],
        "camera_id": [image.camera for image in images],
        "timestamp_s": [None if hz is None else image.frame / hz for image, hz in zip(images, rates, strict=True)],
        "subject_id": [image.subject for image in images],
        "image_uri": image_uris,
        "width": [image.size[0] for image in images],
        "height": [image.size[1] for image in images],
        "keypoints_valid": valid,
        "keypoints_2d": keypoints,
        "hand_state": hand_states_of_rows(valid, "unknown"),
        "keypoints_3d": points,
        "camera_k": k,
        "camera_t_world": t_world,
    }
