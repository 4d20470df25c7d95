"""Making annotators: which detector and which mask model a run uses is decided here, for every caller.

The workers of a run, the probe of an estimate and the annotation of a photograph differ only in where SAM runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from handdata.adapters import AdapterOptions
from handdata.adapters.registry import find_adapter
from handdata.pipeline.annotation.annotator import Annotator, GrabCutModel, MaskModel, PreparedCrop
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.annotation.meter import StageMeter, StageTally
from handdata.pipeline.records.provenance import Provenance
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import HandRecord
from handdata.schemas.arrays import BoolArray
from handdata.schemas.sample import MaskOrigin


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Model files of a run.

    Args:
        hand_landmarker: MediaPipe's model; None where no frame is searched for hands.
        sam: SAM's checkpoint; None without SAM.
        sam_origin: ``mask_origin`` of its masks.
        grabcut: Whether frames without another mask get one from GrabCut.
        hashes: SHA-256 of each file by name.

    """

    hand_landmarker: Path | None
    sam: Path | None
    sam_origin: MaskOrigin | None
    grabcut: bool
    hashes: dict[str, str]


class AnnotatorFactory:
    """Makes the annotators of one process, which share its models. Close it before the process ends.

    Args:
        settings: Settings that decide what a sample holds.
        models: Model files.
        open_sam: Function that returns the ``MaskModel`` for SAM, called where the run uses SAM.
        provenances: Where the records of each source come from; of other sources the adapter's card says the licence.

    """

    def __init__(
        self,
        settings: AnnotateSettings,
        models: ModelFiles,
        open_sam: Callable[[Path, MaskOrigin], MaskModel] | None = None,
        provenances: Mapping[str, Provenance] | None = None,
    ) -> None:
        self.settings = settings
        self._provenances = provenances or {}
        self.annotator_hash = settings.digest(models.hashes)
        self._detector: HandDetector | None = None
        if models.hand_landmarker is not None:
            self._detector = HandDetector(models.hand_landmarker, settings.detection_confidence)
        self._mask_model: MaskModel | None = GrabCutModel() if models.grabcut else None
        if open_sam is not None and models.sam is not None and models.sam_origin is not None:
            self._mask_model = open_sam(models.sam, models.sam_origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release MediaPipe."""
        if self._detector is not None:
            self._detector.close()

    def for_source(self, source: str, meter: StageMeter) -> Annotator:
        """Return an annotator of a source's records, which opens masks as the source's adapter does."""
        adapter = find_adapter(source)(AdapterOptions())
        of_card = Provenance(adapter.card.license, adapter.card.license_id)
        return self.make(adapter.open_mask, self._provenances.get(source, of_card), meter)

    def make(
        self,
        open_mask: Callable[[HandRecord], BoolArray],
        provenance: Provenance,
        meter: StageMeter | None = None,
    ) -> Annotator:
        """Return an annotator.

        Args:
            open_mask: Function that opens the dataset's own mask of a record.
            provenance: Where the records come from.
            meter: Receiver of the rows, rejections and seconds of each stage; by default they are counted for nobody.

        """
        return Annotator(
            open_mask=open_mask,
            license=provenance.license,
            license_id=provenance.license_id,
            source_release=provenance.release,
            settings=self.settings,
            annotator_hash=self.annotator_hash,
            detector=self._detector,
            mask_model=self._mask_model,
            meter=StageTally() if meter is None else meter,
        )


class LocalSam:
    """A ``MaskModel`` that runs SAM in this process.

    Args:
        checkpoint: SAM's checkpoint.
        origin: ``mask_origin`` of its masks.
        device: Device of torch.

    """

    def __init__(self, checkpoint: Path, origin: MaskOrigin, device: str) -> None:
        from handdata.pipeline.annotation.sam import SamSegmenter, load_sam

        self.origin = origin
        self._segmenter = SamSegmenter(load_sam(checkpoint), device)

    def submit(self, crops: Sequence[PreparedCrop]) -> Callable[[], list[BoolArray]]:
        """Compute the masks of a batch, and return a function that gives them."""
        from handdata.pipeline.annotation.sam import best_masks

        images, keypoints, valid = zip(*((crop.image, crop.keypoints, crop.valid) for crop in crops), strict=True)
        proposals = self._segmenter.propose(images, keypoints, valid)
        masks: list[BoolArray] = [best_masks(*labelled) for labelled in zip(proposals, keypoints, valid, strict=True)]
        return lambda: masks
