"""What a run is measured by and shows: the same pairs of the validation split every time, without augmentation."""

from typing import Final

from handdata.pipeline.storage import Storage
from handdata.schemas import UsageError
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.batch import FramePair
from handdata.trainer.data.latents import LatentStore
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import PairDataset, open_pairs
from handdata.trainer.data.splits import VALIDATION_SPLIT
from handdata.trainer.presets import PairConfig, Preset

VALIDATION_PAIRS: Final = 256
"""Largest number of pairs that a run is measured on."""


def validation_batches(storage: Storage, preset: Preset, latents: LatentStore | None) -> list[FramePair]:
    """Return the batches that a run is measured on; none where the validation split has too few pairs.

    Args:
        storage: Workspace of the run.
        preset: Settings of the run.
        latents: Stored latents that pairs hold instead of images.

    """
    dataset = _validation_pairs(storage, preset, preset.pairs, latents)
    if dataset is None:
        return []
    settings = preset.optimisation
    size = min(settings.micro_batch_size or settings.batch_size, settings.batch_size, len(dataset))
    if size < 2:
        return []
    count = max(min(VALIDATION_PAIRS, len(dataset)) // size, 1)
    return list(pair_batches(dataset, [range(first, first + size) for first in range(0, count * size, size)]))


def pairs_to_show(storage: Storage, preset: Preset) -> tuple[list[Frame], list[Frame]]:
    """Return references and targets of the pairs that a run draws; none where the validation split has no pairs."""
    of_two_frames = PairConfig(**preset.pairs.model_dump() | {"still": 0.0, "sources": {}})
    dataset = _validation_pairs(storage, preset, of_two_frames, None)
    if dataset is None:
        return [], []
    pairs = [dataset.rows_at(position)[:2] for position in range(min(preset.monitoring.pictures, len(dataset)))]
    references = [dataset.frame(reference) for _, reference in pairs if reference is not None]
    return references, [dataset.frame(target) for target, _ in pairs]


def _validation_pairs(
    storage: Storage, preset: Preset, pairs: PairConfig, latents: LatentStore | None
) -> PairDataset | None:
    """Return pairs of the validation split; None where it, or the preset's choice of its rows, has none."""
    try:
        return open_pairs(storage, preset, VALIDATION_SPLIT, pairs=pairs, latents=latents)
    except UsageError:
        return None
