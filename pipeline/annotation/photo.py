"""The annotation of one photograph of the user's own, which sampling takes as reference or target, or repairs."""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import ExifTags, Image

from handdata.adapters.reading.images import NO_EXIF, open_image, orientation_of
from handdata.pipeline.annotation.annotator import Annotator, PreparedCrop
from handdata.pipeline.annotation.crop import CropSquare, square_around
from handdata.pipeline.annotation.detector import Detection, HandDetector
from handdata.pipeline.annotation.factory import AnnotatorFactory, LocalSam, ModelFiles
from handdata.pipeline.annotation.frames import decode_image, read_image_file, turned
from handdata.pipeline.annotation.keypoints import FrameKeypoints
from handdata.pipeline.annotation.people import MOST_IN_PHOTOGRAPH
from handdata.pipeline.annotation.search import box_hint, find_hands
from handdata.pipeline.records.provenance import Provenance
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import find_weights, require_weights
from handdata.schemas import (
    KEYPOINT_COUNT,
    SIDES,
    AnnotatedSample,
    HandRecord,
    NoHandError,
    RecordError,
    RejectReason,
    Side,
    UsageError,
    hand_rows,
    inside,
)
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.sample import CropMode, MaskOrigin

_SAM_MODELS: Final[tuple[MaskOrigin, ...]] = ("sam_vit_h", "sam_vit_l", "sam_vit_b")
"""The best first."""
_OWN: Final = Provenance("the user's own", "LicenseRef-own")
_ABOUT_PHOTO: Final = frozenset(
    {
        *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software),
        *(
            ExifTags.Base.DateTime,
            ExifTags.Base.Artist,
            ExifTags.Base.Copyright,
            ExifTags.IFD.Exif,
            ExifTags.IFD.GPSInfo,
        ),
    }
)
"""Tags that tell where a photograph comes from, not how its pixels are stored."""
_MASKED_CONFIDENCE: Final = 0.1
"""Least confidence of MediaPipe's palm detection where someone says that a hand is, as published."""
_COLOUR_SPACE: Final = slice(16, 20)
"""Bytes of an ICC profile that name the colour space of its pixels."""


@dataclass(frozen=True, slots=True)
class PhotoHand:
    """One hand of a photograph, in a square of its own.

    Args:
        square: Square around the hand.
        mask: The hand in the square (S, S).
        keypoints: Joints of both hands (42, 2), pixels of the square.
        valid: Joints (42,) inside the square.
        own: Those (42,) of this hand.
        side: Side of the hand.
        score: MediaPipe's confidence, 0 to 1.

    """

    square: CropSquare
    mask: BoolArray
    keypoints: FloatArray
    valid: BoolArray
    own: BoolArray
    side: Side
    score: float


def annotate_photo(path: Path, settings: AnnotateSettings, weights: Path | None = None) -> AnnotatedSample:
    """Find the hands in a photograph with MediaPipe, cut the square around them, and mask them.

    SAM makes the mask where its package and a checkpoint are on this machine and the settings do not say otherwise,
    else GrabCut. The photograph is taken upright, as its EXIF orientation says: phones store it as their sensor lies.

    Args:
        path: Image file.
        settings: Settings of the sample; those for keypoints and crop are replaced.
        weights: Folder of model files that is searched first.

    Raises:
        UsageError: The file is no readable image.
        NoHandError: MediaPipe finds no hand in it.
        WeightsError: MediaPipe's model is missing.

    """
    image = read_photo(path)
    with photo_factory(settings, weights) as factory:
        return _annotated(path, image, photo_annotator(factory))


def annotate_hands(path: Path, settings: AnnotateSettings, weights: Path | None = None) -> list[PhotoHand]:
    """Find the hands in a photograph, each with a square and a mask of its own; as ``annotate_photo`` otherwise."""
    image = read_photo(path)
    height, width, _ = image.shape
    with photo_factory(settings, weights) as factory:
        annotator = photo_annotator(factory)
        sample = _annotated(path, image, annotator)
        whole = CropSquare.from_xyxy(sample.crop_xyxy, settings.image_size)
        joints, valid = whole.to_full(sample.keypoints_2d), sample.keypoints_valid
        crops = []
        sides = [side for side in SIDES if valid[hand_rows(side)].any()]
        for rows in map(hand_rows, sides):
            own = np.zeros(KEYPOINT_COUNT, np.bool_)
            own[rows] = valid[rows]
            square = square_around(joints[own], width, height, settings.crop_scale, settings.image_size)
            crops.append(prepared_crop(photo_record(path, width, height), image, sample, square, joints, own))
        assert annotator.mask_model is not None
        masks = annotator.mask_model.submit(crops)()
    return [
        PhotoHand(
            square=crop.square,
            mask=mask,
            keypoints=crop.keypoints,
            valid=valid & inside(crop.keypoints, crop.square.size, crop.square.size),
            own=crop.valid,
            side=side,
            score=sample.keypoints_score[SIDES.index(side)],
        )
        for side, crop, mask in zip(sides, crops, masks, strict=True)
    ]


def prepared_crop(
    record: HandRecord,
    image: ByteArray,
    sample: AnnotatedSample,
    square: CropSquare,
    joints: FloatArray,
    own: BoolArray,
) -> PreparedCrop:
    """Return a square of an image as models of masks take it.

    Args:
        record: Record of the image.
        image: Upright pixels (height, width, 3) RGB.
        sample: What is known of its hands.
        square: Square to cut.
        joints: Joints (42, 2), pixels of the image.
        own: Those (42,) of the hands that are masked.

    """
    keypoints = square.to_crop(joints)
    return PreparedCrop(
        record=record,
        frame=FrameKeypoints(
            keypoints=joints,
            valid=own,
            hand_state=sample.hand_state,
            origin=sample.keypoints_origin,
            score=sample.keypoints_score,
            agreement=sample.agreement_px,
            flags=frozenset(),
        ),
        square=square,
        image=square.cut(image),
        keypoints=keypoints,
        valid=own & inside(keypoints, square.size, square.size),
        dataset_mask=None,
    )


def find_hands_at(
    image: ByteArray, boxes_xyxy: Sequence[FloatArray], settings: AnnotateSettings, weights: Path | None = None
) -> list[Detection]:
    """Find the hands in a photograph, looked for in some places above all: each hand once, the most confident first.

    Args:
        image: Upright pixels (height, width, 3) RGB.
        boxes_xyxy: Boxes (4,), pixels, in which someone says that there are hands.
        settings: Settings of the detector.
        weights: Folder of model files that is searched first.

    Raises:
        WeightsError: MediaPipe's model is missing.

    """
    confidence = min(settings.detection_confidence, _MASKED_CONFIDENCE)
    with HandDetector(require_weights("hand_landmarker", weights), confidence) as detector:
        return find_hands(detector, image, hints=[box_hint(box) for box in boxes_xyxy], most=MOST_IN_PHOTOGRAPH)


def read_photo(path: Path) -> ByteArray:
    """Return the upright pixels (height, width, 3) RGB of a photograph.

    Raises:
        UsageError: The file is no readable image.

    """
    try:
        return decode_image(read_image_file(str(path)), str(path), upright=True)
    except RecordError as error:
        raise UsageError(error.detail) from None


def has_alpha(path: Path) -> bool:
    """Return whether a photograph has transparency; False where it cannot be read, which reading its pixels says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(open_image(io.BytesIO(read_image_file(str(path)))).has_transparency_data)
    except Exception:  # Pillow has many
        return False


def read_alpha(path: Path) -> ByteArray | None:
    """Return the opacity (height, width) of a readable photograph's upright pixels; None where it has none."""
    stream = io.BytesIO(read_image_file(str(path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images, odd EXIF blocks, palettes with alpha
        photo = open_image(stream)
        if not photo.has_transparency_data:
            return None
        orientation = orientation_of(photo, stream)
        return turned(np.asarray(photo.convert("RGBA").getchannel("A")), orientation)


def like_photo(path: Path, pixels: ByteArray) -> Image.Image:
    """Return new pixels of a photograph as a picture with its transparency, colour profile and EXIF block.

    The block says that the picture stands upright, and has no thumbnail. As ``info["exif"]`` it is written only where
    it is handed to ``save``.

    Args:
        path: File of the photograph.
        pixels: Upright pixels (height, width, 3) RGB, as many as ``read_photo`` gives.

    """
    stream = io.BytesIO(read_image_file(str(path)))
    image = Image.fromarray(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images, odd EXIF blocks, palettes with alpha
        photo = open_image(stream)
        profile = photo.info.get("icc_profile")
        if (alpha := read_alpha(path)) is not None:
            image.putalpha(Image.fromarray(alpha))
        exif = _upright_exif(
            photo, image.size
        )  # last: Pillow turns the pixels of a TIFF by the block that this changes
    if profile is not None and profile[_COLOUR_SPACE] == b"RGB ":  # else of inks or of grey, which the pixels are not
        image.info["icc_profile"] = profile
    if exif:
        image.info["exif"] = exif
    return image


def _upright_exif(photo: Image.Image, size: tuple[int, int]) -> bytes:
    """Return the EXIF block of a photograph for its upright pixels; empty where it has none, or a damaged one."""
    try:
        exif = photo.getexif()
        if photo.format == "TIFF":  # where a tag may say how the file's pixels are stored
            for tag in set(exif).difference(_ABOUT_PHOTO):
                del exif[tag]
        if not exif:
            return b""
        exif[ExifTags.Base.Orientation] = 1
        details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
        for tag, length in zip((ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size, strict=True):
            if tag in details:
                details[tag] = length
        return exif.tobytes()
    except NO_EXIF:
        return b""


def photo_factory(
    settings: AnnotateSettings, weights: Path | None, crop: CropMode = "frame"
) -> AbstractContextManager[AnnotatorFactory]:
    """Return what makes annotators of the user's own images: MediaPipe, and SAM where it is set up, else GrabCut.

    Raises:
        WeightsError: MediaPipe's model is missing.

    """
    found = {name: find_weights(name, weights) for name in _SAM_MODELS}
    origin = next((name for name in _SAM_MODELS if found[name]), None)
    if settings.masks not in ("auto", "sam") or importlib.util.find_spec("segment_anything") is None:
        origin = None
    models = ModelFiles(
        hand_landmarker=require_weights("hand_landmarker", weights),
        sam=None if origin is None else found[origin],
        sam_origin=origin,
        grabcut=origin is None,
        hashes={},
    )
    photo_settings = settings.model_copy(
        update={"keypoints": "mediapipe", "masks": "sam" if origin else "grabcut", "crop": crop}
    )
    return AnnotatorFactory(photo_settings, models, partial(LocalSam, device=_device()) if origin else None)


def _device() -> str:
    import torch  # with SAM it is loaded anyway

    return "cuda" if torch.cuda.is_available() else "cpu"


def photo_annotator(factory: AnnotatorFactory) -> Annotator:
    """Return an annotator of images that have no labels."""
    return factory.make(_no_mask, _OWN)


def photo_record(path: Path, width: int, height: int) -> HandRecord:
    """Return the record of an image file of which nothing is known but its upright size."""
    return HandRecord(
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
        extra={"upright": True},
    )


def _annotated(path: Path, image: ByteArray, annotator: Annotator) -> AnnotatedSample:
    height, width, _ = image.shape
    samples, rejections = annotator.process("photo", [photo_record(path, width, height)])
    if not samples:
        error = NoHandError if rejections[0].reason == RejectReason.NO_HAND_FOUND else UsageError
        raise error(f"{path} cannot be used: {rejections[0].detail}", "use a photograph that shows the whole hand")
    return samples[0]


def _no_mask(record: HandRecord) -> BoolArray:
    raise AssertionError(f"{record.record_id} says that it has no mask")
