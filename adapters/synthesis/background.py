"""Backgrounds: walls, rooms out of focus and dark studios as photographs have them, and abstract ones."""

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float64]
"""``(S, S, 3)``: gamma-encoded RGB, mostly from 0 to 1."""

_KINDS = {"wall": 0.22, "room": 0.24, "dark": 0.1, "plain": 0.1, "gradient": 0.08, "clouds": 0.1, "clutter": 0.16}
"""Share of each kind."""


def sample_background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Draw an image ``(size, size, 3)``, gamma-encoded RGB from 0 to 1."""
    kind = rng.choice(list(_KINDS), p=list(_KINDS.values()))
    if kind == "wall":
        image = _wall(rng, size)
    elif kind == "room":
        image = _room(rng, size)
    elif kind == "dark":
        image = _dark(rng, size)
    elif kind == "gradient":
        image = _gradient(rng, size)
    elif kind == "plain":
        image = np.broadcast_to(rng.random(3), (size, size, 3))
    else:
        image = _clouds(rng, size)
        if kind == "clutter":
            image = _with_shapes(rng, image)
    return np.clip(image, 0, 1).astype(np.float32)


def _muted_colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the colour of a painted or wooden surface: seldom strong, mostly light."""
    strength = rng.beta(1, 4)
    return np.asarray((1 - strength + strength * rng.random(3)) * rng.beta(2, 1.1), dtype=np.float64)


def _falloff(rng: np.random.Generator, size: int) -> Picture:
    """Draw how light falls off across a surface: ``(S, S, 1)``, factors around 1."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.5) * (np.cos(angle) * x + np.sin(angle) * y)
    centre = rng.uniform(-0.5, 0.5, 2)
    vignette = rng.uniform(0, 0.5) * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    return np.asarray(1 + slope - vignette)[..., None]


def _noise(rng: np.random.Generator, size: int, cells: tuple[int, int]) -> Picture:
    """Draw smooth noise ``(S, S, 1)`` around 0 with so many cells down and across."""
    coarse = rng.random((cells[0], cells[1])) - 0.5
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float64)[..., None]


def _wall(rng: np.random.Generator, size: int) -> Picture:
    """Draw a near wall or table: one muted colour, mottled or grained like wood, with soft shadows of what is near."""
    image = np.tile(_muted_colour(rng), (size, size, 1)) * _falloff(rng, size)
    texture = rng.uniform(0, 0.12)
    for octave in range(3, 7):
        cells = (2**octave, 2**octave)
        image += texture * _noise(rng, size, cells) / (octave - 2)
    if rng.random() < 0.3:  # grain of wood or cloth
        across, along = rng.integers(24, 64), rng.integers(2, 6)
        image *= 1 + rng.uniform(0.1, 0.4) * _noise(rng, size, (int(across), int(along)))
    shadows = np.ones((size, size))
    for _ in range(rng.integers(0, 4)):
        centre, extent = rng.integers(0, size, 2).tolist(), rng.integers(size // 8, size // 2, 2).tolist()
        cv2.ellipse(shadows, centre, extent, float(rng.uniform(0, 180)), 0, 360, rng.uniform(0.6, 0.95), -1)
    softness = size * float(rng.uniform(0.02, 0.1))
    return np.asarray(image * cv2.GaussianBlur(shadows, (0, 0), softness)[..., None])


def _room(rng: np.random.Generator, size: int) -> Picture:
    """Draw a room out of focus: wall and floor, furniture, shelves, a window or lamps, people without faces."""
    image = np.tile(_muted_colour(rng), (size, size, 1))
    floor = int(size * rng.uniform(0.5, 1.1))
    image[floor:] = _muted_colour(rng)
    for _ in range(rng.integers(2, 9)):  # furniture stands upright
        width, height = (int(side) for side in rng.integers(size // 16, size * 2 // 3, 2))
        left, top = int(rng.integers(-width // 2, size)), int(rng.integers(-height // 2, size))
        colour = _muted_colour(rng)
        cv2.rectangle(image, (left, top), (left + width, top + height), colour.tolist(), -1)
        for shelf in range(int(rng.integers(0, 5))):
            y = top + height * (shelf + 1) // 6
            cv2.line(image, (left, y), (left + width, y), (0.6 * colour).tolist(), max(1, size // 64))
    if rng.random() < 0.4:
        _add_person(rng, image)
    if rng.random() < 0.5:
        _add_lamps(rng, image, int(rng.integers(1, 5)))
    image *= _falloff(rng, size)
    image += rng.uniform(0, 0.15) * _noise(rng, size, (size // 4, size // 4))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.8, 7)) * size / 256), dtype=np.float64)


def _add_person(rng: np.random.Generator, image: Picture) -> None:
    """Draw a body and a head of skin into an image: not all that is skin belongs to the hand."""
    size = len(image)
    x, shoulders = int(rng.integers(0, size)), int(rng.integers(size // 4, size))
    width = int(rng.integers(size // 6, size // 2))
    clothes = _muted_colour(rng) * rng.uniform(0.2, 1)
    cv2.ellipse(image, (x, shoulders + 2 * width), (width, 2 * width), 0, 0, 360, clothes.tolist(), -1)
    skin = np.array([0.9, 0.68, 0.55]) ** rng.uniform(0.4, 3)
    cv2.ellipse(image, (x, shoulders - width // 3), (width // 3, width // 2), 0, 0, 360, skin.tolist(), -1)


def _add_lamps(rng: np.random.Generator, image: Picture, count: int) -> None:
    """Draw bright windows and lamps into an image."""
    size = len(image)
    for _ in range(count):
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        colour = np.array([1, 0.97, 0.9]) ** rng.uniform(-0.5, 2) * rng.uniform(0.9, 1.4)
        if rng.random() < 0.3:
            width, height = (int(side) for side in rng.integers(size // 12, size // 3, 2))
            cv2.rectangle(image, centre, (centre[0] + width, centre[1] + height), colour.tolist(), -1)
        else:
            cv2.circle(image, centre, int(rng.integers(1, max(2, size // 20))), colour.tolist(), -1)


def _dark(rng: np.random.Generator, size: int) -> Picture:
    """Draw a studio's darkness, with dark clothes and far lamps at times."""
    image = np.tile(rng.uniform(0, 0.1) * (0.7 + 0.3 * rng.random(3)), (size, size, 1))
    if rng.random() < 0.5:
        _add_person(rng, image)
        image *= rng.uniform(0.15, 0.5)
    if rng.random() < 0.4:
        _add_lamps(rng, image, int(rng.integers(1, 8)))
    image *= _falloff(rng, size)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 4)) * size / 256), dtype=np.float64)


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
