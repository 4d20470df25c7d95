"""The order of the 42 keypoints, their names, the skeleton's edges and the left/right exchange.

Rows 0-20 are the person's right hand, rows 21-41 the left. Within a hand: wrist, then thumb, index, middle, ring and
little finger from the palm outwards. This is the order of OpenPose and MediaPipe.
"""

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from handdata.schemas.arrays import BoolArray

Side = Literal["right", "left"]
SIDES: Final[tuple[Side, Side]] = get_args(Side)
"""Hand sides in the order of the keypoint rows."""
OTHER_SIDE: Final[dict[Side, Side]] = {"right": "left", "left": "right"}

KEYPOINTS_PER_HAND: Final = 21
KEYPOINT_COUNT: Final = 42

WRIST: Final = 0
FINGERS: Final[dict[str, tuple[int, int, int, int]]] = {
    "thumb": (1, 2, 3, 4),
    "index": (5, 6, 7, 8),
    "middle": (9, 10, 11, 12),
    "ring": (13, 14, 15, 16),
    "little": (17, 18, 19, 20),
}
"""Rows of each finger within a hand, from the palm to the tip."""

JOINT_NAMES: Final[tuple[str, ...]] = (
    "wrist",
    *(f"thumb_{joint}" for joint in ("cmc", "mcp", "ip", "tip")),
    *(
        f"{finger}_{joint}"
        for finger in ("index", "middle", "ring", "little")
        for joint in ("mcp", "pip", "dip", "tip")
    ),
)
"""Names of the 21 joints of one hand."""

KEYPOINT_NAMES: Final[tuple[str, ...]] = tuple(f"{side}_{joint}" for side in SIDES for joint in JOINT_NAMES)
"""Names of the 42 rows of ``keypoints_2d``."""

HAND_EDGES: Final[tuple[tuple[int, int], ...]] = tuple(
    edge
    for base, middle, distal, tip in FINGERS.values()
    for edge in ((WRIST, base), (base, middle), (middle, distal), (distal, tip))
)
"""Bones of one hand as pairs of rows, the outer one second."""

SKELETON_EDGES: Final[tuple[tuple[int, int], ...]] = tuple(
    (start + offset, end + offset) for offset in (0, KEYPOINTS_PER_HAND) for start, end in HAND_EDGES
)
"""Bones of both hands as pairs of rows of the 42."""

FLIP_PERMUTATION: Final[NDArray[np.int64]] = np.r_[21:42, 0:21]
"""``keypoints[FLIP_PERMUTATION]`` exchanges right and left: what a mirrored image shows."""
FLIP_PERMUTATION.setflags(write=False)


def hand_rows(side: Side) -> slice:
    """Return the rows of the 42 that belong to one hand."""
    start = SIDES.index(side) * KEYPOINTS_PER_HAND
    return slice(start, start + KEYPOINTS_PER_HAND)


def inside(keypoints: NDArray[np.floating], width: int, height: int) -> BoolArray:
    """Return which keypoints (..., 2) lie on the pixels of an image: -0.5 < x < width - 0.5, and y alike."""
    return np.asarray(((keypoints > -0.5) & (keypoints < (width - 0.5, height - 0.5))).all(axis=-1))
