"""DART (DARTset): one rendered right hand with textures and accessories, in front of a background; single images.

Layout (readme and ``DARTset.py`` of https://github.com/DART2022/DARTset), ``<p>`` being 0, 1, ...::

    DARTset/<train|test>/<p>/<name>.png        512 x 512, the hand alone, its alpha the cut-out
    DARTset/<train|test>/<p>_wbg/<name>.png    384 x 384, the same hand in front of a background: the image that we use
    DARTset/<train|test>/part_<p>.pkl          parallel lists: "img" (file names), "joint2d" (21, 2), "joint3d", "pose"

Whether the archives unpack to this or put a folder around each part is not written anywhere: both are read.

``joint2d`` are pixels of the 512 x 512 image, and are scaled by 384 / 512 as the official loader does. The joints are
in MANO's order with MANO's order of fingers for the tips too. All 21 are given, hidden or not. The hand is always the
right one (issue 7 of the repository), so the left one is absent. The camera is orthographic with a scale and offset
that differ by image and are not published; ``joint3d`` is not in a camera's frame: there are neither intrinsics nor 3D
keypoints.
"""

import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import number_array, require_finite
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import place_hands, place_validity, reorder_joints
from handdata.adapters.reading.images import read_image_size, require_size
from handdata.adapters.reading.listing import find_all, is_file
from handdata.adapters.reading.masks import read_alpha
from handdata.adapters.reading.paths import resolve_below
from handdata.adapters.reading.pickles import load_pickle
from handdata.schemas import (
    SOURCE_CARDS,
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

_SPLITS: Final[tuple[Split, ...]] = ("test", "train")
_ORDER: Final = (0, 13, 14, 15, 20, 1, 2, 3, 16, 4, 5, 6, 17, 10, 11, 12, 19, 7, 8, 9, 18)
"""Rows of our joints in wrist, index, middle, little, ring, thumb, and the five tips in that order of fingers."""
_LABEL_SIZE: Final = 512
"""Width and height of the image whose pixels ``joint2d`` counts."""
_OPAQUE: Final = 128


class DartAdapter:
    """Reads the parts of DARTset that are there."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["dart"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("training parts", ("train/part_*.pkl",)),
        Layout("test parts", ("test/part_*.pkl",)),
        Layout("training parts, a folder around each", ("train/*/part_*.pkl",)),
        Layout("test parts, a folder around each", ("test/*/part_*.pkl",)),
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each part: its labels are one file, which cannot be read in parts."""
        for split in _SPLITS:
            paths = {*find_all(root, f"{split}/part_*.pkl"), *find_all(root, f"{split}/*/part_*.pkl")}
            for images in (*find_all(root, f"{split}/*_wbg"), *find_all(root, f"{split}/*/*_wbg")):
                paths.add(images.with_name(f"part_{images.name.removesuffix('_wbg')}.pkl"))  # or it is missing
            for relative in sorted(path.relative_to(root).as_posix() for path in paths):
                yield Partition(relative.removesuffix(".pkl"), split, (relative,))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the images of a part in the order of its label file."""
        (relative,) = partition.paths
        label_path = root / relative
        try:
            names, joints = _read_part(label_path)
        except RecordError as error:
            yield rejection(f"{self.card.name}/{partition.split}/{relative}", str(label_path), error)
            return
        for index in range(len(names)):
            yield _read_image(label_path, partition.split, index, names[index], joints[index])

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the hand with its accessories and the stump of the wrist, cut out as the official loader does.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        if not record.extra:
            raise RecordError(RejectReason.MASK_UNREADABLE, f"{record.image_uri} has no image of the hand alone")
        alpha = read_alpha(Path(record.extra["cutout"]), (_LABEL_SIZE, _LABEL_SIZE))
        resized = cv2.resize(alpha, (record.width, record.height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized >= _OPAQUE)


def _read_part(path: Path) -> tuple[Sequence[object], Sequence[object]]:
    """Return the file names and joints of a part, equally many.

    Raises:
        RecordError: ``label_missing``, ``label_unsafe`` or ``label_corrupt``.

    """
    part = load_pickle(path)
    fields: dict[str, Any] = part if isinstance(part, dict) else {}
    names, joints = _column(path, fields, "img"), _column(path, fields, "joint2d")
    if len(names) != len(joints):
        detail = f"{path} has {len(names)} file names but {len(joints)} joint2d"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    return names, joints


def _column(path: Path, fields: dict[str, Any], name: str) -> Sequence[object]:
    values = fields.get(name)
    if isinstance(values, np.ndarray) and values.ndim:
        values = list(values)
    if not isinstance(values, list | tuple):
        raise RecordError(
            RejectReason.LABEL_CORRUPT, f"{path} should hold a list {name}, has {reprlib.repr(list(fields))}"
        )
    return values


def _read_image(label_path: Path, split: Split, index: int, name: object, joints: object) -> HandRecord | Rejection:
    part = label_path.stem.removeprefix("part_")
    folder = label_path.parent / f"{part}_wbg"
    sequence_id = f"{part}-{Path(name).stem if isinstance(name, str) else f'entry{index}'}"
    image_uri = f"{folder}/{name}"
    try:
        if not isinstance(name, str):
            raise RecordError(
                RejectReason.LABEL_CORRUPT, f"{label_path}: img {index} should be a name, is {reprlib.repr(name)}"
            )
        image_path = resolve_below(folder, name)
        image_uri = str(image_path)
        width, height = read_image_size(image_path)
        require_size(image_path, (width, height), (width, width))  # both are scaled alike
        pixels = _numbers(label_path, f"joint2d {index}", joints)
        require_finite(f"{label_path}: {name}", "joint2d", pixels)
        scale = np.array([width, height]) / _LABEL_SIZE
        valid = place_validity(right=True)
        cutout = resolve_below(label_path.parent / part, name)
        has_mask = is_file(cutout)
        return HandRecord(
            source=DartAdapter.card.name,
            split=split,
            sequence_id=sequence_id,
            frame_index=0,
            image_uri=image_uri,
            width=width,
            height=height,
            viewpoint="exo",
            keypoints_valid=valid,
            keypoints_2d=place_hands(right=reorder_joints(pixels * scale, _ORDER)),
            hand_state=hand_states(valid, "absent"),
            camera_model="orthographic",
            has_mask=has_mask,
            mask_extent="hand_accessory" if has_mask else None,
            extra={"cutout": str(cutout)} if has_mask else None,
        )
    except Exception as error:
        return frame_rejection(
            record_name(DartAdapter.card.name, split, sequence_id),
            image_uri,
            error,
            f"{label_path}: img {index}",
        )


def _numbers(path: Path, name: str, values: object) -> NDArray[np.float64]:
    return number_array(path, name, values, (21, 2))
