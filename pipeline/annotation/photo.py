"""The annotation of one photograph of the user's own, which sampling takes as reference or target."""

from pathlib import Path

import numpy as np

from handdata.pipeline.annotation.factory import AnnotatorFactory, ModelFiles
from handdata.pipeline.annotation.frames import decode_image, read_image_file
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import require_weights
from handdata.schemas import KEYPOINT_COUNT, AnnotatedSample, HandRecord, RecordError, UsageError
from handdata.schemas.arrays import BoolArray


def annotate_photo(path: Path, settings: AnnotateSettings, weights: Path | None = None) -> AnnotatedSample:
    """Find the hands in a photograph with MediaPipe, cut the square around them, and mask them with GrabCut.

    The photograph is taken upright, as its EXIF orientation says: phones store it as their sensor lies.

    Args:
        path: Image file.
        settings: Settings of the sample; those for keypoints, masks and crop are replaced.
        weights: Folder of model files that is searched first.

    Raises:
        UsageError: The file is no readable image, or MediaPipe finds no hand in it.
        WeightsError: MediaPipe's model is missing.

    """
    photo_settings = settings.model_copy(update={"keypoints": "mediapipe", "masks": "grabcut", "crop": "frame"})
    try:
        height, width, _ = decode_image(read_image_file(str(path)), str(path), upright=True).shape
    except RecordError as error:
        raise UsageError(error.detail) from None
    record = HandRecord(
        source="photo",
        split="test",
        sequence_id=path.stem,
        frame_index=0,
        image_uri=str(path.absolute()),
        width=width,
        height=height,
        viewpoint="exo",
        keypoints_2d=np.zeros((KEYPOINT_COUNT, 2)),
        keypoints_valid=np.zeros(KEYPOINT_COUNT, dtype=bool),
        hand_state=("unknown", "unknown"),
    )
    model = require_weights("hand_landmarker", weights)
    models = ModelFiles(hand_landmarker=model, sam=None, sam_origin=None, grabcut=True, hashes={})
    with AnnotatorFactory(photo_settings, models) as factory:
        samples, rejections = factory.make(_no_mask, "the user's own", upright=True).process("photo", [record])
    if not samples:
        raise UsageError(f"{path} cannot be used: {rejections[0].detail}", "use a photograph that shows the whole hand")
    return samples[0]


def _no_mask(record: HandRecord) -> BoolArray:
    raise AssertionError(f"{record.record_id} says that it has no mask")
