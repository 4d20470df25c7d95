"""What a trained network is asked to do: transfer, views, video, repair, free samples; and the figures that show it.

Frames are square crops around the hands, as annotated samples are. Where one comes from (a sample, a photograph whose
keypoints a detector found, a file of keypoints) is the caller's business.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handdata.schemas import KEYPOINT_COUNT, UsageError, inside
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.autoencoders import Autoencoder
from handdata.trainer.conditioning import CONDITION_CHANNELS, Task
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.data.batch import FramePair, stack_pairs
from handdata.trainer.diffusion import draw_noise
from handdata.trainer.inputs import encode_images, pair_conditions
from handdata.trainer.presets import Preset, SamplingConfig
from handdata.trainer.samplers import Predict, Progress, denoise, guided, repaint, sample


def gesture_transfer(
    model: nn.Module,
    autoencoder: Autoencoder,
    preset: Preset,
    references: Sequence[Frame | None],
    targets: Sequence[Frame],
    *,
    task: Task = Task.POSE_CHANGE,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw each reference's hand and surroundings in the pose of its target, as pictures (N, S, S, 3) RGB.

    S is the preset's image size; frames of other sizes are resized. Of the targets only keypoints and validity are
    looked at (``pose_frame`` makes a frame of nothing else). Without a reference the network imagines one. Domain
    transfer is this with references of another dataset; novel views are this with ``Task.VIEW_CHANGE``. ``steps`` and
    ``guidance_scale`` replace the preset's. The same ``seed`` gives the same starting noise.
    """
    batch = _batch(model, preset, list(zip(targets, references, strict=True)), task)
    settings = _sampling(preset, steps, guidance_scale)
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
        return _pictures(autoencoder.decode(latents))


def unconditional(
    model: nn.Module,
    autoencoder: Autoencoder,
    preset: Preset,
    count: int,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw ``count`` pictures (N, S, S, 3) of which nothing is said: no reference, no keypoints, the null task."""
    absent = np.zeros((KEYPOINT_COUNT, 2), np.float32), np.zeros(KEYPOINT_COUNT, np.bool_)
    nothing = pose_frame(*absent, preset.image_size)
    return gesture_transfer(
        model,
        autoencoder,
        preset,
        [None] * count,
        [nothing] * count,
        task=Task.NULL,
        steps=steps,
        guidance_scale=1.0,
        seed=seed,
        progress=progress,
    )


def video(
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
    """Draw a video (T, S, S, 3) RGB: the hand of the given ``references`` in the pose of one target after another.

    All frames start from the same noise. At each denoising step the reference is drawn at random from those given and
    the frame made last, which has no mask (stochastic conditioning; FoundHand's published video sampler). ``progress``
    counts frames. For the rest see ``gesture_transfer``.
    """
    settings = _sampling(preset, steps, guidance_scale)
    draws = torch.Generator().manual_seed(seed)
    choice = np.random.default_rng(seed)
    with torch.no_grad():
        pairs = [(targets[0], reference) for reference in references]
        _, stacked, _ = pair_conditions(_batch(model, preset, pairs, Task.POSE_CHANGE), autoencoder, draws)
        given = list(torch.split(stacked, 1))
        shape = (1, stacked.shape[1] - CONDITION_CHANNELS, *stacked.shape[2:])
        noise = draw_noise(torch.Size(shape), stacked.device, draws)
        made: list[Tensor] = []
        frames: list[ByteArray] = []
        for number, target in enumerate(targets, start=1):
            batch = _batch(model, preset, [(target, None)], Task.POSE_CHANGE)
            target_cond, _, task = pair_conditions(batch, autoencoder, draws)
            predict = _changing_reference(model, target_cond, [*given, *made], task, settings, choice)
            latent = denoise(
                predict,
                noise,
                scheduler=settings.scheduler,
                steps=settings.steps,
                diffusion=preset.diffusion,
                clip_x0=settings.clip_x0,
                generator=draws,
            )
            # The pose that a frame was asked for is the pose that it has; the target condition ends in a zero mask.
            made = [torch.cat([latent.to(target_cond.dtype), target_cond], dim=1)]
            frames.append(_pictures(autoencoder.decode(latent))[0])
            if progress:
                progress(number, len(targets))
    return np.stack(frames)


def _changing_reference(
    model: nn.Module,
    target_cond: Tensor,
    references: Sequence[Tensor],
    task: Tensor,
    settings: SamplingConfig,
    choice: np.random.Generator,
) -> Predict:
    """Return a network that is shown one of some references, drawn at each step."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        reference = references[int(choice.integers(len(references)))]
        return guided(model, x_t, t, target_cond, reference, task, settings.guidance_scale, settings.guided_channels)

    return predict


def repair(
    model: nn.Module,
    autoencoder: Autoencoder,
    preset: Preset,
    frame: Frame,
    region: BoolArray,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    resamples: int = 10,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw the ``region`` of a picture anew, with hands at the frame's keypoints, as a picture (S, S, 3) RGB.

    Nothing but the keypoints is told of the hands (the reference is dropped); what lies outside the region (H, W) of
    the frame is kept at every step (RePaint, ``samplers.repaint``), and pasted at the end.
    """
    settings = _sampling(preset, steps, guidance_scale)
    draws = torch.Generator().manual_seed(seed)
    frame_at_size = resize(frame, preset.image_size)
    side = preset.image_size
    wanted = np.asarray(cv2.resize(region.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0)
    batch = _batch(model, preset, [(frame_at_size, None)], Task.POSE_CHANGE)
    with torch.no_grad():
        conditions = pair_conditions(batch, autoencoder, draws)
        known = encode_images(batch.target_image, autoencoder, draws)
        inside_region = F.adaptive_max_pool2d(torch.from_numpy(wanted[None, None]).float(), known.shape[-2:]).bool()

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return guided(model, x_t, t, *conditions, settings.guidance_scale, settings.guided_channels)

        latent = repaint(
            predict,
            known,
            inside_region.to(known.device),
            steps=settings.steps,
            diffusion=preset.diffusion,
            clip_x0=settings.clip_x0,
            resamples=resamples,
            generator=draws,
            progress=progress,
        )
        drawn = _pictures(autoencoder.decode(latent))[0]
    share = cv2.GaussianBlur(wanted.astype(np.float32), (0, 0), side / 128)[..., None]
    blended = share * drawn + (1 - share) * frame_at_size.image
    return np.asarray(np.where(wanted[..., None], np.round(blended), frame_at_size.image), dtype=np.uint8)


def _batch(model: nn.Module, preset: Preset, pairs: Sequence[tuple[Frame, Frame | None]], task: Task) -> FramePair:
    """Return pairs of target and reference at the preset's size, on the network's device."""
    size, device = preset.image_size, next(model.parameters()).device
    sized = ((resize(target, size), None if other is None else resize(other, size)) for target, other in pairs)
    return FramePair(*(field.to(device) for field in stack_pairs(sized, [task] * len(pairs), size)))


def _sampling(preset: Preset, steps: int | None, guidance_scale: float | None) -> SamplingConfig:
    changes = {"steps": steps, "guidance_scale": guidance_scale}
    return preset.sampling.model_copy(update={name: value for name, value in changes.items() if value is not None})


def _pictures(images: Tensor) -> ByteArray:
    """Return images (N, 3, S, S), -1 to 1, as (N, S, S, 3) RGB."""
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
