"""A z-buffer rasteriser in plain numpy, made for meshes of small triangles.

Triangles become rows and rows become pixels by two rounds of ``np.repeat``, so no candidate outside a triangle is ever
tested; the nearest surface wins by one ``np.maximum.at`` on inverse depth and index packed into 64 bits.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.synthesis.geometry import Floats, Integers

NEAREST_M: Final = 0.01
"""Faces with a vertex nearer to the camera than this are not drawn."""
_SMALLEST_AREA_PX: Final = 1e-9


@dataclass(frozen=True, eq=False)
class Fragments:
    """The visible surface: one entry a covered pixel, in the order of the pixels."""

    pixel: NDArray[np.int64]
    """(P,): y * width + x."""
    face: NDArray[np.int64]
    """(P,): index of the face that is seen there."""
    depth: NDArray[np.float32]
    """(P,): distance along the view axis, metres."""


def rasterize(points_px: Floats, depth: Floats, faces: Integers, width: int, height: int) -> Fragments:
    """Find the nearest front face at the centre of every pixel (integer coordinates).

    ``points_px`` (V, 2) and ``depth`` (V,), in metres, are the projected vertices. Faces (T, 3) wind outwards; those
    that are turned away are not drawn.
    """
    kept = _front_faces(points_px, depth > NEAREST_M, faces)
    corners = faces[kept]
    ax, bx, cx = (points_px[corners[:, i], 0] for i in range(3))
    ay, by, cy = (points_px[corners[:, i], 1] for i in range(3))
    first_row = np.clip(np.ceil(np.minimum(np.minimum(ay, by), cy)), 0, height).astype(np.int32)
    last_row = np.clip(np.floor(np.maximum(np.maximum(ay, by), cy)), -1, height - 1).astype(np.int32)
    triangle, row_in_triangle = _expand(np.maximum(last_row - first_row + 1, 0))
    y = first_row[triangle] + row_in_triangle

    # The three barycentric weights are affine in the pixel, slope_x * x + slope_y * y + offset. On a row, a triangle
    # spans the pixels where all are positive. Their sum, weighted by the corners' inverse depths, is the inverse depth.
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    start, end = np.full(len(y), -np.inf), np.full(len(y), np.inf)
    inverse_slope_x, inverse_slope_y, inverse_offset = (np.zeros(len(kept)) for _ in range(3))
    for opposite, (from_x, from_y, to_x, to_y) in enumerate(((bx, by, cx, cy), (cx, cy, ax, ay), (ax, ay, bx, by))):
        slope_x, slope_y = (from_y - to_y) / area, (to_x - from_x) / area
        offset = -(slope_x * from_x + slope_y * from_y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = (-offset / slope_x)[triangle] + (-slope_y / slope_x)[triangle] * y
        np.maximum(start, crossing, out=start, where=(slope_x > 0)[triangle])
        np.minimum(end, crossing, out=end, where=(slope_x < 0)[triangle])
        inverse = 1 / depth[corners[:, opposite]]
        inverse_slope_x += inverse * slope_x
        inverse_slope_y += inverse * slope_y
        inverse_offset += inverse * offset
    first_x = np.clip(np.ceil(start), 0, width).astype(np.int32)
    last_x = np.clip(np.floor(end), -1, width - 1).astype(np.int32)
    inverse_at_row = inverse_offset[triangle] + inverse_slope_y[triangle] * y

    # Pixels of all rows.
    row, pixel_in_row = _expand(np.maximum(last_x - first_x + 1, 0))
    x = first_x[row] + pixel_in_row
    triangle = triangle[row]
    inverse_depth = (inverse_at_row[row] + inverse_slope_x[triangle] * x).astype(np.float32)
    pixel = y[row].astype(np.int64) * width + x

    # Bits of positive floats sort like the floats, so the greatest key is the nearest fragment.
    key = (inverse_depth.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.arange(len(x), dtype=np.uint64)
    nearest = np.zeros(width * height, dtype=np.uint64)
    np.maximum.at(nearest, pixel, key)
    covered = np.flatnonzero(nearest)
    winner = (nearest[covered] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return Fragments(pixel=covered, face=kept[triangle[winner]], depth=1 / inverse_depth[winner])


def barycentric(
    points_px: Floats, depth: Floats, corners: Integers, pixel_x: Floats, pixel_y: Floats
) -> NDArray[np.float32]:
    """Return perspective-correct weights ``(P, 3)`` of each pixel's three ``corners`` ``(P, 3)``.

    Weights are clipped to the triangle, so a pixel whose centre lies just outside takes the nearest surface point.
    """
    a, b, c = (points_px[corners[:, i]] for i in range(3))
    edge_b, edge_c = b - a, c - a
    area = edge_b[:, 0] * edge_c[:, 1] - edge_b[:, 1] * edge_c[:, 0]
    x, y = pixel_x - a[:, 0], pixel_y - a[:, 1]
    weight_b = (x * edge_c[:, 1] - y * edge_c[:, 0]) / area
    weight_c = (y * edge_b[:, 0] - x * edge_b[:, 1]) / area
    weights = np.stack([1 - weight_b - weight_c, weight_b, weight_c], axis=1).clip(0, 1) / depth[corners]
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _front_faces(points_px: Floats, in_front: NDArray[np.bool_], faces: Integers) -> NDArray[np.int64]:
    a, b, c = (faces[:, i] for i in range(3))
    x, y = points_px[:, 0], points_px[:, 1]
    area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
    return np.flatnonzero((area < -_SMALLEST_AREA_PX) & in_front[a] & in_front[b] & in_front[c])


def _expand(counts: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for groups of the given sizes laid end to end, each item's group and its index in the group."""
    group = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return group, np.arange(len(group)) - first[group]
