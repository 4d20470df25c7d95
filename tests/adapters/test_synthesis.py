"""What the synthetic hand renderer promises about its geometry, its labels and its files."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import mediapipe
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mediapipe.tasks.python import BaseOptions, vision
from numpy.typing import NDArray

from handdata.adapters.synthesis.camera import Camera
from handdata.adapters.synthesis.dataset import (
    identity_splits,
    noise_generator,
    plan_sequences,
    sample_planned_sequence,
    write_dataset,
)
from handdata.adapters.synthesis.layout import DATASET_FILE, LABEL_ARRAYS, LABEL_FILE
from handdata.adapters.synthesis.pose import (
    POSE_LIMITS_DEG,
    forward_kinematics,
    penetration_mm,
    resolve_collisions,
    sample_poses,
)
from handdata.adapters.synthesis.raster import rasterize
from handdata.adapters.synthesis.scene import (
    HAND_FROM_MM,
    Identity,
    PosedHand,
    Rendering,
    Scene,
    assemble,
    build_identity,
    pose_hand,
)
from handdata.adapters.synthesis.sensor import sample_sensor
from handdata.adapters.synthesis.sequence import HandSequence, sample_sequence
from handdata.adapters.synthesis.shading import sample_light
from handdata.adapters.synthesis.skeleton import sample_shape
from handdata.adapters.synthesis.surface import build_capsules, signed_distance
from handdata.pipeline.weights import require_weights
from handdata.schemas import KEYPOINTS_PER_HAND, SIDES, WRIST, Side, StorageError, UsageError, hand_rows

FRAMES = 30
SIZE = 256
VISIBLE_WITHIN_M = 0.006
"""A joint is visible if the surface lies at most its flesh radius and this much before it."""


@pytest.fixture(scope="module")
def identity() -> Identity:
    return build_identity(np.random.default_rng(7))


@pytest.fixture(scope="module", params=[("right",), ("left",), ("right", "left")], ids="+".join)
def sequence(identity: Identity, request: pytest.FixtureRequest) -> HandSequence:
    return sample_sequence(np.random.default_rng(11), identity, request.param, FRAMES, cameras=3, size=SIZE)


def rendered(sequence: HandSequence, frames: tuple[int, ...]) -> Iterator[tuple[Scene, Camera, Rendering]]:
    for frame in frames:
        scene = sequence.scene(frame)
        for index, view in enumerate(sequence.views):
            yield scene, view.camera, sequence.render(scene, index, np.random.default_rng(0))


def is_visible(hand: PosedHand, camera: Camera, rendering: Rendering) -> NDArray[np.bool_]:
    joints = camera.to_camera(hand.joints)
    x, y = np.rint(camera.to_pixels(joints)).astype(int).T
    shape = hand.identity.shape
    flesh_mm = np.concatenate([[15.0 * shape.thickness], shape.radius_mm.reshape(-1)])  # the wrist first
    radius = flesh_mm * shape.size / 1000
    return np.asarray(joints[:, 2] < rendering.depth_m[y, x] + radius + VISIBLE_WITHIN_M) & np.isfinite(
        rendering.depth_m[y, x]
    )


def triangulate(pixels: NDArray[np.float64], cameras: list[Camera]) -> NDArray[np.float64]:
    """Linear triangulation (Hartley & Zisserman, section 12.2) of pixels (C, P, 2)."""
    projections = [camera.k @ camera.t_world[:3] for camera in cameras]
    points = []
    for views in np.swapaxes(pixels, 0, 1):
        rows = [u * p[2] - p[i] for p, uv in zip(projections, views, strict=True) for i, u in enumerate(uv)]
        homogeneous = np.linalg.svd(np.array(rows))[2][-1]
        points.append(homogeneous[:3] / homogeneous[3])
    return np.array(points)


# Labels


def test_visible_joints_lie_in_the_mask_of_their_hand(sequence: HandSequence) -> None:
    inside = []
    for scene, camera, rendering in rendered(sequence, frames=(0, 13, 26)):
        for hand in scene.hands:
            own = (rendering.mask == SIDES.index(hand.side) + 1).astype(np.uint8)
            dilated = cv2.dilate(own, np.ones((5, 5), np.uint8))
            visible = is_visible(hand, camera, rendering)
            x, y = np.rint(camera.project(hand.joints)).astype(int)[visible].T
            inside += list(dilated[y, x] == 1)
    assert len(inside) > 100
    assert np.mean(inside) == 1


def test_every_labelled_joint_is_in_every_image(sequence: HandSequence) -> None:
    for motion in sequence.motions:
        for view in sequence.views:
            pixels = view.camera.project(sequence.joints(motion))
            assert pixels.min() > 0
            assert pixels.max() < SIZE - 1


def test_views_agree_in_3d(sequence: HandSequence) -> None:
    cameras = [view.camera for view in sequence.views]
    for motion in sequence.motions:
        joints = sequence.joints(motion)[5]
        pixels = np.stack([camera.project(joints) for camera in cameras]).astype(np.float32).astype(np.float64)
        assert np.abs(triangulate(pixels, cameras) - joints).max() < 1e-4


def test_joints_of_the_motion_are_those_of_the_rendered_hands(sequence: HandSequence) -> None:
    for hand, motion in zip(sequence.scene(4).hands, sequence.motions, strict=True):
        np.testing.assert_allclose(hand.joints, sequence.joints(motion)[4], atol=1e-12)


def test_the_mask_covers_the_hand_and_leaves_out_the_forearm(sequence: HandSequence) -> None:
    hand_share, forearm_count = [], 0
    for scene, camera, rendering in rendered(sequence, frames=(0, 20)):
        rest_y = scene.attributes[:, 7]
        in_camera = camera.to_camera(scene.vertices)
        pixels = np.rint(camera.to_pixels(in_camera)).astype(int)
        framed = ((pixels >= 0) & (pixels < SIZE)).all(axis=1) & (in_camera[:, 2] > 0.1)
        x, y = pixels[framed].T
        surface = rendering.depth_m[y, x]
        seen = np.isfinite(surface) & (in_camera[framed, 2] < surface + 0.001)
        labels = rendering.mask[y, x][seen]
        near_hand = cv2.dilate(rendering.mask, np.ones((3, 3), np.uint8))[y, x][seen] > 0
        forearm = rest_y[framed][seen] < HAND_FROM_MM - 6
        assert (labels[forearm] == 0).all()
        forearm_count += forearm.sum()
        hand_share += list(near_hand[rest_y[framed][seen] > HAND_FROM_MM + 6])
    assert forearm_count > 100
    assert np.mean(hand_share) > 0.999


# Geometry


def test_the_left_hand_is_the_exact_mirror_image_of_the_right(identity: Identity) -> None:
    skeleton = forward_kinematics(identity.shape, sample_poses(np.random.default_rng(1), 1))
    right, left = (pose_hand(identity, side, skeleton, 0, np.eye(3), np.zeros(3)) for side in SIDES)
    np.testing.assert_array_equal(left.vertices, right.vertices * [-1, 1, 1])
    np.testing.assert_array_equal(left.joints, right.joints * [-1, 1, 1])


@pytest.mark.parametrize("side", SIDES)
def test_the_skin_of_both_hands_faces_outwards(identity: Identity, side: Side) -> None:
    skeleton = forward_kinematics(identity.shape, np.zeros((1, 23)))
    hand = pose_hand(identity, side, skeleton, 0, np.eye(3), np.zeros(3))
    scene = assemble([hand], sample_light(np.random.default_rng(0)))
    a, b, c = np.swapaxes(scene.vertices[scene.faces], 0, 1)
    volume_m3 = np.einsum("ij,ij->", a, np.cross(b, c)) / 6
    assert 0.0005 < volume_m3 < 0.004  # a hand with its forearm holds one to two litres
    step = 0.001 * scene.attributes[:, 3:6]
    from_wrist, further = (
        np.linalg.norm(v - hand.joints[WRIST], axis=1) for v in (scene.vertices, scene.vertices + step)
    )
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), 0.001, rtol=1e-4)
    assert np.mean(further > from_wrist) > 0.6


def test_joints_lie_inside_the_skin_at_rest() -> None:
    for seed in range(3):
        shape = sample_shape(np.random.default_rng(seed))
        joints = forward_kinematics(shape, np.zeros((1, 23))).joints_mm[0]
        assert (signed_distance(joints, build_capsules(shape)) < -2).all()


def test_bones_keep_their_length_in_every_pose() -> None:
    shape = sample_shape(np.random.default_rng(3))
    chain = forward_kinematics(shape, sample_poses(np.random.default_rng(4), 50)).chain_mm
    lengths = np.linalg.norm(np.diff(chain, axis=2), axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(shape.segment_mm, lengths.shape), atol=1e-9)


def test_positive_flexion_bends_fingertips_towards_the_palm() -> None:
    shape = sample_shape(np.random.default_rng(3))
    poses = np.zeros((2, 23))
    poses[1, [4, 8, 12, 16]] = 60
    straight, bent = forward_kinematics(shape, poses).joints_mm
    assert (bent[[8, 12, 16, 20], 2] > straight[[8, 12, 16, 20], 2] + 20).all()


def test_sampled_poses_respect_the_joint_limits_and_do_not_interpenetrate() -> None:
    shape = sample_shape(np.random.default_rng(5))
    poses = resolve_collisions(shape, sample_poses(np.random.default_rng(6), 200))
    assert (poses >= POSE_LIMITS_DEG[:, 0]).all()
    assert (poses <= POSE_LIMITS_DEG[:, 1]).all()
    between, into_palm = penetration_mm(shape, forward_kinematics(shape, poses))
    deepest = np.maximum(between.max(axis=(1, 2)), into_palm.max(axis=1))
    assert np.mean(deepest < 2.01) > 0.95
    assert deepest.max() < 8


def test_motion_is_smooth_and_lively(sequence: HandSequence) -> None:
    for motion in sequence.motions:
        speed = np.diff(motion.poses_deg, axis=0)
        assert np.abs(speed).max() < 25
        assert np.abs(np.diff(speed, axis=0)).max() < 10
        # Relative to the wrist and without the hand's turning: the pose itself changes.
        joints = motion.skeleton.joints_mm - motion.skeleton.joints_mm[:, [WRIST]]
        for apart in (10, 15, 20):
            change_mm = np.linalg.norm(joints[apart:] - joints[:-apart], axis=-1).mean(axis=1)
            assert np.median(change_mm) > 6


# Rasteriser


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
def test_the_rasteriser_finds_the_nearest_front_face_at_every_pixel_centre(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 17, 13
    points = rng.uniform(-8, 24, (3 * count, 2))
    depth = rng.uniform(0.2, 2, 3 * count)
    depth[rng.random(3 * count) < 0.05] = -1
    faces = np.arange(3 * count).reshape(-1, 3)

    seen = rasterize(points, depth, faces, width, height)

    expected_face = np.full((height, width), -1)
    expected_depth = np.full((height, width), np.inf)
    for index, (a, b, c) in enumerate(faces):
        system = np.array([points[[a, b, c], 0], points[[a, b, c], 1], np.ones(3)])
        area = np.linalg.det(system)
        if area > -1e-9 or depth[[a, b, c]].min() < 0:
            continue
        for y in range(height):
            for x in range(width):
                weights = np.linalg.solve(system, [x, y, 1])
                z = 1 / (weights @ (1 / depth[[a, b, c]]))
                if weights.min() >= 0 and z < expected_depth[y, x]:
                    expected_face[y, x], expected_depth[y, x] = index, z
    np.testing.assert_array_equal(seen.pixel, np.flatnonzero(expected_face.ravel() >= 0))
    np.testing.assert_array_equal(seen.face, expected_face.ravel()[seen.pixel])
    np.testing.assert_allclose(seen.depth, expected_depth.ravel()[seen.pixel], rtol=1e-5)


# The dataset on disk


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_however_many_processes(tmp_path: Path) -> None:
    arguments = {"identities": 1, "sequences": 2, "frames": 2, "cameras": 2, "size": 64}
    progress: list[int] = []
    summary = write_dataset(tmp_path / "one", **arguments, seed=5, processes=1, on_progress=progress.append)
    write_dataset(tmp_path / "two", **arguments, seed=5, processes=2)

    one, two = (files_below(tmp_path / name) for name in ("one", "two"))
    assert one == two
    images = [content for name, content in one.items() if name.endswith(".jpg")]
    assert len(set(images)) == summary.images == sum(progress) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_lower_frame_rate_shows_frames_of_the_same_motion(identity: Identity) -> None:
    every, sixth = (
        sample_sequence(np.random.default_rng(3), identity, ("right", "left"), frames, 2, 64, step)
        for frames, step in ((13, 1), (3, 6))
    )
    for motion, thinned in zip(every.motions, sixth.motions, strict=True):
        np.testing.assert_array_equal(every.joints(motion)[::6], sixth.joints(thinned))
    for frame in range(3):
        images = [
            sequence.render(sequence.scene(shown), 1, np.random.default_rng(frame)).image
            for sequence, shown in ((every, 6 * frame), (sixth, frame))
        ]
        np.testing.assert_array_equal(*images)


def test_cameras_differ_in_exposure_and_colour_and_lose_neither_end_of_the_range() -> None:
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64, 1).repeat(3, axis=2)
    means = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        photograph = sample_sensor(rng).expose(ramp, rng)
        assert photograph.min() < 20
        assert photograph.max() > 60
        means.append(photograph.mean(axis=(0, 1)))
    assert np.std(np.mean(means, axis=1)) > 10
    assert np.std(np.ptp(means, axis=1)) > 3


def test_the_dataset_holds_what_its_layout_says(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", 3, 3, frames=2, cameras=1, size=64, seed=0, frames_per_second=10, processes=1)
    description = json.loads((tmp_path / "d" / DATASET_FILE).read_text())
    assert description["splits"] == {
        "train": ["identity000-sequence0000"],
        "val": ["identity001-sequence0001"],
        "test": ["identity002-sequence0002"],
    }
    hands = []
    for split, (sequence_id,) in description["splits"].items():
        folder = tmp_path / "d" / split / sequence_id
        with np.load(folder / LABEL_FILE, allow_pickle=False) as labels:
            assert set(labels) == set(LABEL_ARRAYS)
            assert labels["keypoints_2d"].shape == (2, 1, 42, 2)
            assert labels["timestamp_s"].tolist() == [0, 1 / 10]
            valid = labels["keypoints_valid"]
            in_camera = labels["keypoints_3d_world"] @ labels["camera_t_world"][0, :3, :3].T
            in_camera += labels["camera_t_world"][0, :3, 3]
            projected = in_camera @ labels["camera_k"][0].T
            projected = projected[..., :2] / projected[..., 2:]
            np.testing.assert_allclose(labels["keypoints_2d"][:, 0, valid], projected[:, valid], atol=1e-9)
            assert not labels["keypoints_2d"][:, 0, ~valid].any()
        image = cv2.imread(str(folder / "cam0" / "000001.jpg"))
        mask = cv2.imread(str(folder / "cam0" / "000001.mask.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape == (64, 64, 3)
        present = {SIDES.index(side) + 1 for side in SIDES if valid[hand_rows(side)].all()}
        assert set(np.unique(mask)) == {0} | present
        hands.append(tuple(sorted(present)))
    assert sorted(hands) == [(1,), (1, 2), (2,)]


def test_identities_never_cross_splits_and_a_tenth_is_held_out() -> None:
    assert identity_splits(1) == ["train"]
    assert identity_splits(2) == ["train", "val"]
    assert identity_splits(3) == ["train", "val", "test"]
    assert [identity_splits(40).count(split) for split in ("train", "val", "test")] == [32, 4, 4]
    plans = plan_sequences(identities=7, sequences=50, frames=1, cameras=1, size=32, seed=0)
    assert len({(plan.identity, plan.split) for plan in plans}) == 7
    kinds = [plan.sides for plan in plans[:48]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {("right",): 16, ("left",): 16, ("right", "left"): 16}


def test_a_folder_with_other_files_is_an_error_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not a synthetic dataset"):
        write_dataset(tmp_path, identities=1, sequences=1, frames=1, cameras=1, size=32, seed=0)
    assert files_below(tmp_path) == {"photo.jpg": b"mine"}


def test_writing_again_replaces_the_dataset_and_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "synthetic"
    small = {"identities": 1, "frames": 1, "cameras": 1, "size": 32, "processes": 1}
    write_dataset(out, sequences=2, seed=0, **small)
    before = files_below(out)

    def stop(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(out, sequences=1, seed=1, on_progress=stop, **small)
    assert files_below(out) == before
    write_dataset(out, sequences=1, seed=1, **small)
    assert len(list(out.glob("*/*/labels.npz"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]


@pytest.mark.parametrize(
    ("name", "value"), [("identities", 0), ("sequences", 0), ("frames", 0), ("cameras", 0), ("size", 4), ("seed", -1)]
)
def test_arguments_that_make_no_dataset_are_an_error(tmp_path: Path, name: str, value: int) -> None:
    arguments = {"identities": 1, "sequences": 1, "frames": 1, "cameras": 1, "size": 32, "seed": 0, name: value}
    with pytest.raises(UsageError, match=name):
        write_dataset(tmp_path / "d", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0, 7, 60])
def test_a_frame_rate_that_does_not_divide_that_of_the_motion_is_an_error(tmp_path: Path, rate: int) -> None:
    small = {"identities": 1, "sequences": 1, "frames": 1, "cameras": 1, "size": 32, "seed": 0}
    with pytest.raises(UsageError, match="frame rate must divide 30"):
        write_dataset(tmp_path / "d", frames_per_second=rate, **small)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write the synthetic dataset"):
        write_dataset(tmp_path / "file" / "d", identities=1, sequences=1, frames=1, cameras=1, size=32, seed=0)


# Likeness


@pytest.mark.slow
def test_mediapipe_finds_at_least_80_percent_of_hands() -> None:
    model = require_weights("hand_landmarker")
    options = vision.HandLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=model.read_bytes()), num_hands=2, min_hand_detection_confidence=0.3
    )
    landmarker = vision.HandLandmarker.create_from_options(options)
    found, side_right = [], []
    try:
        for plan in plan_sequences(identities=6, sequences=20, frames=30, cameras=2, size=SIZE, seed=1):
            sequence = sample_planned_sequence(plan)
            for frame in (0, 12, 24):
                camera = (plan.index + frame // 12) % 2
                scene = sequence.scene(frame)
                rendering = sequence.render(scene, camera, noise_generator(plan, frame, camera))
                result = landmarker.detect(mediapipe.Image(mediapipe.ImageFormat.SRGB, rendering.image))
                detected = np.array(
                    [[(mark.x * SIZE - 0.5, mark.y * SIZE - 0.5) for mark in marks] for marks in result.hand_landmarks]
                ).reshape(-1, KEYPOINTS_PER_HAND, 2)
                for hand in scene.hands:
                    label = sequence.views[camera].camera.project(hand.joints)
                    errors = np.linalg.norm(detected - label, axis=-1).mean(axis=1)
                    found.append(errors.min(initial=np.inf) < 0.25 * np.ptp(label, axis=0).max())
                    if found[-1]:
                        name = result.handedness[int(errors.argmin())][0].category_name
                        side_right.append(name.lower() == hand.side)
    finally:
        landmarker.close()  # MediaPipe hangs when it is collected at interpreter exit
    assert np.mean(found) >= 0.8
    assert np.mean(side_right) >= 0.9
