"""Ingest, annotation and shards: from normalized records to annotated Parquet."""
