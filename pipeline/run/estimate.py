"""``handdata annotate --plan``: what a run would do, how long it would take and how much it would store.

The real stages run on a few records of each source, in one Ray actor on the cluster that the run would use; their times
and bytes a record, times the records to do, are the estimate. Nothing is written.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import polars as pl
import ray
from ray.exceptions import RayError, RayTaskError

from handdata.pipeline.annotation.annotator import BATCH_ROWS
from handdata.pipeline.annotation.factory import AnnotatorFactory, LocalSam, ModelFiles
from handdata.pipeline.annotation.meter import Stage, StageTally, metered
from handdata.pipeline.records.provenance import found_provenance, given_provenances
from handdata.pipeline.run.annotate import count_workers, ingests_of, lost_units
from handdata.pipeline.run.annotator_choice import choose_annotator
from handdata.pipeline.run.cluster import answer_of, connected, require_cluster
from handdata.pipeline.run.model_files import find_models
from handdata.pipeline.run.request import AnnotateRequest, Cluster, ModelPaths
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.plan import PlannedUnit, preview_source, read_previewed, read_unit, row_group_sizes
from handdata.pipeline.shards.state import read_state
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.schemas import HandDataError, HandRecord, RunError, samples_to_table

PROBE_RECORDS = 64
"""Records that the probe takes, of all sources together."""
_SLOW_PROBE_RECORDS = 8
"""Records that the probe takes where SAM has no GPU: its largest model takes ten seconds an image there."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the stages took for some records of one source, on one core and one GPU.

    Args:
        records: Number of records.
        samples: Number of those that became samples.
        seconds: Seconds of each stage.
        masked: Number of records whose mask a model made.
        bytes: Size of the samples, as stored.

    """

    records: int
    samples: int
    seconds: dict[Stage, float]
    masked: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SourceEstimate:
    """What a run would do for one source.

    Args:
        records_to_do: Number of records of unfinished units.
        records_done: Number of records of finished units.
        units_to_do: Number of unfinished units.
        probe: Probe of a few of its records; None where nothing is to be done.

    """

    records_to_do: int
    records_done: int
    units_to_do: int
    probe: Probe | None


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run would do.

    Args:
        sources: Estimates of the sources by name.
        cpu_actors: Number of actors that decode, detect, crop, encode and write, each on one core.
        sam_actors: Number of actors that make masks; 0 without SAM.
        gpus: Number of GPUs of the SAM actors.
        models: Model files of the run.
        settings: Settings of the run.
        start_s: Seconds until the first record, which a run needs as this estimate did: Ray and the models start.

    """

    sources: dict[str, SourceEstimate]
    cpu_actors: int
    sam_actors: int
    gpus: int
    models: ModelFiles
    settings: AnnotateSettings
    start_s: float = 0.0

    @property
    def records_to_do(self) -> int:
        """Records to do in all sources."""
        return sum(source.records_to_do for source in self.sources.values())

    @property
    def stage_seconds(self) -> dict[Stage, float]:
        """What each stage would take for all records, on one core and one GPU."""
        total: Counter[Stage] = Counter()
        for source in self.sources.values():
            if source.probe:
                share = source.records_to_do / source.probe.records
                total.update({stage: seconds * share for stage, seconds in source.probe.seconds.items()})
        return dict(total)

    @property
    def seconds(self) -> float:
        """Time of the run, with its start. CPU and GPU overlap: the slower side decides; on the CPU alone they add."""
        stages = self.stage_seconds
        sam = stages.pop("mask", 0.0) if self.sam_actors else 0.0
        cpu = sum(stages.values()) / self.cpu_actors
        work = max(cpu, sam / self.gpus) if self.gpus else cpu + sam
        return self.start_s + work if work else 0.0

    @property
    def bytes(self) -> float:
        """Size of the samples that the run would store."""
        probes = ((source.records_to_do, source.probe) for source in self.sources.values() if source.probe)
        return sum(records * probe.bytes / probe.records for records, probe in probes)


def estimate_run(
    request: AnnotateRequest,
    settings: AnnotateSettings,
    models: ModelPaths = ModelPaths(),
    cluster: Cluster = Cluster(),
    *,
    on_connect: Callable[[str], None] | None = None,
) -> RunEstimate:
    """Return what ``annotate`` would do with the same arguments.

    Raises:
        UsageError: A source has no records, the cluster lacks the GPUs asked for, or the dataset has other settings.
        WeightsError: A model file is missing.
        RunError: Finished units have lost files and the request is not to repair them, the cluster cannot be reached
            or is lost, or the probe dies.

    """
    dataset = request.dataset
    ingests = ingests_of(request)
    names = list(ingests)
    provenances = given_provenances(ingests, request.roots)
    files = find_models(settings, models)
    state = read_state(dataset)
    settings = choose_annotator(state, settings, files.hashes, names, {}, overwrite=False).settings
    state = state.with_markers((), [unit.marker.unit_id for unit in lost_units(state, request, names)])
    finished = state.finished
    most = _SLOW_PROBE_RECORDS if files.sam and not cluster.gpus else PROBE_RECORDS
    runs_each = max(1, most // BATCH_ROWS // len(names))
    estimates = {}
    start_s, began = 0.0, time.monotonic()
    with connected(cluster.address, cluster.cpus, on_connect):
        workers = count_workers(cluster)
        probing: Any = ray.remote(num_cpus=1, num_gpus=1 if files.sam and cluster.gpus else 0)(_ProbeWorker)
        worker = None
        for name in names:
            has_moved = name in request.roots
            stored, previewed = preview_source(
                dataset, name, settings.image_size, limit=request.limit, sample=request.sample, has_moved=has_moved
            )
            begun = [unit for unit in stored if unit.unit_id not in finished]
            probe = None
            if begun or previewed:
                found = found_provenance(dataset.storage, ingests[name], provenances[name], is_given=has_moved)
                records = _spread_records(dataset.storage, name, begun, previewed, runs_each, found.root)
                if worker is None:
                    worker = probing.remote(settings, files, "cuda" if cluster.gpus else "cpu")
                    _probed(worker, name, records[:BATCH_ROWS])  # until the models are warm
                    start_s = time.monotonic() - began
                probe = _probed(worker, name, records[:most])
            estimates[name] = SourceEstimate(
                records_to_do=sum(unit.rows for unit in begun) + sum(map(len, previewed)),
                records_done=sum(marker.records for marker in state.markers if marker.source == name),
                units_to_do=len(begun) + len(previewed),
                probe=probe,
            )
        if worker is not None:
            answer_of(worker.close.remote())
        return RunEstimate(
            sources=estimates,
            cpu_actors=workers,
            sam_actors=max(cluster.gpus, 1) if files.sam else 0,
            gpus=cluster.gpus if files.sam else 0,
            models=files,
            settings=settings,
            start_s=start_s,
        )


def _probed(worker: Any, source: str, records: Sequence[HandRecord]) -> Probe:
    try:
        probe: Probe = answer_of(worker.probe.remote(source, records))
    except RayTaskError as error:
        if isinstance(error.cause, HandDataError):
            raise error.cause from None
        raise
    except RayError as error:
        require_cluster()
        reason = str(error).strip().splitlines()[-1]
        raise RunError(
            f"the process that probes records of {source} died: {reason}",
            "`annotate` itself finds the record at fault, if it is one, and goes on without it",
        ) from None
    return probe


def _spread_records(
    storage: Storage,
    source: str,
    begun: Sequence[PlannedUnit],
    previewed: Sequence[pl.DataFrame],
    runs: int,
    root: str,
) -> list[HandRecord]:
    """Return the first records of so many units of a source, spread over those planned and those yet to be planned."""
    records: list[HandRecord] = []
    units = len(begun) + len(previewed)
    for position in range(0, units, ceil(units / runs)):
        if position < len(begun):
            rows = read_unit(storage, begun[position], root)[:BATCH_ROWS]
            records += [row for row in rows if isinstance(row, HandRecord)]
        else:
            records += read_previewed(storage, source, previewed[position - len(begun)].head(BATCH_ROWS), root)
    return records


class _ProbeWorker:
    """Runs all stages on some records; runs as a Ray actor with one CPU, and one GPU where SAM has one."""

    def __init__(self, settings: AnnotateSettings, models: ModelFiles, device: str) -> None:
        import cv2

        cv2.setNumThreads(1)
        # SAM runs in this process, so that the time of the stage "mask" is SAM's alone.
        self._factory = AnnotatorFactory(settings, models, partial(LocalSam, device=device))

    def probe(self, source: str, records: Sequence[HandRecord]) -> Probe:
        """Return what the stages take for these records; the first time, models warm up in it."""
        tally = StageTally()
        samples, _ = self._factory.for_source(source, tally).process("probe", records)
        stored = b""
        if samples:
            with metered(tally, "write", len(samples)):
                sizes = row_group_sizes([(sample.sequence_id, sample.frame_index) for sample in samples])
                stored = table_to_parquet(samples_to_table(samples), sizes)
        return Probe(len(records), len(samples), tally.seconds, tally.rows["mask"], len(stored))

    def close(self) -> None:
        """Release MediaPipe before the process ends."""
        self._factory.close()
