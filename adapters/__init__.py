"""One adapter per source: a dataset as its users download it, turned into normalized records."""

from handdata.adapters.base import Adapter, AdapterOptions, Layout, Partition

__all__ = ["Adapter", "AdapterOptions", "Layout", "Partition"]
