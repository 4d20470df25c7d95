"""Weights of published networks in and out: FoundHand, an ImageNet DiT, and files that the public code reads."""

import re
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.store import as_storage_error
from handdata.schemas.errors import DamagedWeightsError, WeightsError
from handdata.trainer.model import DiT
from handdata.trainer.presets import GeometryConfig

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
_GEOMETRY: Final = ("limb_embedding.", "reference_embedding.", "detail_head.")
"""Parts of a network that none has without ``model.geometry``."""


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
    nothing else.

    Raises:
        WeightsError: The published code cannot build the network (``qk_norm``, ``geometry``), the file has another
            ending, or it cannot be written.

    """
    state = export_foundhand(state_tensors(model))
    if any("_norm." in name for name in state):
        raise WeightsError("a network with qk_norm has no published format", "train without model.qk_norm")
    if model.geometry != GeometryConfig():
        raise WeightsError("a network with geometry has no published format", "train without model.geometry")
    try:
        if path.suffix == ".safetensors":
            path.write_bytes(safetensors.torch.save(state, {"format": "pt"}))
        elif path.suffix in (".pt", ".pth"):
            path.write_bytes(torch_bytes({"ema_state_dict": state}))
        else:
            raise WeightsError(f"{path} is no name for weights", "end it with .pt, .pth or .safetensors")
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error


def import_imagenet_dit(state: dict[str, Tensor], model: DiT) -> dict[str, Tensor]:
    """Return a state dict for ``model``, started from the weights of an ImageNet DiT of the same sizes.

    The patch embedder's latent channels are copied and the others set to zero, so that the conditions say nothing at
    first; its positions become the target's. The class table stays. What ImageNet's DiT lacks (the reference's
    positions, the task table) is as in ``model``.

    Raises:
        WeightsError: The sizes of the two networks differ.

    """
    known = import_foundhand({name.replace("x_embedder.", "feature_aligned_embedder."): t for name, t in state.items()})
    merged = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    missing = sorted(
        name for name in merged.keys() - known.keys() - {"task_embedding.weight"} if not name.startswith(_GEOMETRY)
    )
    unknown = sorted(known.keys() - merged.keys())
    if missing or unknown:
        raise WeightsError(
            f"not a DiT of {len(model.blocks)} blocks: missing {missing[:3]}, unexpected {unknown[:3]}",
            "choose the preset of the same size, such as foundhand-xl for DiT-XL/2",
        )
    for name, tensor in known.items():
        ours = merged[name]
        if name == "patch_embedding.proj.weight":
            ours.zero_()
            ours = ours[:, : model.latent_channels]
        elif name == "positions":
            ours = ours[:, : model.patches]
        if ours.shape != tensor.shape:
            raise WeightsError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(ours.shape)}")
        ours.copy_(tensor)
    return merged


def with_geometry(state: Mapping[str, Tensor], model: DiT) -> dict[str, Tensor]:
    """Return weights with those of ``model``'s geometry where they lack them."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(_GEOMETRY)} | dict(state)


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a PyTorch file, local or URL, on the CPU.

    A training checkpoint gives its moving average (``ema_state_dict`` in FoundHand's, ``ema`` in DiT's).

    Raises:
        StorageError: The file cannot be read, which says nothing of what it holds.
        WeightsError: The file is missing or damaged, or holds anything but tensors and plain values.

    """
    storage = Storage(path)
    if not storage.exists(""):
        raise WeightsError(f"no weights at {path}", "give a file that is there, or a URL whose server answers")
    try:
        with storage.local_copy() as file:
            if file.is_dir():
                raise WeightsError(f"{path} is a folder", "give the file of weights in it")
            if file.suffix == ".safetensors":
                return safetensors.torch.load_file(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise as_storage_error("read", path, error) from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DamagedWeightsError(f"{path} is not a readable file of weights: {told(error)}") from error
    for key in ("ema_state_dict", "ema", "model_state_dict", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state dict", "expected a dictionary of tensors by parameter name")
    return content


def require_finite(tensors: Iterable[Tensor], place: str) -> None:
    """Check that weights hold finite numbers.

    Raises:
        DamagedWeightsError: They do not.

    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise DamagedWeightsError(
            f"{place} holds numbers that are not finite", "an earlier checkpoint of the run may be sound"
        )


def misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Return in a few words how weights differ from what a network takes; None where they fit."""
    ours = module.state_dict()
    for name in ours.keys() & weights.keys():
        if ours[name].shape != weights[name].shape:
            return f"{name} has the shape {tuple(weights[name].shape)}, not {tuple(ours[name].shape)}"
    missing, unknown = sorted(ours.keys() - weights.keys()), sorted(weights.keys() - ours.keys())
    lacks = f"it lacks {len(missing)} of the network's tensors, such as {missing[0]}" if missing else ""
    holds = f"it holds {len(unknown)} that the network has not, such as {unknown[0]}" if unknown else ""
    return ", and ".join(filter(None, [lacks, holds])) or None


def told(error: Exception) -> str:
    """Return the first sentence of an error of torch or safetensors, which may go on with advice for programmers."""
    return str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a network's state, on the CPU, each tensor in one piece of memory."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def torch_bytes(state: dict[str, Any]) -> bytes:
    """Return a state as the content of a file of ``torch.save``."""
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _renamed(name: str, names: tuple[tuple[str, str], ...], block_names: tuple[tuple[str, str], ...]) -> str:
    if block := re.match(r"blocks\.\d+\.", name):
        return block[0] + _renamed(name[block.end() :], block_names, ())
    for old, new in names:
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
