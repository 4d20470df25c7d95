"""Weights of published networks in and out: FoundHand, an ImageNet DiT, and files that the public code reads."""

import json
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.store import as_storage_error
from handdata.schemas.errors import DamagedWeightsError, UsageError, WeightsError
from handdata.trainer.conditioning import CONDITION_CHANNELS
from handdata.trainer.model import DiT, resample_positions
from handdata.trainer.presets import PRESETS, ConditionsConfig, GeometryConfig, ModelConfig, Preset

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
_PARTS: Final = ("positions", "patch_embedding", "timestep_embedding", "task_embedding", "class_embedding", "blocks",
    "final_layer")  # fmt: skip
"""Parts of every network, by our names."""
_STATES: Final = ("ema_state_dict", "ema", "model_state_dict", "model", "state_dict")
"""Keys under which training scripts keep weights, the averaged ones first."""
_WRAPPERS: Final = ("module.", "_orig_mod.")
"""What DDP, averaging and torch.compile put before all names, one or several of them."""
_AVERAGED: Final = "n_averaged"
"""Counter that ``AveragedModel`` has beside the weights that it wraps."""
_SETTINGS: Final = "handdata_settings"
"""Key under which a ``.pt`` file of ours has the settings beside the weights."""
_LICENCES: Final = "handdata_licences"
"""Key under which it has the licences of the data that they were trained on."""
SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""How files of weights end."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What a file of weights holds.

    Args:
        tensors: State dict, on the CPU, mapped to the file where its format allows: for use at once, or to be copied.
        settings: Settings of the run that the weights come from, as JSON; None where the file has none.
        licences: Ids of the licences of the data that the weights were trained on, as far as the file says.

    """

    tensors: dict[str, Tensor]
    settings: str | None = None
    licences: tuple[str, ...] = ()


def import_foundhand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published FoundHand state dict to ours; tensors are passed through as they are."""
    return {_renamed(name, _FOUNDHAND_NAMES, _BLOCK_NAMES): tensor for name, tensor in state.items()}


def export_foundhand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of ours to the published names: the inverse of ``import_foundhand``."""
    names = tuple((ours, published) for published, ours in _FOUNDHAND_NAMES)
    block_names = tuple((ours, published) for published, ours in _BLOCK_NAMES)
    return {_renamed(name, names, block_names): tensor for name, tensor in state.items()}


def write_foundhand(model: DiT, path: Path, settings: str | None = None, licences: Sequence[str] = ()) -> None:
    """Write a network's weights as the public FoundHand code reads them.

    A ``.pt`` or ``.pth`` file holds them under ``ema_state_dict``, like the released one, and settings and licences
    beside them; a ``.safetensors`` file has these in its header. The public code passes over both.

    Args:
        model: The network.
        path: File to write.
        settings: Settings of its run as JSON, which sampling needs; None leaves them out.
        licences: Ids of the licences of the data that it was trained on.

    Raises:
        WeightsError: The published code cannot build the network (``qk_norm``, ``geometry``, ``conditions``), the file
            has another ending, or it cannot be written.

    """
    state = export_foundhand(state_tensors(model))
    if any("_norm." in name for name in state):
        raise WeightsError("a network with qk_norm has no published format", "train without model.qk_norm")
    if model.conditions != ConditionsConfig():
        raise WeightsError("a network that is shown less than the published one has no published format")
    if model.geometry != GeometryConfig():
        raise WeightsError("a network with geometry has no published format", "train without model.geometry")
    try:
        if path.suffix == ".safetensors":
            header = {"format": "pt"} if settings is None else {"format": "pt", "config": settings}
            header |= licences_header(licences)
            path.write_bytes(safetensors.torch.save(state, header))
        elif path.suffix in (".pt", ".pth"):
            beside: dict[str, Any] = {} if settings is None else {_SETTINGS: settings}
            beside |= {_LICENCES: list(licences)} if licences else {}
            path.write_bytes(torch_bytes({"ema_state_dict": state, **beside}))
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
            tensor = resample_positions(tensor, model.grid_size, frames=1)
        if ours.shape != tensor.shape:
            raise WeightsError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(ours.shape)}")
        ours.copy_(tensor)
    return merged


def with_geometry(state: Mapping[str, Tensor], model: DiT) -> dict[str, Tensor]:
    """Return weights with those of ``model``'s geometry where they lack them."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(_GEOMETRY)} | dict(state)


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a PyTorch file, with errors as in ``read_stored``."""
    return read_stored(path).tensors


def read_stored(path: str, check: Callable[[Path], None] | None = None) -> StoredWeights:
    """Read weights from a .safetensors file or a PyTorch file, local or URL, with the settings that travel with them.

    A training checkpoint gives its moving average (``ema_state_dict`` in FoundHand's, ``ema`` in DiT's).

    Args:
        path: Path or URL of the file.
        check: Called with the file on this machine before it is read; raises where it is not what it should be.

    Raises:
        StorageError: The file cannot be read, which says nothing of what it holds.
        WeightsError: The file is missing or damaged, or holds anything but tensors and plain values.

    """
    require_answer(path)
    try:
        with Storage(path).local_copy() as file:
            if file.is_dir():
                raise WeightsError(f"{path} is a folder", "give the file of weights in it")
            if check:
                check(file)
            stored = _read_safetensors(file) if _is_safetensors(file, path) else _read_torch(file, path)
    except OSError as error:
        raise as_storage_error("read", path, error) from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError,
            ImportError, IndexError) as error:  # fmt: skip
        raise DamagedWeightsError(f"{path} is not a readable file of weights: {told(error)}", _UNREADABLE) from error
    for name, tensor in stored.tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise WeightsError(f"{path} holds no plain numbers: {name} is {_kind(tensor)}", _UNREADABLE)
    return replace(stored, tensors=_unwrapped(stored.tensors))


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without what training scripts have put before all of their names."""
    names = tensors.keys() - {_AVERAGED}
    while wrapper := next((each for each in _WRAPPERS if names and all(name.startswith(each) for name in names)), ""):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items() if name in names}
        names = tensors.keys() - {_AVERAGED}
    return tensors


def require_answer(path: str, what: str = "weights", inside: str | None = None) -> None:
    """Check that there is a file or folder; a server that is away is asked once more, not for a minute.

    Args:
        path: Path or URL of it.
        what: What it is called in messages.
        inside: File by which a folder is known, too: web servers do not show all folders.

    Raises:
        StorageError: The server does not answer.
        WeightsError: There is nothing.

    """
    storage = Storage(path, retry_waits_s=_SECOND_TRY_S)
    if not storage.exists("") and not (inside and storage.exists(inside)):
        raise WeightsError(f"no {what} at {path}", "give a file that is there, or a URL whose server answers")


def require_hub(what: str, hint: str) -> None:
    """Check that the Hugging Face Hub answers, whose client would try for half a minute.

    Raises:
        WeightsError: It does not; ``what`` is not on this machine, and ``hint`` what to do.

    """
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S).close()  # noqa: S310 - the Hub's own setting
    except urllib.error.HTTPError as error:
        error.close()  # it answers
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{what} is not on this machine, and {constants.ENDPOINT} does not answer: "
            f"{told(getattr(error, 'reason', error))}",
            hint,
        ) from error


def suffix_of(path: str) -> str:
    """Return how the name of a file of weights ends, in lower case; of a URL without what is asked of the server."""
    name = path.partition("?")[0].partition("#")[0] if "://" in path else path
    return PurePosixPath(name).suffix.lower()


def _is_safetensors(file: Path, path: str) -> bool:
    with file.open("rb") as opened:
        return suffix_of(path) == ".safetensors" or opened.read(9)[8:] == b"{"


_SECOND_TRY_S: Final = (2.0,)
_HUB_TIMEOUT_S: Final = 8.0
_UNREADABLE: Final = "was it downloaded whole? only tensors and plain values are read, never other objects"


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} ({tensor.layout}, on {tensor.device.type})".replace("torch.", "")


def _read_safetensors(file: Path) -> StoredWeights:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    return StoredWeights(safetensors.torch.load_file(file), metadata.get("config"), licences_in(metadata))


def licences_header(licences: Sequence[str]) -> dict[str, str]:
    """Return what the head of a file of weights says of the licences of the data that they were trained on."""
    return {"licences": json.dumps(list(licences))} if licences else {}


def licences_in(header: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of the licences that a file's head names; none where it names none."""
    try:
        return _texts(json.loads(header.get("licences", "[]")))
    except (ValueError, RecursionError):
        return ()


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


class _PassedOver:
    """Stands for an object of the training script's own in a file of weights: it takes what it is given, and does
    nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_torch(file: Path, path: str) -> StoredWeights:
    """Read a PyTorch file; nothing that it names is imported or called.

    The released FoundHand file has the options of its training script beside the weights, an object of a class of
    ``__main__``; DiT's training script keeps an ``argparse.Namespace``. Such objects are replaced by one that does
    nothing.
    """
    is_zip = zipfile.is_zipfile(file)  # the format of PyTorch 1.6 and later
    foreign = get_unsafe_globals_in_checkpoint(file) if is_zip else []
    options: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type("Options", (_PassedOver,), {}), name)
        for name in foreign
        if name.startswith("__main__.") or name == "argparse.Namespace"
    ]
    with safe_globals(options), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is refused below
        # Mapped, a training checkpoint of four times the size costs no more memory than what is taken of it.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    state, settings = content, None
    licences: tuple[str, ...] = ()
    if isinstance(content, dict):
        state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)
        settings, licences = content.get(_SETTINGS), _texts(content.get(_LICENCES))
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    ):
        raise WeightsError(f"{path} holds no state dict", "expected a dictionary of tensors by parameter name")
    return StoredWeights(
        {name: tensor.detach() for name, tensor in state.items()},
        settings if isinstance(settings, str) else None,
        licences,
    )


def is_published(weights: Iterable[str]) -> bool:
    """Return whether these are names of weights in the published FoundHand format."""
    return "feature_aligned_embedder.proj.weight" in weights


def is_imagenet_dit(weights: Iterable[str]) -> bool:
    """Return whether these are names of an ImageNet DiT's weights."""
    return "x_embedder.proj.weight" in weights


def without_others(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Part weights by our names into those of a network and the names of others, such as of an alignment's projection.

    The public code passes over what lies beside the network, too. What lies within its parts always counts.
    """
    parts = (*_PARTS, *(name.rstrip(".") for name in _GEOMETRY))
    kept = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] in parts}
    return kept, sorted(weights.keys() - kept.keys())


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what shapes say of a network, by the names of ``ModelConfig``; nothing where they are of no such network.

    Heads leave no trace in shapes.
    """
    blocks = [int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d{1,6})\.", name))]
    try:
        positions, patches = weights["positions"].shape, weights["patch_embedding.proj.weight"].shape
        (hidden, channels, patch, _), (_, tokens, _) = patches, positions
        drawn = weights["final_layer.linear.weight"].shape[0]
    except (KeyError, ValueError, IndexError):
        return {}
    grid = round((tokens / 2) ** 0.5)
    latent = channels - CONDITION_CHANNELS
    if latent < 1 or not blocks or 2 * grid**2 != tokens:
        return {}
    return {
        "input_size": grid * patch,
        "patch_size": patch,
        "latent_channels": latent,
        "hidden_size": hidden,
        "depth": max(blocks) + 1,
        "learn_sigma": drawn == 2 * latent * patch**2,
    }


def fitting_presets(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the presets whose networks have such weights."""
    sizes = sizes_of(weights)
    parts = {name.partition(".")[0] for name in weights}
    return [
        name
        for name, preset in PRESETS.items()
        if sizes
        and all(getattr(preset.model, size) == value for size, value in sizes.items())
        and ("limb_embedding" in parts) == preset.model.geometry.limbs
    ]


def at_size(
    weights: Mapping[str, Tensor], sizes: ModelConfig, place: str, on_note: Callable[[str], None] | None = None
) -> Mapping[str, Tensor]:
    """Return weights for latents of another size than they were trained at: their positions are resampled.

    Nothing else depends on the size of the latent. Weights of this size, and those that differ in more than it, are
    returned as they are.

    Args:
        weights: Weights by our names.
        sizes: Sizes of the network that takes them.
        place: File of the weights.
        on_note: Called with a line where they are resampled.

    """
    found = sizes_of(weights)
    others = found.keys() - {"input_size"}
    if not others or any(found[name] != getattr(sizes, name) for name in others):
        return weights
    if not weights["positions"].is_floating_point():
        return weights
    resampled = resample_positions(weights["positions"], sizes.input_size // sizes.patch_size)
    if resampled is weights["positions"]:
        return weights
    if on_note:
        on_note(
            f"{place} was trained at latents of {found['input_size']} pixels: its positions are resampled to "
            f"{sizes.input_size}, a size that it has not seen"
        )
    return {**weights, "positions": resampled}


def require_sizes(sizes: ModelConfig, weights: Mapping[str, Tensor], place: str) -> None:
    """Check that weights have the sizes that settings say, before a network of these is made.

    Raises:
        WeightsError: They have not.

    """
    found = sizes_of(weights)
    if not found:
        raise WeightsError(f"{place} holds no two-frame transformer", _UNREADABLE)
    told_sizes = sizes.model_dump()
    for name in ("hidden_size", "depth", "patch_size", "latent_channels", "input_size"):
        if told_sizes[name] != found[name]:
            fits = fitting_presets(weights)
            raise WeightsError(
                f"{place} does not fit these settings: its {name} is {found[name]}, not {told_sizes[name]}",
                f"its sizes are those of the preset {' or '.join(fits)}" if fits else "no preset has its sizes",
            )


_MEANING: Final = (
    "diffusion.prediction",
    "autoencoder.kind",
    "model.num_heads",
    "model.geometry.residual",
    "model.conditions.keypoints",
    "model.conditions.reference_mask",
)
"""Settings without which weights of the same shapes mean something else; a residual may be added to none."""


def require_same_meaning(
    stored: StoredWeights, preset: Preset, place: str, on_note: Callable[[str], None] | None = None
) -> None:
    """Check that weights which a run starts from were trained to say what the run's settings take them for.

    Of a file without settings nobody knows. Published networks predict noise; where the run does not, a note says so.

    Raises:
        UsageError: They were trained otherwise.

    """
    ours = preset.model_dump(mode="json")
    if stored.settings is None:
        published = is_published(stored.tensors) or is_imagenet_dit(stored.tensors)
        if preset.diffusion.prediction != "noise" and on_note:
            what = "has the published format, in which networks predict noise" if published else "carries no settings"
            on_note(f"{place} {what}: this run takes its output for diffusion.prediction {preset.diffusion.prediction}")
        return
    try:
        theirs = json.loads(stored.settings)
        if not isinstance(theirs, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        raise WeightsError(f"{place} carries settings that are not ours", "was it written by handdata?") from None
    known = [(path, _value_at(theirs, path), _value_at(ours, path)) for path in _MEANING]
    if wrong := [
        f"{path} is {there} there, not {here}" for path, there, here in known if there not in (None, "none", here)
    ]:
        raise UsageError(
            f"{place} has the shapes of this network and means something else: {', '.join(wrong)}",
            "set these in the file of settings as they are there, or start from other weights",
        )


def _value_at(settings: object, path: str) -> object:
    for name in path.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


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
    for name in (name for name in ours if name in weights):
        if ours[name].shape != weights[name].shape:
            return f"{name} has the shape {tuple(weights[name].shape)}, not {tuple(ours[name].shape)}"
        if not weights[name].is_floating_point():
            return f"{name} holds {_kind(weights[name])}, not floating-point numbers"
    missing, unknown = sorted(ours.keys() - weights.keys()), sorted(weights.keys() - ours.keys())
    lacks = f"it lacks {len(missing)} of the network's tensors, such as {missing[0]}" if missing else ""
    holds = f"it holds {len(unknown)} that the network has not, such as {unknown[0]}" if unknown else ""
    return ", and ".join(filter(None, [lacks, holds])) or None


def told(error: object) -> str:
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
