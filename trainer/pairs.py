"""Pairs of frames from annotated shards: which reference goes with which target, and their pictures.

Every usable row is the target of one pair an epoch. Its reference is another moment of the same video (same sequence
and camera), the same moment seen by another camera, or nothing (a still: the reference is dropped, since a picture that
is its own reference teaches to copy).

A pair is named by its position in an endless order: position ``epoch * len(dataset) + index``. All that is random about
a pair follows from (seed, position), so loader workers and processes share the work by sharing out positions, and a run
resumes at any position without replaying what came before.

An epoch's order is shuffled in two steps, so that few files are read at a time: row groups at random, then rows at
random within a few consecutive row groups.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from handdata.pipeline.shards import list_shards, read_index, read_row_group
from handdata.pipeline.storage import Storage
from handdata.schemas import KEYPOINT_COUNT, RunError, Split, UsageError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.augment import Frame, augment_pair, resize
from handdata.trainer.autoencoders import Autoencoder
from handdata.trainer.conditioning import (
    Task,
    inside_image,
    reference_condition,
    target_condition,
    to_latent_pixels,
)
from handdata.trainer.diffusion import Draws
from handdata.trainer.presets import AugmentationConfig, PairConfig

INDEX_COLUMNS: Final = (
    "sample_id",
    "source",
    "split",
    "sequence_id",
    "frame_index",
    "camera_id",
    "timestamp_s",
    "flags",
)
FRAME_COLUMNS: Final = ("image", "hand_mask", "keypoints_2d", "keypoints_valid", "pad_ltrb")

LEFT_OUT_FLAG: Final = "unlabelled_hand"
"""Rows with this flag show a hand without keypoints: training on them teaches to draw hands that nobody asked for."""

SHUFFLED_ROW_GROUPS: Final = 16
"""Rows are shuffled within this many row groups."""

CACHED_ROW_GROUPS: Final = 2 * SHUFFLED_ROW_GROUPS
"""Row groups (encoded, a few MiB each) that a process holds."""

VIDEO, VIEW, STILL = range(3)
"""Kinds of pairs, in the order of ``PairConfig``'s weights."""


class FramePair(NamedTuple):
    """One pair, or, as the loader stacks them, a batch of N pairs (then each field has a first axis N).

    Pictures are uint8; S is the training size in pixels.
    """

    target_image: Tensor
    """(3, S, S) RGB."""
    target_weight: Tensor
    """(1, S, S) 255 where the crop shows the picture, 0 where it lies outside: the loss counts nothing there."""
    target_keypoints: Tensor
    """(42, 2) float32, pixels, (0, 0) the centre of the top-left pixel."""
    target_valid: Tensor
    """(42,) bool, annotated and inside the picture."""
    reference_image: Tensor
    reference_mask: Tensor
    """(1, S, S) 255 on the hands."""
    reference_keypoints: Tensor
    reference_valid: Tensor
    reference_dropped: Tensor
    """() bool: there is no reference; its fields are zeros."""
    task: Tensor
    """() int64, a ``Task``. Stills ask for a pose change, as the published repair without a reference does."""


class PairDataset(Dataset[FramePair]):
    """The pairs of some shards, by position. Cheap to hand to loader workers: pictures are read on demand.

    Raises ``UsageError`` where no row is usable.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        image_size: int,
        split: Split,
        pairs: PairConfig | None = None,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Read the index of a split. ``augmentation`` None: pictures are resized and nothing else."""
        self.storage = storage
        self.image_size = image_size
        self.augmentation = augmentation
        self.seed = seed
        self.shards = list_shards(storage, splits=[split])
        index = read_index(storage, self.shards, INDEX_COLUMNS)
        index = index.filter(~pl.col("flags").list.contains(LEFT_OUT_FLAG))
        self._candidates = PairCandidates(index, pairs or PairConfig())
        self._places = index.select("shard", "row_group", "row").to_numpy()
        self._sample_ids = index["sample_id"]
        self._sequence_ids = index["sequence_id"]
        if not len(self):
            raise UsageError(f"{storage.describe()} has no usable pairs in split {split}", "annotate more samples")
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._row_groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        """Return the pairs of one epoch."""
        return len(self._candidates.targets)

    def __getitem__(self, position: int) -> FramePair:
        """Return the pair at a position of the endless order."""
        target, reference, kind = self.rows_at(position)
        rng = np.random.default_rng([self.seed, position, 1])
        frame = self._frame(target)
        other = None if reference is None else self._frame(reference)
        if self.augmentation is None:
            frame = resize(frame, self.image_size)
            other = None if other is None else resize(other, self.image_size)
        else:
            frame, other = augment_pair(frame, other, kind == VIEW, self.image_size, self.augmentation, rng)
        return frame_pair(frame, other, Task.VIEW_CHANGE if kind == VIEW else Task.POSE_CHANGE)

    def rows_at(self, position: int) -> tuple[int, int | None, int]:
        """Return the row of the target, the row of the reference (None for a still) and the kind of the pair."""
        epoch, index = divmod(position, len(self))
        target = int(self._epoch_order(epoch)[index])
        rng = np.random.default_rng([self.seed, position, 0])
        kind, reference = self._candidates.draw(target, rng)
        return target, reference, kind

    def find(self, sample_id: str) -> int:
        """Return the row of a sample. Raises ``UsageError`` where it is not in this split, or left out."""
        found = self._sample_ids.index_of(sample_id)
        if found is None:
            raise UsageError(f"no sample {sample_id} in {self.storage.describe()}")
        return found

    def sequence_id(self, row: int) -> str:
        """Return the sequence that a row belongs to."""
        return str(self._sequence_ids[row])

    def frame(self, row: int) -> Frame:
        """Return a row's picture and labels at the training size."""
        return resize(self._frame(row), self.image_size)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            targets = self._candidates.targets
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, targets[shuffled_order(self._places[targets, :2], rng)]
        return self._order[1]

    def _frame(self, row: int) -> Frame:
        shard, row_group, offset = (int(value) for value in self._places[row])
        return decode_frame(self._row_group(shard, row_group), offset)

    def _row_group(self, shard: int, row_group: int) -> pa.Table:
        key = shard, row_group
        table = self._row_groups.get(key)
        if table is None:
            table = read_row_group(self.storage, self.shards[shard], row_group, FRAME_COLUMNS)
            self._row_groups[key] = table
            if len(self._row_groups) > CACHED_ROW_GROUPS:
                self._row_groups.popitem(last=False)
        self._row_groups.move_to_end(key)
        return table


class PairCandidates:
    """For every row, the rows that can be its reference, kept as ranges of two sorted orders.

    Memory is a few integers a row; drawing is a lookup.
    """

    targets: NDArray[np.int64]
    """Rows that some kind of pair with a positive weight fits, rising."""

    def __init__(self, index: pl.DataFrame, config: PairConfig) -> None:
        """Sort the rows of an index (``INDEX_COLUMNS``) by video and time, and by moment."""
        self._weights = np.array([config.video, config.view, config.still])
        videos = _group_numbers(index, ["source", "split", "sequence_id", "camera_id"])
        moments = _group_numbers(index, ["source", "split", "sequence_id", "frame_index"])
        time = _pair_time(index, videos, config)
        # One number that sorts by video, then by time; videos lie farther apart than any allowed gap of 1.
        span = float(np.ptp(time)) + 3 if len(time) else 0.0
        key = videos * span + (time - time.min(initial=0))
        self._by_video = np.argsort(key, kind="stable")
        sorted_key = key[self._by_video]
        # The tolerance keeps frames at exactly the largest gap, whatever the rounding.
        self._video_first = np.searchsorted(sorted_key, key - 1 - 1e-6, side="left")
        self._video_stop = np.searchsorted(sorted_key, key + 1 + 1e-6, side="right")
        self._by_moment = np.argsort(moments, kind="stable")
        sorted_moments = moments[self._by_moment]
        self._moment_first = np.searchsorted(sorted_moments, moments, side="left")
        self._moment_stop = np.searchsorted(sorted_moments, moments, side="right")
        self._fits = np.stack(
            [
                self._video_stop - self._video_first > 1,
                self._moment_stop - self._moment_first > 1,
                np.ones(len(index), dtype=bool),
            ],
            axis=1,
        )
        self.targets = np.flatnonzero((self._fits * self._weights).any(axis=1))

    def draw(self, target: int, rng: np.random.Generator) -> tuple[int, int | None]:
        """Draw the kind of a target's pair, by weight among those that fit, and its reference."""
        weights = self._weights * self._fits[target]
        kind = int(rng.choice(3, p=weights / weights.sum()))
        if kind == STILL:
            return kind, None
        order, first, stop = (
            (self._by_video, self._video_first[target], self._video_stop[target])
            if kind == VIDEO
            else (self._by_moment, self._moment_first[target], self._moment_stop[target])
        )
        others = order[first:stop]
        others = others[others != target]
        return kind, int(others[rng.integers(len(others))])


class PositionSampler(Sampler[int]):
    """Gives a loader the positions ``start``, ``start + 1``, ... below ``stop``."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


def shuffled_order(row_groups: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a shuffled order of rows whose row groups are given as (N, 2): shard and row group.

    Row groups are shuffled, then the rows within each ``SHUFFLED_ROW_GROUPS`` of them.
    """
    _, group = np.unique(row_groups, axis=0, return_inverse=True)
    rank = rng.permutation(int(group.max(initial=-1)) + 1)[group]
    window = rank // SHUFFLED_ROW_GROUPS
    return np.lexsort((rng.random(len(group)), window)).astype(np.int64)


def decode_frame(table: pa.Table, row: int) -> Frame:
    """Decode one row of a table with ``FRAME_COLUMNS``. Raises ``RunError`` for a picture that cannot be decoded."""
    image = _decode(table["image"][row]["bytes"].as_py(), cv2.IMREAD_COLOR_RGB)
    encoded_mask = table["hand_mask"][row].as_py()
    mask = np.zeros(image.shape[:2], np.uint8)
    if encoded_mask is not None:
        mask = _decode(encoded_mask["bytes"], cv2.IMREAD_GRAYSCALE)
    return Frame(
        image=image,
        mask=mask,
        known=_known(image.shape[0], table["pad_ltrb"][row].as_py()),
        keypoints=np.array(table["keypoints_2d"][row].as_py(), np.float32).reshape(KEYPOINT_COUNT, 2),
        valid=np.array(table["keypoints_valid"][row].as_py(), bool),
    )


def frame_pair(target: Frame, reference: Frame | None, task: Task) -> FramePair:
    """Turn two frames of one size into tensors."""
    empty = Frame(
        image=np.zeros_like(target.image),
        mask=np.zeros_like(target.mask),
        known=np.zeros_like(target.known),
        keypoints=np.zeros_like(target.keypoints),
        valid=np.zeros_like(target.valid),
    )
    other = reference or empty
    return FramePair(
        target_image=_channels_first(target.image),
        target_weight=_channels_first(target.known[..., None]),
        target_keypoints=torch.tensor(target.keypoints),
        target_valid=torch.tensor(target.valid),
        reference_image=_channels_first(other.image),
        reference_mask=_channels_first(other.mask[..., None]),
        reference_keypoints=torch.tensor(other.keypoints),
        reference_valid=torch.tensor(other.valid),
        reference_dropped=torch.tensor(reference is None),
        task=torch.tensor(int(task)),
    )


def encode_images(images: Tensor, autoencoder: Autoencoder, draws: Draws | None = None) -> Tensor:
    """Return latents (N, C, H, W), drawn from the posterior, of uint8 pictures (N, 3, S, S)."""
    return autoencoder.encode(images.float() / 127.5 - 1).sample(draws)


def pair_conditions(
    batch: FramePair, autoencoder: Autoencoder, draws: Draws | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network is told of a batch: target condition, reference condition and task.

    See ``handdata.trainer.conditioning``. A dropped reference is all zeros.
    """
    latent = encode_images(batch.reference_image, autoencoder, draws)
    height, width = batch.reference_image.shape[-2:]
    latent_size = (latent.shape[-2], latent.shape[-1])

    def joints(keypoints: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        scaled = to_latent_pixels(keypoints, (height, width), latent_size)
        return scaled, valid & inside_image(keypoints, (height, width))

    target_cond = target_condition(*joints(batch.target_keypoints, batch.target_valid), latent_size)
    mask = (batch.reference_mask > 127).to(latent.dtype)
    ref_cond = reference_condition(latent, *joints(batch.reference_keypoints, batch.reference_valid), mask)
    return target_cond, ref_cond.masked_fill(batch.reference_dropped.view(-1, 1, 1, 1), 0), batch.task


def _channels_first(picture: ByteArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def _decode(data: bytes, flag: int) -> ByteArray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if picture is None:
        raise RunError("a shard holds a picture that cannot be decoded", "annotate its source again")
    return np.asarray(picture, dtype=np.uint8)


def _known(size: int, pad_ltrb: Sequence[float]) -> ByteArray:
    """Return (size, size): 255 on pixels that lie wholly inside the picture."""
    left, top, right, bottom = (int(np.ceil(pad)) for pad in pad_ltrb)
    known = np.zeros((size, size), np.uint8)
    known[top : size - bottom, left : size - right] = 255
    return known


def _group_numbers(index: pl.DataFrame, columns: list[str]) -> NDArray[np.int64]:
    return index.select(pl.struct(columns).rank("dense")).to_series().to_numpy().astype(np.int64)


def _pair_time(index: pl.DataFrame, videos: NDArray[np.int64], config: PairConfig) -> NDArray[np.float64]:
    """Return each row's time in units of the largest gap: of seconds, or of frames in videos without time stamps."""
    frame = index.select(
        pl.lit(videos).alias("video"),
        pl.col("timestamp_s") / config.max_gap_s,
        frames=pl.col("frame_index") / config.max_gap_frames,
    )
    timed = pl.col("timestamp_s").is_not_null().all().over("video")
    time = frame.select(pl.when(timed).then("timestamp_s").otherwise("frames")).to_series()
    return np.asarray(time.to_numpy(), dtype=np.float64)
