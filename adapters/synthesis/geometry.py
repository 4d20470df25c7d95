"""Rotations, unit vectors and vertex normals: the arithmetic that every part of the renderer shares."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]


def normalize(vectors: Floats) -> Floats:
    """Scale vectors ``(..., 3)`` to length one; a zero vector stays zero."""
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return np.asarray(vectors / np.maximum(length, 1e-12))


def axis_rotation(axis: Floats, angle_rad: Floats | float) -> NDArray[np.float64]:
    """Return rotations ``(..., 3, 3)`` about a unit axis ``(3,)`` by the angles ``(...)`` (Rodrigues' formula)."""
    x, y, z = (float(component) for component in axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.asarray(angle_rad, dtype=np.float64)[..., None, None]
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross), dtype=np.float64)


def vertex_normals(vertices: Floats, faces: Integers) -> Floats:
    """Return area-weighted unit normals ``(V, 3)`` of a mesh whose faces ``(T, 3)`` wind outwards."""
    corner = vertices[faces[:, 0]]
    edge_b, edge_c = vertices[faces[:, 1]] - corner, vertices[faces[:, 2]] - corner
    normals = np.empty_like(vertices)
    flat = faces.ravel(order="F")
    for i, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        face_normal = edge_b[:, j] * edge_c[:, k] - edge_b[:, k] * edge_c[:, j]
        normals[:, i] = np.bincount(flat, np.tile(face_normal, 3), len(vertices))
    return normalize(normals)
