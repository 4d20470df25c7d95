"""What a run is measured by and shows: the same pairs of the validation split every time, without augmentation."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from handdata.pipeline.storage import Storage
from handdata.schemas import NoPairsError, UnreadableImageError
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.batch import FramePair
from handdata.trainer.data.latents import LatentStore
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.data.splits import VALIDATION_SPLIT
from handdata.trainer.presets import PairConfig, Preset

VALIDATION_PAIRS: Final = 256
"""Largest number of pairs that a run is measured on."""
_FEWEST: Final = 2
"""Smallest number: each target's keypoints are compared with another's."""


def validation_batches(
    storage: Storage, preset: Preset, latents: LatentStore | None, on_unreadable: Callable[[str], None] | None = None
) -> list[FramePair]:
    """Return the batches that a run is measured on.

    They are the same for all numbers of processes and sizes of micro batches.

    Args:
        storage: Workspace of the run.
        preset: Settings of the run.
        latents: Stored latents that pairs hold instead of images.
        on_unreadable: Called with a line on each pair that could not be read; another one took its place.

    Raises:
        NoPairsError: The validation split, or the preset's choice of its rows, has fewer than two pairs.
        UsageError: Its shards have no latents.

    """
    dataset = open_pairs(storage, preset, VALIDATION_SPLIT, latents=latents)
    if len(dataset) < _FEWEST:
        raise NoPairsError(
            f"{storage.describe()} has one usable pair in split {VALIDATION_SPLIT}, and {_FEWEST} are compared"
        )
    size = min(max(preset.optimisation.batch_size, _FEWEST), len(dataset))
    count = max(min(VALIDATION_PAIRS, len(dataset)) // size, 1)
    batches = list(pair_batches(dataset, [range(first, first + size) for first in range(0, count * size, size)]))
    for message in dataset.take_unreadable(count * size):
        if on_unreadable:
            on_unreadable(message)
    return batches


def pairs_to_show(storage: Storage, preset: Preset) -> tuple[list[Frame], list[Frame]]:
    """Return references and targets of the pairs that a run draws; none where the validation split has no pairs."""
    of_two_frames = PairConfig(**preset.pairs.model_dump() | {"still": 0.0, "sources": {}})
    try:
        dataset = open_pairs(storage, preset, VALIDATION_SPLIT, pairs=of_two_frames)
    except NoPairsError:
        return [], []
    frames: list[tuple[Frame, Frame]] = []
    for position in range(len(dataset)):
        target, reference, _ = dataset.rows_at(position)
        if len(frames) == preset.monitoring.pictures:
            break
        with suppress(UnreadableImageError):
            if reference is not None:
                frames.append((dataset.frame(reference), dataset.frame(target)))
    return [reference for reference, _ in frames], [target for _, target in frames]
