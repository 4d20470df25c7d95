"""A repository of the Hugging Face Hub: Parquet files with images inside, and a card with features and splits.

    data/<split>/<source>-<unit>.parquet
    README.md                               the card

``load_dataset(FOLDER)`` reads it. The columns are those of the dataset.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import polars as pl
import pyarrow as pa

from handdata.jobs.exports.documents import STATE
from handdata.pipeline.shards import Shard
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.schemas import SAMPLE_SCHEMA, SPLITS, DatasetManifest, HandDataError, RunError, UsageError
from handdata.schemas.sample import PIXEL_COLUMNS, ROW_GROUP_ROWS
from handdata.schemas.terms import Terms

_HUB_SPLITS: Final = {"train": "train", "val": "validation", "test": "test"}
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


def hub_fields(manifest: DatasetManifest) -> dict[str, Any]:
    """Return what the Hub reads of a card beside what every card says: features, splits and where their files are.

    Args:
        manifest: Manifest with the counts of what was exported.

    """
    splits = [split for split in SPLITS if any(split in of_source for of_source in manifest.sources.values())]
    counts = {
        split: [of_source[split] for of_source in manifest.sources.values() if split in of_source] for split in splits
    }
    return {
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


def require_repository(name: str) -> None:
    """Check that a dataset of the Hub can have this name.

    Raises:
        UsageError: It cannot.

    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push-to {name}: {_first_line(error)}", "it is USER/NAME") from None
    if "/" not in name:
        raise UsageError(f"--push-to {name} does not say whose it is", "it is USER/NAME")


def push(folder: Storage, repository: str, terms: Iterable[Terms]) -> str:
    """Upload an export to a dataset of the Hugging Face Hub, and return its address.

    Files of an earlier export that this one lacks are removed there. Files that are there already are not sent again.

    Args:
        folder: The export, on this machine.
        repository: ``USER/NAME``; made as a private one where it is not there.
        terms: Licences of what was exported.

    Raises:
        UsageError: The folder lies elsewhere; or the repository is public, and not all sources may be passed on.
        RunError: The Hub does not answer, or does not let us in.

    """
    if not folder.is_local:
        raise UsageError(f"{folder.describe()} is not on this machine", "--push-to uploads a local folder")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        if not api.dataset_info(repository).private:
            _require_redistribution(repository, terms)
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder.url(),
            ignore_patterns=[f"{STATE}/*"],
            delete_patterns=["data/*"],
            commit_message="Export by handdata",
        )
    except Exception as error:
        if isinstance(error, HandDataError) or not _is_of_hub(error):
            raise
        raise RunError(
            f"cannot upload to {repository}: {_first_line(error.__cause__ or error)}",
            "log in with `hf auth login` or HF_TOKEN; the same command continues",
        ) from error
    return str(url)


def _require_redistribution(repository: str, terms: Iterable[Terms]) -> None:
    """Check that all sources of what goes to a public place may be passed on.

    Raises:
        UsageError: One may not, or nothing says so.

    """
    kept = [f"{one.source} ({one.redistribution})" for one in terms if one.redistribution != "yes"]
    if kept:
        raise UsageError(
            f"{repository} is public, and it is not known that these sources may be passed on: {', '.join(kept)}",
            "name a private dataset, or leave them out with --where or --licence",
        )


def _is_of_hub(error: BaseException) -> bool:
    """Return whether an error is about the Hub or the way there; the client hides some behind a ``RuntimeError``."""
    if isinstance(error, OSError) or type(error).__module__.startswith(_CLIENTS):
        return True
    return isinstance(error, RuntimeError) and error.__cause__ is not None and _is_of_hub(error.__cause__)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
