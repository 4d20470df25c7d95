"""A dataset's metadata in Croissant's format (https://docs.mlcommons.org/croissant), with its vocabulary for
responsible AI: what search engines of datasets read, and what loaders such as ``mlcroissant`` open the shards by.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

import pyarrow as pa

from handdata.pipeline.report.card import TITLE, count_samples, known_faults, whom_to_cite
from handdata.pipeline.report.labels import Labels, terms_of_labels
from handdata.schemas import SAMPLE_SCHEMA, SOURCE_CARDS, SPLITS, DatasetManifest, SourceCard
from handdata.schemas.dictionary import COLUMNS
from handdata.schemas.sample import PIXEL_COLUMNS
from handdata.schemas.terms import Terms

_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""Croissant's own context, as its specification has it."""

_VERSIONS: Final = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
_SHARDS: Final = "data/source=*/split=*/*.parquet"
_FILES: Final = "shards"
_TOOLS: Final = {
    "mediapipe": "MediaPipe hand landmarker",
    "grabcut": "GrabCut (OpenCV)",
    "sam_vit_h": "Segment Anything, ViT-H",
    "sam_vit_l": "Segment Anything, ViT-L",
    "sam_vit_b": "Segment Anything, ViT-B",
}
"""What made labels that are not the dataset's."""


def croissant(
    manifest: DatasetManifest,
    labels: Mapping[str, Labels],
    made_on: date,
    *,
    cards: Mapping[str, SourceCard] = SOURCE_CARDS,
    url: str = "",
) -> dict[str, Any]:
    """Return the metadata of a dataset as JSON-LD, for a file beside its manifest.

    Args:
        manifest: The manifest.
        labels: Labels by source, from ``read_labels``.
        made_on: Day on which the metadata was made.
        cards: Cards of the sources by name.
        url: Where the dataset lies; empty where that is nobody else's to know.

    """
    terms = terms_of_labels(manifest, labels, cards)
    tools = {_TOOLS[name] for of in labels.values() for name in _makers(of) if name in _TOOLS}
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _VERSIONS,
        "name": TITLE,
        "description": (
            f"{count_samples(manifest):,} pictures of {manifest.image_size} x {manifest.image_size} px around hands, "
            f"from {', '.join(sorted(manifest.sources))}, with keypoints and masks. README.md has the whole card."
        ),
        "license": [_licence(of_source) for of_source in terms],
        "usageInfo": [f"{of.source}: {' '.join(of.obligations)}" for of in terms if of.obligations],
        "creator": {"@type": "sc:Organization", "name": f"handdata {manifest.handdata_version}"},
        "citeAs": "; ".join(whom_to_cite(terms)),
        "datePublished": made_on.isoformat(),
        "version": f"{manifest.format_version}.0.0",
        "keywords": ["hands", "hand pose", *sorted(manifest.sources)],
        "url": url or "https://arxiv.org/abs/2412.02690",
        "rai:machineAnnotationTools": sorted(tools),
        "rai:dataAnnotationProtocol": (
            "Keypoints are the source's own or MediaPipe's (column keypoints_origin), masks the source's, SAM's or "
            "GrabCut's (column mask_origin); README.md has their shares and what they measure."
        ),
        "rai:dataLimitations": [
            f"{name}: {' '.join(faults)}" for name, faults in known_faults(manifest, cards).items()
        ],
        "distribution": [
            {"@type": "cr:FileSet", "@id": _FILES, "name": _FILES, "encodingFormat": "application/x-parquet"}
            | {"description": "Parquet files of samples, with the images inside.", "includes": _SHARDS}
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "splits",
                "name": "splits",
                "dataType": "cr:Split",
                "key": {"@id": "splits/name"},
                "field": [{"@type": "cr:Field", "@id": "splits/name", "name": "splits/name", "dataType": "sc:Text"}],
                "data": [{"splits/name": split} for split in SPLITS],
            },
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "One row a picture around the hands of one frame.",
                "key": {"@id": "samples/sample_id"},
                "field": [_field(column) for column in SAMPLE_SCHEMA],
            },
        ],
    }
    return {name: value for name, value in document.items() if value not in ([], "")}


def _makers(labels: Labels) -> set[str]:
    return {*labels.keypoints, *(origin for origin, _ in labels.masks)}


def _licence(terms: Terms) -> str:
    """Return the address of a licence, or of the page that has it, else its name."""
    if not terms.license_id.startswith("LicenseRef-"):
        return f"https://spdx.org/licenses/{terms.license_id}.html"
    return terms.homepage or terms.licence


def _field(column: pa.Field) -> dict[str, Any]:
    """Return a column as a field of a record set."""
    name, told = f"samples/{column.name}", COLUMNS[column.name]
    unit = f" ({told.unit})" if told.unit else ""
    source: dict[str, Any] = {"fileSet": {"@id": _FILES}, "extract": {"column": column.name}}
    if column.name in PIXEL_COLUMNS:
        source["transform"] = {"jsonPath": "bytes"}
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": f"{told.meaning}{unit}".replace("`", ""),
        "dataType": _data_type(column),
        "source": source,
    }
    if column.name == "split":
        field["references"] = {"field": {"@id": "splits/name"}}
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        field["repeated"] = True
    return field


def _data_type(column: pa.Field) -> str:
    if column.name in PIXEL_COLUMNS:
        return "sc:ImageObject"
    value = column.type
    if pa.types.is_list(value) or pa.types.is_fixed_size_list(value) or pa.types.is_dictionary(value):
        value = value.value_type
    if pa.types.is_boolean(value):
        return "sc:Boolean"
    if pa.types.is_integer(value):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(value) else "sc:Text"
