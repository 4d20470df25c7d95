"""``handdata annotate``: units of records go through Ray actors and come back as committed shards.

A CPU actor takes one unit at a time through all its stages and commits it; SAM actors, where there are any, serve the
masks of several CPU actors in batches. The driver only hands out units and counts markers, so its memory does not grow
with the records, and a unit is the only thing that a failure repeats.
"""

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from handdata.adapters import AdapterOptions
from handdata.adapters.registry import find_adapter
from handdata.pipeline import watchdog
from handdata.pipeline.annotate import Annotator, GrabCutModel, MaskModel, PreparedCrop
from handdata.pipeline.annotator import choose_annotator
from handdata.pipeline.detector import HandDetector
from handdata.pipeline.lease import Lease, take_lease
from handdata.pipeline.metrics import RayMeter, metered
from handdata.pipeline.plan import PlannedUnit, abandon_plan, plan_source, read_unit
from handdata.pipeline.ray_access import connect, start_local
from handdata.pipeline.records import ingested_sources, read_ingest_summary
from handdata.pipeline.revise import is_settled, settle
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import (
    DATASET,
    is_summed_up,
    read_marker,
    read_markers,
    remove_orphans,
    write_manifest,
    write_unit,
)
from handdata.pipeline.storage import Storage
from handdata.pipeline.supervisor import Supervisor, Whereabouts
from handdata.pipeline.weights import WEIGHTS, find_weights, require_weights, sha256_of
from handdata.schemas import (
    AnnotatedSample,
    DatasetManifest,
    HandDataError,
    HandRecord,
    Rejection,
    RejectReason,
    RunError,
    UnitMarker,
    UsageError,
    WeightsError,
)
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.sample import MaskOrigin

if TYPE_CHECKING:
    from handdata.pipeline.sam import SamSegmenter


SAM_OPTIONS: Final[dict[str, Any]] = {
    "num_cpus": 0,
    # Two calls at a time: while one is on the GPU, the other's pictures are resized.
    "max_concurrency": 2,
    # Ray starts an actor that died again, and repeats the calls that it was busy with once; if it dies over a call
    # again, that call's unit is tried again as a whole.
    "max_restarts": -1,
    "max_task_retries": 1,
}
"""Ray's options of SAM actors."""


@dataclass(frozen=True, slots=True)
class Models:
    """Model files of a run, found on the driver.

    Args:
        hand_landmarker: MediaPipe's model; None where the detector is never asked.
        sam: SAM's checkpoint; None without SAM.
        sam_origin: the ``mask_origin`` of its masks.
        grabcut: whether frames without another mask get one from GrabCut.
        hashes: SHA-256 of each file.

    """

    hand_landmarker: Path | None
    sam: Path | None
    sam_origin: MaskOrigin | None
    grabcut: bool
    hashes: dict[str, str]


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


def find_models(settings: AnnotateSettings, weights: Path | None, sam_checkpoint: Path | None) -> Models:
    """Find the model files that the settings need; may download MediaPipe's model.

    Raises:
        WeightsError: a needed file is nowhere.

    """
    hand_landmarker = None if settings.keypoints == "dataset" else require_weights("hand_landmarker", weights)
    sam: Path | None = None
    if sam_checkpoint is not None:
        if not sam_checkpoint.is_file():
            raise WeightsError(f"the SAM checkpoint {sam_checkpoint} does not exist", "check --sam-checkpoint")
        sam = sam_checkpoint
    if settings.masks in ("auto", "sam") and sam is None:
        candidates = (find_weights(name, weights) for name in ("sam_vit_h", "sam_vit_l", "sam_vit_b"))
        sam = next((path for path in candidates if path is not None), None)
        if sam is None and settings.masks == "sam":
            file = WEIGHTS["sam_vit_h"]
            raise WeightsError(
                "no SAM checkpoint is on this machine",
                f"run `handdata weights fetch {file.name}`, pass --sam-checkpoint, put {file.filename} into the folder "
                "HANDDATA_WEIGHTS, or choose --masks grabcut",
            )
    if settings.masks not in ("auto", "sam"):
        sam = None
    files = {"hand_landmarker": hand_landmarker, "sam": sam}
    return Models(
        hand_landmarker=hand_landmarker,
        sam=sam,
        sam_origin=None if sam is None else _sam_origin(sam),
        grabcut=settings.masks == "grabcut" or (settings.masks == "auto" and sam is None),
        hashes={name: sha256_of(path) for name, path in files.items() if path is not None},
    )


def _sam_origin(checkpoint: Path) -> MaskOrigin:
    from handdata.pipeline.sam import sam_model_type_of

    origins: dict[str, MaskOrigin] = {"vit_h": "sam_vit_h", "vit_l": "sam_vit_l", "vit_b": "sam_vit_b"}
    return origins[sam_model_type_of(checkpoint)]


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
        cluster: _Cluster | None = None
        if annotator.overwritten:
            cluster = stack.enter_context(_Cluster(address, cpus, gpus))  # removes nothing where this fails
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
            cluster = cluster or stack.enter_context(_Cluster(address, cpus, gpus))
            actor: Any = ray.remote(num_cpus=1, max_restarts=0)(AnnotateWorker)
            sam_actors = _start_sam(models, gpus, stuck_after_s)
            supervisor = Supervisor(
                lambda: actor.remote(lease, settings, models, sam_actors, stuck_after_s), cluster.workers
            )
            for marker in supervisor.run(to_do):
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


class _Cluster:
    """A Ray cluster for the time of a run: an existing one, or one on this machine."""

    def __init__(self, address: str | None, cpus: int | None, gpus: int) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._cpus, self.gpus = cpus, gpus
        self._owned = False

    def __enter__(self) -> "_Cluster":
        if not ray.is_initialized():
            if self._address:
                connect(self._address)
            else:
                start_local(self._cpus)
            self._owned = True
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if self.gpus > resources.get("GPU", 0):
            available = int(resources.get("GPU", 0))
            self.__exit__()
            raise UsageError(
                f"--gpus {self.gpus} was asked for, the cluster has {available}",
                "lower --gpus, or add nodes to the cluster",
            )
        cores = max(1, int(resources.get("CPU", 1)))
        self.workers = min(self._cpus or cores, cores)
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            ray.shutdown()


class SamWorker:
    """SAM on one GPU, or on the CPU where there is none; runs as a Ray actor.

    Args:
        checkpoint: at the same path on every node.
        device: of torch.
        stuck_after_s: a batch that takes longer ends the process.

    """

    def __init__(self, checkpoint: Path, device: str, stuck_after_s: float) -> None:
        watchdog.set_limit(stuck_after_s)
        self._checkpoint, self._device = checkpoint, device
        self._segmenter: SamSegmenter | None = None
        self._opening = threading.Lock()

    def open(self) -> "SamSegmenter":
        """Load the model where it is not there yet, and return it."""
        with self._opening:
            if self._segmenter is None:
                self._segmenter = self._load()
            return self._segmenter

    def check(self) -> None:
        """Load the model, so that a file that is none is known before the work begins."""
        self.open()

    def _load(self) -> "SamSegmenter":
        from handdata.pipeline.sam import SamSegmenter, load_sam

        return SamSegmenter(load_sam(self._checkpoint), self._device)

    def propose(
        self, images: Sequence[ByteArray], keypoints: Sequence[FloatArray], valid: Sequence[BoolArray]
    ) -> list[ByteArray]:
        """Return the candidate masks of a batch of crops, (H, 3, S, S / 8) each: a bit a pixel."""
        segmenter = self.open()
        with watchdog.watched():
            return [np.packbits(masks, axis=-1) for masks in segmenter.propose(images, keypoints, valid)]


class SamClient:
    """A ``MaskModel`` that hands batches to SAM actors in turn."""

    def __init__(self, origin: MaskOrigin, actors: Sequence[Any]) -> None:
        self.origin = origin
        self._turns = itertools.cycle(actors)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a SamClient belongs to one worker: send its actors instead")

    def submit(self, crops: Sequence[PreparedCrop]) -> Callable[[], list[BoolArray]]:
        """Send a batch to the next actor. The choice among its candidates is made here: it would keep a GPU waiting."""
        from handdata.pipeline.sam import best_masks

        pending = next(self._turns).propose.remote(
            [crop.image for crop in crops], [crop.keypoints for crop in crops], [crop.valid for crop in crops]
        )

        def masks() -> list[BoolArray]:
            with watchdog.resting():
                packed = ray.get(pending)
            proposals = [np.unpackbits(bits, axis=-1).astype(bool) for bits in packed]
            return [
                best_masks(candidates[..., : crop.image.shape[1]], crop.keypoints, crop.valid)
                for candidates, crop in zip(proposals, crops, strict=True)
            ]

        return masks


class AnnotateWorker:
    """Takes whole units through all stages and commits them; runs as a Ray actor with one CPU.

    Args:
        lease: of this run on the dataset.
        settings: what makes a sample.
        models: model files, at the same paths on every node.
        sam_actors: Ray handles of the SAM workers, none without SAM.
        stuck_after_s: a record that takes longer ends the process.

    """

    def __init__(
        self, lease: Lease, settings: AnnotateSettings, models: Models, sam_actors: Sequence[Any], stuck_after_s: float
    ) -> None:
        watchdog.set_limit(stuck_after_s)
        self._lease, self._settings, self._models, self._sam_actors = lease, settings, models, sam_actors
        self._annotator_hash = settings.digest(models.hashes)
        self._detector: HandDetector | None = None
        self._mask_model: MaskModel | None = None
        self._meter = RayMeter()

    def open(self) -> Whereabouts:
        """Load the models, and return where this worker runs."""
        import cv2

        cv2.setNumThreads(1)
        models = self._models
        if models.hand_landmarker is not None:
            self._detector = HandDetector(models.hand_landmarker, self._settings.detection_confidence)
        if models.sam_origin is not None:
            self._mask_model = SamClient(models.sam_origin, self._sam_actors)
        elif models.grabcut:
            self._mask_model = GrabCutModel()
        return Whereabouts.of_this_process()

    def annotate(self, unit: PlannedUnit, crashed: Mapping[int, str]) -> UnitMarker:
        """Annotate and commit one unit, unless a worker that was thought dead has done it meanwhile.

        Args:
            unit: the unit.
            crashed: why the records at these positions are refused, unseen.

        """
        committed = read_marker(self._lease.storage, self._lease.dataset, unit)
        if committed:
            return committed
        records = read_unit(self._lease.storage, unit)
        samples, rejections = self._annotate(
            unit, [record for position, record in enumerate(records) if position not in crashed]
        )
        rejections += [
            Rejection(
                record_id=records[position].record_id,
                image_uri=records[position].image_uri,
                reason=RejectReason.WORKER_CRASHED,
                detail=why,
            )
            for position, why in sorted(crashed.items())
        ]
        with metered(self._meter, "write", len(samples)):
            thresholds = self._settings.quality.thresholds()
            return write_unit(self._lease, unit, samples, rejections, self._annotator_hash, thresholds=thresholds)

    def probe(self, unit: PlannedUnit, part: range) -> None:
        """Annotate some records of a unit, to see whether this process survives them."""
        self._annotate(unit, read_unit(self._lease.storage, unit)[part.start : part.stop])

    def _annotate(
        self, unit: PlannedUnit, records: Sequence[HandRecord]
    ) -> tuple[list[AnnotatedSample], list[Rejection]]:
        adapter = find_adapter(unit.source)(AdapterOptions())
        annotator = Annotator(
            open_mask=adapter.open_mask,
            license=adapter.card.license,
            settings=self._settings,
            annotator_hash=self._annotator_hash,
            detector=self._detector,
            mask_model=self._mask_model,
            meter=self._meter,
        )
        with watchdog.watched():
            return annotator.annotate(unit.unit_id, records)

    def close(self) -> None:
        """Release MediaPipe before the process ends."""
        if self._detector is not None:
            self._detector.close()


def _start_sam(models: Models, gpus: int, stuck_after_s: float) -> list[Any]:
    """Start a SAM actor a GPU, or one on the CPU."""
    if models.sam is None:
        return []
    actor: Any = ray.remote(SamWorker)
    actor = actor.options(num_gpus=1 if gpus else 0, **SAM_OPTIONS)
    device = "cuda" if gpus else "cpu"
    actors = [actor.remote(models.sam, device, stuck_after_s) for _ in range(max(gpus, 1))]
    try:
        ray.get([started.check.remote() for started in actors])
    except RayTaskError as error:
        if isinstance(error.cause, HandDataError):
            raise error.cause from None
        raise RunError(f"SAM does not start: {error.cause}") from None
    except RayError as error:
        raise RunError(f"SAM does not start: {error}", "has its node enough memory?") from None
    return actors
