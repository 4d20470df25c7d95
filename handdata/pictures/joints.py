"""The order of the keypoints as a picture: both hands with the number of each row.

``python -m handdata.pictures.joints docs/joints.svg`` draws it; a test compares.
"""

import sys
from pathlib import Path
from typing import Final

from handdata.pictures.drawing import SIDE_COLOURS
from handdata.schemas import FINGERS, HAND_EDGES, KEYPOINTS_PER_HAND, SIDES, WRIST

_WIDTH: Final = 900
_HEIGHT: Final = 470
_RIGHT_HAND: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "wrist": ((215, 400),),
    "thumb": ((275, 360), (325, 310), (355, 265), (380, 225)),
    "index": ((275, 240), (290, 180), (297, 135), (302, 92)),
    "middle": ((230, 230), (234, 160), (236, 110), (238, 65)),
    "ring": ((187, 240), (180, 175), (176, 130), (173, 88)),
    "little": ((148, 262), (130, 212), (120, 178), (111, 145)),
}
"""Joints of a right hand whose palm is seen, fingers up, in pixels of the picture."""


def joint_order_svg() -> str:
    """Return the picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for number, side in enumerate(SIDES):
        points = [point for finger in ("wrist", *FINGERS) for point in _RIGHT_HAND[finger]]
        if side == "left":
            points = [(_WIDTH - x, y) for x, y in points]
        colour = "#{:02x}{:02x}{:02x}".format(*SIDE_COLOURS[side])
        first = number * KEYPOINTS_PER_HAND
        middle = points[WRIST][0]
        parts.append(
            f'<text x="{middle}" y="445" text-anchor="middle" font-size="17">'
            f"the person's {side} hand, palm seen: rows {first} to {first + KEYPOINTS_PER_HAND - 1}</text>"
        )
        for start, end in HAND_EDGES:
            (x0, y0), (x1, y1) = points[start], points[end]
            parts.append(f'<path d="M{x0} {y0}L{x1} {y1}" stroke="{colour}" stroke-width="7" stroke-linecap="round"/>')
        for row, (x, y) in enumerate(points):
            parts.append(f'<circle cx="{x}" cy="{y}" r="13" fill="white" stroke="#22262e" stroke-width="1.5"/>')
            parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-size="14">{first + row}</text>')
        for finger, rows in FINGERS.items():
            x, y = points[rows[-1]]
            parts.append(f'<text x="{x}" y="{y - 22}" text-anchor="middle" font-size="14" fill="#555">{finger}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(joint_order_svg(), encoding="utf-8")
