"""Ego4D, hands and objects (FHO): key frames of first-person clips; HInt's hand joints on some of them.

Layout (the ``ego4d`` command line tool, https://ego4d-data.org; HInt, https://github.com/ddshan/hint)::

    <root>/{v1,v2}/annotations/fho_{hands,scod}_{train,val,test_unannotated}.json
    <root>/{v1,v2}/clips/<clip_uid>.mp4                       five minutes each, 30 frames per second
    <root>/{v1,v2}/ego4d.json                                 who wore the camera
    <root>/HInt_annotation{,_partial}/{TRAIN,VAL,TEST}_ego4d_{img,seq}/<name>.json, <name>.jpg
    <name>: <clip_uid>_<action uid>_<clip frame>_<type>_<l|r>

``fho_hands`` gives the centre of each visible hand on up to seven key frames an action, ``fho_scod`` boxes on three.
Where a file is in both versions, that of v2 is read. Frames are named by ``clip_frame``, from 0 in the clip's file.
All labels of a frame are merged into one record. (``fho_main.json`` numbers the frames of whole videos: not read.)

**Joints** exist in HInt alone: 21 of one hand, in handdata's order, in pixels of the whole frame; occluded ones are
annotated too, and one at exactly (0, 0) counts as not annotated. Both hands of a frame may be labelled, in two files;
of two files about one hand the still (``img``) counts. All other hands are ``unknown``. A centre is not a wrist:
centres and boxes are hints for annotation (``extra``).

**The image** is HInt's jpg where it is there (their script makes it from the clip), else the clip's frame.

**Splits**: a clip belongs to the split of its HInt folder, else to that of its first label file, so that no clip is
in two.
"""

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import number_array, require_finite
from handdata.adapters.reading.frames import frame_error, frame_rejection
from handdata.adapters.reading.geometry import Array
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.json_stream import read_json, stream_list
from handdata.adapters.reading.listing import files_in, find_all, is_file, is_folder, is_named, size_of
from handdata.adapters.reading.paths import resolve_below
from handdata.adapters.reading.video import VideoInfo, video_info
from handdata.schemas import (
    KEYPOINT_COUNT,
    KEYPOINTS_PER_HAND,
    SOURCE_CARDS,
    SPLITS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    Side,
    SourceCard,
    Split,
    hand_rows,
    hand_states,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection

LABEL_BYTES_PER_PARTITION: Final = 64 << 20
HINT_FILES_PER_PARTITION: Final = 2000

_MOST_FLAG: Final = 2
"""Largest number that says how a keypoint is seen, as in COCO."""
_RATE: Final = 30
"""Canonical clips have a constant rate (https://ego4d-data.org/docs/data/videos)."""
_FHO_SPLITS: Final[dict[str, Split]] = {"train": "train", "val": "val", "test_unannotated": "test"}
_HINT_SPLITS: Final[dict[str, Split]] = {"TRAIN": "train", "VAL": "val", "TEST": "test"}
_HINT_NAME: Final = re.compile(r"(?P<clip>[0-9A-Za-z-]+)_[^_]+_(?P<frame>\d{1,9})_[^_]+_[^_]+_(?P<side>[lr])")
_SIDES: Final[dict[str, Side]] = {"l": "left", "r": "right", "left_hand": "left", "right_hand": "right"}
_KEY_FRAMES: Final = ("pre_45", "pre_30", "pre_15", "pre_frame", "contact_frame", "pnr_frame", "post_frame")


class Ego4dAdapter:
    """Reads FHO's key frames, HInt's frames, or both."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["ego4d"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("ego4d command line tool", ("v[12]/annotations/fho_*.json",), "the labels of FHO"),
        Layout("one version of it", ("annotations/fho_*.json",), "the labels of FHO"),
        Layout("the folder of HInt", ("HInt_annotation*/*_ego4d_*/*.json",), "the labels of HInt"),
        Layout("HInt", ("*_ego4d_*/*.json",), "the labels of HInt"),
    )
    unused: ClassVar[tuple[str, ...]] = (
        "HInt_annotation_partial",
        "*_epick_*",
        "*_newdays_*",
        "*full_scale",
        "*viz",
        "*imu",
        "*gaze",
        "*omnivore*",
        "*slowfast*",
        "*video_540ss",
        "*models",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield blocks of clips of each split; the labels say only later which clips are in a block."""
        labels = _label_files(root)
        folders = _hint_folders(root)
        paths = [label.path for label in labels] + [folder for _, folder in folders]
        relative = tuple(path.relative_to(root).as_posix() for path in paths)
        label_bytes = sum(size_of(label.path) for label in labels)
        hint_files = sum(len(files_in(folder, ".json")) for _, folder in folders)
        blocks = max(
            1, math.ceil(label_bytes / LABEL_BYTES_PER_PARTITION), math.ceil(hint_files / HINT_FILES_PER_PARTITION)
        )
        for split in sorted(SPLITS):
            for block in range(blocks):
                yield Partition(f"{split}/{block:04d}", split, relative, f"{block}/{blocks}")

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the labelled frames of a block's clips, sorted by clip and frame; the label files are streamed."""
        block, blocks = map(int, partition.selection.split("/"))
        clips: dict[str, _Clip] = {}
        problems: list[tuple[Split, Rejection]] = []  # of files and entries that name no frame
        _gather_hint(root, block, blocks, clips, problems)
        for label in _label_files(root):
            _gather_fho(label, block, blocks, clips, problems)
        for split, problem in problems:
            if split == partition.split:
                yield problem
        wanted = {uid: clip for uid, clip in sorted(clips.items()) if clip.split == partition.split}
        subjects = _subjects(root, wanted)
        for uid, clip in wanted.items():
            yield from _read_clip(root, uid, clip, subjects.get(uid))

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"ego4d has no masks, asked for that of {record.image_uri}")


# ---------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class _LabelFile:
    kind: str
    """Kind of the labels: ``hands`` or ``scod``."""
    split: Split
    path: Path


def _label_files(root: Path) -> list[_LabelFile]:
    found = []
    for kind in ("hands", "scod"):
        for suffix, split in _FHO_SPLITS.items():
            paths = [root / version / "annotations" / f"fho_{kind}_{suffix}.json" for version in ("v2", "v1", ".")]
            found += [_LabelFile(kind, split, path) for path in filter(is_named, paths)][:1]
    return found


def _hint_folders(root: Path) -> list[tuple[Split, Path]]:
    """Return HInt's folders with their splits; stills before sequences, the complete release before the partial one."""
    for base in (*find_all(root, "HInt_annotation*"), root):
        folders = [
            (split, base / f"{prefix}_ego4d_{kind}")
            for kind in ("img", "seq")
            for prefix, split in _HINT_SPLITS.items()
        ]
        if any(is_folder(folder) for _, folder in folders):
            return [(split, folder) for split, folder in folders if is_folder(folder)]
    return []


def _find_clip(root: Path, uid: str) -> Path:
    paths = [resolve_below(root / version / "clips", f"{uid}.mp4") for version in ("v1", "v2", ".")]
    return next(filter(is_file, paths), paths[0])


# ---------------------------------------------------------------------------------------------------- labels


@dataclass(slots=True)
class _Frame:
    """What the label files say about one frame."""

    hint: list[tuple[Side, Path]] = field(default_factory=list)
    centres: dict[Side, list[float]] = field(default_factory=dict)
    """(x, y) pixels of the clip's frame."""
    boxes: list[tuple[Side, list[float]]] = field(default_factory=list)
    """x0, y0, x1, y1 divided by the width and height that the labels give."""
    error: RecordError | None = None


@dataclass(slots=True)
class _Clip:
    split: Split
    video_uid: str | None = None
    frames: dict[int, _Frame] = field(default_factory=dict)

    def frame(self, index: int) -> _Frame:
        return self.frames.setdefault(index, _Frame())


def _block_of(clip_uid: str, blocks: int) -> int:
    return zlib.crc32(clip_uid.encode("utf-8", "backslashreplace")) % blocks


def _gather_hint(
    root: Path, block: int, blocks: int, clips: dict[str, _Clip], problems: list[tuple[Split, Rejection]]
) -> None:
    for split, folder in _hint_folders(root):
        # An image whose label is missing is found out when that is read.
        for path in dict.fromkeys(path.with_suffix(".json") for path in files_in(folder, ".jpg", ".json")):
            name = _HINT_NAME.fullmatch(path.stem)
            if name is None:
                if block == 0:
                    error = RecordError(RejectReason.LABEL_CORRUPT, f"{path} is not named as HInt's files are")
                    problems.append((split, rejection(f"ego4d/{split}/{folder.name}/{path.stem}", str(path), error)))
            elif _block_of(name["clip"], blocks) == block:
                clip = clips.setdefault(name["clip"], _Clip(split))
                clip.frame(int(name["frame"])).hint.append((_SIDES[name["side"]], path))


def _gather_fho(
    label: _LabelFile, block: int, blocks: int, clips: dict[str, _Clip], problems: list[tuple[Split, Rejection]]
) -> None:
    def report(where: str, error: RecordError) -> None:
        record_id = f"ego4d/{label.split}/{label.path.name}/{where}"
        problems.append((label.split, rejection(record_id, str(label.path), error)))

    try:
        if not is_file(label.path):
            detail = f"{label.path} is no file: labels of the split {label.split} are missing"
            raise RecordError(RejectReason.LABEL_MISSING, detail)
        for number, entry in enumerate(stream_list(label.path, "clips")):
            uid = entry.get("clip_uid") if isinstance(entry, dict) else None
            if not isinstance(uid, str) or not uid:
                if block == 0:
                    report(f"clip {number}", _corrupt(label.path, f"clip {number} has no clip_uid"))
                continue
            if _block_of(uid, blocks) != block:
                continue
            clip = clips.setdefault(uid, _Clip(label.split))
            if isinstance(entry.get("video_uid"), str):
                clip.video_uid = entry["video_uid"]
            frames = _hands_frames(entry) if label.kind == "hands" else _scod_frames(entry)
            for position, (index, frame) in enumerate(frames):
                where = f"clip {number}, frame {position}"
                if type(index) is not int or not 0 <= index < 2**31:
                    report(where, _corrupt(label.path, f"{where} of {uid} has the number {index!r}"))
                    continue
                try:
                    if label.kind == "hands":
                        _add_centres(f"{label.path}, {uid}, {index}", clip.frame(index), frame)
                    else:
                        _add_boxes(f"{label.path}, {uid}, {index}", clip.frame(index), frame)
                except RecordError as error:
                    clip.frame(index).error = error
    except RecordError as error:
        if block == 0:
            report("end", error)


def _hands_frames(entry: dict[str, Any]) -> Iterator[tuple[object, dict[str, Any]]]:
    """Yield (number, key frame) of an element of fho_hands; absent key frames are omitted."""
    actions = entry.get("frames")
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        yield None, {}
        return
    for action in actions:
        for name in _KEY_FRAMES:
            if action.get(name) is not None:
                yield _number_of(action[name], "clip_frame")


def _scod_frames(entry: dict[str, Any]) -> Iterator[tuple[object, dict[str, Any]]]:
    """Yield (number, key frame) of an element of fho_scod."""
    for name in _KEY_FRAMES:
        if entry.get(name) is not None:
            yield _number_of(entry[name], "clip_frame_number")


def _number_of(key_frame: object, name: str) -> tuple[object, dict[str, Any]]:
    """Return (number, key frame); of one that is no object the number is none, which is reported."""
    return (key_frame.get(name), key_frame) if isinstance(key_frame, dict) else (None, {})


def _add_centres(where: str, frame: _Frame, label: dict[str, Any]) -> None:
    boxes = label.get("boxes")
    if not isinstance(boxes, list | None):
        raise _corrupt(where, "boxes should be a list")
    for box in boxes or []:
        for name, values in box.items() if isinstance(box, dict) else [("", None)]:
            if name not in ("left_hand", "right_hand"):
                raise _corrupt(where, f"a hand is neither left nor right: {str(box)[:100]}")
            # Several actions may share a frame: the first one's centre stands.
            frame.centres.setdefault(_SIDES[name], _numbers(where, "boxes", values, (2,)).tolist())


def _add_boxes(where: str, frame: _Frame, label: dict[str, Any]) -> None:
    objects = label.get("bbox")
    if not isinstance(objects, list | None):
        raise _corrupt(where, "bbox should be a list")
    for thing in objects or []:
        if not isinstance(thing, dict):
            raise _corrupt(where, f"an object of bbox is {str(thing)[:100]}")
        if thing.get("object_type") not in ("left_hand", "right_hand"):
            continue
        box = thing["bbox"] if isinstance(thing.get("bbox"), dict) else {}
        numbers = [box.get("x"), box.get("y"), box.get("width"), box.get("height")]
        x, y, width, height = _numbers(where, "bbox", numbers, (4,)).tolist()
        whole = _numbers(where, "width and height", [label.get("width"), label.get("height")], (2,))
        if not (whole > 0).all():
            raise _corrupt(where, f"the frame is {whole.tolist()} pixels large")
        relative = np.array([x, y, x + width, y + height]) / np.tile(whole, 2)
        hand = (_SIDES[thing["object_type"]], relative.tolist())
        if hand not in frame.boxes:
            frame.boxes.append(hand)


def _read_hint(path: Path) -> Array:
    """Return the (21, 2) pixels of the hand of one HInt file.

    Raises:
        RecordError: ``label_missing``, ``label_corrupt`` or ``label_not_finite``.

    """
    content = read_json(path)
    hand = content[0] if isinstance(content, list) and len(content) == 1 else None
    rows = hand.get("keypoints") if isinstance(hand, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise _corrupt(path, "expected a list of one hand with keypoints")
    numbers = 3 if rows and len(rows[0]) == 3 else 2
    keypoints = _numbers(path, "keypoints", rows, (KEYPOINTS_PER_HAND, numbers))
    if not ((keypoints[:, 2:] >= 0) & (keypoints[:, 2:] <= _MOST_FLAG)).all():
        raise _corrupt(path, "expected keypoints of x, y and at most a flag: the third number of some is none")
    return keypoints[:, :2]


def _numbers(where: Path | str, name: str, values: object, shape: tuple[int, ...]) -> Array:
    array = number_array(where, name, values, shape)
    require_finite(where, name, array)
    return array


def _corrupt(where: Path | str, problem: str) -> RecordError:
    return RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {problem}")


def _subjects(root: Path, clips: dict[str, _Clip]) -> dict[str, str]:
    """Return who wore the camera in each clip; clips that ``ego4d.json`` does not mention are omitted."""
    path = next(filter(is_file, (root / version / "ego4d.json" for version in ("v2", "v1", "."))), None)
    if path is None or not clips:
        return {}
    video_of_clip = {uid: clip.video_uid for uid, clip in clips.items() if clip.video_uid is not None}
    participants: dict[str, str] = {}
    with suppress(RecordError):  # nothing but the name is lost
        if len(video_of_clip) < len(clips):
            for entry in stream_list(path, "clips"):
                if isinstance(entry, dict) and isinstance(entry.get("clip_uid"), str) and entry["clip_uid"] in clips:
                    video_of_clip.setdefault(entry["clip_uid"], str(entry.get("video_uid")))
    videos = set(video_of_clip.values())
    with suppress(RecordError):
        for entry in stream_list(path, "videos"):
            participant = entry.get("fb_participant_id") if isinstance(entry, dict) else None
            video = entry.get("video_uid") if isinstance(entry, dict) else None
            if type(participant) is int and isinstance(video, str) and video in videos:
                participants[entry["video_uid"]] = str(participant)
    return {uid: participants[video] for uid, video in video_of_clip.items() if video in participants}


# ---------------------------------------------------------------------------------------------------- records


def _read_clip(root: Path, uid: str, clip: _Clip, subject: str | None) -> Iterator[HandRecord | Rejection]:
    path = Path(f"{uid}.mp4")
    video: VideoInfo | RecordError | None = None
    try:
        path = _find_clip(root, uid)
    except RecordError as error:
        video = error
    for index, frame in sorted(clip.frames.items()):
        own_image = next((jpg for _, label in frame.hint if is_named(jpg := label.with_suffix(".jpg"))), None)
        if own_image is None and video is None:
            video = _video_or_error(path)  # once a clip, and only if a frame needs it
        try:
            if frame.error is not None:
                raise frame.error
            size = read_image_size(own_image) if own_image else _frame_size(path, video, index)
            yield _record(uid, clip.split, index, frame, own_image or path, own_image is None, size, subject)
        except Exception as error:
            name = record_name("ego4d", clip.split, uid, index)
            yield frame_rejection(name, str(own_image or path), error, f"{path}, frame {index}")


def _video_or_error(path: Path) -> VideoInfo | RecordError:
    try:
        return video_info(path)
    except Exception as error:
        return frame_error(error, path)


def _frame_size(path: Path, video: VideoInfo | RecordError | None, index: int) -> tuple[int, int]:
    assert video is not None
    if isinstance(video, RecordError):
        raise video
    if index >= video.frames:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}, frame {index}: the clip has {video.frames} frames")
    return video.width, video.height


def _record(
    uid: str,
    split: Split,
    index: int,
    frame: _Frame,
    image: Path,
    is_video: bool,
    size: tuple[int, int],
    subject: str | None,
) -> HandRecord:
    keypoints = np.zeros((KEYPOINT_COUNT, 2))
    valid = np.zeros(KEYPOINT_COUNT, dtype=np.bool_)
    for side, path in frame.hint:
        if not valid[hand_rows(side)].any():
            keypoints[hand_rows(side)] = _read_hint(path)
            valid[hand_rows(side)] = keypoints[hand_rows(side)].any(axis=1)
    return HandRecord(
        source=Ego4dAdapter.card.name,
        split=split,
        sequence_id=uid,
        frame_index=index,
        timestamp_s=index / _RATE,
        subject_id=subject,
        image_uri=str(image),
        video_frame=index if is_video else None,
        width=size[0],
        height=size[1],
        viewpoint="ego",
        keypoints_valid=valid,
        keypoints_2d=keypoints,
        hand_state=hand_states(valid, "unknown"),
        extra=_hints(frame, size),
    )


def _hints(frame: _Frame, size: tuple[int, int]) -> dict[str, list[Any]] | None:
    hints: dict[str, list[Any]] = {}
    if frame.centres:
        hints["centres_xy_px"] = list(frame.centres.values())
        hints["centre_sides"] = list(frame.centres)
    if frame.boxes:
        hints["boxes_xyxy_px"] = [np.round(np.tile(size, 2) * box, 2).tolist() for _, box in frame.boxes]
        hints["box_sides"] = [side for side, _ in frame.boxes]
    return hints or None
