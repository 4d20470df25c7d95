"""EPIC-KITCHENS VISOR: masks of hands and objects on sparse frames of kitchen videos. No joints of any kind.

Layout (data.bris, DOI 10.5523/bris.2v6cgv1x04ol22qp9rm9x2j6a7; below ``GroundTruth-SparseAnnotations`` or itself)::

    annotations/{train,val}/<video>.json
    rgb_frames/{train,val,test}/<Pxx>/<video>.zip             <video>_frame_<10 digits>.jpg at the archive's root
    rgb_frames/{train,val,test}/<Pxx>/<video>/<name>.jpg      unpacked as the authors' HOS tool does it
    rgb_frames/{train,val,test}/<Pxx>/<name>.jpg              unpacked in place

An annotation file has a list ``video_annotations``; an element is ``{"image": {"name", "subsequence", "video", ...},
"annotations": [entity, ...]}``, an entity ``{"name", "segments": [ring, ...], "on_which_hand", ...}`` with (x, y)
pixels of a frame of 1920 x 1080. The test split has frames only. The dense interpolations are not read: their frames
are not shipped.

**The mask** is what the authors render (``epic-kitchens/VISOR-VIS``, ``vis.py``): the rings of one entity are cut to
whole pixels and filled together by the even-odd rule at 1920 x 1080. A frame of another size gets the nearest pixel's
value. Hands (``left hand``, ``right hand``) and the gloves worn on them are combined; they reach up the forearm. Rings
without an area are omitted, as in the authors' HOS tool.

**Both hands are ``unknown``**: no entity may mean that a hand is out of view, but nothing says so.

**A sequence is the video**, not its ``subsequence``: those cut one take of one camera where the set of objects changes,
and ``timestamp_s`` counts from the video's start. The trainer decides how far apart a pair of frames may be.

**Time** is (frame - 1) / 60 seconds in the videos of EPIC-KITCHENS-55 (two digits after the underscore), / 50 in the
later ones. The authors' ``frames_to_timestamps.json`` agrees for all 50,729 frames but 120 of P02_02, which are 1/60 s
off.
"""

import re
import reprlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import cv2
import numpy as np

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import ZIP_ERRORS, number_array, require_finite
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.images import read_image_size, read_image_size_from
from handdata.adapters.reading.json_stream import stream_list
from handdata.adapters.reading.listing import files_in, find_all, is_file, is_folder, open_file
from handdata.adapters.reading.masks import MAX_COORDINATE, fill_polygon
from handdata.adapters.reading.paths import resolve_below
from handdata.schemas import (
    KEYPOINT_COUNT,
    SOURCE_CARDS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    Side,
    SourceCard,
    Split,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection

_LABELLED_SPLITS: Final[tuple[Split, ...]] = ("train", "val")
_ANNOTATED_SIZE: Final = (1920, 1080)
_NAME: Final = re.compile(r"(?P<video>(?P<participant>P\d+)_(?P<take>\d+))_frame_(?P<number>0?\d{1,9})\.jpg")
_VIDEO: Final = re.compile(r"P\d+_\d+", re.ASCII)
_RATE_OF_DIGITS: Final = {2: 60, 3: 50}
"""Frames per second, by the digits of the take."""
_HANDS: Final[dict[str, Side]] = {"right hand": "right", "rigth hand": "right", "left hand": "left"}
"""Sides by the name of an entity or of ``on_which_hand``, whose typo is the dataset's."""
_GLOVES: Final = frozenset({"glove", "gloves", "left glove", "oven glove", "right glove", "rubber glove"})
"""What reading a damaged or encrypted archive raises."""

_MAX_POINTS: Final = 100_000
"""Most points of one hand; the longest outlines have some thousands."""

Ring = list[list[int]]
"""(x, y) whole pixels of a frame of 1920 x 1080."""


class VisorAdapter:
    """Reads the sparse annotations with their frames, unpacked or not."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["visor"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            "as downloaded",
            ("GroundTruth-SparseAnnotations/annotations/*/*.json", "GroundTruth-SparseAnnotations/rgb_frames/*/*"),
            "the labels",
        ),
        Layout("GroundTruth-SparseAnnotations alone", ("annotations/*/*.json", "rgb_frames/*/*"), "the labels"),
    )
    unused: ClassVar[tuple[str, ...]] = (
        "Interpolations-DenseAnnotations",
        "*DenseAnnotations*",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each video."""
        base = _base(root)
        found = [
            Partition(f"{split}/{path.stem}", split, (path.relative_to(root).as_posix(),), path.stem)
            for split in _LABELLED_SPLITS
            for path in files_in(base / "annotations" / split, ".json")
        ]
        for split in _LABELLED_SPLITS:
            labels = base / "annotations" / split
            videos = {video for folder in find_all(base / "rgb_frames" / split, "P*") for video in _videos(folder)}
            found += [
                Partition(f"{split}/{video}", split, ((labels / f"{video}.json").relative_to(root).as_posix(),), video)
                for video in videos - {path.stem for path in files_in(labels, ".json")}
            ]  # which will be found to have no labels
        for folder in find_all(base / "rgb_frames" / "test", "P*"):
            relative = (folder.relative_to(root).as_posix(),)
            found += [Partition(f"test/{video}", "test", relative, video) for video in _videos(folder)]
        yield from sorted(found, key=lambda partition: partition.name)

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the frames of one video in the order of its annotation file, which is streamed."""
        with _Images(_base(root), partition.split, partition.selection) as images:
            if partition.split == "test":
                for name in images.names():
                    yield _read_frame(images, partition.split, _Frame(name, []))
            else:
                yield from _read_annotations(root / partition.paths[0], images, partition.split)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the (height, width) mask of the hands and of the gloves on them.

        Raises:
            RecordError: ``mask_unreadable``: the frame has no hand.

        """
        entities = (record.extra or {}).get("mask_polygons")
        if not entities:
            raise RecordError(RejectReason.MASK_UNREADABLE, f"no hand is annotated on {record.image_uri}")
        mask = np.zeros(_ANNOTATED_SIZE[::-1], dtype=np.bool_)
        for rings in entities:
            mask |= fill_polygon(rings, _ANNOTATED_SIZE, Path(record.image_uri))
        size = (record.width, record.height)
        if size != _ANNOTATED_SIZE:
            mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(np.bool_)
        return mask


def _videos(folder: Path) -> set[str]:
    """Return the videos of which a participant's folder has frames, packed or not."""
    names = (path.name.partition("_frame_")[0].removesuffix(".zip") for path in find_all(folder, "P*_*"))
    return {name for name in names if _VIDEO.fullmatch(name)}


def _base(root: Path) -> Path:
    base = root / "GroundTruth-SparseAnnotations"
    return base if is_folder(base) else root


# ---------------------------------------------------------------------------------------------------- images


class _Images:
    """The frames of one video, wherever they lie; unpacked ones first, as unpacking is known to fail in part."""

    def __init__(self, base: Path, split: Split, video: str) -> None:
        self._participant = base / "rgb_frames" / split / video.partition("_")[0]
        self._video = video
        self._zip_path = self._participant / f"{video}.zip"
        self._archive: zipfile.ZipFile | None = None
        self._archive_error: RecordError | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            if is_file(self._zip_path):
                file = self._open.enter_context(open_file(self._zip_path))
                self._archive = self._open.enter_context(zipfile.ZipFile(file))
        except ZIP_ERRORS as error:
            self._archive_error = RecordError(RejectReason.IMAGE_CORRUPT, f"{self._zip_path}: {error}")
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def names(self) -> list[str]:
        """Return the names of all frames of the video, sorted."""
        unpacked = [*files_in(self._participant, ".jpg"), *files_in(self._participant / self._video, ".jpg")]
        packed = self._archive.namelist() if self._archive else []
        found = {*packed, *(path.name for path in unpacked)}
        return sorted(name for name in found if _NAME.fullmatch(name) and name.startswith(f"{self._video}_"))

    def uri(self, name: str) -> str:
        """Return where the frame lies, or where it should lie."""
        for folder in (self._participant / self._video, self._participant):
            if is_file(folder / name):
                return str(folder / name)
        if self._archive is None and self._archive_error is None:
            return str(self._participant / self._video / name)
        return f"zip://{name}::{self._zip_path}"

    def size(self, name: str) -> tuple[int, int]:
        """Return (width, height) from the frame's header.

        Raises:
            RecordError: It is missing or unreadable.

        """
        uri = self.uri(name)
        if not uri.startswith("zip://"):
            return read_image_size(Path(uri))
        if self._archive is None:
            assert self._archive_error is not None
            raise self._archive_error
        try:
            with self._archive.open(name) as stream:
                return read_image_size_from(stream, f"{self._zip_path}/{name}")
        except KeyError:
            raise RecordError(RejectReason.IMAGE_MISSING, f"{self._zip_path} does not hold {name}") from None
        except ZIP_ERRORS as error:
            raise RecordError(RejectReason.IMAGE_CORRUPT, f"{self._zip_path}, {name}: {error}") from None


# ---------------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True, slots=True)
class _Entity:
    """A hand, or a glove on hands."""

    side: Side | None
    """Side of the hand; ``None`` for a glove, or a pair of gloves, on both hands."""
    rings: list[Ring]


@dataclass(frozen=True, slots=True)
class _Frame:
    name: str
    entities: list[_Entity]


def _read_annotations(path: Path, images: _Images, split: Split) -> Iterator[HandRecord | Rejection]:
    repeated = _repeated_names(path)
    held: dict[str, _Frame] = {}
    try:
        for number, element in enumerate(stream_list(path, "video_annotations")):
            try:
                frame = _parse_element(f"{path}, element {number}", element)
            except RecordError as error:
                name = _name_of(element)
                if name is None or name in repeated:
                    yield rejection(f"visor/{split}/{path.stem}/element {number}", str(path), error)
                else:
                    yield rejection(_record_id(split, name), images.uri(name), error)
                continue
            if frame.name not in repeated:
                yield _read_frame(images, split, frame)
            elif frame.name in held:
                held[frame.name].entities.extend(frame.entities)
            else:
                held[frame.name] = frame
    except RecordError as error:
        yield rejection(f"visor/{split}/{path.name}", str(path), error)
    for frame in held.values():
        yield _read_frame(images, split, frame)


def _repeated_names(path: Path) -> set[str]:
    """Return the frames that have several elements, which are merged: the file is read twice to hold only names."""
    seen: set[str] = set()
    repeated: set[str] = set()
    with suppress(RecordError):  # the second reading reports it
        for element in stream_list(path, "video_annotations"):
            name = _name_of(element)
            if name is not None:
                (repeated if name in seen else seen).add(name)
    return repeated


def _name_of(element: object) -> str | None:
    """Return the name of an element's frame; ``None`` where it is not the name of one."""
    image = element.get("image") if isinstance(element, dict) else None
    name = image.get("name") if isinstance(image, dict) else None
    return name if isinstance(name, str) and _NAME.fullmatch(name) else None


def _parse_element(where: str, element: Any) -> _Frame:
    """Return the hands of one frame.

    Raises:
        RecordError: ``label_corrupt``, ``label_not_finite``, or ``path_escapes_root``.

    """
    name = _name_of(element)
    if name is None:
        named = element.get("image") if isinstance(element, dict) else element
        if isinstance(named, dict) and isinstance(named.get("name"), str):
            resolve_below(Path(where), named["name"])
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} names no frame: {str(named)[:200]!r}")
    annotations = element.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(entity, dict) for entity in annotations):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where} has no list of annotations")
    entities = []
    for entity in annotations:
        sides = _sides(where, entity)
        if sides:
            rings = _parse_rings(f"{where}, {entity['name']}", entity.get("segments"))
            entities.append(_Entity(sides.pop() if len(sides) == 1 else None, rings))
    return _Frame(name, entities)


def _sides(where: str, entity: dict[str, Any]) -> set[Side]:
    """Return the hands that an entity is, or is worn on; none for all else: "hand blender", a glove on the table.

    Raises:
        RecordError: ``label_corrupt``: Its name, or what it is worn on, is no text.

    """
    name = entity.get("name")
    if not isinstance(name, str):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: the name of an entity is {reprlib.repr(name)}")
    name = " ".join(name.lower().split())
    if name in ("left hand", "right hand"):
        return {_HANDS[name]}
    worn_on = entity.get("on_which_hand") if name in _GLOVES else None
    named = worn_on if isinstance(worn_on, list) else [] if worn_on is None else [worn_on]
    if not all(isinstance(hand, str) for hand in named):
        detail = f"{where}, {name}: on_which_hand should name hands, is {reprlib.repr(worn_on)}"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    spelled = {" ".join(hand.lower().split()) for hand in named}
    return {_HANDS[hand] for hand in spelled if hand in _HANDS}


def _parse_rings(where: str, segments: object) -> list[Ring]:
    """Return the rings that have an area, in whole pixels, as the authors' renderer cuts them."""
    if not isinstance(segments, list):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: segments should be a list of rings")
    if sum(len(segment) for segment in segments if isinstance(segment, list)) > _MAX_POINTS:
        raise RecordError(RejectReason.LABEL_IMPLAUSIBLE, f"{where}: segments have more than {_MAX_POINTS} points")
    rings = []
    for segment in segments:
        ring = number_array(where, "a ring", segment, (-1, 2)) if segment != [] else np.empty((0, 2))
        if len(ring) >= 3:
            require_finite(where, "a ring", ring)
            if np.abs(ring).max() > MAX_COORDINATE:
                raise RecordError(RejectReason.LABEL_IMPLAUSIBLE, f"{where}: a ring lies far outside the frame")
            rings.append(ring.astype(np.int32).tolist())
    return rings


# ---------------------------------------------------------------------------------------------------- records


def _record_id(split: Split, name: str) -> str:
    match = _NAME.fullmatch(name)
    assert match is not None
    return record_name("visor", split, match["video"], int(match["number"]))


def _read_frame(images: _Images, split: Split, frame: _Frame) -> HandRecord | Rejection:
    image_uri = images.uri(frame.name)
    try:
        return _record(images, split, frame, image_uri)
    except Exception as error:
        return frame_rejection(_record_id(split, frame.name), image_uri, error, image_uri)


def _record(images: _Images, split: Split, frame: _Frame, image_uri: str) -> HandRecord:
    match = _NAME.fullmatch(frame.name)
    assert match is not None
    number = int(match["number"])
    rate = _RATE_OF_DIGITS.get(len(match["take"]))
    width, height = images.size(frame.name)
    polygons = [entity.rings for entity in frame.entities if entity.rings]
    return HandRecord(
        source=VisorAdapter.card.name,
        split=split,
        sequence_id=match["video"],
        frame_index=number,
        timestamp_s=(number - 1) / rate if rate else None,
        subject_id=match["participant"],
        image_uri=image_uri,
        width=width,
        height=height,
        viewpoint="ego",
        keypoints_valid=np.zeros(KEYPOINT_COUNT, dtype=np.bool_),
        keypoints_2d=np.zeros((KEYPOINT_COUNT, 2)),
        hand_state=("unknown", "unknown"),
        has_mask=bool(polygons),
        mask_extent="hand_forearm" if polygons else None,
        extra=_boxes(frame.entities, (width, height)) | {"mask_polygons": polygons} if polygons else None,
    )


def _boxes(entities: list[_Entity], size: tuple[int, int]) -> dict[str, list[Any]]:
    """Return the box of each hand with its glove, in pixels of the image, and of what is on both hands."""
    scale = np.divide(size, _ANNOTATED_SIZE)
    sides: list[Side | None] = []
    boxes = []
    for side in ("right", "left", None):
        points = [point for entity in entities if entity.side == side for ring in entity.rings for point in ring]
        if points:
            corners = np.array([np.min(points, axis=0), np.max(points, axis=0)]) * scale
            boxes.append(np.round(corners, 2).ravel().tolist())
            sides.append(side)
    return {"boxes_xyxy_px": boxes, "box_sides": sides}
