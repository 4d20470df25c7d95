"""A training run from beginning to end: pairs in, checkpoints and curves out.

A run is the folder ``W/runs/<run>/``:

    checkpoints/     see ``handdata.trainer.checkpoints``
    settings.json    the resolved settings (also embedded in every checkpoint)
    metrics.jsonl    one JSON object a line: {"step", "loss", "samples_per_s", "epochs/<source>": how often its pairs
                     have been shown}, and, once there are any, {"unreadable": pairs that could not be read, "skipped":
                     steps whose gradient was not finite}; or, from a validation, {"step", "validation_loss",
                     "permuted_loss"}
    samples/         grids of samples of the validation pairs
    tensorboard/     the same for TensorBoard (local workspaces)

All that is random about a pair (its augmentation, noise, timestep, dropped conditions) follows from the seed and the
pair's position in the endless order. So it does not matter for the result into how many processes and micro batches a
batch is cut, and a run that is resumed has nothing to replay.

Where several processes train, an error in one of them is raised by ``train`` there. The others wait for it in vain, and
are ended by whoever started them (``handdata.jobs.train``).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import torch.distributed

from handdata.pictures.png import encode_png
from handdata.pipeline.shards import describe_licences, read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import run_folder, run_settings_file
from handdata.schemas import DamagedWeightsError, NoPairsError, RunError, UsageError, license_id_of
from handdata.trainer.autoencoders import load_autoencoder
from handdata.trainer.checkpoints import complete_checkpoints, discard_checkpoint, record_validation, validated_loss
from handdata.trainer.data.batch import FramePair
from handdata.trainer.data.latents import LatentStore, open_latents
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.data.splits import training_split
from handdata.trainer.data.validation import pairs_to_show, validation_batches
from handdata.trainer.devices import choose_device
from handdata.trainer.following import ConditionFollowing
from handdata.trainer.history import LossWatch, ReadingWatch, RunHistory, Stopwatch
from handdata.trainer.memory import advice, memory_errors
from handdata.trainer.presets import Preset
from handdata.trainer.resuming import other_than_before, require_same_history, run_settings
from handdata.trainer.schedule import MicroBatches, Process, micro_batches
from handdata.trainer.trainer import Trainer

LOGGED_EVERY_STEPS: Final = 10
DECODING_THREADS: Final = 8
"""Threads that decode in each process that trains on a GPU. On the CPU they would only take cores from training."""
NOTED_UNREADABLE: Final = 10
"""Largest number of pairs that could not be read of which a run speaks one by one."""

OnStep = Callable[[int, int, float, float], None]
"""Called after each step with (steps done, steps in all, loss, samples a second)."""
OnNote = Callable[[str], None]
"""Called with a line that whoever started the run should read."""


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
        unreadable: Pairs that could not be read, of the run in all; others took their places.
        skipped: Steps of the run whose gradient was not finite; they changed nothing.

    """

    run_url: str
    checkpoint_url: str
    steps: int
    loss: float | None
    samples_per_s: float | None
    validation: ConditionFollowing | None
    unreadable: int = 0
    skipped: int = 0


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
    on_note: OnNote | None = None,
) -> TrainSummary:
    """Train a preset on a workspace's dataset, in this process or as one of several.

    Args:
        preset: Settings of the run.
        storage: Workspace of the dataset and of the run.
        run: Name of the run.
        steps: Steps of the run in all, which the decay of the learning rate follows; None takes the preset's number.
        resume: Go on from the run's latest sound checkpoint, if it has one; without it a run with checkpoints is an
            error.
        init: File of published FoundHand weights, of an ImageNet DiT, or of one of our checkpoints to start from.
        device: Device to train on; None takes CUDA's where there is one.
        process: One of several processes, which have joined a ``torch.distributed`` group before.
        on_step: Called after each step.
        on_note: Called with what the user should know of.

    Raises:
        UsageError: The dataset has no usable pairs, or no latents of a split; or the run exists, or it
            cannot go on with these settings, or with the licences that the dataset has now.
        WeightsError: The weights do not fit the network, or no checkpoint of the run is sound.
        RunError: Gradients stop being numbers, the loss grows without end, or too many images cannot be decoded.

    """
    note = on_note if on_note and process.rank == 0 else _quiet
    preset = preset.trained_for(steps, init)
    settings, monitoring = preset.optimisation, preset.monitoring
    total = settings.steps
    run_url = storage.url(run_folder(run))
    checkpoints = complete_checkpoints(run_url, note)
    if checkpoints and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    if settings.precision == "float16" and choose_device(device).type == "cpu":
        note("the CPU computes in float32: optimisation.precision float16 is for GPUs")
    if checkpoints and (of_run := run_settings(storage, run)):
        require_same_history(run, of_run, preset)
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
    measured_on = _held_out(storage, preset, latents, note) if leads else []
    shown = pairs_to_show(storage, preset) if leads else ([], [])

    trainer = Trainer(preset, str(choose_device(device)), process)
    checkpoint_url, watched = _resumed(trainer, checkpoints, process, note)
    if checkpoint_url is None and preset.init is not None:
        trainer.start_from(preset.init, note)
    if nowhere := [name for name in preset.data.licences if license_id_of(name) not in dataset.licences]:
        note(f"no usable row is under {', '.join(nowhere)}")
        note(f"the dataset's licences are {describe_licences(read_manifest(annotated))}")
    seen = {"licences": dataset.licences, "targets": dataset.targets}
    trainer.licences.update(dataset.licences)
    _require_same_licences(run, seen, watched)
    if watched.get("targets", dataset.targets) != dataset.targets:
        note(
            f"the dataset has changed since step {trainer.step}: targets were {_counted(watched['targets'])}, and are "
            f"{_counted(dataset.targets)}; the order of pairs is another one from here on"
        )
    if checkpoint_url and "licences" not in watched:  # an earlier version wrote it, or it is a fork's first
        note(f"from step {trainer.step} on with rows under {', '.join(dataset.licences)}")
    if checkpoint_url and (others := other_than_before(checkpoint_url, preset)):
        note(f"from step {trainer.step} on with {others}")
    first_step = trainer.step
    if first_step >= total:
        note(f"nothing is left to do: the run {run} has taken {first_step:,} steps, and {total:,} are wanted")
    following: ConditionFollowing | None = None
    losses: deque[float] = deque(maxlen=LOGGED_EVERY_STEPS)
    watch = LossWatch(monitoring.divergence, watched.get("losses"))
    reading = ReadingWatch(watched.get("unreadable", 0))
    clock = Stopwatch(settings.batch_size)
    threads = DECODING_THREADS if trainer.device.type == "cuda" else 0
    pinned = trainer.device.type == "cuda"
    micro_batches(settings, process)  # a batch that cannot be shared ends here
    share = settings.batch_size // process.count
    if settings.micro_batch_size is None and first_step < total and finds_micro_batch(trainer.device):
        with memory_errors("before the first step", advice(share, 1)):
            found = trainer.find_micro_batch(dataset.batch([first_step * settings.batch_size]))
        note(f"{found} of {share} pairs go through the network together: what fits into the GPU's memory")
    settings = settings.model_copy(update={"micro_batch_size": trainer.micro_batch})
    batches = pair_batches(dataset, MicroBatches(settings, process, first_step, total), threads, pinned)

    def out_of_memory(doing: str) -> AbstractContextManager[None]:
        micro = trainer.micro_batch or share
        return memory_errors(f"{doing} with micro batches of {micro} pairs", advice(share, micro))

    def take_step() -> None:
        with out_of_memory(f"in step {trainer.step + 1}"):
            loss = trainer.training_step(next(batches) for _ in range(micro_batches(settings, process)))
        shown_pairs = trainer.step * settings.batch_size
        unreadable = _of_all(dataset.take_unreadable(shown_pairs), process, trainer.device)
        for message in unreadable[: max(NOTED_UNREADABLE - reading.unreadable, 0)]:
            note(f"{message}; another pair took its place")
        reading.add(unreadable, shown_pairs)
        watch.add(trainer.step, loss, checkpoint_url, trainer.skipped_in_a_row)
        if not trainer.skipped_in_a_row:
            losses.append(loss)
        clock.count_step()

    if not leads:
        for _ in range(first_step, total):
            take_step()
        return TrainSummary(run_url, run_url, trainer.step, None, None, None)

    if first_step < total:  # what a call without anything left to do was given is not what the run goes on with
        storage.write_bytes(run_settings_file(run), preset.model_dump_json(indent=2).encode())
    saves = validates = False  # as soon as a step counts
    with RunHistory(storage, run, first_step, preset.model_dump(mode="json")) as history:

        def validate(step: int) -> ConditionFollowing:
            with out_of_memory(f"validating step {step}"):
                found = trainer.validate(measured_on)
            history.add(step, {"validation_loss": found.true_loss, "permuted_loss": found.permuted_loss})
            return found

        def is_validated(step: int) -> bool:
            return bool(measured_on) and (step == total or step % monitoring.validate_every == 0)

        if checkpoint_url and is_validated(first_step) and validated_loss(checkpoint_url) is None:
            following = validate(first_step)  # an earlier call has ended between the two
            record_validation(checkpoint_url, following.true_loss, monitoring.keep_last)
        for step in range(first_step + 1, total + 1):
            take_step()
            if on_step:
                on_step(step, total, losses[-1] if losses else math.nan, clock.samples_per_s)
            if step % LOGGED_EVERY_STEPS == 0 or step == total:
                epochs = dataset.effective_epochs(step * settings.batch_size)
                scalars = {"loss": fmean(losses) if losses else math.nan, "samples_per_s": clock.samples_per_s}
                scalars |= {f"epochs/{source}": times for source, times in epochs.items()}
                counts = {"unreadable": reading.unreadable, "skipped": trainer.skipped}
                history.add(step, scalars | {name: count for name, count in counts.items() if count})
            with clock.paused():
                saves = saves or step == total or step % monitoring.checkpoint_every == 0
                validates = validates or is_validated(step)
                # While steps are skipped, the weights may be what is wrong: the checkpoints before them stay.
                if step == total or not trainer.skipped_in_a_row:
                    if saves:
                        history.write()
                        state = {"losses": watch.state(), "unreadable": reading.unreadable, **seen}
                        checkpoint_url = trainer.save(run_url, state)
                    if validates:
                        following = validate(step)
                        if saves and checkpoint_url:
                            record_validation(checkpoint_url, following.true_loss, monitoring.keep_last)
                    saves = validates = False
                if shown[0] and (step == total or step % monitoring.pictures_every == 0):
                    try:
                        grid = trainer.draw(*shown)
                    except RunError as error:  # pictures are no reason to end a run
                        note(f"no samples are drawn at step {step}: {error.message}")
                    else:
                        history.add_picture(step, encode_png(grid), grid)
    assert checkpoint_url is not None  # the last step saves one, and a run without steps left has been resumed
    return TrainSummary(
        run_url=run_url,
        checkpoint_url=checkpoint_url,
        steps=trainer.step,
        loss=fmean(losses) if losses else None,
        samples_per_s=clock.samples_per_s if losses else None,
        validation=following,
        unreadable=reading.unreadable,
        skipped=trainer.skipped,
    )


def _require_same_licences(run: str, seen: Mapping[str, Any], watched: Mapping[str, Any]) -> None:
    """Check that a run that goes on meets no rows under licences that it was not trained under before.

    Raises:
        UsageError: The dataset has such rows now: the run's settings name no licences, or a source came under another.

    """
    before_ids = {license_id_of(name) for name in watched.get("licences", seen["licences"])}  # names, in older runs
    further = [name for name in seen["licences"] if name not in before_ids]
    if further:
        before, now = ", ".join(watched["licences"]), ", ".join(further)
        raise UsageError(
            f"the run {run} was trained on rows under {before}; the dataset now has others, under {now}",
            "--fork starts a new history with them; --fork --licence A,B leaves them out",
        )


def finds_micro_batch(device: torch.device) -> bool:
    """Return whether a device has memory of its own, into which not every batch fits."""
    return device.type == "cuda"


def _counted(targets: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {source}" for source, count in targets.items())


def _quiet(line: str) -> None:
    """Say nothing."""


def _held_out(storage: Storage, preset: Preset, latents: LatentStore | None, note: OnNote) -> list[FramePair]:
    """Return the batches that the run is measured on; none, with a note, where there are no such pairs."""
    try:
        return validation_batches(
            storage, preset, latents, lambda message: note(f"{message}; another pair of the validation took its place")
        )
    except NoPairsError as error:
        note(f"the run is not validated: {error.message}")
        return []


def _resumed(
    trainer: Trainer, checkpoints: Sequence[str], process: Process, note: OnNote
) -> tuple[str | None, dict[str, Any]]:
    """Go on from the first sound one of some checkpoints, in all processes from the same one.

    Returns:
        The checkpoint, None where there are none to choose from, and what it has watched.

    Raises:
        DamagedWeightsError: None of them is sound.

    """
    if not checkpoints:
        return None, {}
    chosen: list[Any] = [None]
    watched: dict[str, Any] = {}
    if process.rank == 0:
        errors: list[DamagedWeightsError] = []
        for url in checkpoints:
            try:
                watched = trainer.load(url)
            except DamagedWeightsError as error:
                errors.append(error)
                continue
            chosen = [url]
            break
        else:
            raise errors[0]
        for url, found in zip(checkpoints, errors, strict=False):
            note(f"passed over the checkpoint {url}: {found.message}")
            discard_checkpoint(url)
    if process.count > 1:
        torch.distributed.broadcast_object_list(chosen, device=trainer.device)
    if process.rank:
        watched = trainer.load(chosen[0])
    return chosen[0], watched


def _of_all(messages: list[str], process: Process, device: torch.device) -> list[str]:
    """Return the messages of all processes, in the order of their shares of a batch."""
    if process.count == 1:
        return messages
    count = torch.tensor([len(messages)], device=device)
    torch.distributed.all_reduce(count)
    if not int(count):
        return []
    gathered: list[Any] = [None] * process.count
    torch.distributed.all_gather_object(gathered, messages)
    return [message for part in gathered for message in part]


def _latents(dataset: Dataset, preset: Preset) -> LatentStore | None:
    """Return the stored latents to train on, where the settings ask for them."""
    if not preset.data.latents:
        return None
    return open_latents(dataset, load_autoencoder(preset.autoencoder), preset.autoencoder, preset.image_size)
