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
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, Final

import fsspec
import numpy as np
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from handdata.schemas.errors import StorageError, WeightsError
from handdata.trainer.model import DiT
from handdata.trainer.presets import ModelConfig

MODEL_FILE: Final = "model.safetensors"
EMA_FILE: Final = "ema.safetensors"
STATE_FILE: Final = "state.pt"
MARKER_FILE: Final = "complete.json"
_STEP_FOLDER: Final = re.compile(r"step-(\d+)")

# ------------------------------------------------------------------------------------------ published weights

# (published name, our name): the first part that matches from the left is replaced.
_FOUNDHAND_NAMES: Final = (
    ("pos_embed", "positions"),
    ("feature_aligned_embedder", "patch_embedding"),
    ("t_embedder.mlp.0", "timestep_embedding.mlp.fc1"),
    ("t_embedder.mlp.2", "timestep_embedding.mlp.fc2"),
    ("nvs_label_embedder.embedding_table", "task_embedding"),
    ("y_embedder.embedding_table", "class_embedding"),
    ("final_layer.adaLN_modulation.1", "final_layer.modulation"),
)
_BLOCK_NAMES: Final = (
    ("attn.qkv", "attention.qkv"),
    ("attn.proj", "attention.projection"),
    ("adaLN_modulation.1", "modulation"),
)


def import_foundhand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published FoundHand state dict to ours; tensors are passed through as they are."""
    return {_renamed(name, _FOUNDHAND_NAMES, _BLOCK_NAMES): tensor for name, tensor in state.items()}


def export_foundhand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of ours to the published names: the inverse of ``import_foundhand``."""
    names = tuple((ours, published) for published, ours in _FOUNDHAND_NAMES)
    block_names = tuple((ours, published) for published, ours in _BLOCK_NAMES)
    return {_renamed(name, names, block_names): tensor for name, tensor in state.items()}


def write_foundhand(model: DiT, path: Path) -> None:
    """Write a network's weights as the public FoundHand code reads them.

    A ``.pt`` or ``.pth`` file holds them under ``ema_state_dict``, like the released one; a ``.safetensors`` file holds
    nothing else. Raises ``WeightsError`` for a network that the published code cannot build (``qk_norm``), other file
    names, and a folder that cannot be written.
    """
    state = export_foundhand(_tensors(model))
    if any("_norm." in name for name in state):
        raise WeightsError("a network with qk_norm has no published format", "train without model.qk_norm")
    try:
        if path.suffix == ".safetensors":
            path.write_bytes(safetensors.torch.save(state, {"format": "pt"}))
        elif path.suffix in (".pt", ".pth"):
            path.write_bytes(_torch_bytes({"ema_state_dict": state}))
        else:
            raise WeightsError(f"{path} is no name for weights", "end it with .pt, .pth or .safetensors")
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error


def import_imagenet_dit(state: dict[str, Tensor], model: DiT) -> dict[str, Tensor]:
    """Return a state dict for ``model``, started from the weights of an ImageNet DiT of the same sizes.

    The patch embedder's latent channels are copied and the others set to zero, so that the conditions say nothing at
    first; its positions become the target's. The class table stays. What ImageNet's DiT lacks (the reference's
    positions, the task table) is as in ``model``. Raises ``WeightsError`` where sizes differ.
    """
    known = import_foundhand({name.replace("x_embedder.", "feature_aligned_embedder."): t for name, t in state.items()})
    merged = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    missing = sorted(merged.keys() - known.keys() - {"task_embedding.weight"})
    unknown = sorted(known.keys() - merged.keys())
    if missing or unknown:
        raise WeightsError(
            f"not a DiT of {len(model.blocks)} blocks: missing {missing[:3]}, unexpected {unknown[:3]}",
            "choose the preset of the same size, such as foundhand-xl for DiT-XL/2",
        )
    for name, tensor in known.items():
        place = merged[name]
        if name == "patch_embedding.proj.weight":
            place.zero_()
            place = place[:, : model.latent_channels]
        elif name == "positions":
            place = place[:, : model.patches]
        if place.shape != tensor.shape:
            raise WeightsError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(place.shape)}")
        place.copy_(tensor)
    return merged


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a PyTorch file, local or URL, on the CPU.

    Of a training checkpoint the moving average is taken (``ema_state_dict`` in FoundHand's, ``ema`` in DiT's). Raises
    ``WeightsError`` for a file that is missing, damaged or holds anything but tensors and plain values.
    """
    try:
        with _local_copy(path) as file:
            if file.suffix == ".safetensors":
                return safetensors.torch.load_file(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"no weights at {path}") from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path} is not a readable file of weights: {error}") from error
    for key in ("ema_state_dict", "ema", "model_state_dict", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state dict", "expected a dictionary of tensors by parameter name")
    return content


def _renamed(name: str, names: tuple[tuple[str, str], ...], block_names: tuple[tuple[str, str], ...]) -> str:
    if block := re.match(r"blocks\.\d+\.", name):
        return block[0] + _renamed(name[block.end() :], block_names, ())
    for old, new in names:
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


# ------------------------------------------------------------------------------------------ our checkpoints


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
            MODEL_FILE: _write(fs, f"{folder}/{MODEL_FILE}", safetensors.torch.save(_tensors(model), metadata)),
            EMA_FILE: _write(fs, f"{folder}/{EMA_FILE}", safetensors.torch.save(_tensors(ema), metadata)),
            STATE_FILE: _write(fs, f"{folder}/{STATE_FILE}", _torch_bytes(state)),
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


def best_checkpoint(run_url: str) -> str | None:
    """Return the URL of the run's complete checkpoint of the lowest validation loss, None where none was validated."""
    fs, root = fsspec.core.url_to_fs(run_url)
    folder = _best_folder(fs, f"{root}/checkpoints")
    return None if folder is None else str(fs.unstrip_protocol(folder))


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
        with _local_copy(file) as local, safe_open(local, framework="pt") as opened:
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


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _torch_bytes(state: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


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


@contextmanager
def _local_copy(url: str) -> Iterator[Path]:
    """Yield a local path of the file at a path or URL, downloaded to a temporary folder where it is remote."""
    fs, path = fsspec.core.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(path).name
        fs.get_file(path, str(copy))
        yield copy
