"""``handdata sample``: find the frames that a user means, run a task on a checkpoint, write the figure.

A reference is a sample of the dataset (its id) or a photograph (a path); a target is either of these or a file of 42
keypoints. Without any, pairs are drawn from the dataset's held-out split.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from handdata.pipeline.photo import annotate_photo
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Storage
from handdata.schemas import Split, UsageError, samples_to_table
from handdata.trainer.augment import Frame
from handdata.trainer.autoencoders import load_autoencoder
from handdata.trainer.checkpoints import load_for_sampling
from handdata.trainer.pairs import PairDataset, decode_frame
from handdata.trainer.presets import DataConfig, PairConfig, Preset
from handdata.trainer.tasks import encode_png, figure, gesture_transfer, pose_frame, read_keypoints

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_KEYPOINT_FILES = {".npy", ".json"}

_PAIRS_LOOKED_AT = 1000
"""Pairs of the held-out split among which different sequences are chosen."""


@dataclass(frozen=True, slots=True)
class GestureTransferRequest:
    """What ``handdata sample gesture-transfer`` was asked for.

    Args:
        checkpoint: a checkpoint file or folder, or a run's folder.
        dataset: that samples come from; None takes the one that the checkpoint was trained on.
        reference: sample id or photograph; None draws pairs from the dataset.
        target: sample id, photograph or keypoint file; None draws it with the reference.
        count: rows of the figure where pairs are drawn.
        steps: denoising steps; None takes the preset's.
        guidance_scale: None takes the preset's.
        seed: same seed, same pictures.

    """

    checkpoint: str
    dataset: str | None = None
    reference: str | None = None
    target: str | None = None
    count: int = 6
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0


def sample_gesture_transfer(
    request: GestureTransferRequest,
    storage: Storage,
    settings: AnnotateSettings,
    weights: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> bytes:
    """Return a PNG: a row for each pair with reference, target pose, target picture where there is one, and result.

    Raises:
        UsageError: a reference or target is neither a file nor a sample, shows no hand, or only one of them is given.
        WeightsError: the checkpoint is missing or not one of ours.

    """
    model, config = load_for_sampling(request.checkpoint)
    preset = Preset.model_validate(config).choosing_rows(dataset=request.dataset)
    if (request.reference is None) != (request.target is None):
        raise UsageError("give both --reference and --target, or neither", "neither draws pairs from the dataset")
    if request.reference is None or request.target is None:
        references, targets = _drawn_pairs(storage, preset, request.count, request.seed)
    else:
        references = [_frame(request.reference, storage, preset, settings, weights)]
        targets = [_frame(request.target, storage, preset, settings, weights)]
    generated = gesture_transfer(
        model,
        load_autoencoder(preset.autoencoder),
        preset,
        references,
        targets,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        progress=on_step,
    )
    return encode_png(figure(references, targets, list(generated)))


def _held_out_split(storage: Storage, dataset: str) -> Split:
    """Return the split to show: validation, else test, else what there is."""
    present = {split for splits in read_manifest(storage, dataset).sources.values() for split in splits}
    order: tuple[Split, ...] = ("val", "test", "train")
    return next((split for split in order if split in present), "train")


def _drawn_pairs(storage: Storage, preset: Preset, count: int, seed: int) -> tuple[list[Frame], list[Frame]]:
    dataset = _pairs_to_show(storage, preset, seed)
    pairs = [dataset.rows_at(position)[:2] for position in range(min(len(dataset), _PAIRS_LOOKED_AT))]
    # The first pair of every sequence comes before the second of any.
    turns: Counter[str] = Counter()
    ranked = []
    for target, reference in pairs:
        sequence = dataset.sequence_id(target)
        ranked.append((turns[sequence], target, reference))
        turns[sequence] += 1
    shown = sorted(ranked, key=itemgetter(0))[:count]
    references = [dataset.frame(reference) for _, _, reference in shown if reference is not None]
    return references, [dataset.frame(target) for _, target, _ in shown]


def _pairs_to_show(storage: Storage, preset: Preset, seed: int) -> PairDataset:
    """Return moments of held-out videos, or, in a dataset without videos, views of a moment."""
    data = DataConfig(dataset=preset.data.dataset)
    split = _held_out_split(storage, data.dataset)
    videos, views = PairConfig(video=1, view=0, still=0), PairConfig(video=0, view=1, still=0)
    try:
        return PairDataset(storage, image_size=preset.image_size, split=split, pairs=videos, data=data, seed=seed)
    except UsageError:
        return PairDataset(storage, image_size=preset.image_size, split=split, pairs=views, data=data, seed=seed)


def _frame(name: str, storage: Storage, preset: Preset, settings: AnnotateSettings, weights: Path | None) -> Frame:
    path = Path(name)
    if path.suffix.lower() in _KEYPOINT_FILES and path.is_file():
        return pose_frame(*read_keypoints(path), size=preset.image_size)
    if path.suffix.lower() in _PICTURES and path.is_file():
        sample = annotate_photo(path, settings, weights)
        return decode_frame(samples_to_table([sample]), 0)
    for split in ("val", "test", "train"):
        try:
            data = DataConfig(dataset=preset.data.dataset)
            dataset = PairDataset(storage, image_size=preset.image_size, split=split, data=data)
            return dataset.frame(dataset.find(name))
        except UsageError:
            continue
    raise UsageError(
        f"{name} is neither a picture, a keypoint file nor a sample of {storage.describe()}",
        "a keypoint file (.npy or .json) holds 42 x 2 pixels; sample ids are in the column sample_id",
    )
