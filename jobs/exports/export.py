"""``handdata export dataset``: units of an annotated dataset become files of another layout, in parallel processes.

A unit is done when its file in ``.handdata/units`` is there, which is written last: an export that was interrupted goes
on with the units that have none. The names of a unit's files are written before the files, and a unit whose marker has
changed counts as another one. So where the dataset has changed (records dropped, flags set anew), the same command
removes what the former units gave and exports the new ones.

A process reads a row group at a time and holds the files of one unit at most. The last step joins what a layout has in
one file for all units, and writes the licences.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from handdata.adapters.processes import process_pool
from handdata.jobs.exports import coco, foundhand, huggingface, readme, rerun, webdataset
from handdata.jobs.exports.documents import (
    FILES,
    REQUEST,
    STATE,
    UNITS,
    ExportedFiles,
    ExportedShard,
    ExportRequest,
    FormatName,
)
from handdata.jobs.exports.rows import NAMING_COLUMNS
from handdata.pipeline.shards import Shard, describe_licences, read_manifest, read_markers, read_row_groups
from handdata.pipeline.shards.markers import encode_marker
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import CARD
from handdata.pipeline.storage.store import retried
from handdata.schemas import SAMPLE_SCHEMA, DatasetManifest, RunError, SplitCounts, UsageError
from handdata.schemas.terms import LICENCES_FILE, Terms, licences_page
from handdata.trainer.data.sample_index import all_of, chosen_rows, parse_condition
from handdata.trainer.presets import DataConfig

_WRITTEN_AT_ONCE: Final = 16 << 20
"""Bytes of files that a process writes together: on object stores waiting costs the time."""

Encode = Callable[[Shard, Iterable[pa.Table]], Iterator[tuple[str, bytes]]]


class _Join(Protocol):
    def __call__(self, out: Storage, exported: Sequence[ExportedShard]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Format:
    """How samples become files of a layout."""

    file_names: Callable[[Shard, pl.DataFrame], list[str]]
    """Names of the files of the chosen samples of a shard, before any is made."""
    encode: Encode
    """Files with their content, from the chosen samples of a shard, some at a time."""
    join: _Join | None = None
    """What is written when all units are there."""
    condition: str | None = None
    """SQL condition on the samples that the layout can hold."""


_FORMATS: Final[Mapping[FormatName, _Format]] = {
    "foundhand": _Format(foundhand.file_names, foundhand.encode),
    "coco": _Format(coco.WHOLE_BODY.file_names, coco.WHOLE_BODY.encode, coco.WHOLE_BODY.join),
    "webdataset": _Format(webdataset.file_names, webdataset.encode),
    "huggingface": _Format(huggingface.file_names, huggingface.encode),
    "fiftyone": _Format(coco.FIFTYONE.file_names, coco.FIFTYONE.encode, coco.FIFTYONE.join),
    "rerun": _Format(rerun.file_names, rerun.encode, condition=rerun.CONDITION),
}


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export holds.

    Args:
        manifest: Manifest of the exported samples: that of the dataset with their counts alone.
        samples: Number of samples.
        bytes: Size of their files.
        licences: Samples by the id of their licence.
        terms: What these licences ask.
        units: Units that gave them.
        done_before: Those of these units that an earlier call had finished.

    """

    manifest: DatasetManifest
    samples: int
    bytes: int
    licences: Mapping[str, int]
    terms: tuple[Terms, ...]
    units: int
    done_before: int


@dataclass(frozen=True, slots=True)
class _Job:
    """All that a process needs to export one shard."""

    request: ExportRequest
    shard: Shard
    version: str
    out: Storage

    @property
    def state_file(self) -> str:
        """Name of its files in the folders of the export's state."""
        return f"source={self.shard.source}/{self.shard.stem}.{self.version}.json"


def export_dataset(
    request: ExportRequest, out: Storage, on_progress: Callable[[int, int, int], None] | None = None
) -> ExportSummary:
    """Export the samples of a dataset to a folder, or go on with an export that was interrupted.

    Args:
        request: Which samples, and the format.
        out: Folder of the export, anywhere that fsspec reaches.
        on_progress: Function called with (finished units, all units, samples so far).

    Raises:
        UsageError: There is no such dataset, no such sample, or the folder holds something else.
        UnreadableImageError: An image or mask cannot be decoded.
        StorageError: A shard is damaged, or the folder cannot be written.
        RunError: A process was killed.
        ModuleNotFoundError: The format needs a package that is not installed.

    """
    parse_condition(request.where)
    dataset = _dataset_of(request)
    jobs = _planned(request, dataset, out)
    if not jobs:
        which = f" in split {request.split}" if request.split else ""
        raise UsageError(f"{dataset.describe()} has no samples{which}", "run `handdata annotate`")
    if request.format == "rerun":
        import_module("rerun")  # before any process starts
    _claim(request, out)
    _remove_former(out, jobs)
    finished = set(out.list_files(UNITS, ".json"))
    exported = [ExportedShard.model_validate_json(data) for data in out.read_many(sorted(finished))]
    done_before = len(exported)
    samples = sum(shard.samples for shard in exported)
    if on_progress:
        on_progress(done_before, len(jobs), samples)
    for one in _run([job for job in jobs if f"{UNITS}/{job.state_file}" not in finished]):
        exported.append(one)
        samples += one.samples
        if on_progress:
            on_progress(len(exported), len(jobs), samples)
    join = _FORMATS[request.format].join
    exported = sorted((one for one in exported if one.samples), key=lambda one: (one.source, one.split, one.name))
    if join:
        join(out, exported)
    if not exported:
        out.remove_many((LICENCES_FILE, CARD, STATE))  # the folder is empty, and free for another choice
        raise _nothing_chosen(request, dataset)
    manifest = _manifest_of(read_manifest(dataset), exported)
    licences = sum((Counter(one.licences) for one in exported), Counter())
    terms = readme.terms_of_samples(manifest, exported)
    out.write_bytes(LICENCES_FILE, licences_page(terms).encode())
    out.write_bytes(CARD, readme.card(request, dataset, manifest, terms).encode())
    return ExportSummary(
        manifest=manifest,
        samples=samples,
        bytes=sum(one.bytes for one in exported),
        licences=dict(sorted(licences.items())),
        terms=terms,
        units=len(exported),
        done_before=done_before,
    )


def _dataset_of(request: ExportRequest) -> Dataset:
    return Dataset(Storage(request.workspace), request.dataset)


def _nothing_chosen(request: ExportRequest, dataset: Dataset) -> UsageError:
    if request.format == "rerun":
        return UsageError(
            "no sample of this choice has 3D joints and a camera without a fish-eye lens, which rerun shows",
            "`handdata sources` says which sources have them",
        )
    there = f"; its licences are {describe_licences(read_manifest(dataset))}" if request.licences else ""
    return UsageError("no sample fulfils these conditions", f"see --where, --licence and --split{there}")


def _claim(request: ExportRequest, out: Storage) -> None:
    """Make the folder that of this export.

    Raises:
        UsageError: It holds another export, or something else.

    """
    if out.exists(REQUEST):
        earlier = out.read_document(REQUEST, ExportRequest)
        if differing := [name for name, value in request if value != getattr(earlier, name)]:
            raise UsageError(
                f"{out.describe()} holds an export with another {', '.join(differing)}",
                "choose another folder with --out, or remove that one",
            )
        return
    if not out.is_empty():
        raise UsageError(f"{out.describe()} holds other files", "choose an empty folder with --out")
    out.write_bytes(REQUEST, request.model_dump_json(indent=2).encode())


def _planned(request: ExportRequest, dataset: Dataset, out: Storage) -> list[_Job]:
    """Return a job for each shard of the dataset; its version is that of its marker: it may be rewritten."""
    read_manifest(dataset)
    return [
        _Job(
            request,
            Shard(dataset.path(file), marker.source, marker.split, marker.unit_id),
            hashlib.sha256(encode_marker(marker)).hexdigest()[:12],
            out,
        )
        for marker in read_markers(dataset)
        if request.split in (None, marker.split)
        for file in marker.files
    ]


def _remove_former(out: Storage, jobs: Iterable[_Job]) -> None:
    """Remove what units gave that the dataset no longer has; first what says that they are there."""
    units = {f"{UNITS}/{job.state_file}" for job in jobs}
    for finished in set(out.list_files(UNITS, ".json")) - units:
        out.remove(finished)
    kept = {f"{FILES}/{job.state_file}" for job in jobs}
    for listed in set(out.list_files(FILES, ".json")) - kept:
        out.remove_many(out.read_document(listed, ExportedFiles).files)
        out.remove(listed)


def _run(jobs: Sequence[_Job]) -> Iterator[ExportedShard]:
    """Do the jobs, in parallel where there are several."""
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(_export_shard, jobs)
        return
    with process_pool(workers) as pool:
        try:
            for finished in as_completed([pool.submit(_export_shard, job) for job in jobs]):
                yield finished.result()
        except BrokenProcessPool:
            raise RunError(
                "a process that exports was killed, mostly for want of memory", "the same command continues"
            ) from None


@retried
def _export_shard(job: _Job) -> ExportedShard:
    """Write the files of one shard, and the file that says that they are there."""
    shard, out, chosen_format = job.shard, job.out, _FORMATS[job.request.format]
    dataset = _dataset_of(job.request)
    chosen = _chosen(job, dataset, chosen_format.condition)
    written = 0
    if len(chosen):
        names = tuple(chosen_format.file_names(shard, chosen))
        out.write_bytes(f"{FILES}/{job.state_file}", ExportedFiles(files=names).model_dump_json().encode())
        for files in _batches(chosen_format.encode(shard, _tables(dataset, shard, chosen["row"].to_numpy()))):
            out.write_many(files)
            written += sum(map(len, files.values()))
        out.flush()
    one = ExportedShard(
        name=shard.stem,
        source=shard.source,
        split=shard.split,
        samples=len(chosen),
        bytes=written,
        licences=dict(sorted(chosen["license_id"].value_counts().iter_rows())),
        flags=Counter(dict(chosen["flags"].explode().drop_nulls().value_counts().iter_rows())),
    )
    out.write_bytes(f"{UNITS}/{job.state_file}", one.model_dump_json().encode())
    return one


def _chosen(job: _Job, dataset: Dataset, condition: str | None) -> pl.DataFrame:
    """Return the chosen rows of a shard with the columns that name their files."""
    choice = DataConfig(
        where=all_of(job.request.where, condition),
        licences=job.request.licences,
        unlabelled_hands=True,
        no_content=True,
        side_unknown=True,
    )
    return chosen_rows(dataset, [job.shard], choice, NAMING_COLUMNS, [pl.col(*NAMING_COLUMNS, "license_id", "flags")])


def _tables(dataset: Dataset, shard: Shard, rows: np.ndarray) -> Iterator[pa.Table]:
    """Yield the chosen rows of a shard, a row group at a time."""
    first = 0
    for table in read_row_groups(dataset.storage, shard, SAMPLE_SCHEMA.names):
        inside = rows[(rows >= first) & (rows < first + len(table))] - first
        first += len(table)
        if len(inside):
            yield table.take(inside)


def _batches(files: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    """Yield files in groups that are written together."""
    batch: dict[str, bytes] = {}
    size = 0
    for name, data in files:
        batch[name] = data
        size += len(data)
        if size >= _WRITTEN_AT_ONCE:
            yield batch
            batch, size = {}, 0
    if batch:
        yield batch


def _manifest_of(manifest: DatasetManifest, exported: Iterable[ExportedShard]) -> DatasetManifest:
    """Return the manifest of a dataset with the counts of what was exported of it."""
    sources: dict[str, dict[str, SplitCounts]] = {}
    for one in exported:
        counts = sources.setdefault(one.source, {}).setdefault(one.split, SplitCounts())
        counts.units += 1
        counts.records += one.samples
        counts.samples += one.samples
        counts.flags.update(one.flags)
        counts.bytes += one.bytes

    def of_these(values: Mapping[str, object]) -> dict[str, object]:
        return {source: value for source, value in values.items() if source in sources}

    return manifest.model_copy(
        update={
            "sources": sources,
            **{name: of_these(getattr(manifest, name)) for name in ("licenses", "license_ids", "roots", "warnings")},
        }
    )
