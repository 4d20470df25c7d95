"""The camera's eye: exposure, white balance, tone, lens blur and noise turn a rendered picture into a photograph."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_DARK_SHARE = 0.12
"""Share of cameras that expose too little, as in a studio with few lamps or a room at night."""


@dataclass(frozen=True, eq=False)
class Sensor:
    """How one camera renders what it sees; the same for all its frames."""

    gains: NDArray[np.float32]
    """(3,): exposure and white balance, as factors of the red, green and blue light."""
    gamma: float
    """Exponent of the tone curve; above 1 shadows are darker."""
    saturation: float
    """0 is grey, 1 leaves the colours as they are."""
    blur_px: float
    """Standard deviation of the lens's blur in pixels, 0 for none."""
    noise: float
    """Standard deviation of the noise, of the range 0 to 1."""
    grain_px: float
    """Standard deviation in pixels of the blur of the noise, which denoising leaves; 0 for noise by pixel."""

    def expose(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return the photograph (S, S, 3) of a gamma-encoded picture with values 0 to 1; ``rng`` draws its noise."""
        exposed = np.clip(image * self.gains, 0, 1) ** np.float32(self.gamma)
        grey = exposed @ np.array([0.299, 0.587, 0.114], np.float32)
        exposed = grey[..., None] + np.float32(self.saturation) * (exposed - grey[..., None])
        if self.blur_px > 0:
            exposed = np.asarray(cv2.GaussianBlur(exposed, (0, 0), self.blur_px), dtype=np.float32)
        grain = rng.standard_normal(exposed.shape, dtype=np.float32)
        if self.grain_px > 0:
            grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), self.grain_px), dtype=np.float32)
            grain /= max(float(grain.std()), 1e-6)
        return np.asarray(np.clip(exposed + grain * np.float32(self.noise), 0, 1) * 255 + 0.5).astype(np.uint8)


def sample_sensor(rng: np.random.Generator) -> Sensor:
    """Draw a camera: most expose well, some too little; colours are off by some percent, as of phones and studios."""
    exposure = rng.uniform(0.35, 0.7) if rng.random() < _DARK_SHARE else rng.uniform(0.8, 1.12)
    balance = np.exp(rng.normal(0, [0.05, 0.03, 0.07]))
    return Sensor(
        gains=(exposure * balance).astype(np.float32),
        gamma=float(np.exp(rng.normal(0, 0.18))),
        saturation=float(rng.uniform(0.7, 1.1)),
        blur_px=max(rng.uniform(-0.35, 0.7), 0.0),
        noise=rng.uniform(0.002, 0.02),
        grain_px=max(rng.uniform(-0.6, 0.8), 0.0),
    )
