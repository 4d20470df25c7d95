"""One adapter per source: a dataset as its users download it, turned into normalized records."""

from handdata.adapters.base import Adapter, AdapterOptions, BatchAdapter, Layout, Partition
from handdata.schemas.record_batch import RecordBatch

__all__ = ["Adapter", "AdapterOptions", "BatchAdapter", "Layout", "Partition", "RecordBatch"]
