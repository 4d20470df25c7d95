"""The judgement of samples: flags that follow from the stored numbers, and gates that reject a record by its flags."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from handdata.pipeline.settings import QualitySettings
from handdata.schemas import KEYPOINTS_PER_HAND, SAMPLE_SCHEMA, AnnotatedSample, RecordError, Rejection, RejectReason
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import rejection
from handdata.schemas.tables import models_to_table

OBSERVED_FLAGS: Final = frozenset({"side_conflict", "side_unknown", "extra_hands", "unlabelled_hand"})
"""Flags that annotation observes and no stored number shows; recomputing flags keeps them."""

JUDGED_COLUMNS: Final = (
    "sequence_id",
    "camera_id",
    "width",
    "height",
    "keypoints_2d",
    "keypoints_valid",
    "agreement_px",
    "hand_px",
    "mask_score",
    "mask_spill",
    "sharpness",
    "contrast",
    "phash",
    "crop_xyxy",
    "flags",
)
"""Columns that decide the flags. Annotating and recomputing both judge by these alone, so they agree."""

_JUDGED_SCHEMA: Final = pa.schema([SAMPLE_SCHEMA.field(name) for name in JUDGED_COLUMNS])


def flags_of(rows: pa.Table, image_size: int, settings: QualitySettings) -> list[tuple[str, ...]]:
    """Return the sorted flags of each sample of one unit.

    Args:
        rows: ``JUDGED_COLUMNS`` of a whole unit, in its order; older units have no ``contrast``. Only
            ``OBSERVED_FLAGS`` are taken from ``flags``.
        image_size: Side of the crops, pixels.
        settings: Thresholds. A frame that ``settings.reject`` rejects is not compared with others for near-duplicates.

    """
    earlier: list[list[str]] = rows["flags"].to_pylist()
    observed = {name: np.array([name in flags for flags in earlier], dtype=bool) for name in OBSERVED_FLAGS}
    judged = observed | {
        "low_mask_coverage": _numbers(rows, "mask_score") < settings.min_mask_score,
        "mask_spill": _numbers(rows, "mask_spill") > settings.max_mask_spill,
        "small_hand": _is_small(rows, settings.min_hand_px),
        "blurry": _numbers(rows, "sharpness") < settings.min_sharpness,
        "no_content": _numbers(rows, "contrast") < settings.min_contrast,
        "truncated": _share_outside_image(rows, image_size) > settings.max_truncation,
        "labels_disagree": _disagreement(rows, image_size) > settings.max_disagreement,
    }
    kept = np.ones(len(rows), dtype=bool)
    for name in settings.reject & judged.keys():
        kept &= ~judged[name]
    judged["near_duplicate"] = _near_duplicates(rows, kept, settings.min_phash_distance)
    names = sorted(judged)
    table = np.stack([judged[name] for name in names], axis=1)
    return [tuple(name for name, applies in zip(names, row, strict=True) if applies) for row in table.tolist()]


def judge(
    samples: Sequence[AnnotatedSample], image_size: int, settings: QualitySettings
) -> tuple[list[AnnotatedSample], list[Rejection]]:
    """Return the accepted samples of one unit, with their flags, and the rejections by gates.

    A sample that several gates reject is rejected once, for the first flag in alphabetical order; the detail names all.
    """
    accepted: list[AnnotatedSample] = []
    rejections: list[Rejection] = []
    table = models_to_table(samples, _JUDGED_SCHEMA)
    for sample, flags in zip(samples, flags_of(table, image_size, settings), strict=True):
        gates = [flag for flag in flags if flag in settings.reject]
        if not gates:
            accepted.append(sample.model_copy(update={"flags": flags}))
            continue
        reason = RejectReason(f"quality_{gates[0]}")
        error = RecordError(reason, f"flagged {', '.join(flags)}: {_numbers_as_text(sample)}")
        rejections.append(rejection(sample.record_id, sample.image_uri, error))
    return accepted, rejections


def _numbers_as_text(sample: AnnotatedSample) -> str:
    right, left = sample.hand_px
    parts = [f"hands of {right:.0f} and {left:.0f} px", f"sharpness {sample.sharpness:.1f}"]
    if sample.mask_score is not None and sample.mask_spill is not None:
        parts += [f"{sample.mask_score:.0%} of the keypoints in the mask", f"{sample.mask_spill:.0%} spill"]
    return ", ".join(parts)


def _numbers(rows: pa.Table, name: str) -> NDArray[np.float64]:
    """Return all numbers of a column, lists joined; NaN where null, so that no comparison holds.

    A column that an older unit lacks is null.
    """
    if name not in rows.column_names:
        return np.full(len(rows), np.nan)
    column = rows[name].combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_small(rows: pa.Table, min_hand_px: float) -> BoolArray:
    hand_px = _numbers(rows, "hand_px").reshape(-1, 2)
    return np.asarray(((hand_px > 0) & (hand_px < min_hand_px)).any(axis=1))


def _full_px_per_crop_px(rows: pa.Table, image_size: int) -> NDArray[np.float64]:
    x0, _, x1, _ = _numbers(rows, "crop_xyxy").reshape(-1, 4).T
    return np.asarray((x1 - x0) / image_size)


def _share_outside_image(rows: pa.Table, image_size: int) -> NDArray[np.float64]:
    """Return the share of a hand's annotated joints that lie outside the image, for the worse hand of each row."""
    points = _numbers(rows, "keypoints_2d").reshape(-1, 2, KEYPOINTS_PER_HAND, 2)
    valid = _numbers(rows, "keypoints_valid").reshape(-1, 2, KEYPOINTS_PER_HAND) > 0
    origin = _numbers(rows, "crop_xyxy").reshape(-1, 4)[:, None, None, :2]
    full = origin + points * _full_px_per_crop_px(rows, image_size)[:, None, None, None]
    size = np.stack([_numbers(rows, "width"), _numbers(rows, "height")], axis=1)[:, None, None]
    outside = valid & ~((full > -0.5) & (full < size - 0.5)).all(axis=-1)
    return np.asarray((outside.sum(axis=2) / np.maximum(valid.sum(axis=2), 1)).max(axis=1))


def _disagreement(rows: pa.Table, image_size: int) -> NDArray[np.float64]:
    """Return the distance of dataset and MediaPipe keypoints over the hand's size, for the worse hand of each row."""
    distance = _numbers(rows, "agreement_px").reshape(-1, 2) * _full_px_per_crop_px(rows, image_size)[:, None]
    hand_px = _numbers(rows, "hand_px").reshape(-1, 2)
    shares = np.divide(distance, hand_px, out=np.zeros_like(distance), where=hand_px > 0)
    return np.asarray(np.nan_to_num(shares).max(axis=1))


def _near_duplicates(rows: pa.Table, kept: BoolArray, min_distance: int) -> BoolArray:
    """Return which rows look like the last kept frame of their sequence and camera.

    The first frame of a sequence and camera is kept. A later one is a near-duplicate if its hash differs in fewer than
    ``min_distance`` bits from that of the last frame that is no near-duplicate. Rows that are not ``kept`` are skipped.
    """
    last: dict[tuple[str, str], int] = {}
    found = np.zeros(len(rows), dtype=bool)
    hashes = rows["phash"].to_pylist()
    runs = zip(rows["sequence_id"].to_pylist(), rows["camera_id"].to_pylist(), strict=True)
    for position, (run, value) in enumerate(zip(runs, hashes, strict=True)):
        if not kept[position]:
            continue
        if run in last and ((last[run] ^ value) & 0xFFFF_FFFF_FFFF_FFFF).bit_count() < min_distance:
            found[position] = True
        else:
            last[run] = value
    return found
