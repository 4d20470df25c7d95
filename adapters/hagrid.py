"""HaGRID (HAnd Gesture Recognition Image Dataset): photographs of people who show a gesture; v1, v2 and v2-1M.

Layouts (readmes and ``download.py`` of https://github.com/hukenovs/hagrid, branches Hagrid_v1, Hagrid_v2 and master)::

    v1             train_val_<gesture>/<uuid>.jpg or <gesture>/<uuid>.jpg    ann_train_val/<gesture>.json
                   test/<gesture>/<uuid>.jpg                                 ann_test/<gesture>.json
    v2 and v2-1M   HaGRIDv2_dataset_512/<gesture>/<uuid>.jpg                 annotations/<split>/<gesture>.json
                   or hagrid_dataset/<gesture>/, or <gesture>/               or hagrid_annotations/<split>/

``download.py`` of v1 puts each half into a folder of its own (``train``, ``test``), and the small samples of v1 put
their images below ``hagrid_30k``. Folders of labels and of images are looked for apart, so that any of them go
together: a photograph has the same name everywhere, and belongs to one split alone.

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

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.json_stream import stream_items
from handdata.adapters.reading.listing import files_in, folders_in, holds_match, is_file, is_folder
from handdata.adapters.reading.paths import path_below
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
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.record_batch import RecordBatch, gather, hand_states_of_rows
from handdata.schemas.rejection import rejection

_NO_GESTURE: Final = "no_gesture"
_LARGEST_FLOAT32: Final = float(np.finfo(np.float32).max)
_FARTHEST: Final = 1.5
"""Largest distance of a coordinate from the image's middle, in image sizes: MediaPipe guesses beyond the edge, though
not that far; pixels lie farther."""
_OTHER: Final[dict[str, Side]] = {"right": "left", "left": "right"}
_V2_LABELS: Final = (
    "annotations",
    "annotations/annotations",
    "hagrid_annotations",
    "hagrid_annotations/annotations",
    "ann/annotations",
)
_LABELS: Final[dict[str, Split]] = {
    **{f"{place}ann_test": "test" for place in ("", "ann_test/", "test/", "test/ann_test/")},
    **{f"{place}ann_train_val": "train" for place in ("", "ann_train_val/", "train/", "train/ann_train_val/")},
    **{f"{place}/{split}": split for place in _V2_LABELS for split in SPLITS},
}
"""Split of each folder that labels are known to lie in."""
_SETS: Final = (
    "hagrid_dataset",
    "hagrid_dataset/hagrid_dataset",
    "hagrid_dataset_512",
    "HaGRIDv2_dataset",
    "HaGRIDv2_dataset_512",
    "HaGRIDv2_dataset_512/HaGRIDv2_dataset_512",
    "hagridv2_512",
    "hagridv2_512/HaGRIDv2_dataset_512",
    "hagrid_512",
    "hagrid_30k",
    "hagrid_120k",
    "hagrid_500k",
    "dataset",
    "train",
    "test",
    "test/test",
    "",
)
"""Folders that those of the gestures are known to lie in, the most likely ones of a release first."""
_GESTURE_FOLDERS: Final = ("{gesture}", "train_val_{gesture}")
_SPELLINGS: Final = {"hand_heart2": "hands_heart2", "hands_heart2": "hand_heart2"}
"""One image archive of v2-1M is spelled differently by its download script and by its annotations."""


class HagridAdapter:
    """Reads v1, v2 and v2-1M, whole or only some gestures of them."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["hagrid"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("v1", ("ann_train_val/*.json",), release="v1"),
        Layout("v1, test only", ("ann_test/*.json",), release="v1"),
        Layout("v1, train in its own folder", ("train/ann_train_val/*.json",), release="v1"),
        Layout("v1, test in its own folder", ("test/ann_test/*.json",), release="v1"),
        Layout("v2 or v2-1M", ("hagrid_annotations/*/*.json",), release="v2"),
        # Other datasets have a folder "annotations" too: images must be there to tell this one.
        Layout("v2 or v2-1M, as its archives unpack", ("annotations/*/*.json", "*/*/*.jpg"), release="v2"),
        Layout("v2 or v2-1M, gestures in the root", ("annotations/*/*.json", "*/*.jpg"), release="v2"),
        Layout("v2 or v2-1M, a folder around all", ("annotations/*/*.json", "hagridv2_512/*/*/*.jpg"), release="v2"),
        Layout(
            "v2 or v2-1M, a folder around the labels", ("annotations/annotations/*/*.json", "*/*/*.jpg"), release="v2"
        ),
        Layout("v2 or v2-1M, labels in the folder ann", ("ann/annotations/*/*.json",), release="v2"),
    )
    unused: ClassVar[tuple[str, ...]] = ("ann_subsample",)

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each annotation file: a gesture of a split."""
        found = [
            Partition(f"{folder}/{path.stem}", split, (f"{folder}/{path.name}",))
            for folder, split in _LABELS.items()
            for path in files_in(root / folder, ".json")
        ]
        yield from sorted(found, key=lambda partition: partition.name)

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line that names the folders of images that no annotation file belongs to."""
        labelled = {Path(relative).stem for partition in self.partitions(root) for relative in partition.paths}
        labelled |= {_SPELLINGS[gesture] for gesture in labelled if gesture in _SPELLINGS}
        unread = [
            folder.relative_to(root).as_posix()
            for place in _SETS
            for folder in folders_in(root / place)
            if folder.name.removeprefix("train_val_") not in labelled
            and folder.relative_to(root).as_posix() not in _SETS
            and holds_match(folder, "*.jpg")
        ]
        strays = [
            folder.relative_to(root).as_posix()
            for place in _V2_LABELS
            for folder in folders_in(root / place)
            if folder.name not in SPLITS
            and folder.relative_to(root).as_posix() not in _V2_LABELS
            and holds_match(folder, "*.json")
        ]
        if strays:
            yield f"these folders of labels are not named as splits are, and are not read: {', '.join(strays)}"
        if unread:
            yield f"no annotation file of {root} belongs to these folders of images: {', '.join(unread)}"

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
    gesture = Path(annotation).stem
    spellings = [gesture] + ([_SPELLINGS[gesture]] if gesture in _SPELLINGS else [])
    names = [name.format(gesture=spelling) for name in _GESTURE_FOLDERS for spelling in spellings]
    if "ann_test" in annotation:
        candidates = [root / "test" / name for name in names] + [root / "test"]
    elif "ann_train_val" in annotation:
        candidates = [root / name for name in reversed(names)]
    else:
        candidates = []
    candidates += [root / place / name for place in _SETS for name in names]
    return [path for path in dict.fromkeys(candidates) if is_folder(path)] or candidates[:1]


def _find_image(folders: list[Path], uuid: str) -> str:
    paths = [path_below(folder, f"{uuid}.jpg") for folder in folders]
    return paths[0] if len(paths) == 1 else next((path for path in paths if is_file(Path(path))), paths[0])


_Coordinate = Annotated[float, Field(strict=True, ge=0.5 - _FARTHEST, le=0.5 + _FARTHEST, allow_inf_nan=False)]
_Length = Annotated[_Coordinate, Field(ge=0)]
_Landmarks = list[list[tuple[_Coordinate, _Coordinate]] | None] | None


def _spelled_plainly(value: object) -> object:
    if value is None:  # the field may be absent, not empty: a guess in its place might be wrong
        raise ValueError("should be left or right")
    return value.strip().lower() if isinstance(value, str) else value


class _Hands(BaseModel):
    """An annotation, in coordinates divided by the image's size."""

    bboxes: list[tuple[_Coordinate, _Coordinate, _Length, _Length]]
    """x, y, width and height of each hand."""
    labels: list[Annotated[str, Field(strict=True)]]
    """The gesture of each hand."""
    landmarks: _Landmarks = None
    hand_landmarks: _Landmarks = None
    leading_hand: Annotated[Side | None, BeforeValidator(_spelled_plainly)] = None
    """Side that v1 names, however it is spelled; None where the annotation has no such field."""

    @model_validator(mode="after")
    def _require_a_gesture_each(self) -> Self:
        if len(self.labels) != len(self.bboxes):
            raise ValueError(f"there are {len(self.bboxes)} bboxes but {len(self.labels)} labels")
        return self

    def points(self) -> list[list[tuple[float, float]] | None]:
        """Return the 21 landmarks for each box; None where MediaPipe missed the hand."""
        listed = self.hand_landmarks if self.landmarks is None else self.landmarks
        # Where the lengths differ nothing tells which landmarks belong to which box, and so to which hand.
        matched = listed if listed is not None and len(listed) == len(self.bboxes) else [None] * len(self.bboxes)
        return [hand if hand is not None and len(hand) == KEYPOINTS_PER_HAND else None for hand in matched]


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
                for x, y, w, h in self.hands.bboxes
            ],
            "box_sides": list(self.sides),
            "gestures": self.hands.labels,
            "side": self.rule,
        }

    def attributes(self) -> dict[str, str]:
        """Return the gesture of the photograph, and that of each hand whose side is told."""
        showing = [gesture for gesture in self.hands.labels if gesture != _NO_GESTURE]
        gestures = {"gesture": showing[0] if showing else _NO_GESTURE} if self.hands.labels else {}
        sided = zip(self.sides, self.hands.labels, strict=True)
        return gestures | {f"gesture_{side}": gesture for side, gesture in sided if side is not None}


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
            user = entry.get("user_id") if isinstance(entry, dict) else None
            user = user if isinstance(user, str) else None
            read.append(_Photograph(uuid, image_uri, size, user, hands, *_sides(hands)))
        except Exception as error:
            name = record_name(HagridAdapter.card.name, split, uuid)
            rejections.append((len(read), frame_rejection(name, image_uri, error, f"{label_path}: {uuid!r}")))
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
        for side, landmarks in zip(photograph.sides, photograph.hands.points(), strict=True):
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
        "attributes": [photograph.attributes() for photograph in read],
    }


def _parse_entry(where: str, entry: object) -> _Hands:
    """Return the hands of one annotation.

    Raises:
        RecordError: ``label_corrupt`` or ``label_not_finite``.

    """
    try:
        return _Hands.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, found = ".".join(map(str, first["loc"])) or "the annotation", first["input"]
    is_finite = not isinstance(found, float) or abs(found) <= _LARGEST_FLOAT32
    reason = RejectReason.LABEL_CORRUPT if is_finite else RejectReason.LABEL_NOT_FINITE
    raise RecordError(reason, f"{where}: {place}: {first['msg']}, is {reprlib.repr(found)}")


def _sides(hands: _Hands) -> tuple[tuple[Side | None, ...], str]:
    """Return the side of each box (``None`` where nothing tells), and the name of the rule that says so."""
    count = len(hands.bboxes)
    showing = [index for index, gesture in enumerate(hands.labels) if gesture != _NO_GESTURE]
    if hands.leading_hand is not None and len(showing) == 1 and count <= 2:
        other = _OTHER[hands.leading_hand]
        return tuple(hands.leading_hand if index in showing else other for index in range(count)), "leading_hand"
    if hands.leading_hand is not None and not showing and count == 1:
        return (_OTHER[hands.leading_hand],), "leading_hand"
    if count == 2:
        return ("right", "left") if hands.bboxes[0][0] <= hands.bboxes[1][0] else ("left", "right"), "position"
    if count == 1:
        x, _, width, _ = hands.bboxes[0]
        return ("right" if x + width / 2 < 0.5 else "left",), "guessed"
    return (None,) * count, "unknown"
