"""The data dictionary: shape, unit, meaning and an example of each column of samples, as ``docs/shards.md`` shows them.

``python -m handdata.schemas.dictionary docs/shards.md`` writes the table anew; a test compares it with the schema.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from handdata.schemas.sample import SAMPLE_SCHEMA

BEGIN: Final = "<!-- columns: written by `make docs` -->"
END: Final = "<!-- end of columns -->"


@dataclass(frozen=True, slots=True)
class Column:
    """What the dictionary says of a column.

    Args:
        shape: Shape of a value, as ``numpy.reshape`` takes it; empty for a single value.
        unit: Unit, or frame of reference.
        meaning: What it holds, and what null means.
        example: A value.

    """

    shape: str
    unit: str
    meaning: str
    example: Any


_ROTATION: Final = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.8, 0.0, 0.0, 0.0, 1.0]

COLUMNS: Final[dict[str, Column]] = {
    "sample_id": Column("", "", "name of the sample, unique in a dataset; never parse it", "rhd/train/00012/000000-0"),
    "record_id": Column(
        "", "", "name of the record that it was made of; equal to it today", "rhd/train/00012/000000-0"
    ),
    "source": Column("", "", "dataset that the image is from, by the name that `--source` takes", "rhd"),
    "split": Column("", "", "`train`, `val` or `test`: the dataset's own split", "train"),
    "sequence_id": Column("", "", "frames that share it and `camera_id` are one video; a still has its own", "00012"),
    "frame_index": Column("", "frames", "the dataset's own frame number; 0 for stills", 0),
    "camera_id": Column("", "", "the dataset's own camera name; `0` where there is one camera", "0"),
    "timestamp_s": Column("", "seconds", "time since the sequence began; null where its rate is unknown", 0.4),
    "subject_id": Column("", "", "who is seen; null where the dataset does not say", "s05"),
    "origin_id": Column(
        "", "", "the same frame's name upstream, where a source repacks another's; else null", "interhand26m/Capture0/7"
    ),
    "viewpoint": Column("", "", "`ego` (a camera on the head) or `exo`", "exo"),
    "hand_state": Column(
        "2",
        "right, left",
        "`labelled`, `absent` (is not there) or `unknown` (nothing is known)",
        ["labelled", "absent"],
    ),
    "image_uri": Column(
        "",
        "",
        "the full image, or the video that holds it: relative to the source's folder in `roots` of the manifest, or an "
        "absolute path or URL",
        "training/color/00012.png",
    ),
    "video_frame": Column("", "frames", "place of the frame in that video, from 0; null for images", 37),
    "width": Column("", "pixels", "width of the full image", 320),
    "height": Column("", "pixels", "height of the full image", 320),
    "camera_model": Column("", "", "`pinhole`, `opencv_rational`, `fisheye` or `orthographic`", "pinhole"),
    "camera_dist": Column(
        "any", "", "distortion coefficients of `camera_model`; null where there are none", [0.1, -0.02]
    ),
    "camera_t_world": Column(
        "(4, 4)", "metres", "world to camera (x right, y down, z forward); null if unknown", _ROTATION
    ),
    "license": Column("", "", "licence of the data, as the source's card or the user says it", "CC BY-NC 4.0"),
    "license_id": Column("", "", "SPDX id of that licence, or a `LicenseRef-`; null in version 1", "CC-BY-NC-4.0"),
    "source_release": Column("", "", "release of the dataset; null where its files do not tell", "1.1"),
    "handdata_version": Column("", "", "version of handdata that made the row; null in version 1", "0.1.0"),
    "attributes": Column(
        "",
        "JSON",
        "what the dataset says beside hands and camera: `gesture`, `gloss`, `action`, `object`; else null",
        '{"gesture": "call"}',
    ),
    "unit_id": Column("", "", "unit of work that wrote the row, and its file", "rhd-train-000-000003"),
    "image": Column(
        "(S, S, 3)",
        "JPEG, RGB",
        "the crop: `bytes` is the file, `path` is null",
        {"bytes": b"\xff\xd8\xff", "path": None},
    ),
    "hand_mask": Column(
        "(S, S)",
        "PNG, 0 or 255",
        "pixels of the hands in the crop; null without a mask",
        {"bytes": b"\x89PNG", "path": None},
    ),
    "keypoints_2d": Column(
        "(42, 2)",
        "crop pixels",
        "x right, y down of each joint, (0, 0) the centre of the top-left pixel; 0, 0 where not valid",
        [96.5, 201.25, *[0.0] * 82],
    ),
    "keypoints_valid": Column("42", "", "whether the joint is annotated and inside the crop", [True, *[False] * 41]),
    "keypoints_origin": Column(
        "2", "right, left", "`dataset` or `mediapipe`; null where there is no hand", ["dataset", None]
    ),
    "keypoints_score": Column(
        "2", "0 to 1", "MediaPipe's confidence, 1 for labels, 0 where absent; right, left", [1.0, 0.0]
    ),
    "agreement_px": Column("2", "crop pixels", "mean distance of labels and MediaPipe, where both exist", [2.5, None]),
    "hand_px": Column("2", "image pixels", "longer side of each hand's keypoint box; 0 where absent", [118.0, 0.0]),
    "mask_origin": Column("", "", "`dataset`, `sam_vit_h` (`_l`, `_b`) or `grabcut`; null without a mask", "grabcut"),
    "mask_extent": Column("", "", "`hand`, `hand_forearm`, `hand_accessory` or `unknown`; null without a mask", "hand"),
    "mask_score": Column("", "share", "valid keypoints inside the mask; null without a mask", 0.95),
    "mask_spill": Column("", "share", "area of the mask far from the hands; null without a mask", 0.02),
    "sharpness": Column("", "grey levels²", "variance of the Laplacian inside the hand box", 210.5),
    "contrast": Column("", "grey levels", "standard deviation of 8 x 8 parts of the hand box; null in old rows", 31.5),
    "phash": Column("", "64 bits", "perceptual hash of the crop, as a signed integer", -6148914691236517206),
    "crop_xyxy": Column(
        "4", "image pixels", "the square: x_image = x0 + x_crop (x1 - x0) / S", [52.0, 60.0, 241.0, 249.0]
    ),
    "pad_ltrb": Column(
        "4", "crop pixels", "how much of the crop lies outside the image; it is black", [0.0, 0.0, 0.0, 12.5]
    ),
    "crop_mode": Column("", "", "`frame`: each frame has its own square; `stable`: one for a run of frames", "frame"),
    "keypoints_3d": Column(
        "(42, 3)",
        "metres",
        "joints in the camera's frame; null where the dataset has none",
        [0.01, 0.02, 0.6, *[0.0] * 123],
    ),
    "camera_k": Column(
        "(3, 3)",
        "crop pixels",
        "intrinsics of the crop; null if unknown",
        [400.0, 0.0, 128.0, 0.0, 400.0, 128.0, 0.0, 0.0, 1.0],
    ),
    "flags": Column("any", "", "judgements of its quality: [quality.md](quality.md) lists them", ["small_hand"]),
    "annotator_hash": Column(
        "", "", "settings and model files that made the row; the manifest has them", "3f9c2a7d51e0b846"
    ),
}
"""The dictionary, in the order of the columns."""


def data_dictionary() -> str:
    """Return the dictionary as a table in Markdown."""
    lines = ["| column | type | shape | unit | what it holds | example |", "| --- | --- | --- | --- | --- | --- |"]
    for field in SAMPLE_SCHEMA:
        told = COLUMNS[field.name]
        cells = (f"`{field.name}`", _type(field), told.shape, told.unit, told.meaning, f"`{_shown(told.example)}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _type(field: pa.Field) -> str:
    kind = str(field.type)
    if pa.types.is_dictionary(field.type):
        kind = "dictionary of string"
    elif pa.types.is_fixed_size_list(field.type):
        kind = f"{field.type.value_type}[{field.type.list_size}]"
    elif pa.types.is_list(field.type):
        kind = f"list of {field.type.value_type}"
    elif pa.types.is_struct(field.type):
        kind = "struct of bytes and path"
    return f"{kind}, null" if field.nullable and field.name != "image" else kind


def _shown(example: Any) -> str:
    if isinstance(example, dict):
        return f"{example['bytes']!r}..."[2:].replace("'", "")
    text = example if isinstance(example, str) else json.dumps(example[:4] if isinstance(example, list) else example)
    return f"{text[:-1]}, ...]" if isinstance(example, list) and len(example) > 4 else text


def with_dictionary(page: str) -> str:
    """Return a page with the dictionary between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{data_dictionary()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_dictionary(path.read_text(encoding="utf-8")), encoding="utf-8")
