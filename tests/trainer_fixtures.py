"""A small annotated dataset for the trainer's tests, written through the pipeline's own shard writer."""

from collections.abc import Sequence

import cv2
import numpy as np

from handdata.pipeline.lease import take_lease
from handdata.pipeline.plan import PlannedUnit
from handdata.pipeline.shards import DATASET, write_manifest, write_unit
from handdata.pipeline.storage import Storage
from handdata.schemas import AnnotatedSample, EncodedImage, Pair, Split

SIZE = 48


def sample(
    sequence: str,
    frame: int,
    camera: str = "0",
    *,
    split: Split = "train",
    timestamp_s: float | None = None,
    flags: Sequence[str] = (),
    pad_ltrb: tuple[float, float, float, float] = (0, 0, 0, 0),
    size: int = SIZE,
    **changes: object,
) -> AnnotatedSample:
    """One crop with a right hand: a bright disc whose place and colour follow from its identity, joints inside it.

    ``changes`` replace columns.
    """
    rng = np.random.default_rng([*sequence.encode(), frame, *camera.encode()])
    centre = rng.uniform(0.35, 0.65, 2) * size
    image = np.full((size, size, 3), rng.integers(0, 90, 3), np.uint8)
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, tuple(int(value) for value in centre), size // 5, 255, -1)
    image[mask > 0] = rng.integers(150, 255, 3)
    keypoints = np.zeros((42, 2), np.float32)
    keypoints[:21] = centre + rng.uniform(-0.15, 0.15, (21, 2)) * size
    name = f"synthetic/{split}/{sequence}/{frame:06d}-{camera}"
    made = AnnotatedSample(
        sample_id=name,
        record_id=name,
        unit_id=f"unit-{split}",
        source="synthetic",
        split=split,
        sequence_id=sequence,
        frame_index=frame,
        camera_id=camera,
        timestamp_s=timestamp_s,
        subject_id=None,
        origin_id=None,
        viewpoint="exo",
        hand_state=("labelled", "absent"),
        image_uri=f"{name}.jpg",
        video_frame=None,
        width=size,
        height=size,
        camera_model="pinhole",
        camera_dist=None,
        camera_t_world=None,
        license="Apache-2.0",
        image=EncodedImage(bytes=_encoded(".png", image[..., ::-1])),
        hand_mask=EncodedImage(bytes=_encoded(".png", mask)),
        keypoints_2d=keypoints,
        keypoints_valid=np.arange(42) < 21,
        keypoints_origin=("dataset", None),
        keypoints_score=Pair(1, 0),
        agreement_px=(None, None),
        hand_px=Pair(0.3 * size, 0),
        mask_origin="dataset",
        mask_extent="hand",
        mask_score=1.0,
        mask_spill=0.0,
        sharpness=100.0,
        phash=0,
        crop_xyxy=(0, 0, size, size),
        pad_ltrb=pad_ltrb,
        crop_mode="frame",
        keypoints_3d=None,
        camera_k=None,
        flags=tuple(flags),
        annotator_hash="0" * 16,
    )
    return made.model_copy(update=changes)


def write_dataset(storage: Storage, samples: Sequence[AnnotatedSample]) -> None:
    """Write samples as an annotated dataset, one unit a source and split."""
    units = sorted({(row.source, row.split) for row in samples})
    for source, split in units:
        rows = [row for row in samples if (row.source, row.split) == (source, split)]
        unit = PlannedUnit(f"unit-{split}", source, split, len(rows), "", 0)  # type: ignore[arg-type]
        write_unit(take_lease(storage, DATASET), unit, rows, [], "0" * 16)
    write_manifest(
        storage,
        DATASET,
        image_size=samples[0].width,
        annotators={"0" * 16: {}},
        licenses=dict.fromkeys([source for source, _ in units], "Apache-2.0"),
        planned_units=len(units),
    )


def _encoded(suffix: str, picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, picture)[1])
