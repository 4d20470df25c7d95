"""MANO: the official files are read without running them, and joints are those of the posed mesh."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from handdata.adapters.reading.mano import (
    FILE_OF_SIDE,
    MANOPTH_TIPS,
    ManoModel,
    correct_left_shape,
    load_mano,
    rotation_matrices,
)
from handdata.schemas import Side, UsageError
from tests.fixtures.mano import VERTICES, Ch, made_up_model, official_structure, reference_joints, write_mano

SMPLX_TIPS = (744, 320, 443, 554, 671)


@pytest.fixture(scope="module")
def mano_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder)
    return folder


def parameters(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "rotation": rotation_matrices(rng.normal(size=(1, 3)))[0],
        "pose": rng.normal(scale=0.5, size=45),
        "betas": rng.normal(size=10),
        "translation_m": rng.normal(size=3),
    }


def test_the_official_structure_is_read_to_the_last_number(mano_dir: Path) -> None:
    model, truth = load_mano(mano_dir, "right"), made_up_model(seed=1)
    assert np.array_equal(model.template, truth["v_template"])
    assert np.array_equal(model.shape_directions, truth["shapedirs"])
    assert np.array_equal(model.pose_directions, truth["posedirs"])
    assert np.array_equal(model.joint_regressor, truth["J_regressor"])
    assert np.array_equal(model.skinning_weights, truth["weights"])
    assert np.array_equal(model.mean_pose, truth["hands_mean"])
    assert np.array_equal(model.pose_components, truth["hands_components"])
    assert model.parents == (0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)


def test_a_copy_without_scipy_and_chumpy_objects_is_read_too(tmp_path: Path) -> None:
    model = made_up_model(seed=3)
    content = official_structure(model) | {"J_regressor": model["J_regressor"], "shapedirs": model["shapedirs"]}
    (tmp_path / "MANO_LEFT.pkl").write_bytes(pickle.dumps(content, protocol=4))
    assert np.array_equal(load_mano(tmp_path, "left").shape_directions, model["shapedirs"])


def test_a_matrix_that_a_present_scipy_wrote_is_read_too(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    model = made_up_model(seed=3)
    content = official_structure(model) | {
        "J_regressor": sparse.csc_matrix(model["J_regressor"]),
        "shapedirs": model["shapedirs"],
    }
    (tmp_path / "MANO_LEFT.pkl").write_bytes(pickle.dumps(content, protocol=4))
    assert np.array_equal(load_mano(tmp_path, "left").joint_regressor, model["J_regressor"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tips", [MANOPTH_TIPS["right"], MANOPTH_TIPS["left"], SMPLX_TIPS])
def test_joints_are_those_of_the_whole_posed_mesh(
    mano_dir: Path, side: Side, tips: tuple[int, int, int, int, int]
) -> None:
    given_ = parameters(seed=5)
    truth = made_up_model(seed=1 if side == "right" else 2) | {"shapedirs": made_up_model(seed=1)["shapedirs"]}
    expected = reference_joints(
        truth, given_["rotation"], given_["pose"], given_["betas"], given_["translation_m"], tips
    )
    assert load_mano(mano_dir, side).joints(**given_, tips=tips) == pytest.approx(expected, abs=1e-12)


def test_a_hand_at_rest_is_the_template(mano_dir: Path) -> None:
    truth = made_up_model(seed=1)
    tips = MANOPTH_TIPS["right"]
    joints = load_mano(mano_dir, "right").joints(np.eye(3), np.zeros(45), np.zeros(10), np.zeros(3), tips)
    rest = truth["J_regressor"] @ truth["v_template"]
    assert joints[0] == pytest.approx(rest[0])
    assert joints[[4, 8, 12, 16, 20]] == pytest.approx(truth["v_template"][list(tips)])
    assert joints[17:20] == pytest.approx(rest[7:10]), "MANO has the little finger before the ring finger"


@settings(max_examples=20, deadline=None)
@given(axis_angle=arrays(np.float64, (3,), elements=st.floats(-3, 3)), seed=st.integers(0, 9))
def test_the_global_rotation_turns_the_hand_about_its_rest_wrist(
    mano_dir: Path, axis_angle: np.ndarray, seed: int
) -> None:
    model = load_mano(mano_dir, "right")
    still = parameters(seed) | {"rotation": np.eye(3), "translation_m": np.zeros(3), "tips": SMPLX_TIPS}
    turn = rotation_matrices(axis_angle)[0]
    before, after = model.joints(**still), model.joints(**(still | {"rotation": turn}))
    assert after == pytest.approx((before - before[0]) @ turn.T + before[0], abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(vectors=arrays(np.float64, (4, 3), elements=st.floats(-6, 6) | st.floats(-1e-7, 1e-7)))
def test_rotation_matrices_turn_about_their_axis_and_undo_with_the_opposite_angle(vectors: np.ndarray) -> None:
    matrices = rotation_matrices(vectors)
    assert matrices @ rotation_matrices(-vectors) == pytest.approx(np.broadcast_to(np.eye(3), (4, 3, 3)), abs=1e-9)
    assert np.linalg.det(matrices) == pytest.approx(1)
    assert np.einsum("nij,nj->ni", matrices, vectors) == pytest.approx(vectors, abs=1e-9)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    assert rotation_matrices([0, 0, np.pi / 2])[0] @ (1, 0, 0) == pytest.approx((0, 1, 0))


def test_components_add_to_the_mean_pose_and_may_be_fewer_than_45(mano_dir: Path) -> None:
    model = load_mano(mano_dir, "right")
    coefficients = np.arange(6.0)
    expected = model.mean_pose + sum(c * row for c, row in zip(coefficients, model.pose_components[:6], strict=True))
    assert model.pose_from_components(coefficients) == pytest.approx(expected)
    assert model.pose_from_components(np.zeros((1, 45))) == pytest.approx(model.mean_pose)


def test_the_left_shape_is_turned_only_where_the_file_lacks_it(mano_dir: Path) -> None:
    right, left = load_mano(mano_dir, "right"), load_mano(mano_dir, "left")
    corrected = correct_left_shape(left, right)
    assert np.array_equal(corrected.shape_directions, left.shape_directions * [[-1], [1], [1]])
    assert correct_left_shape(corrected, right) is corrected


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_missing_file_says_where_to_get_it_and_where_to_put_it(tmp_path: Path, side: Side) -> None:
    with pytest.raises(UsageError, match=rf"{FILE_OF_SIDE[side]} does not exist .*mano\.is\.tue\.mpg\.de.*--mano"):
        load_mano(tmp_path, side)


@pytest.mark.parametrize(
    ("replaced", "problem"),
    [
        ({"v_template": np.zeros((VERTICES + 1, 3))}, r"v_template should hold numbers of shape \(778, 3\)"),
        ({"v_template": np.full((VERTICES, 3), np.nan)}, "v_template holds NaN"),
        ({"hands_mean": None}, "KeyError: 'hands_mean'"),
        ({"shapedirs": Ch()}, "not a MANO model"),
        ({"shapedirs": np.zeros(3)}, "shapedirs has the shape"),
        ({"kintree_table": np.full((2, 16), 99)}, "kintree_table names the parents"),
    ],
)
def test_a_file_that_is_no_mano_model_says_what_is_wrong(
    tmp_path: Path, replaced: dict[str, Any], problem: str
) -> None:
    write_mano(tmp_path, **replaced)
    with pytest.raises(UsageError, match=problem):
        load_mano(tmp_path, "right")


def test_a_model_file_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UsageError, match=r"asks for os\.system"):
        load_mano(tmp_path, "right")


def test_loading_twice_reads_once(mano_dir: Path) -> None:
    model: ManoModel = load_mano(mano_dir, "right")
    assert load_mano(mano_dir, "right") is model
