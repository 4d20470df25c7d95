"""COCO's keypoint format, as COCO-WholeBody has its hands, and as FiftyOne imports it.

``coco``::

    images/<split>/<source>/<sequence>/<frame>-<camera>.jpg
    annotations/hands_<split>.json      each image has one annotation, with the fields of COCO-WholeBody

``fiftyone``, a dataset of the type ``COCODetectionDataset`` for each split::

    <split>/data/<source>/<sequence>/<frame>-<camera>.jpg
    <split>/labels.json                 each image has one annotation of 42 keypoints; the category has the skeleton
    load.py                             makes one dataset of FiftyOne of all splits, with the skeleton set

The category is ``hands`` in both: the run-length mask is that of the hands, not of the person. Visibility is 2 for each
keypoint that there is. Images name their licence by its number in ``licenses``.

A unit writes its part of the annotations beside its marker; the last step joins the parts, one at a time.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from handdata._version import __version__
from handdata.jobs.exports.documents import PARTS, ExportedShard
from handdata.jobs.exports.rows import (
    Row,
    frame_name,
    image_size,
    keypoints_of,
    license_id,
    mask_of,
    naming_rows,
    path_name,
    rows_of,
    shortest,
)
from handdata.pipeline.shards import Shard
from handdata.pipeline.storage import Storage
from handdata.schemas import KEYPOINT_NAMES, SIDES, SKELETON_EDGES, SPLITS, hand_rows
from handdata.schemas.arrays import BoolArray, FloatArray

_CATEGORY: Final = 1
_SEEN: Final = 2
"""COCO's visibility of a keypoint that is labelled and seen."""
_OTHER_PARTS: Final = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68}
"""Keypoints of COCO-WholeBody that are not those of hands, and are not labelled here."""
_DESCRIPTION: Final = "Crops around hands by handdata; segmentations are masks of the hands"


_LOADER: Final = '''"""Make a dataset of FiftyOne of this folder: python load.py [NAME]"""

import json
import sys
from pathlib import Path

import fiftyone as fo

folder = Path(__file__).resolve().parent
dataset = fo.Dataset(sys.argv[1] if len(sys.argv) > 1 else "hands", overwrite=True, persistent=True)
for labels in sorted(folder.glob("*/labels.json")):
    dataset.add_dir(
        dataset_dir=str(labels.parent),
        dataset_type=fo.types.COCODetectionDataset,
        label_types=["segmentations", "keypoints"],
        tags=labels.parent.name,
    )
category = json.loads(labels.read_bytes())["categories"][0]
dataset.default_skeleton = fo.KeypointSkeleton(
    labels=category["keypoints"], edges=[[first - 1, second - 1] for first, second in category["skeleton"]]
)
dataset.save()
print(f"fiftyone app launch {dataset.name}: {len(dataset)} samples")
'''
"""FiftyOne's reader of COCO's format passes over the skeleton."""


@dataclass(frozen=True, slots=True)
class CocoFormat:
    """Images and label files of one of the two layouts.

    Args:
        image_folder: Folder of the images of a split.
        labels: Label file of a split.
        is_whole_body: Whether annotations have COCO-WholeBody's fields; else 42 keypoints in one list.

    """

    image_folder: str
    labels: str
    is_whole_body: bool

    def file_names(self, shard: Shard, chosen: pl.DataFrame) -> list[str]:
        """Return the names of the files of the chosen samples of a shard."""
        return [self._image(row) for row in naming_rows(chosen)] + [_part_of(shard)]

    def encode(self, shard: Shard, tables: Iterable[pa.Table]) -> Iterator[tuple[str, bytes]]:
        """Yield the files of samples with their content."""
        entries = []
        for table in tables:
            for row in rows_of(table):
                yield self._image(row), row["image"]["bytes"]
                entries.append(self._entry(row))
        yield _part_of(shard), json.dumps(entries).encode()

    def join(self, out: Storage, exported: Sequence[ExportedShard]) -> None:
        """Write the label file of each split from the parts of its shards, and remove those of other splits."""
        ids = sorted({name for shard in exported for name in shard.licences})
        head = {
            "info": {"description": _DESCRIPTION, "version": __version__},
            "licenses": [{"id": number, "name": name, "url": ""} for number, name in enumerate(ids, start=1)],
            "categories": [self._category()],
        }
        splits = {shard.split for shard in exported}
        out.remove_many(self.labels.format(split=split) for split in set(SPLITS) - splits)  # the dataset's no more
        for split in sorted(splits):
            parts = [_part_file(shard.source, shard.name) for shard in exported if shard.split == split]
            with out.open_output(self.labels.format(split=split)) as stream:
                stream.write(json.dumps(head).encode()[:-1])
                for kind in ("images", "annotations"):
                    stream.write(f', "{kind}": ['.encode())
                    number = 0
                    for part in parts:
                        for entry in json.loads(out.read_bytes(part)):
                            document = _numbered(kind, entry, number + 1, ids)
                            stream.write(b",\n" * bool(number) + json.dumps(document).encode())
                            number += 1
                    stream.write(b"]")
                stream.write(b"}\n")
        if self.is_whole_body:
            return
        if splits:
            out.write_bytes("load.py", _LOADER.encode())
        else:
            out.remove("load.py")

    def _image(self, row: Row) -> str:
        return f"{self.image_folder.format(split=row['split'])}/{self._file_name(row)}"

    def _file_name(self, row: Row) -> str:
        place = f"{path_name(row['source'])}/{path_name(row['sequence_id'])}/{frame_name(row)}.jpg"
        return f"{row['split']}/{place}" if self.is_whole_body else place

    def _entry(self, row: Row) -> dict[str, Any]:
        """Return image and annotation of a sample, without the numbers that the joined file gives them."""
        keypoints, valid = keypoints_of(row)
        width, height = image_size(row)
        mask = mask_of(row)
        box = _box(keypoints[valid]) if mask is None or not mask.any() else _box(np.argwhere(mask)[:, ::-1], 1)
        annotation: dict[str, Any] = {
            "iscrowd": 0,
            "bbox": box,
            "area": round(box[2] * box[3], 2) if mask is None else int(mask.sum()),
            "segmentation": [] if mask is None else _run_lengths(mask),
            "num_keypoints": int(valid.sum()),
        }
        if self.is_whole_body:
            annotation |= _whole_body(keypoints, valid)
        else:
            annotation["keypoints"] = _triples(keypoints, valid)
        image = {
            "file_name": self._file_name(row),
            "width": width,
            "height": height,
            "license": license_id(row),
            **{name: row[name] for name in ("sample_id", "source", "sequence_id", "frame_index", "camera_id")},
            "flags": row["flags"],
        }
        return {"images": image, "annotations": annotation}

    def _category(self) -> dict[str, Any]:
        category: dict[str, Any] = {"id": _CATEGORY, "name": "hands", "supercategory": "person"}
        if self.is_whole_body:
            return category
        skeleton = [[first + 1, second + 1] for first, second in SKELETON_EDGES]  # COCO counts from 1
        return category | {"keypoints": list(KEYPOINT_NAMES), "skeleton": skeleton}


WHOLE_BODY: Final = CocoFormat("images", "annotations/hands_{split}.json", is_whole_body=True)
FIFTYONE: Final = CocoFormat("{split}/data", "{split}/labels.json", is_whole_body=False)


def _part_of(shard: Shard) -> str:
    return _part_file(shard.source, shard.stem)


def _part_file(source: str, name: str) -> str:
    return f"{PARTS}/source={source}/{name}.json"


def _numbered(kind: str, entry: dict[str, Any], number: int, licences: Sequence[str]) -> dict[str, Any]:
    """Return an image or annotation with its number in the label file."""
    if kind == "images":
        return {"id": number, **entry[kind], "license": licences.index(entry[kind]["license"]) + 1}
    return {"id": number, "image_id": number, "category_id": _CATEGORY, **entry[kind]}


def _whole_body(keypoints: FloatArray, valid: BoolArray) -> dict[str, Any]:
    fields: dict[str, Any] = {name: [0] * 3 * count for name, count in _OTHER_PARTS.items()}
    fields |= {"face_box": [0.0] * 4, "face_valid": False, "foot_valid": False}
    for side in SIDES:
        points, known = keypoints[hand_rows(side)], valid[hand_rows(side)]
        fields[f"{side}hand_kpts"] = _triples(points, known)
        fields[f"{side}hand_box"] = _box(points[known])
        fields[f"{side}hand_valid"] = bool(known.any())
    return fields


def _triples(keypoints: FloatArray, valid: BoolArray) -> list[float]:
    """Return x, y and visibility of each keypoint in one list."""
    flat: list[float] = []
    for (x, y), known in zip(shortest(keypoints), valid, strict=True):
        flat += [x, y, _SEEN if known else 0]
    return flat


def _box(points: NDArray[np.number], pixel: float = 0) -> list[float]:
    """Return x, y, width and height of the box of points, zeros of none.

    Args:
        points: Points (N, 2).
        pixel: Side of what a point stands for.

    """
    if not len(points):
        return [0.0] * 4
    low, high = points.min(axis=0), points.max(axis=0)
    return [round(float(value), 2) for value in (*low, *(high - low + pixel))]


def _run_lengths(mask: BoolArray) -> dict[str, Any]:
    """Return COCO's run lengths of a mask, column by column, those of zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
