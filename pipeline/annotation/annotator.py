"""The annotation of one unit: decode, keypoints, crop, mask, encode, judge.

Everything here runs in one process and knows nothing of Ray; ``run.workers`` calls it inside Ray actors. A
``MaskModel`` makes the masks. It receives a batch before the next batch is prepared, so that a model in another process
works meanwhile.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import cv2
import numpy as np

from handdata._version import __version__
from handdata.pipeline.annotation.crop import CropSquare, require_in_image, square_around
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.annotation.frames import open_frames, reading_dataset
from handdata.pipeline.annotation.keypoints import FrameKeypoints
from handdata.pipeline.annotation.masks import grabcut_mask, mask_score, mask_spill
from handdata.pipeline.annotation.measures import contrast, perceptual_hash, sharpness
from handdata.pipeline.annotation.meter import StageMeter, StageTally, as_stage, metered, metered_each
from handdata.pipeline.annotation.tracking import runs_of
from handdata.pipeline.annotation.unit_hands import UnitHands
from handdata.pipeline.quality import judge
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import AnnotatedSample, EncodedImage, HandRecord, RecordError, Rejection, RejectReason, inside
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.record import MaskExtent
from handdata.schemas.rejection import rejection
from handdata.schemas.sample import COPIED_COLUMNS, MaskOrigin

BATCH_ROWS = 16
"""Number of crops that go to the mask model together."""

_LEAST_CONTRAST: Final = 1.5
"""Where the hand box has less contrast, there is nothing to segment."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PreparedCrop:
    """A frame after cropping, before its mask. Keypoints are crop pixels."""

    record: HandRecord
    frame: FrameKeypoints
    square: CropSquare
    image: ByteArray
    keypoints: FloatArray
    valid: BoolArray
    dataset_mask: BoolArray | None

    def outside_image(self) -> BoolArray:
        """Return the (S, S) pixels of the crop that lie outside the image."""
        size = self.square.size
        left, top, right, bottom = self.square.padding(self.record.width, self.record.height)
        middle = np.arange(size) + 0.5
        columns, rows = ((middle < low) | (middle > size - high) for low, high in ((left, right), (top, bottom)))
        return np.asarray(rows[:, None] | columns, dtype=np.bool_)

    def contrast(self) -> float:
        """Return the contrast of the hand box."""
        return contrast(self.image, self.keypoints, self.valid, self.outside_image(), self.square.scale)


class MaskModel(Protocol):
    """Makes hand masks from crops and keypoints."""

    origin: MaskOrigin
    """Value of the column ``mask_origin`` for its masks."""

    def submit(self, crops: Sequence[PreparedCrop]) -> Callable[[], list[BoolArray]]:
        """Start on a batch; the function that it returns waits for the (S, S) masks, one a crop."""
        ...


class GrabCutModel:
    """A ``MaskModel`` on the CPU: GrabCut, seeded by the skeleton."""

    origin: MaskOrigin = "grabcut"

    def submit(self, crops: Sequence[PreparedCrop]) -> Callable[[], list[BoolArray]]:
        """Compute the masks of a batch, and return a function that gives them."""
        masks = [self._mask(crop) for crop in crops]
        return lambda: masks

    @staticmethod
    def _mask(crop: PreparedCrop) -> BoolArray:
        if crop.contrast() < _LEAST_CONTRAST:
            # GrabCut would return its seed, the skeleton, which holds all keypoints and looks like a perfect mask.
            return np.zeros(crop.image.shape[:2], dtype=np.bool_)
        return grabcut_mask(crop.image, crop.keypoints, crop.valid, crop.outside_image())


@dataclass(frozen=True, slots=True)
class Annotator:
    """Makes samples from records, a unit at a time. What a unit becomes depends on its records alone.

    Args:
        open_mask: Function that opens the dataset's own mask of a record, as ``Adapter.open_mask`` does.
        license: Licence of the data.
        settings: Settings that decide what a sample holds.
        annotator_hash: Hash of the settings and model files.
        detector: MediaPipe; None where the policy needs no detections.
        mask_model: Maker of masks for frames without a usable mask of the dataset; None leaves them without a mask.
        meter: Receiver of the rows, rejections and seconds of each stage.
        license_id: SPDX id of the licence, or a ``LicenseRef-``; None where the samples are not stored.
        source_release: Release of the dataset, where its files tell.

    """

    open_mask: Callable[[HandRecord], BoolArray]
    license: str
    settings: AnnotateSettings
    annotator_hash: str
    detector: HandDetector | None
    mask_model: MaskModel | None
    meter: StageMeter = field(default_factory=StageTally)
    license_id: str | None = None
    source_release: str | None = None

    def process(self, unit_id: str, records: Sequence[HandRecord]) -> tuple[list[AnnotatedSample], list[Rejection]]:
        """Return the samples and the rejections of a unit's records, both in the order of the records.

        Frames are taken run by run (``tracking.runs_of``), so that hands are tracked and each video is decoded forward.
        """
        unit = UnitHands(
            [records[position] for run in runs_of(records) for position in run], self.detector, self.settings.keypoints
        )
        samples: list[AnnotatedSample] = []
        rejections: list[Rejection] = []
        under_way: tuple[list[PreparedCrop], Callable[[], list[BoolArray]]] | None = None
        prepared = self._prepared(unit, rejections)
        while crops := list(islice(prepared, BATCH_ROWS)):
            submitted = self._submit(crops)
            if under_way:
                samples += self._finished(unit_id, *under_way)
            under_way = crops, submitted
        if under_way:
            samples += self._finished(unit_id, *under_way)
        position = {record.record_id: number for number, record in enumerate(records)}
        samples = sorted(self._with_agreed_sides(unit, samples), key=lambda sample: position[sample.record_id])
        rejections.sort(key=lambda row: position[row.record_id])
        started = time.perf_counter()
        accepted, judged_out = judge(samples, self.settings.image_size, self.settings.quality)
        self.meter.passed("judge", len(accepted), time.perf_counter() - started)
        for row in judged_out:
            self.meter.rejected("judge", row.reason)
        return accepted, rejections + judged_out

    def _prepared(self, unit: UnitHands, rejections: list[Rejection]) -> Iterator[PreparedCrop]:
        """Yield the crops of all usable records, and add the other records to ``rejections``.

        A stable crop depends on the hands of its whole run. The frames are then decoded twice, since those of a unit do
        not fit into memory at once.
        """
        if self.settings.crop == "frame":
            yield from self._each(
                unit.records,
                lambda record, image: self.cut(record, image, self.locate(unit, record, image)),
                rejections,
            )
            return
        usable = list(
            self._each(unit.records, lambda record, image: (self.locate(unit, record, image), record)[1], rejections)
        )
        located = unit.agreed()
        runs: dict[tuple[str, str], list[FrameKeypoints]] = {}
        for record in usable:
            runs.setdefault((record.sequence_id, record.camera_id), []).append(located[record.record_id])

        def cut(record: HandRecord, image: ByteArray) -> PreparedCrop:
            run = runs[record.sequence_id, record.camera_id]
            return self.cut(record, image, located[record.record_id], run)

        yield from self._each(usable, cut, rejections)

    def _with_agreed_sides(self, unit: UnitHands, samples: Sequence[AnnotatedSample]) -> Iterator[AnnotatedSample]:
        """Yield the samples with the sides on which runs and views agree, known only when all frames are.

        Neither the square nor the mask depends on sides, so that only the columns about the hands change.
        """
        changed = unit.changed()
        for sample in samples:
            if sample.record_id in changed:
                square = CropSquare.from_xyxy(sample.crop_xyxy, self.settings.image_size)
                yield sample.model_copy(update=_hand_columns(changed[sample.record_id], square))
            else:
                yield sample

    def _each(
        self,
        records: Sequence[HandRecord],
        stage: Callable[[HandRecord, ByteArray], Result],
        rejections: list[Rejection],
    ) -> Iterator[Result]:
        """Yield what ``stage`` returns for every record and its pixels; a record that fails becomes a rejection."""
        for record, image in metered_each(self.meter, "decode", open_frames(records)):
            try:
                if isinstance(image, RecordError):
                    raise image
                yield stage(record, image)
            except RecordError as error:
                rejections.append(rejection(record.record_id, record.image_uri, error))

    @as_stage("keypoints")
    def locate(self, unit: UnitHands, record: HandRecord, image: ByteArray) -> FrameKeypoints:
        """Return the keypoints of a unit's next frame; sides may still change.

        Raises:
            RecordError: No hand is found.

        """
        return unit.locate(record, image)

    @as_stage("crop")
    def cut(
        self, record: HandRecord, image: ByteArray, frame: FrameKeypoints, run: Sequence[FrameKeypoints] = ()
    ) -> PreparedCrop:
        """Cut the square around a frame's hands, or around the hands of the whole run that it belongs to.

        Args:
            record: Record of the frame.
            image: (height, width, 3) RGB pixels of the frame.
            frame: Keypoints of the frame.
            run: Keypoints of all frames of the run, for a stable crop.

        Raises:
            RecordError: No joint lies in the image, the joints span far more than the image, or the dataset's mask
                cannot be used and no other is made.

        """
        settings = self.settings
        require_in_image(frame.keypoints[frame.valid], record.width, record.height)
        joints = np.concatenate([other.keypoints[other.valid] for other in run or (frame,)])
        square = square_around(joints, record.width, record.height, settings.crop_scale, settings.image_size)
        keypoints, valid = _in_crop(frame, square)
        return PreparedCrop(
            record=record,
            frame=frame,
            square=square,
            image=square.cut(image),
            keypoints=keypoints,
            valid=valid,
            dataset_mask=self._dataset_mask(record, square),
        )

    def _dataset_mask(self, record: HandRecord, square: CropSquare) -> BoolArray | None:
        if not record.has_mask or self.settings.masks not in ("auto", "dataset"):
            return None
        try:
            with reading_dataset():
                mask = self.open_mask(record)
            if mask.shape != (record.height, record.width):
                raise RecordError(
                    RejectReason.MASK_UNREADABLE,
                    f"the mask of {record.image_uri} has shape {mask.shape}, its image is "
                    f"{record.width} x {record.height}",
                )
        except RecordError:
            if self.mask_model is None:
                raise
            return None
        return square.cut_mask(mask)

    def _submit(self, crops: Sequence[PreparedCrop]) -> Callable[[], list[BoolArray]]:
        without = [crop for crop in crops if crop.dataset_mask is None]
        if self.mask_model is None or not without:
            return list
        with metered(self.meter, "mask", len(without)):
            return self.mask_model.submit(without)

    def _finished(
        self, unit_id: str, crops: Sequence[PreparedCrop], masks: Callable[[], list[BoolArray]]
    ) -> Iterator[AnnotatedSample]:
        with metered(self.meter, "mask", 0):
            made = iter(masks())
        for crop in crops:
            if crop.dataset_mask is not None:
                yield self.finish(unit_id, crop, crop.dataset_mask, "dataset", crop.record.mask_extent)
            elif self.mask_model is not None:
                yield self.finish(unit_id, crop, next(made), self.mask_model.origin, "hand")
            else:
                yield self.finish(unit_id, crop, None, None, None)

    @as_stage("encode")
    def finish(
        self,
        unit_id: str,
        crop: PreparedCrop,
        mask: BoolArray | None,
        mask_origin: MaskOrigin | None,
        mask_extent: MaskExtent | None,
    ) -> AnnotatedSample:
        """Measure a crop and its mask, encode both, and return the row with the flags that annotation observed."""
        record, square, settings = crop.record, crop.square, self.settings
        score = spill = None
        if mask is not None:
            score = mask_score(mask, crop.keypoints, crop.valid)
            spill = mask_spill(mask, crop.keypoints, crop.valid)
        return AnnotatedSample(
            sample_id=record.record_id,
            unit_id=unit_id,
            license=self.license,
            license_id=self.license_id,
            source_release=self.source_release,
            handdata_version=__version__,
            attributes=record.attributes,
            image=EncodedImage(bytes=encode_jpeg(crop.image, settings.jpeg_quality)),
            hand_mask=None if mask is None else EncodedImage(bytes=encode_png(mask)),
            mask_origin=mask_origin,
            mask_extent=mask_extent,
            mask_score=score,
            mask_spill=spill,
            sharpness=sharpness(crop.image, crop.keypoints, crop.valid),
            contrast=crop.contrast(),
            phash=perceptual_hash(crop.image),
            crop_xyxy=square.xyxy,
            pad_ltrb=square.padding(record.width, record.height),
            crop_mode=settings.crop,
            camera_k=None if record.camera_k is None else square.intrinsics(record.camera_k),
            annotator_hash=self.annotator_hash,
            **{name: getattr(record, name) for name in COPIED_COLUMNS},
            **_hand_columns(crop.frame, square),
        )


def _in_crop(frame: FrameKeypoints, square: CropSquare) -> tuple[FloatArray, BoolArray]:
    """Return a frame's keypoints in crop pixels and which of them are valid there."""
    keypoints = square.to_crop(frame.keypoints)
    valid = frame.valid & inside(keypoints, square.size, square.size)
    keypoints[~valid] = 0
    return keypoints, valid


def _hand_columns(frame: FrameKeypoints, square: CropSquare) -> dict[str, Any]:
    """Return the columns of a sample that depend on which hand is which."""
    keypoints, valid = _in_crop(frame, square)
    right, left = (None if distance is None else distance / square.scale for distance in frame.agreement)
    return {
        "hand_state": frame.hand_state,
        "keypoints_2d": keypoints,
        "keypoints_valid": valid,
        "keypoints_origin": frame.origin,
        "keypoints_score": frame.score,
        "agreement_px": (right, left),
        "hand_px": frame.hand_px(),
        "flags": tuple(sorted(frame.flags)),
    }


def encode_jpeg(image: ByteArray, quality: int) -> bytes:
    """Return an RGB image (S, S, 3) as a JPEG file."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)


def encode_png(mask: BoolArray) -> bytes:
    """Return a mask (S, S) as a PNG file of one channel, 0 or 255."""
    # Unfiltered rows: training decodes such a mask five times faster than one with OpenCV's own settings (0.2 ms for
    # 1.0 ms at 512 px), for about 1 KB more.
    unfiltered = [
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    ]
    _, data = cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255), unfiltered)
    return bytes(data)
