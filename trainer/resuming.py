"""What a run goes on with: its own settings, those that may change, and forks, which record what they come from."""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from pydantic import ValidationError

from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import checkpoint_in_run, list_checkpoints, run_folder, run_settings_file
from handdata.schemas import DamagedWeightsError, StorageError, UsageError, WeightsError, license_id_of
from handdata.trainer.checkpoints import (
    EMA_FILE,
    MARKER_FILE,
    MODEL_FILE,
    STATE_FILE,
    complete_checkpoints,
    latest_checkpoint,
    read_network,
    read_state,
    write_files,
)
from handdata.trainer.presets import Fork, Preset, load_preset, merged, read_changes
from handdata.trainer.weights import torch_bytes

MAY_CHANGE: Final = (
    "optimisation.steps",
    "optimisation.learning_rate",
    "optimisation.micro_batch_size",
    "optimisation.activation_checkpointing",
    "optimisation.compile",
    "monitoring",
    "sampling",
)
"""Settings, and sections of settings, that may be others when a run goes on. All else would make it another run."""

NEVER_CHANGE: Final = ("model", "alignment", "optimisation.optimiser", "init", "forked_from")
"""Settings that a fork cannot change either: the weights, or the optimiser's state, would not fit, or were not started
from."""


def run_settings(storage: Storage, run: str) -> Preset | None:
    """Return the settings that a run goes on with; None where there is no run.

    They are those of its latest checkpoint, but for what may change: that is as it was last typed, also where that call
    came to no checkpoint.

    Raises:
        StorageError: The run's settings are damaged.
        WeightsError: The run's checkpoints are damaged.

    """
    folder = Storage(storage.url(run_folder(run)))
    if latest_checkpoint(folder.url()) is None:
        name = run_settings_file(run)
        return storage.read_document(name, Preset) if storage.exists(name) else None
    errors: list[WeightsError] = []
    for name in list_checkpoints(folder)[::-1]:
        if folder.exists(f"{name}/{MARKER_FILE}"):
            try:
                return _as_last_typed(storage, run, checkpoint_settings(folder.url(name)))
            except WeightsError as error:  # an earlier one says the same
                errors.append(error)
    raise errors[0]


def _as_last_typed(storage: Storage, run: str, of_checkpoint: Preset) -> Preset:
    """Return the settings of a run's latest call where they differ from a checkpoint's in what may change alone."""
    name = run_settings_file(run)
    if not storage.exists(name):
        return of_checkpoint
    try:
        latest = storage.read_document(name, Preset)
    except StorageError:  # the checkpoint has all that a run needs
        return of_checkpoint
    return latest if _may_change(of_checkpoint, latest) else of_checkpoint


def checkpoint_settings(checkpoint_url: str) -> Preset:
    """Return the settings that a checkpoint was trained with, read from the head of its file of weights alone.

    Raises:
        DamagedWeightsError: The file is damaged.
        WeightsError: It is of a version whose settings this one does not know.

    """
    checkpoint = Storage(checkpoint_url)
    where = checkpoint.describe(EMA_FILE)
    try:
        (length,) = checkpoint.read_ranges([(EMA_FILE, 0, 8)])
        (head,) = checkpoint.read_ranges([(EMA_FILE, 8, int.from_bytes(length, "little"))])
        return Preset.model_validate_json(json.loads(head)["__metadata__"]["config"])
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(
            f"{where} has settings that this version does not know: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            "use the version of handdata that wrote it",
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError):
        raise DamagedWeightsError(
            f"{where} is damaged", "remove the checkpoint's folder to go on from an earlier one"
        ) from None


def typed_settings(preset: str | None, changes: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command line says of a run's settings, nested like ``Preset``.

    Args:
        preset: Name of a preset, which says what it sets but for what may change; None says nothing.
        changes: TOML file of settings.
        flags: Settings that were typed as flags, by their names; None for those that were not.

    Raises:
        UsageError: There is no such preset, or the file does not parse.

    """
    named = {} if preset is None else without(load_preset(preset).model_dump(exclude_unset=True), MAY_CHANGE)
    typed = merged(named, {} if changes is None else read_changes(changes))
    for name, value in flags.items():
        if value is not None:
            nested = value
            for part in reversed(name.split(".")):
                nested = {part: nested}
            typed = merged(typed, nested)
    return typed


def resumed_settings(run: str, of_run: Preset, typed: Mapping[str, Any]) -> Preset:
    """Return a run's settings with those that were typed beside ``--resume``.

    Args:
        run: Name of the run.
        of_run: Settings of the run.
        typed: Settings that were typed, nested like ``Preset``; others stay those of the run.

    Raises:
        UsageError: A setting has a wrong value.

    """
    try:
        return Preset.model_validate(merged(of_run.model_dump(), typed))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"setting {'.'.join(map(str, first['loc']))} does not go with those of the run {run}: {first['msg']}"
        ) from None


def require_same_history(run: str, of_run: Preset, wanted: Preset) -> None:
    """Check that a run can go on with some settings: they differ in nothing but ``MAY_CHANGE``.

    Raises:
        UsageError: They do.

    """
    refused = [change for change in changes(of_run, wanted) if not _is_in(change, MAY_CHANGE)]
    if refused:
        raise UsageError(
            f"the run {run} cannot go on with other settings: {_told(of_run, wanted, refused)}",
            f"--resume without them takes the run's own; {', '.join(MAY_CHANGE)} may change; --fork starts a new "
            "history with them, which records both",
        )


def other_than_before(checkpoint_url: str, wanted: Preset) -> str:
    """Return which settings differ from those of a checkpoint that a run goes on from, and how; nothing if none do."""
    before = checkpoint_settings(checkpoint_url)
    return ", ".join(
        f"{path} {_value(wanted, path)} instead of {_value(before, path)}" for path in changes(before, wanted)
    )


def fork(
    storage: Storage, run: str, wanted: Preset, on_note: Callable[[str], None] | None = None
) -> tuple[str, Preset]:
    """Begin a run with some settings at another run's latest sound checkpoint, and return its name and settings.

    The settings of both are recorded in the new run, with the other one's name and step, and from there in all of its
    checkpoints. The other run stays as it is. A fork with these settings that was begun before is gone on with.

    Args:
        storage: Workspace of the runs.
        run: Name of the run.
        wanted: Settings of the fork.
        on_note: Called with a line on each checkpoint that is passed over.

    Raises:
        UsageError: The run has no checkpoint, or its weights do not go with the settings.
        DamagedWeightsError: No checkpoint of the run is sound.

    """
    errors: list[DamagedWeightsError] = []
    for checkpoint_url in complete_checkpoints(storage.url(run_folder(run)), on_note):
        try:
            return _forked_at(storage, run, checkpoint_url, wanted)
        except DamagedWeightsError as error:
            errors.append(error)
            if on_note:
                on_note(f"passed over the checkpoint {checkpoint_url}: {error.message}")
    if errors:
        raise errors[0]
    raise UsageError(f"the run {run} has no checkpoint to fork", "leave --fork out")


def _forked_at(storage: Storage, run: str, checkpoint_url: str, wanted: Preset) -> tuple[str, Preset]:
    of_run = checkpoint_settings(checkpoint_url)
    fixed = [change for change in changes(of_run, wanted) if _is_in(change, NEVER_CHANGE)]
    if fixed:
        raise UsageError(
            f"no fork of the run {run} can have other settings: {_told(of_run, wanted, fixed)}",
            f"start a new run with --init {checkpoint_url}",
        )
    step = int(checkpoint_url.rsplit("-", 1)[1])
    record = Fork(run=run, step=step, settings=of_run.model_dump(mode="json", exclude={"forked_from"}))
    forked = wanted.model_copy(update={"forked_from": (*of_run.forked_from, record)})
    for number in count(1):
        name = f"{run}-fork-{step:08d}" + (f"-{number}" if number > 1 else "")
        folder = storage.url(run_folder(name))
        if latest_checkpoint(folder) is None:
            _copy(Storage(checkpoint_url), Storage(f"{folder}/{checkpoint_in_run(step)}"), forked)
            break
        there = run_settings(storage, name)
        if there is not None and _may_change(there, forked):
            break
    return name, forked


def changes(before: Preset, after: Preset) -> list[str]:
    """Return the names of the settings that differ, in the order of the settings."""
    return list(_changes(before.model_dump(), after.model_dump(), ""))


def without(settings: Mapping[str, Any], names: tuple[str, ...], section: str = "") -> dict[str, Any]:
    """Return nested settings but for some settings or sections, which are named in full."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{section}{name}"
        if path not in names:
            kept[name] = without(value, names, f"{path}.") if isinstance(value, dict) else value
    return kept


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], section: str) -> Iterator[str]:
    for name in dict.fromkeys((*before, *after)):
        one, other = before.get(name), after.get(name)
        path = f"{section}{name}"
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _changes(one, other, f"{path}.")
        elif path == "data.licences" and one is not None and other is not None:
            if set(map(license_id_of, one)) != set(map(license_id_of, other)):
                yield path
        elif one != other:
            yield path


def _may_change(before: Preset, after: Preset) -> bool:
    return all(_is_in(change, MAY_CHANGE) for change in changes(before, after))


def _is_in(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _told(before: Preset, after: Preset, paths: list[str]) -> str:
    return ", ".join(f"{path} is {_value(before, path)} there, not {_value(after, path)}" for path in paths)


def _value(preset: Preset, path: str) -> str:
    value: Any = preset.model_dump(mode="json")
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return json.dumps(value)


def _copy(source: Storage, target: Storage, settings: Preset) -> None:
    """Copy a checkpoint with other settings inside, its marker last; what its own run watched stays there."""
    config = settings.model_dump_json()
    state = read_state(source)
    state["config"] = config
    state["data"].pop("watched", None)

    def contents() -> Iterator[tuple[str, bytes]]:
        for name in (MODEL_FILE, EMA_FILE):
            tensors, head = read_network(source, name)
            yield name, safetensors.torch.save(tensors, head | {"config": config})
        yield STATE_FILE, torch_bytes(state)

    target.remove(MARKER_FILE)
    write_files(target, state["step"], contents())
