"""A repository of the Hugging Face Hub: Parquet files with images inside, and a card with features and splits.

    data/<split>/<source>-<unit>.parquet
    README.md                               the card

``load_dataset(FOLDER)`` reads it. The columns are those of the dataset.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa
import yaml

from handdata.jobs.exports.licences import LICENCES_FILE, licences_text
from handdata.pipeline.shards import Shard
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.schemas import SAMPLE_SCHEMA, SPLITS, DatasetManifest, RunError, UsageError
from handdata.schemas.dictionary import data_dictionary
from handdata.schemas.sample import PIXEL_COLUMNS, ROW_GROUP_ROWS

CARD_FILE: Final = "README.md"

_HUB_SPLITS: Final = {"train": "train", "val": "validation", "test": "test"}
_SIZES: Final = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""The Hub's categories of sizes, a power of ten each."""
_CLIENTS: Final = ("httpx", "httpcore", "huggingface_hub", "requests", "urllib3")
"""Packages whose errors an upload may end in."""


def file_names(shard: Shard, _: pl.DataFrame) -> list[str]:
    """Return the name of the Parquet file of a shard."""
    return [f"data/{shard.split}/{shard.source}-{shard.stem}.parquet"]


def encode(shard: Shard, tables: Iterable[pa.Table]) -> Iterator[tuple[str, bytes]]:
    """Yield the Parquet file of a shard with its content."""
    rows = pa.concat_tables(tables).select(SAMPLE_SCHEMA.names).cast(SAMPLE_SCHEMA)
    (name,) = file_names(shard, pl.DataFrame())
    yield name, table_to_parquet(rows, ROW_GROUP_ROWS)


def card(manifest: DatasetManifest, licences: Mapping[str, int]) -> str:
    """Return the card of the repository: what the Hub reads of it as YAML, then Markdown.

    Args:
        manifest: Manifest with the counts of what was exported.
        licences: Samples by the id of their licence.

    """
    splits = [split for split in SPLITS if any(split in of_source for of_source in manifest.sources.values())]
    counts = {
        split: [of_source[split] for of_source in manifest.sources.values() if split in of_source] for split in splits
    }
    samples = sum(licences.values())
    head = {
        "pretty_name": "Annotated hands",
        **_licence_of(list(licences)),
        "task_categories": ["keypoint-detection", "image-segmentation"],
        "tags": ["hands", "keypoints", "handdata"],
        "size_categories": [_SIZES[max(len(str(samples)) - 3, 0)]],
        "dataset_info": {
            "features": [{"name": field.name, **_feature(field)} for field in SAMPLE_SCHEMA],
            "splits": [
                {
                    "name": _HUB_SPLITS[split],
                    "num_bytes": sum(one.bytes for one in counts[split]),
                    "num_examples": sum(one.samples for one in counts[split]),
                }
                for split in splits
            ],
        },
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": _HUB_SPLITS[split], "path": f"data/{split}/*.parquet"} for split in splits],
            }
        ],
    }
    about = [
        "# Annotated hands",
        "",
        f"{samples:,} square crops around hands, {manifest.image_size} x {manifest.image_size} pixels, with 42 "
        f"keypoints, masks and quality flags, made by handdata {manifest.handdata_version}.",
        "",
        "## Columns",
        "",
        data_dictionary(),
        "",
        f"#{licences_text(manifest).replace('## ', '### ')}",
    ]
    return "\n".join(["---", yaml.safe_dump(head, sort_keys=False) + "---", "", *about])


def _feature(field: pa.Field) -> dict[str, Any]:
    """Return a column's type as the Hub's card has it."""
    kind = field.type
    if field.name in PIXEL_COLUMNS:
        return {"dtype": "image"}
    if pa.types.is_fixed_size_list(kind):
        return {"list": _plain_type(kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind):
        return {"list": _plain_type(kind.value_type)}
    return {"dtype": _plain_type(kind.value_type if pa.types.is_dictionary(kind) else kind)}


def _plain_type(kind: pa.DataType) -> str:
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _licence_of(licences: Sequence[str]) -> dict[str, str]:
    """Return what the Hub's card says of licences: it knows SPDX's ids, and one alone."""
    if len(licences) == 1 and not licences[0].startswith("LicenseRef-"):
        return {"license": licences[0].lower()}
    return {"license": "other", "license_name": "-and-".join(licences).lower()[:100], "license_link": LICENCES_FILE}


def push(folder: Storage, repository: str) -> str:
    """Upload an export to a private dataset of the Hugging Face Hub, and return its address.

    Files of an earlier export that this one lacks are removed there. Files that are there already are not sent again.

    Args:
        folder: The export, on this machine.
        repository: ``USER/NAME``; made where it is not there.

    Raises:
        UsageError: The folder lies elsewhere, or the Hub does not know such a name.
        RunError: The Hub does not answer, or does not let us in.

    """
    if not folder.is_local:
        raise UsageError(f"{folder.describe()} is not on this machine", "--push-to uploads a local folder")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder.url(),
            ignore_patterns=[".handdata/*"],
            delete_patterns=["data/*"],
            commit_message="Export by handdata",
        )
    except HFValidationError as error:
        raise UsageError(f"--push-to {repository}: {_first_line(error)}", "it is USER/NAME") from None
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_CLIENTS):
            raise
        raise RunError(
            f"cannot upload to {repository}: {_first_line(error)}",
            "log in with `hf auth login` or HF_TOKEN; the same command continues",
        ) from error
    return str(url)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
