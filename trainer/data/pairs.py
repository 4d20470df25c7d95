"""The pairs of a split by position: ties index, candidates, order, readers and augmentation together.

A pair is named by its position in an endless order (``handdata.trainer.data.order``). All that is random about a pair
follows from (seed, position), so threads and processes share the work by sharing out positions, and a run resumes at
any position without replaying what came before.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
import torch
import torch.utils.data
from numpy.typing import NDArray
from torch import Tensor

from handdata.pipeline.shards import describe_licences, license_ids, list_shards, read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    DatasetManifest,
    NoPairsError,
    Split,
    UnreadableImageError,
    UsageError,
    license_id_of,
)
from handdata.schemas.arrays import ByteArray
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame, augment_pair, resize
from handdata.trainer.data.batch import FramePair, PairStack
from handdata.trainer.data.candidates import VIEW, PairCandidates
from handdata.trainer.data.latents import LatentReader, LatentStore
from handdata.trainer.data.order import TargetOrder
from handdata.trainer.data.reading import EncodedFrame, StoredRows, largest_reduction
from handdata.trainer.data.sample_index import read_rows, source_ranges
from handdata.trainer.presets import AugmentationConfig, DataConfig, PairConfig, Preset

MOST_IN_PLACE: Final = 10
"""Largest number of pairs that are tried in the place of one that cannot be read."""

_IN_PLACE: Final = 5
"""Last number of the seed of these pairs; ``handdata.trainer.data.order`` has others."""


def open_pairs(
    storage: Storage,
    preset: Preset,
    split: Split,
    *,
    pairs: PairConfig | None = None,
    augmentation: AugmentationConfig | None = None,
    latents: LatentStore | None = None,
    seed: int = 0,
) -> "PairDataset":
    """Open the pairs of a split as a preset chooses rows and image size.

    Args:
        storage: Workspace of the preset's dataset.
        preset: Settings of a run.
        split: Split of the pairs.
        pairs: Kinds of pairs and their weights, of the sources that the preset does not leave out; None takes the
            preset's.
        augmentation: Random changes; with None images are only resized.
        latents: Stored latents that pairs hold instead of images.
        seed: Seed of all that is random about pairs.

    Raises:
        UsageError: No row is usable, or the settings name a source or a condition that does not fit the dataset.

    """
    dataset = Dataset(storage, preset.data.dataset)
    if pairs is not None:
        there = read_manifest(dataset).sources  # a run's settings may name sources that another dataset has not
        left_out = {name: of for name, of in preset.pairs.sources.items() if of.weight == 0 and name in there}
        pairs = pairs.model_copy(update={"sources": {**left_out, **pairs.sources}})
    return PairDataset(
        dataset,
        image_size=preset.image_size,
        split=split,
        pairs=pairs or preset.pairs,
        augmentation=augmentation,
        data=preset.data,
        latents=latents,
        seed=seed,
    )


class PairDataset(torch.utils.data.Dataset[FramePair]):
    """The pairs of a split, by position. Images are read on demand; threads may ask at once."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        image_size: int,
        split: Split,
        pairs: PairConfig | None = None,
        augmentation: AugmentationConfig | None = None,
        data: DataConfig | None = None,
        latents: LatentStore | None = None,
        seed: int = 0,
    ) -> None:
        """Read the index of a split.

        Args:
            dataset: Dataset that holds the split.
            image_size: Side of the images of pairs, pixels.
            split: Split whose rows are targets and references.
            pairs: Kinds of pairs and their weights; None takes the default ones.
            augmentation: Random changes; with None images are only resized.
            data: Choice of rows; None takes all usable ones.
            latents: Stored latents that pairs hold instead of images: a random variant of each pair where there is
                augmentation, else the unchanged one.
            seed: Seed of all that is random about pairs.

        Raises:
            UsageError: No row is usable, or the settings name a source or a condition that does not fit the dataset.

        """
        storage = dataset.storage
        self.storage = storage
        self.image_size = image_size
        self.augmentation = augmentation
        self.seed = seed
        pairs, data = pairs or PairConfig(), data or DataConfig()
        manifest = read_manifest(dataset)
        unknown = sorted(pairs.sources.keys() - manifest.sources.keys())
        if unknown:
            raise UsageError(
                f"pairs.sources names {unknown[0]}, which {storage.describe()} does not hold",
                f"there are {', '.join(manifest.sources)}",
            )
        self.shards = sorted(list_shards(dataset, splits=[split]), key=lambda shard: shard.source)
        if not self.shards:
            raise NoPairsError(f"{storage.describe()} has no samples in split {split}", "annotate more samples")
        rows = read_rows(dataset, self.shards, split, data)
        if rows.is_empty() and data.licences:
            _require_licences(manifest, data.licences)
        self.rows = StoredRows(storage, self.shards, rows)
        """The usable rows."""
        sources = list(source_ranges(self.shards, np.diff(self.rows.starts)))
        self._candidates = PairCandidates(rows, sources, pairs)
        self._hands_known = rows["hands_known"].to_numpy()
        self._sequences = rows["sequence_id"]
        self.licences: list[str] = sorted(rows["license_id"].unique().cast(pl.String).drop_nulls())
        """Ids of the licences of the usable rows."""
        targets = self._candidates.source_targets(self.rows.starts)
        if not targets:
            raise NoPairsError(
                f"{storage.describe()} has no usable pairs in split {split}",
                "annotate more samples, or loosen --where, --licence and the weights of pairs",
            )
        self.targets: dict[str, int] = {source.name: len(source) for source in targets}
        """Targets of each source: where they change, so does the order."""
        self._order = TargetOrder(targets, seed)
        self._latents = None if latents is None else latents.reader(self.shards, self.rows.of_shard)
        smallest_crop = 1.0 if augmentation is None else augmentation.smallest_crop
        self._stored_side = manifest.image_size
        self._reduction = largest_reduction(manifest.image_size, image_size, smallest_crop)
        self._unreadable: dict[int, list[str]] = {}

    def __len__(self) -> int:
        """Return the pairs of one epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[FramePair]:
        """Yield the pairs of the first epoch."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> FramePair:
        """Return the pair at a position of the endless order."""
        return FramePair(*(field[0] for field in self.batch([position])))

    def batch(self, positions: Sequence[int]) -> FramePair:
        """Return the pairs at some positions, stacked; what they need of files is read at once.

        Images lie in memory as they were decoded, channels last, behind (N, 3, S, S). In the place of a pair that
        cannot be read comes another one of the same epoch, drawn by (seed, position); ``take_unreadable`` tells.

        Raises:
            UnreadableImageError: Nor can ``MOST_IN_PLACE`` others be read.

        """
        read = list(positions)
        failures: dict[int, list[str]] = {}
        while True:
            try:
                return self._batch(read)
            except _UnreadablePairError as found:
                number, position = found.number, positions[found.number]
                failed = failures.setdefault(position, [])
                failed.append(found.cause.message)
                self._unreadable[position] = failed
                if len(failed) > MOST_IN_PLACE:
                    raise found.cause from None
                read[number] = self._in_place_of(position)[len(failed) - 1]

    def take_unreadable(self, stop: int) -> list[str]:
        """Return what could not be read of the pairs before a position, a message each, and forget it."""
        positions = sorted(position for position in list(self._unreadable) if position < stop)
        return [message for position in positions for message in self._unreadable.pop(position)]

    def _in_place_of(self, position: int) -> list[int]:
        """Return the positions that are tried, one after the other, in the place of one."""
        first = position - position % len(self)
        drawn = np.random.default_rng([self.seed, position, _IN_PLACE]).integers(len(self), size=MOST_IN_PLACE)
        return [first + int(offset) for offset in drawn]

    def _batch(self, positions: Sequence[int]) -> FramePair:
        drawn = [self.rows_at(position) for position in positions]
        tasks = [Task.VIEW_CHANGE if kind == VIEW else Task.POSE_CHANGE for _, _, kind in drawn]
        if self._latents is not None:
            return self._stored_batch(self._latents, positions, drawn, tasks)
        encoded = iter(
            self.rows.read(
                [
                    (row, with_mask)
                    for target, reference, _ in drawn
                    # Nobody looks at a target's mask: the network has to draw it.
                    for row, with_mask in ((target, False), (reference, True))
                    if row is not None
                ]
            )
        )
        stack = PairStack(len(positions), self.image_size)
        for number, (position, (target, reference, kind)) in enumerate(zip(positions, drawn, strict=True)):
            frames = next(encoded), None if reference is None else next(encoded)
            # A hand of which nothing is known may be in the image, and would be shown as one that the target labels.
            keeps_sides = kind == VIEW or not self._hands_known[target]
            try:
                stack.put(number, *self._decoded(position, keeps_sides, *frames, stack.images(number)))
            except UnreadableImageError as error:
                raise _UnreadablePairError(number, error) from None
        return stack.pairs(tasks)

    def rows_at(self, position: int) -> tuple[int, int | None, int]:
        """Return the row of the target, the row of the reference (None for a still) and the kind of the pair."""
        target = self._candidates.target(self._order[position])
        kind, reference = self._candidates.draw(target, np.random.default_rng([self.seed, position, 0]))
        return target, reference, kind

    def effective_epochs(self, position: int) -> dict[str, float]:
        """Return how often each source's targets have been shown, on average, before ``position``."""
        return self._order.effective_epochs(position)

    def find(self, sample_id: str) -> int:
        """Return the row of a sample.

        Raises:
            UsageError: The sample is not among the usable rows of this split.

        """
        return self.rows.find(sample_id)

    def video_rows(self, row: int) -> list[int]:
        """Return the rows of the video that a row belongs to, in order of time."""
        return self._candidates.video_rows(row)

    def sequence_id(self, row: int) -> str:
        """Return the sequence that a row belongs to."""
        return str(self._sequences[row])

    def columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Return columns of a row's sample, by name."""
        shard, number = self.rows.in_shard(row)
        table = self.storage.read_parquet(self.shards[shard].name, list(names))
        (values,) = table.slice(number, 1).to_pylist()
        return dict(values)

    def frame(self, row: int) -> Frame:
        """Return a row's image and labels at the training size.

        Raises:
            UnreadableImageError: The image cannot be decoded.

        """
        (encoded,) = self.rows.read([(row, True)])
        return resize(self._decode(encoded, 1), self.image_size)

    def _decode(self, encoded: EncodedFrame, reduction: int, into: ByteArray | None = None) -> Frame:
        frame = encoded.decode(reduction, into)
        if (side := frame.image.shape[0] * reduction) != self._stored_side:
            raise UnreadableImageError(f"{encoded.place}: the image has {side} pixels, not {self._stored_side}")
        return frame

    def _decoded(
        self,
        position: int,
        keeps_sides: bool,
        target: EncodedFrame,
        reference: EncodedFrame | None,
        into: tuple[ByteArray, ByteArray],
    ) -> tuple[Frame, Frame | None]:
        """Return both frames of a pair at the training size, their images in the memory ``into`` where they fit it."""
        frame = self._decode(target, self._reduction, into[0])
        other = None if reference is None else self._decode(reference, self._reduction, into[1])
        if self.augmentation is None:
            return resize(frame, self.image_size), None if other is None else resize(other, self.image_size)
        rng = np.random.default_rng([self.seed, position, 1])
        return augment_pair(frame, other, keeps_sides, self.image_size, self.augmentation, rng)

    def _stored_batch(
        self,
        latents: LatentReader,
        positions: Sequence[int],
        drawn: Sequence[tuple[int, int | None, int]],
        tasks: Sequence[Task],
    ) -> FramePair:
        """Return the pairs at some positions, with stored latents instead of images."""
        variants = [0] * len(positions)
        if self.augmentation is not None:
            rngs = (np.random.default_rng([self.seed, position, 1]) for position in positions)
            variants = [int(rng.integers(latents.variants)) for rng in rngs]
        present = np.array([reference is not None for _, reference, _ in drawn])
        rows = [(target, variant) for (target, _, _), variant in zip(drawn, variants, strict=True)]
        rows += [(row, variant) for (_, row, _), variant in zip(drawn, variants, strict=True) if row is not None]
        frames = latents.read([(*self.rows.in_shard(row), variant) for row, variant in rows])
        count = len(positions)
        usable = frames.intact & np.isfinite(frames.moments).reshape(len(rows), -1).all(axis=1)
        if not usable.all():
            first = int(np.argmin(usable))
            number = first if first < count else int(np.flatnonzero(present)[first - count])
            place = latents.place(*self.rows.in_shard(rows[first][0]))
            why = "its latent is not finite: the image was unreadable, or the autoencoder's numbers overflowed"
            if not frames.intact[first]:
                why = "its latent is damaged: the checksum differs"
            hint = "repair the image, remove the file, and run `handdata encode` again"
            raise _UnreadablePairError(number, UnreadableImageError(f"{place}: {why}", hint))

        def targets(field: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(field[:count])

        def references(field: NDArray[np.generic]) -> Tensor:
            if present.all():
                return torch.from_numpy(field[count:])
            spread = np.zeros((count, *field.shape[1:]), field.dtype)
            spread[present] = field[count:]
            return torch.from_numpy(spread)

        return FramePair(
            target_image=targets(frames.moments),
            target_weight=targets(_levels(frames.weight)),
            target_keypoints=targets(frames.keypoints),
            target_valid=targets(frames.valid),
            reference_image=references(frames.moments),
            reference_mask=references(_levels(frames.mask)),
            reference_keypoints=references(frames.keypoints),
            reference_valid=references(frames.valid),
            reference_dropped=torch.from_numpy(~present),
            task=torch.tensor(tasks),
        )


def _require_licences(manifest: DatasetManifest, licences: Sequence[str]) -> None:
    """Raise where no source is under one of some licences.

    Raises:
        NoPairsError: There is none; the message lists the licences of the sources.

    """
    if {license_id_of(name) for name in licences}.isdisjoint(license_ids(manifest).values()):
        raise NoPairsError(
            f"no usable pairs are under {', '.join(licences)}", f"there are {describe_licences(manifest)}"
        )


class _UnreadablePairError(Exception):
    """A pair of a batch cannot be read."""

    def __init__(self, number: int, cause: UnreadableImageError) -> None:
        super().__init__(number, cause)
        self.number, self.cause = number, cause


def _levels(shares: NDArray[np.float16]) -> ByteArray:
    """Return planes (N, h, w) of shares, 0 to 1, as (N, 1, h, w) of 0 to 255."""
    return np.rint(shares[:, None].astype(np.float32) * 255).astype(np.uint8)
