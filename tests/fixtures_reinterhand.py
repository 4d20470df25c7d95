"""Writes Re:InterHand's layout: captures, studio and head cameras, both lights, joints of known 3D points."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CAPTURES = (
    "m--20221007--1215--HIR112--pilot--ProjectGoliathScript--Hands--two-hands",
    "m--20221215--0949--RNS217--pilot--ProjectGoliathScript--Hands--two-hands",
)
"""One of train, one of test."""
CAMERAS = ("400266", "400951")
STUDIO_SIZE = (67, 102)
HEAD_SIZE = (80, 60)
LIGHTS = ("envmap_per_frame", "envmap_per_segment")
FRAMES = (95967, 95970, 95973, 95985)
"""At 30 a second; studio images with a light for each frame have every sixth number."""
SLOW_FRAMES = (95967, 95985)

# Written out on purpose: the stored order of one hand (the official reader's joints_name).
STORED = (
    "Wrist",
    *(f"Thumb_{number}" for number in range(5)),
    *(f"{finger}_{number}" for finger in ("Index", "Middle", "Ring") for number in range(1, 5)),
    *(f"Pinky_{number}" for number in range(5)),
    "Forearm_Stub",
)


def stored_name(row: int) -> str:
    """Return the dataset's name of one of our 21 rows of a hand."""
    if row == 0:
        return "Wrist"
    finger = ("Thumb", "Index", "Middle", "Ring", "Pinky")[(row - 1) // 4]
    return f"{finger}_{(row - 1) % 4 + 1}"


def point_mm(frame: int, side: str, name: str) -> NDArray[np.float64]:
    """Return the world position of a joint."""
    rng = np.random.default_rng([frame, side == "left", STORED.index(name)])
    return rng.uniform(-110, 110, 3)


def camera(name: str, frame: int = 0) -> dict[str, Any]:
    """Return the parameters of a studio camera, or of the head camera (``Ego``), which moves with the frames."""
    turn = {"400266": 0.2, "400951": -0.9, "Ego": 0.4 + frame % 7 / 50}[name]
    cosine, sine = float(np.cos(turn)), float(np.sin(turn))
    head = name == "Ego"
    parameters: dict[str, Any] = {
        "R": [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]],
        "t": [12.0, -7.0, 260.0 if head else 900.0],
        "focal": [31.0, 30.5] if head else [190.0, 191.0],
        "princpt": [39.25, 30.75] if head else [33.0, 51.5],
    }
    return parameters | ({"D": [0.12, -0.03, 0.006, -0.0008]} if head else {})


def project(name: str, point: NDArray[np.float64], frame: int = 0) -> tuple[float, float, float]:
    """Return u, v in pixels and the depth in metres, coordinate by coordinate."""
    parameters = camera(name, frame)
    x, y, z = (sum(parameters["R"][i][j] * point[j] for j in range(3)) + parameters["t"][i] for i in range(3))
    a, b = x / z, y / z
    if "D" in parameters:
        radius = (a * a + b * b) ** 0.5
        angle = float(np.arctan(radius))
        bent = angle + sum(d * angle ** (2 * power + 3) for power, d in enumerate(parameters["D"]))
        a, b = a * bent / radius, b * bent / radius
    (fx, fy), (cx, cy) = parameters["focal"], parameters["princpt"]
    return fx * a + cx, fy * b + cy, z / 1000


def hand_pixels(size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the (height, width) mask that every mask file holds."""
    mask = np.zeros((size[1], size[0]), dtype=np.bool_)
    mask[20:40, 5:30] = True
    return mask


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def joints_path(root: Path, capture: str, side: str, frame: int) -> Path:
    return root / capture / f"orig_fits/{side}/Keypoints/keypoint-{frame:06d}.json"


def write_image(path: Path, size: tuple[int, int], with_mask: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (60, 50, 40)).save(path)
    if with_mask:
        mask = Path(*("masks" if part == "images" else part for part in path.parts))
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(hand_pixels(size).astype(np.uint8) * 255).save(mask)


def write_capture(
    root: Path,
    capture: str,
    *,
    lights: Sequence[str] = LIGHTS,
    with_masks: bool = True,
    with_head: bool = True,
    missing_images: Sequence[str] = (),
    unlabelled: Sequence[tuple[str, int]] = (),
) -> Path:
    """Write one capture; ``missing_images`` are paths below it, ``unlabelled`` hands have no joint file."""
    folder = root / capture
    for frame in FRAMES:
        for side in ("right", "left"):
            if (side, frame) not in unlabelled:
                points = [point_mm(frame, side, name).tolist() for name in STORED]
                write_json(joints_path(root, capture, side, frame), points)
            write_json(
                folder / f"mano_fits/params/{frame}_{side}.json",
                {"pose": [0.0] * 48, "shape": [0.0] * 10, "trans": [0.0] * 3},
            )
    segments = "".join(f"EXP_pray {frame:06d}\n" for frame in FRAMES)
    (folder / "frame_list.txt").write_text(segments)
    # A camera without images, as some captures have.
    write_json(folder / "Mugsy_cameras/cam_params.json", {name: camera(name) for name in (*CAMERAS,)} | {"400000": {}})
    for light in lights:
        for name in CAMERAS:
            for frame in SLOW_FRAMES if light == "envmap_per_frame" else FRAMES:
                relative = f"Mugsy_cameras/{light}/images/{name}/{frame:06d}.png"
                if relative not in missing_images:
                    write_image(folder / relative, STUDIO_SIZE, with_masks)
        for frame in FRAMES if with_head else ():
            relative = f"Ego_cameras/{light}/images/{frame:06d}.png"
            if relative not in missing_images:
                write_image(folder / relative, HEAD_SIZE, with_masks)
            write_json(folder / f"Ego_cameras/{light}/cam_params/{frame:06d}.json", camera("Ego", frame))
        if with_head:
            ratios = {f"{frame:06d}": 0.9 for frame in FRAMES}
            write_json(folder / f"Ego_cameras/{light}/truncation_ratio.json", ratios)
    return folder


def write_reinterhand(root: Path) -> None:
    """Write a capture of train and one of test: 39 records, and one image that is listed but missing."""
    write_capture(root, CAPTURES[0])
    write_capture(root, CAPTURES[1], missing_images=[f"Ego_cameras/envmap_per_segment/images/{FRAMES[1]:06d}.png"])
