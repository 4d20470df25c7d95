"""Writes model files with the structure of the official MANO_RIGHT.pkl and MANO_LEFT.pkl, and made-up numbers.

The official files are pickles of Python 2 (protocol 2) which name ``scipy.sparse.csc.csc_matrix``, ``chumpy.ch.Ch`` and
``chumpy.reordering.Select``; neither package is needed here.
"""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

VERTICES, JOINTS = 778, 16
PARENTS = (0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)


class Ch:
    """Stands for ``chumpy.ch.Ch`` when it is written."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


class Select(Ch):
    """Stands for ``chumpy.reordering.Select``."""


class CscMatrix(Ch):
    """Stands for ``scipy.sparse.csc.csc_matrix``."""


class _PickleOfPython2(pickle._Pickler):
    """Writes text and bytes as Python 2's ``str``, and classes by the names that they had then."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)
    names: ClassVar[dict[Any, tuple[str, str]]] = {
        Ch: ("chumpy.ch", "Ch"),
        Select: ("chumpy.reordering", "Select"),
        CscMatrix: ("scipy.sparse.csc", "csc_matrix"),
        set: ("__builtin__", "set"),
    }

    def save_string(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = self.names.get(obj, (obj.__module__, name or obj.__name__))
        self.write(pickle.GLOBAL + f"{module.replace('numpy._core', 'numpy.core')}\n{name}\n".encode())
        self.memoize(obj)

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def made_up_model(seed: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a hand-sized model whose every number is random."""
    rng = np.random.default_rng(seed)
    weights = rng.random((VERTICES, JOINTS))
    regressor = np.where(rng.random((JOINTS, VERTICES)) < 0.02, rng.random((JOINTS, VERTICES)), 0)
    return {
        "v_template": rng.normal(scale=0.05, size=(VERTICES, 3)),
        "shapedirs": rng.normal(scale=0.003, size=(VERTICES, 3, 10)),
        "posedirs": rng.normal(scale=0.001, size=(VERTICES, 3, 135)),
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "hands_mean": rng.normal(scale=0.2, size=45),
        "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0],
    }


def official_structure(model: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the dict that the official file pickles, with its scipy and chumpy objects."""
    regressor = model["J_regressor"]
    columns, rows = np.nonzero(regressor.T)
    twenty = np.concatenate([model["shapedirs"], np.full((VERTICES, 3, 10), 7.0)], axis=2)
    return {
        "hands_components": model["hands_components"],
        "f": np.zeros((1538, 3), dtype=np.uint32),
        "J_regressor": CscMatrix(
            maxprint=50,
            format="csc",
            _shape=(JOINTS, VERTICES),
            indptr=np.searchsorted(columns, np.arange(VERTICES + 1)).astype(np.int32),
            indices=rows.astype(np.int32),
            data=regressor.T[columns, rows],
        ),
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(JOINTS)], dtype=np.int64),
        "J": regressor @ model["v_template"],
        "hands_coeffs": np.zeros((3, 45)),
        "weights": model["weights"],
        "posedirs": model["posedirs"],
        "bs_style": "lbs",
        "hands_mean": model["hands_mean"],
        "v_template": model["v_template"],
        "shapedirs": Select(
            a=Ch(x=twenty, _dirty_vars=set(), _itr=None, _depends_on_deps={}),
            idxs=np.arange(twenty.size).reshape(twenty.shape)[:, :, :10].reshape(-1),
            preferred_shape=(VERTICES, 3, 10),
            _dirty_vars={"idxs"},
        ),
        "bs_type": "lrotmin",
    }


def write_mano(folder: Path, **replaced: Any) -> dict[str, dict[str, NDArray[Any]]]:
    """Write both hands, whose shape components are the same as in the official files; return their arrays.

    Args:
        folder: receives MANO_RIGHT.pkl and MANO_LEFT.pkl.
        replaced: entries of the pickled dict to write instead; None leaves one out.

    """
    folder.mkdir(parents=True, exist_ok=True)
    models = {"right": made_up_model(seed=1), "left": made_up_model(seed=2)}
    models["left"]["shapedirs"] = models["right"]["shapedirs"]
    for side, model in models.items():
        content = {key: value for key, value in (official_structure(model) | replaced).items() if value is not None}
        with (folder / f"MANO_{side.upper()}.pkl").open("wb") as stream:
            _PickleOfPython2(stream, protocol=2).dump(content)
    return models


def reference_joints(
    model: dict[str, NDArray[Any]],
    rotation: NDArray[np.float64],
    pose: NDArray[np.float64],
    betas: NDArray[np.float64],
    translation: NDArray[np.float64],
    tips: tuple[int, ...],
) -> NDArray[np.float64]:
    """Pose the whole mesh by the textbook, with 4x4 matrices and matrix exponentials; pick 21 points in our order."""
    turns = [rotation] + [exponential(vector) for vector in pose.reshape(15, 3)]
    shaped = model["v_template"].copy()
    for beta, direction in zip(betas, np.moveaxis(model["shapedirs"], 2, 0), strict=True):
        shaped += beta * direction
    joints = model["J_regressor"] @ shaped
    corrected = shaped.copy()
    for joint in range(1, JOINTS):
        for entry, value in enumerate((turns[joint] - np.eye(3)).reshape(-1)):
            corrected += value * model["posedirs"][:, :, 9 * (joint - 1) + entry]
    to_model: list[NDArray[np.float64]] = []
    for joint in range(JOINTS):
        local = np.eye(4)
        local[:3, :3] = turns[joint]
        local[:3, 3] = joints[joint] - (joints[PARENTS[joint]] if joint else 0)
        to_model.append(to_model[PARENTS[joint]] @ local if joint else local)
    posed = np.zeros((VERTICES, 3))
    for joint in range(JOINTS):
        bone_points = np.c_[corrected - joints[joint], np.ones(VERTICES)]
        posed += model["weights"][:, joint, None] * (bone_points @ to_model[joint].T)[:, :3]
    origin = [matrix[:3, 3] for matrix in to_model]
    thumb, index, middle, ring, little = (posed[tip] for tip in tips)
    ordered = [origin[0], *origin[13:16], thumb, *origin[1:4], index, *origin[4:7], middle]
    ordered += [*origin[10:13], ring, *origin[7:10], little]
    return np.array(ordered) + translation


def exponential(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = vector
    generator = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result = term = np.eye(3)
    for order in range(1, 40):
        term = term @ generator / order
        result = result + term
    return result
