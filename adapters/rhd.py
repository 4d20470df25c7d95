"""RHD (Rendered Handpose Dataset, version 1.1): rendered people in front of photographs, single images of 320 x 320.

Layout after unzipping RHD_v1-1.zip (https://lmb.informatik.uni-freiburg.de/resources/datasets)::

    RHD_published_v2/training/anno_training.pickle      color/00000.png   mask/00000.png   depth/00000.png
    RHD_published_v2/evaluation/anno_evaluation.pickle  color/00000.png   mask/00000.png   depth/00000.png

The pickle is ``{sample id: {"uv_vis": (42, 3), "xyz": (42, 3), "K": (3, 3)}}``: pixels and visibility, metres in the
camera frame (the web page says world; ``K @ xyz`` gives the pixels), intrinsics. The left hand comes first, and fingers
run from tip to palm (readme and ``create_binary_db.py`` of https://github.com/lmb-freiburg/hand3d).

**Visibility.** Every joint of both hands carries numbers, also where it is hidden or outside the image. The authors
call a joint visible where enough pixels of its own hand lie around it in the segmentation (issue 32 of the
repository), and all loaders take visible for valid, as this one does: a hand behind the back must not be drawn. A hand
without any visible joint is therefore ``absent``: the dataset says that it cannot be seen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import numbers, require_finite
from handdata.adapters.reading.fields import label_flags
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import place_hands, place_validity, reorder_joints
from handdata.adapters.reading.images import read_image_size, require_size
from handdata.adapters.reading.listing import files_in, is_file, is_folder, is_named
from handdata.adapters.reading.masks import read_label_image
from handdata.adapters.reading.paths import Fence
from handdata.adapters.reading.pickles import load_pickle
from handdata.schemas import (
    KEYPOINT_COUNT,
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

_FOLDERS: Final[tuple[tuple[str, Split], ...]] = (("evaluation", "test"), ("training", "train"))
_LEFT, _RIGHT = slice(0, 21), slice(21, 42)
_FROM_PALM_TO_TIP: Final = (0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17)
"""Rows of one hand in our order: the wrist, then each finger's four joints turned round."""
_SIZE: Final = (320, 320)
"""Width and height of all images, whose pixels the labels count."""
_PERSON: Final = 1
"""Mask labels: 0 background, 1 the person with forearms, 2 to 17 parts of the left hand, 18 to 33 of the right."""


class RhdAdapter:
    """Reads the unpacked archive, both splits or one of them."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["rhd"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("version 1.1", ("training/anno_training.pickle",), release="1.1"),
        Layout("version 1.1, evaluation only", ("evaluation/anno_evaluation.pickle",), release="1.1"),
    )
    unused: ClassVar[tuple[str, ...]] = ("*/depth",)

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition a split: its labels are one file, which cannot be read in parts."""
        for folder, split in _FOLDERS:
            annotation = f"{folder}/anno_{folder}.pickle"
            if is_named(root / annotation) or is_folder(root / folder / "color"):
                yield Partition(folder, split, (annotation,))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the images of a split in the order of their ids."""
        (relative,) = partition.paths
        label_path = root / relative
        try:
            if not is_file(label_path):
                detail = f"{label_path} is no file: the split {partition.split} has no labels"
                raise RecordError(RejectReason.LABEL_MISSING, detail)
            samples = _read_samples(label_path)
        except RecordError as error:
            yield rejection(f"{self.card.name}/{partition.split}/{relative}", str(label_path), error)
            return
        fence = Fence(root, self.options.follow_links)
        for sample_id in sorted(samples):
            yield _read_sample(label_path, partition.split, sample_id, samples[sample_id], fence)
        named = {f"{sample_id:05d}" for sample_id in samples}
        for image in files_in(label_path.parent / "color", ".png"):
            if image.stem not in named:
                missing = RecordError(RejectReason.LABEL_MISSING, f"{label_path} does not name {image.name}")
                yield rejection(record_name(self.card.name, partition.split, image.stem), str(image), missing)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the fingers and palms of both hands, without forearms.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        path = _mask_path(Path(record.image_uri))
        return np.asarray(read_label_image(path, (record.width, record.height)) > _PERSON)


def _mask_path(image_path: Path) -> Path:
    return image_path.parent.parent / "mask" / image_path.name


def _read_samples(path: Path) -> dict[int, object]:
    samples = load_pickle(path)
    # To Python, True is a number.
    if not isinstance(samples, dict) or not all(type(key) is int or isinstance(key, np.integer) for key in samples):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} should hold a dict of sample ids, holds something else")
    if not all(0 <= key < 2**31 for key in samples):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} has ids that are no numbers of files")
    return {int(key): sample for key, sample in samples.items()}


def _read_sample(
    label_path: Path, split: Split, sample_id: int, sample: object, fence: Fence
) -> HandRecord | Rejection:
    stem = f"{sample_id:05d}"
    image_path = label_path.parent / "color" / f"{stem}.png"
    try:
        width, height = read_image_size(image_path)
        require_size(image_path, (width, height), _SIZE)
        uv_vis = _numbers(label_path, stem, sample, "uv_vis", (42, 3))
        xyz_m = _numbers(label_path, stem, sample, "xyz", (42, 3))
        camera_k = _numbers(label_path, stem, sample, "K", (3, 3))
        visible = label_flags(label_path, f"{stem} uv_vis", uv_vis[:, 2], KEYPOINT_COUNT)
        valid = place_validity(*(reorder_joints(visible[hand], _FROM_PALM_TO_TIP) for hand in (_RIGHT, _LEFT)))
        keypoints = _both_hands(uv_vis[:, :2])
        keypoints_3d = _both_hands(xyz_m)
        where = f"{label_path}: {stem}"
        require_finite(where, "uv_vis", keypoints[valid])
        require_finite(where, "xyz", keypoints_3d[valid])
        require_finite(where, "K", camera_k)
        has_mask = is_file(_mask_path(image_path))
        if has_mask:
            fence.check(str(_mask_path(image_path)))
        return HandRecord(
            source=RhdAdapter.card.name,
            split=split,
            sequence_id=stem,
            frame_index=0,
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint="exo",
            keypoints_valid=valid,
            keypoints_2d=keypoints,
            hand_state=hand_states(valid, "absent"),
            keypoints_3d=keypoints_3d,
            camera_k=camera_k,
            has_mask=has_mask,
            mask_extent="hand" if has_mask else None,
        )
    except Exception as error:
        return frame_rejection(
            record_name(RhdAdapter.card.name, split, stem), str(image_path), error, f"{label_path}: {stem}"
        )


def _numbers(path: Path, stem: str, sample: object, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    values = sample.get(name) if isinstance(sample, dict) else None
    if not isinstance(values, np.ndarray):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {stem} has no array {name}")
    return numbers(path, f"{stem} {name}", values, shape)


def _both_hands(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (42, N) with the right hand first and fingers from palm to tip."""
    right, left = (reorder_joints(rows[hand], _FROM_PALM_TO_TIP) for hand in (_RIGHT, _LEFT))
    return place_hands(right, left, dimensions=rows.shape[1])
