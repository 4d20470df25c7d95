"""The training loop: pairs in, checkpoints and curves out.

A run is the folder ``W/runs/<run>/``:

    checkpoints/     see ``handdata.trainer.checkpoints``
    settings.json    the resolved settings (also embedded in every checkpoint)
    metrics.jsonl    one JSON object a line: {"step", "loss", "samples_per_s", "epochs/<source>": how often its pairs
                     have been shown}, or, from a validation, {"step", "validation_loss", "permuted_loss"}
    samples/         grids of samples of the validation pairs
    tensorboard/     the same as scalars and pictures (local workspaces)

All that is random about a pair (its augmentation, noise, timestep, dropped conditions) follows from the seed and the
pair's position in the endless order. So it does not matter for the result into how many processes and micro batches a
batch is cut, and a run that is resumed has nothing to replay.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Sampler

from handdata.pipeline.shards import list_shards, read_manifest
from handdata.pipeline.storage import Storage
from handdata.schemas import Split, UsageError, WeightsError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.alignment import AlignedDiT, PictureEncoder, alignment_loss
from handdata.trainer.augment import Frame
from handdata.trainer.autoencoders import Autoencoder, load_autoencoder
from handdata.trainer.checkpoints import (
    import_foundhand,
    import_imagenet_dit,
    latest_checkpoint,
    load_checkpoint,
    read_weights,
    save_checkpoint,
)
from handdata.trainer.conditioning import drop_conditions
from handdata.trainer.diffusion import Diffusion, Draws, draw_noise
from handdata.trainer.history import LossWatch, RunHistory, Stopwatch, run_folder
from handdata.trainer.latents import LatentStore, open_latents
from handdata.trainer.metrics import ConditionFollowing, condition_following
from handdata.trainer.model import DiT
from handdata.trainer.pairs import FramePair, PairDataset, encode_images, pair_batches, pair_conditions
from handdata.trainer.presets import OptimisationConfig, PairConfig, Preset
from handdata.trainer.tasks import encode_png, figure, gesture_transfer

FINAL_LEARNING_RATE_SHARE: Final = 0.05
"""Where a cosine decay ends."""

LOGGED_EVERY_STEPS: Final = 10
VALIDATION_PAIRS: Final = 256
DECODING_THREADS: Final = 8
"""Of each process that trains on a GPU. On the CPU decoding ahead would only take cores from training."""

OnStep = Callable[[int, int, float, float], None]
"""Called after each step with (steps done, steps in all, loss, samples a second)."""


@dataclass(frozen=True, slots=True)
class Process:
    """One of the processes that train a network together; by default the only one.

    Args:
        rank: 0 to ``count`` - 1. The first one writes checkpoints, curves and pictures.
        count: how many there are.

    """

    rank: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training run did.

    Args:
        run_url: the run's folder.
        checkpoint_url: its last checkpoint.
        steps: steps of the run in all.
        loss: mean over the last logged steps; None where this call had nothing left to do.
        samples_per_s: pairs a second of this call, validation left out.
        validation: on the ``val`` split, by the averaged weights; None where the dataset has none.

    """

    run_url: str
    checkpoint_url: str
    steps: int
    loss: float | None
    samples_per_s: float | None
    validation: ConditionFollowing | None


def train(
    preset: Preset,
    storage: Storage,
    run: str,
    *,
    steps: int | None = None,
    resume: bool = False,
    init: str | None = None,
    device: str | None = None,
    process: Process = Process(),
    on_step: OnStep | None = None,
) -> TrainSummary:
    """Train a preset on a workspace's dataset, in this process or as one of several.

    ``steps`` replaces the preset's number. ``resume`` goes on from the run's latest checkpoint, if it has one; without
    it a run that has checkpoints is refused. ``init`` is a file of published FoundHand weights, of an ImageNet DiT, or
    of one of our checkpoints. ``device`` is CUDA's where there is one.
    Several processes (``process``) have joined a ``torch.distributed`` group before.

    Raises ``UsageError`` for a dataset without usable pairs and a run that exists, ``WeightsError`` for weights that do
    not fit, ``RunError`` where the loss stops being a number or grows without end.
    """
    settings, monitoring = preset.optimisation, preset.monitoring
    total = steps or settings.steps
    run_url = storage.describe(run_folder(run))
    checkpoint_url = latest_checkpoint(run_url)
    if checkpoint_url and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    dataset = PairDataset(
        storage,
        image_size=preset.image_size,
        split=training_split(storage, preset.data.dataset),
        pairs=preset.pairs,
        augmentation=preset.augmentation,
        data=preset.data,
        latents=_latents(storage, preset),
        seed=settings.seed,
    )
    leads = process.rank == 0
    validation_batches = _validation_batches(storage, preset) if leads else []
    shown = _pairs_to_show(storage, preset) if leads else ([], [])

    trainer = Trainer(preset, device or ("cuda" if torch.cuda.is_available() else "cpu"), process)
    if checkpoint_url:
        trainer.load(checkpoint_url)
    elif init is not None:
        trainer.start_from(init)
    first_step = trainer.step
    following: ConditionFollowing | None = None
    losses: deque[float] = deque(maxlen=LOGGED_EVERY_STEPS)
    watch = LossWatch(monitoring.divergence)
    clock = Stopwatch(settings.batch_size)
    threads = DECODING_THREADS if trainer.device.type == "cuda" else 0
    batches = pair_batches(dataset, MicroBatches(settings, process, first_step, total), threads)

    def take_step() -> None:
        losses.append(trainer.training_step(next(batches) for _ in range(micro_batches(settings, process))))
        watch.look(trainer.step, losses[-1], checkpoint_url)
        clock.count_step()

    if not leads:
        for _ in range(first_step, total):
            take_step()
        return TrainSummary(run_url, run_url, trainer.step, None, None, None)

    storage.write_bytes(f"{run_folder(run)}/settings.json", preset.model_dump_json(indent=2).encode())
    with RunHistory(storage, run, first_step, preset.model_dump(mode="json")) as history:
        for step in range(first_step + 1, total + 1):
            take_step()
            if on_step:
                on_step(step, total, losses[-1], clock.samples_per_s)
            if step % LOGGED_EVERY_STEPS == 0 or step == total:
                epochs = dataset.effective_epochs(step * settings.batch_size)
                scalars = {"loss": fmean(losses), "samples_per_s": clock.samples_per_s}
                history.add(step, scalars | {f"epochs/{source}": shown for source, shown in epochs.items()})
            validated = None
            with clock.paused():
                if validation_batches and (step == total or step % monitoring.validate_every == 0):
                    validated = following = trainer.validate(validation_batches)
                    curve = {"validation_loss": following.true_loss, "permuted_loss": following.permuted_loss}
                    history.add(step, curve)
                if shown[0] and (step == total or step % monitoring.pictures_every == 0):
                    grid = trainer.draw(*shown)
                    history.add_picture(step, encode_png(grid), grid)
                if step == total or step % monitoring.checkpoint_every == 0:
                    history.write()
                    checkpoint_url = trainer.save(run_url, validated)
    assert checkpoint_url is not None  # the last step saves one, and a run without steps left has been resumed
    return TrainSummary(
        run_url=run_url,
        checkpoint_url=checkpoint_url,
        steps=trainer.step,
        loss=fmean(losses) if losses else None,
        samples_per_s=clock.samples_per_s if losses else None,
        validation=following,
    )


def training_split(storage: Storage, dataset: str) -> Split:
    """Return the split to train on: ``train``, or the largest one where a dataset has no such (a test set alone)."""
    samples: Counter[Split] = Counter()
    for splits in read_manifest(storage, dataset).sources.values():
        for split, counts in splits.items():
            samples[split] += counts.samples
    return "train" if samples["train"] or not samples else samples.most_common(1)[0][0]


class Trainer:
    """The network under training and all that changes with it, from step to step."""

    def __init__(self, preset: Preset, device: str, process: Process = Process()) -> None:
        settings = preset.optimisation
        self.preset = preset
        self.process = process
        self.device = torch.device(device)
        self.step = 0
        self.diffusion = Diffusion(preset.diffusion).to(self.device)
        self.autoencoder: Autoencoder = load_autoencoder(preset.autoencoder, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = DiT(**preset.model.model_dump()).to(self.device)
            self._aligned: AlignedDiT | None = None
            if preset.alignment is not None:
                self._encoder = PictureEncoder(preset.alignment, self.model.grid_size, self.device)
                self._aligned = AlignedDiT(self.model, preset.alignment, self._encoder.features).to(self.device)
        self.model.activation_checkpointing = settings.activation_checkpointing
        trained = self._aligned or self.model
        self._distributed = DistributedDataParallel(trained) if process.count > 1 else None
        self._network: nn.Module = self._distributed or trained
        if settings.compile:
            self._network.compile()
        self._trained_parameters = list(trained.parameters())
        average = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self.model, multi_avg_fn=average)
        self._optimizer = torch.optim.AdamW(
            self._trained_parameters,
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_share(step, settings)
        )
        self._precision = getattr(torch, settings.precision)
        # On a CPU bfloat16 pays, two to three times where it has matrix units for it; float16 does not.
        self._autocasts = self._precision == torch.bfloat16 or (
            self._precision == torch.float16 and self.device.type == "cuda"
        )
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self._autocasts and self._precision == torch.float16
        )

    @property
    def averaged_model(self) -> nn.Module:
        """The network with averaged weights, which samples are drawn from."""
        module: nn.Module = self._average.module
        return module

    def training_step(self, micro_batches: Iterable[FramePair]) -> float:
        """Take one optimiser step on this process's share of a batch and return the whole batch's mean loss.

        The micro batches hold the pairs at the positions that ``MicroBatches`` gives, in its order.
        """
        settings = self.preset.optimisation
        share = settings.batch_size // self.process.count
        first = self.step * settings.batch_size + self.process.rank * share
        timesteps = self._timesteps()[self.process.rank * share :]
        total = torch.zeros((), device=self.device)
        self._optimizer.zero_grad(set_to_none=True)
        done = 0
        for batch in micro_batches:
            count = len(batch.task)
            draws = [pair_generator(settings.seed, first + done + pair) for pair in range(count)]
            with self._gradients_stay_here(done + count < share):
                losses = self.losses(self._network, batch, timesteps[done : done + count], draws, drops=True)
                self._scaler.scale(losses.sum() / share).backward()  # type: ignore[no-untyped-call]
            total += losses.detach().sum()
            done += count
        if done != share:
            raise ValueError(f"a step takes {share} pairs of each process, got {done}")
        if self.process.count > 1:
            torch.distributed.all_reduce(total)
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._trained_parameters, settings.max_gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._average.update_parameters(self.model)
        self.step += 1
        return float(total) / settings.batch_size

    def _gradients_stay_here(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Let processes add up their gradients once a step, with the last micro batch."""
        if self._distributed is None or not more_to_come:
            return nullcontext()
        local: AbstractContextManager[None] = self._distributed.no_sync()
        return local

    def _timesteps(self) -> Tensor:
        """Return the timesteps of the next step's whole batch."""
        settings = self.preset.optimisation
        draws = torch.Generator().manual_seed(_seed_of(settings.seed, self.step, 3))
        return spread_timesteps(settings.batch_size, self.diffusion.steps, draws, self.preset.diffusion.timesteps)

    def losses(
        self, model: nn.Module, batch: FramePair, timesteps: Tensor, draws: Draws, drops: bool = False
    ) -> Tensor:
        """Return each pair's loss (N,) at its timestep, with noise (and dropped conditions) from ``draws``.

        Where ``model`` is an ``AlignedDiT``, the loss of its alignment is part of it.
        """
        batch = FramePair(*(field.to(self.device, non_blocking=True) for field in batch))
        latent = encode_images(batch.target_image, self.autoencoder, draws)
        target_cond, ref_cond, task = pair_conditions(batch, self.autoencoder, draws)
        if drops:
            target_cond, ref_cond, task = drop_conditions(target_cond, ref_cond, task, self.preset.dropout, draws)
        timesteps = timesteps.to(self.device)
        noise = draw_noise(latent.shape, self.device, draws)
        noisy = self.diffusion.add_noise(latent, noise, timesteps)
        with torch.autocast(self.device.type, self._precision, enabled=self._autocasts):
            output = model(noisy, timesteps, target_cond, ref_cond, task)
        known = batch.target_weight.float() / 255
        aligned = torch.zeros((), device=self.device)
        if self.preset.alignment is not None and isinstance(output, tuple):
            output, projected = output
            features = self._encoder(batch.target_image)
            aligned = self.preset.alignment.weight * alignment_loss(projected, features, known)
        weight = F.interpolate(known, latent.shape[-2:], mode="area")
        return self.diffusion.training_loss(output, latent, noise, timesteps, weight).total + aligned

    def validate(self, batches: list[FramePair]) -> ConditionFollowing:
        """Measure, with the averaged weights, how much the loss owes to the target's keypoints."""

        def losses(batch: FramePair, timesteps: Tensor, draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                return self.losses(self.averaged_model, batch, timesteps, draws)

        return condition_following(losses, batches, self.diffusion.steps)

    def draw(self, references: Sequence[Frame], targets: Sequence[Frame]) -> ByteArray:
        """Draw each reference in its target's pose, with the averaged weights, as a figure (H, W, 3)."""
        pictures = gesture_transfer(self.averaged_model, self.autoencoder, self.preset, references, targets)
        return figure(references, targets, list(pictures))

    def start_from(self, path: str) -> None:
        """Load weights to start from: published FoundHand, an ImageNet DiT, or ours. Raises ``WeightsError``."""
        state = read_weights(path)
        if "x_embedder.proj.weight" in state:
            state = import_imagenet_dit(state, self.model)
        elif "feature_aligned_embedder.proj.weight" in state:
            state = import_foundhand(state)
        for network in (self.model, self.averaged_model):
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                raise WeightsError(
                    f"{path} does not fit this network: {error}", "choose the preset of its size"
                ) from None

    def save(self, run_url: str, validation: ConditionFollowing | None = None) -> str:
        """Save a checkpoint of the run, as good as its validation found it, and return its URL."""
        return save_checkpoint(
            run_url,
            self.step,
            self.model,
            self.averaged_model,
            self._optimizer,
            self.preset.model_dump(mode="json"),
            schedule=self._schedule,
            data_state={
                "scaler": self._scaler.state_dict(),
                "projection": self._aligned.projection.state_dict() if self._aligned else {},
            },
            keep_last=self.preset.monitoring.keep_last,
            validation_loss=None if validation is None else validation.true_loss,
        )

    def load(self, checkpoint_url: str) -> None:
        """Go on from a checkpoint. The position in the data is the step times the batch size."""
        resumed = load_checkpoint(
            checkpoint_url,
            self.model,
            self.averaged_model,
            self._optimizer,
            schedule=self._schedule,
        )
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(resumed.data_state["scaler"])
        if self._aligned is not None:
            self._aligned.projection.load_state_dict(resumed.data_state["projection"])
        self.step = resumed.step
        self._average.n_averaged.fill_(resumed.step)  # else the next update would copy the weights instead


def learning_rate_share(step: int, settings: OptimisationConfig) -> float:
    """Return the share of the learning rate that a step takes: a linear warm-up, then the preset's decay."""
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.decay == "none":
        return 1.0
    done = min(1.0, (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps))
    return FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2


def spread_timesteps(
    count: int, steps: int, draws: torch.Generator, distribution: Literal["uniform", "logit-normal"] = "uniform"
) -> Tensor:
    """Draw timesteps (count,) in 0 .. ``steps`` - 1: each one by the distribution, together spread evenly over it.

    A batch that covers all noise levels has a steadier loss than one of independent draws (Kingma et al. 2021,
    Variational Diffusion Models, appendix I.1).
    """
    offsets = (torch.arange(count) + torch.rand((), generator=draws)) / count
    if distribution == "logit-normal":  # the distribution's quantiles
        offsets = torch.sigmoid(torch.special.ndtri(offsets))
    timesteps = (offsets * steps).long().clamp(max=steps - 1)
    return timesteps[torch.randperm(count, generator=draws)]


def pair_generator(seed: int, position: int) -> torch.Generator:
    """Return what a pair's noise and dropped conditions are drawn from: on a CPU, the same for any accelerator."""
    return torch.Generator().manual_seed(_seed_of(seed, position, 2))


def _seed_of(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def micro_batches(settings: OptimisationConfig, process: Process) -> int:
    """Return into how many micro batches a process's share of a batch is cut.

    Raises:
        UsageError: the batch cannot be shared evenly.

    """
    share, rest = divmod(settings.batch_size, process.count)
    micro = settings.micro_batch_size or max(share, 1)
    if rest or share % micro:
        raise UsageError(
            f"a batch of {settings.batch_size} pairs cannot be cut into {process.count} shares of micro batches of "
            f"{settings.micro_batch_size or share}",
            "choose optimisation.batch_size as a multiple of processes times micro_batch_size",
        )
    return share // micro


class MicroBatches(Sampler[list[int]]):
    """Gives a loader the positions of one process's micro batches for the steps after ``first_step``.

    Step n trains on positions (n - 1) B to n B - 1, of which each process takes its share in one run.
    """

    def __init__(self, settings: OptimisationConfig, process: Process, first_step: int, last_step: int) -> None:
        self._batch_size = settings.batch_size
        self._share = settings.batch_size // process.count
        self._offset = process.rank * self._share
        self._micro = self._share // micro_batches(settings, process)
        self._steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            first = step * self._batch_size + self._offset
            for start in range(first, first + self._share, self._micro):
                yield list(range(start, start + self._micro))

    def __len__(self) -> int:
        return len(self._steps) * self._share // self._micro


def _latents(storage: Storage, preset: Preset) -> LatentStore | None:
    """Return the stored latents to train on, where the settings ask for them."""
    if not preset.data.latents:
        return None
    autoencoder = load_autoencoder(preset.autoencoder)
    return open_latents(storage, autoencoder, preset.autoencoder, preset.image_size, preset.data.dataset)


def _validation_batches(storage: Storage, preset: Preset) -> list[FramePair]:
    """Return the same pairs of the held-out split every time, without augmentation; none where it has too few."""
    if not list_shards(storage, preset.data.dataset, splits=["val"]):
        return []
    try:
        dataset = PairDataset(
            storage,
            image_size=preset.image_size,
            split="val",
            pairs=preset.pairs,
            data=preset.data,
            latents=_latents(storage, preset),
        )
    except UsageError:  # the chosen rows are all of other splits
        return []
    settings = preset.optimisation
    size = min(settings.micro_batch_size or settings.batch_size, settings.batch_size, len(dataset))
    if size < 2:
        return []
    count = max(min(VALIDATION_PAIRS, len(dataset)) // size, 1)
    return list(pair_batches(dataset, [range(first, first + size) for first in range(0, count * size, size)]))


def _pairs_to_show(storage: Storage, preset: Preset) -> tuple[list[Frame], list[Frame]]:
    """Return references and targets of a few pairs of frames of the held-out split; none where it has none."""
    if not list_shards(storage, preset.data.dataset, splits=["val"]):
        return [], []
    moving = PairConfig(**preset.pairs.model_dump() | {"still": 0.0, "sources": {}})
    try:
        dataset = PairDataset(storage, image_size=preset.image_size, split="val", pairs=moving, data=preset.data)
    except UsageError:  # stills only, or the chosen rows are all of other splits
        return [], []
    pairs = [dataset.rows_at(position)[:2] for position in range(min(preset.monitoring.pictures, len(dataset)))]
    references = [dataset.frame(reference) for _, reference in pairs if reference is not None]
    return references, [dataset.frame(target) for target, _ in pairs]
