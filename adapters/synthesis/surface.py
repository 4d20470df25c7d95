"""The skin of a hand at rest: a signed distance made of capsules, its mesh, and the mesh's skinning weights.

The distance joins tapered capsules by a smooth minimum (Quilez, "Smooth minimum", polynomial form); marching cubes
(Lorensen & Cline 1987, scikit-image) turns it into a mesh once per person. Lengths are millimetres in the palm's frame
of ``skeleton``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from handdata.adapters.synthesis.geometry import Floats, vertex_normals
from handdata.adapters.synthesis.skeleton import (
    BONE_COUNT,
    FINGER_COUNT,
    FOREARM_BONE,
    PALM_BONE,
    SEGMENTS_PER_FINGER,
    THUMB,
    HandShape,
    phalanx_bone,
)

VOXEL_MM: Final = 3.0
_FOREARM_END_MM = -600.0
_FOREARM_COARSE_FROM_MM = -36.0
_FOREARM_GROWTH = 1.18
_FOREARM_SLICE_MM = 16.0
_WRIST_CENTRE_MM = -4.0
_WRIST_SOFTNESS_MM = 6.0
_WEIGHT_SOFTNESS_MM = 1.4
_WEIGHT_SMOOTHING_PASSES = 6
_SMALLEST_WEIGHT = 0.01
_OCCLUSION_STEPS = ((4.0, 0.5), (9.0, 0.3), (16.0, 0.2))
"""Distances along the normal, and their shares, at which the ambient occlusion of the rest pose is probed."""


class Capsule(NamedTuple):
    """A tapered capsule that belongs to one bone; ``blend_mm`` is how softly it joins its neighbours."""

    bone: int
    start: Floats
    end: Floats
    start_radius: float
    end_radius: float
    blend_mm: float
    flat_axis: Floats | None = None


class Capsules(NamedTuple):
    """The capsules of a hand by region; regions are joined with different softness."""

    fingers: list[list[Capsule]]
    palm: list[Capsule]
    forearm: list[Capsule]


@dataclass(frozen=True, eq=False)
class HandMesh:
    """The skin of a right hand and forearm at rest."""

    vertices_mm: NDArray[np.float32]
    """(V, 3)."""
    faces: NDArray[np.int32]
    """(T, 3): counter-clockwise seen from outside."""
    normals: NDArray[np.float32]
    """(V, 3): unit, outward."""
    weights: sparse.csr_array
    """(V, 17): share of each bone in a vertex's motion; rows sum to one."""
    exposure: NDArray[np.float32]
    """(V,): share of ambient light that reaches a vertex at rest, 0 to 1."""


def build_mesh(shape: HandShape) -> HandMesh:
    """Build the mesh of one person: about 11,000 vertices at 3 mm, coarser along the forearm."""
    capsules = build_capsules(shape)
    axes = _grid_axes(shape)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    # This direction winds faces outwards on our axes; a test measures the enclosed volume.
    positions, faces, _, _ = marching_cubes(  # type: ignore[no-untyped-call]
        signed_distance(grid, capsules), 0.0, gradient_direction="descent"
    )
    vertices = np.stack(
        [np.interp(positions[:, i], np.arange(len(axis)), axis) for i, axis in enumerate(axes)], axis=1
    ).astype(np.float32)
    faces = faces.astype(np.int32)
    normals = vertex_normals(vertices, faces).astype(np.float32)
    occlusion = sum(
        share * np.clip((step - signed_distance(vertices + normals * np.float32(step), capsules)) / step, 0, 1)
        for step, share in _OCCLUSION_STEPS
    )
    return HandMesh(
        vertices_mm=vertices,
        faces=faces,
        normals=normals,
        weights=_skinning_weights(vertices, faces, capsules),
        exposure=np.asarray(1.0 - occlusion, dtype=np.float32),
    )


def build_capsules(shape: HandShape) -> Capsules:
    """Cover the skeleton with flesh: phalanges, pads and knobs, palm, thenar and hypothenar, webs, tendons, forearm."""
    return Capsules(
        fingers=[_finger_capsules(shape, finger) for finger in range(FINGER_COUNT)],
        palm=_palm_capsules(shape),
        forearm=_forearm_capsules(shape),
    )


def signed_distance(points: Floats, capsules: Capsules) -> NDArray[np.float32]:
    """Return the distance in mm from points ``(..., 3)`` to the skin, negative inside."""
    points = np.asarray(points, dtype=np.float32)
    thumb, *fingers = (_join(points, finger) for finger in capsules.fingers)
    separate_fingers = fingers[0]
    for finger in fingers[1:]:
        separate_fingers = _smooth_minimum(separate_fingers, finger, 1.0)
    body = _smooth_minimum(_join(points, capsules.palm), thumb, 7.0)
    body = _smooth_minimum(body, _join(points, capsules.forearm), 16.0)
    return _smooth_minimum(body, separate_fingers, 6.0)


def _finger_capsules(shape: HandShape, finger: int) -> list[Capsule]:
    lateral, along, palmar = shape.finger_axes[finger].T
    chain, radius = shape.chain_mm[finger], shape.radius_mm[finger]
    capsules = []
    for segment in range(SEGMENTS_PER_FINGER):
        bone = phalanx_bone(finger, segment)
        start, end = chain[segment], chain[segment + 1]
        near, far = float(radius[segment]), float(radius[segment + 1])
        if finger == THUMB and segment == 0:
            capsules.append(Capsule(bone, start, end, 1.05 * near, 1.02 * far, 3.0))
            continue
        is_tip = segment == SEGMENTS_PER_FINGER - 1
        bone_end = end - along * (far - 3.2) if is_tip else end
        capsules.append(Capsule(bone, start, bone_end, 0.97 * near, 0.97 * far, 3.0, flat_axis=palmar))

        pad_from, pad_to = (0.30, 0.70) if is_tip else (0.25, 0.78)
        pad_offset = palmar * far * (0.16 if is_tip else 0.20)
        pad_radius = 0.5 * (near + far) * (0.90 if is_tip else 0.93)
        pad_start, pad_end = (start + (end - start) * share + pad_offset for share in (pad_from, pad_to))
        capsules.append(Capsule(bone, pad_start, pad_end, pad_radius, pad_radius * (0.92 if is_tip else 0.97), 4.0))
        if not is_tip:
            capsules.append(Capsule(bone, end - 1.4 * lateral, end + 1.4 * lateral, 0.95 * far, 0.95 * far, 3.0))
    return capsules


def _palm_capsules(shape: HandShape) -> list[Capsule]:
    thick = shape.thickness
    chain = shape.chain_mm

    def at(x: float, y: float, z: float) -> Floats:
        return np.array([x, y, z]) * shape.palm_scale

    def flesh(start: Floats, end: Floats, start_radius: float, end_radius: float, blend_mm: float) -> Capsule:
        return Capsule(PALM_BONE, start, end, start_radius, end_radius, blend_mm)

    def shift(x: float, y: float, z: float) -> Floats:
        return np.array([x, y, z], dtype=np.float64)

    carpals = {1: at(11, 16, 0), 2: at(3, 16, -2), 3: at(-6, 15, -1), 4: at(-13, 14, 2)}
    capsules = []
    for finger, carpal in carpals.items():
        radius, knuckle = float(shape.radius_mm[finger, 0]), chain[finger, 0]
        capsules.append(flesh(carpal, knuckle + shift(0, 0, -0.5), 13.5 * thick, 1.06 * radius, 10))
        capsules.append(flesh(carpal + shift(0, 8, 5), knuckle + shift(0, -4, 4.2), 11.0 * thick, 0.90 * radius, 9))
    for finger, carpal in carpals.items():
        radius, knuckle = float(shape.radius_mm[finger, 0]), chain[finger, 0]
        bump = 0.90 * radius
        capsules.append(flesh(knuckle + shift(-0.6, -2, -4.6), knuckle + shift(0.6, -2, -4.6), bump, bump, 4))
        tendon_start = carpal * shift(0.8, 1, 0) + shift(0, 14, 2.6 - 13.2 * thick)
        capsules.append(flesh(tendon_start, knuckle + shift(0, -7, -1.08 * radius), 2.4, 2.6, 5))

    thumb_base, thumb_knuckle = chain[THUMB, 0], chain[THUMB, 1]
    thumb = thumb_knuckle - thumb_base
    capsules += [
        flesh(at(13, 14, 9), thumb_base + 0.60 * thumb + shift(-3, 0, 3), 13.5 * thick, 11.5 * thick, 12),  # thenar
        flesh(at(-20, 20, 8), at(-31, 58, 7), 13.0 * thick, 10.5 * thick, 12),  # hypothenar
        flesh(at(18, 34, 3), thumb_base + 0.72 * thumb, 9.0 * thick, 7.5 * thick, 12),  # web of the thumb
        flesh(at(24, 56, 2), thumb_base + 0.80 * thumb, 7.0 * thick, 6.0 * thick, 12),
    ]
    for finger in range(1, FINGER_COUNT - 1):
        web_start, web_end = (
            chain[f, 0] + 13 * shape.finger_axes[f, :, 1] + shift(0, 0, 2.5) for f in (finger, finger + 1)
        )
        capsules.append(flesh(web_start, web_end, 6.0 * thick, 6.0 * thick, 7))
    return capsules


def _forearm_capsules(shape: HandShape) -> list[Capsule]:
    width, thick = float(shape.palm_scale[0]), shape.thickness
    capsules = []
    for side in (-1, 1):
        wrist, narrow, elbow = (
            np.array([side * x * width, y, z]) for x, y, z in ((10, 2, 0), (10.5, -38, -1), (21, -640, -4))
        )
        capsules.append(Capsule(FOREARM_BONE, wrist, narrow, 17.3 * thick, 17.6 * thick, 10))
        capsules.append(Capsule(FOREARM_BONE, narrow, elbow, 17.6 * thick, 42.0 * thick, 10))
    return capsules


def _grid_axes(shape: HandShape) -> list[NDArray[np.float32]]:
    points = shape.chain_mm.reshape(-1, 3)
    low = np.minimum(points.min(axis=0) - 18, [-62, 0, -40])
    high = np.maximum(points.max(axis=0) + 18, [62, 0, 44])
    x, z = (np.arange(low[i], high[i] + VOXEL_MM, VOXEL_MM) for i in (0, 2))
    forearm = [_FOREARM_COARSE_FROM_MM]
    step = VOXEL_MM
    while forearm[-1] > _FOREARM_END_MM:
        step = min(step * _FOREARM_GROWTH, _FOREARM_SLICE_MM)
        forearm.append(forearm[-1] - step)
    y = np.r_[forearm[::-1], np.arange(_FOREARM_COARSE_FROM_MM + VOXEL_MM, high[1] + VOXEL_MM, VOXEL_MM)]
    return [axis.astype(np.float32) for axis in (x, y, z)]


def _capsule_distance(points: NDArray[np.float32], capsule: Capsule) -> NDArray[np.float32]:
    start, axis = capsule.start.astype(np.float32), (capsule.end - capsule.start).astype(np.float32)
    x, y, z = (points[..., i] - start[i] for i in range(3))
    share = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / max(float(axis @ axis), 1e-6), 0, 1)
    x, y, z = x - share * axis[0], y - share * axis[1], z - share * axis[2]
    squared = x * x + y * y + z * z
    if capsule.flat_axis is not None:
        # Distances along the palmar axis count 6% more: a finger is a little flatter than wide.
        across = sum(c * np.float32(component) for c, component in zip((x, y, z), capsule.flat_axis, strict=True))
        squared = squared + across * across * np.float32(1.06**2 - 1)
    radius = np.float32(capsule.start_radius) + share * np.float32(capsule.end_radius - capsule.start_radius)
    return np.asarray(np.sqrt(squared) - radius, dtype=np.float32)


def _smooth_minimum(a: NDArray[np.float32], b: NDArray[np.float32], blend_mm: float) -> NDArray[np.float32]:
    overlap = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0) * np.float32(1 / blend_mm)
    return np.asarray(np.minimum(a, b) - overlap * overlap * np.float32(blend_mm / 4), dtype=np.float32)


def _join(points: NDArray[np.float32], capsules: Iterable[Capsule]) -> NDArray[np.float32]:
    joined: NDArray[np.float32] | None = None
    for capsule in capsules:
        distance = _capsule_distance(points, capsule)
        joined = distance if joined is None else _smooth_minimum(joined, distance, capsule.blend_mm)
    assert joined is not None
    return joined


def _skinning_weights(vertices: NDArray[np.float32], faces: NDArray[np.int32], capsules: Capsules) -> sparse.csr_array:
    distance = np.full((len(vertices), BONE_COUNT), 1e3, dtype=np.float32)
    for capsule in (*(c for finger in capsules.fingers for c in finger), *capsules.palm, *capsules.forearm):
        column = distance[:, capsule.bone]
        np.minimum(column, _capsule_distance(vertices, capsule), out=column)
    distance[:, phalanx_bone(THUMB, 0)] += 1.0  # the thumb's metacarpal yields to the palm a little
    weights = np.exp((distance.min(axis=1, keepdims=True) - distance) / _WEIGHT_SOFTNESS_MM)

    # Palm and forearm overlap: along the arm alone decides between them.
    forearm_share = 1 / (1 + np.exp(np.clip((vertices[:, 1] - _WRIST_CENTRE_MM) / _WRIST_SOFTNESS_MM, -30, 30)))
    trunk = weights[:, PALM_BONE] + weights[:, FOREARM_BONE]
    weights[:, PALM_BONE], weights[:, FOREARM_BONE] = trunk * (1 - forearm_share), trunk * forearm_share
    weights /= weights.sum(axis=1, keepdims=True)

    average = _neighbour_average(len(vertices), faces)
    for _ in range(_WEIGHT_SMOOTHING_PASSES):
        weights = 0.5 * weights + 0.5 * (average @ weights)
    weights[weights < _SMALLEST_WEIGHT] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return sparse.csr_array(weights.astype(np.float32))


def _neighbour_average(vertex_count: int, faces: NDArray[np.int32]) -> sparse.csr_array:
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    adjacency = sparse.coo_array(
        (np.ones(len(edges), dtype=np.float32), (edges[:, 0], edges[:, 1])), shape=(vertex_count, vertex_count)
    ).tocsr()
    adjacency.sum_duplicates()
    adjacency.data[:] = 1
    counts = np.maximum(adjacency.sum(axis=1), 1)
    return sparse.csr_array(sparse.diags_array(1 / counts) @ adjacency)
