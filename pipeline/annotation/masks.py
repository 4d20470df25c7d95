"""Hand masks from keypoints: GrabCut, prompts for SAM, the cut at the wrist, and the two numbers that judge a mask.

All coordinates are pixels of the square crop, x right, y down, (0, 0) the centre of the top-left pixel. Images are RGB
uint8 (S, S, 3), keypoints (42, 2), valid (42,) bool, masks bool (S, S). A joint that is not valid has no influence.

Sizes are shares of the hand's length, so nothing here depends on the size of the hand in the crop. The shares are those
of an average adult hand, the one that the synthetic source builds.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from handdata.schemas import FINGERS, HAND_EDGES, SIDES, WRIST, hand_rows

Mask = NDArray[np.bool_]
Points = NDArray[np.float32]
_Canvas = NDArray[np.uint8]

SPILL_DISTANCE: Final = 0.35
"""Distance from every hand's hull, in hand lengths, beyond which mask area counts as spilled."""

_HAND_MM = 175.0
"""Length of the average hand from the wrist to the tip of the middle finger, along the bones."""
_BONES_MM = {
    (0, 1): 38, (1, 2): 31, (2, 3): 31, (0, 5): 92, (0, 9): 86.5, (0, 13): 82.5, (0, 17): 79,
    (5, 6): 38, (9, 10): 42.3, (13, 14): 38.3, (17, 18): 29.7, (5, 17): 60, (1, 5): 65,
}  # fmt: skip
"""Lengths between joints that differ little from person to person; the last two lie across the palm."""
_FLESH_MM = np.array(
    [16, 16, 13, 11, 8.5, 13, 10.5, 9, 7, 13, 10.5, 9, 7.3, 12.5, 10, 8.5, 7, 12, 9, 7.5, 6.3], dtype=np.float32
)
"""Radius of the flesh around each joint."""
_PALM_MM = 86.5
"""Distance from the wrist to the middle knuckle."""
_WRIST_HALF_WIDTH_MM = 24.0
_WRIST_OFFSET = 0.2
"""Distance from the wrist joint back to the end of the hand, over that from the wrist to the middle knuckle."""

_PALM = (1, 5, 9, 13, 17, 0)
"""Joints of the palm's outline: thumb base, knuckles, wrist."""
_KNUCKLES = (9, 13, 5, 17)
"""Finger bases that the palm's axis may point at, the best first."""

_FORESHORTENED = 0.6
"""A palm shorter than this share of its usual length points at the camera or away from it."""
_FORESHORTENED_MARGIN = 0.1
"""Width beside the flesh that such a hand keeps, in hand lengths."""

_WORKING_SIZE = 256
_GRABCUT_ROUNDS = 2
_SURE_BONE = 0.35
"""Share of the flesh's radius that is certainly hand: detected joints are a few pixels off."""
_BAND = (1.5, 0.021)
"""Band that holds the hand: a multiple of the flesh's radius, plus a share of the hand's length."""
_PROMPT_MARGIN = 0.1
"""Flesh around the joints' box in hand lengths: a little more than a fingertip's radius."""
_SUBPIXEL_BITS = 4


# ---- geometry of one hand: points (21, 2), valid (21,)


def hand_length(points: Points, valid: Mask) -> float:
    """Return the visible length of one hand in pixels: the longest way along the bones from the wrist to a fingertip.

    Curled fingers hardly shorten it, a hand tilted towards the camera does. Joints that are not valid are skipped.

    Args:
        points: (21, 2) joints of one hand.
        valid: (21,) which of them count.

    """
    lengths = []
    for finger in FINGERS.values():
        way = points[[joint for joint in (WRIST, *finger) if valid[joint]]]
        lengths.append(float(np.hypot(*np.diff(way, axis=0).T).sum()))
    return max(lengths)


def _stretched_length(points: Points, valid: Mask) -> float:
    """Return the length in pixels that the hand would have flat at the same distance: flesh scales with it.

    Each bone is compared with its usual share of the hand's length. A curled or tilted hand has shortened bones, but
    hardly all of them; the second longest result is used, so that one misplaced joint does not decide.
    """
    lengths = sorted(
        float(np.hypot(*(points[a] - points[b]))) * _HAND_MM / bone_mm
        for (a, b), bone_mm in _BONES_MM.items()
        if valid[a] and valid[b]
    )
    return lengths[-2] if len(lengths) > 1 else hand_length(points, valid)


def _hands(keypoints: Points, valid: Mask) -> list[tuple[Points, Mask]]:
    rows = [hand_rows(side) for side in SIDES]
    return [(keypoints[hand].astype(np.float32), valid[hand]) for hand in rows if valid[hand].any()]


def _fixed_point(points: Points) -> NDArray[np.int32]:
    fixed: NDArray[np.int32] = np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)
    return fixed


def _draw_bone(canvas: _Canvas, start: Points, end: Points, radius: float) -> None:
    a, b = _fixed_point(start).tolist(), _fixed_point(end).tolist()
    cv2.line(canvas, a, b, 1, max(1, round(2 * radius)), cv2.LINE_8, _SUBPIXEL_BITS)


def _draw_hull(canvas: _Canvas, points: Points, margin: float = 0.0) -> None:
    hull = _fixed_point(np.asarray(cv2.convexHull(points), dtype=np.float32)[:, 0])
    cv2.fillConvexPoly(canvas, hull, 1, cv2.LINE_8, _SUBPIXEL_BITS)
    if margin > 0:
        cv2.polylines(canvas, [hull], True, 1, max(1, round(2 * margin)), cv2.LINE_8, _SUBPIXEL_BITS)


def _draw_fingers(canvas: _Canvas, points: Points, valid: Mask, radii: NDArray[np.float32]) -> None:
    for joint in np.flatnonzero(valid):  # a joint whose neighbours are not valid is still part of the hand
        _draw_bone(canvas, points[joint], points[joint], radii[joint])
    for a, b in HAND_EDGES:
        if a != WRIST and valid[a] and valid[b]:
            _draw_bone(canvas, points[a], points[b], (radii[a] + radii[b]) / 2)


def _palm_axis(points: Points, valid: Mask) -> Points | None:
    """Return the vector from the wrist to the middle knuckle, or to its nearest valid neighbour; None without one."""
    for knuckle in _KNUCKLES:
        axis: Points = points[knuckle] - points[WRIST]
        if valid[WRIST] and valid[knuckle] and axis.any():
            return axis
    return None


def _is_foreshortened(points: Points, valid: Mask) -> bool:
    axis = _palm_axis(points, valid)
    usual = _PALM_MM / _HAND_MM * _stretched_length(points, valid)
    return axis is not None and float(np.hypot(*axis)) < _FORESHORTENED * usual


def _behind_wrist(size: int, points: Points, valid: Mask) -> Mask:
    """Return the half plane of the forearm: a little behind the wrist, and behind the flesh of all other joints.

    The second condition matters where the hand points at the camera or away from it: its palm is short in the image,
    and fingers, thumb or the little finger's edge lie behind the wrist.
    """
    axis = _palm_axis(points, valid)
    if axis is None:
        return np.zeros((size, size), dtype=bool)
    forward = axis / np.hypot(*axis)
    flesh = np.maximum(_FLESH_MM / _HAND_MM * _stretched_length(points, valid), 1)  # at least the joint's own pixel
    others = valid & (np.arange(len(valid)) != WRIST)
    from_wrist = (points[others] - points[WRIST]) @ forward
    edge = min(-_WRIST_OFFSET * float(np.hypot(*axis)), float((from_wrist - flesh[others]).min()))
    y, x = np.ogrid[:size, :size]
    behind: Mask = (x - points[WRIST][0]) * forward[0] + (y - points[WRIST][1]) * forward[1] < edge
    return behind


def _flesh(size: int, points: Points, valid: Mask, grow: float = 1.0, margin: float = 0.0) -> Mask:
    """Draw fingers and palm at their usual thickness times ``grow`` plus ``margin`` hand lengths."""
    length = _stretched_length(points, valid)
    radii = (_FLESH_MM / _HAND_MM * grow + margin) * length
    canvas = np.zeros((size, size), dtype=np.uint8)
    _draw_fingers(canvas, points, valid, radii)
    outline = [joint for joint in _PALM if valid[joint]]
    corners = [points[joint] for joint in outline]
    axis = _palm_axis(points, valid)
    if axis is not None:
        across = np.array([-axis[1], axis[0]], dtype=np.float32) / np.hypot(*axis)
        reach = (_WRIST_HALF_WIDTH_MM / _HAND_MM * grow + margin) * length * across
        edge = points[WRIST] - _WRIST_OFFSET * axis
        corners += [edge + reach, edge - reach]
    if corners:
        _draw_hull(canvas, np.array(corners, dtype=np.float32))
    for a, b in zip(outline, outline[1:] + outline[:1], strict=True):
        _draw_bone(canvas, points[a], points[b], min(radii[a], radii[b]))
    return canvas.astype(bool)


def _bones(size: int, points: Points, valid: Mask) -> Mask:
    """Draw the skeleton, so thin that it lies in the hand although joints are a little off."""
    radii = _FLESH_MM / _HAND_MM * _SURE_BONE * _stretched_length(points, valid)
    canvas = np.zeros((size, size), dtype=np.uint8)
    for a, b in HAND_EDGES:
        if valid[a] and valid[b]:
            _draw_bone(canvas, points[a], points[b], min(radii[a], radii[b]))
    return canvas.astype(bool)


def _forearm(size: int, points: Points, valid: Mask) -> Mask:
    """Draw the corridor of the forearm, which widens from the wrist to the crop's border."""
    canvas = np.zeros((size, size), dtype=np.uint8)
    axis = _palm_axis(points, valid)
    if axis is not None:
        away = -axis / np.hypot(*axis)
        across = np.array([-away[1], away[0]], dtype=np.float32) * _stretched_length(points, valid) * 0.25
        far = points[WRIST] + away * 1.5 * size
        corners = [points[WRIST] + across, points[WRIST] - across, far - 2.2 * across, far + 2.2 * across]
        _draw_hull(canvas, np.array(corners, dtype=np.float32))
    return canvas.astype(bool)


# ---- masks


def grabcut_mask(image: NDArray[np.uint8], keypoints: Points, valid: Mask, outside: Mask | None = None) -> Mask:
    """Segment the hands, without forearms, by GrabCut seeded with the skeleton (Rother et al., SIGGRAPH 2004).

    The bones are certainly hand, and the usual flesh around them is probably hand; all that lies beyond a wider band
    around the flesh is not. The forearm would teach the background the colour of skin: while colours are learned it
    counts as probable hand, and afterwards it is cut off at the wrist. Large crops are segmented at 256 px, and the
    mask is scaled up. The same input gives the same mask.

    Args:
        image: (S, S, 3) RGB crop.
        keypoints: (42, 2) crop pixels.
        valid: (42,) joints to use.
        outside: (S, S) true where the crop lies outside the image.

    Returns:
        (S, S) mask, empty without valid joints.

    """
    size = image.shape[0]
    work = min(size, _WORKING_SIZE)
    if work < size:
        image = np.asarray(cv2.resize(image, (work, work), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        keypoints = (keypoints + 0.5) * (work / size) - 0.5
        if outside is not None:
            outside = cv2.resize(outside.astype(np.uint8), (work, work), interpolation=cv2.INTER_NEAREST) > 0
    mask = _grabcut(image, keypoints, valid, outside)
    if work < size:
        mask = _enlarge(mask, size)
    return mask


def _grabcut(image: NDArray[np.uint8], keypoints: Points, valid: Mask, outside: Mask | None) -> Mask:
    size = image.shape[0]
    sure, likely, possible, forearm = (np.zeros((size, size), dtype=bool) for _ in range(4))
    for points, joints in _hands(keypoints, valid):
        behind = _behind_wrist(size, points, joints)
        likely |= _flesh(size, points, joints) & ~behind
        possible |= _flesh(size, points, joints, *_BAND) & ~behind
        sure |= _bones(size, points, joints) & ~behind
        forearm |= _forearm(size, points, joints) & behind
    labels = np.full((size, size), cv2.GC_BGD, dtype=np.uint8)
    labels[possible] = cv2.GC_PR_BGD
    labels[likely | (forearm & ~possible)] = cv2.GC_PR_FGD
    labels[sure] = cv2.GC_FGD
    if outside is not None:
        labels[outside] = cv2.GC_BGD
    if possible.any():
        window = _window(possible, margin=size // 20)
        labels[window] = _refine(image[window], labels[window])
    return _tidy((labels & 1).astype(bool) & possible, sure)


def _refine(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    labels = np.ascontiguousarray(labels)
    if 0 < np.count_nonzero(labels & 1) < labels.size:  # GrabCut needs both kinds; the low bit is set for the hand
        cv2.setRNGSeed(0)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        no_box = (0, 0, 1, 1)  # not read: the labels decide
        mode = cv2.GC_INIT_WITH_MASK
        cv2.grabCut(np.ascontiguousarray(image), labels, no_box, background, foreground, _GRABCUT_ROUNDS, mode)
    return labels


def _window(mask: Mask, margin: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + 1 + margin),
        slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin),
    )


def _tidy(mask: Mask, sure: Mask) -> Mask:
    """Smooth the outline, and drop islands that hold no bone."""
    smooth = cv2.medianBlur(mask.astype(np.uint8), 3)
    _, islands = cv2.connectedComponents(smooth, connectivity=4)
    keep = np.unique(islands[sure])
    result: Mask = np.isin(islands, keep[keep > 0])
    return result


def _enlarge(mask: Mask, size: int) -> Mask:
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)
    enlarged: Mask = cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR) > 0.5
    return enlarged


def cut_forearm(mask: Mask, keypoints: Points, valid: Mask) -> Mask:
    """Remove from a mask what lies behind the wrist. Each pixel belongs to the hand whose hull is nearest.

    The cut runs across the line from wrist to middle knuckle, a little behind the wrist joint, or behind the flesh
    around the hindmost joint where that is farther back. In a hand that points at the camera or away from it, the
    forearm's direction hardly shows: there, all that is farther from the usual flesh than a tenth of the hand's length
    is removed as well. A hand without a valid wrist or without any valid knuckle is not cut.

    Args:
        mask: (S, S).
        keypoints: (42, 2) crop pixels.
        valid: (42,) joints to use.

    """
    size = mask.shape[0]
    nearest = np.full((size, size), np.inf, dtype=np.float32)
    cut_nearest = np.zeros((size, size), dtype=bool)
    for points, joints in _hands(keypoints, valid):
        away = np.ones((size, size), dtype=np.uint8)
        hull = np.zeros((size, size), dtype=np.uint8)
        _draw_hull(hull, points[joints])
        away[hull > 0] = 0
        distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_5)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        cut = _behind_wrist(size, points, joints)
        if _is_foreshortened(points, joints):
            cut |= ~_flesh(size, points, joints, margin=_FORESHORTENED_MARGIN) & (distance > 0)
        cut_nearest[closer] = cut[closer]
    return mask & ~cut_nearest


# ---- judging masks


def mask_score(mask: Mask, keypoints: Points, valid: Mask) -> float:
    """Return the share of valid keypoints whose nearest pixel is in the mask; 0 without a valid keypoint.

    A keypoint outside the crop counts as missed.
    """
    if not valid.any():
        return 0.0
    x, y = np.floor(keypoints[valid] + 0.5).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    return float(mask[y[inside], x[inside]].sum() / len(x))


def mask_spill(mask: Mask, keypoints: Points, valid: Mask) -> float:
    """Return the share of the mask's area that belongs to no hand: an arm, a shirt, a neighbour.

    A pixel belongs to a hand if it lies within 0.35 lengths of that hand (``hand_length``) from the convex hull of its
    valid keypoints. The share is 0 for an empty mask.
    """
    area = int(mask.sum())
    if area == 0:
        return 0.0
    near = np.zeros(mask.shape, dtype=np.uint8)
    for points, joints in _hands(keypoints, valid):
        _draw_hull(near, points[joints], margin=SPILL_DISTANCE * hand_length(points, joints))
    return float((mask & (near == 0)).sum() / area)


def choose_mask(candidates: Mask, keypoints: Points, valid: Mask) -> int:
    """Return the index of the candidate that covers the keypoints and spills least; of equals, the first.

    Args:
        candidates: (K, S, S) masks of the same hand or hands.
        keypoints: (42, 2) crop pixels.
        valid: (42,) joints to use.

    """
    marks = [mask_score(mask, keypoints, valid) - mask_spill(mask, keypoints, valid) for mask in candidates]
    return int(np.argmax(marks))


# ---- prompts for SAM


@dataclass(frozen=True)
class HandPrompt:
    """The prompt of SAM for one hand, in crop pixels."""

    points: Points
    """(P, 2) points on the hand and beside it."""
    labels: NDArray[np.int32]
    """(P,) 1 on the hand, 0 beside it."""
    box_xyxy: Points
    """(4,) box of the hand's flesh; it may reach over the crop's border."""


def sam_prompts(keypoints: Points, valid: Mask) -> list[HandPrompt]:
    """Return one prompt for each hand with a valid keypoint, right before left.

    All valid keypoints of the hand are positive points. Keypoints of the other hand that lie in this hand's box are
    negative points, except where they are so near to this hand that it may cover them.

    Args:
        keypoints: (42, 2) crop pixels.
        valid: (42,) joints to use, those inside the crop.

    """
    hands = [(points[joints], hand_length(points, joints)) for points, joints in _hands(keypoints, valid)]
    prompts = []
    for number, (own, length) in enumerate(hands):
        margin = _PROMPT_MARGIN * length
        box = np.concatenate([own.min(axis=0) - margin, own.max(axis=0) + margin])
        hull = cv2.convexHull(own)
        beside = [
            point
            for points, _ in hands[:number] + hands[number + 1 :]
            for point in points
            if (box[:2] <= point).all()
            and (point <= box[2:]).all()
            and cv2.pointPolygonTest(hull, point.tolist(), True) < -margin
        ]
        points = np.array([*own, *beside], dtype=np.float32)
        labels = np.repeat(np.array([1, 0], dtype=np.int32), [len(own), len(beside)])
        prompts.append(HandPrompt(points, labels, box))
    return prompts
