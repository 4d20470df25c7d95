"""``handdata sample domain-transfer --all``: a dataset of the poses of one source with the looks of another.

Children are planned (``jobs.children``), drawn by Ray actors and committed unit by unit, by the rules of annotation
(``pipeline.shards``): whatever is killed, each is in the dataset once, and the same command goes on.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeGuard

import polars as pl
import pyarrow as pa
import ray
import torch

from handdata.jobs.children import (
    Row,
    binding_licence,
    child_records,
    child_sample,
    choose_parents,
    noise_number,
    require_mask,
    require_pose,
)
from handdata.jobs.outputs import CheckpointOrigin
from handdata.pipeline.annotation import watchdog
from handdata.pipeline.quality import judge
from handdata.pipeline.records.tombstones import read_tombstones, write_tombstones
from handdata.pipeline.run.annotate import RunSummary, require_gpus, settled_state, take_over, without_units
from handdata.pipeline.run.cluster import connected
from handdata.pipeline.run.request import Cluster
from handdata.pipeline.run.supervisor import Supervisor, WorkerPlace
from handdata.pipeline.settings import AnnotateSettings, QualitySettings
from handdata.pipeline.shards import Shard, license_ids, list_shards, read_row_group, read_shard_index
from handdata.pipeline.shards.commit import remove_orphans, write_unit
from handdata.pipeline.shards.lease import Lease
from handdata.pipeline.shards.lost import confirmed_lost, lost_error
from handdata.pipeline.shards.markers import read_marker
from handdata.pipeline.shards.parents import Parent, Role, children_tombstones, parents_of
from handdata.pipeline.shards.plan import PlannedUnit, plan_rows, read_unit
from handdata.pipeline.shards.settle import is_settled, settle
from handdata.pipeline.shards.state import DatasetState, write_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    GENERATED,
    SAMPLE_SCHEMA,
    AnnotatedSample,
    DatasetManifest,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    UnitMarker,
    UnreadableImageError,
    UsageError,
)
from handdata.schemas.arrays import ByteArray
from handdata.schemas.rejection import rejection
from handdata.schemas.sample import ROW_GROUP_ROWS
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.reading import decode_frame
from handdata.trainer.poses import pose_frame
from handdata.trainer.presets import BATCH_SIZE, Preset, SamplingOptions
from handdata.trainer.tasks import gesture_transfer, load_sampler

OnNote = Callable[[str], None]
_Identity = dict[str, Any]

_UNITS: Final = 32
"""A small dataset is still cut into about this many units, so that little is drawn again after a crash."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What is generated, and from what.

    Args:
        dataset: The dataset that is written.
        parents: Dataset of references and targets in the same workspace; None takes the one that the network was
            trained on.
        reference_source: Source of the looks.
        target_source: Source of the poses.
        checkpoint: Path or URL of the weights, or ``builtin``.
        checkpoint_preset: Preset of weights that carry no settings.
        count: Number of targets, spread over the source; None takes all.
        options: Steps, guidance and seed.
        batch_size: Number of images that a worker draws at once.
        repair: Draw finished units again that have lost files.

    """

    dataset: Dataset
    parents: str | None
    reference_source: str
    target_source: str
    checkpoint: str
    checkpoint_preset: str | None = None
    count: int | None = None
    options: SamplingOptions = SamplingOptions()
    batch_size: int = BATCH_SIZE
    repair: bool = False


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What a worker draws with. Travels to workers."""

    checkpoint: str
    checkpoint_preset: str | None
    device: str
    options: SamplingOptions
    batch_size: int
    jpeg_quality: int
    quality: QualitySettings
    hash: str


def generate(
    request: GenerateRequest,
    settings: AnnotateSettings,
    cluster: Cluster = Cluster(),
    *,
    on_note: OnNote | None = None,
    on_plan: Callable[[int, int], None] | None = None,
    on_unit: Callable[[UnitMarker], None] | None = None,
    on_connect: Callable[[str], None] | None = None,
) -> RunSummary:
    """Generate all planned and not yet finished children.

    A run that finds nothing to do takes no lease, starts no cluster and changes nothing.

    Args:
        request: What is generated, and from what.
        settings: Quality of the stored images, and thresholds of flags.
        cluster: Where the run computes.
        on_note: Called with a line on targets that get no image, or a reference that shows other hands.
        on_plan: Called with (images to draw, images drawn by earlier runs) before the work begins.
        on_unit: Called with each marker as its unit is finished.
        on_connect: Called with the address of a running head before Ray connects to it.

    Raises:
        UsageError: A source is not there or has no usable sample, the dataset holds what was generated with other
            settings or weights, or the cluster lacks the GPUs.
        WeightsError: The checkpoint is missing, or not one of ours.
        LeaseLostError: Another run has started on the dataset.
        StorageError: The workspace is full, away for longer than retries last, or has a damaged file.
        RunError: Workers die whatever they do, finished units have lost files, or the cluster cannot be reached or is
            lost.

    """
    dataset, storage = request.dataset, request.dataset.storage
    storage.check_creates_once()
    note = on_note or (lambda line: None)
    # On the driver only to see that it fits; the workers load their own.
    preset = load_sampler(request.checkpoint, None, "cpu", request.checkpoint_preset, note).preset
    parents = Dataset(storage, request.parents or preset.data.dataset)
    if parents.name == dataset.name:
        raise UsageError(
            f"--dataset {dataset.name} is where references and targets come from", "name another one, such as generated"
        )
    lease, state = settled_state(dataset)
    origin = CheckpointOrigin.of(request.checkpoint)
    identity = _identity(request, origin, preset, settings, _quality(state, settings.quality))
    made_by = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    _require_size(state, preset.image_size)
    lost = [unit for unit in confirmed_lost(state) if unit.marker.source == GENERATED]
    if lost and not request.repair:
        raise lost_error(dataset, lost)
    state, licence = _planned(state, request, parents, preset.image_size, identity, note)
    # A drop may have taken parents while they were chosen.
    orphans = children_tombstones(storage)
    if orphans != read_tombstones(storage, GENERATED):
        write_tombstones(storage, orphans)
        lease, state = take_over(dataset)

    def sum_up(state: DatasetState) -> DatasetManifest:
        return state.sum_up(
            image_size=preset.image_size,
            annotators={made_by: {"settings": identity, "models": {}}},
            licenses={GENERATED: licence[0]},
            license_ids={GENERATED: licence[1]},
            quality=_quality(state, settings.quality).thresholds(),
        )

    made: list[UnitMarker] = []
    with ExitStack() as stack:
        if lease is None and (lost or state.to_do([GENERATED]) or not state.is_summed_up(sum_up(state))):
            lease, state = take_over(dataset)
        if lease and lost:
            state = without_units(lease, state, lost)
        to_do = state.to_do([GENERATED])
        if on_plan:
            on_plan(
                sum(unit.rows for unit in to_do),
                sum(marker.records for marker in state.markers if marker.source == GENERATED),
            )
        if lease and to_do:
            state = write_manifest(lease, state, sum_up(state))
            if not is_settled(state):
                state, _ = settle(lease, state)
            drawing = _Drawing(
                origin.checkpoint,  # a training run may go on meanwhile
                request.checkpoint_preset,
                "cuda" if cluster.gpus else "cpu",
                request.options,
                request.batch_size,
                settings.jpeg_quality,
                _quality(state, settings.quality),
                made_by,
            )
            stack.enter_context(connected(cluster.address, cluster.cpus, on_connect))
            for marker in _commit_units(lease, to_do, drawing, cluster):
                made.append(marker)
                if on_unit:
                    on_unit(marker)
            state = state.with_markers(made)
    if lease:
        state = state.with_stored_plans()
        remove_orphans(lease, state)
        state = write_manifest(lease, state, sum_up(state))
    return RunSummary.of(made, sum_up(state))


def _require_size(state: DatasetState, image_size: int) -> None:
    """Check that other sources of the dataset have images of the same size.

    Raises:
        UsageError: They have another.

    """
    manifest = state.manifest
    if manifest and manifest.sources.keys() - {GENERATED} and manifest.image_size != image_size:
        raise UsageError(
            f"{state.dataset.describe()} has images of {manifest.image_size} pixels, the network draws {image_size}",
            "name another --dataset",
        )


def _quality(state: DatasetState, given: QualitySettings) -> QualitySettings:
    """Return the thresholds of a dataset: its own, once it has any, which ``handdata flag`` changes."""
    own = state.manifest.quality if state.manifest else {}
    return QualitySettings(**{**given.thresholds(), **own}, reject=given.reject)


def _identity(
    request: GenerateRequest,
    origin: CheckpointOrigin,
    preset: Preset,
    settings: AnnotateSettings,
    quality: QualitySettings,
) -> _Identity:
    """Return all that decides what an image of given parents is, by name."""
    sampling = request.options.applied_to(preset).model_dump(mode="json")
    return {
        "task": "domain-transfer",
        "checkpoint": origin.checkpoint_sha256,
        "image_size": preset.image_size,
        "jpeg_quality": settings.jpeg_quality,
        "gates": json.dumps(quality.gates()),
        "seed": request.options.seed,
        **{name: value for name, value in sampling.items() if value is not None},
    }


def _planned(
    state: DatasetState, request: GenerateRequest, parents: Dataset, image_size: int, identity: _Identity, note: OnNote
) -> tuple[DatasetState, tuple[str, str]]:
    """Plan the children that no unit has yet.

    Returns:
        The state with all units of generated samples, and the licence that binds them all, with its id.

    """
    children = choose_parents(parents, request.reference_source, request.target_source, request.options.seed)
    for split, targets in sorted(children.without_reference.items()):
        note(
            f"{targets:,} targets of the split {split} get no image: {request.reference_source} has no reference in it"
        )
    if children.other_hands:
        note(f"{children.other_hands:,} references show other hands than their targets: their split has no better ones")
    count = len(children.keys)
    if request.count is not None and request.count < count:
        spread = [number * count // request.count for number in range(request.count)]
        children = replace(children, keys=children.keys[spread])
    units = plan_rows(
        state.dataset,
        GENERATED,
        children.keys,
        child_records(parents, image_size),
        max(request.batch_size, min(ROW_GROUP_ROWS, len(children.keys) // _UNITS)),
        {name: str(value) for name, value in identity.items()},
    )
    manifest = state.manifest
    earlier = [(manifest.licenses[GENERATED], license_ids(manifest)[GENERATED])] if _has_generated(manifest) else []
    return state.with_units(GENERATED, units), binding_licence([*earlier, *children.licences()])


def _has_generated(manifest: DatasetManifest | None) -> TypeGuard[DatasetManifest]:
    return manifest is not None and GENERATED in manifest.sources


def _commit_units(
    lease: Lease, units: Sequence[PlannedUnit], drawing: _Drawing, cluster: Cluster
) -> Iterator[UnitMarker]:
    """Yield the marker of each unit as the cluster's workers commit it.

    Raises:
        UsageError: The cluster lacks the GPUs.

    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    require_gpus(cluster, resources)
    worker: Any = ray.remote(GenerateWorker)
    worker = worker.options(num_cpus=1, num_gpus=1 if cluster.gpus else 0, max_restarts=0)
    supervisor = Supervisor(partial(worker.remote, lease, drawing, cluster.stuck_after_s), max(1, cluster.gpus))
    yield from supervisor.run(units)


class GenerateWorker:
    """Draws whole units and commits them; runs as a Ray actor.

    Args:
        lease: Lease of this run on the dataset.
        drawing: What to draw with; the checkpoint lies at the same place on every node.
        stuck_after_s: Seconds after which a denoising step ends the process.

    """

    def __init__(self, lease: Lease, drawing: _Drawing, stuck_after_s: float) -> None:
        watchdog.set_limit(stuck_after_s)
        self._lease, self._drawing = lease, drawing

    def open(self) -> WorkerPlace:
        """Load the network, and return where this worker runs."""
        drawing = self._drawing
        if drawing.device == "cpu":  # the only worker; Ray gives it a thread
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._sampler = load_sampler(drawing.checkpoint, None, drawing.device, drawing.checkpoint_preset)
        return WorkerPlace.of_this_process()

    def commit(self, unit: PlannedUnit, crashed: Mapping[int, str]) -> UnitMarker:
        """Draw and commit one unit, unless a worker that was thought dead has done it meanwhile.

        Args:
            unit: Unit of the plan.
            crashed: Reasons why the children at these positions are rejected undrawn.

        """
        if committed := read_marker(self._lease.dataset, unit):
            return committed
        rows = read_unit(self._lease.dataset.storage, unit, "")
        samples, rejections = self._draw(unit, [row for place, row in enumerate(rows) if place not in crashed])
        for place, why in sorted(crashed.items()):
            error = RecordError(RejectReason.WORKER_CRASHED, why)
            rejections.append(rejection(rows[place].record_id, rows[place].image_uri, error))
        thresholds = self._drawing.quality.thresholds()
        return write_unit(self._lease, unit, samples, rejections, self._drawing.hash, thresholds=thresholds)

    def probe(self, unit: PlannedUnit, part: range) -> None:
        """Draw some children of a unit, to see whether this process survives them."""
        self._draw(unit, read_unit(self._lease.dataset.storage, unit, "")[part.start : part.stop])

    def close(self) -> None:
        """End; there is nothing to release."""

    def _draw(
        self, unit: PlannedUnit, rows: Sequence[HandRecord | Rejection]
    ) -> tuple[list[AnnotatedSample], list[Rejection]]:
        """Return the samples and the rejections of some rows of a unit, both in their order."""
        drawing, storage = self._drawing, self._lease.dataset.storage
        samples: list[AnnotatedSample] = []
        rejections = [row for row in rows if isinstance(row, Rejection)]
        records = [row for row in rows if isinstance(row, HandRecord)]
        with watchdog.watched():
            for start in range(0, len(records), drawing.batch_size):
                batch = records[start : start + drawing.batch_size]
                stored = _read_parents(storage, [parent for record in batch for parent in parents_of(record).values()])
                pairs: list[tuple[HandRecord, Frame, dict[Role, Row]]] = []
                for record in batch:
                    try:
                        pairs.append(_prepared(record, stored))
                    except RecordError as error:
                        rejections.append(rejection(record.record_id, record.image_uri, error))
                for (record, _, parents), image in zip(pairs, self._images(pairs), strict=True):
                    made_by = drawing.hash
                    samples.append(child_sample(record, unit.unit_id, image, parents, made_by, drawing.jpeg_quality))
        accepted, judged_out = judge(samples, self._sampler.preset.image_size, drawing.quality)
        return accepted, rejections + judged_out

    def _images(self, pairs: Sequence[tuple[HandRecord, Frame, dict[Role, Row]]]) -> Iterable[ByteArray]:
        """Return the image (S, S, 3) of each child."""
        if not pairs:
            return ()
        records, references, _ = zip(*pairs, strict=True)
        return gesture_transfer(
            self._sampler,
            references,
            [pose_frame(record.keypoints_2d, record.keypoints_valid, record.width) for record in records],
            self._drawing.options,
            numbers=[noise_number(record) for record in records],
            batch_size=self._drawing.batch_size,
            progress=lambda step, total: watchdog.beat(),
        )


def _read_parents(storage: Storage, parents: Sequence[Parent]) -> dict[str, pa.Table]:
    """Return the rows of parents that are there, by the names of the samples.

    Where a file is gone, as after ``annotate --overwrite``, all files of the parent's source are looked through.
    """
    of_shard: dict[str, set[str]] = {}
    for parent in parents:
        of_shard.setdefault(parent.shard, set()).add(parent.sample_id)
    gone = {name for name in of_shard if not storage.exists(name)}
    found: dict[str, pa.Table] = {}
    for name in of_shard.keys() - gone:
        found |= _rows_of(storage, name, of_shard[name])
    for dataset, source in {(parent.dataset, parent.source) for parent in parents if parent.shard in gone}:
        wanted = {parent.sample_id for parent in parents if (parent.dataset, parent.source) == (dataset, source)}
        for shard in list_shards(Dataset(storage, dataset), sources=[source]):
            found |= _rows_of(storage, shard.name, wanted - found.keys())
    return found


def _rows_of(storage: Storage, name: str, wanted: set[str]) -> dict[str, pa.Table]:
    """Return those of some samples that a file holds, a table of one row each."""
    shard = Shard(name, "", "train", "")
    places = read_shard_index(storage, shard, ["sample_id"]).filter(pl.col("sample_id").is_in(wanted))
    found: dict[str, pa.Table] = {}
    for (group,), rows in places.group_by("row_group", maintain_order=True):
        table = read_row_group(storage, shard, int(group), SAMPLE_SCHEMA.names)
        found |= {sample_id: table.slice(row, 1) for sample_id, row in rows.select("sample_id", "row").iter_rows()}
    return found


def _prepared(record: HandRecord, stored: Mapping[str, pa.Table]) -> tuple[HandRecord, Frame, dict[Role, Row]]:
    """Return a child with the frame of its reference and the columns of its parents.

    Raises:
        RecordError: A parent is not there any more or cannot be decoded, or the pose has no joint in the image.

    """
    require_pose(record)
    parents = parents_of(record)
    for role, parent in parents.items():
        if parent.sample_id not in stored:
            what = f"its {role} {parent.sample_id} is not in the dataset {parent.dataset} any more"
            raise RecordError(RejectReason.IMAGE_MISSING, what)
    rows = {role: stored[parent.sample_id].to_pylist()[0] for role, parent in parents.items()}
    require_mask(rows["target"])
    try:
        return record, decode_frame(stored[parents["reference"].sample_id], 0), rows
    except UnreadableImageError as error:
        raise RecordError(RejectReason.FRAME_MISSING, error.message) from None
