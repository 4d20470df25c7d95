"""Pairs of frames from annotated shards: which reference goes with which target, and their pictures.

Every usable row is the target of pairs. Its reference is another moment of the same video (same sequence and camera),
the same moment seen by another camera, or nothing (a still: the reference is dropped, since a picture that is its own
reference teaches to copy). Both frames of a pair say the same about which hands are spoken for, see
``handdata.trainer.sample_index``.

A pair is named by its position in an endless order (``handdata.trainer.order``). All that is random about a pair
follows from (seed, position), so threads and processes share the work by sharing out positions, and a run resumes at
any position without replaying what came before.

Batches are made by threads, not processes: simplejpeg and OpenCV decode outside Python's lock, and a batch that stays
in its process is not copied. Sending one to another process costs about as much as decoding it.
"""

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from handdata.pipeline.shards import list_shards, read_manifest
from handdata.pipeline.storage import Storage
from handdata.schemas import KEYPOINT_COUNT, Split, UsageError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.augment import Frame, augment_pair, resize
from handdata.trainer.autoencoders import Autoencoder, Posterior
from handdata.trainer.conditioning import (
    Task,
    inside_image,
    reference_condition,
    target_condition,
    to_latent_pixels,
)
from handdata.trainer.diffusion import Draws
from handdata.trainer.latents import LatentReader, LatentStore
from handdata.trainer.order import SourceTargets, TargetOrder, source_shares
from handdata.trainer.presets import AugmentationConfig, DataConfig, PairConfig
from handdata.trainer.reading import EncodedFrame, FrameReader, WantedFrame, labels_of, largest_reduction, pictures_of
from handdata.trainer.sample_index import read_rows, source_ranges

VIDEO, VIEW, STILL = range(3)
"""Kinds of pairs, in the order of ``KINDS``."""

KINDS: Final = ("video", "view", "still")
"""Their names, as ``PairConfig`` has them."""


BATCHES_AHEAD: Final = 2
"""Of each decoding thread."""

KEPT_FREE_BYTES: Final = 512 << 20
"""Freed memory that the process keeps for the next pictures and activations."""


class FramePair(NamedTuple):
    """One pair, or a batch of N pairs (then each field has a first axis N).

    Pictures are uint8; S is the training size in pixels. Of stored latents (``DataConfig.latents``) the two images are
    float16 moments of the posterior instead, (2, C, h, w) mean and log variance or (1, C, h, w) the latent itself, and
    weight and mask have the latent's size.
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


class PairDataset:
    """The pairs of some shards, by position. Pictures are read on demand; threads may ask at once.

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
        data: DataConfig | None = None,
        latents: LatentStore | None = None,
        seed: int = 0,
    ) -> None:
        """Read the index of a split.

        ``augmentation`` None: pictures are resized and nothing else. ``latents``: pairs hold these instead of
        pictures, a random variant each where there is augmentation, else the unchanged one.
        """
        self.storage = storage
        self.image_size = image_size
        self.augmentation = augmentation
        self.seed = seed
        pairs, data = pairs or PairConfig(), data or DataConfig()
        manifest = read_manifest(storage, data.dataset)
        unknown = sorted(pairs.sources.keys() - manifest.sources.keys())
        if unknown:
            raise UsageError(
                f"pairs.sources names {unknown[0]}, which {storage.describe()} does not hold",
                f"there are {', '.join(manifest.sources)}",
            )
        self.shards = sorted(list_shards(storage, data.dataset, splits=[split]), key=lambda shard: shard.source)
        if not self.shards:
            raise UsageError(f"{storage.describe()} has no samples in split {split}", "annotate more samples")
        rows = read_rows(storage, self.shards, split, data)
        counts = np.bincount(rows["shard"].to_numpy(), minlength=len(self.shards))
        self._shard_starts = np.concatenate([[0], np.cumsum(counts)])
        sources = list(source_ranges(self.shards, counts))
        self._candidates = PairCandidates(rows, sources, pairs)
        places = rows.select(pl.col("^(image|hand_mask)_(start|bytes)$").fill_null(0)).to_numpy(order="c")
        self._rows = {"row": rows["row"].to_numpy(), "places": places, "sample": rows["sample"].to_numpy()}
        targets = self._candidates.source_targets(self._shard_starts)
        if not targets:
            raise UsageError(
                f"{storage.describe()} has no usable pairs in split {split}",
                "annotate more samples, or loosen --where, --licence and the weights of pairs",
            )
        self._order = TargetOrder(targets, seed)
        self._reader = FrameReader(storage, self.shards, self._rows_of_shard)
        self._latents = None if latents is None else latents.reader(self.shards, self._rows_of_shard)
        smallest_crop = 1.0 if augmentation is None else augmentation.smallest_crop
        self._reduction = largest_reduction(manifest.image_size, image_size, smallest_crop)

    def __len__(self) -> int:
        """Return the pairs of one epoch."""
        return len(self._order)

    def __getitem__(self, position: int) -> FramePair:
        """Return the pair at a position of the endless order."""
        return FramePair(*(field[0] for field in self.batch([position])))

    def batch(self, positions: Sequence[int]) -> FramePair:
        """Return the pairs at some positions, stacked; what they need of files is read at once.

        Pictures lie in memory as they were decoded, channels last, behind (N, 3, S, S).
        """
        drawn = [self.rows_at(position) for position in positions]
        tasks = [Task.VIEW_CHANGE if kind == VIEW else Task.POSE_CHANGE for _, _, kind in drawn]
        if self._latents is not None:
            return self._stored_batch(self._latents, positions, drawn, tasks)
        encoded = iter(
            self._reader.read(
                [
                    self._wanted(row, with_mask)
                    for target, reference, _ in drawn
                    # Nobody looks at a target's mask: it is what the network shall draw.
                    for row, with_mask in ((target, False), (reference, True))
                    if row is not None
                ]
            )
        )
        stack = _PairStack(len(positions), self.image_size)
        for number, (position, (_, reference, kind)) in enumerate(zip(positions, drawn, strict=True)):
            frames = next(encoded), None if reference is None else next(encoded)
            stack.put(number, *self._decoded(position, kind, *frames, stack.places(number)))
        return stack.pairs(tasks)

    def rows_at(self, position: int) -> tuple[int, int | None, int]:
        """Return the row of the target, the row of the reference (None for a still) and the kind of the pair."""
        target = self._candidates.target(self._order[position])
        kind, reference = self._candidates.draw(target, np.random.default_rng([self.seed, position, 0]))
        return target, reference, kind

    def effective_epochs(self, position: int) -> dict[str, float]:
        """Return how often each source's targets have been shown, on average, before ``position``."""
        return self._order.effective_epochs(position)

    def mixture(self) -> dict[str, dict[str, float]]:
        """Return the expected share of each kind of pair of each source in what is trained on; all together 1."""
        kinds = self._candidates.kind_shares()
        return {
            source: {kind: share * kinds[source][number] for number, kind in enumerate(KINDS)}
            for source, share in self._order.shares().items()
        }

    def find(self, sample_id: str) -> int:
        """Return the row of a sample. Raises ``UsageError`` where it is not in this split, or left out."""
        found = np.flatnonzero(self._rows["sample"] == pl.Series([sample_id]).hash()[0])
        if not len(found):
            raise UsageError(f"no sample {sample_id} in {self.storage.describe()}")
        return int(found[0])

    def video_rows(self, row: int) -> list[int]:
        """Return the rows of the video that a row belongs to, in order of time."""
        return self._candidates.video_rows(row)

    def sequence_id(self, row: int) -> str:
        """Return the sequence that a row belongs to."""
        shard, place = self._place(row)
        return str(self.storage.read_parquet(self.shards[shard].name, ["sequence_id"])["sequence_id"][place])

    def frame(self, row: int) -> Frame:
        """Return a row's picture and labels at the training size."""
        (encoded,) = self._reader.read([self._wanted(row, with_mask=True)])
        return resize(encoded.decode(), self.image_size)

    def _decoded(
        self,
        position: int,
        kind: int,
        target: EncodedFrame,
        reference: EncodedFrame | None,
        places: tuple[ByteArray, ByteArray],
    ) -> tuple[Frame, Frame | None]:
        """Return both frames of a pair at the training size, their pictures in ``places`` where they may lie there."""
        frame = target.decode(self._reduction, places[0])
        other = None if reference is None else reference.decode(self._reduction, places[1])
        if self.augmentation is None:
            return resize(frame, self.image_size), None if other is None else resize(other, self.image_size)
        rng = np.random.default_rng([self.seed, position, 1])
        return augment_pair(frame, other, kind == VIEW, self.image_size, self.augmentation, rng)

    def _stored_batch(
        self,
        latents: LatentReader,
        positions: Sequence[int],
        drawn: Sequence[tuple[int, int | None, int]],
        tasks: Sequence[Task],
    ) -> FramePair:
        variants = [0] * len(positions)
        if self.augmentation is not None:
            rngs = (np.random.default_rng([self.seed, position, 1]) for position in positions)
            variants = [int(rng.integers(latents.variants)) for rng in rngs]
        present = np.array([reference is not None for _, reference, _ in drawn])
        rows = [(target, variant) for (target, _, _), variant in zip(drawn, variants, strict=True)]
        rows += [(row, variant) for (_, row, _), variant in zip(drawn, variants, strict=True) if row is not None]
        frames = latents.read([(*self._place(row), variant) for row, variant in rows])
        count = len(positions)

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

    def _rows_of_shard(self, shard: int) -> tuple[NDArray[np.integer], NDArray[np.uint64]]:
        first, stop = self._shard_starts[shard : shard + 2]
        return self._rows["row"][first:stop], self._rows["sample"][first:stop]

    def _place(self, row: int) -> tuple[int, int]:
        """Return a row's shard, and where it stands in it."""
        shard = int(np.searchsorted(self._shard_starts, row, side="right")) - 1
        return shard, int(self._rows["row"][row])

    def _wanted(self, row: int, with_mask: bool) -> WantedFrame:
        shard, place = self._place(row)
        image_start, image_bytes, mask_start, mask_bytes = self._rows["places"][row].tolist()
        places = (image_start, image_bytes), (mask_start, mask_bytes if with_mask else 0)
        return WantedFrame(shard, place, places if image_bytes else None, with_mask)


class PairCandidates:
    """For every row, the rows that can be its reference, kept as places in two sorted orders.

    Memory is a few integers a row; drawing is a lookup.
    """

    def __init__(self, rows: pl.DataFrame, sources: Sequence[tuple[str, int, int]], config: PairConfig) -> None:
        """Sort rows (of ``read_rows``) by video and time, and by moment. ``sources``: name, first row, one past."""
        self._config = config
        self._sources = [name for name, _, _ in sources]
        self._source_starts = np.array([first for _, first, _ in sources] + [len(rows)])
        self._weights = np.array([_kind_weights(config, name) for name in self._sources])
        video = _numbered(rows["video"])
        time = _pair_time(rows, video, config)
        by_video = np.lexsort((time, video)).astype(np.int32)
        by_moment = np.argsort(rows["moment"].to_numpy(), kind="stable").astype(np.int32)
        time, video = time[by_video], video[by_video]
        moment_starts = _run_starts(rows["moment"].to_numpy()[by_moment])

        fits = np.ones((len(rows), len(KINDS)), bool)
        near = (video[1:] == video[:-1]) & (np.diff(time) <= 1 + _TOLERANCE)
        fits[by_video, VIDEO] = np.append(near, False) | np.append(False, near)
        fits[by_moment, VIEW] = np.repeat(np.diff(moment_starts) > 1, np.diff(moment_starts))
        source = np.repeat(np.arange(len(sources)), np.diff(self._source_starts))
        targets = np.flatnonzero((fits & (self._weights > 0)[source]).any(axis=1)).astype(np.int32)
        self.arrays = {
            "fits": fits,
            "time": time,
            "by_video": by_video,
            "in_video": _inverse(by_video),
            "video_starts": _run_starts(video),
            "by_moment": by_moment,
            "in_moment": _inverse(by_moment),
            "moment_starts": moment_starts,
            "targets": targets,
        }

    def source_targets(self, shard_starts: NDArray[np.int64]) -> list[SourceTargets]:
        """Return the sources to mix; ``shard_starts`` are the rows that begin new files."""
        targets = self.arrays["targets"]
        file_starts = np.searchsorted(targets, shard_starts)
        source_starts = np.searchsorted(targets, self._source_starts)
        sizes = dict(zip(self._sources, np.diff(source_starts).tolist(), strict=True))
        weights = {name: settings.weight for name, settings in self._config.sources.items()}
        shares = source_shares(sizes, weights, self._config.temperature)
        sources = []
        for number, name in enumerate(self._sources):
            if name in shares:
                first, stop = source_starts[number : number + 2]
                inside = file_starts[(file_starts >= first) & (file_starts <= stop)]
                sources.append(SourceTargets(name, shares[name], np.unique(inside)))
        return sources

    def target(self, number: int) -> int:
        """Return the row of a target, of those that some kind of pair with a positive weight fits."""
        return int(self.arrays["targets"][number])

    def draw(self, target: int, rng: np.random.Generator) -> tuple[int, int | None]:
        """Draw the kind of a target's pair, by weight among those that fit, and its reference."""
        weights = self._weights[self._source(target)] * self.arrays["fits"][target]
        kind = _drawn(weights, rng)
        if kind == STILL:
            return kind, None
        return kind, self._draw_moment(target, rng) if kind == VIDEO else self._draw_view(target, rng)

    def kind_shares(self) -> dict[str, NDArray[np.float64]]:
        """Return the expected share of each kind (3,) among the pairs of each source."""
        targets = self.arrays["targets"]
        bounds = np.searchsorted(targets, self._source_starts)
        shares = {}
        for number, name in enumerate(self._sources):
            fits = self.arrays["fits"][targets[bounds[number] : bounds[number + 1]]]
            # Eight ways to fit are fewer than the rows.
            ways, counts = np.unique(fits @ np.array([1, 2, 4]), return_counts=True)
            weights = (ways[:, None] >> np.arange(len(KINDS)) & 1) * self._weights[number]
            share = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
            shares[name] = (share * counts[:, None]).sum(axis=0) / max(1, len(fits))
        return shares

    def video_rows(self, row: int) -> list[int]:
        """Return the rows of a row's video, in order of time."""
        first, stop = _run_around(self.arrays["video_starts"], int(self.arrays["in_video"][row]))
        return [int(other) for other in self.arrays["by_video"][first:stop]]

    def _source(self, row: int) -> int:
        return int(np.searchsorted(self._source_starts, row, side="right")) - 1

    def _draw_moment(self, target: int, rng: np.random.Generator) -> int:
        place = int(self.arrays["in_video"][target])
        first, stop = _run_around(self.arrays["video_starts"], place)
        time = self.arrays["time"][first:stop]
        now = time[place - first]
        low, high = np.searchsorted(time, [now - 1 - _TOLERANCE, now + 1 + _TOLERANCE])
        weights = self._gap_weights(np.abs(time[low:high] - now))
        weights[place - first - low] = 0
        return int(self.arrays["by_video"][first + low + _drawn(weights, rng)])

    def _gap_weights(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the density of the configured distribution at gaps that are given as shares of the largest."""
        if self._config.gap == "log-uniform":
            return 1 / np.maximum(gaps, _SMALLEST_GAP)
        if self._config.gap == "exponential":
            return np.exp(-gaps / self._config.mean_gap)
        return np.ones_like(gaps)

    def _draw_view(self, target: int, rng: np.random.Generator) -> int:
        place = int(self.arrays["in_moment"][target])
        first, stop = _run_around(self.arrays["moment_starts"], place)
        other = first + int(rng.integers(stop - first - 1))
        return int(self.arrays["by_moment"][other + (other >= place)])


def pair_batches(dataset: PairDataset, batches: Iterable[Sequence[int]], threads: int = 0) -> Iterator[FramePair]:
    """Yield batches of pairs, each given as positions, in their order.

    ``threads`` decode ahead of the caller, ``BATCHES_AHEAD`` batches each; 0: the caller itself decodes.
    """
    keep_freed_memory()
    if not threads:
        yield from map(dataset.batch, batches)
        return
    pool = ThreadPoolExecutor(threads, "decode", initializer=cv2.setNumThreads, initargs=(1,))
    ahead: deque[Future[FramePair]] = deque()
    try:
        for positions in batches:
            ahead.append(pool.submit(dataset.batch, positions))
            if len(ahead) > BATCHES_AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def keep_freed_memory() -> None:
    """Have glibc reuse what pictures, batches and activations leave; nothing happens with another C library.

    By default it may give their pages back to the kernel and get them anew, zeroed: up to a third of the loader's time
    (``benchmarks/loader.py``), and a twentieth of a training step on the CPU. It holds for the whole process.
    """
    trim_threshold, mmap_threshold, largest_mmap_threshold = -1, -3, 32 << 20  # of malloc.h
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(mmap_threshold, largest_mmap_threshold)
        set_option(trim_threshold, KEPT_FREE_BYTES)


def decode_frame(table: pa.Table, row: int) -> Frame:
    """Decode one row of a table of samples. Raises ``RunError`` for a picture that cannot be decoded."""
    image, mask = pictures_of(table, row)
    labels = labels_of(table.slice(row, 1))
    return EncodedFrame(image, mask, labels.keypoints[0], labels.valid[0], labels.pad_ltrb[0]).decode()


def stack_pairs(pairs: Iterable[tuple[Frame, Frame | None]], tasks: Sequence[Task], size: int) -> FramePair:
    """Stack pairs of target and reference of ``size`` pixels. Where there is no reference, its fields are zeros."""
    stack = _PairStack(len(tasks), size)
    for number, (target, reference) in enumerate(pairs):
        stack.put(number, target, reference)
    return stack.pairs(tasks)


class _PairStack:
    """A batch that is filled pair by pair: pictures are copied, if at all, while the processor's cache holds them."""

    def __init__(self, count: int, size: int) -> None:
        self._targets, self._references = _FrameStack(count, size), _FrameStack(count, size)

    def places(self, number: int) -> tuple[ByteArray, ByteArray]:
        """Return where a pair's pictures will lie: a picture that is made there need not be copied."""
        return self._targets.image[number], self._references.image[number]

    def put(self, number: int, target: Frame, reference: Frame | None) -> None:
        self._targets.put(number, target, target.known)
        if reference is None:
            self._references.clear(number)
        else:
            self._references.put(number, reference, reference.mask)

    def pairs(self, tasks: Sequence[Task]) -> FramePair:
        targets, references = self._targets, self._references
        return FramePair(
            target_image=_channels_first(targets.image),
            target_weight=torch.from_numpy(targets.plane[:, None]),
            target_keypoints=torch.from_numpy(targets.keypoints),
            target_valid=torch.from_numpy(targets.valid),
            reference_image=_channels_first(references.image),
            reference_mask=torch.from_numpy(references.plane[:, None]),
            reference_keypoints=torch.from_numpy(references.keypoints),
            reference_valid=torch.from_numpy(references.valid),
            reference_dropped=torch.from_numpy(~references.present),
            task=torch.tensor(tasks),
        )


class _FrameStack:
    """The target or reference frames of a batch."""

    def __init__(self, count: int, size: int) -> None:
        self.image = np.empty((count, size, size, 3), np.uint8)
        self.plane = np.empty((count, size, size), np.uint8)
        self.keypoints = np.empty((count, KEYPOINT_COUNT, 2), np.float32)
        self.valid = np.empty((count, KEYPOINT_COUNT), np.bool_)
        self.present = np.ones(count, np.bool_)

    def put(self, number: int, frame: Frame, plane: ByteArray) -> None:
        if not np.may_share_memory(frame.image, self.image):
            self.image[number] = frame.image
        self.plane[number] = plane
        self.keypoints[number], self.valid[number] = frame.keypoints, frame.valid

    def clear(self, number: int) -> None:
        for field in (self.image, self.plane, self.keypoints, self.valid, self.present):
            field[number] = 0


def encode_images(images: Tensor, autoencoder: Autoencoder, draws: Draws | None = None) -> Tensor:
    """Return latents (N, C, H, W), drawn from the posterior, of uint8 pictures (N, 3, S, S) or of stored moments."""
    if images.dtype == torch.uint8:
        return autoencoder.encode(images.float() / 127.5 - 1).sample(draws)
    mean, *log_variance = images.float().unbind(1)
    return Posterior(mean, *log_variance).sample(draws)


def pair_conditions(
    batch: FramePair, autoencoder: Autoencoder, draws: Draws | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network is told of a batch: target condition, reference condition and task.

    See ``handdata.trainer.conditioning``. A dropped reference is all zeros.
    """
    latent = encode_images(batch.reference_image, autoencoder, draws)
    latent_size = (latent.shape[-2], latent.shape[-1])
    height, width = (side * autoencoder.factor for side in latent_size)

    def joints(keypoints: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        scaled = to_latent_pixels(keypoints, (height, width), latent_size)
        return scaled, valid & inside_image(keypoints, (height, width))

    target_cond = target_condition(*joints(batch.target_keypoints, batch.target_valid), latent_size)
    mask = (batch.reference_mask > 127).to(latent.dtype)
    ref_cond = reference_condition(latent, *joints(batch.reference_keypoints, batch.reference_valid), mask)
    return target_cond, ref_cond.masked_fill(batch.reference_dropped.view(-1, 1, 1, 1), 0), batch.task


def _channels_first(pictures: ByteArray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def _levels(shares: NDArray[np.float16]) -> ByteArray:
    """Return planes (N, h, w) of shares, 0 to 1, as (N, 1, h, w) of 0 to 255."""
    return np.rint(shares[:, None].astype(np.float32) * 255).astype(np.uint8)


_TOLERANCE: Final = 1e-6
"""Of times in units of the largest gap: keeps frames at exactly that gap, whatever the rounding."""
_SMALLEST_GAP: Final = 1e-3


def _kind_weights(config: PairConfig, source: str) -> list[float]:
    """Return the weights of the kinds of pairs for a source."""
    own = config.sources.get(source)
    weights = []
    for kind in KINDS:
        replaced = None if own is None else getattr(own, kind)
        weights.append(getattr(config, kind) if replaced is None else replaced)
    return weights


def _drawn(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Draw a place by weight: what ``rng.choice`` does, without its checks, which take as long as all else."""
    shares = np.cumsum(weights)
    return int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))


def _numbered(groups: pl.Series) -> NDArray[np.int32]:
    return groups.rank("dense").to_numpy().astype(np.int32)


def _run_starts(values: NDArray[np.generic]) -> NDArray[np.int32]:
    """Return where runs of equal values begin, and the length of all."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0)
    return np.append(starts, len(values)).astype(np.int32)


def _run_around(starts: NDArray[np.int32], place: int) -> tuple[int, int]:
    # Of another type than the array, the number would have a copy made of the whole array.
    run = int(starts.searchsorted(np.int32(place), side="right"))
    return int(starts[run - 1]), int(starts[run])


def _inverse(order: NDArray[np.int32]) -> NDArray[np.int32]:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse


def _pair_time(rows: pl.DataFrame, video: NDArray[np.int32], config: PairConfig) -> NDArray[np.float64]:
    """Return each row's time in units of the largest gap: of seconds, or of frames in videos without time stamps."""
    seconds = rows["timestamp_s"].to_numpy()
    untimed = np.zeros(int(video.max(initial=0)) + 1, bool)
    untimed[video[np.isnan(seconds)]] = True
    return np.where(untimed[video], rows["frame_index"].to_numpy() / config.max_gap_frames, seconds / config.max_gap_s)
