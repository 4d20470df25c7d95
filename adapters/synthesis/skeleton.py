"""The skeleton of a hand and how it varies from person to person.

All lengths are millimetres of a right hand of average size, in the palm's frame: x towards the thumb's side, y towards
the fingertips, z out of the palm; the origin lies at the wrist. Fingers are counted thumb, index, middle, ring, little.
The average proportions follow the prototype's recipe, which was tuned until MediaPipe agreed with the labels.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.synthesis.geometry import Floats, normalize

FINGER_COUNT: Final = 5
SEGMENTS_PER_FINGER: Final = 3
THUMB: Final = 0

PALM_BONE: Final = 0
FOREARM_BONE: Final = 1
BONE_COUNT: Final = 2 + FINGER_COUNT * SEGMENTS_PER_FINGER

WRIST_MM: Final = np.array([-2.5, 5.0, 0.0])
"""Position at which MediaPipe's annotators put the wrist."""
TIP_INSET_MM: Final = np.array([5.5, 5.0, 5.0, 5.0, 4.6])
"""Distance of the tip keypoint from the fingertip's end, inwards."""

_BASE_MM = np.array([[29, 25, 13.4], [25, 90, 1.2], [3.2, 91.3, -0.8], [-17, 86.2, 0.3], [-34, 77.5, 3.2]])
_SEGMENT_MM = np.array([[30.5, 28.5, 27.5], [38, 23.4, 23.1], [42.3, 26.7, 25], [38.3, 25, 24.8], [29.7, 18.2, 21]])
_RADIUS_MM = np.array(
    [
        [13.0, 11.0, 9.8, 7.6],
        [10.8, 9.3, 8.0, 6.3],
        [10.8, 9.4, 8.2, 6.5],
        [10.2, 8.8, 7.7, 6.1],
        [9.4, 7.7, 6.8, 5.5],
    ]
)
_AZIMUTH_DEG = np.array([0.0, 7.0, -1.0, -9.0, -19.0])
_ROLL_DEG = np.array([0.0, 6.0, 0.0, -6.0, -12.0])
_THUMB_ALONG = np.array([0.66, 0.66, 0.36])
_THUMB_PALMAR = np.array([-0.62, 0.20, 0.62])


def phalanx_bone(finger: int, segment: int) -> int:
    """Return the bone's index of a finger's segment (0 nearest to the palm; the thumb's 0 is its metacarpal)."""
    return 2 + SEGMENTS_PER_FINGER * finger + segment


@dataclass(frozen=True, eq=False)
class HandShape:
    """The proportions of one person's right hand at rest."""

    size: float
    """Factor from this skeleton's millimetres to the person's."""
    palm_scale: NDArray[np.float64]
    """(3,): width, length and depth of the palm relative to the average."""
    thickness: float
    """Factor on all radii."""
    base_mm: NDArray[np.float64]
    """(5, 3): where each finger's chain begins (thumb: CMC, others: MCP)."""
    segment_mm: NDArray[np.float64]
    """(5, 3): length of each segment."""
    radius_mm: NDArray[np.float64]
    """(5, 4): radius of the finger at its three joints and near its tip."""
    finger_axes: NDArray[np.float64]
    """(5, 3, 3): columns are each finger's lateral, along and palmar direction at rest."""

    @property
    def chain_mm(self) -> NDArray[np.float64]:
        """Return rest positions ``(5, 4, 3)`` of each finger's three joints and of its end."""
        along = self.finger_axes[:, None, :, 1]
        reach = np.concatenate([np.zeros((FINGER_COUNT, 1)), np.cumsum(self.segment_mm, axis=1)], axis=1)
        return np.asarray(self.base_mm[:, None] + reach[..., None] * along, dtype=np.float64)


def sample_shape(rng: np.random.Generator) -> HandShape:
    """Draw a person's proportions: size varies by 7%, thickness 9%, width 5%, palm 3%, fingers 4%, each bone 2%."""
    size = float(np.clip(1 + 0.07 * rng.normal(), 0.82, 1.15))
    width = np.clip(1 + 0.05 * rng.normal(), 0.90, 1.12)
    palm_length = np.clip(1 + 0.03 * rng.normal(), 0.93, 1.07)
    finger_length = np.clip(1 + 0.04 * rng.normal(), 0.90, 1.10)
    thickness = float(np.clip(1 + 0.09 * rng.normal(), 0.82, 1.22))
    width = max(width, 0.95 * thickness)  # thick fingers need knuckles that stand apart

    palm_scale = np.array([width, palm_length, 1.0])
    base = _BASE_MM * palm_scale + rng.normal(scale=0.6, size=(FINGER_COUNT, 3))
    per_finger, per_bone = rng.normal(size=(FINGER_COUNT, 1)), rng.normal(size=(FINGER_COUNT, 3))
    segment = _SEGMENT_MM * finger_length * (1 + 0.03 * per_finger) * (1 + 0.02 * per_bone)
    radius = _RADIUS_MM * thickness * (1 + 0.02 * rng.normal(size=(FINGER_COUNT, 1)))
    azimuth = np.deg2rad(_AZIMUTH_DEG + 0.8 * rng.normal(size=FINGER_COUNT))
    return HandShape(size, palm_scale, thickness, base, segment, radius, _finger_axes(azimuth))


def _finger_axes(azimuth_rad: Floats) -> NDArray[np.float64]:
    axes = np.empty((FINGER_COUNT, 3, 3))
    for finger, (azimuth, roll) in enumerate(zip(azimuth_rad, np.deg2rad(_ROLL_DEG), strict=True)):
        if finger == THUMB:
            along, palmar = normalize(_THUMB_ALONG), _THUMB_PALMAR
        else:
            along = normalize(np.array([np.sin(azimuth), np.cos(azimuth), 0.03]))
            palmar = np.array([-np.sin(roll), 0.0, np.cos(roll)])
        palmar = normalize(palmar - along * (palmar @ along))
        axes[finger] = np.stack([np.cross(along, palmar), along, palmar], axis=1)
    return axes
