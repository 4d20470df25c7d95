"""The Ray actors of ``annotate``: one takes whole units through all stages, one serves SAM's masks to several of those.

Thin shells around ``pipeline.annotation``: models are loaded on the worker, a watchdog ends what is stuck.
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from handdata.pipeline.annotation import watchdog
from handdata.pipeline.annotation.annotator import PreparedCrop
from handdata.pipeline.annotation.factory import AnnotatorFactory, ModelFiles
from handdata.pipeline.annotation.meter import metered
from handdata.pipeline.records.provenance import Provenance
from handdata.pipeline.records.stored import read_ingest_summary
from handdata.pipeline.run.cluster import answer_of, require_cluster
from handdata.pipeline.run.ray_meter import RayMeter
from handdata.pipeline.run.supervisor import WorkerPlace
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.commit import write_unit
from handdata.pipeline.shards.lease import Lease
from handdata.pipeline.shards.markers import read_marker
from handdata.pipeline.shards.plan import PlannedUnit, read_unit
from handdata.schemas import (
    AnnotatedSample,
    HandDataError,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    RunError,
    UnitMarker,
)
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.rejection import rejection
from handdata.schemas.sample import MaskOrigin

if TYPE_CHECKING:
    from handdata.pipeline.annotation.sam import SamSegmenter


SAM_OPTIONS: Final[dict[str, Any]] = {
    "num_cpus": 0,
    # Two calls at a time: while one is on the GPU, the other's images are resized.
    "max_concurrency": 2,
    # Ray starts an actor that died again, and repeats the calls that it was busy with once; if it dies over a call
    # again, that call's unit is tried again as a whole.
    "max_restarts": -1,
    "max_task_retries": 1,
}
"""Ray's options of SAM actors."""


class SamWorker:
    """SAM on one GPU, or on the CPU where there is none; runs as a Ray actor.

    Args:
        checkpoint: SAM's checkpoint, at the same path on every node.
        device: Device of torch.
        stuck_after_s: Seconds after which a batch ends the process.

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
        from handdata.pipeline.annotation.sam import SamSegmenter, load_sam

        return SamSegmenter(load_sam(self._checkpoint), self._device)

    def propose(
        self, images: Sequence[ByteArray], keypoints: Sequence[FloatArray], valid: Sequence[BoolArray]
    ) -> list[ByteArray]:
        """Return the candidate masks of a batch of crops, (H, 3, S, S / 8) each: a bit a pixel."""
        segmenter = self.open()
        with watchdog.watched():
            return [np.packbits(masks, axis=-1) for masks in segmenter.propose(images, keypoints, valid)]


class RemoteSam:
    """A ``MaskModel`` that hands batches to SAM actors in turn."""

    def __init__(self, origin: MaskOrigin, actors: Sequence[Any]) -> None:
        self.origin = origin
        self._turns = itertools.cycle(actors)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a RemoteSam belongs to one worker: send its actors instead")

    def submit(self, crops: Sequence[PreparedCrop]) -> Callable[[], list[BoolArray]]:
        """Send a batch to the next actor. The choice among its candidates is made here: it would keep a GPU waiting."""
        from handdata.pipeline.annotation.sam import best_masks

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
        lease: Lease of this run on the dataset.
        settings: What makes a sample.
        models: Model files, at the same paths on every node.
        sam_actors: Ray handles of the SAM workers, none without SAM.
        stuck_after_s: Seconds after which a record ends the process.
        provenances: Where the records of each source come from; of other sources, from where they were ingested.

    """

    def __init__(
        self,
        lease: Lease,
        settings: AnnotateSettings,
        models: ModelFiles,
        sam_actors: Sequence[Any],
        stuck_after_s: float,
        provenances: Mapping[str, Provenance],
    ) -> None:
        watchdog.set_limit(stuck_after_s)
        self._lease = lease
        self._open_factory = partial(
            AnnotatorFactory, settings, models, lambda checkpoint, origin: RemoteSam(origin, sam_actors), provenances
        )
        self._roots = {source: provenance.root for source, provenance in provenances.items()}
        self._meter = RayMeter()

    def open(self) -> WorkerPlace:
        """Load the models, and return where this worker runs."""
        import cv2

        cv2.setNumThreads(1)
        self._factory = self._open_factory()
        return WorkerPlace.of_this_process()

    def commit(self, unit: PlannedUnit, crashed: Mapping[int, str]) -> UnitMarker:
        """Annotate and commit one unit, unless a worker that was thought dead has done it meanwhile.

        Args:
            unit: Unit of the plan.
            crashed: Reasons why the records at these positions are rejected unseen.

        """
        committed = read_marker(self._lease.dataset, unit)
        if committed:
            return committed
        root = self._root_of(unit)
        records = read_unit(self._lease.dataset.storage, unit, root)
        samples, rejections = self._process(
            unit, [record for position, record in enumerate(records) if position not in crashed]
        )
        rejections += [
            rejection(
                records[position].record_id,
                records[position].image_uri,
                RecordError(RejectReason.WORKER_CRASHED, why),
            )
            for position, why in sorted(crashed.items())
        ]
        with metered(self._meter, "write", len(samples)):
            thresholds = self._factory.settings.quality.thresholds()
            made_by = self._factory.annotator_hash
            return write_unit(self._lease, unit, samples, rejections, made_by, thresholds=thresholds, root=root)

    def probe(self, unit: PlannedUnit, part: range) -> None:
        """Annotate some records of a unit, to see whether this process survives them."""
        records = read_unit(self._lease.dataset.storage, unit, self._root_of(unit))
        self._process(unit, records[part.start : part.stop])

    def _root_of(self, unit: PlannedUnit) -> str:
        return self._roots.get(unit.source) or read_ingest_summary(self._lease.dataset.storage, unit.source).root

    def _process(
        self, unit: PlannedUnit, rows: Sequence[HandRecord | Rejection]
    ) -> tuple[list[AnnotatedSample], list[Rejection]]:
        annotator = self._factory.for_source(unit.source, self._meter)
        with watchdog.watched():
            records = [row for row in rows if isinstance(row, HandRecord)]
            samples, rejections = annotator.process(unit.unit_id, records)
        return samples, [*rejections, *(row for row in rows if isinstance(row, Rejection))]

    def close(self) -> None:
        """Release MediaPipe before the process ends."""
        self._factory.close()


_ANNOTATE_ACTOR: Any = ray.remote(num_cpus=1, max_restarts=0)(AnnotateWorker)


def start_worker(
    lease: Lease,
    settings: AnnotateSettings,
    models: ModelFiles,
    sam_actors: Sequence[Any],
    stuck_after_s: float,
    provenances: Mapping[str, Provenance],
) -> Any:
    """Start an ``AnnotateWorker`` on a CPU of its own; it loads its models with its first call."""
    return _ANNOTATE_ACTOR.remote(lease, settings, models, sam_actors, stuck_after_s, provenances)


def start_sam(models: ModelFiles, gpus: int, stuck_after_s: float) -> list[Any]:
    """Start a SAM actor a GPU, or one on the CPU."""
    if models.sam is None:
        return []
    actor: Any = ray.remote(SamWorker)
    actor = actor.options(num_gpus=1 if gpus else 0, **SAM_OPTIONS)
    device = "cuda" if gpus else "cpu"
    actors = [actor.remote(models.sam, device, stuck_after_s) for _ in range(max(gpus, 1))]
    try:
        for started in [started.check.remote() for started in actors]:
            answer_of(started)
    except RayTaskError as error:
        if isinstance(error.cause, HandDataError):
            raise error.cause from None
        raise RunError(f"SAM does not start: {error.cause}") from None
    except RayError as error:
        require_cluster()
        raise RunError(f"SAM does not start: {error}", "has its node enough memory?") from None
    return actors
