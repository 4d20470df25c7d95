"""The workspace: a folder at a local path or any fsspec URL, the files in it, and where each of them lies."""

from handdata.pipeline.storage.layout import DATASET, Dataset, list_datasets
from handdata.pipeline.storage.parquet import blob_checksums, blob_ranges, table_to_parquet
from handdata.pipeline.storage.store import Storage

__all__ = ["DATASET", "Dataset", "Storage", "blob_checksums", "blob_ranges", "list_datasets", "table_to_parquet"]
