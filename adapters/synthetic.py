"""Synthetic hands, as ``handdata synth`` renders them; ``handdata.adapters.synthesis.layout`` describes the files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import numbers, read_npz, require_finite
from handdata.adapters.reading.fields import label_flags
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.listing import find_all, folders_in, is_file
from handdata.adapters.reading.masks import read_nonzero_mask
from handdata.adapters.reading.paths import Fence, resolve_below
from handdata.adapters.synthesis.layout import (
    DATASET_FILE,
    FORMAT_VERSION,
    LABEL_ARRAYS,
    LABEL_FILE,
    image_path,
    mask_path,
)
from handdata.schemas import (
    KEYPOINT_COUNT,
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

SEQUENCES_PER_PARTITION: Final = 16


class SyntheticAdapter:
    """Reads the embedded synthetic dataset. The subject is the rendered identity."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["synthetic"]
    layouts: ClassVar[tuple[Layout, ...]] = (Layout("handdata synth", (DATASET_FILE,), release=str(FORMAT_VERSION)),)

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield runs of sequences of one split."""
        for split in sorted(SPLITS):
            names = [child.name for child in folders_in(root / split)]
            for start in range(0, len(names), SEQUENCES_PER_PARTITION):
                chosen = names[start : start + SEQUENCES_PER_PARTITION]
                yield Partition(
                    name=f"{split}/{start // SEQUENCES_PER_PARTITION:05d}",
                    split=split,
                    paths=tuple(f"{split}/{name}" for name in chosen),
                )

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the frames of a partition, sequence by sequence, in the order of frame number and camera.

        Where a sequence's label file cannot be used, each of its images is rejected.
        """
        fence = Fence(root, self.options.follow_links)
        for relative in partition.paths:
            folder = root / relative
            try:
                labels = _read_labels(folder / LABEL_FILE)
            except RecordError as error:
                yield from _reject_all(folder, partition.split, error)
                continue
            for row in range(len(labels.frame_index)):
                for camera in range(len(labels.camera_id)):
                    yield _read_frame(folder, partition.split, labels, row, camera, fence)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return where both hands are, exactly, without the forearms.

        Raises:
            RecordError: ``mask_unreadable``.

        """
        image = Path(record.image_uri)
        path = image.parent.parent / mask_path(image.parent.name, record.frame_index)
        return read_nonzero_mask(path, (record.width, record.height))


@dataclass(frozen=True, eq=False)
class _Labels:
    """A sequence's label file, its shapes checked; numbers may still be NaN."""

    path: Path
    frame_index: list[int]
    camera_id: list[str]
    timestamp_s: NDArray[np.float64]
    keypoints_3d_world: NDArray[np.float64]
    keypoints_valid: BoolArray
    keypoints_2d: NDArray[np.float64]
    camera_k: NDArray[np.float64]
    camera_t_world: NDArray[np.float64]
    width: int
    height: int
    identity: int


def _read_labels(path: Path) -> _Labels:
    """Read a label file.

    Raises:
        RecordError: ``label_missing``, ``label_unsafe``, ``label_corrupt`` or ``label_not_finite``.

    """
    arrays = read_npz(path, tuple(LABEL_ARRAYS))
    camera_id = arrays["camera_id"]
    if camera_id.dtype.kind != "U" or camera_id.ndim != 1:
        found = f"{camera_id.dtype} {camera_id.shape}"
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: camera_id should hold names, holds {found}")
    frames, cameras = arrays["frame_index"].size, camera_id.size
    shapes: dict[str, tuple[int, ...]] = {
        "frame_index": (frames,),
        "timestamp_s": (frames,),
        "keypoints_3d_world": (frames, KEYPOINT_COUNT, 3),
        "keypoints_2d": (frames, cameras, KEYPOINT_COUNT, 2),
        "camera_k": (cameras, 3, 3),
        "camera_t_world": (cameras, 4, 4),
        "image_size": (2,),
        "identity": (),
    }
    values = {name: numbers(path, name, arrays[name], shape) for name, shape in shapes.items()}
    for name in ("frame_index", "timestamp_s", "image_size", "identity"):
        require_finite(path, name, values[name])
    return _Labels(
        path=path,
        frame_index=[int(value) for value in values["frame_index"]],
        camera_id=[str(name) for name in camera_id],
        timestamp_s=values["timestamp_s"],
        keypoints_3d_world=values["keypoints_3d_world"],
        keypoints_valid=label_flags(path, "keypoints_valid", arrays["keypoints_valid"], KEYPOINT_COUNT),
        keypoints_2d=values["keypoints_2d"],
        camera_k=values["camera_k"],
        camera_t_world=values["camera_t_world"],
        width=int(values["image_size"][0]),
        height=int(values["image_size"][1]),
        identity=int(values["identity"]),
    )


def _read_frame(
    folder: Path, split: Split, labels: _Labels, row: int, camera: int, fence: Fence
) -> HandRecord | Rejection:
    frame_index, camera_id = labels.frame_index[row], labels.camera_id[camera]
    relative = image_path(camera_id, frame_index)
    try:
        image = resolve_below(folder, relative)
        size = read_image_size(image)
        if size != (labels.width, labels.height):
            detail = f"{labels.path} says {labels.width} x {labels.height} pixels, {image} has {size[0]} x {size[1]}"
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        valid = labels.keypoints_valid
        keypoints_2d, world = labels.keypoints_2d[row, camera], labels.keypoints_3d_world[row]
        camera_k, camera_t_world = labels.camera_k[camera], labels.camera_t_world[camera]
        checked = {"keypoints_2d": keypoints_2d[valid], "keypoints_3d_world": world[valid]}
        for name, values in {**checked, "camera_k": camera_k, "camera_t_world": camera_t_world}.items():
            require_finite(labels.path, f"{name} of frame {frame_index}, camera {camera_id}", values)
        mask = folder / mask_path(camera_id, frame_index)
        has_mask = is_file(mask)
        if has_mask:
            fence.check(str(mask))
        return HandRecord(
            source=SyntheticAdapter.card.name,
            split=split,
            sequence_id=folder.name,
            frame_index=frame_index,
            camera_id=camera_id,
            timestamp_s=float(labels.timestamp_s[row]),
            subject_id=str(labels.identity),
            image_uri=str(image),
            width=labels.width,
            height=labels.height,
            viewpoint="exo",
            keypoints_valid=valid,
            keypoints_2d=np.where(valid[:, None], keypoints_2d, 0),
            # The renderer knows which hands it drew.
            hand_state=hand_states(valid, "absent"),
            keypoints_3d=np.where(valid[:, None], world @ camera_t_world[:3, :3].T + camera_t_world[:3, 3], 0),
            camera_k=camera_k,
            camera_t_world=camera_t_world,
            has_mask=has_mask,
            mask_extent="hand" if has_mask else None,
        )
    except Exception as error:
        return _reject(folder, split, frame_index, camera_id, relative, error, labels.path)


def _reject_all(folder: Path, split: Split, error: RecordError) -> Iterator[Rejection]:
    """Reject every image of a sequence, or the sequence as one row where it has none."""
    images = sorted(
        (int(path.stem), path.parent.name)
        for path in find_all(folder, "*/*.jpg")
        if path.stem.isascii() and path.stem.isdecimal()
    )
    for frame_index, camera_id in images or [(0, "0")]:
        yield _reject(folder, split, frame_index, camera_id, image_path(camera_id, frame_index), error)


def _reject(
    folder: Path,
    split: Split,
    frame_index: int,
    camera_id: str,
    relative: str,
    error: Exception,
    where: Path | str = "",
) -> Rejection:
    name = record_name(SyntheticAdapter.card.name, split, folder.name, frame_index, camera_id)
    return frame_rejection(name, f"{folder}/{relative}", error, where)
