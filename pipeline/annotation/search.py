"""The search for hands in one image: in the whole image first, then in windows where that found too little.

MediaPipe's palm detector works on 192 x 192 pixels and expects palms of medium size: it misses small hands in wide
frames and hands that fill the image. Both are found in a window in which the hand takes the right share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from handdata.pipeline.annotation.detector import MOST_HANDS, Detection, HandDetector, distance_in_sizes
from handdata.schemas import HandRecord, Side
from handdata.schemas.arrays import ByteArray, FloatArray

BEST_SHARE: Final = 0.22
"""Share of the image's longer side at which hands are located best (``benchmarks/accuracy.py``)."""
SMALL_SHARE: Final = 0.14
"""A hand below this share is searched for again in a window, and tiles are searched for others."""
DOUBTFUL_SCORE: Final = 0.8
"""A hand whose side is less certain than this is searched for again in a window."""
SAME_HAND: Final = 0.35
"""Two detections show the same hand if their joints are, on average, closer than this many hand sizes."""
WIDE: Final = 1.25
"""An image whose longer side is at least this many times the shorter is also searched in tiles."""

_HINT_MARGIN = 2.0
"""Side of the window around a hint's box, over the box's longer side."""
_CENTRE_WINDOW = 0.4
"""Side of the window around a hint that is a point, as a share of the image's longer side."""
_ZOOM_OUT = 2.0
_MOST_REFINED = 4
_MOST_TILES = 12
"""A strip of 2,000 x 2 pixels would be a thousand squares."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image, in whole pixels; it may reach over the image's border."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: ByteArray) -> ByteArray:
        """Return the window's pixels; beyond the border the image's last row or column is repeated."""
        height, width = image.shape[:2]
        right, bottom = self.left + self.width, self.top + self.height
        part = image[max(self.top, 0) : max(bottom, 0), max(self.left, 0) : max(right, 0)]
        if part.shape[:2] == (self.height, self.width):
            return part
        outside = (max(-self.top, 0), max(bottom - height, 0), max(-self.left, 0), max(right - width, 0))
        return np.asarray(cv2.copyMakeBorder(part, *outside, cv2.BORDER_REPLICATE), dtype=np.uint8)

    def moved_to_full(self, detections: Sequence[Detection]) -> list[Detection]:
        """Return detections in the window's pixels as detections in the full image's."""
        corner = np.array([self.left, self.top], dtype=np.float32)
        return [replace(detection, keypoints=detection.keypoints + corner) for detection in detections]

    def clipped(self, width: int, height: int) -> "Window":
        """Return the part of the window that lies in an image of this size."""
        left, top = min(max(self.left, 0), width - 1), min(max(self.top, 0), height - 1)
        right, bottom = min(self.left + self.width, width), min(self.top + self.height, height)
        return Window(left, top, max(right - left, 1), max(bottom - top, 1))


@dataclass(frozen=True, slots=True)
class Hint:
    """A place where a dataset, or an earlier frame, says that a hand is.

    Args:
        window: Window to search.
        box_xyxy: (4,) pixels of the image; a hand whose middle lies in this box is the hinted one.
        side: Side of the hand, where the hint names it.

    """

    window: Window
    box_xyxy: FloatArray
    side: Side | None = None

    def meets(self, detection: Detection) -> bool:
        """Return whether a detection is the hinted hand."""
        x, y = detection.centre
        return bool(self.box_xyxy[0] <= x <= self.box_xyxy[2] and self.box_xyxy[1] <= y <= self.box_xyxy[3])


def square_window(centre: NDArray[np.floating], side: float) -> Window:
    """Return the square of this side around a point, in whole pixels."""
    whole = max(round(side), 16)
    left, top = np.round(centre - (whole - 1) / 2).astype(int)
    return Window(int(left), int(top), whole, whole)


def record_hints(record: HandRecord) -> list[Hint]:
    """Return the hints in a record's ``extra``.

    All adapters use the same names: ``boxes_xyxy_px`` with ``box_sides`` (whole hands), ``centres_xy_px`` with
    ``centre_sides`` (middles of hands), ``person_box_xyxy_px`` (the person who signs).
    """
    extra = record.extra or {}
    hints = []
    for name, sides in (("boxes_xyxy_px", "box_sides"), ("centres_xy_px", "centre_sides")):
        for numbers, side in zip(extra.get(name, ()), extra.get(sides, ()), strict=False):
            if name == "boxes_xyxy_px":
                hints.append(box_hint(np.asarray(numbers, dtype=np.float32), side))
            else:
                reach = _CENTRE_WINDOW * max(record.width, record.height)
                point = np.asarray(numbers, dtype=np.float32)
                box = np.concatenate([point - reach / 4, point + reach / 4])
                hints.append(Hint(square_window(point, reach), box, side))
    return hints


def box_hint(box_xyxy: FloatArray, side: Side | None = None) -> Hint:
    """Return the hint that a hand is in a box."""
    extent = float((box_xyxy[2:] - box_xyxy[:2]).max())
    return Hint(square_window((box_xyxy[:2] + box_xyxy[2:]) / 2, _HINT_MARGIN * extent), box_xyxy, side)


def person_window(record: HandRecord) -> Window | None:
    """Return the part of the image that shows the person; None where the record does not tell."""
    box = (record.extra or {}).get("person_box_xyxy_px")
    if box is None:
        return None
    left, top, right, bottom = (round(value) for value in box)
    return Window(left, top, right - left, bottom - top).clipped(record.width, record.height)


def search(
    detector: HandDetector, image: ByteArray, window: Window | None = None, most: int = MOST_HANDS
) -> list[Detection]:
    """Return the hands that the detector sees in the image or in a window of it, in pixels of the image.

    Args:
        detector: Detector of hands.
        image: (H, W, 3) RGB.
        window: Part of the image to search; all of it by default.
        most: Number of hands at most, of all of the image.

    """
    if window is None:
        return merge(detector.detect(image, most))
    return window.moved_to_full(detector.detect(window.cut(image)))


def search_around(detector: HandDetector, image: ByteArray, hand: Detection) -> list[Detection]:
    """Return the hands in the window in which a known hand takes its best share.

    The window of a large hand reaches over the image's border.
    """
    height, width = image.shape[:2]
    side = hand.size / BEST_SHARE
    window = square_window(hand.centre, min(side, _ZOOM_OUT * max(width, height)))
    return search(detector, image, window.clipped(width, height) if side <= max(width, height) else window)


def find_hands(
    detector: HandDetector,
    image: ByteArray,
    *,
    hints: Sequence[Hint] = (),
    person: Window | None = None,
    expected: int = 0,
    closer: bool = True,
    most: int = MOST_HANDS,
) -> list[Detection]:
    """Return the hands in an image, each once, the most confident first.

    The whole image is searched first. Windows are searched only where that finds nothing, fewer hands than expected, a
    small hand or a hand of uncertain side: windows around hints that no hand meets; then two tiles or more of a wide
    image or of the person; then the image with a border around it; last, windows around hands not yet seen at their
    best size.

    Args:
        detector: Detector of hands.
        image: (H, W, 3) RGB.
        hints: Places where hands may be.
        person: Part of the image that shows the person.
        expected: Number of hands that there should be.
        closer: Whether to search windows at all.
        most: Number of hands that the image as a whole is searched for.

    """
    seen = search(detector, image, most=most)
    missed = [hint for hint in hints if not any(map(hint.meets, seen))]
    small = any(hand.share < SMALL_SHARE for hand in seen)
    lacking = len(seen) < max(expected, 1)
    if not closer or not (lacking or small or missed or any(map(_doubtful, seen))):
        return _named(seen, hints)
    windows = [hint.window for hint in missed]
    found = [hand for window in windows for hand in search(detector, image, window)]
    if len(merge(seen + found)) < max(expected, 1) or (small and not hints):
        found += [hand for window in _tiles(image, person) for hand in search(detector, image, window)]
        if not seen and not found:
            found += search(detector, image, _with_border(image))
    candidates = merge(seen + found)
    for hand in candidates[:_MOST_REFINED]:
        if hand.share < SMALL_SHARE or hand.share > 2 * BEST_SHARE or _doubtful(hand):
            found += search_around(detector, image, hand)
    return _named(merge(seen + found), hints)


def merge(detections: Sequence[Detection]) -> list[Detection]:
    """Return each hand once, the most confident first.

    The detection that saw a hand nearest to the best size is kept. All detections of it vote on its side; one that saw
    the hand nearer to the best size counts more.
    """
    groups: list[list[Detection]] = []
    for detection in sorted(detections, key=_misfit):
        for group in groups:
            if _same_hand(group[0], detection):
                group.append(detection)
                break
        else:
            groups.append([detection])
    return sorted(map(_agreed, groups), key=lambda hand: -hand.score)


def _same_hand(one: Detection, other: Detection) -> bool:
    """Return whether two detections show one hand; two hands that cover each other are as near, but differ in side."""
    surely_two = one.side != other.side and min(one.score, other.score) > DOUBTFUL_SCORE
    return distance_in_sizes(one, other) < (SAME_HAND / 2 if surely_two else SAME_HAND)


def _agreed(group: Sequence[Detection]) -> Detection:
    if len(group) == 1:
        return group[0]
    weights = [math.exp(-_misfit(detection)) for detection in group]
    log_odds = float(np.average([detection.side_log_odds for detection in group], weights=weights))
    side: Side = "right" if log_odds > 0 else "left"
    # Joints come from a detection with this side: where a hand is taken for the other, its joints lie elsewhere.
    best = next((detection for detection in group if detection.side == side), group[0])
    return replace(best, side=side, score=1 / (1 + math.exp(-abs(log_odds))))


def _misfit(detection: Detection) -> float:
    """Return how far the size at which a hand was seen is from the best size, 0 where it is the best."""
    return abs(math.log(max(detection.share, 1e-3) / BEST_SHARE))


def _doubtful(hand: Detection) -> bool:
    return hand.score < DOUBTFUL_SCORE


def _named(hands: Sequence[Detection], hints: Sequence[Hint]) -> list[Detection]:
    """Return the hands; one that alone meets a hint takes the hint's side: a label counts more than a detection."""
    named = list(hands)
    for hint in hints:
        met = [number for number, hand in enumerate(named) if hint.meets(hand)]
        if hint.side is not None and len(met) == 1:
            named[met[0]] = replace(named[met[0]], side=hint.side, score=1.0)
    return named


def _tiles(image: ByteArray, person: Window | None) -> list[Window]:
    """Return overlapping windows that together cover a wide image, or the person in it: squares, or not too many."""
    height, width = image.shape[:2]
    area = person or Window(0, 0, width, height)
    side, longer = sorted((area.width, area.height))
    if longer < WIDE * side:
        return [] if person is None else [person]
    count = min(max(2, math.ceil(longer / side)), _MOST_TILES)
    length = max(side, math.ceil(2 * longer / (count + 1)) if count * side < longer else 0)
    starts = np.linspace(0, longer - length, count).round().astype(int).tolist()
    if area.width >= area.height:
        return [Window(area.left + start, area.top, length, side) for start in starts]
    return [Window(area.left, area.top + start, side, length) for start in starts]


def _with_border(image: ByteArray) -> Window:
    height, width = image.shape[:2]
    return Window(-width // 2, -height // 2, 2 * width, 2 * height)
