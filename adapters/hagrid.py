"""HaGRID (HAnd Gesture Recognition Image Dataset): photographs of people who show a gesture; v1, v2 and v2-1M.

Layouts (readmes of https://github.com/hukenovs/hagrid, branches Hagrid_v1, Hagrid_v2 and master)::

    v1             train_val_<gesture>/<uuid>.jpg or <gesture>/<uuid>.jpg    ann_train_val/<gesture>.json
                   test/<gesture>/<uuid>.jpg                                 ann_test/<gesture>.json
    v2 and v2-1M   hagrid_dataset/<gesture>/<uuid>.jpg                       hagrid_annotations/<split>/<gesture>.json

An annotation is ``{uuid: {"bboxes": [[x, y, w, h], ...], "labels": [...], "landmarks" or "hand_landmarks": [...]}}``
with coordinates divided by the image's width and height. The 2023 annotations of v2 have no landmarks; where MediaPipe
missed a hand, its list is empty: the record stays, with boxes and without joints. The split is that of the annotation
folder (``train_val`` is train; ``ann_subsample`` repeats it and is not read).

**Which hand is which.** v1 names the hand that shows the gesture (``leading_hand``, the person's own left or right);
the other one is its opposite. v2-1M names none. Of two hands the one at smaller x is the person's right (the authors'
rule: people face the camera, images are not mirrored). For a single hand this adapter guesses in the same way: right
where the centre of its box lies in the left half of the image. ``extra["side"]`` says which rule was used:
``leading_hand``, ``position`` or ``guessed`` (``unknown``: more than two hands). A hand without landmarks, or without a
box, is ``unknown``: a second hand without a box may still be visible.

Pixels are x * width and y * height, as everyone reads these files; the landmarks' own error is far above half a pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import require_finite
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.json_stream import stream_items
from handdata.adapters.reading.listing import files_in, is_file, is_folder
from handdata.adapters.reading.paths import path_below
from handdata.schemas import (
    KEYPOINT_COUNT,
    KEYPOINTS_PER_HAND,
    SOURCE_CARDS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    Side,
    SourceCard,
    Split,
    hand_rows,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.record_batch import RecordBatch, gather, hand_states_of_rows
from handdata.schemas.rejection import rejection

_NO_GESTURE: Final = "no_gesture"
_OTHER: Final[dict[str, Side]] = {"right": "left", "left": "right"}
_ANNOTATIONS: Final[tuple[tuple[str, Split, tuple[str, ...]], ...]] = (
    ("ann_test", "test", ("test/{gesture}", "test", "{gesture}")),
    ("ann_train_val", "train", ("train_val_{gesture}", "{gesture}")),
    ("hagrid_annotations/test", "test", ("hagrid_dataset/{gesture}", "{gesture}")),
    ("hagrid_annotations/train", "train", ("hagrid_dataset/{gesture}", "{gesture}")),
    ("hagrid_annotations/val", "val", ("hagrid_dataset/{gesture}", "{gesture}")),
)
"""Annotation folder, split, and where its images may lie."""
_SPELLINGS: Final = {"hand_heart2": "hands_heart2", "hands_heart2": "hand_heart2"}
"""One image archive of v2-1M is spelled differently by its download script and by its annotations."""


class HagridAdapter:
    """Reads v1, v2 and v2-1M, whole or only some gestures of them."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["hagrid"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("v1", ("ann_train_val/*.json",)),
        Layout("v1, test only", ("ann_test/*.json",)),
        Layout("v2 or v2-1M", ("hagrid_annotations/*/*.json",)),
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each annotation file: a gesture of a split."""
        for folder, split, _ in _ANNOTATIONS:
            for path in files_in(root / folder, ".json"):
                yield Partition(f"{folder}/{path.stem}", split, (f"{folder}/{path.name}",))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the photographs of one annotation file in its order; the file is streamed."""
        for batch in self.record_batches(root, partition):
            yield from batch.rows()

    def record_batches(self, root: Path, partition: Partition) -> Iterator[RecordBatch]:
        """Yield the same rows as batches."""
        (relative,) = partition.paths
        label_path = root / relative
        folders = _image_folders(root, relative)
        try:
            for entries in gather(stream_items(label_path)):
                yield _read_entries(label_path, folders, partition.split, entries)
        except RecordError as error:
            name = f"{self.card.name}/{partition.split}/{relative}"
            yield RecordBatch({}, {}, (), [(0, rejection(name, str(label_path), error))])

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"hagrid has no masks, asked for that of {record.image_uri}")


def _image_folders(root: Path, annotation: str) -> list[Path]:
    """Return the folders that may hold the images of an annotation file, likely ones first; one at least."""
    folder, _, name = annotation.rpartition("/")
    gesture = name.removesuffix(".json")
    patterns = next(patterns for known, _, patterns in _ANNOTATIONS if known == folder)
    spellings = [gesture] + ([_SPELLINGS[gesture]] if gesture in _SPELLINGS else [])
    candidates = [root / pattern.format(gesture=spelling) for pattern in patterns for spelling in spellings]
    return [path for path in candidates if is_folder(path)] or candidates[:1]


def _find_image(folders: list[Path], uuid: str) -> str:
    paths = [path_below(folder, f"{uuid}.jpg") for folder in folders]
    return paths[0] if len(paths) == 1 else next((path for path in paths if is_file(Path(path))), paths[0])


@dataclass(frozen=True, slots=True)
class _Hands:
    """What one annotation says, in coordinates divided by the image's size."""

    boxes: list[list[float]]
    """x, y, width and height of each hand."""
    gestures: list[str]
    landmarks: list[NDArray[np.float64] | None]
    """(21, 2) for each box; None where MediaPipe missed the hand."""
    leading_hand: Side | None


@dataclass(frozen=True, slots=True)
class _Photograph:
    """An annotation whose image is there."""

    uuid: str
    image_uri: str
    size: tuple[int, int]
    user: str | None
    hands: _Hands
    sides: tuple[Side | None, ...]
    rule: str

    def extra(self) -> dict[str, Any]:
        """Return hints for annotation: boxes in pixels, their sides, and the gesture."""
        width, height = self.size
        return {
            "boxes_xyxy_px": [
                [round(x * width, 2), round(y * height, 2), round((x + w) * width, 2), round((y + h) * height, 2)]
                for x, y, w, h in self.hands.boxes
            ],
            "box_sides": list(self.sides),
            "gestures": self.hands.gestures,
            "side": self.rule,
        }


def _read_entries(
    label_path: Path, folders: list[Path], split: Split, entries: Sequence[tuple[str, object]]
) -> RecordBatch:
    """Return annotations as records and rejections."""
    read: list[_Photograph] = []
    rejections: list[tuple[int, Rejection]] = []
    for uuid, entry in entries:
        image_uri = f"{folders[0]}/{uuid}.jpg"
        try:
            image_uri = _find_image(folders, uuid)
            hands = _parse_entry(f"{label_path}: {uuid}", entry)
            size = read_image_size(image_uri)
        except RecordError as error:
            rejections.append(
                (len(read), rejection(record_name(HagridAdapter.card.name, split, uuid), image_uri, error))
            )
        else:
            user = entry.get("user_id") if isinstance(entry, dict) else None
            user = user if isinstance(user, str) else None
            read.append(_Photograph(uuid, image_uri, size, user, hands, *_sides(hands)))
    return RecordBatch(
        {"source": HagridAdapter.card.name, "split": split, "frame_index": 0, "viewpoint": "exo"},
        _columns(read) if read else {},
        [f"{label_path}: {photograph.uuid!r}" for photograph in read],
        rejections,
    )


def _columns(read: Sequence[_Photograph]) -> dict[str, Sequence[Any] | NDArray[Any]]:
    keypoints = np.zeros((len(read), KEYPOINT_COUNT, 2))
    valid = np.zeros((len(read), KEYPOINT_COUNT), dtype=np.bool_)
    for row, photograph in enumerate(read):
        for side, landmarks in zip(photograph.sides, photograph.hands.landmarks, strict=True):
            if side is not None and landmarks is not None:
                keypoints[row, hand_rows(side)] = landmarks
                valid[row, hand_rows(side)] = True
    keypoints *= np.array([photograph.size for photograph in read])[:, None]
    return {
        "sequence_id": [photograph.uuid for photograph in read],
        "subject_id": [photograph.user for photograph in read],
        "image_uri": [photograph.image_uri for photograph in read],
        "width": [photograph.size[0] for photograph in read],
        "height": [photograph.size[1] for photograph in read],
        "keypoints_valid": valid,
        "keypoints_2d": keypoints,
        "hand_state": hand_states_of_rows(valid, "unknown"),
        "extra": [photograph.extra() for photograph in read],
    }


def _parse_entry(where: str, entry: object) -> _Hands:
    """Return the hands of one annotation.

    Raises:
        RecordError: ``label_corrupt`` or ``label_not_finite``.

    """
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    if not isinstance(fields.get("bboxes"), list) or not isinstance(fields.get("labels"), list):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} has no lists bboxes and labels")
    boxes: list[list[float]] = _array(where, "bboxes", fields["bboxes"], columns=4).tolist()
    gestures = [str(label) for label in fields["labels"]]
    if len(gestures) != len(boxes):
        detail = f"{where} has {len(boxes)} bboxes but {len(gestures)} labels"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    listed = fields.get("landmarks") or fields.get("hand_landmarks") or []
    if not isinstance(listed, list):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: landmarks should be a list")
    # Where the lengths differ nothing tells which landmarks belong to which box, and so to which hand.
    matched = listed if len(listed) == len(boxes) else [None] * len(boxes)
    points = [_array(where, "landmarks", hand, columns=2) if hand else None for hand in matched]
    leading_hand: Side | None = next((side for side in _OTHER.values() if side == fields.get("leading_hand")), None)
    return _Hands(
        boxes=boxes,
        gestures=gestures,
        landmarks=[hand if hand is not None and len(hand) == KEYPOINTS_PER_HAND else None for hand in points],
        leading_hand=leading_hand,
    )


def _array(where: str, name: str, values: object, columns: int) -> NDArray[np.float64]:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {name}: {error}") from None
    if not array.size:
        return array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        detail = f"{where}: {name} should have {columns} numbers each, has the shape {array.shape}"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    require_finite(where, name, array)
    return array


def _sides(hands: _Hands) -> tuple[tuple[Side | None, ...], str]:
    """Return the side of each box (``None`` where nothing tells), and the name of the rule that says so."""
    count = len(hands.boxes)
    showing = [index for index, gesture in enumerate(hands.gestures) if gesture != _NO_GESTURE]
    if hands.leading_hand is not None and len(showing) == 1 and count <= 2:
        other = _OTHER[hands.leading_hand]
        return tuple(hands.leading_hand if index in showing else other for index in range(count)), "leading_hand"
    if hands.leading_hand is not None and not showing and count == 1:
        return (_OTHER[hands.leading_hand],), "leading_hand"
    if count == 2:
        return ("right", "left") if hands.boxes[0][0] <= hands.boxes[1][0] else ("left", "right"), "position"
    if count == 1:
        x, _, width, _ = hands.boxes[0]
        return ("right" if x + width / 2 < 0.5 else "left",), "guessed"
    return (None,) * count, "unknown"
