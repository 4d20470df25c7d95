"""``handdata sample fix``: the hands of a photograph drawn anew, and nothing else of it touched.

What is drawn anew is what a mask or a box says, or what is found around each hand. Each part has a square of its own,
as training crops have: two hands far apart would be small in one around both. The square is drawn at the network's
size and pasted into the photograph at the photograph's, with a soft edge inside the part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handdata.pipeline.annotation.crop import CropSquare
from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.photo import PhotoHand, annotate_hands, find_hands_at, read_photo
from handdata.pipeline.annotation.regions import require_size
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import KEYPOINT_COUNT, NoHandError, hand_rows, inside
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.pasting import EDGE_SHARE, paste_softly
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.samplers import Progress
from handdata.trainer.tasks import Sampler, redraw, require_none_needed

_MARGIN: Final = 0.25
"""Margin around a hand that is drawn anew, in sizes of the hand."""
_ONE_PART: Final = 1 / 32
"""Parts of a mask nearer to one another than this share of the photograph's longer side are drawn together."""
_LEAST_SIDE_PX: Final = 16
"""Least side of a square."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a photograph that is drawn at once.

    Args:
        region: Pixels (H, W) that are drawn anew.
        square: Square around them.
        keypoints: Joints of the hands (42, 2), pixels of the photograph.
        valid: Which of them (42,) are known.

    """

    region: BoolArray
    square: CropSquare
    keypoints: FloatArray
    valid: BoolArray

    def frame(self, image: ByteArray) -> Frame:
        """Return the square of a photograph as a frame."""
        keypoints, size = self.square.to_crop(self.keypoints), self.square.size
        return Frame(
            image=self.square.cut(image),
            mask=np.zeros((size, size), np.uint8),
            known=self.square.cut(_white(np.ones(image.shape[:2], np.bool_))),
            keypoints=keypoints,
            valid=self.valid & inside(keypoints, size, size),
        )


def fix_photo(
    sampler: Sampler,
    photo: Path,
    settings: AnnotateSettings,
    weights: Path | None = None,
    options: SamplingOptions = SamplingOptions(),
    progress: Progress | None = None,
    *,
    region: BoolArray | None = None,
    on_square: Callable[[int, Frame, BoolArray, ByteArray], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> ByteArray:
    """Return a photograph (H, W, 3) RGB with hands drawn anew; pixels outside the region are those of the photograph.

    Without a region each hand that MediaPipe finds is drawn: its hull with a margin, and its mask.

    Args:
        sampler: Network, autoencoder and preset.
        photo: Image file.
        settings: Annotation of photographs.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        options: Steps, guidance and seed.
        progress: Called after each denoising step.
        region: Upright pixels (H, W) that are drawn anew (``pipeline.annotation.regions`` reads them); None finds them.
        on_square: Called with the number of each square, the square, what of it (S, S) is drawn anew, and what the
            network drew of it (S, S, 3).
        on_note: Called with a line where no hand is found in a region.

    Raises:
        UsageError: The file is no readable image, the region is of another size, or the network needs a reference.
        NoHandError: No region is given, and MediaPipe finds no hand.

    """
    require_none_needed(sampler)
    image = read_photo(photo)
    size = sampler.preset.image_size
    if region is None:
        try:
            hands = annotate_hands(photo, settings, weights)
        except NoHandError as error:
            raise NoHandError(error.message, "say where hands are to be drawn: --mask or --box") from None
        parts = [_of_hand(hand, image, size, settings) for hand in hands]
    else:
        require_size(region, image, "the region")
        parts = _of_region(region, image, size, settings, weights)
        unseen = sum(not part.valid.any() for part in parts)
        if unseen and on_note:
            which = "the region" if len(parts) == 1 else f"{unseen} of the {len(parts)} parts of the region"
            on_note(f"no hand is found in {which}: it is drawn without keypoints")
    for number, part in enumerate(parts):

        def of_all(step: int, total: int, before: int = number) -> None:
            if progress:
                progress(before * total + step, len(parts) * total)

        # What was drawn of the other hand is part of the image that this hand has to fit.
        wanted = part.square.cut(_white(part.region)) > 0
        frame = part.frame(image)
        drawn = redraw(sampler, frame, wanted, options, progress=of_all)
        if on_square:
            on_square(number, frame, wanted, drawn)
        image = _pasted(image, drawn, part)
    return image


def _of_hand(hand: PhotoHand, image: ByteArray, size: int, settings: AnnotateSettings) -> _Part:
    """Return the part of a hand that was found: its hull with a margin, and its mask."""
    joints = hand.square.to_full(hand.keypoints)
    own = joints[hand.own]
    region = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(region, cv2.convexHull(np.round(own).astype(np.int32)), 1)
    margin = round(_MARGIN * float(np.ptp(own, axis=0).max()))
    wide = _dilated(region > 0, margin)
    nothing: ByteArray = np.zeros(wide.shape, np.uint8)
    wide |= hand.square.paste(nothing, _white(np.ones_like(hand.mask)), hand.mask) > 0
    (box,) = _boxes(wide.astype(np.int32), wide).values()
    return _Part(wide, _square(own, box, wide.shape, size, settings.crop_scale), joints, hand.valid)


def _of_region(
    region: BoolArray, image: ByteArray, size: int, settings: AnnotateSettings, weights: Path | None
) -> list[_Part]:
    """Return the parts of a region: one for each hand in it, and for what lies in no such square."""
    reach = round(_ONE_PART * max(region.shape))
    found, _ = ndimage.label(_dilated(region, reach))
    labels = np.asarray(found, np.int32)
    hands = find_hands_at(image, [box.ravel() for box in _boxes(labels, region).values()], settings, weights)
    for hand in hands:
        if of_hand := _labels_at(hand.keypoints, labels):
            labels[np.isin(labels, list(of_hand))] = min(of_hand)
    of_label = [_labels_at(hand.keypoints, labels) for hand in hands]
    boxes, sizes = _boxes(labels, region), np.bincount(labels[region])
    met = {label: [hand for hand, of_hand in zip(hands, of_label, strict=True) if label in of_hand] for label in boxes}
    squares: dict[int, CropSquare] = {}
    drawn_with: dict[int, int] = {}
    # Those with hands come first, and large ones: a small one that lies in their square is drawn with them.
    for label in sorted(boxes, key=lambda label: (not met[label], -sizes[label])):
        around = [] if met[label] else [other for other, square in squares.items() if _holds(square, boxes[label])]
        drawn_with[label] = around[0] if around else label
        if not around:
            focus = np.concatenate([boxes[label], *(hand.keypoints for hand in met[label])])
            squares[label] = _square(focus, boxes[label], image.shape[:2], size, settings.crop_scale)
    parts = []
    for label, square in squares.items():
        own = region & np.isin(labels, [each for each, other in drawn_with.items() if other == label])
        parts.append(_Part(own, square, *_joined([*met[label], *hands] if met[label] else [])))
    return parts


def _boxes(labels: NDArray[np.int32], region: BoolArray) -> dict[int, FloatArray]:
    """Return the first and the last column and row (2, 2) of each label in a region."""
    places = ndimage.find_objects(np.where(region, labels, 0))
    return {
        number: np.array([[x.start, y.start], [x.stop - 1, y.stop - 1]], np.float32)
        for number, place in enumerate(places, start=1)
        if place is not None
        for y, x in [place]
    }


def _holds(square: CropSquare, box: FloatArray) -> bool:
    first, last = box - [square.left, square.top]
    return bool(first.min() >= 0 and last.max() < square.side)


def _joined(hands: Sequence[Detection]) -> tuple[FloatArray, BoolArray]:
    """Return the joints (42, 2) of the first hand of each side, and which there are (42,)."""
    keypoints, valid = np.zeros((KEYPOINT_COUNT, 2), np.float32), np.zeros(KEYPOINT_COUNT, np.bool_)
    for hand in hands:
        rows = hand_rows(hand.side)
        if not valid[rows].any():
            keypoints[rows], valid[rows] = hand.keypoints, True
    return keypoints, valid


def _labels_at(points: FloatArray, labels: NDArray[np.int32]) -> set[int]:
    """Return the labels, but for 0, of the pixels that points (N, 2) lie in."""
    height, width = labels.shape
    x, y = np.round(points[inside(points, width, height)]).astype(int).T
    return set(labels[y, x].tolist()) - {0}


def _square(focus: FloatArray, box: FloatArray, shape: tuple[int, ...], size: int, scale: float) -> CropSquare:
    """Return the square that holds a box, around points (N, 2) and, where it can, inside a photograph (H, W)."""
    height, width = shape
    (low, high), (first, last) = (focus.min(axis=0), focus.max(axis=0)), box
    needed = int((last - first).max()) + 1
    side = max(round(scale * float((high - low).max())), needed, _LEAST_SIDE_PX)
    side = min(side, max(width, height))
    starts = []
    for axis, length in enumerate((width, height)):
        start = round((low[axis] + high[axis]) / 2 - (side - 1) / 2)
        start = max(min(start, int(first[axis])), int(last[axis]) + 1 - side)
        starts.append(min(max(start, 0), length - side) if side <= length else (length - side) // 2)
    return CropSquare(left=starts[0], top=starts[1], side=side, size=size)


def _pasted(image: ByteArray, drawn: ByteArray, part: _Part) -> ByteArray:
    """Return a photograph with a drawn square (S, S, 3) pasted into the region of a part."""
    square, (height, width) = part.square, part.region.shape
    enlarges = square.size < square.side
    pixels = cv2.resize(
        drawn, (square.side, square.side), interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA
    )
    layer = image.copy()
    top, left = max(square.top, 0), max(square.left, 0)
    shown = layer[top : min(square.top + square.side, height), left : min(square.left + square.side, width)]
    row, column = top - square.top, left - square.left
    shown[:] = pixels[row : row + shown.shape[0], column : column + shown.shape[1]]
    return paste_softly(image, layer, part.region, EDGE_SHARE * square.side)


def _dilated(region: BoolArray, reach: int) -> BoolArray:
    """Return a region (H, W) with all pixels that lie no farther from it than ``reach``."""
    return np.asarray(cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= reach)


def _white(region: BoolArray) -> ByteArray:
    return np.where(region, np.uint8(255), np.uint8(0))
