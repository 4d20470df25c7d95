"""Where a record's picture, keypoints, sides and mask come from, and what became of it."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from handdata.adapters.registry import known_cards
from handdata.pictures.drawing import MASK_COLOUR, draw_keypoints, fit, tile
from handdata.pipeline.annotation.crop import CropSquare
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.records.provenance import absolute_uri
from handdata.pipeline.records.stored import ingested_sources, read_ingest_summary
from handdata.pipeline.records.tombstones import dropped_sources, read_tombstones
from handdata.pipeline.report.sheets import draw_sample
from handdata.pipeline.settings import FLAG_THRESHOLDS
from handdata.pipeline.shards.manifest import find_manifest, read_manifest
from handdata.pipeline.shards.markers import read_marker, read_markers
from handdata.pipeline.shards.plan import PlannedUnit, planned_sources, read_unit, stored_units
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import list_datasets
from handdata.schemas import (
    SIDES,
    DatasetManifest,
    HandRecord,
    RecordError,
    StorageError,
    UnitMarker,
    UsageError,
    hand_rows,
)
from handdata.schemas.arrays import ByteArray

_PICTURE_PX: Final = 512
_CROPS: Final = {"frame": "a square of this frame", "stable": "one square for a run of frames"}
_FRAME_COLUMNS: Final = (
    *("source", "split", "sequence_id", "frame_index", "camera_id", "subject_id", "origin_id"),
    *("image_uri", "video_frame", "width", "height"),
)
_MOST_COMPARED: Final = 5000
"""Most ids among which the nearest to one that is not there is looked for."""


@dataclass(frozen=True, slots=True)
class Origins:
    """What is known of one record.

    Args:
        record_id: Its id.
        state: What became of it, in a few words.
        facts: What is known, by what it is about.
        picture: The full image with its labels and the square, and the crop with its labels (H, W, 3); None where
            neither can be opened.

    """

    record_id: str
    state: str
    facts: Mapping[str, str]
    picture: ByteArray | None = None


@dataclass(slots=True)
class _Search:
    """The search for an id in tables of records, by the bounds of their row groups.

    Args:
        record_id: The id.
        near: Ids of row groups that may hold it or that are next to it.

    """

    record_id: str
    near: list[str] = field(default_factory=list)

    def row_groups(self, file: pq.ParquetFile) -> list[int]:
        """Return the row groups of a table that hold the id; note the ids near it."""
        position = file.schema_arrow.get_field_index("record_id")
        bounds = [file.metadata.row_group(group).column(position).statistics for group in range(file.num_row_groups)]
        may_hold = []
        below: tuple[str, int] | None = None
        above: tuple[str, int] | None = None
        for group, bound in enumerate(bounds):
            if bound is None or not bound.has_min_max or bound.min <= self.record_id <= bound.max:
                may_hold.append(group)
            elif bound.max < self.record_id:
                below = max(below or ("", group), (bound.max, group))
            else:
                above = min(above or (bound.min, group), (bound.min, group))
        next_to = [group for _, group in filter(None, (below, above))]
        found = []
        for group in sorted({*may_hold, *next_to}):
            ids = file.read_row_group(group, ["record_id"])["record_id"].to_pylist()
            if self.record_id in ids:
                found.append(group)
            elif len(self.near) < _MOST_COMPARED:
                self.near += [text for text in ids if isinstance(text, str)]
        return found


def find_origins(dataset: Dataset, record_id: str) -> Origins:
    """Return where a record of a dataset comes from.

    It is looked for among the dataset's planned records, then among all ingested ones, rejected ones and dropped ones.

    Raises:
        UsageError: There is no such dataset, or no record has this id; the hint names one that nearly has it.
        StorageError: A file is missing or damaged.

    """
    search = _Search(record_id)
    manifest = find_manifest(dataset)
    if unit := _planned(dataset, search):
        return _of_unit(dataset, unit, record_id, manifest)
    for marker in read_markers(dataset):  # a copy of a dataset may lack the plan
        if sample := _sample(dataset, marker, search):
            facts = _facts_of_frame(sample, _root(manifest, marker.source)) | _facts_of_sample(
                sample, None, manifest, dataset, marker
            )
            return Origins(record_id, "annotated", facts, _picture(None, sample, facts))
    storage = dataset.storage
    for source in ingested_sources(storage):
        summary = read_ingest_summary(storage, source)
        for name in summary.files:
            with storage.open_parquet(name) as file:
                if search.row_groups(file):
                    return Origins(record_id, f"ingested from {source}, not planned: `handdata annotate`", {})
        if rejected := _rejected(storage, summary.rejected_files, record_id):
            return Origins(record_id, "rejected by ingest", _why(rejected))
    for source in dropped_sources(storage):
        if record_id in read_tombstones(storage, source).values("record"):
            return Origins(record_id, "dropped for good (`handdata drop`)", {"source": source})
    require_sources(dataset)
    close = get_close_matches(record_id, search.near[:_MOST_COMPARED], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "the column record_id of the samples has them"
    raise UsageError(f"{dataset.describe()} has no record {record_id!r}", hint)


def require_sources(dataset: Dataset) -> list[str]:
    """Return the sources of which there are samples in a dataset, or records beside it, sorted.

    Raises:
        UsageError: There are none, or only other datasets.

    """
    manifest, ingested = find_manifest(dataset), ingested_sources(dataset.storage)
    if manifest is None and not planned_sources(dataset) and (not ingested or list_datasets(dataset.storage)):
        manifest = read_manifest(dataset)
    return sorted({*ingested, *(manifest.sources if manifest else ())})


def _planned(dataset: Dataset, search: _Search) -> PlannedUnit | None:
    """Return the planned unit that has a record, None where none has."""
    for source in planned_sources(dataset):
        units = {(unit.plan_file, unit.row_group): unit for unit in stored_units(dataset, source)}
        for name in dict.fromkeys(name for name, _ in units):
            with dataset.storage.open_parquet(name) as file:
                for group in search.row_groups(file):
                    if unit := units.get((name, group)):
                        return unit
    return None


def _of_unit(dataset: Dataset, unit: PlannedUnit, record_id: str, manifest: DatasetManifest | None) -> Origins:
    storage = dataset.storage
    record = next(row for row in read_unit(storage, unit, _root(manifest, unit.source)) if row.record_id == record_id)
    whole = record if isinstance(record, HandRecord) else None
    facts = _facts_of_frame({name: getattr(whole, name) for name in _FRAME_COLUMNS}) if whole else {}
    marker = read_marker(dataset, unit)
    if marker is None:
        return Origins(record_id, "planned, not annotated yet", facts, _picture(whole, None, facts))
    if rejected := _rejected(storage, marker.rejected_files, record_id):
        facts = _why(rejected) | facts
        return Origins(record_id, "rejected by annotate", facts, _picture(whole, None, facts))
    sample = _sample(dataset, marker, _Search(record_id))
    if sample is None:
        return Origins(record_id, "neither a sample nor rejected: was it dropped?", facts)
    facts |= _facts_of_sample(sample, whole, manifest, dataset, marker)
    return Origins(record_id, "annotated", facts, _picture(whole, sample, facts))


def _root(manifest: DatasetManifest | None, source: str) -> str | None:
    """Return the folder of a source's dataset; None where the manifest says none, as in format version 1."""
    return (manifest.roots.get(source) if manifest else None) or None


def _sample(dataset: Dataset, marker: UnitMarker, search: _Search) -> dict[str, Any] | None:
    """Return the sample of a record with the file that holds it, None where the unit has none."""
    for name in map(dataset.path, marker.files):
        with dataset.storage.open_parquet(name) as file:
            for group in search.row_groups(file):
                rows = file.read_row_group(group)
                found: dict[str, Any] = rows.filter(pc.equal(rows["record_id"], search.record_id)).to_pylist()[0]
                return found | {"file": name}
    return None


def _rejected(storage: Storage, files: Iterable[str], record_id: str) -> dict[str, Any] | None:
    for name in files:
        table = storage.read_parquet(name)
        for row in table.filter(pc.equal(table["record_id"], record_id)).to_pylist():
            return dict(row)
    return None


def _why(rejected: Mapping[str, Any]) -> dict[str, str]:
    return {"reason": rejected["reason"], "detail": rejected["detail"], "picture": rejected["image_uri"]}


def _facts_of_frame(row: Mapping[str, Any], root: str | None = None) -> dict[str, str]:
    """Return what a record, or a sample whose URIs are relative to ``root``, says of its frame."""
    card = known_cards().get(row["source"])
    frame = "" if row["video_frame"] is None else f", frame {row['video_frame']} of the video"
    image = absolute_uri(row["image_uri"], root or "")
    facts = {
        "picture": f"{image}{frame}, {row['width']} x {row['height']} px",
        "dataset": f"{card.title if card else row['source']}, split {row['split']}",
        "frame": f"sequence {row['sequence_id']}, frame {row['frame_index']}, camera {row['camera_id']}",
    }
    if row["subject_id"] is not None:
        facts["person"] = row["subject_id"]
    if row["origin_id"] is not None:
        facts["the same frame upstream"] = row["origin_id"]
    return facts


def _facts_of_sample(
    sample: Mapping[str, Any],
    record: HandRecord | None,
    manifest: DatasetManifest | None,
    dataset: Dataset,
    marker: UnitMarker,
) -> dict[str, str]:
    release = f", release {sample['source_release']}" if sample.get("source_release") else ""
    facts = {"licence": f"{sample['license']}{release}"}
    for side, place in zip(SIDES, (0, 1), strict=True):
        facts[f"{side} hand"] = _hand(sample, record, place)
    facts["mask"] = _mask(sample)
    in_space = "the dataset's joints in the camera's frame" if sample["keypoints_3d"] else "no joints"
    facts["space"] = f"{in_space}; {'its camera' if sample['camera_k'] else 'no camera'}"
    square = ", ".join(f"{edge:.1f}" for edge in sample["crop_xyxy"])
    facts["crop"] = f"{_CROPS[sample['crop_mode']]}, edges {square} in the full image"
    facts["flags"] = ", ".join(_flag(name, sample, marker) for name in sample["flags"]) or "none"
    annotator = (manifest.annotator_hashes if manifest else {}).get(sample["annotator_hash"], {})
    facts["settings"] = f"{sample['annotator_hash']}: {_listed(annotator.get('settings'))}"
    facts["model files (SHA-256)"] = _listed(annotator.get("models"))
    facts["made by"] = f"handdata {sample.get('handdata_version') or '(a first version)'}, unit {sample['unit_id']}"
    facts["stored in"] = dataset.storage.describe(sample["file"])
    return facts


def _hand(sample: Mapping[str, Any], record: HandRecord | None, place: int) -> str:
    """Return who made the keypoints of a hand, and who says which side it is."""
    origin, score = sample["keypoints_origin"][place], sample["keypoints_score"][place]
    state = record.hand_state[place] if record else sample["hand_state"][place]
    said = {
        "labelled": "the dataset labels it",
        "absent": "the dataset says that it is not there",
        "unknown": "the dataset says nothing of it",
    }[state]
    if origin is None:
        return f"none: {said}, and none was found" if state != "absent" else f"none: {said}"
    valid = int(np.count_nonzero(sample["keypoints_valid"][hand_rows(SIDES[place])]))
    if origin == "mediapipe":
        return (
            f"{valid} keypoints found by MediaPipe (confidence {score:.2f}), which names the side, agreed on along its "
            f"run and with the other views; {said}"
        )
    named = record is not None and (record.extra or {}).get("side") == "unknown"
    by = "; its side is MediaPipe's" if named else "; its side is the dataset's"
    agreement = sample["agreement_px"][place]
    beside = "" if agreement is None else f"; MediaPipe's are {agreement:.1f} px of the crop apart"
    return f"{valid} keypoints of the dataset's label{by}{beside}"


def _mask(sample: Mapping[str, Any]) -> str:
    origin = sample["mask_origin"]
    if origin is None:
        return "none"
    made = {"dataset": "the dataset's own", "grabcut": "GrabCut, seeded by the keypoints"}
    told = made.get(origin, f"Segment Anything ({origin}), prompted by the keypoints")
    covers = str(sample["mask_extent"]).replace("_", " and ")
    score = "" if sample["mask_score"] is None else f", {sample['mask_score']:.0%} of the keypoints inside"
    spill = "" if sample["mask_spill"] is None else f", {sample['mask_spill']:.1%} of it away from the hands"
    return f"{told}; covers {covers}{score}{spill}"


def _flag(name: str, sample: Mapping[str, Any], marker: UnitMarker) -> str:
    threshold = {str(flag): setting for flag, setting in FLAG_THRESHOLDS.items()}.get(name, "")
    return f"{name} ({threshold} {marker.thresholds[threshold]:g})" if threshold in marker.thresholds else name


def _listed(settings: object) -> str:
    if not isinstance(settings, Mapping) or not settings:
        return "none"
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value not in ({}, [], None))


def _picture(record: HandRecord | None, sample: Mapping[str, Any] | None, facts: dict[str, str]) -> ByteArray | None:
    """Return full image and crop side by side; where the full image cannot be opened, ``facts`` say why."""
    pictures, captions = [], []
    if record is not None:
        try:
            full = open_full(record)
        except (RecordError, StorageError) as error:
            facts["full image"] = f"cannot be opened: {error}"
        else:
            drawn = draw_keypoints(full, record.keypoints_2d, record.keypoints_valid)
            pictures.append(fit(_with_square(drawn, sample), _PICTURE_PX, _PICTURE_PX))
            captions.append("full image: the dataset's labels" + (", and the square" if sample else ""))
    if sample is not None:
        pictures.append(draw_sample(sample, _PICTURE_PX))
        captions.append("crop: keypoints, mask and flags of the sample")
    return tile(pictures, 2, 10, captions) if pictures else None


def open_full(record: HandRecord) -> ByteArray:
    """Return the full image of a record (height, width, 3).

    Raises:
        RecordError: It is missing or damaged.
        StorageError: Its disk or server is away.

    """
    ((_, image),) = open_frames([record])
    if isinstance(image, RecordError):
        raise image
    return image


def _with_square(image: ByteArray, sample: Mapping[str, Any] | None) -> ByteArray:
    if sample is None:
        return image
    size = Image.open(io.BytesIO(sample["image"]["bytes"])).width
    square = CropSquare.from_xyxy(tuple(sample["crop_xyxy"]), size)
    corners = (square.left, square.top), (square.left + square.side - 1, square.top + square.side - 1)
    width = max(1, round(max(image.shape[:2]) / 200))
    return np.asarray(cv2.rectangle(image.copy(), *corners, MASK_COLOUR, width), dtype=np.uint8)
