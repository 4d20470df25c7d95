"""MediaPipe's hand landmarker as a plain object: an RGB image in, hands out."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from handdata.schemas import Side
from handdata.schemas.arrays import ByteArray, FloatArray


@dataclass(frozen=True, slots=True)
class Detection:
    """One hand that the detector saw.

    Args:
        side: the person's hand as MediaPipe's Tasks API names it. On a picture that is not mirrored its "Right" is the
            person's right hand; only the older interface needed swapping.
        score: confidence of the side, 0 to 1 (the Tasks API reports no other).
        keypoints: (21, 2) pixels of the image, in the order of ``handdata.schemas.joints``.

    """

    side: Side
    score: float
    keypoints: FloatArray


class HandDetector:
    """Finds up to ``max_hands`` hands in still images.

    Close it, or use it as a context manager: MediaPipe's object raises or hangs when it is collected while the
    interpreter exits.
    """

    def __init__(self, model_path: Path, confidence: float, max_hands: int = 2) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model_path)),
            num_hands=max_hands,
            min_hand_detection_confidence=confidence,
        )
        self._landmarker: Any = vision.HandLandmarker.create_from_options(options)

    def detect(self, image: ByteArray) -> list[Detection]:
        """Return the hands in an (H, W, 3) RGB image, the most confident first."""
        import mediapipe

        height, width = image.shape[:2]
        frame = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        result = self._landmarker.detect(frame)
        detections = [
            Detection(
                side="right" if handedness[0].category_name == "Right" else "left",
                score=float(handedness[0].score),
                keypoints=np.array([(point.x * width, point.y * height) for point in landmarks], dtype=np.float32),
            )
            for landmarks, handedness in zip(result.hand_landmarks, result.handedness, strict=True)
        ]
        return sorted(detections, key=lambda detection: -detection.score)

    def close(self) -> None:
        """Release MediaPipe's graph."""
        self._landmarker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
