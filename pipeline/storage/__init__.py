"""The workspace: a folder at a local path or any fsspec URL, the files in it, and where each of them lies."""

from handdata.pipeline.storage.parquet import blob_places, table_to_parquet
from handdata.pipeline.storage.store import Storage

__all__ = ["Storage", "blob_places", "table_to_parquet"]
