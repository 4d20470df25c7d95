"""The training loop: pairs in, checkpoints and curves out.

A run is the folder ``W/runs/<run>/``:

    checkpoints/     see ``handdata.trainer.checkpoints``
    settings.json    the resolved settings (also embedded in every checkpoint)
    metrics.jsonl    one JSON object a line: {"step", "loss", "samples_per_s"}, or, from a validation,
                     {"step", "validation_loss", "permuted_loss"}
    tensorboard/     the same as scalars (local workspaces)
"""

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from handdata.pipeline.shards import list_shards, read_manifest
from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, Split, UsageError, WeightsError
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
from handdata.trainer.diffusion import Diffusion, draw_noise
from handdata.trainer.metrics import ConditionFollowing, condition_following
from handdata.trainer.model import DiT
from handdata.trainer.pairs import FramePair, PairDataset, PositionSampler, encode_images, pair_conditions
from handdata.trainer.presets import OptimisationConfig, Preset

FINAL_LEARNING_RATE_SHARE: Final = 0.05
"""Where a cosine decay ends."""

LOGGED_EVERY_STEPS: Final = 10
METRICS_WRITTEN_EVERY_S: Final = 10.0
VALIDATION_PAIRS: Final = 256

OnStep = Callable[[int, int, float, float], None]
"""Called after each step with (steps done, steps in all, loss, samples a second)."""


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


def run_folder(run: str) -> str:
    """Return the folder of a run in its workspace."""
    return f"runs/{run}"


def train(
    preset: Preset,
    storage: Storage,
    run: str,
    *,
    steps: int | None = None,
    resume: bool = False,
    init: str | None = None,
    device: str | None = None,
    workers: int = 0,
    checkpoint_every: int = 1000,
    validate_every: int | None = None,
    on_step: OnStep | None = None,
) -> TrainSummary:
    """Train a preset on a workspace's dataset, in one process.

    ``steps`` replaces the preset's number. ``resume`` goes on from the run's latest checkpoint, if it has one; without
    it a run that has checkpoints is refused. ``init`` is a file of published FoundHand weights, of an ImageNet DiT, or
    of one of our checkpoints. ``device`` is CUDA's where there is one. ``workers`` decode beside the training process.

    Raises ``UsageError`` for a dataset without usable pairs and a run that exists, ``WeightsError`` for weights that do
    not fit, ``RunError`` where the loss stops being a number.
    """
    total = steps or preset.optimisation.steps
    run_url = storage.describe(run_folder(run))
    checkpoint_url = latest_checkpoint(run_url)
    if checkpoint_url and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    dataset = PairDataset(
        storage,
        image_size=preset.image_size,
        split=training_split(storage),
        pairs=preset.pairs,
        augmentation=preset.augmentation,
        seed=preset.optimisation.seed,
    )
    validation_batches = _validation_batches(storage, preset)

    trainer = Trainer(preset, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if checkpoint_url:
        trainer.load(checkpoint_url)
    elif init is not None:
        trainer.start_from(init)
    first_step = trainer.step
    storage.write_bytes(f"{run_folder(run)}/settings.json", preset.model_dump_json(indent=2).encode())

    following: ConditionFollowing | None = None
    losses: deque[float] = deque(maxlen=LOGGED_EVERY_STEPS)
    clock = _Stopwatch(preset.optimisation.batch_size)
    with RunHistory(storage, run, first_step) as history:
        for batch in _loader(dataset, preset.optimisation.batch_size, first_step, total, workers):
            losses.append(trainer.training_step(batch))
            clock.count_step()
            step = trainer.step
            if on_step:
                on_step(step, total, losses[-1], clock.samples_per_s)
            if step % LOGGED_EVERY_STEPS == 0 or step == total:
                history.add(step, {"loss": fmean(losses), "samples_per_s": clock.samples_per_s})
            with clock.paused():
                if validation_batches and (step == total or (validate_every and step % validate_every == 0)):
                    following = trainer.validate(validation_batches)
                    history.add(
                        step,
                        {"validation_loss": following.true_loss, "permuted_loss": following.permuted_loss},
                    )
                if step == total or step % checkpoint_every == 0:
                    history.write()
                    checkpoint_url = trainer.save(run_url)
    assert checkpoint_url is not None  # the last step saves one, and a run without steps left has been resumed
    return TrainSummary(
        run_url=run_url,
        checkpoint_url=checkpoint_url,
        steps=trainer.step,
        loss=fmean(losses) if losses else None,
        samples_per_s=clock.samples_per_s if losses else None,
        validation=following,
    )


def training_split(storage: Storage) -> Split:
    """Return the split to train on: ``train``, or the largest one where a dataset has no such (a test set alone)."""
    samples: Counter[Split] = Counter()
    for splits in read_manifest(storage).sources.values():
        for split, counts in splits.items():
            samples[split] += counts.samples
    return "train" if samples["train"] or not samples else samples.most_common(1)[0][0]


class Trainer:
    """The network under training and all that changes with it, from step to step."""

    def __init__(self, preset: Preset, device: str) -> None:
        settings = preset.optimisation
        self.preset = preset
        self.device = torch.device(device)
        self.step = 0
        self.diffusion = Diffusion(preset.diffusion).to(self.device)
        self.autoencoder: Autoencoder = load_autoencoder(preset.autoencoder, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = DiT(**preset.model.model_dump()).to(self.device)
        average = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self.model, multi_avg_fn=average)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_share(step, settings)
        )
        # On a CPU, and so the same whatever accelerator computes.
        self._draws = torch.Generator().manual_seed(settings.seed)
        self._precision = getattr(torch, settings.precision)
        self._autocasts = self.device.type == "cuda" and self._precision != torch.float32
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self._autocasts and self._precision == torch.float16
        )

    @property
    def averaged_model(self) -> nn.Module:
        """The network with averaged weights, which samples are drawn from."""
        module: nn.Module = self._average.module
        return module

    def training_step(self, batch: FramePair) -> float:
        """Take one optimiser step and return the batch's loss. Raises ``RunError`` where it is not a finite number."""
        count = len(batch.task)
        timesteps = spread_timesteps(count, self.diffusion.steps, self._draws)
        losses = self.losses(self.model, batch, timesteps, self._draws, drops=True)
        loss = losses.mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(
                f"the loss is {value} at step {self.step + 1}",
                "lower the learning rate, or use precision bfloat16; --resume goes on from the last checkpoint",
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.preset.optimisation.max_gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._average.update_parameters(self.model)
        self.step += 1
        return value

    def losses(
        self, model: nn.Module, batch: FramePair, timesteps: Tensor, draws: torch.Generator, drops: bool = False
    ) -> Tensor:
        """Return each pair's loss (N,) at its timestep, with noise (and dropped conditions) from ``draws``."""
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
        weight = F.interpolate(batch.target_weight.float() / 255, latent.shape[-2:], mode="area")
        return self.diffusion.training_loss(output, latent, noise, timesteps, weight).total

    def validate(self, batches: list[FramePair]) -> ConditionFollowing:
        """Measure, with the averaged weights, how much the loss owes to the target's keypoints."""

        def losses(batch: FramePair, timesteps: Tensor, draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                return self.losses(self.averaged_model, batch, timesteps, draws)

        return condition_following(losses, batches, self.diffusion.steps)

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

    def save(self, run_url: str) -> str:
        """Save a checkpoint of the run and return its URL."""
        return save_checkpoint(
            run_url,
            self.step,
            self.model,
            self.averaged_model,
            self._optimizer,
            self.preset.model_dump(mode="json"),
            schedule=self._schedule,
            generators={"draws": self._draws},
            data_state={"scaler": self._scaler.state_dict()},
        )

    def load(self, checkpoint_url: str) -> None:
        """Go on from a checkpoint. The position in the data is the step times the batch size."""
        resumed = load_checkpoint(
            checkpoint_url,
            self.model,
            self.averaged_model,
            self._optimizer,
            schedule=self._schedule,
            generators={"draws": self._draws},
        )
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(resumed.data_state["scaler"])
        self.step = resumed.step
        self._average.n_averaged.fill_(resumed.step)  # else the next update would copy the weights instead


class RunHistory:
    """A run's curves: ``metrics.jsonl`` and, in local workspaces, TensorBoard's files.

    A context manager: what was added is written when it closes, and every few seconds before.
    """

    def __init__(self, storage: Storage, run: str, first_step: int) -> None:
        """Keep the lines of an earlier call of the run up to ``first_step``."""
        self._storage = storage
        self._name = f"{run_folder(run)}/metrics.jsonl"
        self._lines: list[str] = []
        if first_step:
            earlier = storage.read_bytes(self._name).decode().splitlines() if storage.exists(self._name) else []
            self._lines = [line for line in earlier if json.loads(line)["step"] <= first_step]
        self._written_at = time.monotonic()
        self._tensorboard: SummaryWriter | None = None
        if storage.is_local:
            folder = storage.describe(f"{run_folder(run)}/tensorboard").removeprefix("file://")
            self._tensorboard = SummaryWriter(folder, purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a line of scalars."""
        self._lines.append(json.dumps({"step": step, **scalars}))
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, step)
        if time.monotonic() - self._written_at > METRICS_WRITTEN_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write all lines. The whole file at once: object stores cannot append."""
        self._storage.write_bytes(self._name, "".join(f"{line}\n" for line in self._lines).encode())
        self._written_at = time.monotonic()


class _Stopwatch:
    """Pairs a second since its start, without pauses."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._began = time.perf_counter()
        self._steps = 0

    def count_step(self) -> None:
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    @property
    def samples_per_s(self) -> float:
        return self._steps * self._batch_size / max(time.perf_counter() - self._began, 1e-9)


def learning_rate_share(step: int, settings: OptimisationConfig) -> float:
    """Return the share of the learning rate that a step takes: a linear warm-up, then the preset's decay."""
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.decay == "none":
        return 1.0
    done = min(1.0, (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps))
    return FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2


def spread_timesteps(count: int, steps: int, draws: torch.Generator) -> Tensor:
    """Draw timesteps (count,): each one uniform over 0 .. ``steps`` - 1, together spread evenly.

    A batch that covers all noise levels has a steadier loss than one of independent draws (Kingma et al. 2021,
    Variational Diffusion Models, appendix I.1).
    """
    offsets = (torch.arange(count) + torch.rand((), generator=draws)) / count
    return (offsets * steps).long()[torch.randperm(count, generator=draws)]


def _loader(
    dataset: PairDataset, batch_size: int, first_step: int, last_step: int, workers: int
) -> DataLoader[FramePair]:
    """Return the batches of the steps after ``first_step``: step n trains on positions (n - 1) B to n B - 1."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=PositionSampler(first_step * batch_size, last_step * batch_size),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )


def _validation_batches(storage: Storage, preset: Preset) -> list[FramePair]:
    """Return the same pairs of the held-out split every time, without augmentation; none where it has too few."""
    if not list_shards(storage, splits=["val"]):
        return []
    dataset = PairDataset(storage, image_size=preset.image_size, split="val", pairs=preset.pairs)
    size = min(preset.optimisation.batch_size, len(dataset))
    if size < 2:
        return []
    count = max(min(VALIDATION_PAIRS, len(dataset)) // size, 1)
    return list(_loader(dataset, size, 0, count, workers=0))
