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

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import torch.distributed

from handdata.pictures.png import encode_png
from handdata.pipeline.shards import list_shards, read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import run_folder
from handdata.schemas import Split, UsageError
from handdata.trainer.autoencoders import load_autoencoder
from handdata.trainer.checkpoints import latest_checkpoint
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.batch import FramePair
from handdata.trainer.data.latents import LatentStore, open_latents
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.following import ConditionFollowing
from handdata.trainer.history import LossWatch, RunHistory, Stopwatch
from handdata.trainer.presets import PairConfig, Preset
from handdata.trainer.schedule import MicroBatches, Process, micro_batches
from handdata.trainer.trainer import Trainer

LOGGED_EVERY_STEPS: Final = 10
VALIDATION_PAIRS: Final = 256
DECODING_THREADS: Final = 8
"""Of each process that trains on a GPU. On the CPU decoding ahead would only take cores from training."""

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
    run_url = storage.url(run_folder(run))
    checkpoint_url = latest_checkpoint(run_url)
    if checkpoint_url and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    dataset = PairDataset(
        storage,
        image_size=preset.image_size,
        split=training_split(Dataset(storage, preset.data.dataset)),
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


def training_split(dataset: Dataset) -> Split:
    """Return the split to train on: ``train``, or the largest one where a dataset has no such (a test set alone)."""
    samples: Counter[Split] = Counter()
    for splits in read_manifest(dataset).sources.values():
        for split, counts in splits.items():
            samples[split] += counts.samples
    return "train" if samples["train"] or not samples else samples.most_common(1)[0][0]


def _latents(storage: Storage, preset: Preset) -> LatentStore | None:
    """Return the stored latents to train on, where the settings ask for them."""
    if not preset.data.latents:
        return None
    autoencoder = load_autoencoder(preset.autoencoder)
    return open_latents(Dataset(storage, preset.data.dataset), autoencoder, preset.autoencoder, preset.image_size)


def _validation_batches(storage: Storage, preset: Preset) -> list[FramePair]:
    """Return the same pairs of the held-out split every time, without augmentation; none where it has too few."""
    if not list_shards(Dataset(storage, preset.data.dataset), splits=["val"]):
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
    if not list_shards(Dataset(storage, preset.data.dataset), splits=["val"]):
        return [], []
    moving = PairConfig(**preset.pairs.model_dump() | {"still": 0.0, "sources": {}})
    try:
        dataset = PairDataset(storage, image_size=preset.image_size, split="val", pairs=moving, data=preset.data)
    except UsageError:  # stills only, or the chosen rows are all of other splits
        return [], []
    pairs = [dataset.rows_at(position)[:2] for position in range(min(preset.monitoring.pictures, len(dataset)))]
    references = [dataset.frame(reference) for _, reference in pairs if reference is not None]
    return references, [dataset.frame(target) for target, _ in pairs]
