"""Annotated shards: writing what a unit made, and reading datasets back.

Imports neither Ray nor MediaPipe: the trainer reads through this module.

A unit writes its sample files, its rejected table and, last, its marker. Readers see only files that a marker names.

What makes a commit exactly-once, however many writers a unit has had:

- A file's name ends in a token of the content that its unit first had. Only ``rewrite_unit`` ever writes other bytes
  under a name that a marker names: in one step, so that who reads the folder never sees a row twice.
- A marker is created, never overwritten: the first complete writer wins, and the others count what that one wrote.
- Whoever is about to commit holds the dataset's lease.
- A file is an orphan, and may go, once its unit has a marker that names another, or is not planned any more. Before
  that, a writer may be about to commit it.
"""

from handdata.pipeline.shards.index import (
    Shard,
    list_shards,
    read_index,
    read_row_group,
    read_row_groups,
    read_samples,
    read_shard_index,
)
from handdata.pipeline.shards.manifest import describe_licences, license_ids, read_manifest
from handdata.pipeline.shards.markers import read_markers
from handdata.pipeline.storage.layout import DATASET, list_datasets

__all__ = [
    "DATASET",
    "Shard",
    "describe_licences",
    "license_ids",
    "list_datasets",
    "list_shards",
    "read_index",
    "read_manifest",
    "read_markers",
    "read_row_group",
    "read_row_groups",
    "read_samples",
    "read_shard_index",
]
