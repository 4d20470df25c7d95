"""Checkpoints: weights of published networks in and out, and our own, saved so that no crash leaves half of one.

A checkpoint is a folder ``<run>/checkpoints/step-00000500/``:

    model.safetensors    the weights as trained   } both carry the run's settings as JSON in their header,
    ema.safetensors      their moving average     } so that sampling needs nothing but the file
    state.pt             step, optimiser, learning rate schedule, random number generators, position in the data
    complete.json        names and sizes of the above; written last

A folder counts only once ``complete.json`` is there and the sizes agree: a process killed at any moment, or a disk that
lost its last writes, leaves the checkpoint before it as the latest one. Folders and fsspec URLs behave alike (object
stores cannot rename, which is why the marker and not a rename commits).

Nothing here unpickles foreign objects: ``torch.load`` runs with ``weights_only=True``.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, Final

import fsspec
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from handdata.schemas.errors import StorageError, WeightsError
from handdata.trainer.model import DiT
from handdata.trainer.presets import ModelConfig
from handdata.trainer.weights import (
    export_foundhand,
    import_foundhand,
    import_imagenet_dit,
    local_copy,
    read_weights,
    state_tensors,
    torch_bytes,
    write_foundhand,
)

__all__ = [
    "Resumed",
    "export_foundhand",
    "import_foundhand",
    "import_imagenet_dit",
    "latest_checkpoint",
    "load_checkpoint",
    "load_for_sampling",
    "read_weights",
    "save_checkpoint",
    "write_foundhand",
]

MODEL_FILE: Final = "model.safetensors"
EMA_FILE: Final = "ema.safetensors"
STATE_FILE: Final = "state.pt"
MARKER_FILE: Final = "complete.json"
_STEP_FOLDER: Final = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Resumed:
    """What ``load_checkpoint`` gives back beside the restored objects."""

    step: int
    config: dict[str, Any]
    data_state: dict[str, Any]


def save_checkpoint(
    run_url: str,
    step: int,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
    *,
    data_state: Mapping[str, Any] | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    keep_last: int | None = 3,
    validation_loss: float | None = None,
) -> str:
    """Save a checkpoint of a run and return its URL.

    Then all are deleted but the ``keep_last`` latest (None: keep all) and the one of the lowest ``validation_loss``.

    ``model`` and ``ema`` are plain ``DiT`` modules (unwrap DDP, ``torch.compile`` and ``AveragedModel`` first),
    ``config`` is JSON-serialisable and has the ``ModelConfig`` under ``"model"``. The global generators of torch, CUDA,
    numpy and Python are saved with the named ``generators``. ``data_state`` holds plain values and tensors only. Raises
    ``StorageError`` where the folder cannot be written, ``TypeError`` for other objects in ``data_state``.
    """
    fs, root = fsspec.core.url_to_fs(run_url)
    folder = f"{root}/checkpoints/step-{step:08d}"
    metadata = {"format": "pt", "config": json.dumps(dict(config)), "step": str(step)}
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
    try:
        fs.makedirs(folder, exist_ok=True)
        if fs.exists(f"{folder}/{MARKER_FILE}"):  # saved before, by a run that was resumed from an earlier step
            fs.rm_file(f"{folder}/{MARKER_FILE}")
        sizes = {
            MODEL_FILE: _write(fs, f"{folder}/{MODEL_FILE}", safetensors.torch.save(state_tensors(model), metadata)),
            EMA_FILE: _write(fs, f"{folder}/{EMA_FILE}", safetensors.torch.save(state_tensors(ema), metadata)),
            STATE_FILE: _write(fs, f"{folder}/{STATE_FILE}", torch_bytes(state)),
        }
        marker = {"step": step, "sizes": sizes, "validation_loss": validation_loss}
        _write(fs, f"{folder}/{MARKER_FILE}", json.dumps(marker).encode())
        if keep_last is not None:
            _prune(fs, f"{root}/checkpoints", keep_last)
    except OSError as error:
        raise StorageError(f"cannot write a checkpoint to {run_url}: {error}") from error
    return str(fs.unstrip_protocol(folder))


def latest_checkpoint(run_url: str) -> str | None:
    """Return the URL of the run's latest complete checkpoint, None where it has none."""
    fs, root = fsspec.core.url_to_fs(run_url)
    for _, folder in sorted(_step_folders(fs, f"{root}/checkpoints"), reverse=True):
        if _is_complete(fs, folder):
            return str(fs.unstrip_protocol(folder))
    return None


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

    On the CPU training goes on bit for bit as if it had not stopped. Raises ``WeightsError`` where the checkpoint is
    incomplete or of a network of other sizes.
    """
    fs, folder = fsspec.core.url_to_fs(checkpoint_url)
    if not _is_complete(fs, folder):
        raise WeightsError(f"{checkpoint_url} is not a complete checkpoint", "latest_checkpoint(run) finds one")
    _load_into(model, read_weights(f"{checkpoint_url}/{MODEL_FILE}"), checkpoint_url)
    _load_into(ema, read_weights(f"{checkpoint_url}/{EMA_FILE}"), checkpoint_url)
    with fs.open(f"{folder}/{STATE_FILE}", "rb") as file:
        state = torch.load(BytesIO(file.read()), map_location="cpu", weights_only=True)
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
    return Resumed(step=state["step"], config=json.loads(state["config"]), data_state=state["data"])


def load_for_sampling(path: str, device: str | torch.device = "cpu") -> tuple[DiT, dict[str, Any]]:
    """Return the network with averaged weights, in evaluation mode, and the run's settings.

    ``path`` (or URL) is a .safetensors file of a checkpoint, a checkpoint's folder, or a run's folder (its latest one).
    Raises ``WeightsError`` where there is none, or where the file carries no settings (convert published weights with
    ``import_foundhand`` instead).
    """
    file = path if path.endswith(".safetensors") else f"{_checkpoint_of(path)}/{EMA_FILE}"
    try:
        with local_copy(file) as local, safe_open(local, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise WeightsError(f"no checkpoint at {path}") from error
    except SafetensorError as error:
        raise WeightsError(f"{file} is not a readable file of weights: {error}") from error
    if "config" not in metadata:
        raise WeightsError(f"{file} carries no settings", "expected a file that handdata train has written")
    config: dict[str, Any] = json.loads(metadata["config"])
    with torch.device("meta"):
        model = DiT(**ModelConfig.model_validate(config["model"]).model_dump())
    _load_into(model, weights, file, assign=True)
    return model.to(device).eval().requires_grad_(False), config


def _checkpoint_of(path: str) -> str:
    """Return the checkpoint folder that ``path``, a checkpoint's or a run's folder, stands for."""
    fs, folder = fsspec.core.url_to_fs(path)
    found = path.rstrip("/") if _is_complete(fs, folder) else latest_checkpoint(path)
    if found is None:
        raise WeightsError(
            f"no complete checkpoint in {path}",
            "run `handdata train` first, or give a run's folder or one of its .safetensors files",
        )
    return found


def _load_into(module: nn.Module, weights: dict[str, Tensor], origin: str, assign: bool = False) -> None:
    try:
        module.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        raise WeightsError(
            f"{origin} does not fit this network: {error}", "the sizes of preset and file differ"
        ) from error


def _write(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> int:
    with fs.open(path, "wb") as file:
        file.write(content)
    return len(content)


def _step_folders(fs: fsspec.AbstractFileSystem, checkpoints: str) -> Iterator[tuple[int, str]]:
    fs.invalidate_cache()  # another process may have written since
    if not fs.exists(checkpoints):
        return
    for folder in fs.ls(checkpoints, detail=False):
        if match := _STEP_FOLDER.fullmatch(PurePosixPath(folder).name):
            yield int(match[1]), folder


def _is_complete(fs: fsspec.AbstractFileSystem, folder: str) -> bool:
    return _marker_of_complete(fs, folder) is not None


def _marker_of_complete(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, Any] | None:
    """Return the marker of a complete checkpoint, None where it is not complete."""
    try:
        marker: dict[str, Any] = json.loads(fs.cat_file(f"{folder}/{MARKER_FILE}"))
        if all(fs.size(f"{folder}/{name}") == size for name, size in marker["sizes"].items()):
            return marker
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        pass
    return None


def _best_folder(fs: fsspec.AbstractFileSystem, checkpoints: str) -> str | None:
    losses = {}
    for _, folder in _step_folders(fs, checkpoints):
        marker = _marker_of_complete(fs, folder)
        if marker is not None and marker.get("validation_loss") is not None:
            losses[folder] = marker["validation_loss"]
    return min(losses, key=lambda folder: (losses[folder], folder)) if losses else None


def _prune(fs: fsspec.AbstractFileSystem, checkpoints: str, keep_last: int) -> None:
    """Delete complete checkpoints before the ``keep_last`` latest but the best, and what crashes have left there."""
    folders = sorted(_step_folders(fs, checkpoints), reverse=True)
    complete = [folder for _, folder in folders if _is_complete(fs, folder)]
    kept = complete[: max(keep_last, 1)]
    best = _best_folder(fs, checkpoints)
    for _, folder in folders:
        if folder in kept or folder == best or folder > kept[-1]:
            continue
        if folder in complete:  # the marker first: half a deletion must not look complete
            fs.rm_file(f"{folder}/{MARKER_FILE}")
        fs.rm(folder, recursive=True)


def _require_plain(value: object, where: str) -> None:
    """Refuse what ``torch.load(weights_only=True)`` would refuse to read back, while there is still time."""
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
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
