"""MediaPipe's hand landmarker as a plain object: an RGB image in, hands out. Stills, and frames of a video."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from handdata.schemas import KEYPOINTS_PER_HAND, Side
from handdata.schemas.arrays import ByteArray, FloatArray

_NAME_WEIGHT, _SHAPE_WEIGHT = 2.7, 2.1
"""Of MediaPipe's name and of the hand's shape in the log odds of a hand's side: a logistic regression over 3,300 looks
at synthetic hands (``benchmarks/accuracy.py --seed 7``, not the set that is reported)."""
_CLEAR_OPPOSITION = 0.1
"""In palm lengths: a thumb that is so far from the palm's plane tells the side well."""
_MOST_CERTAIN = 0.999
_FRAME_MS = 33
"""Time between two frames as the video mode is told; it wants rising times and does nothing else with them."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One hand that the detector saw.

    Args:
        side: the person's hand, as MediaPipe's name and the shape of the hand together say. On a picture that is not
            mirrored the Tasks API's "Right" is the person's right hand; only the older interface needed swapping.
        score: confidence of the side, 0.5 to 1 (the Tasks API reports no other).
        keypoints: (21, 2) pixels of the image, in the order of ``handdata.schemas.joints``.
        share: longer side of the hand's keypoint box over the longer side of the picture that was looked at.
        track: number of the hand among those of a unit, -1 before it has one.
        contested: the side was given against the evidence, since another hand of the frame has the better claim to it.

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
        """How much speaks for the right hand (above 0, at most 1) or for the left (below 0)."""
        weight = 2 * self.score - 1
        return weight if self.side == "right" else -weight

    @property
    def side_log_odds(self) -> float:
        """The same as the logarithm of the odds of the right hand; finite."""
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
    following: bool = field(default=False)


class HandDetector:
    """Finds up to ``max_hands`` hands in still images, and follows hands through a video.

    Close it, or use it as a context manager: MediaPipe's object raises or hangs when it is collected while the
    interpreter exits.
    """

    def __init__(self, model_path: Path, confidence: float, max_hands: int = 2) -> None:
        self._model_path, self._confidence = model_path, confidence
        self._stills: Any = self._landmarker("IMAGE", max_hands)
        self._trackers: dict[int, _Tracker] = {}

    def detect(self, image: ByteArray) -> list[Detection]:
        """Return the hands in an (H, W, 3) RGB image, the most confident first."""
        return _detections(self._stills.detect(_frame(image)), image)

    def track(self, image: ByteArray, hands: int, *, restart: bool) -> list[Detection]:
        """Return the hands in the next (H, W, 3) RGB frame of a video, the most confident first.

        As long as all ``hands`` are followed, the detector proper rests: two to three times as fast as ``detect``. What
        is found depends on the frames since the last restart only.

        Args:
            image: all frames since a restart must have one size.
            hands: how many there are; more than that are not found.
            restart: forget what was followed: another video, or a cut.

        """
        tracker = self._trackers.get(hands)
        if tracker is None:
            tracker = self._trackers[hands] = _Tracker(self._landmarker("VIDEO", hands))
        if restart and tracker.following:
            # A frame without hands ends what was followed; a new object would cost as much as several detections.
            self._next(tracker, np.zeros((64, 64, 3), dtype=np.uint8))
        tracker.following = True
        return _detections(self._next(tracker, image), image)

    def close(self) -> None:
        """Release MediaPipe's graphs."""
        for landmarker in (self._stills, *(tracker.landmarker for tracker in self._trackers.values())):
            landmarker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _landmarker(self, mode: str, hands: int) -> Any:
        from mediapipe.tasks.python import BaseOptions, vision

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
    """Return on which side of the palm's plane the thumb's tip is: above 0 for right hands, below for left ones.

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
    """Return what MediaPipe's name and the hand's shape say for the right hand (above 0, at most 1) or the left.

    It is the chance of the right hand less that of the left. Of the hands of synthetic frames that MediaPipe names
    wrongly, half have the thumb where it belongs.
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
