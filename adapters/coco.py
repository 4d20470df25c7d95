"""COCO's keypoint format: COCO-WholeBody, the hand sets that MMPose distributes in it, and labels of one's own.

Layouts (https://cocodataset.org/#format-data, https://github.com/jin-s13/COCO-WholeBody, "2D Hand Keypoint Datasets"
of MMPose's dataset zoo); a set's folder is the root, or lies in it beside others::

    [<set>/]annotations/<name>.json     {"info", "images", "annotations", "categories"}
    <name>.json                         beside its images
    <split>/_annotations.coco.json      beside its images, as Roboflow exports

A split is a word of the label file's name (``freihand_val``), or of its folder. ``file_name`` is relative to the set's
folder, or to one of the folders in ``_IMAGE_FOLDERS`` in it.

**Joint orders**, each from the palm to the tip unless it says otherwise:

==================  =================================================================================================
COCO-WholeBody      ``lefthand_kpts`` and ``righthand_kpts`` of a person, 21 each: wrist, thumb, index, ... little
..., in one list    133 ``keypoints``: the left hand from 91, the right from 112
Halpe               136 ``keypoints``: the left hand from 94, the right from 115
OneHand10K          21 ``keypoints`` of a hand: wrist, thumb, index, middle, ring, little
FreiHAND, Panoptic  as OneHand10K
RHD                 as OneHand10K, but each finger **from the tip to the palm**, whatever its categories' names say
any other           as the category names its keypoints; 21 of a hand without names, or numbered, as OneHand10K's
==================  =================================================================================================

Visibility is 0 (not labelled), 1 (labelled, hidden), 2 (labelled, seen), or, in COCO-WholeBody, the confidence of the
model that proposed the joint: every joint above 0 is labelled, as MMPose and the COCO API have it. Annotations with
``iscrowd`` label no hand.

Sizes are checked: where an image lies on its side, and its labels are for it upright, it is turned as EXIF says.

**Sides** are those of fields (``lefthand_kpts``, ``hand_type``, ``side``, ...), of the names of keypoints, of the
category (``left_hand``), or, in Panoptic's sets of single hands, of the image's name (``005880453_01_l.jpg``). Where
none says it the hand stands in the right rows (a second one in the left), with ``extra["side"] = "unknown"``:
annotation moves it to the side that the detector names.

**One record an image**: of several people's hands it has those of the person whose hands are the largest, and
``extra["other_hands_xyxy_px"]`` the places of the others. A hand that is not labelled is ``unknown``.

Masks are the polygons and run lengths of annotations of hands (not of people). OneHand10K, FreiHAND and Panoptic have
boxes there, which are no masks.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import require_finite
from handdata.adapters.reading.coco_json import CocoLabels, open_labels
from handdata.adapters.reading.fields import label_flags, label_numbers
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import place_hands, place_validity, reorder_joints
from handdata.adapters.reading.images import read_image_size, read_upright_size
from handdata.adapters.reading.joint_names import HandOrder, hand_orders, side_in
from handdata.adapters.reading.listing import (
    files_in,
    folders_in,
    is_file,
    is_folder,
    open_file,
    refuse_copies,
    size_of,
)
from handdata.adapters.reading.masks import decode_rle, fill_polygon
from handdata.adapters.reading.paths import path_below
from handdata.schemas import (
    KEYPOINTS_PER_HAND,
    OTHER_SIDE,
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

Points = NDArray[np.float64]

_SPLIT_WORDS: Final[dict[str, Split]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_IMAGE_FOLDERS: Final = (
    *("{split}2017", "images/{split}2017", "{split}2014", "images/{split}2014"),
    *(f"{place}{word}" for word in _SPLIT_WORDS for place in ("", "images/")),
    *("hico_20160224_det/images/train2015", "hico_20160224_det/images/test2015", "images", "data", ""),
)
"""Folders of a set that ``file_name`` may be relative to, those of a split first; a word of another split is none."""
_OTHER_TASKS: Final = re.compile(
    r"(?:captions|instances|person_keypoints|stuff|panoptic|image_info)_.*20(?:14|17)|.*_detections_.*|.*image_info.*"
)
"""Label files that COCO's own downloads put beside those of COCO-WholeBody, which label no hands."""

_SIDE_FIELDS: Final = ("hand_type", "hand_side", "handedness", "side")
_ANNOTATION_FIELDS: Final = (
    *("category_id", "iscrowd", "keypoints", "segmentation", "is_left", "attributes", *_SIDE_FIELDS),
    *(f"{side}hand_{part}" for side in SIDES for part in ("kpts", "box", "valid")),
)

_IN_ORDER: Final = tuple(range(KEYPOINTS_PER_HAND))
_FROM_TIP_TO_PALM: Final = (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17)
_WHOLE_BODIES: Final = {133: (91, 112), 136: (94, 115)}
"""First rows of the left and of the right hand among so many keypoints of a person."""

_LEAST_OF_BOX: Final = 0.95
"""A polygon that fills so much of its own box is that box, and no outline of a hand."""
_MOST_UNLIKE: Final = 2.0
"""Two hands of one person are no more than this many times as large as one another."""
_FARTHEST_WRISTS: Final = 12.0
"""Nor are their wrists farther apart, in sizes of the larger hand."""
_MOST_SHARE: Final = 2.0
"""Largest share of an image that a coordinate may be: joints may lie outside it."""
_FREIHAND_FRAMES: Final = 32_560
"""Frames of FreiHAND, each of which is there four times, with other backgrounds."""


class CocoAdapter:
    """Reads one set, or several that lie beside one another."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["coco"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("a set", ("annotations/*.json",), is_typical=False),
        Layout("a folder of sets", ("*/annotations/*.json",), is_typical=False),
        Layout("as Roboflow exports", ("*/_annotations.coco.json",)),
        Layout("labels beside their images", ("*.json",), is_typical=False),
    )
    own_options: ClassVar[frozenset[str]] = frozenset({"licence"})
    unused: ClassVar[tuple[str, ...]] = (
        *("*person_detection_results", "*/depth", "*/mask", "*hico_20160224_det/tools", "*hico_20160224_det/anno*"),
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each label file.

        Raises:
            LayoutError: A file or a set is named as a copy of another one beside it.

        """
        places = [root, root / "annotations", *(folder / "annotations" for folder in folders_in(root))]
        files = [path for place in places if is_folder(place) for path in files_in(place, ".json")]
        files += [
            path
            for folder in folders_in(root)
            if folder.name != "annotations"
            for path in files_in(folder, "_annotations.coco.json")
        ]
        refuse_copies({path.with_suffix("") for path in files} | {path.parents[1] for path in files})
        named = {path.relative_to(root).as_posix(): path for path in files if not _OTHER_TASKS.fullmatch(path.stem)}
        found = [Partition(relative, _split_of(path)[0], (relative,)) for relative, path in named.items()]
        yield from sorted(found, key=lambda partition: partition.name)

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line that names the label files which say nothing about their split."""
        paths = [path for partition in self.partitions(root) for path in partition.paths]
        unsplit = [path for path in paths if not _split_of(root / path)[1]]
        if unsplit:
            yield f"neither name nor folder of these label files says train, val or test: {', '.join(unsplit)} (train)"

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the images of a label file in its order, then its annotations that belong to no image."""
        (relative,) = partition.paths
        path = root / relative
        try:
            with open_labels(path, _ANNOTATION_FIELDS) as labels:
                yield from _LabelFile(labels, partition.split).rows()
        except RecordError as error:
            yield rejection(f"{self.card.name}/{partition.split}/{relative}", str(path), error)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the mask of all hands of the record.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        size, path = (record.width, record.height), Path(record.image_uri)
        mask = np.zeros((record.height, record.width), dtype=np.bool_)
        for segmentation in (record.extra or {})["segmentations"]:
            if isinstance(segmentation, dict):
                mask |= decode_rle(segmentation["counts"], size, path)
            else:
                for polygon in segmentation:  # parts of one hand, which together are its mask
                    mask |= fill_polygon([np.reshape(polygon, (-1, 2))], size, path)
        return mask


def _split_of(path: Path) -> tuple[Split, bool]:
    """Return the split of a label file, and whether its name or its folder's says so."""
    for name in (path.stem, path.parent.name):
        for word in re.findall("[a-z]+", name.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word], True
    return "train", False


# ---------------------------------------------------------------------------------------------------- categories


@dataclass(frozen=True, slots=True)
class _Category:
    """What a category says about the hands of its annotations."""

    where: str
    name: str
    kind: str
    """Name of its ``supercategory``; often empty."""
    keypoint_names: tuple[str, ...]
    named_hands: tuple[HandOrder, ...]
    """The hands that the names of its keypoints tell."""
    palm_last: bool
    """RHD: fingers run from the tip to the palm, and the names are wrong."""

    @property
    def is_of_hands(self) -> bool:
        words = {*re.split(r"[^a-z]+|left|right", f"{self.name} {self.kind}".lower())}  # no handbag
        is_called_so = not words.isdisjoint({"hand", "hands"}) or self.name.strip().lower() in SIDES
        return is_called_so or (bool(self.named_hands) and len(self.keypoint_names) <= 42)

    def orders(self, count: int) -> tuple[HandOrder, ...]:
        """Return the hands among ``count`` keypoints; none where they are of something else.

        Raises:
            RecordError: ``label_corrupt``: they are of a hand, and nothing tells which joint is which.

        """
        if self.palm_last and count == KEYPOINTS_PER_HAND:
            return ((None, _FROM_TIP_TO_PALM),)
        if self.named_hands and count == len(self.keypoint_names):
            return self.named_hands
        if count in _WHOLE_BODIES:
            left, right = _WHOLE_BODIES[count]
            return (
                ("left", tuple(range(left, left + KEYPOINTS_PER_HAND))),
                ("right", tuple(range(right, right + KEYPOINTS_PER_HAND))),
            )
        unnamed = _numbered_order(self.keypoint_names) if self.keypoint_names else _IN_ORDER
        if count == KEYPOINTS_PER_HAND and unnamed is not None:
            if self.is_of_hands:
                return ((None, unnamed),)
            detail = (
                f"{self.where} has 21 keypoints without names, and is not called a hand: nothing says that it is one"
            )
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        if self.is_of_hands:
            detail = (
                f"{self.where} names {len(self.keypoint_names)} keypoints, among them those of {len(self.named_hands)} "
                f"hands; an annotation has {count}: nothing tells which joint is which"
            )
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        return ()


def _numbered_order(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the rows of joints that are named by their numbers, from 0 or 1; None where they are named otherwise."""
    if len(names) != KEYPOINTS_PER_HAND or not all(name.strip().isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    first = min(numbers)
    is_whole = first <= 1 and sorted(numbers) == list(range(first, first + len(names)))
    return tuple(numbers.index(first + place) for place in range(len(names))) if is_whole else None


def _category(where: str, entry: Any, is_rhd: bool) -> tuple[int | str, _Category]:
    """Return the id of a category and what it says.

    Raises:
        RecordError: ``label_corrupt``.

    """
    fields = entry if isinstance(entry, dict) else {}
    name, number, names = fields.get("name"), fields.get("id"), fields.get("keypoints", [])
    if not isinstance(name, str) or not isinstance(number, int | str) or isinstance(number, bool):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} is no object with an id and a name")
    if not isinstance(names, list) or not all(isinstance(joint, str) for joint in names):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: keypoints should hold names")
    where = f"{where} ({name!r})"
    hands = () if is_rhd else tuple(hand_orders(where, names))
    kind = fields.get("supercategory")
    return number, _Category(where, name, kind if isinstance(kind, str) else "", tuple(names), hands, is_rhd)


# ---------------------------------------------------------------------------------------------------- hands


@dataclass(frozen=True, slots=True, eq=False)
class _Hand:
    """A labelled hand of an image."""

    points: Points
    """(21, 2) pixels in our order."""
    valid: BoolArray
    side: Side | None
    annotation: int
    """Position of its annotation among those of the image."""
    is_of_person: bool
    """Whether the annotation is that of a person with both hands, not of one hand."""
    segmentation: Any = None

    @property
    def box(self) -> list[float]:
        """x and y of the first corner and of the last, pixels."""
        joints = self.points[self.valid]
        return [round(float(value), 2) for value in (*joints.min(axis=0), *joints.max(axis=0))]

    @property
    def size(self) -> float:
        """Longer side of its box."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)

    def distance_of_wrists(self, other: "_Hand") -> float:
        """Return the distance of two wrists, or of the first labelled joints, in sizes of the larger hand."""
        first, second = (hand.points[int(hand.valid.argmax())] for hand in (self, other))
        return float(np.hypot(*(first - second))) / max(self.size, other.size, 1.0)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The hands of an image that become its record, by the rows in which they stand."""

    placed: dict[Side, _Hand]
    others: list[_Hand]
    is_side_known: bool


def _choose(hands: Sequence[_Hand], where: str) -> _Chosen:
    """Return the hands of the person whose hands are the largest.

    Raises:
        RecordError: ``label_missing``: there is no hand. ``side_unknown``: there are more than two, of unknown sides.

    """
    if not hands:
        raise RecordError(RejectReason.LABEL_MISSING, f"{where}: no annotation of the image labels a hand")
    sided = [hand for hand in hands if hand.side is not None]
    if not sided:
        if len(hands) > 2:
            detail = f"{where}: {len(hands)} hands have labels, and nothing tells their sides"
            raise RecordError(RejectReason.SIDE_UNKNOWN, detail)
        return _Chosen(dict(zip(SIDES, hands, strict=False)), [], is_side_known=False)
    by_size = sorted(sided, key=lambda hand: -hand.size)
    first_of_each = {hand.annotation if hand.is_of_person else None: hand for hand in reversed(by_size)}
    pairs = [_pair(hand, by_size) for hand in first_of_each.values()]
    placed = max(pairs, key=lambda pair: sum(hand.size for hand in pair.values()))
    return _Chosen(placed, [hand for hand in hands if hand not in placed.values()], is_side_known=True)


def _pair(hand: _Hand, hands: Sequence[_Hand]) -> dict[Side, _Hand]:
    """Return a hand and the other one of its person, if there is one, by their sides.

    That is the other hand of its annotation; between annotations of single hands that of the nearest wrist.
    """
    assert hand.side is not None
    opposite = [other for other in hands if other.side == OTHER_SIDE[hand.side]]
    if hand.is_of_person:
        partners = [other for other in opposite if other.annotation == hand.annotation]
    else:
        partners = [
            other
            for other in sorted(opposite, key=hand.distance_of_wrists)
            if not other.is_of_person
            and max(hand.size, other.size) <= _MOST_UNLIKE * min(hand.size, other.size)
            and hand.distance_of_wrists(other) <= _FARTHEST_WRISTS
        ]
    return {hand.side: hand} | ({OTHER_SIDE[hand.side]: partners[0]} if partners else {})


def _joints(where: str, name: str, values: Any) -> tuple[Points, BoolArray]:
    """Return (N, 2) pixels and which of them are labelled.

    Raises:
        RecordError: ``label_corrupt`` or ``label_not_finite``.

    """
    numbers = label_numbers(where, name, values)
    if numbers.size % 3 or (numbers.ndim != 1 and (numbers.ndim != 2 or numbers.shape[1] != 3)):
        detail = f"{where}: {name} should hold x, y and visibility of each joint, has shape {numbers.shape}"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    rows = numbers.reshape(-1, 3)
    if not ((rows[:, 2] >= 0) & (rows[:, 2] <= 2)).all():
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: visibilities in {name} should be between 0 and 2")
    # A corner of the image is where sets write a joint that nobody labelled.
    valid = (rows[:, 2] > 0) & (rows[:, :2] != 0).any(axis=1)
    require_finite(where, name, rows[valid])
    if valid.sum() > 1:
        _require_pixels(where, name, rows[valid, :2])
    return np.where(valid[:, None], rows[:, :2], 0.0), valid


def _hand_field(where: str, annotation: dict[str, Any]) -> Side | None:
    """Return the side that a field of an annotation names.

    Raises:
        RecordError: ``label_corrupt``: a field holds no text, or two differ.

    """
    attributes = annotation.get("attributes")
    fields = {**(attributes if isinstance(attributes, dict) else {}), **annotation}
    sides: set[Side] = set()
    for name in _SIDE_FIELDS:
        if name in fields:
            value = fields[name]
            if value is not None and not isinstance(value, str):
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {name} should be left or right, is no text")
            side = side_in(value or "")
            if side is not None:
                sides.add(side)
    if "is_left" in fields:
        (is_left,) = label_flags(where, "is_left", [fields["is_left"]], 1)
        sides.add("left" if is_left else "right")
    return _only_side(where, sides)


def _only_side(where: str, sides: set[Side]) -> Side | None:
    if len(sides) > 1:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: its fields and its category name both sides")
    return next(iter(sides), None)


def _require_pixels(where: str, name: str, points: NDArray[np.float64]) -> None:
    """Check that coordinates are no shares of the image, which are a little above 1 beyond its edges.

    Raises:
        RecordError: ``label_corrupt``.

    """
    if (np.abs(points) <= _MOST_SHARE).all():
        detail = f"{where}: all of {name} lies within two pixels: are they shares of the image? COCO's are pixels"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)


def _segmentation(where: str, value: Any, size: tuple[int, int]) -> Any:
    """Return polygons or run lengths as they are stored; None where there are none, or only the box.

    Raises:
        RecordError: ``label_corrupt``: neither polygons nor run lengths.

    """
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        counts = value.get("counts")
        runs = isinstance(counts, str) or (isinstance(counts, list) and all(type(run) is int for run in counts))
        if not runs or value.get("size") != [size[1], size[0]]:
            detail = f"{where}: segmentation is no run lengths of {size[0]} x {size[1]} pixels"
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        return {"counts": counts}
    if not isinstance(value, list):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: segmentation is neither polygons nor run lengths")
    if value and not isinstance(value[0], list):
        value = [value]  # of a single polygon some tools write the numbers alone
    polygons = [label_numbers(where, "segmentation", polygon) for polygon in value]
    if len(polygons) >= 3 and all(polygon.shape == (2,) for polygon in polygons):
        polygons = [np.concatenate(polygons)]  # a single polygon as a list of its points
    if any(polygon.ndim != 1 or polygon.size % 2 for polygon in polygons):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: segmentation holds lists that are no polygons")
    for polygon in polygons:
        require_finite(where, "segmentation", polygon)
    # Tools for keypoints write an empty polygon, two points, or only zeros.
    areas = [polygon for polygon in polygons if polygon.size >= 6 and np.ptp(polygon.reshape(-1, 2), axis=0).all()]
    if not areas or (len(areas) == 1 and _is_box(areas[0].reshape(-1, 2))):
        return None
    _require_pixels(where, "segmentation", np.concatenate(areas))
    return [polygon.tolist() for polygon in areas]


def _is_box(polygon: Points) -> bool:
    x, y = polygon.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area >= _LEAST_OF_BOX * float(np.prod(np.ptp(polygon, axis=0)))


# ---------------------------------------------------------------------------------------------------- images


class _LabelFile:
    """Makes the rows of one label file.

    Args:
        labels: Content of the file.
        split: Split of its images.

    Raises:
        RecordError: ``label_corrupt``: a category is no category.

    """

    def __init__(self, labels: CocoLabels, split: Split) -> None:
        self._labels, self._path, self._split = labels, labels.path, split
        stem = labels.path.name.rstrip().rpartition(".")[0]
        described = f"{stem} {labels.info.get('description')}".lower()
        self._is_rhd = re.search(r"\brhd", described.replace("_", " ")) is not None
        self._is_freihand = "freihand" in described
        self._is_panoptic = "panoptic" in described
        self._stem = stem
        self._categories: dict[int | str, _Category] = {}
        for position, entry in enumerate(labels.categories):
            number, category = _category(f"{labels.path}: category {position}", entry, self._is_rhd)
            if self._categories.setdefault(number, category) is not category:
                detail = f"{labels.path}: two categories have the id {number!r}"
                raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        base = labels.path.parents[1] if labels.path.parent.name == "annotations" else labels.path.parent
        self._base = base
        words = [word for word, split_of_word in _SPLIT_WORDS.items() if split_of_word != split]
        subset = stem.rpartition("_")[2]  # CVAT names a file and a folder of images by it
        names = [f"images/{subset}", subset, *(name.format(split=split) for name in _IMAGE_FOLDERS)]
        wanted = [name for name in names if Path(name).name.lower() not in words]
        found = [folder for name in wanted for folder in _in_any_case(base, name)]
        self._folders = list(dict.fromkeys(map(str, found)))

    def rows(self) -> Iterator[HandRecord | Rejection]:
        """Yield a row for each image, then one for each annotation without an image."""
        for number, image, annotations in self._labels.images():
            name = image.get("file_name") if isinstance(image, dict) else None
            identity = name.rpartition(".")[0] or name if isinstance(name, str) and name else f"images/{number}"
            sequence = self._sequence(identity)
            uri = f"{self._folders[-1]}/{name}" if isinstance(name, str) and name else str(self._path)
            where = f"{self._path}: image {identity!r}"
            try:
                if isinstance(annotations, RecordError):
                    raise annotations
                uri = self._find(where, name)
                yield self._record(sequence, uri, where, image, annotations)
            except Exception as error:
                yield frame_rejection(record_name(CocoAdapter.card.name, self._split, sequence), uri, error, where)
        for number, problem in self._labels.annotations_without_image():
            name = record_name(CocoAdapter.card.name, self._split, self._sequence(f"annotations/{number}"))
            yield rejection(name, str(self._path), problem)

    def _sequence(self, name: str) -> str:
        return f"{self._stem}__{name.replace('/', '__')}"

    def _find(self, where: str, name: Any) -> str:
        if not isinstance(name, str) or not name:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} has no file_name")
        if name.startswith(f"{self._base}/"):  # in full, and yet of this set
            name = name.removeprefix(f"{self._base}/")
        paths = [path_below(folder, name) for folder in self._folders]
        there = [path for path in paths if is_file(path)]
        for other in there[1:]:
            if size_of(other) != size_of(there[0]) or _content(other) != _content(there[0]):
                raise RecordError(
                    RejectReason.LABEL_CORRUPT, f"{where} may be one of two different images: {there[0]} and {other}"
                )
        return there[0] if there else paths[-1]

    def _record(
        self, sequence: str, uri: str, where: str, image: dict[str, Any], annotations: Sequence[Any]
    ) -> HandRecord:
        size, is_upright = _size(where, uri, image)
        named = self._side_of_file(image["file_name"])
        hands = [
            hand
            for index, entry in enumerate(annotations)
            for hand in self._hands(f"{where}, annotation {index}", index, entry, size, named)
        ]
        chosen = _choose(_each_once(hands), where)
        right, left = (chosen.placed.get(side) for side in SIDES)
        valid = place_validity(
            right=False if right is None else right.valid,
            left=False if left is None else left.valid,
        )
        segmentations = [hand.segmentation for hand in (right, left) if hand is not None]
        has_mask = all(segmentation is not None for segmentation in segmentations)
        return HandRecord(
            source=CocoAdapter.card.name,
            split=self._split,
            sequence_id=sequence,
            frame_index=0,
            origin_id=self._origin(image["file_name"]),
            image_uri=uri,
            width=size[0],
            height=size[1],
            viewpoint="exo",
            keypoints_valid=valid,
            keypoints_2d=place_hands(
                right=None if right is None else right.points,
                left=None if left is None else left.points,
            ),
            hand_state=hand_states(valid, "unknown"),
            has_mask=has_mask,
            mask_extent="hand" if has_mask else None,
            extra=self._hints(chosen, annotations, where)
            | ({"segmentations": segmentations} if has_mask else {})
            | ({"upright": True} if is_upright else {}),
        )

    def _origin(self, file_name: str) -> str | None:
        """Return the identity of an image that other sets, or other files of this one, show too."""
        number = Path(file_name).stem
        if re.fullmatch("[0-9]{12}", number):
            return f"coco/{number}"
        if self._is_freihand and re.fullmatch("[0-9]{8}", number):
            return f"freihand/{int(number) % _FREIHAND_FRAMES:08d}"
        return None

    def _side_of_file(self, file_name: str) -> Side | None:
        """Return the side that Panoptic's names end in: an image is there once for each of its hands."""
        match = re.search(r"_([lr])\.[a-zA-Z]+", file_name) if self._is_panoptic else None
        return None if match is None else side_in(match[1])

    @staticmethod
    def _hints(chosen: _Chosen, annotations: Sequence[Any], where: str) -> dict[str, Any]:
        """Return places of hands for the search: those whose side is asked for, those of which only a box is known."""
        hints: dict[str, Any] = {}
        boxes: list[tuple[Sequence[float], Side | None]] = [
            (hand.box, None) for hand in chosen.placed.values() if not chosen.is_side_known
        ]
        if not chosen.is_side_known:
            hints["side"] = "unknown"
        else:
            person = annotations[next(iter(chosen.placed.values())).annotation]
            for side in SIDES:
                name = f"{side}hand_box"
                if side not in chosen.placed and person.get(name) is not None:
                    box = label_numbers(where, name, person[name])
                    if box.shape == (4,) and np.isfinite(box).all() and (box[2:] > 0).all():
                        boxes.append(([*box[:2], *(box[:2] + box[2:])], side))
        if boxes:
            hints |= {
                "boxes_xyxy_px": [[float(value) for value in box] for box, _ in boxes],
                "box_sides": [side for _, side in boxes],
            }
        if chosen.others:
            hints["other_hands_xyxy_px"] = [hand.box for hand in chosen.others]
        return hints

    def _hands(
        self, where: str, index: int, entry: Any, size: tuple[int, int], side_of_file: Side | None
    ) -> Iterator[_Hand]:
        """Yield the hands that an annotation labels.

        Raises:
            RecordError: ``label_corrupt``, ``label_missing`` or ``label_not_finite``.

        """
        if not isinstance(entry, dict) or type(entry.get("category_id")) not in (int, str):
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} is no object with a category_id")
        category = self._categories.get(entry["category_id"])
        if category is None:
            detail = f"{where}: there is no category {entry['category_id']!r}"
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        if "iscrowd" in entry and label_flags(where, "iscrowd", [entry["iscrowd"]], 1)[0]:
            return
        if any(f"{side}hand_kpts" in entry for side in SIDES):
            yield from _hands_of_person(where, index, entry)
        elif "keypoints" in entry:
            yield from self._hands_in_list(where, index, entry, category, size, side_of_file)
        elif category.is_of_hands:
            raise RecordError(RejectReason.LABEL_MISSING, f"{where} has no keypoints")

    def _hands_in_list(
        self,
        where: str,
        index: int,
        entry: dict[str, Any],
        category: _Category,
        size: tuple[int, int],
        side_of_file: Side | None,
    ) -> Iterator[_Hand]:
        points, valid = _joints(where, "keypoints", entry["keypoints"])
        orders = category.orders(len(points))
        named = _hand_field(where, entry) if len(orders) == 1 else None
        if self._is_rhd and orders and named is None:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: hand_type names no side, as RHD's does")
        segmentation = _segmentation(where, entry.get("segmentation"), size) if len(orders) == 1 else None
        for side_of_names, order in orders:
            sides = {side_of_names, named, side_of_file, side_in(category.name) if len(orders) == 1 else None}
            side = _only_side(where, {side for side in sides if side is not None})
            ordered, labelled = reorder_joints(points, order), reorder_joints(valid, order)
            if labelled.any():
                yield _Hand(ordered, labelled, side, index, len(orders) > 1, segmentation)


def _hands_of_person(where: str, index: int, entry: dict[str, Any]) -> Iterator[_Hand]:
    """Yield the hands of a person of COCO-WholeBody."""
    for side in SIDES:
        missing = [name for name in (f"{side}hand_kpts", f"{side}hand_valid") if name not in entry]
        if missing:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} lacks {missing[0]}")
        points, valid = _joints(where, f"{side}hand_kpts", entry[f"{side}hand_kpts"])
        if len(points) != KEYPOINTS_PER_HAND:
            detail = f"{where}: {side}hand_kpts should hold 21 joints, holds {len(points)}"
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        (is_valid,) = label_flags(where, f"{side}hand_valid", [entry[f"{side}hand_valid"]], 1)
        if is_valid and valid.any():
            yield _Hand(points, valid, side, index, is_of_person=True)


def _content(path: str) -> bytes:
    with open_file(path) as file:
        return file.read()


def _in_any_case(base: Path, name: str) -> list[Path]:
    """Return the folders of this name, a path of one or two folders, in a folder, whatever the case of its letters."""
    found = [base]
    for part in Path(name).parts:
        found = [child for folder in found for child in folders_in(folder) if child.name.lower() == part.lower()]
    return found


def _each_once(hands: Sequence[_Hand]) -> list[_Hand]:
    """Return the hands without those that an annotation repeats."""
    kept: list[_Hand] = []
    for hand in hands:
        if not any(hand.side == one.side and np.array_equal(hand.points, one.points) for one in kept):
            kept.append(hand)
    return kept


def _size(where: str, uri: str, image: dict[str, Any]) -> tuple[tuple[int, int], bool]:
    """Return width and height of an image, and whether its labels are for the image turned as EXIF says.

    Browsers turn photographs, and so do the tools that label in one: a photograph that lies on its side has the height
    that they say as its width. Of one that stands on its head nothing tells; it stays as it is stored.

    Raises:
        RecordError: ``image_size_mismatch``, or ``label_corrupt``: the labels name no size.

    """
    size = read_image_size(uri)
    said: dict[str, NDArray[np.float64]] = {}
    for name in ("width", "height"):
        if name in image:
            said[name] = label_numbers(where, name, image[name])
            if said[name].shape != ():
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {name} should be a number")

    def differs(size: tuple[int, int]) -> list[str]:
        return [name for name, found in zip(("width", "height"), size, strict=True) if said.get(name, found) != found]

    wrong = differs(size)
    if not wrong:
        return size, False
    if not differs(size[::-1]) and (upright := read_upright_size(uri)) == size[::-1]:
        return upright, True
    detail = f"{where} is {size[0]} x {size[1]} pixels, its labels are for a {wrong[0]} of {said[wrong[0]]:g}"
    raise RecordError(RejectReason.IMAGE_SIZE_MISMATCH, detail)
