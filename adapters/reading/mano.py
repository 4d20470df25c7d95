"""Joints of a MANO hand from its parameters, with the user's own MANO_RIGHT.pkl and MANO_LEFT.pkl.

MANO (Romero et al., Embodied Hands, SIGGRAPH Asia 2017) has a licence for non-commercial research and only comes from
https://mano.is.tue.mpg.de: handdata ships none of its numbers. Only the 16 joints and the five finger tips are posed,
not the whole mesh.

The official files (mano_v1_2, pickled by Python 2) hold numpy arrays, a scipy matrix (``J_regressor``) and a chumpy
expression (``shapedirs``: the first ten of twenty components, selected from an array). They are read as data, without
scipy and chumpy, as are copies in which these were replaced by arrays.

**Which vertices are the tips** is each dataset's own choice, and moves them by millimetres. Thumb first::

    manopth, manotorch (manolayer.py)              745 317 444 556 673, left hand 745 317 445 556 673
    RenderIH (models/manolayer.py)                 745 317 444 556 673, both hands
    InterHand2.6M's authors (InterWild, mano.py)   745 317 445 556 673, both hands
    smplx (vertex_ids.py)                          744 320 443 554 671, both hands
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handdata.adapters.reading.pickles import PickledObject, load_pickle
from handdata.schemas import RecordError, Side, UsageError

Array = NDArray[np.float64]
Tips = tuple[int, int, int, int, int]
"""Vertices taken for the tips of thumb, index, middle, ring and little finger."""

MANOPTH_TIPS: Final[dict[Side, Tips]] = {"right": (745, 317, 444, 556, 673), "left": (745, 317, 445, 556, 673)}
FILE_OF_SIDE: Final[dict[Side, str]] = {"right": "MANO_RIGHT.pkl", "left": "MANO_LEFT.pkl"}

_JOINTS = 16
_VERTICES = 778
_POSE = 45
_ORDER: Final = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
"""Our 21 joints in MANO's order of 16 (wrist, index, middle, little, ring, thumb), followed by the five tips."""
_CHUMPY_ARRAY = "chumpy.ch.Ch"
_CHUMPY_SELECT = "chumpy.reordering.Select"
_INERT: Final = (
    ("chumpy.ch", "Ch"),
    ("chumpy.reordering", "Select"),
    ("scipy.sparse.csc", "csc_matrix"),
    ("scipy.sparse._csc", "csc_matrix"),
)
"""The classes that model files name besides numpy's; the last one where SciPy 1.8 or later wrote a copy."""
_HINT = (
    "register at https://mano.is.tue.mpg.de, download and unpack mano_v1_2, and pass its folder `models`, "
    "which holds MANO_RIGHT.pkl and MANO_LEFT.pkl, as --mano or HANDDATA_MANO_DIR"
)


@dataclass(frozen=True, slots=True, eq=False)
class ManoModel:
    """One hand of MANO. Lengths are metres, in the model's own frame."""

    template: Array
    """(778, 3) vertices of the mean shape in the rest pose."""
    shape_directions: Array
    """(778, 3, B) motion of the vertices by each beta."""
    pose_directions: Array
    """(778, 3, 135) motion of the vertices by each entry of the 15 rotation matrices, less the identity."""
    joint_regressor: Array
    """(16, 778) weights by which vertices of the rest pose give the joints."""
    skinning_weights: Array
    """(778, 16)"""
    parents: tuple[int, ...]
    """Parent of each joint; the wrist's own entry is 0."""
    mean_pose: Array
    """(45,) axis-angles of a relaxed hand."""
    pose_components: Array
    """(45, 45) principal components of poses, one a row."""

    def pose_from_components(self, coefficients: ArrayLike) -> Array:
        """Return (45,) axis-angles from up to 45 PCA coefficients: mean pose + coefficients @ components."""
        weights = np.asarray(coefficients, dtype=np.float64).reshape(-1)
        pose: Array = self.mean_pose + weights @ self.pose_components[: len(weights)]
        return pose

    def joints(
        self, rotation: ArrayLike, pose: ArrayLike, betas: ArrayLike, translation_m: ArrayLike, tips: Tips
    ) -> Array:
        """Return the (21, 3) joints, in handdata's order, of a posed hand; SMPL's equations 2 to 4 and 10.

        Args:
            rotation: (3, 3) turns the hand about its rest wrist (``rotation_matrices`` where an axis-angle is given).
            pose: (45,) axis-angles of the 15 finger joints, in which zeros are the flat hand. For labels relative to
                the mean pose (``flat_hand_mean=False``) add ``mean_pose``; for PCA see ``pose_from_components``.
            betas: Up to B shape coefficients.
            translation_m: (3,) added after posing. The wrist of zero translation is not at the origin.
            tips: Vertices that this dataset takes for finger tips.

        """
        shape = np.asarray(betas, dtype=np.float64).reshape(-1)
        turns = np.concatenate(
            [
                np.asarray(rotation, dtype=np.float64).reshape(1, 3, 3),
                rotation_matrices(np.asarray(pose, dtype=np.float64).reshape(_JOINTS - 1, 3)),
            ]
        )
        vertices = list(tips)
        shaped = self.template + np.tensordot(self.shape_directions[..., : len(shape)], shape, axes=1)
        rest_joints: Array = self.joint_regressor @ shaped
        rest_tips = shaped[vertices] + self.pose_directions[vertices] @ (turns[1:] - np.eye(3)).reshape(-1)
        # In place: turns[i] and joints[i] become those of joint i in the model's frame, parents first.
        joints = rest_joints.copy()
        for joint in range(1, _JOINTS):
            parent = self.parents[joint]
            joints[joint] = joints[parent] + turns[parent] @ (rest_joints[joint] - rest_joints[parent])
            turns[joint] = turns[parent] @ turns[joint]
        offsets = rest_tips[:, None] - rest_joints  # tip, joint, xyz
        carried = np.einsum("jab,tjb->tja", turns, offsets) + joints
        posed_tips = np.einsum("tj,tja->ta", self.skinning_weights[vertices], carried)
        placed: Array = np.concatenate([joints, posed_tips])[list(_ORDER)] + np.reshape(translation_m, 3)
        return placed


def rotation_matrices(axis_angles: ArrayLike) -> Array:
    """Return (N, 3, 3) rotations from (N, 3) axis-angles in radians, by Rodrigues' formula; exact also near zero."""
    vectors = np.asarray(axis_angles, dtype=np.float64).reshape(-1, 3)
    angles = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    # numpy's sinc(t) is sin(pi t) / (pi t): here sin(a) / a, and (1 - cos a) / a^2 by the half angle.
    sine, versine = np.sinc(angles / np.pi), np.sinc(angles / (2 * np.pi)) ** 2 / 2
    matrices: Array = np.eye(3) + sine * cross + versine * (cross @ cross)
    return matrices


def correct_left_shape(left: ManoModel, right: ManoModel) -> ManoModel:
    """Return the left hand with the x axis of its shape components turned, where the file lacks that.

    In the official files both hands share one x axis there, so that a beta that widens the right hand narrows the left
    (vchoutas/smplx, issue 48). Datasets fitted with the correction (RenderIH, InterHand2.6M) need it, those fitted
    without (manopth) must not have it.
    """
    if np.abs(left.shape_directions[:, 0] - right.shape_directions[:, 0]).sum() >= 1:
        return left
    return replace(left, shape_directions=left.shape_directions * np.array([-1.0, 1.0, 1.0])[:, None])


@functools.lru_cache(maxsize=4)
def load_mano(folder: Path, side: Side) -> ManoModel:
    """Return one hand from ``folder``/MANO_RIGHT.pkl or MANO_LEFT.pkl; kept in memory for the next call.

    Raises:
        UsageError: The file is missing or is not a MANO model; the message says what to put where.

    """
    path = folder / FILE_OF_SIDE[side]
    try:
        content = load_pickle(path, inert=_INERT)
        fields = content if isinstance(content, dict) else {}
        shape_directions = _array(fields, "shapedirs")
        if shape_directions.ndim != 3:
            raise ValueError(f"shapedirs has the shape {shape_directions.shape}")
        parents = [int(parent) for parent in _array(fields, "kintree_table", (2, _JOINTS))[0]]
        parents[0] = 0  # stored as -1, wrapped to 4294967295
        if any(not 0 <= parent < joint for joint, parent in enumerate(parents) if joint):
            raise ValueError(f"kintree_table names the parents {parents}")
        return ManoModel(
            template=_array(fields, "v_template", (_VERTICES, 3)),
            shape_directions=_array(fields, "shapedirs", (_VERTICES, 3, shape_directions.shape[2])),
            pose_directions=_array(fields, "posedirs", (_VERTICES, 3, 9 * (_JOINTS - 1))),
            joint_regressor=_array(fields, "J_regressor", (_JOINTS, _VERTICES)),
            skinning_weights=_array(fields, "weights", (_VERTICES, _JOINTS)),
            parents=tuple(parents),
            mean_pose=_array(fields, "hands_mean", (_POSE,)),
            pose_components=_array(fields, "hands_components", (_POSE, _POSE)),
        )
    except RecordError as error:
        _fail(error.detail)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        _fail(f"{path} is not a MANO model: {type(error).__name__}: {error}")


def _fail(problem: str) -> NoReturn:
    raise UsageError(problem, _HINT) from None


def _array(fields: dict[str, Any], name: str, shape: tuple[int, ...] | None = None) -> Array:
    array = _evaluate(fields[name])
    if array.dtype.kind not in "iuf" or (shape is not None and array.shape != shape):
        raise ValueError(f"{name} should hold numbers of shape {shape}, holds {array.dtype} of shape {array.shape}")
    result = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(result).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return result


def _evaluate(value: Any) -> NDArray[Any]:
    """Return the array that a stored value stands for."""
    if not isinstance(value, PickledObject):
        return np.asarray(value)
    state = value.state
    if value.name == _CHUMPY_ARRAY:
        return _evaluate(state["x"])
    if value.name == _CHUMPY_SELECT:
        selected: NDArray[Any] = _evaluate(state["a"]).reshape(-1)[state["idxs"]].reshape(state["preferred_shape"])
        return selected
    return _dense(state)


def _dense(state: dict[str, Any]) -> Array:
    """Return the dense matrix of a scipy ``csc_matrix``: ``indptr[c]`` is where column c begins in data and rows."""
    matrix = np.zeros(state["_shape"])
    columns = np.repeat(np.arange(matrix.shape[1]), np.diff(state["indptr"]))
    np.add.at(matrix, (state["indices"], columns), state["data"])
    return matrix
