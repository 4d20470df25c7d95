"""What the samples of a dataset say of their labels: who made them, and how good they measure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl

from handdata.pipeline.shards import Shard, license_ids, list_shards, read_shard_index
from handdata.pipeline.storage import Dataset
from handdata.schemas import DatasetManifest, SourceCard, license_id_of
from handdata.schemas.terms import Terms, terms_of

MEASURES: Final = ("agreement_px", "mask_score", "mask_spill", "hand_px", "sharpness")
"""Columns whose values say how good a label is."""

LABEL_COLUMNS: Final = (
    "sequence_id",
    "subject_id",
    "source_release",
    "license",
    "license_id",
    "keypoints_origin",
    "keypoints_3d",
    "camera_k",
    "mask_origin",
    "mask_extent",
    *MEASURES,
)
"""Columns of a sample that ``labels_of`` reads."""

_MOST_SHARDS: Final = 32
"""Most shards of a source that are read, chosen at random: with more the shares change little."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a measure is spread over samples or hands.

    Args:
        count: Number of values.
        low: 5th percentile.
        median: Middle value.
        high: 95th percentile.

    """

    count: int
    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of some samples of one source.

    Args:
        samples: Number of samples that were read.
        sequences: Number of their sequences.
        subjects: Number of people who are named.
        releases: Samples by release of the dataset, where its files tell.
        licences: Samples by the id of their licence.
        keypoints: Hands by who made their keypoints: ``dataset`` or ``mediapipe``.
        masks: Samples by who made their mask and what it covers, such as ``("grabcut", "hand")``.
        with_3d: Number of samples with joints in space.
        with_camera: Number of samples with the camera's intrinsics.
        measures: Spread of each of ``MEASURES`` that has values.
        is_all: Whether these are all samples of the source.

    """

    samples: int
    sequences: int
    subjects: int
    releases: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    keypoints: Counter[str] = field(default_factory=Counter)
    masks: Counter[tuple[str, str]] = field(default_factory=Counter)
    with_3d: int = 0
    with_camera: int = 0
    measures: Mapping[str, Spread] = field(default_factory=dict)
    is_all: bool = True


def read_labels(dataset: Dataset, on_shard: Callable[[int, int], None] | None = None) -> dict[str, Labels]:
    """Return the labels of each source of a dataset, from all of its shards or from some that are chosen at random.

    Args:
        dataset: The dataset.
        on_shard: Function called with (shards read, shards to read).

    Raises:
        UsageError: There is no dataset.
        StorageError: A shard is missing or damaged.

    """
    by_source: dict[str, list[Shard]] = {}
    for shard in list_shards(dataset):
        by_source.setdefault(shard.source, []).append(shard)
    generator = np.random.default_rng(0)
    chosen = {
        source: [shards[place] for place in sorted(generator.permutation(len(shards))[:_MOST_SHARDS])]
        for source, shards in by_source.items()
    }
    done, total = 0, sum(map(len, chosen.values()))
    found = {}
    for source, shards in chosen.items():
        frames = []
        for shard in shards:
            frames.append(_flags_for_lists(read_shard_index(dataset.storage, shard, LABEL_COLUMNS)))
            done += 1
            if on_shard:
                on_shard(done, total)
        found[source] = labels_of(pl.concat(frames), is_all=len(shards) == len(by_source[source]))
    return found


def _flags_for_lists(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows in which the two large columns say only whether they hold something."""
    return rows.with_columns(pl.col("keypoints_3d").is_not_null(), pl.col("camera_k").is_not_null())


def labels_of(rows: pl.DataFrame, *, is_all: bool = True) -> Labels:
    """Return the labels of samples of one source.

    Args:
        rows: Their ``LABEL_COLUMNS``; ``keypoints_3d`` and ``camera_k`` may be the values, or whether there are any.
        is_all: Whether they are all samples of the source.

    """
    masks = rows.group_by("mask_origin", "mask_extent").len().rows()
    licences = Counter[str]()
    for licence, license_id, count in rows.group_by("license", "license_id").len().rows():
        licences[license_id or license_id_of(licence)] += count  # format version 1 has names only
    measures = {}
    for name in MEASURES:
        values = rows[name].explode() if isinstance(rows[name].dtype, pl.List) else rows[name]
        values = values.drop_nulls()
        if name == "hand_px":
            values = values.filter(values > 0)
        if len(values):
            low, median, high = np.quantile(values.to_numpy().astype(np.float64), (0.05, 0.5, 0.95)).tolist()
            measures[name] = Spread(len(values), low, median, high)
    return Labels(
        samples=len(rows),
        sequences=rows["sequence_id"].n_unique(),
        subjects=rows["subject_id"].drop_nulls().n_unique(),
        releases=Counter(dict(rows["source_release"].drop_nulls().value_counts().rows())),
        licences=licences,
        keypoints=Counter(rows["keypoints_origin"].explode().drop_nulls().to_list()),
        masks=Counter({(origin, extent): count for origin, extent, count in masks if origin is not None}),
        with_3d=_present(rows["keypoints_3d"]),
        with_camera=_present(rows["camera_k"]),
        measures=measures,
        is_all=is_all,
    )


def terms_of_labels(
    manifest: DatasetManifest, labels: Mapping[str, Labels], cards: Mapping[str, SourceCard]
) -> tuple[Terms, ...]:
    """Return the licences of a dataset: those that its samples name, and the manifest's where not all were read."""
    named = {(source, license_id) for source, of in labels.items() for license_id in of.licences}
    of_manifest = license_ids(manifest).items()
    return terms_of(manifest, cards, named | {one for one in of_manifest if not _is_read(labels.get(one[0]))})


def _is_read(labels: Labels | None) -> bool:
    return labels is not None and labels.is_all


def _present(values: pl.Series) -> int:
    """Return how many values are there; of a column that says whether there are any, how many say so."""
    return int(values.sum() if values.dtype == pl.Boolean else len(values) - values.null_count())
