"""The clock behind the frame numbers of Meta's capture studios (InterHand2.6M, Re:InterHand).

A release keeps the numbers of the original recording, which ran at 90 or at 30 frames a second, whichever the capture:
5 fps releases count in steps of 18 or 6, 30 fps releases in steps of 3 or 1
(https://github.com/facebookresearch/InterHand2.6M/issues/147).
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

_RECORDED_HZ: Final = {18: 90, 6: 30, 3: 90, 1: 30}


def recorded_hz(frame_numbers: Iterable[int]) -> int | None:
    """Return how many frame numbers make a second, from the most common step between those of one capture.

    The result is ``None`` where that step belongs to no release, or there are fewer than two frames.
    """
    ordered = sorted(set(frame_numbers))
    steps = Counter(after - before for before, after in pairwise(ordered))
    return _RECORDED_HZ.get(max(steps, key=lambda step: (steps[step], -step))) if steps else None
