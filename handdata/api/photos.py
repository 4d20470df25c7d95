"""Photographs: ``handdata.annotate_image``, and the images that a caller may give."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from handdata.api.errors import names_arguments
from handdata.pipeline.annotation.frames import read_image_file
from handdata.pipeline.annotation.photo import annotate_hands, read_photo
from handdata.pipeline.settings import load_settings
from handdata.schemas import NoHandError, RecordError, Side, UsageError, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray

Photo: TypeAlias = str | Path | Image.Image | NDArray[Any]
"""A photograph: path or URL of a file, PIL image, or array (H, W, 3) of RGB levels 0 to 255."""

_PNG_MODES = ("1", "I;16", "L", "LA", "P", "RGB", "RGBA")
_OF_UNKNOWN_RANGE = ("F", "I")


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """One hand of a photograph, in pixels of the upright photograph.

    Args:
        side: Side of the person's hand.
        score: MediaPipe's confidence, 0 to 1.
        keypoints: Joints (21, 2): wrist, then thumb to little finger from the palm outwards; zeros where not valid.
        valid: Which joints (21,) lie inside the photograph.
        mask: Pixels (H, W) of the hand.

    """

    side: Side
    score: float
    keypoints: FloatArray
    valid: BoolArray
    mask: BoolArray


@names_arguments
def annotate_image(image: Photo) -> list[Hand]:
    """Find the hands in a photograph with MediaPipe, and mask them with SAM where it is set up, else with GrabCut.

    Needs no workspace and no Ray. The photograph is taken upright, as its EXIF orientation says.

        >>> hands = handdata.annotate_image("photo.jpg")
        >>> [(hand.side, hand.keypoints.shape, hand.mask.shape) for hand in hands]
        [('right', (21, 2), (256, 256))]

    Args:
        image: Path, URL, PIL image, or array (H, W, 3) of RGB levels 0 to 255.

    Returns:
        At most one right and one left hand; none where no hand is found.

    Raises:
        UsageError: It is no readable image.
        WeightsError: MediaPipe's model is missing.

    """
    settings = load_settings()
    with image_file(image) as path:
        try:
            found = annotate_hands(path, settings.annotate, settings.weights)
        except NoHandError:
            return []
        nothing: ByteArray = np.zeros(read_photo(path).shape[:2], np.uint8)
    hands = []
    for hand in found:
        rows = hand_rows(hand.side)
        keypoints, valid = hand.square.to_full(hand.keypoints[rows]), hand.own[rows]
        keypoints[~valid] = 0
        white = np.full_like(hand.mask, 255, np.uint8)
        hands.append(
            Hand(
                side=hand.side,
                score=float(hand.score),
                keypoints=keypoints,
                valid=valid,
                mask=hand.square.paste(nothing, white, hand.mask) > 0,
            )
        )
    return hands


@contextmanager
def image_file(image: Photo) -> Iterator[Path]:
    """Yield the path of an image: its own, or that of a temporary file with its upright pixels.

    Raises:
        UsageError: It is no image.

    """
    if isinstance(image, str) and "://" in image:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(_downloaded(image))
            yield path
        return
    if isinstance(image, str | Path):
        yield Path(image).expanduser()
        return
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
            raise UsageError(
                f"an image is an array (H, W, 3) of uint8, this one is {image.shape} of {image.dtype}",
                "fractions 0 to 1 become levels by (255 * image).round().astype('uint8')",
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"an image is a path, a PIL image or an array (H, W, 3), not {type(image).__name__}")
    if image.mode in _OF_UNKNOWN_RANGE:
        raise UsageError(
            f"an image of mode {image.mode} has numbers whose range is not known",
            "make levels 0 to 255 of them, and image.convert('RGB')",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        upright = ImageOps.exif_transpose(image)
        (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(path, compress_level=1)
        yield path


def _downloaded(url: str) -> bytes:
    """Return the content of a file at any URL that fsspec knows.

    Raises:
        UsageError: There is no such file.
        StorageError: Its server is away, or does not let us in.

    """
    try:
        return read_image_file(url)
    except RecordError as error:
        raise UsageError(error.detail) from None
    except ValueError as error:  # a protocol that fsspec does not know
        raise UsageError(f"{url}: {error}") from None
