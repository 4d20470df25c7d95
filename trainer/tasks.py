"""Tasks of a trained network: gesture transfer, views, video, repair and unconditional samples.

Frames are square crops around the hands, as annotated samples are. The caller decides where one comes from (a sample, a
photograph whose keypoints a detector found, a file of keypoints).
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from handdata.schemas import KEYPOINT_COUNT, RunError, UsageError, WeightsError
from handdata.schemas.arrays import BoolArray, ByteArray
from handdata.trainer.autoencoders import Autoencoder, load_autoencoder, require_fit
from handdata.trainer.checkpoints import load_for_sampling
from handdata.trainer.conditioning import CONDITION_CHANNELS, Task
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.data.batch import FramePair, stack_pairs
from handdata.trainer.devices import TrainedPrecision, choose_device
from handdata.trainer.diffusion import draw_noise
from handdata.trainer.inputs import encode_images, pair_conditions
from handdata.trainer.memory import memory_errors
from handdata.trainer.pasting import EDGE_SHARE, paste_softly
from handdata.trainer.poses import pose_frame
from handdata.trainer.presets import BATCH_SIZE, Preset, SamplingConfig, SamplingOptions
from handdata.trainer.samplers import Predict, Progress, denoise, guided, repaint, sample

References: TypeAlias = Frame | Sequence[Frame] | None
"""What lends an image its hand: a frame, several of one hand, or nothing."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A network with all that tasks need beside it.

    Args:
        network: Trained two-frame diffusion transformer.
        autoencoder: Autoencoder of the network's latents.
        preset: Settings that the network was trained with.

    """

    network: nn.Module
    autoencoder: Autoencoder
    preset: Preset


def load_sampler(
    checkpoint: str,
    dataset: str | None = None,
    device: str | None = None,
    preset: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Sampler:
    """Load a checkpoint's network with averaged weights, and its autoencoder.

    Args:
        checkpoint: Path or URL of a file of weights, ours or the published FoundHand's, or of a checkpoint's or a run's
            folder.
        dataset: Dataset that the preset names instead of the one that the network was trained on.
        device: Device to sample on; None takes CUDA's where there is one. The network computes there in the precision
            of its training.
        preset: Name of the preset whose settings a file without its own was trained with.
        on_note: Called with a line on what of a file is passed over.

    Raises:
        UsageError: This machine has no such device, the preset is unknown or another than the file's, or the settings
            do not fit one another.
        WeightsError: The checkpoint, or the autoencoder's weights, are missing or not readable.

    """
    chosen = choose_device(device)
    network, config = load_for_sampling(checkpoint, chosen, preset, on_note)
    try:
        settings = Preset.model_validate(config).choosing_rows(dataset=dataset)
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(
            f"{checkpoint} has settings that this version does not know: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}",
            "use the version of handdata that wrote it",
        ) from None
    network_there = TrainedPrecision(network, settings.optimisation)
    autoencoder = load_autoencoder(settings.autoencoder, chosen)
    require_fit(settings, autoencoder)
    return Sampler(network_there, autoencoder, settings)


def gesture_transfer(
    sampler: Sampler,
    references: Sequence[References],
    targets: Sequence[Frame],
    options: SamplingOptions = SamplingOptions(),
    *,
    task: Task = Task.POSE_CHANGE,
    numbers: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    on_image: Callable[[int, ByteArray], None] | None = None,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw each reference's hand and surroundings in the pose of its target, as images (N, S, S, 3) RGB.

    S is the preset's image size; frames of other sizes are resized. Domain transfer is this with references of another
    dataset; novel views are this with ``Task.VIEW_CHANGE``. All that is random about an image follows from the seed and
    its number: the batch size does not matter.

    Args:
        sampler: Network, autoencoder and preset.
        references: Frames whose hands are drawn; where one is None the network imagines it. Several frames of one hand
            take turns: at each denoising step one is drawn at random (stochastic conditioning), or in a single step the
            one is taken whose joints lie nearest to the target's.
        targets: Frames whose keypoints and validity are used, and nothing else (``pose_frame`` makes such frames).
        options: Steps, guidance and seed.
        task: What lies between reference and target.
        numbers: Number of each image in the call of a user; None counts from 0.
        batch_size: Number of images that are drawn at once.
        on_image: Called with the position of each image, and the image, when its batch is done.
        progress: Called after each denoising step.

    Raises:
        UsageError: The batch size is less than 1.

    """
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}, and should be a whole number from 1 on")
    if numbers is None:
        numbers = range(len(targets))
    given = [_as_several(each) for each in references]
    wanted = list(zip(given, targets, numbers, strict=True))
    images: list[ByteArray] = []
    batches = math.ceil(len(wanted) / batch_size)
    for before in range(batches):
        part = wanted[before * batch_size : (before + 1) * batch_size]

        def of_all(step: int, total: int, before: int = before) -> None:
            if progress:
                progress(before * total + step, batches * total)

        with memory_errors(f"drawing {len(part)} images at once", "choose a smaller --batch-size, or --device cpu"):
            images += _transferred(sampler, part, options, task, of_all)
        if on_image:
            for position in range(len(images) - len(part), len(images)):
                on_image(position, images[position])
    size = sampler.preset.image_size
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def unconditional(
    sampler: Sampler,
    count: int,
    options: SamplingOptions = SamplingOptions(),
    *,
    numbers: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    on_image: Callable[[int, ByteArray], None] | None = None,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw ``count`` images (N, S, S, 3) without reference, keypoints, task and guidance; see ``gesture_transfer``.

    Raises:
        UsageError: The network needs a reference.

    """
    require_none_needed(sampler)
    absent = np.zeros((KEYPOINT_COUNT, 2), np.float32), np.zeros(KEYPOINT_COUNT, np.bool_)
    nothing = pose_frame(*absent, sampler.preset.image_size)
    return gesture_transfer(
        sampler,
        [None] * count,
        [nothing] * count,
        unguided(options),
        task=Task.NULL,
        numbers=numbers,
        batch_size=batch_size,
        on_image=on_image,
        progress=progress,
    )


def unguided(options: SamplingOptions) -> SamplingOptions:
    """Return options without guidance, of which there is none where the null condition is all that there is."""
    return replace(options, guidance_scale=1.0, pose_guidance=None, appearance_guidance=None)


def keypoints_only(
    sampler: Sampler,
    targets: Sequence[Frame],
    options: SamplingOptions = SamplingOptions(),
    *,
    numbers: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    on_image: Callable[[int, ByteArray], None] | None = None,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw hands (N, S, S, 3) that the network imagines in the pose of targets; see ``gesture_transfer``.

    Raises:
        UsageError: The network needs a reference.

    """
    require_none_needed(sampler)
    return gesture_transfer(
        sampler,
        [None] * len(targets),
        targets,
        options,
        numbers=numbers,
        batch_size=batch_size,
        on_image=on_image,
        progress=progress,
    )


def video(
    sampler: Sampler,
    references: Sequence[Frame],
    targets: Sequence[Frame],
    options: SamplingOptions = SamplingOptions(),
    *,
    recent: int = 1,
    on_image: Callable[[int, ByteArray], None] | None = None,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw a video (T, S, S, 3) RGB: the hand of some references in the pose of one target after another.

    All frames start from the same noise. At each denoising step the reference is drawn at random from those given and
    the frames made last, which have no mask (stochastic conditioning; FoundHand's published video sampler). A single
    step takes the one reference, of those given, whose joints lie nearest to the target's: faults of a frame made
    before would be drawn into all that follow.

    Args:
        sampler: Network, autoencoder and preset.
        references: Frames that show the hand, and what it holds.
        targets: Frames whose keypoints and validity are used, in the video's order.
        options: Steps, guidance and seed.
        recent: Number of frames made last that are references too; 1 as published.
        on_image: Called with the number of each frame, and the frame, when it is drawn.
        progress: Called after each frame.

    Raises:
        UsageError: ``recent`` is less than 0.

    """
    if recent < 0:
        raise UsageError(f"--recent is {recent}, and should be a whole number from 0 on")
    autoencoder, diffusion = sampler.autoencoder, sampler.preset.diffusion
    settings = options.applied_to(sampler.preset)
    draws = torch.Generator().manual_seed(options.seed)
    choice = np.random.default_rng(options.seed)
    with torch.no_grad(), memory_errors("drawing a frame", "draw on the CPU with --device cpu"):
        pairs = [(targets[0], reference) for reference in references]
        _, stacked, _ = pair_conditions(_batch(sampler, pairs, Task.POSE_CHANGE), autoencoder, draws)
        given = list(torch.split(stacked, 1))
        shape = (1, stacked.shape[1] - CONDITION_CHANNELS, *stacked.shape[2:])
        noise = draw_noise(torch.Size(shape), stacked.device, draws)
        made: deque[Tensor] = deque(maxlen=recent)
        frames: list[ByteArray] = []
        for number, target in enumerate(targets, start=1):
            batch = _batch(sampler, [(target, None)], Task.POSE_CHANGE)
            target_cond, _, task = pair_conditions(batch, autoencoder, draws)
            shown = [given[nearest(references, target)]] if settings.steps == 1 else [*given, *made]
            predict = _changing_reference(sampler.network, target_cond, shown, task, settings, choice)
            latent = denoise(
                predict,
                noise,
                scheduler=settings.scheduler,
                steps=settings.steps,
                diffusion=diffusion,
                clip_x0=settings.clip_x0,
                generator=draws,
            )
            # The pose that a frame was asked for is the pose that it has; the target condition ends in a zero mask.
            made.append(torch.cat([latent.to(target_cond.dtype), target_cond], dim=1))
            frames.append(_images(autoencoder.decode(latent))[0])
            if on_image:
                on_image(number - 1, frames[-1])
            if progress:
                progress(number, len(targets))
    return np.stack(frames)


def repair(
    sampler: Sampler,
    frame: Frame,
    region: BoolArray,
    options: SamplingOptions = SamplingOptions(),
    *,
    resamples: int = 10,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw the ``region`` of a frame's image anew, with hands at the frame's keypoints, as an image (S, S, 3) RGB.

    What ``redraw`` gives is pasted with a soft edge that lies inside the region; the rest of the image stays as it is.

    Args:
        sampler: Network, autoencoder and preset.
        frame: Frame to repair.
        region: Pixels (H, W) of the frame that are drawn anew.
        options: Steps, guidance and seed.
        resamples: How often RePaint takes each of its jumps.
        progress: Called after each denoising step.

    Raises:
        UsageError: The network needs a reference.

    """
    side = sampler.preset.image_size
    drawn = redraw(sampler, frame, region, options, resamples=resamples, progress=progress)
    return paste_softly(resize(frame, side).image, drawn, _region_at(region, side), EDGE_SHARE * side)


def redraw(
    sampler: Sampler,
    frame: Frame,
    region: BoolArray,
    options: SamplingOptions = SamplingOptions(),
    *,
    resamples: int = 10,
    progress: Progress | None = None,
) -> ByteArray:
    """Draw a frame's image (S, S, 3) RGB with the ``region`` anew, as the autoencoder has it: the rest is not exact.

    The network is given nothing of the hands but the keypoints (the reference is dropped). What lies outside the region
    is kept at every step (RePaint, ``samplers.repaint``). Arguments and errors are those of ``repair``.
    """
    require_none_needed(sampler)
    autoencoder, side = sampler.autoencoder, sampler.preset.image_size
    settings = options.applied_to(sampler.preset)
    draws = torch.Generator().manual_seed(options.seed)
    batch = _batch(sampler, [(frame, None)], Task.POSE_CHANGE)
    wanted = torch.from_numpy(_region_at(region, side)[None, None]).float()
    with torch.no_grad():
        conditions = pair_conditions(batch, autoencoder, draws)
        known = encode_images(batch.target_image, autoencoder, draws)
        inside_region = F.adaptive_max_pool2d(wanted, known.shape[-2:]).bool()

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return guided(sampler.network, x_t, t, *conditions, settings)

        latent = repaint(
            predict,
            known,
            inside_region.to(known.device),
            steps=settings.steps,
            diffusion=sampler.preset.diffusion,
            clip_x0=settings.clip_x0,
            resamples=resamples,
            generator=draws,
            progress=progress,
        )
        image: ByteArray = _images(autoencoder.decode(latent))[0]
        return image


def _region_at(region: BoolArray, side: int) -> BoolArray:
    """Return a region (H, W) at another size: with each pixel that any part of it lies in."""
    shrinks = region.shape[0] > side
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(region.astype(np.float32), (side, side), interpolation=interpolation) > 0)


def _transferred(
    sampler: Sampler,
    wanted: Sequence[tuple[tuple[Frame, ...], Frame, int]],
    options: SamplingOptions,
    task: Task,
    progress: Progress,
) -> list[ByteArray]:
    """Draw a batch of references, a target and a number each."""
    settings = options.applied_to(sampler.preset)
    if settings.steps == 1:
        wanted = [(_nearest_alone(given, target), target, number) for given, target, number in wanted]
    draws = [_generator(options.seed, number) for _, _, number in wanted]
    choices = [np.random.default_rng([options.seed, number]) for _, _, number in wanted]
    counts = [max(1, len(given)) for given, _, _ in wanted]
    with torch.no_grad():
        shown: list[Tensor] = []  # reference conditions (N, C + 43, h, w): everyone's first one, second one, ...
        for turn in reversed(range(max(counts))):
            pairs = [(target, given[min(turn, len(given) - 1)] if given else None) for given, target, _ in wanted]
            # Encoding draws too: of generators that no other reference has used.
            of_turn = [_generator(options.seed, number, turn) for _, _, number in wanted] if turn else draws
            conditions = pair_conditions(_batch(sampler, pairs, task), sampler.autoencoder, of_turn)
            shown.insert(0, conditions[1])
        target_cond, _, tasks = conditions
        rows = torch.arange(len(wanted), device=target_cond.device)
        several = torch.stack(shown)

        def in_turn() -> Tensor:
            turns = [int(choice.integers(count)) for choice, count in zip(choices, counts, strict=True)]
            return several[torch.tensor(turns, device=rows.device), rows]

        channels = several.shape[2] - CONDITION_CHANNELS
        noise = draw_noise(torch.Size((len(wanted), channels, *several.shape[3:])), several.device, draws)
        latents = sample(
            sampler.network,
            target_cond,
            in_turn,
            tasks,
            settings,
            noise=noise,
            generator=draws,
            diffusion=sampler.preset.diffusion,
            progress=progress,
        )
        return list(_images(sampler.autoencoder.decode(latents)))


def _as_several(references: References) -> tuple[Frame, ...]:
    if references is None:
        return ()
    return (references,) if isinstance(references, Frame) else tuple(references)


def _generator(seed: int, *numbers: int) -> torch.Generator:
    """Return the source of random numbers of one image of a call, or of one part of it."""
    (state,) = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def require_none_needed(sampler: Sampler) -> None:
    """Check that a network can draw without a reference: a difference from none shows patches and colours at random.

    Raises:
        UsageError: It predicts a difference from its reference.

    """
    if sampler.preset.model.geometry.residual != "none":
        raise UsageError(
            "this network needs a reference, and this task gives it none",
            "it is for gesture-transfer, domain-transfer and video; name another --run or --checkpoint, such as one of "
            "foundhand-xl",
        )


def _nearest_alone(references: tuple[Frame, ...], target: Frame) -> tuple[Frame, ...]:
    return (references[nearest(references, target)],) if references else ()


def nearest(references: Sequence[Frame], target: Frame) -> int:
    """Return which reference's joints lie nearest to the target's, of those that both show."""

    def distance(reference: Frame) -> float:
        both = reference.valid & target.valid
        places = [frame.keypoints[both] / frame.image.shape[0] for frame in (reference, target)]
        return float(np.hypot(*(places[0] - places[1]).T).mean()) if both.any() else np.inf

    return int(np.argmin([distance(reference) for reference in references]))


def _changing_reference(
    model: nn.Module,
    target_cond: Tensor,
    references: Sequence[Tensor],
    task: Tensor,
    settings: SamplingConfig,
    choice: np.random.Generator,
) -> Predict:
    """Return a network that is given one of some references, drawn at each step."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        reference = references[int(choice.integers(len(references)))]
        return guided(model, x_t, t, target_cond, reference, task, settings)

    return predict


def _batch(sampler: Sampler, pairs: Sequence[tuple[Frame, Frame | None]], task: Task) -> FramePair:
    """Return pairs of target and reference at the preset's size, on the network's device."""
    size, device = sampler.preset.image_size, next(sampler.network.parameters()).device
    sized = ((resize(target, size), None if other is None else resize(other, size)) for target, other in pairs)
    return FramePair(*(field.to(device) for field in stack_pairs(sized, [task] * len(pairs), size)))


def _images(decoded: Tensor) -> ByteArray:
    """Return images (N, 3, S, S), -1 to 1, as (N, S, S, 3) RGB.

    Raises:
        RunError: They hold numbers that are not finite, which would look like black.

    """
    if not bool(decoded.isfinite().all()):
        raise RunError(
            "the generated images hold numbers that are not finite",
            "lower the guidance scale; float16 may overflow on a GPU: --device cpu takes float32",
        )
    pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return np.asarray(pixels.cpu().numpy(), dtype=np.uint8)
