"""``handdata annotate``: units of records go through Ray actors and come back as committed shards.

A CPU actor takes one unit at a time through all its stages and commits it; SAM actors, where there are any, serve the
masks of several CPU actors in batches. The driver only hands out units and counts markers, so its memory does not grow
with the records, and a unit is the only thing that a failure repeats.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import ray

from handdata.adapters.registry import takes_option
from handdata.pipeline.annotation.factory import ModelFiles
from handdata.pipeline.records.provenance import Provenance, found_provenance, given_provenances
from handdata.pipeline.records.stored import IngestSummary, ingested_sources, read_ingest_summary
from handdata.pipeline.run.annotator_choice import choose_annotator
from handdata.pipeline.run.cluster import connected
from handdata.pipeline.run.model_files import find_models
from handdata.pipeline.run.request import AnnotateRequest, Cluster, ModelPaths
from handdata.pipeline.run.supervisor import Supervisor
from handdata.pipeline.run.workers import start_sam, start_worker
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.commit import remove_orphans, remove_unit
from handdata.pipeline.shards.lease import Lease, take_lease
from handdata.pipeline.shards.lost import LostUnit, confirmed_lost, lost_error
from handdata.pipeline.shards.outdated import outdated_records
from handdata.pipeline.shards.plan import PlannedUnit, abandon_plan, plan_source
from handdata.pipeline.shards.settle import is_settled, settle
from handdata.pipeline.shards.state import DatasetState, read_state, write_manifest
from handdata.pipeline.storage import Dataset
from handdata.schemas import DatasetManifest, UnitMarker, UsageError


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What one run did to a dataset, and what the dataset now holds.

    Args:
        records: Records that this run took up.
        samples: Samples that this run wrote.
        rejected: Rejected records of this run per reason.
        flags: Samples of this run per flag.
        manifest: Manifest of the whole dataset.

    """

    records: int
    samples: int
    rejected: dict[str, int]
    flags: dict[str, int]
    manifest: DatasetManifest

    @classmethod
    def of(cls, made: Sequence[UnitMarker], manifest: DatasetManifest) -> Self:
        """Sum up the markers of the units that a run has committed."""
        rejected: Counter[str] = Counter()
        flags: Counter[str] = Counter()
        for marker in made:
            rejected.update(marker.rejected)
            flags.update(marker.flags)
        return cls(
            records=sum(marker.records for marker in made),
            samples=sum(marker.samples for marker in made),
            rejected=dict(sorted(rejected.items())),
            flags=dict(sorted(flags.items())),
            manifest=manifest,
        )


@dataclass(frozen=True, slots=True)
class AnnotateSummary(RunSummary):
    """What one ``annotate`` run did, and what the dataset now holds.

    Args:
        warnings: What samples do not follow: images and labels that were replaced or removed since.

    """

    warnings: tuple[str, ...] = ()


def annotate(
    request: AnnotateRequest,
    settings: AnnotateSettings,
    models: ModelPaths = ModelPaths(),
    cluster: Cluster = Cluster(),
    *,
    on_plan: Callable[[int, int], None] | None = None,
    on_unit: Callable[[UnitMarker], None] | None = None,
    on_connect: Callable[[str], None] | None = None,
) -> AnnotateSummary:
    """Annotate all planned and not yet finished records of some sources.

    The state of the dataset is read once, once more when the run has the lease, and followed from then on. A run that
    finds nothing to do takes no lease, starts no cluster and changes nothing.

    Args:
        request: Which records, into which dataset.
        settings: What makes a sample.
        models: Where model files are looked for.
        cluster: Where the run computes.
        on_plan: Function called with (records to do, records done by earlier runs) before the work begins.
        on_unit: Function called with each marker as its unit is finished.
        on_connect: Function called with the address of a running head before Ray connects to it.

    Raises:
        UsageError: A source has no records, the cluster lacks the GPUs asked for, or the dataset has other settings.
        WeightsError: A model file is missing.
        LeaseLostError: Another run has started on the dataset.
        StorageError: The workspace is full, away for longer than retries last, or has a damaged file.
        RunError: Workers die whatever they do, finished units have lost files, or the cluster cannot be
            reached or is lost.

    """
    dataset = request.dataset
    ingests = ingests_of(request)
    provenances = given_provenances(ingests, request.roots)
    dataset.storage.check_creates_once()
    files = find_models(settings, models)
    licenses = {name: ingest.license for name, ingest in ingests.items()}
    choose = partial(
        choose_annotator,
        settings=settings,
        model_hashes=files.hashes,
        sources=list(ingests),
        licences={name: licence for name, licence in licenses.items() if takes_option(name, "licence")},
    )
    lease, state = settled_state(dataset)
    annotator = choose(state, overwrite=request.overwrite)
    lost = lost_units(state, request, set(ingests) - set(annotator.overwritten))
    made: list[UnitMarker] = []
    busy = {*annotator.overwritten, *(unit.marker.source for unit in lost)}
    provenances |= _found(request, ingests, provenances, {*busy, *request.roots})  # before anything is removed
    with ExitStack() as stack:
        if annotator.overwritten or lost:
            # First the cluster: where there is none, or too small a one, nothing is removed.
            stack.enter_context(connected(cluster.address, cluster.cpus, on_connect))
            count_workers(cluster)
            if lease is None:
                lease, state = take_over(dataset)
                annotator = choose(state, overwrite=request.overwrite)
                lost = lost_units(state, request, set(ingests) - set(annotator.overwritten))
            state = without_units(lease, state, lost)
            state = _take_back(lease, state, annotator.overwritten)
        state = _planned(state, request, list(ingests), annotator.settings.image_size)
        outdated = {name: outdated_records(dataset, name, state.units.get(name, ())) for name in ingests}
        further = {unit.source for unit in state.to_do(ingests)} - busy
        busy |= further
        provenances |= _found(request, ingests, provenances, further - request.roots.keys())

        def sum_up(state: DatasetState) -> DatasetManifest:
            return state.sum_up(
                image_size=annotator.settings.image_size,
                annotators={annotator.hash: {"settings": annotator.settings.identity(), "models": files.hashes}},
                licenses=licenses,
                license_ids={name: provenance.license_id for name, provenance in provenances.items()},
                roots={
                    name: provenance.root
                    for name, provenance in provenances.items()
                    if name in busy
                    or name in request.roots
                    or name not in (state.manifest.roots if state.manifest else ())
                },
                warnings={name: (*ingest.warnings, *outdated[name]) for name, ingest in ingests.items()},
                quality=annotator.settings.quality.thresholds(),
            )

        if lease is None and (state.to_do(ingests) or not state.is_summed_up(sum_up(state))):
            lease, state = take_over(dataset)
            # What another run, or ``flag``, has made of the dataset since the first reading holds.
            annotator = choose(state, overwrite=False)
        to_do = state.to_do(ingests)
        if on_plan:
            done = (marker.records for marker in state.markers if marker.source in ingests)
            on_plan(sum(unit.rows for unit in to_do), sum(done))
        if lease and to_do:
            state = write_manifest(lease, state, sum_up(state))  # says of an unfinished dataset what its rows are
            if not is_settled(state):  # an older version has begun it, without a threshold of now
                state, _ = settle(lease, state)
            stack.enter_context(connected(cluster.address, cluster.cpus, on_connect))
            for marker in _commit_units(lease, to_do, annotator.settings, files, cluster, provenances):
                made.append(marker)
                if on_unit:
                    on_unit(marker)
            state = state.with_markers(made)
    if lease:
        state = state.with_stored_plans()
        remove_orphans(lease, state)
        state = write_manifest(lease, state, sum_up(state))
    warnings = tuple(warning for name in ingests for warning in outdated[name])
    return replace(AnnotateSummary.of(made, sum_up(state)), warnings=warnings)


def ingests_of(request: AnnotateRequest) -> dict[str, IngestSummary]:
    """Return the ingests of the sources that a request names, or of all sources of the workspace.

    Raises:
        UsageError: There is none, or a source was not ingested.

    """
    storage = request.dataset.storage
    names = list(request.sources) or ingested_sources(storage)
    if not names:
        raise UsageError(f"{storage.describe()} has no records", "run `handdata ingest --source NAME` first")
    return {name: read_ingest_summary(storage, name) for name in names}


def _found(
    request: AnnotateRequest,
    ingests: Mapping[str, IngestSummary],
    provenances: Mapping[str, Provenance],
    sources: Collection[str],
) -> dict[str, Provenance]:
    """Return where the records of some sources come from, once some of their images are found there.

    Raises:
        UsageError: Those of a source are not there.

    """
    return {
        name: found_provenance(
            request.dataset.storage, ingests[name], provenances[name], is_given=name in request.roots
        )
        for name in sorted(sources)
    }


def lost_units(state: DatasetState, request: AnnotateRequest, sources: Collection[str]) -> list[LostUnit]:
    """Return the finished units of some sources that have lost files.

    Raises:
        RunError: There are some, and the request is not to repair them.

    """
    lost = [unit for unit in confirmed_lost(state) if unit.marker.source in sources]
    if lost and not request.repair:
        raise lost_error(state.dataset, lost)
    return lost


def count_workers(cluster: Cluster) -> int:
    """Return how many CPU actors the cluster runs at a time, at most as many as were asked for.

    Raises:
        UsageError: The cluster lacks the GPUs.

    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    require_gpus(cluster, resources)
    cores = max(1, int(resources.get("CPU", 1)))
    return min(cluster.cpus or cores, cores)


def require_gpus(cluster: Cluster, resources: Mapping[str, float]) -> None:
    """Check that a cluster has the GPUs that are asked for.

    Raises:
        UsageError: It has fewer.

    """
    available = int(resources.get("GPU", 0))
    if cluster.gpus > available:
        raise UsageError(
            f"--gpus {cluster.gpus} was asked for, the cluster has {available}",
            "lower --gpus, or add nodes to the cluster",
        )


def settled_state(dataset: Dataset) -> tuple[Lease | None, DatasetState]:
    """Read the state, and take the lease to settle it where a command that changes datasets was interrupted."""
    state = read_state(dataset)
    return (None, state) if is_settled(state) else take_over(dataset)


def take_over(dataset: Dataset) -> tuple[Lease, DatasetState]:
    """Take the lease, read what the run before has done until now, and settle what a command has left unsettled."""
    lease = take_lease(dataset)
    state = read_state(dataset)
    if not is_settled(state):
        state, _ = settle(lease, state, remove_late=True)
    return lease, state


def _planned(state: DatasetState, request: AnnotateRequest, sources: Sequence[str], image_size: int) -> DatasetState:
    """Plan the records of some sources that no unit has yet, and return the state with all units of the sources."""
    for source in sources:
        units = plan_source(
            state.dataset,
            source,
            image_size,
            limit=request.limit,
            sample=request.sample,
            has_moved=source in request.roots,
        )
        state = state.with_units(source, units)
    return state


def without_units(lease: Lease, state: DatasetState, lost: Sequence[LostUnit]) -> DatasetState:
    """Take lost units back, so that they are done again."""
    for unit in lost:
        remove_unit(lease, unit.marker)
    return state.with_markers((), [unit.marker.unit_id for unit in lost])


def _take_back(lease: Lease, state: DatasetState, sources: Sequence[str]) -> DatasetState:
    """Remove the units of some sources, so that their records are planned anew."""
    for name in sources:
        abandon_plan(lease, name)
        state = state.with_units(name, ())
    state, _ = settle(lease, state)
    return state


def _commit_units(
    lease: Lease,
    units: Sequence[PlannedUnit],
    settings: AnnotateSettings,
    files: ModelFiles,
    cluster: Cluster,
    provenances: Mapping[str, Provenance],
) -> Iterator[UnitMarker]:
    """Yield the marker of each unit as the cluster's workers commit it."""
    workers = count_workers(cluster)
    sam_actors = start_sam(files, cluster.gpus, cluster.stuck_after_s)
    start = partial(start_worker, lease, settings, files, sam_actors, cluster.stuck_after_s, provenances)
    supervisor = Supervisor(start, workers)
    yield from supervisor.run(units)
