"""Joints of hands by the names that datasets give them, such as thumb1, index_finger_mcp or left_hand_root."""

import re
from collections.abc import Sequence
from typing import Final

from handdata.schemas.errors import RecordError, RejectReason
from handdata.schemas.joints import FINGERS, KEYPOINTS_PER_HAND, WRIST, Side

HandOrder = tuple[Side | None, tuple[int, ...]]
"""Side that the names give, and the dataset's row of each of our 21 joints, -1 where it has none."""

LEAST_FINGER_JOINTS: Final = 5
"""A hand has names for as many joints of fingers: bodies have a wrist, and some a finger, that make no hand."""

_SIDES: Final[dict[str, Side]] = {"left": "left", "l": "left", "right": "right", "r": "right"}
_SIDE: Final = "(left|right|l|r)?"
_WRIST: Final = re.compile(rf"{_SIDE}(?:hand)?(?:wrist|root){_SIDE}")
_FINGER: Final = re.compile(
    rf"{_SIDE}(?:hand)?(thumb|index|fore|middle|ring|little|pinky|pinkie)(?:finger)?"
    rf"(cmc|mcp|pip|dip|ip|tip|[1-4]){_SIDE}"
)
_OF_FINGER: Final = re.compile(r"(?:thumb|index|forefinger|middlefinger|ringfinger|little|pinky|pinkie).*")
_OF_BODY: Final = re.compile(rf"{_SIDE}(?:hand)?(?:thumb|index|pinky|pinkie){_SIDE}|.*toe.*")
"""Bodies have such points, beside hands or without."""
_SYNONYMS: Final = {"fore": "index", "pinky": "little", "pinkie": "little"}
_JOINTS: Final = {
    name: place for names in (("cmc", "mcp", "ip", "tip"), ("1", "2", "3", "4")) for place, name in enumerate(names)
}
_FINGER_JOINTS: Final = {
    name: place for names in (("mcp", "pip", "dip", "tip"), ("1", "2", "3", "4")) for place, name in enumerate(names)
}
"""Place of a joint of the thumb, and of any other finger, from the palm: MMPose counts 1 to 4 outwards."""


def hand_orders(where: str, names: Sequence[str]) -> list[HandOrder]:
    """Return the hands that a list of keypoint names holds; none where it names no fingers.

    Args:
        where: Place of the names, for the detail.
        names: Names in the dataset's order.

    Raises:
        RecordError: ``label_corrupt``: a joint is named twice, or only some of a hand's names are understood.

    """
    found: dict[Side | None, dict[int, int]] = {}
    strange: list[str] = []
    for row, name in enumerate(names):
        joint = _joint_of(name)
        if joint is None:
            strange.append(name)
            continue
        side, place = joint
        rows = found.setdefault(side, {})
        if place in rows and place != WRIST:  # a body has its own wrist, before those of its hands
            detail = f"{where}: two keypoints are named as {name!r} is"
            raise RecordError(RejectReason.LABEL_CORRUPT, detail)
        rows[place] = row
    hands = {side: rows for side, rows in found.items() if len(rows.keys() - {WRIST}) >= LEAST_FINGER_JOINTS}
    if len(names) not in (KEYPOINTS_PER_HAND, 2 * KEYPOINTS_PER_HAND):
        strange = [name for name in strange if _is_of_finger(name)]
    if hands and strange:
        detail = f"{where}: {strange[0]!r} is no name of a joint that is known here"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    return [(side, tuple(rows.get(place, -1) for place in range(KEYPOINTS_PER_HAND))) for side, rows in hands.items()]


def side_in(text: str) -> Side | None:
    """Return the side that a name holds as a word of its own (``left_hand``, ``RightHand``); None for none or both."""
    words = re.findall(r"left|right|[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower())
    sides = {_SIDES[word] for word in words if word in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def _is_of_finger(name: str) -> bool:
    """Return whether a name is that of some joint of a finger, however it is called."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.search(_OF_FINGER, plain) is not None and _OF_BODY.fullmatch(plain) is None


def _joint_of(name: str) -> tuple[Side | None, int] | None:
    """Return the side and the row of ours that a name means."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if match := _WRIST.fullmatch(plain):
        return _SIDES.get(match[1] or match[2] or ""), WRIST
    match = _FINGER.fullmatch(plain)
    if match is None:
        return None
    finger = _SYNONYMS.get(match[2], match[2])
    place = (_JOINTS if finger == "thumb" else _FINGER_JOINTS).get(match[3])
    return None if place is None else (_SIDES.get(match[1] or match[4] or ""), FINGERS[finger][place])
