"""What a trained network is asked to do: gesture transfer, and the figure that shows it.

Frames are square crops around the hands, as annotated samples are. Where one comes from (a sample, a photograph whose
keypoints a detector found, a file of keypoints) is the caller's business.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from handdata.schemas import KEYPOINT_COUNT, SIDES, SKELETON_EDGES, UsageError, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.augment import Frame, inside, resize
from handdata.trainer.autoencoders import Autoencoder
from handdata.trainer.conditioning import Task
from handdata.trainer.pairs import FramePair, pair_conditions, stack_pairs
from handdata.trainer.presets import Preset
from handdata.trainer.samplers import Progress, sample

_HAND_COLOURS = {"right": (255, 140, 0), "left": (0, 170, 255)}
_BORDER = ((2, 2), (2, 2), (0, 0))


def gesture_transfer(
    model: nn.Module,
    autoencoder: Autoencoder,
    preset: Preset,
    references: Sequence[Frame],
    targets: Sequence[Frame],
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw each reference's hand and surroundings in the pose of its target, as pictures (N, S, S, 3) RGB.

    S is the preset's image size; frames of other sizes are resized. Of the targets only keypoints and validity are
    looked at (``pose_frame`` makes a frame of nothing else). ``steps`` and ``guidance_scale`` replace the preset's.
    The same ``seed`` gives the same starting noise.
    """
    device = next(model.parameters()).device
    size = preset.image_size
    pairs = (
        (resize(target, size), resize(reference, size)) for target, reference in zip(targets, references, strict=True)
    )
    stacked = stack_pairs(pairs, [Task.POSE_CHANGE] * len(targets), size)
    batch = FramePair(*(field.to(device) for field in stacked))
    changes = {"steps": steps, "guidance_scale": guidance_scale}
    settings = preset.sampling.model_copy(update={name: value for name, value in changes.items() if value is not None})
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latents = sample(
            model,
            *pair_conditions(batch, autoencoder, draws),
            settings,
            generator=draws,
            diffusion=preset.diffusion,
            progress=progress,
        )
        images = autoencoder.decode(latents)
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return np.asarray(pixels.cpu().numpy(), dtype=np.uint8)


def read_keypoints(path: Path) -> tuple[FloatArray, BoolArray]:
    """Read 42 keypoints, pixels, from a .npy file or a .json list; absent ones are null, NaN or (0, 0).

    Returns (42, 2), zeros where absent, and which are there. Raises ``UsageError`` for anything else.
    """
    expected = "expected 42 rows of x and y, the right hand's 21 joints first, in a .npy or .json file"
    try:
        content = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text())
        if isinstance(content, list):
            content = [[np.nan, np.nan] if row is None else row for row in content]
        keypoints = np.array(content, dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read keypoints from {path}: {error}", expected) from error
    if keypoints.shape != (KEYPOINT_COUNT, 2):
        raise UsageError(f"{path} has shape {keypoints.shape}", expected)
    valid = np.isfinite(keypoints).all(axis=1) & (keypoints != 0).any(axis=1)
    if not valid.any():
        raise UsageError(f"{path} has no keypoints", expected)
    keypoints[~valid] = 0
    return keypoints, valid


def pose_frame(keypoints: FloatArray, valid: BoolArray, size: int) -> Frame:
    """Return a frame of ``size`` pixels that has keypoints (42, 2), in its pixels, and no picture."""
    empty = np.zeros((size, size), np.uint8)
    return Frame(
        image=np.zeros((size, size, 3), np.uint8),
        mask=empty,
        known=empty,
        keypoints=keypoints,
        valid=valid & inside(keypoints, size, size),
    )


def draw_skeleton(size: int, keypoints: FloatArray, valid: BoolArray) -> ByteArray:
    """Draw keypoints (42, 2), pixels of a picture of ``size``, as bones on black: right hand orange, left hand blue."""
    picture = np.zeros((size, size, 3), np.uint8)
    sub_pixel = 16
    fixed = np.round(keypoints * sub_pixel).astype(int)
    thickness = max(1, size // 96)
    for side in SIDES:
        rows = range(KEYPOINT_COUNT)[hand_rows(side)]
        for start, end in SKELETON_EDGES:
            if start in rows and valid[start] and valid[end]:
                ends = tuple(map(int, fixed[start])), tuple(map(int, fixed[end]))
                cv2.line(picture, *ends, _HAND_COLOURS[side], thickness, cv2.LINE_AA, shift=4)
    return picture


def figure(
    references: Sequence[Frame], targets: Sequence[Frame], generated: Sequence[ByteArray], tile_px: int = 128
) -> ByteArray:
    """Lay out results, a row each: reference, target pose, target picture (grey where unknown), generated picture."""
    rows = []
    for reference, target, picture in zip(references, targets, generated, strict=True):
        pose = resize(target, tile_px)
        truth = pose.image if target.known.any() else np.full_like(pose.image, 128)
        tiles = [_enlarged(reference.image, tile_px), draw_skeleton(tile_px, pose.keypoints, pose.valid)]
        tiles += [truth, _enlarged(np.asarray(picture), tile_px)]
        rows.append(np.hstack([np.pad(tile, _BORDER, constant_values=255) for tile in tiles]))
    return np.asarray(np.vstack(rows), dtype=np.uint8)


def encode_png(picture: ByteArray) -> bytes:
    """Return an RGB picture (H, W, 3) as the bytes of a PNG file."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])


def _enlarged(picture: ByteArray, size: int) -> ByteArray:
    interpolation = cv2.INTER_AREA if picture.shape[0] > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (size, size), interpolation=interpolation), dtype=np.uint8)
