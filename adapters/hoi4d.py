"""HOI4D: clips of one person handling one object, from a camera on the head.

Layout (https://github.com/leolyliu/HOI4D-Instructions), each folder below the root or one or two levels deeper::

    HOI4D_release/<clip>/align_rgb/image.mp4             or 00000.jpg ... after the authors' decode script
    HOI4D_annotations/<clip>/2Dseg/{shift_mask|mask}/00000.png
    HOI4D_annotations/<clip>/3Dseg/output.log            camera to world, a 4 x 4 a frame
    handpose/refinehandpose_{right|left}/<clip>/0.pickle     or Hand_pose/handpose_{right|left}_hand/...
    camera_params/<camera>/intrin.npy
    testset.txt                                          optional, of the repository: clips of the test split

``<clip>`` is camera/person/class/instance/room/layout/task, such as ``ZY20210800001/H1/C1/N19/S100/s02/T1``. A pickle
holds MANO parameters of one hand and their projection ``kps2D``, (21, 2) pixels in our joint order. With the user's own
MANO files (``AdapterOptions.mano_dir``) the joints are posed as the readme says, with manopth and a flat mean hand, and
kept only where they project to ``kps2D``. The readme poses all hands with the right model; left hands are tried with
the left model first.

A frame without a pickle says nothing: hands, above all left ones, are often visible and not labelled. They are
``unknown``.

**The trajectory** is the one file that is joined to frames by position, and programs that track cameras leave out the
frames that they lose. It is used as a whole where it has a pose for each frame; else up to where its own numbers break
off, and not at all where they do not, for writers number what is left from 0 again.

**Masks** colour the right hand, with the forearm, as label 2 in every class. The left hand has a label only in
buckets, lamps and chairs (``definitions/motion segmentation/label.csv``), so elsewhere a frame with a labelled left
hand has no complete mask.

**Splits**: only the clips of the repository's release.txt are published with labels, and they are train; those that the
list testset.txt names too are test.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import number_array, numbers, read_npy_header, require_finite
from handdata.adapters.reading.frames import frame_error, frame_rejection
from handdata.adapters.reading.geometry import Array, invert_rigid, place_hands, place_validity, project
from handdata.adapters.reading.images import read_image_size, require_size
from handdata.adapters.reading.listing import exists, files_in, find_all, is_folder, is_named, only_one, open_file
from handdata.adapters.reading.mano import MANOPTH_TIPS, load_mano, rotation_matrices
from handdata.adapters.reading.masks import read_mask_of_colours
from handdata.adapters.reading.pickles import load_pickle
from handdata.adapters.reading.text_lists import read_lines
from handdata.adapters.reading.video import video_info
from handdata.schemas import (
    KEYPOINTS_PER_HAND,
    SIDES,
    SOURCE_CARDS,
    SPLITS,
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

FRAMES_PER_SECOND: Final = 15
CLIPS_PER_PARTITION: Final = 16
MAX_REPROJECTION_PX: Final = 5.0
"""Posed joints whose median distance from ``kps2D`` is larger belong to another model or camera than the label."""

_CLIP_LEVELS: Final = 7
_CLIP_PATTERN: Final = "ZY*/H*/C*/N*/S*/s*/T*"
_CLIP_NAME: Final = re.compile(r"ZY\d+/H\d+/C\d+/N\d+/S\d+/s\d+/T\d+", re.ASCII)
_EXAMPLE: Final = "ZY20210800001/H1/C1/N19/S100/s02/T1"
_VIDEOS, _ANNOTATIONS = "HOI4D_release", "HOI4D_annotations"
_HAND_FOLDERS: Final[dict[Side, tuple[str, str]]] = {
    "right": ("refinehandpose_right", "handpose_right_hand"),
    "left": ("refinehandpose_left", "handpose_left_hand"),
}
"""Folders of the hand poses, in the older and in the newer archive."""
_RIGHT_HAND_COLOUR: Final = (0, 128, 0)
_LEFT_HAND_COLOURS: Final = {"C8": (0, 128, 128), "C17": (0, 128, 128), "C20": (128, 128, 0)}
"""Colours of the left hand by class of object (label 6 or 3 of the palette); parts of objects in other classes."""
_OBJECTS: Final = {
    "C1": "ToyCar",
    "C2": "Mug",
    "C3": "Laptop",
    "C4": "StorageFurniture",
    "C5": "Bottle",
    "C6": "Safe",
    "C7": "Bowl",
    "C8": "Bucket",
    "C9": "Scissors",
    "C11": "Pliers",
    "C12": "Kettle",
    "C13": "Knife",
    "C14": "TrashCan",
    "C17": "Lamp",
    "C18": "Stapler",
    "C20": "Chair",
}
"""Names of the classes of objects, as the authors' readme lists them."""
_SIZE: Final = (1920, 1080)
"""Width and height of all frames, whose pixels the labels count."""
_FRAME_NAME: Final = re.compile(r"0*([0-9]{1,9})")
_MAX_CAMERA_BYTES: Final = 4096


class Hoi4dAdapter:
    """Reads any part of the archives; every frame of a video is a record."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["hoi4d"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("archives unpacked into one folder", (f"{_VIDEOS}/ZY*",), "the videos"),
        Layout("a folder for each archive", (f"HOI4D_*/{_VIDEOS}/ZY*",), "the videos"),
    )
    unused: ClassVar[tuple[str, ...]] = (
        "*objpose",
        "*action",
        "*depth*",
        "*CAD_*",
        "*2Dseg/mask",
        "*HOI4D-Instructions*",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield runs of clips that have a video or hand poses, each of one split.

        Raises:
            UsageError: The folder of ``mano_dir`` holds no MANO files.
            LayoutError: A folder among the clips is not named as they are, such as a copy, which no list would know.
            RecordError: ``testset.txt`` cannot be read, so that no split is known.

        """
        if self.options.mano_dir is not None:
            for side in SIDES:
                load_mano(self.options.mano_dir, side)
        parents = [_find_folder(root, name) for names in ((_VIDEOS,), *_HAND_FOLDERS.values()) for name in names]
        folders: dict[str, str] = {}
        for parent in parents:
            for folder in find_all(parent, _CLIP_PATTERN) if parent is not None else ():
                if not _CLIP_NAME.fullmatch(_clip_name(folder)):
                    raise LayoutError(
                        f"{folder} is not named as a clip is, such as {_EXAMPLE}",
                        "move copies away, and give other clips back their names",
                    )
                folders.setdefault(_clip_name(folder), folder.relative_to(root).as_posix())
        held_out = _read_test_list(root)
        for split in sorted(SPLITS):
            clips = sorted(name for name in folders if (name in held_out) == (split == "test") and split != "val")
            for start in range(0, len(clips), CLIPS_PER_PARTITION):
                paths = tuple(folders[name] for name in clips[start : start + CLIPS_PER_PARTITION])
                yield Partition(f"{split}/{start // CLIPS_PER_PARTITION:04d}", split, paths)

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line where no list says which clips are test, or where the list names none of those there are."""
        if _find_test_list(root) is None:
            yield f"there is no testset.txt in {root}: clips of the test split are not told from those of train"
        elif all(partition.split != "test" for partition in self.partitions(root)):
            yield f"testset.txt names no clip that is there: all clips of {root} are train"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the frames of a partition, clip by clip."""
        for relative in partition.paths:
            yield from _read_clip(root, partition.split, _clip_name(Path(relative)), self.options.mano_dir)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the pixels that the segmentation labels as hand, with the forearm.

        Raises:
            RecordError: ``mask_unreadable``; also where no hand is coloured.

        """
        path = Path((record.extra or {})["mask_path"])
        left = _LEFT_HAND_COLOURS.get(_object_class(record.sequence_id))
        colours = [_RIGHT_HAND_COLOUR] if left is None else [_RIGHT_HAND_COLOUR, left]
        mask = read_mask_of_colours(path, colours, (record.width, record.height))
        if not mask.any():
            raise RecordError(RejectReason.MASK_UNREADABLE, f"{path} colours no hand")
        return mask


@dataclass(frozen=True, slots=True)
class _Hand:
    """What a pickle says about one hand."""

    pixels: Array
    pose: Array
    """(48,) axis-angles: the hand's rotation, then the 15 joints."""
    betas: Array
    translation_m: Array


@dataclass(frozen=True, slots=True)
class _Trajectory:
    """The poses of ``output.log``, in their order."""

    path: Path
    numbers: list[int]
    """What the file calls them."""
    world_t_camera: Array
    """(poses, 4, 4) camera to world, metres."""

    def usable(self, frames: int) -> tuple[int, RecordError | None]:
        """Return how many poses, from the first on, belong to the frames of the same number, and why not all do."""
        count = len(self.numbers)
        is_numbered = len(set(self.numbers)) > 1
        steps = (number - self.numbers[0] for number in self.numbers)
        broken = next((place for place, step in enumerate(steps) if step != place), count) if is_numbered else count
        if broken == count == frames:
            return count, None
        used = broken if broken < count else 0
        detail = f"{self.path} has {count} poses for {frames} frames"
        if broken < count:
            detail += f", and the pose behind that of {self.numbers[broken - 1]} is that of {self.numbers[broken]}"
        detail += f": those from frame {used} on are not used" if used else ": none is used"
        reason = RejectReason.LABEL_MISSING if count < frames else RejectReason.LABEL_CORRUPT
        return used, RecordError(reason, detail)


@dataclass(frozen=True, slots=True)
class _Clip:
    """The files of a clip, by frame number, and its camera."""

    name: str
    video: Path
    images: dict[int, Path]
    hands: dict[Side, dict[int, Path]]
    masks: dict[int, Path]
    k: Array | None
    trajectory: _Trajectory | None
    others: list[Path]
    """Files beside those that are named by frames, and are not."""


def _find_folder(root: Path, name: str) -> Path | None:
    """Return the folder of this name: users keep the levels that their archives came with."""
    for depth in ("", "*/", "*/*/"):
        found = only_one(filter(is_folder, find_all(root, depth + name)), f"folders {name}")
        if found is not None:
            return found
    return None


def _clip_name(folder: Path) -> str:
    return "/".join(folder.parts[-_CLIP_LEVELS:])


def _object_class(clip: str) -> str:
    return clip.split("/")[2]


def _read_test_list(root: Path) -> frozenset[str]:
    """Return the clips that ``testset.txt`` names; nothing where the user has not put it there."""
    path = _find_test_list(root)
    return frozenset() if path is None else frozenset(_clip_of_line(path, line) for line in read_lines(path))


def _find_test_list(root: Path) -> Path | None:
    """Return ``testset.txt``, which may lie in the repository's folder, as deep as those of the archives."""
    for depth in ("", "*/", "*/*/"):
        path = only_one(find_all(root, f"{depth}testset.txt"), "lists testset.txt")
        if path is not None:
            return path
    return None


def _clip_of_line(path: Path, line: str) -> str:
    """Return the clip that a line of ``testset.txt`` names.

    Raises:
        RecordError: ``label_corrupt``: A clip that was not understood would go to another split.

    """
    name = line.replace("\\", "/").strip("/")
    if not _CLIP_NAME.fullmatch(name):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {line[:200]!r} is no name of a clip")
    return name


def _numbered_files(folder: Path, suffix: str, others: list[Path]) -> dict[int, Path]:
    """Return the files of a folder whose names are frame numbers, zero-padded or not; the rest goes to ``others``."""
    numbered: dict[int, Path] = {}
    for path in files_in(folder, f".{suffix}"):
        match = _FRAME_NAME.fullmatch(path.stem)
        # One that is there already is named with more zeros, or fewer.
        if match is None or path.suffix != f".{suffix}" or int(match[1]) in numbered:
            others.append(path)
        else:
            numbered[int(match[1])] = path
    return numbered


def _read_clip(root: Path, split: Split, name: str, mano_dir: Path | None) -> Iterator[HandRecord | Rejection]:
    source = Hoi4dAdapter.card.name
    try:
        clip = _find_clip(root, name)
    except Exception as error:
        yield frame_rejection(f"{source}/{split}/{name}", str(root / name), error)
        return
    labelled = {frame for paths in clip.hands.values() for frame in paths}
    sizes: dict[int, tuple[int, int] | RecordError] = {}
    info = None
    if clip.images:
        for frame in labelled | set(clip.images):
            sizes[frame] = _image_size(clip.images.get(frame), clip.video.parent / f"{frame:05d}.jpg")
    else:
        try:
            info = video_info(clip.video)
            past = RecordError(RejectReason.FRAME_MISSING, f"{clip.video} has {info.frames} frames")
            sizes = dict.fromkeys(labelled, past) | dict.fromkeys(range(info.frames), (info.width, info.height))
        except Exception as error:
            problem = frame_error(error, clip.video)
            if not labelled:
                yield rejection(f"{source}/{split}/{name}", str(clip.video), problem)
            sizes = dict.fromkeys(labelled, problem)
    poses, out_of_step = 0, None
    if clip.trajectory is not None and any(not isinstance(size, RecordError) for size in sizes.values()):
        # Images may be there in part: what else is named by frames tells how many there were.
        frames = info.frames if info is not None else 1 + max(*sizes, *clip.masks)
        poses, out_of_step = clip.trajectory.usable(frames)
    for frame, size in sorted(sizes.items()):
        yield _read_frame(split, clip, frame, size, poses, mano_dir)
    if out_of_step is not None:
        yield rejection(f"{source}/{split}/{name}/3Dseg/output.log", str(clip.video), out_of_step)
    yield from _lacking(split, clip)


def _lacking(split: Split, clip: _Clip) -> Iterator[Rejection]:
    """Yield a rejection for masks with gaps, and for files of no frame.

    Frames without a hand's pickle are many and mean nothing.
    """
    prefix = f"{Hoi4dAdapter.card.name}/{split}/{clip.name}"
    masked = set(range(min(clip.masks, default=0), max(clip.masks, default=-1) + 1))
    lacking = masked - set(clip.masks)
    if lacking:
        detail = f"2Dseg of {clip.name} lacks {len(lacking)} frames, such as {min(lacking)}"
        yield rejection(f"{prefix}/2Dseg", str(clip.video), RecordError(RejectReason.LABEL_MISSING, detail))
    for path in clip.others:
        problem = RecordError(RejectReason.LABEL_CORRUPT, f"{path} is not named by the number of a frame alone")
        yield rejection(f"{prefix}/{path.parent.name}/{path.name}", str(path), problem)


def _image_size(path: Path | None, expected: Path) -> tuple[int, int] | RecordError:
    try:
        return read_image_size(path or expected)
    except Exception as error:
        return frame_error(error, path or expected)


def _find_clip(root: Path, name: str) -> _Clip:
    """Return a clip's files and camera.

    Raises:
        RecordError: The intrinsics or the trajectory are damaged.

    """
    folders = {known: _find_folder(root, known) for known in (_VIDEOS, _ANNOTATIONS, "camera_params")}
    frames = (folders[_VIDEOS] or root / _VIDEOS) / name / "align_rgb"
    annotations = (folders[_ANNOTATIONS] or root / _ANNOTATIONS) / name
    video = frames / "image.mp4"
    others: list[Path] = []
    hands: dict[Side, dict[int, Path]] = {}
    for side in SIDES:
        archives = [found for known in _HAND_FOLDERS[side] if (found := _find_folder(root, known)) is not None]
        hands[side] = {}
        for archive in reversed(archives):
            hands[side] |= _numbered_files(archive / name, "pickle", others)
    segmentation = annotations / "2Dseg"
    masks = next(filter(is_folder, (segmentation / "shift_mask", segmentation / "mask")), segmentation)
    cameras = folders["camera_params"] or root / "camera_params"
    return _Clip(
        name=name,
        video=video,
        images={} if exists(video) else _numbered_files(frames, "jpg", others),
        hands=hands,
        masks=_numbered_files(masks, "png", others),
        k=_read_intrinsics(cameras / name.partition("/")[0] / "intrin.npy"),
        trajectory=_read_trajectory(annotations / "3Dseg/output.log"),
        others=others,
    )


def _read_intrinsics(path: Path) -> Array | None:
    """Return the (3, 3) of a camera; None where the small archive of cameras was not downloaded."""
    if not is_named(path):
        return None
    try:
        with open_file(path) as stream:
            shape, column_major, dtype = read_npy_header(stream)
            stored = np.frombuffer(stream.read(_MAX_CAMERA_BYTES), dtype)
            stored = stored.reshape(shape, order="F" if column_major else "C")
        k = numbers(path, "the intrinsics", stored, (3, 3))
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} is a link that leads nowhere") from None
    except (ValueError, EOFError) as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None
    require_finite(path, "the intrinsics", k)
    return k


def _read_trajectory(path: Path) -> _Trajectory | None:
    """Return camera to world of each frame; None where the file is missing.

    Open3D's text format: a line of three numbers, then four of four (its own reader inverts the matrices).
    """
    if not is_named(path):
        return None
    try:
        lines = [line.split() for line in read_lines(path)]
        for place, line in enumerate(lines):
            if len(line) != (4 if place % 5 else 3):
                raise ValueError(f"line {place + 1} should hold {4 if place % 5 else 3} numbers, holds {len(line)}")
        if len(lines) % 5:
            raise ValueError("its last matrix is not whole")
        rows = [line for place, line in enumerate(lines) if place % 5]
        return _Trajectory(
            path, [int(line[0]) for line in lines[::5]], np.array(rows, dtype=np.float64).reshape(-1, 4, 4)
        )
    except ValueError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None


def _read_frame(
    split: Split, clip: _Clip, frame: int, size: tuple[int, int] | RecordError, poses: int, mano_dir: Path | None
) -> HandRecord | Rejection:
    source = Hoi4dAdapter.card.name
    in_video = not clip.images
    image_path = clip.video if in_video else clip.images.get(frame, clip.video.parent / f"{frame:05d}.jpg")
    camera_id, person, object_class = clip.name.split("/")[:3]
    try:
        if isinstance(size, RecordError):
            raise size
        require_size(image_path, size, _SIZE)
        hands = {side: _read_hand(path) for side in SIDES if (path := clip.hands[side].get(frame)) is not None}
        right, left = hands.get("right"), hands.get("left")
        valid = place_validity(right is not None, left is not None)
        mask_path = clip.masks.get(frame) if left is None or object_class in _LEFT_HAND_COLOURS else None
        return HandRecord(
            source=source,
            split=split,
            sequence_id=clip.name,
            frame_index=frame,
            camera_id=camera_id,
            timestamp_s=frame / FRAMES_PER_SECOND,
            subject_id=person,
            image_uri=str(image_path),
            video_frame=frame if in_video else None,
            width=size[0],
            height=size[1],
            viewpoint="ego",
            keypoints_valid=valid,
            keypoints_2d=place_hands(
                None if right is None else right.pixels,
                None if left is None else left.pixels,
            ),
            hand_state=hand_states(valid, "unknown"),
            keypoints_3d=_pose_hands({"right": right, "left": left}, clip.k, mano_dir),
            camera_k=clip.k,
            camera_t_world=_camera_t_world(clip, frame) if frame < poses else None,
            has_mask=mask_path is not None,
            mask_extent=None if mask_path is None else "hand_forearm",
            extra=None if mask_path is None else {"mask_path": str(mask_path)},
            attributes={"object": _OBJECTS[object_class]} if object_class in _OBJECTS else None,
        )
    except Exception as error:
        return frame_rejection(
            record_name(source, split, clip.name, frame, camera_id),
            str(image_path),
            error,
            f"{clip.name}, frame {frame}",
        )


def _read_hand(path: Path) -> _Hand | None:
    """Return the hand of a pickle; None for the few with arrays of another shape (issue 19), which label no hand.

    Raises:
        RecordError: ``label_unsafe``, ``label_corrupt`` or ``label_not_finite``.

    """
    content: Any = load_pickle(path)
    if not isinstance(content, dict):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} holds no dict")
    arrays = []
    for name, shape in (("kps2D", (KEYPOINTS_PER_HAND, 2)), ("poseCoeff", (48,)), ("beta", (10,)), ("trans", (3,))):
        stored = content.get(name)
        if isinstance(stored, np.ndarray) and stored.dtype.kind in "iuf" and np.squeeze(stored).shape != shape:
            return None
        array = number_array(path, name, stored, shape, any_nesting=True)
        require_finite(path, name, array)
        arrays.append(array.astype(np.float64))
    return _Hand(*arrays)


def _camera_t_world(clip: _Clip, frame: int) -> Array:
    """Return world to camera, metres.

    Raises:
        RecordError: ``label_not_finite`` or ``label_corrupt``: the frame's matrix is no rigid transform.

    """
    assert clip.trajectory is not None
    matrix = clip.trajectory.world_t_camera[frame]
    require_finite(clip.trajectory.path, f"frame {frame}", matrix)
    try:
        return invert_rigid(matrix)
    except ValueError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{clip.trajectory.path}, frame {frame}: {error}") from None


def _pose_hands(hands: dict[Side, _Hand | None], k: Array | None, mano_dir: Path | None) -> Array | None:
    """Return (42, 3) metres in the camera frame; None unless every labelled hand can be posed and checked."""
    if mano_dir is None or k is None or not any(hands.values()):
        return None
    posed: dict[Side, Array] = {}
    for side, hand in hands.items():
        if hand is None:
            continue
        models: tuple[Side, ...] = ("left", "right") if side == "left" else ("right",)
        for model in models:
            joints = load_mano(mano_dir, model).joints(
                rotation_matrices(hand.pose[:3])[0], hand.pose[3:], hand.betas, hand.translation_m, MANOPTH_TIPS[model]
            )
            distances = np.linalg.norm(project(joints, k) - hand.pixels, axis=1)
            if np.median(distances) <= MAX_REPROJECTION_PX:
                posed[side] = joints
                break
        else:
            return None
    return place_hands(posed.get("right"), posed.get("left"), dimensions=3)
