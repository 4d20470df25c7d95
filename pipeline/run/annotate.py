"""``handdata annotate``: units of records go through Ray actors and come back as committed shards.

A CPU actor takes one unit at a time through all its stages and commits it; SAM actors, where there are any, serve the
masks of several CPU actors in batches. The driver only hands out units and counts markers, so its memory does not grow
with the records, and a unit is the only thing that a failure repeats.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from handdata.pipeline.records.stored import ingested_sources, read_ingest_summary
from handdata.pipeline.run.annotator_choice import choose_annotator
from handdata.pipeline.run.cluster import connected
from handdata.pipeline.run.model_files import find_models
from handdata.pipeline.run.supervisor import Supervisor
from handdata.pipeline.run.workers import AnnotateWorker, start_sam
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import DATASET, read_markers
from handdata.pipeline.shards.commit import remove_orphans
from handdata.pipeline.shards.lease import Lease, take_lease
from handdata.pipeline.shards.manifest import is_summed_up, write_manifest
from handdata.pipeline.shards.plan import abandon_plan, plan_source
from handdata.pipeline.shards.settle import is_settled, settle
from handdata.pipeline.storage import Storage
from handdata.schemas import DatasetManifest, UnitMarker, UsageError


@dataclass(frozen=True, slots=True)
class AnnotateSummary:
    """What one ``annotate`` run did, and what the dataset now holds.

    Args:
        records: taken up by this run.
        samples: written by this run.
        rejected: refused by this run, per reason.
        flags: samples of this run per flag.
        manifest: of the whole dataset.

    """

    records: int
    samples: int
    rejected: dict[str, int]
    flags: dict[str, int]
    manifest: DatasetManifest


def annotate(
    storage: Storage,
    settings: AnnotateSettings,
    *,
    sources: Sequence[str] = (),
    cpus: int | None = None,
    gpus: int = 0,
    address: str | None = None,
    weights: Path | None = None,
    sam_checkpoint: Path | None = None,
    limit: int | None = None,
    sample: int | None = None,
    dataset: str = DATASET,
    overwrite: bool = False,
    stuck_after_s: float = 600,
    on_plan: Callable[[int, int], None] | None = None,
    on_unit: Callable[[UnitMarker], None] | None = None,
) -> AnnotateSummary:
    """Annotate all planned and not yet finished records of some sources.

    Args:
        storage: the workspace.
        settings: what makes a sample.
        sources: ingested sources; all of the workspace where empty.
        cpus: CPU actors; by default one for each core of the machine or cluster.
        gpus: SAM actors, each with one GPU.
        address: of a running Ray cluster; by default a local one is started, or ``RAY_ADDRESS`` is used.
        weights: folder of model files.
        sam_checkpoint: SAM's checkpoint file.
        limit: take only this many records of each source.
        sample: take this many records of each source, spread over its sequences.
        dataset: folder of the dataset in the workspace.
        overwrite: annotate those sources again that were annotated with other settings, models or records.
        stuck_after_s: a worker without progress for so long is ended, and counts as crashed.
        on_plan: called with (records to do, records done by earlier runs) before the work begins.
        on_unit: called with each marker as its unit is finished.

    Raises:
        UsageError: a source has no records, the cluster lacks the GPUs asked for, or the dataset has other settings.
        WeightsError: a model file is missing.
        LeaseLostError: another run has started on the dataset.
        StorageError: the workspace is full, or away for longer than retries last.
        RunError: workers die whatever they do.

    """
    names = list(sources) or ingested_sources(storage)
    if not names:
        raise UsageError(f"{storage.describe()} has no records", "run `handdata ingest --source NAME` first")
    ingests = {name: read_ingest_summary(storage, name) for name in names}
    storage.check_writable()
    models = find_models(settings, weights, sam_checkpoint)
    lease: Lease | None = None
    if not is_settled(storage, dataset):  # a command that changes datasets was interrupted
        lease = take_lease(storage, dataset)
        settle(lease)
    annotator = choose_annotator(storage, dataset, settings, models.hashes, names, overwrite=overwrite)
    settings = annotator.settings
    made: list[UnitMarker] = []
    with ExitStack() as stack:
        if annotator.overwritten:
            # First the cluster: where there is none, or too small a one, nothing is removed.
            stack.enter_context(connected(address, cpus))
            count_workers(cpus, gpus)
            lease = lease or take_lease(storage, dataset)
            for name in annotator.overwritten:
                abandon_plan(lease, name)
            settle(lease)
        markers = read_markers(storage, dataset)
        finished = {marker.unit_id for marker in markers}
        units = []
        for name in names:
            units += plan_source(storage, dataset, name, settings.image_size, limit=limit, sample=sample)
        to_do = [unit for unit in units if unit.unit_id not in finished]
        if lease is None and (to_do or not is_summed_up(storage, dataset, markers)):
            lease = take_lease(storage, dataset)
        markers = read_markers(storage, dataset)  # again: the run before may have gone on until now
        finished = {marker.unit_id for marker in markers}
        to_do = [unit for unit in to_do if unit.unit_id not in finished]
        if on_plan:
            done = sum(marker.records for marker in markers if marker.source in names)
            on_plan(sum(unit.rows for unit in to_do), done)
        sum_up = partial(
            write_manifest,
            storage,
            dataset,
            image_size=settings.image_size,
            annotators={annotator.hash: {"settings": settings.identity(), "models": models.hashes}},
            licenses={name: ingest.license for name, ingest in ingests.items()},
            quality=settings.quality.thresholds(),
        )
        if lease and to_do:
            sum_up()  # who reads or continues an unfinished dataset learns from it what its rows are
            stack.enter_context(connected(address, cpus))
            workers = count_workers(cpus, gpus)
            actor: Any = ray.remote(num_cpus=1, max_restarts=0)(AnnotateWorker)
            sam_actors = start_sam(models, gpus, stuck_after_s)
            supervisor = Supervisor(lambda: actor.remote(lease, settings, models, sam_actors, stuck_after_s), workers)
            # The longest first, so that at the end no worker waits long for another.
            for marker in supervisor.run(sorted(to_do, key=lambda unit: -unit.rows)):
                made.append(marker)
                if on_unit:
                    on_unit(marker)
    if lease:
        remove_orphans(lease)
    manifest = sum_up()
    return AnnotateSummary(
        records=sum(marker.records for marker in made),
        samples=sum(marker.samples for marker in made),
        rejected=dict(sorted(sum((Counter(marker.rejected) for marker in made), Counter()).items())),
        flags=dict(sorted(sum((Counter(marker.flags) for marker in made), Counter()).items())),
        manifest=manifest,
    )


def count_workers(cpus: int | None, gpus: int) -> int:
    """Return how many CPU actors the cluster runs at a time, at most ``cpus``.

    Raises:
        UsageError: it lacks the GPUs.

    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    available = int(resources.get("GPU", 0))
    if gpus > available:
        raise UsageError(
            f"--gpus {gpus} was asked for, the cluster has {available}",
            "lower --gpus, or add nodes to the cluster",
        )
    cores = max(1, int(resources.get("CPU", 1)))
    return min(cpus or cores, cores)
