"""Generated samples: which parents each has, the record that plans it, and the row that its image becomes.

A child has the looks of its reference and all that its target says of hands and camera. Frames of one sequence of the
targets share a reference, so that the children of a video show one hand.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
import polars as pl
import pyarrow as pa

from handdata._version import __version__
from handdata.pipeline.annotation.annotator import encode_jpeg, encode_png
from handdata.pipeline.annotation.keypoints import hand_size
from handdata.pipeline.annotation.masks import mask_score, mask_spill
from handdata.pipeline.annotation.measures import contrast, perceptual_hash, sharpness
from handdata.pipeline.shards import Shard, list_shards, read_manifest, read_samples
from handdata.pipeline.shards.parents import ROLES, Parent, Role, parents_as_extra
from handdata.pipeline.storage import Dataset
from handdata.schemas import (
    GENERATED,
    SIDES,
    AnnotatedSample,
    EncodedImage,
    HandRecord,
    HandState,
    Pair,
    RecordError,
    RejectReason,
    UsageError,
    hand_rows,
    hand_states,
    inside,
    known_names,
    license_id_of,
    records_to_table,
)
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.licences import more_restrictive
from handdata.schemas.record import record_name
from handdata.schemas.sample import COPIED_COLUMNS
from handdata.trainer.data.sample_index import chosen_rows
from handdata.trainer.presets import DataConfig

Row: TypeAlias = dict[str, Any]
"""Columns of one stored sample."""

_KEYS: Final = ("sample_id", "record_id", "source", "split", "sequence_id", "frame_index", "camera_id", "subject_id")
_LICENCE: Final = ("license", "license_id")
_LABELS: Final = (
    *("sample_id", "timestamp_s", "viewpoint", "hand_state", "keypoints_2d", "keypoints_valid", "keypoints_3d"),
    *("camera_k", "camera_t_world", "camera_model", "camera_dist", "attributes"),
)
_KEPT_FLAGS: Final = frozenset({"side_conflict"})
"""Flags of a target that are doubts about its labels, which its child inherits."""

_CACHED_SHARDS: Final = 16


@dataclass(frozen=True, slots=True)
class Children:
    """The children of all targets of a source.

    Args:
        keys: Their keys as planning needs them, and ``reference_`` and ``target_`` columns of their parents, in the
            order of the targets.
        without_reference: By split, the number of targets without any reference in their split; they have no child.
        other_hands: Number of children whose reference shows other hands than the target: no reference of their split
            shows the same.

    """

    keys: pl.DataFrame
    without_reference: dict[str, int]
    other_hands: int

    def licences(self) -> list[tuple[str, str]]:
        """Return the licences of all parents, with their ids."""
        found = [
            self.keys.select(f"{role}_license", f"{role}_license_id").unique(maintain_order=True).rows()
            for role in ROLES
        ]
        return [row for rows in found for row in rows]


def choose_parents(parents: Dataset, reference_source: str, target_source: str, seed: int) -> Children:
    """Return a child for each usable target of a source.

    Rows that a training does not use by default have no part: such as those with hands that nobody has labelled.

    Args:
        parents: Dataset of both sources.
        reference_source: Source of the looks.
        target_source: Source of the poses.
        seed: Seed of the choice of references.

    Raises:
        UsageError: The dataset has no such source, a source has no usable sample, or the two have no split in common.

    """
    references, targets = (_usable(parents, source) for source in (reference_source, target_source))
    pools: dict[tuple[object, ...], list[int]] = {}
    for number, (split, *shown, whole) in enumerate(references.select("split", "right", "left", "whole").iter_rows()):
        for kind in ((*shown, whole), shown, (whole,), ()):
            pools.setdefault((split, *kind), []).append(number)
    hands = targets.group_by("split", "sequence_id", maintain_order=True).agg(
        pl.col("right", "left").any(), pl.len().alias("frames")
    )
    chosen: list[int | None] = []
    without: dict[str, int] = {}
    other_hands = 0
    for split, sequence, right, left, frames in hands.iter_rows():
        # The network would draw the black beside a photograph as part of the looks.
        kinds = ((right, left, True), (right, left), (True,), ())
        pool = next((pools[split, *kind] for kind in kinds if (split, *kind) in pools), None)
        if pool is None:
            without[split] = without.get(split, 0) + frames
        elif (split, right, left) not in pools:
            other_hands += frames
        chosen.append(pool[_draw(seed, split, sequence) % len(pool)] if pool else None)
    if all(number is None for number in chosen):
        splits = " and ".join(sorted(references["split"].unique()))
        raise UsageError(
            f"{reference_source} has samples of {splits} alone, {target_source} of {' and '.join(sorted(without))}",
            "parents are of one split, so that nothing held out is trained on",
        )
    of_sequence = hands.select("split", "sequence_id", reference=pl.Series(chosen, dtype=pl.Int64)).drop_nulls()
    columns = ["dataset", "shard", *_KEYS, *_LICENCE]
    rows = targets.select(
        *("split", "sequence_id", "frame_index", "camera_id"),
        *(pl.col(name).alias(f"target_{name}") for name in columns),
    ).join(of_sequence, on=["split", "sequence_id"], maintain_order="left")
    looks = references.select(pl.col(name).alias(f"reference_{name}") for name in columns).with_row_index("reference")
    rows = rows.join(looks.cast({"reference": pl.Int64}), on="reference", maintain_order="left").drop("reference")
    sequence = pl.format("{}-{}/{}", "reference_source", "target_source", "sequence_id")
    subject = pl.format("{}/{}", "reference_source", "reference_subject_id")
    keys = rows.with_columns(sequence_id=sequence, subject_id=subject)
    ids = [
        record_name(GENERATED, *key)
        for key in keys.select("split", "sequence_id", "frame_index", "camera_id").iter_rows()
    ]
    return Children(keys.with_columns(record_id=pl.Series(ids, dtype=pl.String)), without, other_hands)


def _usable(parents: Dataset, source: str) -> pl.DataFrame:
    """Return the usable samples of a source, sorted, with which hands they show and whether all lies in the image."""
    there = read_manifest(parents).sources
    if source not in there:
        raise UsageError(f"{parents.describe()} has no source {source}", known_names(source, there))
    shards = list_shards(parents, sources=[source])

    def shows(side: int) -> pl.Expr:
        return pl.col("keypoints_valid").arr.to_list().list.slice(21 * side, 21).list.any()

    whole = (pl.col("pad_ltrb").list.max() == 0).alias("whole")
    made = [*map(pl.col, (*_KEYS, *_LICENCE)), shows(0).alias("right"), shows(1).alias("left"), whole]
    none = UsageError(f"{parents.describe()} has no usable sample of {source}", "`handdata report` shows the flags")
    if not shards:
        raise none
    rows = chosen_rows(parents, shards, DataConfig(), [*_KEYS, "keypoints_valid", "pad_ltrb"], made)
    rows = rows.filter(pl.col("right") | pl.col("left"))
    if rows.is_empty():
        raise none
    names = pl.Series([shard.name for shard in shards])
    return rows.select(
        pl.lit(parents.name).alias("dataset"), names[rows["shard"]].alias("shard"), pl.exclude("shard")
    ).sort("split", "sequence_id", "frame_index", "camera_id", "sample_id")


def _draw(seed: int, *names: str) -> int:
    """Return a number below 2^63 that follows from a seed and names."""
    text = "\x1f".join([str(seed), *names])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def noise_number(record: HandRecord) -> int:
    """Return the number of the noise that a child is drawn from: one for all frames of its sequence, as of a video."""
    return _draw(0, record.split, record.sequence_id)


def child_records(parents: Dataset, image_size: int) -> Callable[[pl.DataFrame], pa.Table]:
    """Return a function that makes the records, with ``RECORD_SCHEMA``, of some rows of ``Children.keys``.

    Args:
        parents: Dataset of the targets.
        image_size: Side of the generated images, pixels.

    """
    scale = image_size / read_manifest(parents).image_size

    @lru_cache(_CACHED_SHARDS)
    def labels_of(shard: str) -> tuple[pa.Table, dict[str, int]]:
        table = read_samples(parents.storage, Shard(shard, "", "train", ""), _LABELS)
        return table, {name: number for number, name in enumerate(table["sample_id"].to_pylist())}

    def record_of(key: Row) -> HandRecord:
        table, places = labels_of(key["target_shard"])
        (target,) = table.slice(places[key["target_sample_id"]], 1).to_pylist()
        return _child_record(key, target, image_size, scale)

    return lambda keys: records_to_table([record_of(key) for key in keys.iter_rows(named=True)])


def _child_record(key: Row, target: Row, image_size: int, scale: float) -> HandRecord:
    points = (np.array(target["keypoints_2d"], np.float64).reshape(-1, 2) + 0.5) * scale - 0.5
    valid = np.array(target["keypoints_valid"]) & inside(points, image_size, image_size)
    right, left = (_unseen(state) for state in target["hand_state"])
    camera_k = target["camera_k"]
    if camera_k is not None:
        shift = (scale - 1) / 2
        camera_k = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]]) @ np.reshape(camera_k, (3, 3))
    parents: dict[Role, Parent] = {
        role: Parent(
            **{
                name: key[f"{role}_{name}"]
                for name in ("dataset", "shard", "sample_id", "record_id", "source", "sequence_id", "subject_id")
            }
        )
        for role in ROLES
    }
    attributes = json.loads(target["attributes"]) if target["attributes"] else {}
    return HandRecord(
        source=GENERATED,
        **{name: key[name] for name in ("split", "sequence_id", "frame_index", "camera_id", "subject_id")},
        **{name: target[name] for name in ("timestamp_s", "viewpoint", "camera_t_world", "camera_model")},
        camera_dist=target["camera_dist"],
        camera_k=camera_k,
        image_uri=f"{GENERATED}:{key['record_id']}",
        width=image_size,
        height=image_size,
        keypoints_valid=valid,
        keypoints_2d=points,
        keypoints_3d=target["keypoints_3d"],
        hand_state=hand_states(valid, (right, left)),
        attributes=attributes | {role: parent.record_id for role, parent in parents.items()},
        extra=parents_as_extra(parents),
    )


def _unseen(state: HandState) -> HandState:
    """Return the state of a hand without a joint in the image."""
    return "unknown" if state == "labelled" else state


def binding_licence(licences: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Return the licence and its id that bind what is made under some: the more restrictive one, or all of them."""
    texts = {license_id: licence for licence, license_id in licences}
    binding = more_restrictive(list(texts))
    return texts.get(binding) or "; ".join(texts[name] for name in sorted(texts)), binding


def _licence_of(row: Row) -> tuple[str, str]:
    return row["license"], row["license_id"] or license_id_of(row["license"])


def require_pose(record: HandRecord) -> None:
    """Check that a child's pose has a joint in its image.

    Raises:
        RecordError: It has none: its target shows one at the very edge.

    """
    if not record.keypoints_valid.any():
        raise RecordError(RejectReason.HAND_OUTSIDE_IMAGE, "no joint of the target lies in the generated image")


def require_mask(target: Row) -> None:
    """Check that a target's mask, where it has one, can be decoded.

    Raises:
        RecordError: It cannot.

    """
    _mask_at(target["hand_mask"], 1)


def child_sample(
    record: HandRecord, unit_id: str, image: ByteArray, rows: Mapping[Role, Row], annotator_hash: str, jpeg_quality: int
) -> AnnotatedSample:
    """Return the row of a generated image, without the flags that follow from its numbers.

    Args:
        record: Record that planned it.
        unit_id: Unit of the plan.
        image: (S, S, 3) RGB, S the width of the record.
        rows: Samples that are its parents, with all columns; of the reference ``license`` and ``license_id`` are used.
        annotator_hash: Hash of all that decides what images are generated.
        jpeg_quality: Quality of the stored image.

    """
    target, size = rows["target"], record.width
    keypoints, valid = record.keypoints_2d, record.keypoints_valid
    mask = _mask_at(target["hand_mask"], size)
    licence, license_id = binding_licence(map(_licence_of, rows.values()))
    right, left = (_size_of(record, hand_rows(side)) for side in SIDES)
    return AnnotatedSample(
        sample_id=record.record_id,
        unit_id=unit_id,
        license=licence,
        license_id=license_id,
        handdata_version=__version__,
        attributes=record.attributes,
        image=EncodedImage(bytes=encode_jpeg(image, jpeg_quality)),
        hand_mask=None if mask is None else EncodedImage(bytes=encode_png(mask)),
        hand_state=record.hand_state,
        keypoints_2d=keypoints,
        keypoints_valid=valid,
        keypoints_origin=tuple(target["keypoints_origin"]),
        keypoints_score=Pair(*target["keypoints_score"]),
        agreement_px=(None, None),
        hand_px=Pair(right, left),
        mask_origin=None if mask is None else target["mask_origin"],
        mask_extent=None if mask is None else target["mask_extent"],
        mask_score=None if mask is None else mask_score(mask, keypoints, valid),
        mask_spill=None if mask is None else mask_spill(mask, keypoints, valid),
        sharpness=sharpness(image, keypoints, valid),
        contrast=contrast(image, keypoints, valid, np.zeros((size, size), np.bool_), 1.0),
        phash=perceptual_hash(image),
        crop_xyxy=(0, 0, size, size),
        pad_ltrb=(0, 0, 0, 0),
        crop_mode=target["crop_mode"],
        camera_k=record.camera_k,
        flags=tuple(sorted(_KEPT_FLAGS & set(target["flags"]))),
        annotator_hash=annotator_hash,
        **{name: getattr(record, name) for name in COPIED_COLUMNS},
    )


def _size_of(record: HandRecord, rows: slice) -> float:
    keypoints: FloatArray = record.keypoints_2d[rows]
    return hand_size(keypoints, record.keypoints_valid[rows])


def _mask_at(stored: Mapping[str, Any] | None, size: int) -> BoolArray | None:
    """Return a stored mask at another size.

    Raises:
        RecordError: It cannot be decoded.

    """
    if stored is None:
        return None
    mask = cv2.imdecode(np.frombuffer(stored["bytes"], np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise RecordError(RejectReason.MASK_UNREADABLE, "the target's mask cannot be decoded")
    shrinks = mask.shape[0] >= size
    return np.asarray(
        cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR) >= 128
    )
