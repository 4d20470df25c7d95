"""``handdata annotate``: units of records go through Ray actors and come back as committed shards.

A CPU actor takes one unit at a time through all its stages and commits it; SAM actors, where there are any, serve the
masks of several CPU actors in batches. The driver only hands out units and counts markers, so its memory does not grow
with the records, and a unit is the only thing that a failure repeats.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from handdata.pipeline.records.stored import ingested_sources, read_ingest_summary
from handdata.pipeline.run.annotator_choice import choose_annotator
from handdata.pipeline.run.cluster import connected
from handdata.pipeline.run.model_files import find_models
from handdata.pipeline.run.request import AnnotateRequest, Cluster, ModelPaths
from handdata.pipeline.run.supervisor import Supervisor
from handdata.pipeline.run.workers import AnnotateWorker, start_sam
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_markers
from handdata.pipeline.shards.commit import remove_orphans
from handdata.pipeline.shards.lease import Lease, take_lease
from handdata.pipeline.shards.manifest import is_summed_up, write_manifest
from handdata.pipeline.shards.plan import abandon_plan, plan_source
from handdata.pipeline.shards.settle import is_settled, settle
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
    request: AnnotateRequest,
    settings: AnnotateSettings,
    models: ModelPaths = ModelPaths(),
    cluster: Cluster = Cluster(),
    *,
    stuck_after_s: float = 600,
    on_plan: Callable[[int, int], None] | None = None,
    on_unit: Callable[[UnitMarker], None] | None = None,
) -> AnnotateSummary:
    """Annotate all planned and not yet finished records of some sources.

    Args:
        request: Which records, into which dataset.
        settings: What makes a sample.
        models: Where model files are looked for.
        cluster: Where the run computes.
        stuck_after_s: A worker without progress for so long is ended, and counts as crashed.
        on_plan: Called with (records to do, records done by earlier runs) before the work begins.
        on_unit: Called with each marker as its unit is finished.

    Raises:
        UsageError: a source has no records, the cluster lacks the GPUs asked for, or the dataset has other settings.
        WeightsError: a model file is missing.
        LeaseLostError: another run has started on the dataset.
        StorageError: the workspace is full, or away for longer than retries last.
        RunError: workers die whatever they do.

    """
    dataset, storage = request.dataset, request.dataset.storage
    names = list(request.sources) or ingested_sources(storage)
    if not names:
        raise UsageError(f"{storage.describe()} has no records", "run `handdata ingest --source NAME` first")
    ingests = {name: read_ingest_summary(storage, name) for name in names}
    storage.check_writable()
    files = find_models(settings, models)
    lease: Lease | None = None
    if not is_settled(dataset):  # a command that changes datasets was interrupted
        lease = take_lease(dataset)
        settle(lease)
    annotator = choose_annotator(dataset, settings, files.hashes, names, overwrite=request.overwrite)
    settings = annotator.settings
    made: list[UnitMarker] = []
    with ExitStack() as stack:
        if annotator.overwritten:
            # First the cluster: where there is none, or too small a one, nothing is removed.
            stack.enter_context(connected(cluster.address, cluster.cpus))
            count_workers(cluster)
            lease = lease or take_lease(dataset)
            for name in annotator.overwritten:
                abandon_plan(lease, name)
            settle(lease)
        markers = read_markers(dataset)
        finished = {marker.unit_id for marker in markers}
        units = []
        for name in names:
            units += plan_source(dataset, name, settings.image_size, limit=request.limit, sample=request.sample)
        to_do = [unit for unit in units if unit.unit_id not in finished]
        if lease is None and (to_do or not is_summed_up(dataset, markers)):
            lease = take_lease(dataset)
        markers = read_markers(dataset)  # again: the run before may have gone on until now
        finished = {marker.unit_id for marker in markers}
        to_do = [unit for unit in to_do if unit.unit_id not in finished]
        if on_plan:
            done = sum(marker.records for marker in markers if marker.source in names)
            on_plan(sum(unit.rows for unit in to_do), done)
        sum_up = partial(
            write_manifest,
            dataset,
            image_size=settings.image_size,
            annotators={annotator.hash: {"settings": settings.identity(), "models": files.hashes}},
            licenses={name: ingest.license for name, ingest in ingests.items()},
            quality=settings.quality.thresholds(),
        )
        if lease and to_do:
            sum_up()  # who reads or continues an unfinished dataset learns from it what its rows are
            stack.enter_context(connected(cluster.address, cluster.cpus))
            workers = count_workers(cluster)
            actor: Any = ray.remote(num_cpus=1, max_restarts=0)(AnnotateWorker)
            sam_actors = start_sam(files, cluster.gpus, stuck_after_s)
            supervisor = Supervisor(lambda: actor.remote(lease, settings, files, sam_actors, stuck_after_s), workers)
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


def count_workers(cluster: Cluster) -> int:
    """Return how many CPU actors the cluster runs at a time, at most as many as were asked for.

    Raises:
        UsageError: it lacks the GPUs.

    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    available = int(resources.get("GPU", 0))
    if cluster.gpus > available:
        raise UsageError(
            f"--gpus {cluster.gpus} was asked for, the cluster has {available}",
            "lower --gpus, or add nodes to the cluster",
        )
    cores = max(1, int(resources.get("CPU", 1)))
    return min(cluster.cpus or cores, cores)
