"""MediaPipe's hand landmarker as a plain object: RGB images or frames of a video in, hands out."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from handdata.pipeline.annotation.quiet import hide_log_lines
from handdata.schemas import KEYPOINTS_PER_HAND, Side
from handdata.schemas.arrays import ByteArray, FloatArray

_NAME_WEIGHT, _SHAPE_WEIGHT = 2.7, 2.1
"""Weights of MediaPipe's name and of the hand's shape in the log odds of a hand's side: a logistic regression over
3,300 detections of synthetic hands (``benchmarks/accuracy.py --seed 7``, not the set that is reported)."""
_CLEAR_OPPOSITION = 0.1
"""Distance of the thumb from the palm's plane, in palm lengths, at which the shape tells the side well."""
_MOST_CERTAIN = 0.999
MOST_HANDS = 2
"""Hands that are looked for, where nothing says that there may be more."""
_FRAME_MS = 33
"""Time between two frames that the video mode receives; it needs rising times and does nothing else with them."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One hand that the detector saw.

    Args:
        side: Side of the person's hand, from MediaPipe's name and the shape of the hand together. In an image that is
            not mirrored the Tasks API's "Right" is the person's right hand; only the older interface needed swapping.
        score: Confidence of the side, 0.5 to 1 (the Tasks API reports no other).
        keypoints: (21, 2) pixels of the image, in the order of ``handdata.schemas.joints``.
        share: Longer side of the hand's keypoint box, over the longer side of the image or window that was searched.
        track: Number of the hand among those of a unit, -1 before it has one.
        contested: Whether the side goes against the evidence, since another hand of the frame has the better claim to
            it.

    """

    side: Side
    score: float
    keypoints: FloatArray
    share: float = 1.0
    track: int = -1
    contested: bool = False

    @property
    def size(self) -> float:
        """Longer side of the box of the joints, pixels."""
        return float(np.ptp(self.keypoints, axis=0).max())

    @property
    def centre(self) -> FloatArray:
        """Middle of the box of the joints, (2,) pixels."""
        return np.asarray((self.keypoints.min(axis=0) + self.keypoints.max(axis=0)) / 2, dtype=np.float32)

    @property
    def side_vote(self) -> float:
        """Evidence for the right hand (above 0, at most 1) or for the left (below 0, at least -1)."""
        weight = 2 * self.score - 1
        return weight if self.side == "right" else -weight

    @property
    def side_log_odds(self) -> float:
        """Logarithm of the odds of the right hand, finite."""
        score = min(self.score, _MOST_CERTAIN)
        log_odds = math.log(score / (1 - score))
        return log_odds if self.side == "right" else -log_odds


def distance_in_sizes(one: Detection, other: Detection) -> float:
    """Return the mean distance of two detections' joints over the size of the larger."""
    distance = np.linalg.norm(one.keypoints - other.keypoints, axis=1).mean()
    return float(distance / max(one.size, other.size, 1.0))


@dataclass(slots=True)
class _Tracker:
    landmarker: Any
    time_ms: int = 0
    tracking: bool = field(default=False)


class HandDetector:
    """Finds hands in still images, and tracks hands through a video.

    Close it, or use it as a context manager: MediaPipe's object raises or hangs when it is collected while the
    interpreter exits.
    """

    def __init__(self, model_path: Path, confidence: float) -> None:
        self._model_path, self._confidence = model_path, confidence
        self._stills: dict[int, Any] = {MOST_HANDS: self._landmarker("IMAGE", MOST_HANDS)}
        self._trackers: dict[int, _Tracker] = {}

    def detect(self, image: ByteArray, hands: int = MOST_HANDS) -> list[Detection]:
        """Return the hands in an (H, W, 3) RGB image, at most ``hands``, the most confident first."""
        if hands not in self._stills:
            self._stills[hands] = self._landmarker("IMAGE", hands)
        return _detections(self._stills[hands].detect(_frame(image)), image)

    def track(self, image: ByteArray, hands: int, *, restart: bool) -> list[Detection]:
        """Return the hands in the next (H, W, 3) RGB frame of a video, the most confident first.

        As long as all ``hands`` are tracked, the palm detector rests: two to three times as fast as ``detect``. The
        result depends only on the frames since the last restart.

        Args:
            image: The frame; all frames since a restart must have one size.
            hands: Number of hands in the video; no more than these are found.
            restart: Whether to forget the tracked hands: before another video, or after a cut.

        """
        tracker = self._trackers.get(hands)
        if tracker is None:
            tracker = self._trackers[hands] = _Tracker(self._landmarker("VIDEO", hands))
        if restart and tracker.tracking:
            # A frame without hands ends the tracking; a new object would cost as much as several detections.
            self._next(tracker, np.zeros((64, 64, 3), dtype=np.uint8))
        tracker.tracking = True
        return _detections(self._next(tracker, image), image)

    def close(self) -> None:
        """Release MediaPipe's graphs."""
        for landmarker in (*self._stills.values(), *(tracker.landmarker for tracker in self._trackers.values())):
            landmarker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _landmarker(self, mode: str, hands: int) -> Any:
        from mediapipe.tasks.python import BaseOptions, vision

        hide_log_lines()
        options = vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self._model_path)),
            running_mode=vision.RunningMode[mode],
            num_hands=hands,
            min_hand_detection_confidence=self._confidence,
        )
        return vision.HandLandmarker.create_from_options(options)

    @staticmethod
    def _next(tracker: _Tracker, image: ByteArray) -> Any:
        tracker.time_ms += _FRAME_MS
        return tracker.landmarker.detect_for_video(_frame(image), tracker.time_ms)


def _frame(image: ByteArray) -> Any:
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))


def thumb_opposition(world: NDArray[np.floating]) -> float:
    """Return the side of the palm's plane on which the thumb lies: above 0 for right hands, below 0 for left hands.

    Args:
        world: (21, 3) joints in space, in MediaPipe's axes and at any scale.

    """
    palm = world - world[0]
    thumb, index, middle, ring, little = palm[[4, 5, 9, 13, 17]]
    reach = thumb - (index + middle + ring + little) / 4
    # Index and little finger, seen from the wrist, span a plane whose normal points out of a right hand's palm.
    (ax, ay, az), (bx, by, bz), (rx, ry, rz) = index.tolist(), little.tolist(), reach.tolist()
    volume = rx * (ay * bz - az * by) + ry * (az * bx - ax * bz) + rz * (ax * by - ay * bx)
    return float(volume / max(math.hypot(*middle.tolist()) ** 3, 1e-12))


def side_vote(named: Side, score: float, opposition: float) -> float:
    """Return the evidence of MediaPipe's name and the hand's shape for the right hand (above 0) or the left (below 0).

    It is the probability of the right hand minus that of the left. Half of the hands in synthetic frames that
    MediaPipe names wrongly have the thumb where it belongs.

    Args:
        named: Side that MediaPipe names.
        score: MediaPipe's confidence of that side.
        opposition: Result of ``thumb_opposition``.

    """
    name = (2 * score - 1) * (1 if named == "right" else -1)
    log_odds = _NAME_WEIGHT * name + _SHAPE_WEIGHT * np.tanh(opposition / _CLEAR_OPPOSITION)
    return float(np.tanh(log_odds / 2))


def _detections(result: Any, image: ByteArray) -> list[Detection]:
    height, width = image.shape[:2]
    detections = []
    found = zip(result.hand_landmarks, result.hand_world_landmarks, result.handedness, strict=True)
    for landmarks, world, handedness in found:
        keypoints = np.array([(point.x * width, point.y * height) for point in landmarks], dtype=np.float32)
        assert keypoints.shape == (KEYPOINTS_PER_HAND, 2)
        opposition = thumb_opposition(np.array([(point.x, point.y, point.z) for point in world]))
        named: Side = "right" if handedness[0].category_name == "Right" else "left"
        vote = side_vote(named, float(handedness[0].score), opposition)
        detections.append(
            Detection(
                side="right" if vote > 0 else "left",
                score=(1 + abs(vote)) / 2,
                keypoints=keypoints,
                share=float(np.ptp(keypoints, axis=0).max()) / max(width, height),
            )
        )
    return sorted(detections, key=lambda detection: -detection.score)
