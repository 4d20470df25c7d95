"""Checkpoints of training runs, saved so that no crash leaves half of one; the face of published weights too.

A checkpoint is a folder ``<run>/checkpoints/step-00000500/``:

    model.safetensors    the weights as trained   } both carry the run's settings as JSON in their header,
    ema.safetensors      their moving average     } so that sampling needs nothing but the file
    state.pt             step, optimiser, learning rate schedule, random number generators, position in the data
    complete.json        names, sizes and CRC-32 of the above; written last

A folder counts only once ``complete.json`` is there and the sizes agree: a process killed at any moment, or a disk that
lost its last writes, leaves the checkpoint before it as the latest one. None is written of numbers that are not finite,
and ``--resume`` passes over one that has changed, or holds such numbers. Folders and URLs behave alike (object stores
cannot rename, which is why the marker and not a rename commits).

Nothing here unpickles foreign objects: ``torch.load`` runs with ``weights_only=True``.
"""

import json
import math
import mmap
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import checkpoint_in_run, list_checkpoints
from handdata.schemas.errors import DamagedWeightsError, UsageError, WeightsError
from handdata.trainer.model import DiT
from handdata.trainer.presets import ModelConfig, Preset, load_preset
from handdata.trainer.weights import (
    SUFFIXES,
    StoredWeights,
    at_size,
    export_foundhand,
    fitting_presets,
    import_foundhand,
    import_imagenet_dit,
    is_imagenet_dit,
    is_published,
    licences_header,
    licences_in,
    misfit,
    read_stored,
    read_weights,
    require_answer,
    require_finite,
    require_sizes,
    state_tensors,
    suffix_of,
    told,
    torch_bytes,
    without_others,
    write_foundhand,
)

__all__ = [
    "BUILTIN",
    "Resumed",
    "averaged_weights",
    "builtin_file",
    "by_our_names",
    "complete_checkpoints",
    "discard_checkpoint",
    "export_foundhand",
    "first_weights",
    "import_foundhand",
    "import_imagenet_dit",
    "latest_checkpoint",
    "load_checkpoint",
    "load_for_sampling",
    "read_network",
    "read_state",
    "read_weights",
    "record_validation",
    "save_checkpoint",
    "training_licences",
    "validated_loss",
    "write_files",
    "write_foundhand",
]

BUILTIN: Final = "builtin"
"""Name that stands for the network of the package: trained by ``make learn`` on rendered hands alone."""
PUBLISHED_LICENCE: Final = "CC-BY-NC-4.0"
"""Licence of the published FoundHand, of its data, and of the ImageNet DiT that it started from."""
UNKNOWN_LICENCE: Final = "unknown"
MODEL_FILE: Final = "model.safetensors"
EMA_FILE: Final = "ema.safetensors"
STATE_FILE: Final = "state.pt"
MARKER_FILE: Final = "complete.json"


@dataclass(frozen=True)
class Resumed:
    """What ``load_checkpoint`` gives back beside the restored objects."""

    step: int
    config: dict[str, Any]
    data_state: dict[str, Any]
    licences: tuple[str, ...]
    """Ids of the licences of the data that the weights were trained on; none where the checkpoint does not say."""


def save_checkpoint(
    run_url: str,
    step: int,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
    *,
    data_state: Mapping[str, Any] | None = None,
    licences: Sequence[str] = (),
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    keep_last: int | None = 3,
    validation_loss: float | None = None,
) -> str:
    """Save a checkpoint of a run and return its URL.

    Then earlier checkpoints are deleted, but for the last ones and the one of the lowest validation loss.

    Args:
        run_url: Path or URL of the run's folder.
        step: Optimiser steps that were taken.
        model: Plain ``DiT`` (unwrap DDP and ``torch.compile`` first).
        ema: Plain ``DiT`` of the averaged weights (unwrap ``AveragedModel``).
        optimizer: Optimiser of the model.
        config: JSON-serialisable settings, with the ``ModelConfig`` under ``"model"``.
        data_state: Further state, of plain values and tensors only.
        licences: Ids of the licences of the data that the weights were trained on.
        schedule: Learning rate schedule of the optimiser.
        generators: Random number generators, saved beside the global ones of torch, CUDA, numpy and Python.
        keep_last: Number of last checkpoints that stay; None keeps all.
        validation_loss: Loss by which the best checkpoint is known.

    Raises:
        DamagedWeightsError: The weights, their average or the optimiser's state hold numbers that are not finite.
        StorageError: The folder cannot be written.
        TypeError: ``data_state`` holds other objects.

    """
    run = Storage(run_url)
    folder = checkpoint_in_run(step)
    metadata = {"format": "pt", "config": json.dumps(dict(config)), "step": str(step)} | licences_header(licences)
    state = {
        "step": step,
        "config": metadata["config"],
        "optimizer": optimizer.state_dict(),
        "schedule": None if schedule is None else schedule.state_dict(),
        "random": _random_state(),
        "generators": {name: generator.get_state() for name, generator in (generators or {}).items()},
        "data": dict(data_state or {}),
    }
    _require_plain(state["data"], "data_state")
    weights, average = state_tensors(model), state_tensors(ema)
    tensors = (*weights.values(), *average.values(), *_moments(optimizer.state_dict()))
    require_finite(tensors, f"step {step} of {run.describe()}")
    run.remove(f"{folder}/{MARKER_FILE}")  # of a run that was resumed from an earlier step
    run.remove_unfinished(folder)

    def contents() -> Iterator[tuple[str, bytes]]:  # one after the other: they are as large as the network
        yield MODEL_FILE, safetensors.torch.save(weights, metadata)
        yield EMA_FILE, safetensors.torch.save(average, metadata)
        yield STATE_FILE, torch_bytes(state)

    write_files(Storage(run.url(folder)), step, contents(), validation_loss)
    if keep_last is not None:
        _prune(run, keep_last)
    return run.url(folder)


def write_files(
    checkpoint: Storage, step: int, contents: Iterable[tuple[str, bytes]], validation_loss: float | None = None
) -> None:
    """Write the files of a checkpoint, each after the other, and then its marker."""
    sizes, checksums = {}, {}
    for name, data in contents:
        checkpoint.write_bytes(name, data)
        sizes[name], checksums[name] = len(data), zlib.crc32(data)
    marker = {"step": step, "sizes": sizes, "crc32": checksums, "validation_loss": validation_loss}
    checkpoint.write_bytes(MARKER_FILE, json.dumps(marker).encode())


def latest_checkpoint(run_url: str) -> str | None:
    """Return the path or URL of the run's latest complete checkpoint, None where it has none.

    Raises:
        WeightsError: One was complete and is damaged, and there is no other: to begin anew would lose the run.

    """
    found = complete_checkpoints(run_url)
    return found[0] if found else None


def complete_checkpoints(run_url: str, on_note: Callable[[str], None] | None = None) -> list[str]:
    """Return the run's complete checkpoints, the latest first.

    Args:
        run_url: Path or URL of the run's folder.
        on_note: Called with a line on each checkpoint that was complete and is damaged.

    Raises:
        DamagedWeightsError: One was complete and is damaged, and there is no other: to begin anew would lose the run.

    """
    run = Storage(run_url)
    folders = list_checkpoints(run)[::-1]
    complete = [folder for folder in folders if _read_marker(run.url(folder))]
    damaged = [name for name in folders if name not in complete and run.exists(f"{name}/{MARKER_FILE}")]
    if damaged and not complete:
        raise DamagedWeightsError(
            f"the checkpoint {run.url(damaged[0])} is damaged, and the run has no other",
            "restore its files from a backup, or remove its folder to begin anew",
        )
    for name in damaged:
        if on_note:
            on_note(
                f"the checkpoint {run.url(name)} is damaged: a file is missing, or is shorter or longer than written"
            )
    return [run.url(folder) for folder in complete]


def discard_checkpoint(checkpoint_url: str) -> None:
    """Let a checkpoint that cannot be used count no more; its other files stay until later ones replace them."""
    Storage(checkpoint_url).remove(MARKER_FILE)


def validated_loss(checkpoint_url: str) -> float | None:
    """Return the validation loss that a checkpoint is known by, None where it has none."""
    return _loss_in(_read_marker(checkpoint_url) or {})


def record_validation(checkpoint_url: str, loss: float, keep_last: int | None = 3) -> None:
    """Note how good a checkpoint is, and delete an earlier best one that is no longer among the last.

    Args:
        checkpoint_url: Path or URL of the checkpoint.
        loss: Validation loss.
        keep_last: As in ``save_checkpoint``.

    """
    marker = _read_marker(checkpoint_url)
    if marker is None or not math.isfinite(loss):
        return
    data = json.dumps(marker | {"validation_loss": loss}).encode()
    Storage(checkpoint_url).write_bytes(MARKER_FILE, data)
    if keep_last is not None:
        _prune(Storage(checkpoint_url.rsplit("/", 2)[0]), keep_last)


def load_checkpoint(
    checkpoint_url: str,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
) -> Resumed:
    """Restore everything that ``save_checkpoint`` saved, in place, the global random number generators included.

    On the CPU training goes on bit for bit as if it had not stopped.

    Raises:
        DamagedWeightsError: A file of the checkpoint has changed, or holds numbers that are not finite.
        StorageError: A file cannot be read.
        WeightsError: The checkpoint is incomplete, or of a network of other sizes.

    """
    checkpoint = Storage(checkpoint_url)
    for module, name in ((model, MODEL_FILE), (ema, EMA_FILE)):
        weights, head = read_network(checkpoint, name)
        _load_into(module, weights, checkpoint_url)
    state = read_state(checkpoint)
    configured = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state["optimizer"])
    for group, settings in zip(optimizer.param_groups, configured, strict=True):
        # The state is the checkpoint's, the settings are this run's: one that diverged goes on at a lower rate.
        base = "lr" if schedule is None else "initial_lr"
        group.update(settings, lr=group["lr"] * (settings[base] / group[base]))
    if schedule is not None:
        schedule.load_state_dict(state["schedule"] | {"base_lrs": schedule.base_lrs})
    for name, generator in (generators or {}).items():
        generator.set_state(state["generators"][name])
    _restore_random_state(state["random"])
    return Resumed(state["step"], json.loads(state["config"]), state["data"], licences_in(head))


def read_network(checkpoint: Storage, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checkpoint's file of weights, and what its head says beside them.

    Raises:
        DamagedWeightsError: The file has changed since it was written, or holds numbers that are not finite.
        StorageError: It cannot be read.
        WeightsError: The checkpoint is incomplete.

    """
    data = _unchanged(checkpoint, name)
    try:
        tensors = safetensors.torch.load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(checkpoint, name, error) from error
    require_finite(tensors.values(), checkpoint.url(name))
    return tensors, head


def read_state(checkpoint: Storage) -> dict[str, Any]:
    """Return a checkpoint's state, with errors as in ``read_network``."""
    data = _unchanged(checkpoint, STATE_FILE)
    try:
        state: dict[str, Any] = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        moments = _moments(state["optimizer"])
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _unreadable(checkpoint, STATE_FILE, error) from error
    require_finite(moments, checkpoint.url(STATE_FILE))
    return state


def _unreadable(checkpoint: Storage, name: str, error: Exception) -> WeightsError:
    """Return the error for a file that cannot be loaded: damaged it is only where no checksum says otherwise.

    What is as it was written may want more memory than there is, or another version; nobody should pass over it.
    """
    marker = _read_marker(checkpoint.url())
    known = marker is not None and name in marker["crc32"]
    kind = WeightsError if known else DamagedWeightsError
    return kind(f"{checkpoint.url(name)} cannot be loaded: {told(error)}")


def _unchanged(checkpoint: Storage, name: str) -> bytes:
    """Return the content of a checkpoint's file, which is as it was written."""
    marker = _read_marker(checkpoint.url())
    if marker is None:
        raise WeightsError(f"{checkpoint.url()} is not a complete checkpoint", "latest_checkpoint(run) finds one")
    data = checkpoint.read_bytes(name)
    _require_checksum(data, marker, checkpoint.url(name))
    return data


def _require_checksum(data: bytes | mmap.mmap, marker: Mapping[str, Any], place: str) -> None:
    """Compare a file with the CRC-32 that a marker has of it; those of earlier versions have none."""
    expected = marker["crc32"].get(place.rpartition("/")[2])
    if expected not in (None, zlib.crc32(data)):
        raise DamagedWeightsError(
            f"{place} is damaged: its checksum differs", "an earlier checkpoint of the run may be sound"
        )


def _moments(optimizer: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of an optimiser's state."""
    values = (value for of_parameter in optimizer["state"].values() for value in of_parameter.values())
    return [value for value in values if isinstance(value, Tensor)]


def load_for_sampling(
    path: str,
    device: str | torch.device = "cpu",
    preset: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[DiT, dict[str, Any]]:
    """Return the network with averaged weights, as float32 in evaluation mode, and the run's settings.

    Args:
        path: Path or URL of a file of weights, ours or the published FoundHand's, of a checkpoint's folder, or of a
            run's (its latest one); ``builtin`` is the package's own network, even where a folder has this name (write
            ``./builtin`` for that).
        device: Device of the network.
        preset: Name of the preset whose settings a file without its own was trained with; one that differs from these
            in nothing but the size of the image lets the network draw at that size.
        on_note: Called with a line on what of a published file is passed over, and on another size.

    Raises:
        UsageError: The preset is unknown, or the file carries other settings.
        WeightsError: There is no checkpoint, the file carries no settings and none were named, or it does not fit them.

    """
    named = None if preset is None else load_preset(preset)  # a wrong name ends here, before gigabytes are read
    file = averaged_weights(path)
    if file == path and suffix_of(path) not in SUFFIXES and not Path(path).expanduser().is_file():
        raise WeightsError(
            f"no complete checkpoint in {path}",
            "run `handdata train` first, or give a run's folder or one of its .safetensors files",
        )
    require_answer(file, "checkpoint")
    stored = read_stored(file, lambda local: _require_unchanged(local, file))
    if is_imagenet_dit(stored.tensors):
        raise WeightsError(f"{file} is an ImageNet DiT, which knows no hands", "--init starts a training run from it")
    weights = by_our_names(stored.tensors, file, on_note)
    config = _settings_of(stored, weights, file, named)
    try:
        sizes = ModelConfig.model_validate(config["model"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _foreign_settings(file) from error
    if named is not None:
        weights = dict(at_size(weights, sizes, file, on_note))
    require_sizes(sizes, weights, file)
    with torch.device("meta"):
        model = DiT(**sizes.model_dump())
    if how := misfit(model, weights):
        raise WeightsError(f"{file} does not fit its settings: {how}", "its weights are those of another network")
    # Copies: what a file is mapped to changes, or ends the process, with the file. The package's weights are float16.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
    require_finite(weights.values(), file)
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval().requires_grad_(False), config


def by_our_names(
    weights: dict[str, Tensor], file: str, on_note: Callable[[str], None] | None = None
) -> dict[str, Tensor]:
    """Return weights by our names; a published file may hold others beside the network's, which are passed over."""
    if not is_published(weights):
        return weights
    kept, others = without_others(import_foundhand(weights))
    if others and on_note:
        on_note(f"{len(others)} tensors of {file} are not of the network and are not used, such as {others[0]}")
    return kept


def _settings_of(
    stored: StoredWeights, weights: Mapping[str, Tensor], file: str, preset: Preset | None
) -> dict[str, Any]:
    """Return the settings that weights were trained with: their own, or those of a preset."""
    if stored.settings is None:
        if preset is not None:
            return preset.model_dump(mode="json")
        fits = fitting_presets(weights)
        raise WeightsError(
            f"{file} carries no settings",
            f"say with which it was trained: --preset {' or --preset '.join(fits)} has its sizes"
            if fits
            else "say with which it was trained by --preset NAME; no preset has its sizes",
        )
    try:
        config: dict[str, Any] = json.loads(stored.settings)
        if not isinstance(config, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise _foreign_settings(file) from error
    if preset is not None:
        ours = preset.model_dump(mode="json")
        if isinstance(config.get("model"), dict):  # another size alone is a matter of positions: see ``at_size``
            config["image_size"] = ours["image_size"]
            config["model"]["input_size"] = ours["model"]["input_size"]
        for part in ("model", "diffusion", "autoencoder"):
            if config.get(part) != ours[part]:
                raise UsageError(
                    f"{file} carries the settings that it was trained with, and {part} is another than the preset's",
                    "leave --preset out",
                )
    return config


def _foreign_settings(file: str) -> WeightsError:
    return WeightsError(f"{file} carries settings that are not ours", "expected a file that handdata has written")


def builtin_file() -> Path:
    """Return the file of the package's own network."""
    return Path(__file__).with_name("builtin.safetensors")


def _require_unchanged(local: Path, file: str) -> None:
    """Check a file of weights, of which there is a copy on this machine, against the checkpoint that it belongs to."""
    marker = _marker_of(file)
    if marker is not None:
        with local.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _require_checksum(data, marker, file)


def _marker_of(file: str) -> dict[str, Any] | None:
    """Return the marker of the checkpoint that a file of weights belongs to, None where it stands for itself."""
    folder, _, name = file.rpartition("/")
    return _read_marker(folder or ".") if name in (MODEL_FILE, EMA_FILE) else None


def first_weights(path: str) -> StoredWeights:
    """Return the weights that a run starts from: those of a file, or the average of a checkpoint's or a run's folder.

    Raises:
        DamagedWeightsError: They are damaged, or have changed since a run has written them.
        StorageError: The file cannot be read.
        WeightsError: There are none, or they are no tensors.

    """
    file = averaged_weights(path)
    stored = read_stored(file, lambda local: _require_unchanged(local, file))
    require_finite(stored.tensors.values(), path)
    return stored


def training_licences(file: str, stored: StoredWeights) -> tuple[str, ...]:
    """Return the ids of the licences of the data that weights were trained on.

    Args:
        file: File of the weights.
        stored: What it holds. Weights without settings are taken for published ones; of others that do not say, nothing
            is known.

    """
    if file == str(builtin_file()):
        return ("Apache-2.0",)  # hands that handdata has rendered
    return stored.licences or ((PUBLISHED_LICENCE,) if stored.settings is None else (UNKNOWN_LICENCE,))


def averaged_weights(path: str) -> str:
    """Return the file of averaged weights in a checkpoint's or a run's folder, or the package's own for ``builtin``;
    ``path`` itself where it is none of them."""
    if path == BUILTIN:
        return str(builtin_file())
    if suffix_of(path) in SUFFIXES or Path(path).expanduser().is_file():
        return path
    if "://" in path:
        require_answer(path, "checkpoint", MARKER_FILE)
    found = path.rstrip("/") if _read_marker(path) else latest_checkpoint(path)
    return path if found is None else f"{found}/{EMA_FILE}"


def _load_into(module: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    if how := misfit(module, weights):
        raise WeightsError(f"{origin} does not fit this network: {how}", "the sizes of preset and file differ")
    module.load_state_dict(weights)


def _read_marker(checkpoint_url: str) -> dict[str, Any] | None:
    """Return the marker of a complete checkpoint, None where it is not complete.

    Files are asked for before they are read: a server that is away must not pass for a checkpoint that is not there.
    """
    checkpoint = Storage(checkpoint_url)
    if not checkpoint.exists(MARKER_FILE):
        return None
    try:
        marker: dict[str, Any] = json.loads(checkpoint.read_bytes(MARKER_FILE))
        sizes = marker["sizes"].items()
        marker.setdefault("crc32", {}).items()  # earlier versions wrote none
    except (ValueError, TypeError, KeyError, AttributeError):  # cut off, no text, or another document
        return None
    return marker if all(checkpoint.exists(name) and checkpoint.size(name) == size for name, size in sizes) else None


def _loss_in(marker: Mapping[str, Any]) -> float | None:
    loss = marker.get("validation_loss")
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None


def _prune(run: Storage, keep_last: int) -> None:
    """Delete complete checkpoints before the ``keep_last`` latest but the best, and what crashes have left there."""
    folders = list_checkpoints(run)
    markers = {folder: marker for folder in folders if (marker := _read_marker(run.url(folder)))}
    oldest_kept = list(markers)[-max(keep_last, 1) :][0]
    losses = ((_loss_in(marker), folder) for folder, marker in markers.items())
    _, best = min((found for found in losses if found[0] is not None), default=(None, None))
    for folder in folders[: folders.index(oldest_kept)]:
        if folder != best:
            run.remove(f"{folder}/{MARKER_FILE}")  # first: half a deletion must not look complete
            run.remove(folder)


def _require_plain(value: object, where: str) -> None:
    """Check that ``torch.load(weights_only=True)`` will read a value back.

    Raises:
        TypeError: The value holds an object that ``torch.load`` would not read back.

    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    # Exact types: subclasses such as numpy's float64 are pickled as what they are.
    elif value is not None and type(value) not in (bool, int, float, str, bytes, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds plain values and tensors only")


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)  # libraries draw from the global generator
    return {
        "torch": torch.get_rng_state(),
        # Of this process's device alone: to ask the others would take memory on each of them.
        "cuda": [torch.cuda.get_rng_state()] if _uses_cuda() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def _uses_cuda() -> bool:
    """Tell whether this process has used CUDA: to look would begin to."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if _uses_cuda() and len(state["cuda"]) == 1:
        torch.cuda.set_rng_state(state["cuda"][0])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
