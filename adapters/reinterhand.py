"""Re:InterHand: tracked poses of two interacting hands, rendered under many lights from a studio and from the head.

Layout (https://mks0601.github.io/ReInterHand/, https://github.com/facebookresearch/InterWild)::

    <capture>/frame_list.txt                                        "<segment> <frame>" a line
    <capture>/Mugsy_cameras/cam_params.json                         {camera: {R, t, focal, princpt}}
    <capture>/Mugsy_cameras/<light>/images/<camera>/<frame>.png
    <capture>/Ego_cameras/<light>/images/<frame>.png, cam_params/<frame>.json (with the fisheye coefficients D)
    <capture>/orig_fits/{right,left}/Keypoints/keypoint-<frame>.json    24 points

where ``<light>`` is ``envmap_per_frame`` or ``envmap_per_segment``: the same poses, cameras and frame numbers under
other lights, so that a sequence is a capture and its light. Lengths are millimetres; X_camera = R X_world + t. Two of
the 24 points of a hand are inner joints (of thumb and little finger) and one is the forearm's end; the other 21 are
always valid. A hand without a file is ``unknown``. Frame numbers are those of the recording: ``timestamp_s`` counts
from the start of the capture's clock. Frames whose joints mostly lie outside the head camera's image are kept.

**Masks** cover both hands with the forearms. They come in the archives of the images, and no public reader opens them:
they are looked for in ``masks`` beside ``images``, under the same names; where there are none, records have none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import number_array, require_finite
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import (
    Array,
    intrinsics,
    metres_from_millimetres,
    place_hands,
    place_validity,
    project,
    project_fisheye,
    reorder_joints,
    rigid_transform,
    transform_points,
)
from handdata.adapters.reading.images import read_image_size, require_camera_of
from handdata.adapters.reading.json_stream import read_object, stream_list
from handdata.adapters.reading.listing import files_in, find_all, folders_in, is_folder, is_named, only_one
from handdata.adapters.reading.masks import read_nonzero_mask
from handdata.adapters.reading.recording_rate import recorded_hz
from handdata.adapters.reading.text_lists import read_lines
from handdata.schemas import (
    SIDES,
    SOURCE_CARDS,
    HandRecord,
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

_TEST_CAPTURES: Final = ("m--20221215--0949--RNS217", "m--20221216--0953--NKC880", "m--20230317--1130--QZX685")
"""Captures that the official reader tests on."""
_IDENTITY_FIELDS: Final = 4
"""Fields of a capture's name that tell it from all others: m, date, time, person."""
_STORED_JOINTS: Final = 24
_ORDER: Final = (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22)
"""Row in the dataset of each of a hand's 21 joints: without Thumb_0, Pinky_0 and Forearm_Stub."""
_STUDIO: Final = "Mugsy_cameras"
_HEAD: Final = "Ego_cameras"
_FRAME_NAME: Final = re.compile(r"[0-9]{1,9}\.png")
_MASK_SUFFIXES: Final = (".png", ".jpg")
"""What else lies beside masks, such as a sidecar or a backup, is no mask."""


class ReInterHandAdapter:
    """Reads whole captures or any of their four kinds of images."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["reinterhand"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("captures", ("m--*/orig_fits/*/Keypoints", "m--*/*_cameras/envmap_per_*/images")),
    )
    unused: ClassVar[tuple[str, ...]] = (
        "*mano_fits",
        "*envmaps",
        "*depth",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each camera of a capture and light.

        Raises:
            LayoutError: A capture is there twice.

        """
        captures: dict[tuple[str, ...], list[Path]] = {}
        for capture in find_all(root, "m--*"):
            captures.setdefault(tuple(capture.name.split("--")[:_IDENTITY_FIELDS]), []).append(capture)
        for identity, copies in captures.items():
            only_one(copies, f"folders of the capture {'--'.join(identity)}")
        found = []
        for images in find_all(root, "m--*/*_cameras/envmap_per_*/images"):
            kind = images.parents[1].name
            folders = [images] if kind == _HEAD else folders_in(images)
            for folder in folders if kind in (_HEAD, _STUDIO) else []:
                camera_folder = _CameraFolder.of(folder.relative_to(root).as_posix())
                name = f"{camera_folder.sequence}/{camera_folder.camera}"
                found.append(Partition(name, camera_folder.split, (folder.relative_to(root).as_posix(),)))
        yield from sorted(found, key=lambda partition: partition.name)

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the frames of one camera in the order of their numbers: those there are, and those the lists name."""
        (relative,) = partition.paths
        camera_folder = _CameraFolder.of(relative)
        try:
            images = _numbered_images(root / relative)
            frames = sorted(images.keys() | _listed_frames(root, camera_folder) | _head_frames(root, camera_folder))
        except RecordError as error:
            yield rejection(f"{self.card.name}/{partition.split}/{relative}", str(root / relative), error)
            return
        masks = _mask_paths(root / camera_folder.masks)
        hz = recorded_hz(frames)
        studio_camera = None if camera_folder.is_head else _read_studio_camera(root, camera_folder)
        for frame in frames:
            image_path = root / relative / images.get(frame, f"{frame:06d}.png")
            timestamp_s = None if hz is None else frame / hz
            camera = studio_camera or _read_head_camera(root, camera_folder, frame)
            yield _read_frame(root, camera_folder, image_path, masks.get(image_path.stem), frame, timestamp_s, camera)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return where the mask of both hands and forearms is not black.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        if not record.extra or not isinstance(record.extra.get("mask"), str):
            raise RecordError(RejectReason.MASK_UNREADABLE, f"{record.image_uri} has no mask")
        return read_nonzero_mask(Path(record.extra["mask"]), (record.width, record.height))


@dataclass(frozen=True, slots=True)
class _CameraFolder:
    """The folder of a camera's images: capture / kind of camera / light / images [/ camera]."""

    capture: str
    kind: str
    light: str
    camera: str
    """``Ego`` for the head camera."""

    @classmethod
    def of(cls, folder: str) -> "_CameraFolder":
        capture, kind, light, _, *camera = folder.split("/")
        return cls(capture, kind, light, camera[0] if camera else "Ego")

    @property
    def is_head(self) -> bool:
        return self.kind == _HEAD

    @property
    def sequence(self) -> str:
        return f"{self.capture}/{self.light}"

    @property
    def split(self) -> Split:
        return "test" if self.capture.startswith(_TEST_CAPTURES) else "train"

    @property
    def subject(self) -> str | None:
        """Return the person's code in the capture's name (m--<date>--<time>--<person>--...)."""
        fields = self.capture.split("--")
        return fields[3] if len(fields) > 3 else None

    @property
    def masks(self) -> str:
        folder = f"{self.capture}/{self.kind}/{self.light}/masks"
        return folder if self.is_head else f"{folder}/{self.camera}"


def _numbered_images(folder: Path) -> dict[int, str]:
    """Return the names of a camera's images by frame number.

    Raises:
        RecordError: ``image_missing``; or ``label_corrupt``: two names are one number.

    """
    if not is_folder(folder):
        raise RecordError(RejectReason.IMAGE_MISSING, f"{folder} does not exist any more")
    images: dict[int, str] = {}
    for path in files_in(folder, ".png"):
        if _FRAME_NAME.fullmatch(path.name):
            other = images.setdefault(int(path.stem), path.name)
            if other != path.name:
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{folder} has one frame as {other} and as {path.name}")
    return images


def _listed_frames(root: Path, camera_folder: _CameraFolder) -> set[int]:
    """Return the frames that ``frame_list.txt`` says were rendered; none where it does not say so or does not exist.

    It lists 30 frames a second; studio images with a light for each frame were rendered at 5 (InterWild, issue 27).
    """
    path = root / camera_folder.capture / "frame_list.txt"
    if (camera_folder.kind, camera_folder.light) == (_STUDIO, "envmap_per_frame") or not is_named(path):
        return set()
    frames = set()
    for line in read_lines(path):
        _, _, number = line.replace("\t", " ").rpartition(" ")
        if len(line.split()) != 2 or not (number.isascii() and number.isdecimal() and len(number) < 10):
            detail = f"{path} should hold '<segment> <frame>' on each line, holds {line[:200]!r}"
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        frames.add(int(number))
    return frames


def _head_frames(root: Path, camera_folder: _CameraFolder) -> set[int]:
    """Return the frames for which the head camera has a file of parameters; none of a studio camera."""
    if not camera_folder.is_head:
        return set()
    files = files_in(root / camera_folder.capture / _HEAD / camera_folder.light / "cam_params", ".json")
    stems = (path.stem for path in files)
    return {int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and len(stem) < 10}


def _mask_paths(folder: Path) -> dict[str, Path]:
    """Return the masks of a camera by name without suffix."""
    return {path.stem: path for path in files_in(folder, *_MASK_SUFFIXES)}


# ---------------------------------------------------------------------------------------------------- cameras


@dataclass(frozen=True, slots=True)
class _Camera:
    k: Array
    t_world: Array
    fisheye: tuple[float, ...] | None

    def project(self, points: Array) -> Array:
        if self.fisheye is None:
            return project(points, self.k)
        return project_fisheye(points, self.k, self.fisheye)


def _read_studio_camera(root: Path, camera_folder: _CameraFolder) -> _Camera | RecordError:
    path = root / camera_folder.capture / _STUDIO / "cam_params.json"
    try:
        parameters = read_object(path)
        if camera_folder.camera not in parameters:
            return RecordError(RejectReason.LABEL_MISSING, f"{path} has no camera {camera_folder.camera}")
        return _parse_camera(f"{path}: camera {camera_folder.camera}", parameters[camera_folder.camera])
    except RecordError as error:
        return error


def _read_head_camera(root: Path, camera_folder: _CameraFolder, frame: int) -> _Camera | RecordError:
    path = root / camera_folder.capture / _HEAD / camera_folder.light / f"cam_params/{frame:06d}.json"
    try:
        fields = read_object(path)
        if "D" not in fields:
            return RecordError(RejectReason.LABEL_CORRUPT, f"{path} has no D: the lens of the head camera is a fisheye")
        return _parse_camera(str(path), fields)
    except RecordError as error:
        return error


def _parse_camera(where: str, fields: Any) -> _Camera:
    rotation, translation = _numbers(where, fields, "R", (3, 3)), _numbers(where, fields, "t", (3,))
    focal, principal = _numbers(where, fields, "focal", (2,)), _numbers(where, fields, "princpt", (2,))
    has_distortion = isinstance(fields, dict) and "D" in fields
    return _Camera(
        k=intrinsics(focal.tolist(), principal.tolist()),
        t_world=rigid_transform(rotation, metres_from_millimetres(translation)),
        fisheye=tuple(_numbers(where, fields, "D", (4,)).tolist()) if has_distortion else None,
    )


def _numbers(where: str, fields: Any, name: str, shape: tuple[int, ...]) -> Array:
    value = fields.get(name) if isinstance(fields, dict) else None
    values = _array(where, name, value, shape)
    require_finite(where, name, values)
    return values


def _array(where: str, name: str, value: Any, shape: tuple[int, ...]) -> Array:
    return number_array(where, name, value, shape, any_nesting=True)


# ---------------------------------------------------------------------------------------------------- one image


def _read_hand(root: Path, camera_folder: _CameraFolder, frame: int, side: Side) -> Array | None:
    """Return the (21, 3) joints of a hand, metres in the world frame; ``None`` where there is no label.

    Raises:
        RecordError: ``label_corrupt`` or ``label_not_finite``.

    """
    path = root / camera_folder.capture / f"orig_fits/{side}/Keypoints/keypoint-{frame:06d}.json"
    if not is_named(path):
        return None
    points = list(stream_list(path))
    joints = reorder_joints(_array(str(path), "keypoints", points, (_STORED_JOINTS, 3)), _ORDER)
    require_finite(path, "keypoints", joints)
    return metres_from_millimetres(joints)


def _read_frame(
    root: Path,
    camera_folder: _CameraFolder,
    image_path: Path,
    mask_path: Path | None,
    frame: int,
    timestamp_s: float | None,
    camera: _Camera | RecordError,
) -> HandRecord | Rejection:
    source = ReInterHandAdapter.card.name
    try:
        width, height = read_image_size(image_path)
        if isinstance(camera, RecordError):
            raise camera
        require_camera_of(image_path, (width, height), camera.k)
        hands = {side: _read_hand(root, camera_folder, frame, side) for side in SIDES}
        if all(world is None for world in hands.values()):
            detail = f"{root / camera_folder.capture / 'orig_fits'} has no joints of frame {frame}"
            raise RecordError(RejectReason.LABEL_MISSING, detail)
        points = transform_points(camera.t_world, place_hands(hands["right"], hands["left"], dimensions=3))
        keypoints = camera.project(points)
        labelled = place_validity(hands["right"] is not None, hands["left"] is not None)
        valid = labelled & np.isfinite(keypoints[:, 0])
        return HandRecord(
            source=source,
            split=camera_folder.split,
            sequence_id=camera_folder.sequence,
            frame_index=frame,
            camera_id=camera_folder.camera,
            timestamp_s=timestamp_s,
            subject_id=camera_folder.subject,
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint="ego" if camera_folder.is_head else "exo",
            keypoints_valid=valid,
            keypoints_2d=keypoints,
            hand_state=hand_states(valid, "unknown"),
            keypoints_3d=points,
            camera_k=camera.k,
            camera_t_world=camera.t_world,
            camera_model="pinhole" if camera.fisheye is None else "fisheye",
            camera_dist=camera.fisheye,
            has_mask=mask_path is not None,
            mask_extent=None if mask_path is None else "hand_forearm",
            extra=None if mask_path is None else {"mask": str(mask_path)},
        )
    except Exception as error:
        name = record_name(source, camera_folder.split, camera_folder.sequence, frame, camera_folder.camera)
        return frame_rejection(name, str(image_path), error, image_path)
