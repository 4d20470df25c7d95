"""A training run from beginning to end: pairs in, checkpoints and curves out.

A run is the folder ``W/runs/<run>/``:

    checkpoints/     see ``handdata.trainer.checkpoints``
    settings.json    the resolved settings (also embedded in every checkpoint)
    metrics.jsonl    one JSON object a line: {"step", "loss", "samples_per_s", "epochs/<source>": how often its pairs
                     have been shown}, or, from a validation, {"step", "validation_loss", "permuted_loss"}
    samples/         grids of samples of the validation pairs
    tensorboard/     the same for TensorBoard (local workspaces)

All that is random about a pair (its augmentation, noise, timestep, dropped conditions) follows from the seed and the
pair's position in the endless order. So it does not matter for the result into how many processes and micro batches a
batch is cut, and a run that is resumed has nothing to replay.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import torch.distributed

from handdata.pictures.png import encode_png
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import run_folder, run_settings_file
from handdata.schemas import UsageError
from handdata.trainer.autoencoders import load_autoencoder
from handdata.trainer.checkpoints import latest_checkpoint
from handdata.trainer.data.latents import LatentStore, open_latents
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.data.splits import training_split
from handdata.trainer.data.validation import pairs_to_show, validation_batches
from handdata.trainer.following import ConditionFollowing
from handdata.trainer.history import LossWatch, RunHistory, Stopwatch
from handdata.trainer.presets import Preset
from handdata.trainer.schedule import MicroBatches, Process, micro_batches
from handdata.trainer.trainer import Trainer

LOGGED_EVERY_STEPS: Final = 10
DECODING_THREADS: Final = 8
"""Threads that decode in each process that trains on a GPU. On the CPU they would only take cores from training."""

OnStep = Callable[[int, int, float, float], None]
"""Called after each step with (steps done, steps in all, loss, samples a second)."""


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training run did.

    Args:
        run_url: Folder of the run.
        checkpoint_url: The run's last checkpoint.
        steps: Steps of the run in all.
        loss: Mean over the last logged steps; None where this call had nothing left to do.
        samples_per_s: Pairs a second of this call, without the time of validations.
        validation: Losses of the averaged weights on the validation split; None where the dataset has none.

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

    Args:
        preset: Settings of the run.
        storage: Workspace of the dataset and of the run.
        run: Name of the run.
        steps: Steps of the run in all; None takes the preset's number.
        resume: Go on from the run's latest checkpoint, if it has one; without it a run with checkpoints is an error.
        init: File of published FoundHand weights, of an ImageNet DiT, or of one of our checkpoints to start from.
        device: Device to train on; None takes CUDA's where there is one.
        process: One of several processes, which have joined a ``torch.distributed`` group before.
        on_step: Called after each step.

    Raises:
        UsageError: The dataset has no usable pairs, or the run exists.
        WeightsError: The weights do not fit the network.
        RunError: The loss stops being a number or grows without end.

    """
    settings, monitoring = preset.optimisation, preset.monitoring
    total = steps or settings.steps
    run_url = storage.url(run_folder(run))
    checkpoint_url = latest_checkpoint(run_url)
    if checkpoint_url and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    annotated = Dataset(storage, preset.data.dataset)
    latents = _latents(annotated, preset)
    dataset = open_pairs(
        storage,
        preset,
        training_split(annotated),
        augmentation=preset.augmentation,
        latents=latents,
        seed=settings.seed,
    )
    leads = process.rank == 0
    measured_on = validation_batches(storage, preset, latents) if leads else []
    shown = pairs_to_show(storage, preset) if leads else ([], [])

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
        watch.add(trainer.step, losses[-1], checkpoint_url)
        clock.count_step()

    if not leads:
        for _ in range(first_step, total):
            take_step()
        return TrainSummary(run_url, run_url, trainer.step, None, None, None)

    storage.write_bytes(run_settings_file(run), preset.model_dump_json(indent=2).encode())
    with RunHistory(storage, run, first_step, preset.model_dump(mode="json")) as history:
        for step in range(first_step + 1, total + 1):
            take_step()
            if on_step:
                on_step(step, total, losses[-1], clock.samples_per_s)
            if step % LOGGED_EVERY_STEPS == 0 or step == total:
                epochs = dataset.effective_epochs(step * settings.batch_size)
                scalars = {"loss": fmean(losses), "samples_per_s": clock.samples_per_s}
                history.add(step, scalars | {f"epochs/{source}": times for source, times in epochs.items()})
            validated = None
            with clock.paused():
                if measured_on and (step == total or step % monitoring.validate_every == 0):
                    validated = following = trainer.validate(measured_on)
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


def _latents(dataset: Dataset, preset: Preset) -> LatentStore | None:
    """Return the stored latents to train on, where the settings ask for them."""
    if not preset.data.latents:
        return None
    return open_latents(dataset, load_autoencoder(preset.autoencoder), preset.autoencoder, preset.image_size)
