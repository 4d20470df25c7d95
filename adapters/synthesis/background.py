"""Abstract backgrounds: plain colours, gradients, clouds and clutter."""

import cv2
import numpy as np
from numpy.typing import NDArray


def sample_background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Draw an image ``(size, size, 3)``, gamma-encoded RGB from 0 to 1."""
    kind = rng.choice(["gradient", "plain", "clouds", "clutter"], p=[0.2, 0.2, 0.2, 0.4])
    if kind == "gradient":
        image = _gradient(rng, size)
    elif kind == "plain":
        image = np.broadcast_to(rng.random(3), (size, size, 3))
    else:
        image = _clouds(rng, size)
        if kind == "clutter":
            image = _with_shapes(rng, image)
    return np.clip(image, 0, 1).astype(np.float32)


def _gradient(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    share = np.linspace(0, 1, size)[:, None, None]
    image = rng.random(3) * (1 - share) + rng.random(3) * share
    image = np.broadcast_to(image, (size, size, 3))
    return image.transpose(1, 0, 2) if rng.random() < 0.5 else image


def _clouds(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    image = np.tile(0.8 * rng.random(3), (size, size, 1))
    for octave in range(2, 7):
        coarse = rng.random((2**octave, 2**octave, 3)) - 0.5
        noise = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        grey = noise.mean(axis=2, keepdims=True)
        image += (0.8 * grey + 0.5 * noise) * rng.uniform(0.2, 0.9) / (octave - 1)
    return image


def _with_shapes(rng: np.random.Generator, image: NDArray[np.float64]) -> NDArray[np.float64]:
    size = len(image)
    canvas = np.ascontiguousarray(image)
    for _ in range(rng.integers(3, 14)):
        colour = tuple(float(v) for v in rng.random(3))
        centre = tuple(int(v) for v in rng.integers(-size // 12, size + size // 12, 2))
        extent = tuple(int(v) for v in rng.integers(size // 32, size // 2, 2))
        angle = float(rng.uniform(0, 180))
        if rng.random() < 0.6:
            corners = cv2.boxPoints((centre, extent, angle)).astype(np.int32)
            cv2.fillPoly(canvas, [corners], colour)
        else:
            cv2.ellipse(canvas, centre, extent, angle, 0, 360, colour, thickness=-1)
    blur_px = float(rng.uniform(0.6, 6)) * size / 256
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), blur_px), dtype=np.float64)
