"""AssemblyHands: people assemble toys before eight static colour cameras and four monochrome ones on the head.

Layout (https://github.com/facebookresearch/assemblyhands-toolkit, version 1-1), images or videos may be missing::

    <root>/annotations/<split>/assemblyhands_<split>_{ego_data,ego_calib,joint_3d}_v1-1.json
    <root>/images/ego_images_rectified/<split>/<sequence>/<HMC_..._mono10bit>/<frame>.jpg
    <root>/videos/exo_videos_rectified/<sequence>/<C..._rgb>.mp4 and calib.txt

``joint_3d`` holds the joints in the world, in millimetres, tips first as in InterHand2.6M. Pixels are projections of
them, as in the authors' loader: images are rectified, so there is no lens distortion. A joint of an ego image is
valid where ``ego_data`` says so too (its flag is 0 where the hand is out of view); static cameras have no such flag. A
hand without valid joints is ``unknown``: the flags of one view do not say that it is not visible at all.

**Time**: frames are numbered on a grid of 60 a second. The rectified videos have 30 and begin at the first annotated
frame of their sequence (``visualization/video_visualizer.py``). Which frame that is must not hang on one file, from
which frames may be missing: it is the first that any label file names, if two of them agree on it or the video has as
many frames as the labels span. Otherwise the sequence's videos are rejected.

The challenge's held-out labels are all 1.0, or not there: such frames are records without joints.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import numbers, require_finite
from handdata.adapters.reading.fields import label_flags, label_numbers
from handdata.adapters.reading.frames import frame_error, frame_rejection
from handdata.adapters.reading.geometry import (
    Array,
    metres_from_millimetres,
    project,
    rigid_transform,
    transform_points,
)
from handdata.adapters.reading.images import read_image_size, require_camera_of
from handdata.adapters.reading.json_stream import require_once, stream_list, stream_nested_items
from handdata.adapters.reading.listing import files_in, folders_in, is_file, is_folder, is_named
from handdata.adapters.reading.paths import resolve_below
from handdata.adapters.reading.text_lists import read_lines
from handdata.adapters.reading.video import VideoInfo, video_info
from handdata.schemas import (
    KEYPOINT_COUNT,
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

FRAMES_PER_SECOND: Final = 60
"""Rate at which frames are numbered, whatever rate a camera's files have."""

_VIDEO_FRAMES_PER_SECOND: Final = 30
_FRAME_STEP: Final = FRAMES_PER_SECOND // _VIDEO_FRAMES_PER_SECOND
_EGO_IMAGES, _EXO_VIDEOS = "images/ego_images_rectified", "videos/exo_videos_rectified"
_EGO_SUFFIX: Final = "_mono10bit"
"""Part of a head camera's name in folders and calibration, not in ``ego_data``."""
_HAND_ORDER: Final = (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16)
_JOINT_ORDER: Final = (*_HAND_ORDER, *(row + 21 for row in _HAND_ORDER))
_HELD_OUT: Final = 1.0
_SUBJECT: Final = re.compile(r"_([^_]+)_user_id(?:_|\Z)")
_OTHERS: Final = "~without folder"
"""The partition of the labels whose sequence has no folder; it sorts after all sequences."""


class AssemblyHandsAdapter:
    """Reads the annotations with ego images, exo videos or both."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["assemblyhands"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("ego images", ("annotations/*/assemblyhands_*_v1-1.json", _EGO_IMAGES)),
        Layout("exo videos", ("annotations/*/assemblyhands_*_v1-1.json", _EXO_VIDEOS)),
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield each split's sequences.

        Videos lie outside the splits; a sequence that has no ego images is looked for in each split's labels.
        """
        splits = [split for split in sorted(SPLITS) if is_folder(root / "annotations" / split)]
        ego = {split: _folder_names(root / _EGO_IMAGES / split) for split in splits}
        exo_alone = _folder_names(root / _EXO_VIDEOS).difference(*ego.values())
        for split in splits:
            paths = (f"annotations/{split}",)
            for name in sorted(ego[split] | exo_alone):
                yield Partition(f"{split}/{name}", split, paths, name)
            if ego[split]:
                yield Partition(f"{split}/{_OTHERS}", split, paths, _OTHERS)

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line for images and videos without labels, and for splits other than test without joints."""
        splits = {partition.split for partition in self.partitions(root)}
        images = _folder_names(root / _EGO_IMAGES) - splits
        if images:
            yield f"annotations has no labels of these images, which are not read: {', '.join(sorted(images))}"
        if not is_folder(root / _EGO_IMAGES):
            yield f"there is no {_EGO_IMAGES}: no image of the cameras on the head is read"
        else:
            for split in sorted({"train", "val"} & splits):
                if not is_folder(root / _EGO_IMAGES / split):
                    yield f"there is no {_EGO_IMAGES}/{split}: the images that its labels name are not read"
        if not is_folder(root / _EXO_VIDEOS):
            yield f"there is no {_EXO_VIDEOS}: no frame of the static cameras is read"
        lacking = [split for split in ("train", "val") if not is_folder(root / "annotations" / split)]
        if lacking and is_folder(root / _EXO_VIDEOS):
            yield f"annotations has no {' and no '.join(lacking)}: the videos of these splits are not read"
        for split in sorted(splits - {"test"}):
            if not is_named(_label_path(root, split, "joint_3d")):
                yield f"{split} has no joint_3d: its images are read without joints, its videos are not read"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the images of a sequence, in the order of frame number and camera; label files are streamed."""
        if partition.selection == _OTHERS:
            yield from _images_without_folder(root, partition.split)
        else:
            yield from _read_sequence(root, partition.split, partition.selection)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        detail = f"assemblyhands has no masks, asked for that of {record.image_uri}"
        raise RecordError(RejectReason.MASK_UNREADABLE, detail)


@dataclass(frozen=True, slots=True)
class _Camera:
    k: Array
    t_world: Array
    """(4, 4) world to camera, metres."""


@dataclass(frozen=True, slots=True)
class _Joints:
    """A frame of ``joint_3d``, in handdata's order."""

    world_m: Array
    valid: BoolArray


@dataclass(slots=True)
class _EgoLabel:
    """What ``ego_data`` says about one image."""

    camera_id: str
    file_name: str
    size: tuple[Any, Any]
    valid: BoolArray = field(default_factory=lambda: np.zeros(KEYPOINT_COUNT, dtype=np.bool_))
    is_annotated: bool = False
    boxes: list[list[float]] = field(default_factory=list)
    box_sides: list[str] = field(default_factory=list)
    problem: RecordError | None = None


@dataclass(slots=True)
class _Sequence:
    """What is known about one sequence in one split."""

    name: str
    joints: dict[int, _Joints | RecordError] = field(default_factory=dict)
    has_joint_file: bool = True
    ego_labels: dict[tuple[int, str], list[_EgoLabel]] = field(default_factory=dict)
    """Labels of the ego images, by frame and camera."""
    ego_frames: set[int] = field(default_factory=set)
    """Frames that ``ego_data`` names, whether their images are there or not."""
    ego_intrinsics: dict[str, Any] = field(default_factory=dict)
    ego_extrinsics: dict[str, Any] = field(default_factory=dict)
    """Extrinsics of the head cameras, by six-digit frame, then by camera."""
    unusable: list[Rejection] = field(default_factory=list)

    def named_frames(self) -> dict[str, set[int]]:
        """Return the frames that each label file names."""
        calibrated = {int(key) for key in self.ego_extrinsics if _is_frame_number(key)}
        named = {"joint_3d": set(self.joints), "ego_data": self.ego_frames, "ego_calib": calibrated}
        return {kind: frames for kind, frames in named.items() if frames}


def _folder_names(folder: Path) -> set[str]:
    return {path.name for path in folders_in(folder)}


def _label_path(root: Path, split: Split, kind: str) -> Path:
    return root / "annotations" / split / f"assemblyhands_{split}_{kind}_v1-1.json"


def _images_without_folder(root: Path, split: Split) -> Iterator[Rejection]:
    """Yield a rejection for each listed ego image of a sequence that was not downloaded.

    So are annotations of images that are not listed, and sequences whose joints are there and whose images are not.
    """
    folders = _folder_names(root / _EGO_IMAGES / split) | _folder_names(root / _EXO_VIDEOS)
    named = set(folders)
    path = _label_path(root, split, "ego_data")
    source = AssemblyHandsAdapter.card.name
    listed: set[object] = set()
    try:
        for position, entry in enumerate(stream_list(path, "images")):
            fields = entry if isinstance(entry, dict) else {}
            name = fields.get("seq_name")
            listed.add(_image_id(fields.get("id")))
            named.add(str(name))
            if isinstance(name, str) and name in folders:
                continue
            try:
                frame, camera_id = _ego_key(path, fields)
                record_id = record_name(source, split, str(name), frame, camera_id)
                problem = RecordError(RejectReason.IMAGE_MISSING, f"the sequence {name!r} has no folder of images")
            except RecordError as error:
                record_id, problem = f"{source}/{split}/{path.name}/{position}", error
            yield rejection(record_id, str(fields.get("file_name")), problem)
        for position, entry in enumerate(stream_list(path, "annotations")):
            if not isinstance(entry, dict):
                problem = RecordError(RejectReason.LABEL_CORRUPT, f"{path}: annotation {position} is no object")
            elif _image_id(entry.get("image_id")) not in listed:
                detail = f"{path}: annotation {position} is of image {entry.get('image_id')!r}, which is not listed"
                problem = RecordError(RejectReason.LABEL_MISSING, detail)
            else:
                continue
            yield rejection(f"{source}/{split}/{path.name}/annotation {position}", str(path), problem)
    except RecordError as error:
        yield rejection(f"{source}/{split}/{path.name}", str(path), error)
        return
    yield from _joints_without_images(_label_path(root, split, "joint_3d"), split, named)


def _joints_without_images(path: Path, split: Split, named: set[str]) -> Iterator[Rejection]:
    """Yield a rejection for each sequence of ``joint_3d`` that no other file or folder names."""
    last = None
    with suppress(RecordError):  # each sequence's own partition reports it
        for name, _, _ in stream_nested_items(path, "annotations"):
            if name != last and name not in named:
                problem = RecordError(RejectReason.LABEL_MISSING, f"{path} has joints of {name}, ego_data has no image")
                yield _reject_file(path, split, name, problem)
            last = name


def _read_sequence(root: Path, split: Split, name: str) -> Iterator[HandRecord | Rejection]:
    sequence = _Sequence(name)
    _read_joints(_label_path(root, split, "joint_3d"), split, sequence)
    if is_folder(root / _EGO_IMAGES / split):
        _read_ego_labels(root, split, sequence)
    elif sequence.joints:
        _read_ego_frames(root, split, sequence)
    yield from sequence.unusable
    exo = _ExoVideos(root, split, sequence)
    yield from exo.missing()
    frames = sorted(set(sequence.joints) | sequence.ego_frames)
    ego_cameras = sorted({camera for _, camera in sequence.ego_labels})
    cameras = sorted({*ego_cameras, *exo.videos})
    for frame in frames:
        for camera_id in cameras:
            if camera_id in exo.videos:
                if sequence.joints:
                    yield exo.read(frame, camera_id)
                continue
            for label in sequence.ego_labels.get((frame, camera_id), ()):
                yield _read_ego_image(root, split, sequence, frame, label)
        if not exo.videos and frame not in sequence.ego_frames:
            path = _label_path(root, split, "joint_3d")
            problem = RecordError(RejectReason.LABEL_MISSING, f"{path} has frame {frame:06d}, ego_data has no image")
            yield rejection(record_name(AssemblyHandsAdapter.card.name, split, name, frame), str(path), problem)


def _reject_file(path: Path, split: Split, name: str, error: RecordError) -> Rejection:
    return rejection(f"{AssemblyHandsAdapter.card.name}/{split}/{name}/{path.name}", str(path), error)


# ---------------------------------------------------------------------------------------------------- joint_3d


def _read_joints(path: Path, split: Split, sequence: _Sequence) -> None:
    if not is_named(path):
        sequence.has_joint_file = False
        return
    try:
        require_once(path, "annotations", sequence.name)
        for name, key, entry in stream_nested_items(path, "annotations"):
            if name != sequence.name:
                if sequence.joints:
                    return  # a sequence is one object of the file
                continue
            if not _is_frame_number(key):
                problem = RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {name}: {key!r} is no frame number")
                sequence.unusable.append(_reject_file(path / key, split, name, problem))
                continue
            try:
                if int(key) in sequence.joints:
                    raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {name} has the frame {int(key)} twice")
                sequence.joints[int(key)] = _parse_joints(path, f"{name} {key}", entry)
            except RecordError as error:
                sequence.joints[int(key)] = error
    except RecordError as error:
        sequence.unusable.append(_reject_file(path, split, sequence.name, error))


def _is_frame_number(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 20 and int(key) < 2**31


def _parse_joints(path: Path, where: str, entry: object) -> _Joints:
    fields = entry if isinstance(entry, dict) else {}
    world = _numbers(path, f"{where} world_coord", fields.get("world_coord"), (KEYPOINT_COUNT, 3))
    # The authors' viewer takes all joints for valid where the flags are missing.
    flags = fields.get("joint_valid", [1] * KEYPOINT_COUNT)
    valid = label_flags(path, f"{where} joint_valid", flags, KEYPOINT_COUNT)
    valid = valid & ~np.full(KEYPOINT_COUNT, (world == _HELD_OUT).all())
    require_finite(path, f"{where} world_coord", world[valid])
    order = list(_JOINT_ORDER)
    return _Joints(metres_from_millimetres(world)[order], valid[order])


def _numbers(path: Path, name: str, values: object, shape: tuple[int, ...]) -> Array:
    return numbers(path, name, label_numbers(path, name, values), shape)


# ---------------------------------------------------------------------------------------------------- ego


def _ego_key(path: Path, image: dict[str, Any]) -> tuple[int, str]:
    """Return frame number and camera of an entry of ``images``.

    Raises:
        RecordError: ``label_corrupt``.

    """
    frame, camera, name = image.get("frame_idx"), image.get("camera"), image.get("file_name")
    names = isinstance(camera, str) and isinstance(name, str)
    if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < 2**31 or not names:
        detail = f"{path}: the image {image.get('id')!r} should have a frame_idx, a camera and a file_name"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    return frame, str(camera).removesuffix(_EGO_SUFFIX) + _EGO_SUFFIX


def _read_ego_labels(root: Path, split: Split, sequence: _Sequence) -> None:
    path = _label_path(root, split, "ego_data")
    of_image: dict[object, _EgoLabel] = {}
    try:
        for entry in stream_list(path, "images"):
            if not isinstance(entry, dict) or entry.get("seq_name") != sequence.name:
                continue
            try:
                frame, camera_id = _ego_key(path, entry)
                label = _EgoLabel(camera_id, entry["file_name"], (entry.get("width"), entry.get("height")))
                other = of_image.setdefault(_image_id(entry.get("id")), label)
                if other is not label:
                    detail = f"{path}: several images have the id {entry.get('id')!r}, which tells no annotations apart"
                    label.problem = other.problem = RecordError(RejectReason.LABEL_CORRUPT, detail)
                sequence.ego_frames.add(frame)
                sequence.ego_labels.setdefault((frame, camera_id), []).append(label)
            except RecordError as error:
                place = path / str(entry.get("id"))
                sequence.unusable.append(_reject_file(place, split, sequence.name, error))
        for entry in stream_list(path, "annotations"):
            found = of_image.get(_image_id(entry.get("image_id"))) if isinstance(entry, dict) else None
            if found is not None:
                _add_annotation(path, entry, found)
    except RecordError as error:
        sequence.unusable.append(_reject_file(path, split, sequence.name, error))
    _read_ego_calibration(root, split, sequence)


def _read_ego_frames(root: Path, split: Split, sequence: _Sequence) -> None:
    """Read what ``ego_data`` and ``ego_calib`` say about when a sequence begins, where there are only videos of it."""
    with suppress(RecordError):  # what they say of the head cameras is not needed
        for entry in stream_list(_label_path(root, split, "ego_data"), "images"):
            if isinstance(entry, dict) and entry.get("seq_name") == sequence.name:
                with suppress(RecordError):
                    sequence.ego_frames.add(_ego_key(Path(), entry)[0])
    unusable = list(sequence.unusable)
    _read_ego_calibration(root, split, sequence)
    sequence.unusable = unusable


def _read_ego_calibration(root: Path, split: Split, sequence: _Sequence) -> None:
    path = _label_path(root, split, "ego_calib")
    try:
        found = _calibration(path, sequence.name)
        sequence.ego_intrinsics, sequence.ego_extrinsics = found.get("intrinsics", {}), found.get("extrinsics", {})
    except RecordError as error:
        sequence.unusable.append(_reject_file(path, split, sequence.name, error))


def _calibration(path: Path, sequence: str) -> dict[str, dict[str, Any]]:
    """Return what a calibration file says of a sequence, by kind: ``intrinsics`` and ``extrinsics``.

    Raises:
        RecordError: ``label_missing`` or ``label_corrupt``.

    """
    require_once(path, "calibration", sequence)
    found: dict[str, dict[str, Any]] = {}
    for name, kind, entry in stream_nested_items(path, "calibration"):
        if name == sequence and isinstance(entry, dict):
            if kind in found:
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {sequence} has {kind} twice")
            found[kind] = entry
        elif found.keys() >= {"intrinsics", "extrinsics"} and name != sequence:
            break  # a sequence is one object of the file
    return found


def _image_id(image_id: object) -> object:
    """Return an id that equals no other one; what is neither a number nor a text, such as ``true``, names no image."""
    return image_id if type(image_id) in (int, str) else object()


def _add_annotation(path: Path, entry: dict[str, Any], label: _EgoLabel) -> None:
    where = f"the annotation of image {entry.get('image_id')!r}:"
    try:
        if label.is_annotated:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {where} the image has another annotation")
        label.is_annotated = True
        flags = label_flags(path, f"{where} joint_valid", entry.get("joint_valid"), KEYPOINT_COUNT)
        label.valid = flags[list(_JOINT_ORDER)]
        boxes = entry.get("bbox")
        if not isinstance(boxes, dict | None):
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {where} bbox should be an object of sides")
        for side in SIDES:
            box = (boxes or {}).get(side)
            if box is not None:
                corners = _numbers(path, f"{where} bbox {side}", box, (4,))
                require_finite(path, f"{where} bbox {side}", corners)
                label.boxes.append([round(value, 2) for value in corners.tolist()])
                label.box_sides.append(side)
    except RecordError as error:
        label.problem = label.problem or error


def _read_ego_image(
    root: Path, split: Split, sequence: _Sequence, frame: int, label: _EgoLabel
) -> HandRecord | Rejection:
    source = AssemblyHandsAdapter.card.name
    image_uri = str(root / "images" / label.file_name)
    try:
        image_path = resolve_below(root / "images", label.file_name)
        if label.problem is not None:
            raise label.problem
        width, height = read_image_size(image_path)
        if label.size not in ((width, height), (None, None)):
            detail = f"{image_path} is {width} x {height}, its label is for {label.size[0]} x {label.size[1]}"
            raise RecordError(RejectReason.IMAGE_SIZE_MISMATCH, detail)
        camera = _ego_camera(_label_path(root, split, "ego_calib"), sequence, frame, label.camera_id)
        joints = _joints_of(sequence, frame)
        if joints is not None and not label.is_annotated:
            detail = f"ego_data has no annotation of the image {label.file_name}"
            raise RecordError(RejectReason.LABEL_MISSING, detail)
        return _record(
            split,
            sequence,
            frame,
            label.camera_id,
            camera,
            None if joints is None else _Joints(joints.world_m, joints.valid & label.valid),
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint="ego",
            extra={"boxes_xyxy_px": label.boxes, "box_sides": label.box_sides} if label.boxes else None,
        )
    except Exception as error:
        return frame_rejection(
            record_name(source, split, sequence.name, frame, label.camera_id), image_uri, error, label.file_name
        )


def _joints_of(sequence: _Sequence, frame: int) -> _Joints | None:
    """Return a frame's joints; None where the split's joints are not published.

    Raises:
        RecordError: They are damaged, or missing in a file that is there.

    """
    if not sequence.has_joint_file:
        return None
    missing = RecordError(RejectReason.LABEL_MISSING, f"joint_3d has no frame {frame:06d} of {sequence.name}")
    joints = sequence.joints.get(frame, missing)
    if isinstance(joints, RecordError):
        raise joints
    return joints


def _ego_camera(path: Path, sequence: _Sequence, frame: int, camera_id: str) -> _Camera:
    of_frame = sequence.ego_extrinsics.get(f"{frame:06d}")
    extrinsics = of_frame.get(camera_id) if isinstance(of_frame, dict) else None
    intrinsics = sequence.ego_intrinsics.get(camera_id)
    if extrinsics is None or intrinsics is None:
        detail = f"{path} lacks the camera {camera_id} of {sequence.name}, frame {frame:06d}"
        raise RecordError(RejectReason.LABEL_MISSING, detail)
    return _parse_camera(path, f"{sequence.name} {camera_id} {frame:06d}", intrinsics, extrinsics)


def _parse_camera(path: Path, where: str, intrinsics: object, extrinsics: object) -> _Camera:
    k = _numbers(path, f"{where} intrinsics", intrinsics, (3, 3))
    matrix = _numbers(path, f"{where} extrinsics", extrinsics, (3, 4))
    require_finite(path, f"{where} intrinsics", k)
    require_finite(path, f"{where} extrinsics", matrix)
    return _Camera(k, rigid_transform(matrix[:, :3], metres_from_millimetres(matrix[:, 3])))


# ---------------------------------------------------------------------------------------------------- exo


class _ExoVideos:
    """The videos of a sequence and their cameras."""

    def __init__(self, root: Path, split: Split, sequence: _Sequence) -> None:
        self._split = split
        self._sequence = sequence
        folder = root / _EXO_VIDEOS / sequence.name
        self._folder = folder
        self.videos: dict[str, VideoInfo | RecordError] = {}
        self._cameras: dict[str, _Camera] | RecordError = {}
        if not sequence.joints or not is_folder(folder):
            return
        named = sequence.named_frames()
        self._starts = {kind: min(frames) for kind, frames in named.items()}
        self._first_frame = min(self._starts.values())
        self._last_frame = max(map(max, named.values()))
        self.videos = {path.stem: _video(path) for path in files_in(folder, ".mp4")}
        try:
            self._cameras = _read_exo_cameras(folder / "calib.txt", _label_path(root, split, "exo_calib"), sequence)
        except RecordError as error:
            self._cameras = error

    def missing(self) -> Iterator[Rejection]:
        """Yield a rejection for each camera that is calibrated beside the videos and has none."""
        cameras = {} if isinstance(self._cameras, RecordError) else self._cameras
        for camera_id in sorted(cameras.keys() - self.videos.keys()) if self.videos else ():
            path = self._folder / f"{camera_id}.mp4"
            problem = RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist")
            yield _reject_file(path, self._split, self._sequence.name, problem)

    def read(self, frame: int, camera_id: str) -> HandRecord | Rejection:
        path = self._folder / f"{camera_id}.mp4"
        try:
            video = self.videos[camera_id]
            for found in (video, self._cameras):
                if isinstance(found, RecordError):
                    raise found
            assert isinstance(video, VideoInfo) and isinstance(self._cameras, dict)
            camera = self._cameras.get(camera_id)
            if camera is None:
                detail = f"{self._folder / 'calib.txt'} lacks the camera {camera_id}"
                raise RecordError(RejectReason.LABEL_MISSING, detail)
            require_camera_of(path, (video.width, video.height), camera.k)
            self._check_start(path, video)
            index, rest = divmod(frame - self._first_frame, _FRAME_STEP)
            if rest or index >= video.frames:
                detail = (
                    f"{path} has {video.frames} frames from frame {self._first_frame:06d} on, in steps of "
                    f"{_FRAME_STEP}: it does not hold frame {frame:06d}"
                )
                raise RecordError(RejectReason.FRAME_MISSING, detail)
            return _record(
                self._split,
                self._sequence,
                frame,
                camera_id,
                camera,
                _joints_of(self._sequence, frame),
                image_uri=str(path),
                video_frame=index,
                width=video.width,
                height=video.height,
                viewpoint="exo",
            )
        except Exception as error:
            name = record_name(AssemblyHandsAdapter.card.name, self._split, self._sequence.name, frame, camera_id)
            return frame_rejection(name, str(path), error, f"{path}, frame {frame}")

    def _check_start(self, path: Path, video: VideoInfo) -> None:
        """Raise an error where nothing confirms which frame the video begins with.

        Raises:
            RecordError: ``frame_missing``.

        """
        agreeing = sum(start == self._first_frame for start in self._starts.values())
        spanned = (self._last_frame - self._first_frame) // _FRAME_STEP + 1
        if agreeing < 2 and video.frames != spanned:
            begin = ", ".join(f"{kind} at {start:06d}" for kind, start in self._starts.items())
            raise RecordError(
                RejectReason.FRAME_MISSING,
                f"nothing tells which frame {path} begins with: it has {video.frames} frames, its labels span "
                f"{spanned} and begin in {begin}",
            )


def _video(path: Path) -> VideoInfo | RecordError:
    try:
        info = video_info(path)
    except Exception as error:
        return frame_error(error, path)
    if abs(float(info.rate) - _VIDEO_FRAMES_PER_SECOND) > 0.5:
        detail = (
            f"{path} has {float(info.rate):.2f} frames a second, the rectified videos have {_VIDEO_FRAMES_PER_SECOND}; "
            "those of Assembly101 are neither rectified nor cut to the labels"
        )
        return RecordError(RejectReason.FRAME_MISSING, detail)
    return info


def _read_exo_cameras(path: Path, fallback: Path, sequence: _Sequence) -> dict[str, _Camera]:
    """Return the static cameras from ``calib.txt`` beside the videos, or from ``exo_calib`` where that is missing.

    ``calib.txt`` has eight lines a camera, apart from blank ones: its name, three of the intrinsics, one that the
    authors' reader passes over, three of [R | t] in millimetres (``get_calib`` of the toolkit).

    Raises:
        RecordError: ``label_missing``, ``label_corrupt`` or ``label_not_finite``.

    """
    try:
        lines = [line.split() for line in read_lines(path)]
    except RecordError as error:
        if error.reason is RejectReason.LABEL_MISSING and is_file(fallback):
            return _read_exo_calib(fallback, sequence)
        raise
    cameras = {}
    for start in range(0, len(lines), 8):
        block = lines[start : start + 8]
        name = " ".join(block[0])
        if name in cameras:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} has the camera {name} twice")
        cameras[name] = _parse_camera(path, name, *(_rows(path, name, rows) for rows in (block[1:4], block[5:8])))
    return cameras


def _rows(path: Path, camera: str, rows: list[list[str]]) -> list[list[float]]:
    try:
        return [[float(number) for number in row] for row in rows]
    except ValueError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {camera}: {error}") from None


def _read_exo_calib(path: Path, sequence: _Sequence) -> dict[str, _Camera]:
    found = _calibration(path, sequence.name)
    intrinsics, extrinsics = found.get("intrinsics", {}), found.get("extrinsics", {})
    return {
        name: _parse_camera(path, f"{sequence.name} {name}", intrinsics[name], extrinsics[name])
        for name in sorted(intrinsics.keys() & extrinsics.keys())
    }


def _record(
    split: Split,
    sequence: _Sequence,
    frame: int,
    camera_id: str,
    camera: _Camera,
    joints: _Joints | None,
    **image_fields: Any,
) -> HandRecord:
    """Return the record of one image, with the joints projected into it."""
    valid = np.zeros(KEYPOINT_COUNT, dtype=np.bool_)
    points = np.zeros((KEYPOINT_COUNT, 3))
    pixels = np.zeros((KEYPOINT_COUNT, 2))
    if joints is not None:
        points = transform_points(camera.t_world, joints.world_m)
        pixels = project(points, camera.k)
        valid = joints.valid & np.isfinite(pixels).all(axis=1)  # not behind the camera
    subject = _SUBJECT.search(sequence.name)
    return HandRecord(
        source=AssemblyHandsAdapter.card.name,
        split=split,
        sequence_id=sequence.name,
        frame_index=frame,
        camera_id=camera_id,
        timestamp_s=frame / FRAMES_PER_SECOND,
        subject_id=None if subject is None else subject[1],
        keypoints_valid=valid,
        keypoints_2d=np.where(valid[:, None], pixels, 0),
        hand_state=hand_states(valid, "unknown"),
        keypoints_3d=None if joints is None else np.where(valid[:, None], points, 0),
        camera_k=camera.k,
        camera_t_world=camera.t_world,
        **image_fields,
    )
