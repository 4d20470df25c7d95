"""Writes DexYCB's layout: subjects, sequences, eight or fewer cameras, calibration, with joints of known 3D points."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 640, 480
SERIALS = (
    "836212060125",
    "839512060362",
    "840412060917",
    "841412060263",
    "932122060857",
    "932122060861",
    "932122061900",
    "932122062010",
)
SUBJECTS = ("20200709-subject-01", "20200820-subject-03")
EXTRINSICS_IDS = {"20200709-subject-01": "20200702_151821", "20200820-subject-03": "20200813_143449"}

Frame = tuple[int, int]
"""Sequence number within a subject, frame number."""


def camera_t_world(subject: str, serial: str) -> NDArray[np.float64]:
    """Return the (3, 4) world-to-camera matrix of a made-up rig; the first serial is the master, the world's origin."""
    number = SERIALS.index(serial)
    turn = 0.35 * number * (1 if subject == SUBJECTS[0] else -1)
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    return np.c_[rotation, [0.05 * number, -0.02 * number, 0.1 * number]]


def intrinsics(serial: str) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy."""
    number = SERIALS.index(serial)
    return 613.0 + number, 611.5 + number, 313.0 - number, 245.25


def world_points(sequence: int, frame: int) -> NDArray[np.float64]:
    """Return the (21, 3) joints of the hand, metres in the world frame; joint 20 lies outside most images."""
    rng = np.random.default_rng([sequence, frame])
    points = np.c_[rng.uniform(-0.1, 0.1, (21, 2)), rng.uniform(0.7, 0.9, 21)]
    points[20] = (-0.6, 0.1, 0.8)
    return points


def project(subject: str, serial: str, point: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return u, v in pixels and the depth in metres, coordinate by coordinate."""
    matrix = camera_t_world(subject, serial)
    x, y, z = (float(sum(matrix[i, j] * point[j] for j in range(3)) + matrix[i, 3]) for i in range(3))
    fx, fy, cx, cy = intrinsics(serial)
    return fx * x / z + cx, fy * y / z + cy, z


def side_of(sequence: int) -> str:
    return "right" if sequence % 2 == 0 else "left"


def sequence_name(sequence: int) -> str:
    return f"20200709_14{sequence:04d}"


def hand_pixels() -> NDArray[np.bool_]:
    """Return the (480, 640) mask that every label has."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[100:180, 200:260] = True
    return mask


def write_calibration(root: Path, subjects: Sequence[str] = SUBJECTS, serials: Sequence[str] = SERIALS) -> None:
    folder = root / "calibration"
    (folder / "intrinsics").mkdir(parents=True, exist_ok=True)
    for serial in serials:
        fx, fy, cx, cy = intrinsics(serial)
        block = f"\n  fx: {fx}\n  fy: {fy}\n  ppx: {cx}\n  ppy: {cy}\n"
        (folder / f"intrinsics/{serial}_640x480.yml").write_text(f"color:{block}depth:{block}")
    for subject in subjects:
        lines = ["extrinsics:"]
        for name in ("apriltag", *serials):
            if name == "apriltag":
                values = np.c_[np.eye(3), [0.1, 0.2, 0.9]]
            else:
                matrix = camera_t_world(subject, name)
                values = np.c_[matrix[:, :3].T, -matrix[:, :3].T @ matrix[:, 3]]
            key = name if name == "apriltag" else f"'{name}'"
            lines += [f"  {key}: !!python/tuple", *(f"  - {value!r}" for value in values.reshape(-1).tolist())]
        lines += [f"master: '{serials[0]}'", ""]
        path = folder / f"extrinsics_{EXTRINSICS_IDS[subject]}/extrinsics.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
        for side in ("right", "left"):
            path = folder / f"mano_{subject}_{side}/mano.yml"
            path.parent.mkdir(exist_ok=True)
            path.write_text("betas:\n" + "- 0.25\n" * 10)


def write_sequence(
    root: Path,
    subject: str,
    sequence: int,
    *,
    frames: int = 2,
    serials: Sequence[str] = SERIALS[:2],
    unannotated: Sequence[int] = (),
    missing_joints: Sequence[int] = (),
    missing_images: Sequence[tuple[int, str]] = (),
    with_seg: bool = True,
) -> Path:
    """Write one sequence; frames in ``unannotated`` hold -1 and zeros, as the dataset has it."""
    folder = root / subject / sequence_name(sequence)
    folder.mkdir(parents=True)
    meta = [
        "serials:",
        *(f"- '{serial}'" for serial in serials),
        f"num_frames: {frames}",
        f"extrinsics: '{EXTRINSICS_IDS[subject]}'",
        "ycb_ids:",
        "- 1",
        "- 11",
        "ycb_grasp_ind: 0",
        "mano_sides:",
        f"- {side_of(sequence)}",
        "mano_calib:",
        f"- {subject}_{side_of(sequence)}",
        "",
    ]
    (folder / "meta.yml").write_text("\n".join(meta))
    seg = np.where(hand_pixels(), 255, 0).astype(np.uint8)
    seg[300:320, 300:320] = 11
    for serial in serials:
        (folder / serial).mkdir()
        for frame in range(frames):
            if (frame, serial) not in missing_images:
                Image.new("RGB", (WIDTH, HEIGHT)).save(folder / serial / f"color_{frame:06d}.jpg")
            joint_3d = np.full((1, 21, 3), -1, dtype=np.float32)
            joint_2d = np.full((1, 21, 2), -1, dtype=np.float32)
            if frame not in unannotated:
                matrix = camera_t_world(subject, serial)
                points = world_points(sequence, frame)
                joint_3d[0] = points @ matrix[:, :3].T + matrix[:, 3]
                joint_2d[0] = [project(subject, serial, point)[:2] for point in points]
                joint_3d[0, list(missing_joints)] = -1
                joint_2d[0, list(missing_joints)] = -1
            np.savez_compressed(
                folder / serial / f"labels_{frame:06d}.npz",
                **({"seg": seg} if with_seg else {}),
                pose_y=np.zeros((2, 3, 4), dtype=np.float32),
                pose_m=np.zeros((1, 51), dtype=np.float32),
                joint_3d=joint_3d,
                joint_2d=joint_2d,
            )
    return folder


def write_dexycb(root: Path, sequences: int = 5, serials: Sequence[str] = SERIALS[:2]) -> None:
    """Write two subjects: train, val (subject 01) and test (subject 03), a frame without annotation, one without image.

    With five sequences of two frames and two cameras each these are 39 records and one rejection.
    """
    write_calibration(root)
    for subject in SUBJECTS:
        for sequence in range(sequences):
            first = subject == SUBJECTS[0] and sequence == 0
            write_sequence(
                root,
                subject,
                sequence,
                serials=serials,
                unannotated=(1,) if sequence == 1 else (),
                missing_joints=(7,) if sequence == 2 else (),
                missing_images=((1, serials[-1]),) if first else (),
            )
    (root / "models/002_master_chef_can").mkdir(parents=True)
    (root / "models/002_master_chef_can/textured_simple.obj").write_text("")
