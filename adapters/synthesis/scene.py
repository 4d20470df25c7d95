"""A scene of posed hands, and its rendered image with labels.

Distances are metres in the world frame of ``camera``. The left hand is the mirror image, in x, of a right hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from handdata.adapters.synthesis.camera import Camera
from handdata.adapters.synthesis.geometry import Floats, normalize, vertex_normals
from handdata.adapters.synthesis.pose import PosedSkeleton
from handdata.adapters.synthesis.raster import NEAREST_M, barycentric, rasterize
from handdata.adapters.synthesis.sensor import Sensor
from handdata.adapters.synthesis.shading import Light, ShadowMap, cast_shadows, depth_exposure, lit_share, shade
from handdata.adapters.synthesis.skeleton import HandShape, sample_shape
from handdata.adapters.synthesis.skin import GAMMA, Skin, paint, sample_skin
from handdata.adapters.synthesis.surface import HandMesh, build_mesh
from handdata.schemas.joints import SIDES, Side

SUPERSAMPLING: Final = 2
"""Coverage is measured at this many points along each side of a pixel; colour once a pixel."""
HAND_FROM_MM: Final = -12.0
"""The hand begins at this y of the rest pose; what lies below is forearm and not in the mask."""
PALM_CENTRE_MM: Final = np.array([0.0, 62.0, 5.0])
"""The point of the palm that a hand turns about."""
_SHADOWED_FROM_MM = -50.0
_BEHIND_HANDS_M = 0.06
_MM = 0.001


@dataclass(frozen=True, eq=False)
class Identity:
    """One person: proportions, mesh and skin of the right hand (the left is its mirror image)."""

    shape: HandShape
    mesh: HandMesh
    skin: Skin


@dataclass(frozen=True, eq=False)
class PosedHand:
    """A hand in the world."""

    identity: Identity
    side: Side
    vertices: NDArray[np.float64]
    """(V, 3) metres."""
    joints: NDArray[np.float64]
    """(21, 3) metres."""


@dataclass(frozen=True, eq=False)
class Scene:
    """All hands of one moment as one mesh, with everything that does not depend on the camera."""

    hands: tuple[PosedHand, ...]
    light: Light
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    face_hand: NDArray[np.int64]
    """(T,): index into ``hands``."""
    face_finger: NDArray[np.int64]
    attributes: NDArray[np.float32]
    """(V, 14): world position, world normal, rest position (mm), skin colour, palmarity, exposure."""
    shadows: ShadowMap


@dataclass(frozen=True, eq=False)
class Rendering:
    """A rendered frame with its labels."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    mask: NDArray[np.uint8]
    """(S, S): 0 nothing or forearm, 1 right hand, 2 left hand."""
    depth_m: NDArray[np.float32]
    """(S, S): distance of the first surface along the view axis, infinite where there is none."""


def build_identity(rng: np.random.Generator) -> Identity:
    """Draw a person and build their hand (about 0.4 s)."""
    shape = sample_shape(rng)
    mesh = build_mesh(shape)
    return Identity(shape, mesh, sample_skin(rng, shape, mesh))


def pose_hand(
    identity: Identity,
    side: Side,
    skeleton: PosedSkeleton,
    frame: int,
    rotation: Floats,
    palm_centre: Floats,
) -> PosedHand:
    """Skin the hand in pose ``frame`` of the batch (linear blend) and put its palm's centre in the world.

    ``rotation`` (3, 3) turns the palm's frame, mirrored for a left hand, into the world's.
    """
    mesh = identity.mesh
    transforms = np.concatenate(
        [skeleton.rotations[frame].reshape(-1, 9), skeleton.translations_mm[frame]], axis=1
    ).astype(np.float32)
    blended = mesh.weights @ transforms
    vertices = np.einsum("vij,vj->vi", blended[:, :9].reshape(-1, 3, 3), mesh.vertices_mm) + blended[:, 9:]
    to_world = rotation * np.where([side == "left", False, False], -1, 1) * (identity.shape.size * _MM)
    return PosedHand(
        identity,
        side,
        (vertices - PALM_CENTRE_MM) @ to_world.T + palm_centre,
        (skeleton.joints_mm[frame] - PALM_CENTRE_MM) @ to_world.T + palm_centre,
    )


def assemble(hands: Sequence[PosedHand], light: Light) -> Scene:
    """Join the hands into one mesh and cast its shadows."""
    first_vertex = np.cumsum([0, *(len(hand.vertices) for hand in hands)])
    faces, attributes = [], []
    for hand, first in zip(hands, first_vertex, strict=False):
        mesh, skin = hand.identity.mesh, hand.identity.skin
        # Mirroring turns the faces inside out.
        hand_faces = (mesh.faces[:, ::-1] if hand.side == "left" else mesh.faces).astype(np.int64)
        faces.append(hand_faces + first)
        normals = vertex_normals(hand.vertices, hand_faces)
        palmarity, exposure = skin.vertex_palmarity[:, None], mesh.exposure[:, None]
        columns = [hand.vertices, normals, mesh.vertices_mm, skin.vertex_colour, palmarity, exposure]
        attributes.append(np.concatenate(columns, axis=1).astype(np.float32))
    vertices = np.concatenate([hand.vertices for hand in hands])
    all_faces, all_attributes = np.concatenate(faces), np.concatenate(attributes)
    return Scene(
        hands=tuple(hands),
        light=light,
        vertices=vertices,
        faces=all_faces,
        face_hand=np.repeat(np.arange(len(hands)), [len(f) for f in faces]),
        face_finger=np.concatenate([hand.identity.skin.face_finger for hand in hands]),
        attributes=all_attributes,
        shadows=cast_shadows(light, vertices, all_faces, all_attributes[:, 7] > _SHADOWED_FROM_MM),
    )


def render(
    scene: Scene,
    camera: Camera,
    background: NDArray[np.float32],
    sensor: Sensor,
    rng: np.random.Generator,
) -> Rendering:
    """Draw the scene before a gamma-encoded background ``(S, S, 3)``; ``rng`` draws the sensor's noise alone."""
    size = camera.size
    in_camera = camera.to_camera(scene.vertices)
    depth = in_camera[:, 2].copy()
    np.maximum(in_camera[:, 2], NEAREST_M, out=in_camera[:, 2])
    points_px = camera.to_pixels(in_camera)

    fine_px = (points_px + 0.5) * SUPERSAMPLING - 0.5
    fine_size = size * SUPERSAMPLING
    seen = rasterize(fine_px, depth, scene.faces, fine_size, fine_size)
    fine_y, fine_x = np.divmod(seen.pixel, fine_size)
    coarse = (fine_y // SUPERSAMPLING) * size + fine_x // SUPERSAMPLING
    coverage = np.bincount(coarse, minlength=size * size).astype(np.float32) / SUPERSAMPLING**2
    # Any sample of a pixel stands for its colour and its label.
    sample = np.full(size * size, -1, dtype=np.int64)
    sample[coarse] = np.arange(len(coarse))
    pixel = np.flatnonzero(sample >= 0)
    sample = sample[pixel]

    face = seen.face[sample]
    corners = scene.faces[face]
    weights = barycentric(fine_px, depth, corners, fine_x[sample], fine_y[sample])
    attributes = _interpolate(scene.attributes, corners, weights)
    rest_y = attributes[:, 7]
    hand = scene.face_hand[face]

    label = np.array([SIDES.index(h.side) + 1 for h in scene.hands], dtype=np.uint8)[hand]
    mask = np.zeros(size * size, dtype=np.uint8)
    mask[pixel] = label * (rest_y > HAND_FROM_MM) * (coverage[pixel] >= 0.5)
    depth_image = np.full(size * size, np.inf, dtype=np.float32)
    depth_image[pixel] = seen.depth[sample]

    colour = _colour(scene, camera, attributes, hand, scene.face_finger[face], pixel, depth_image)
    image = background.reshape(-1, 3).copy()
    share = coverage[pixel, None]
    image[pixel] = (colour * share + image[pixel] ** np.float32(GAMMA) * (1 - share)) ** np.float32(1 / GAMMA)
    return Rendering(
        image=sensor.expose(image.reshape(size, size, 3), rng),
        mask=mask.reshape(size, size),
        depth_m=depth_image.reshape(size, size),
    )


def _interpolate(
    attributes: NDArray[np.float32], corners: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    rows = np.arange(0, 3 * len(corners) + 1, 3)
    matrix = sparse.csr_array((weights.ravel(), corners.ravel(), rows), shape=(len(corners), len(attributes)))
    return np.asarray(matrix @ attributes)


def _colour(
    scene: Scene,
    camera: Camera,
    attributes: NDArray[np.float32],
    hand: NDArray[np.int64],
    finger: NDArray[np.int64],
    pixel: NDArray[np.int64],
    depth: NDArray[np.float32],
) -> NDArray[np.float32]:
    position, normal, rest, skin_colour, palmarity, exposure = np.split(attributes, [3, 6, 9, 12, 13], axis=1)
    albedo = np.empty_like(position)
    gloss = np.empty(len(position), dtype=np.float32)
    for index, posed in enumerate(scene.hands):
        own = np.flatnonzero(hand == index)
        albedo[own], gloss[own] = paint(
            posed.identity.skin, posed.identity.shape, rest[own], skin_colour[own], palmarity[own, 0], finger[own]
        )
    far = np.float32(depth[pixel].mean() + _BEHIND_HANDS_M)
    depth_image = np.where(np.isfinite(depth), depth, far).reshape(camera.size, camera.size)
    openness = np.clip(exposure[:, 0], 0.25, 1) * depth_exposure(depth_image, pixel, float(camera.k[0, 0]))
    centre = -camera.t_world[:3, :3].T @ camera.t_world[:3, 3]
    return np.asarray(
        shade(
            scene.light,
            albedo,
            gloss,
            normalize(normal),
            normalize(centre.astype(np.float32) - position),
            openness,
            lit_share(scene.shadows, position),
        ),
        dtype=np.float32,
    )
