"""What the network receives beside the noisy target: keypoint heatmaps, hand mask, reference frame and task.

Shapes: N pairs, C latent channels, H x W latent pixels. Keypoints are (x, y), x right, y down; 42 of them, in the order
of ``handdata.schemas.joints``.

- target condition (N, 43, H, W): 42 heatmaps, a zero mask
- reference condition (N, C + 43, H, W): latent, 42 heatmaps, hand mask
- task (N,): a ``Task``

A condition that is absent or dropped is all zeros; the null condition of guidance is zero target, zero reference,
``Task.NULL``.
"""

import math
from enum import IntEnum
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from handdata.schemas.joints import KEYPOINT_COUNT
from handdata.trainer.diffusion import Draws, PartNoise
from handdata.trainer.presets import DropoutConfig

CONDITION_CHANNELS: Final = KEYPOINT_COUNT + 1
"""Channels of a frame beside its latent: the heatmaps and the mask."""


HEATMAP_PEAK: Final = 1 / (2 * math.pi)
"""Value of a heatmap at a keypoint that lies on the grid."""


class Task(IntEnum):
    """What lies between reference and target."""

    POSE_CHANGE = 0
    """Another moment of the same video."""
    VIEW_CHANGE = 1
    """The same moment, seen by another camera."""
    NULL = 2
    """Nothing is said: the null condition of guidance."""


def inside_image(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Tell which keypoints (..., 2), in pixels, lie strictly inside an image of size (H, W): 0 < x < W and 0 < y < H.

    The published rule: a joint on the border counts as outside, which also rules out the (0, 0) of absent joints.
    """
    height, width = size
    x, y = keypoints.unbind(-1)
    return (x > 0) & (x < width) & (y > 0) & (y < height)


def to_latent_pixels(keypoints: Tensor, image_size: tuple[int, int], latent_size: tuple[int, int]) -> Tensor:
    """Scale keypoints (..., 2) from image pixels to latent pixels, both sizes (H, W), as published: x * 32 / 256.

    A plain scaling: it does not keep pixel centres in place (those would map to (x + 0.5) * 32 / 256 - 0.5). The
    released weights are trained on it. Hence a mirrored heatmap is not the heatmap of the mirrored keypoints: flip
    keypoints, never heatmaps.
    """
    scale = keypoints.new_tensor([latent_size[1] / image_size[1], latent_size[0] / image_size[0]])
    return keypoints * scale


def render_heatmaps(keypoints: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Render keypoints (N, 42, 2), latent pixels, as Gaussians (N, 42, H, W) on a grid of size (H, W).

    Variance 1 latent pixel, peak 1 / (2 pi) at a keypoint that lies on the grid; the channel is zero where ``valid``
    (N, 42) is false, whatever the keypoint holds. Any number of channels works.
    """
    height, width = size
    # A row of an absent joint may hold NaN, and NaN * 0 is not 0.
    x, y = keypoints.float().masked_fill(~valid.bool().unsqueeze(-1), 0).unbind(-1)
    columns = torch.arange(width, device=keypoints.device)
    rows = torch.arange(height, device=keypoints.device)
    # exp(-(dx^2 + dy^2) / 2) = exp(-dx^2 / 2) exp(-dy^2 / 2): H + W exponentials a joint instead of H x W.
    across = torch.exp(-0.5 * (columns - x.unsqueeze(-1)) ** 2)  # N, 42, W
    down = torch.exp(-0.5 * (rows - y.unsqueeze(-1)) ** 2) / (2 * math.pi)  # N, 42, H
    down = down * valid.to(down.dtype).unsqueeze(-1)
    return down.unsqueeze(-1) * across.unsqueeze(-2)  # N, 42, H, W


def target_condition(keypoints: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Build the target condition (N, 43, H, W) from keypoints (N, 42, 2), latent pixels, and ``valid`` (N, 42).

    The mask channel is zero, as published: the network has to draw the hand's outline in the target.
    """
    heatmaps = render_heatmaps(keypoints, valid, size)
    return torch.cat([heatmaps, torch.zeros_like(heatmaps[:, :1])], dim=1)


def reference_condition(latent: Tensor, keypoints: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
    """Build the reference condition (N, C + 43, H, W).

    ``latent`` (N, C, H, W) as the network sees it (scaled), ``keypoints`` (N, 42, 2) in latent pixels, ``valid`` (N,
    42), ``mask`` (N, 1, h, w) of zeros and ones at any size, resized by nearest neighbour; zeros where there is no
    mask.
    """
    size = (latent.shape[-2], latent.shape[-1])
    heatmaps = render_heatmaps(keypoints, valid, size).to(latent.dtype)
    resized = F.interpolate(mask.to(latent.dtype), size, mode="nearest")
    return torch.cat([latent, heatmaps, resized], dim=1)


def null_conditions(target_cond: Tensor, ref_cond: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return guidance's null condition in the shapes of the given one: zero target, zero reference, ``Task.NULL``."""
    return torch.zeros_like(target_cond), torch.zeros_like(ref_cond), torch.full_like(task, Task.NULL)


def drop_conditions(
    target_cond: Tensor,
    ref_cond: Tensor,
    task: Tensor,
    probabilities: DropoutConfig,
    draws: Draws | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Drop conditions at random, each pair by its own draw, and return new (target_cond, ref_cond, task).

    Dropping sets to zero: the whole reference, the target's heatmaps, the reference's mask, or reference and target
    together. The task becomes null where nothing of either frame is left, a still that lost its target included; a pair
    that lost its reference alone keeps its task, as the published repair (which drops the reference) asks for a pose
    change.
    """
    count = task.shape[0]

    def drawn(probability: float) -> Tensor:
        # Drawn on the generators' device, so that CPU generators serve any accelerator.
        if draws is None or isinstance(draws, torch.Generator):
            device = task.device if draws is None else draws.device
            chances = torch.rand(count, generator=draws, device=device)
        else:
            assert not isinstance(draws, PartNoise)  # validation drops nothing
            chances = torch.stack([torch.rand((), generator=draw, device=draw.device) for draw in draws])
        return (chances < probability).to(task.device)

    # All four are drawn always: changing one probability leaves the other draws as they were.
    reference, target = drawn(probabilities.reference), drawn(probabilities.target_keypoints)
    mask, both = drawn(probabilities.reference_mask), drawn(probabilities.both)
    reference, target = reference | both, target | both

    kept_target = target_cond.masked_fill(target.view(-1, 1, 1, 1), 0)
    kept_reference = ref_cond.masked_fill(reference.view(-1, 1, 1, 1), 0)
    kept_mask = kept_reference[:, -1:].masked_fill(mask.view(-1, 1, 1, 1), 0)
    nothing_left = ~(kept_target.flatten(1).any(1) | kept_reference.flatten(1).any(1))
    return (
        kept_target,
        torch.cat([kept_reference[:, :-1], kept_mask], dim=1),
        task.masked_fill(nothing_left, Task.NULL),
    )
