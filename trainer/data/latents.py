"""Stored latents: the autoencoder's answer computed once, and training from it instead of from images.

``handdata encode`` writes, for every shard, one file of the same name (which holds a hash of the shard's content):

    W/dataset/latents/<autoencoder>-<fingerprint>-<size>px/latents.json
    W/dataset/latents/.../source=<s>/split=<sp>/<shard>.parquet

A file has ``variants`` rows for each row of its shard: first all rows unchanged, then all rows changed at random once,
and so on. Frames of one sequence share a variant's flip and gamma, so that two frames of one variant are a pair as
augmentation makes them; crops are drawn for each frame. The hand swap, which changes one frame of a pair, has no stored
form.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from queue import Queue
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from handdata.pipeline.shards import Shard, list_shards, read_manifest
from handdata.pipeline.storage import Dataset, Storage, blob_checksums, blob_ranges, table_to_parquet
from handdata.pipeline.storage.layout import latents_file, latents_settings_file
from handdata.schemas import KEYPOINT_COUNT, UnreadableImageError, UsageError
from handdata.schemas.arrays import BoolArray, FloatArray
from handdata.schemas.sample import PIXEL_COLUMNS
from handdata.trainer.autoencoders import Autoencoder, Posterior
from handdata.trainer.data.augment import Frame, augment_alone, resize
from handdata.trainer.data.reading import (
    LABEL_COLUMNS,
    EncodedFrame,
    ExpectedRows,
    images_of,
    is_intact,
    labels_of,
    largest_reduction,
    place_of,
    remembered_by_source,
    require_rows,
)
from handdata.trainer.data.sample_index import READERS
from handdata.trainer.devices import autocast, copy_to
from handdata.trainer.presets import AugmentationConfig, AutoencoderConfig, Config

LATENT_SCHEMA: Final = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("latent", pa.binary(), nullable=False),
        pa.field("keypoints_2d", pa.list_(pa.float32(), 2 * KEYPOINT_COUNT), nullable=False),
        pa.field("keypoints_valid", pa.list_(pa.bool_(), KEYPOINT_COUNT), nullable=False),
    ]
)
"""``latent``: float16, little-endian, (channels, h, w): the posterior's mean, its log variance where it has one, the
share of each latent pixel that shows the source image (0 to 1), and the hand mask (0 or 1). Keypoints are pixels of the
variant at the training size; valid = annotated and inside it."""

ROWS_A_GROUP: Final = 128
FINGERPRINT_DIGITS: Final = 8
BATCHES_AHEAD: Final = 2
"""Batches that are decoded ahead of each device."""


class LatentSettings(Config):
    """``latents.json``: the settings that the files of a folder of latents were made with."""

    autoencoder: str
    fingerprint: str
    image_size: int
    variants: int
    augmentation: AugmentationConfig
    """Random changes of the variants after the first."""
    latent_channels: int
    has_variance: bool
    latent_size: int
    """Height and width of the latent."""


@dataclass(frozen=True, slots=True)
class EncodeSummary:
    """What one call of ``encode`` did."""

    folder: str
    shards: int
    """Shards that this call encoded."""
    done_before: int
    """Shards that were encoded before."""
    rows: int
    """Rows of latents that this call wrote."""
    bytes: int
    """Size of the files that this call wrote."""
    unreadable: tuple[str, ...] = ()
    """Images of these files that could not be decoded, a message each. Their latents are not numbers, and training
    passes over them."""


class StoredFrames(NamedTuple):
    """N frames as stored."""

    moments: NDArray[np.float16]
    """(N, 2, C, h, w) mean and log variance, or (N, 1, C, h, w)."""
    weight: NDArray[np.float16]
    """(N, h, w) share of each latent pixel that shows the source image."""
    mask: NDArray[np.float16]
    """(N, h, w) 1 on the hands."""
    keypoints: FloatArray
    """(N, 42, 2)"""
    valid: BoolArray
    """(N, 42)"""
    intact: BoolArray
    """(N,) whether the latent has the checksum that it was written with, where the file says that."""


def fingerprint(autoencoder: Autoencoder) -> str:
    """Return a hash of an autoencoder's weights and scale: latents of other weights are other latents."""
    digest = hashlib.sha256(f"{type(autoencoder).__name__} {autoencoder.scale}".encode())
    for name, part in sorted(vars(autoencoder).items()):
        if isinstance(part, nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


def latents_folder(dataset: Dataset, config: AutoencoderConfig, autoencoder: Autoencoder, image_size: int) -> str:
    """Return where the latents of an autoencoder lie in a workspace, at one image size."""
    return f"{dataset.latents_folder}/{config.kind}-{fingerprint(autoencoder)}-{image_size}px"


def encode(
    dataset: Dataset,
    autoencoder: Autoencoder,
    config: AutoencoderConfig,
    image_size: int,
    *,
    variants: int = 1,
    augmentation: AugmentationConfig | None = None,
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    threads: int = 0,
    batch_size: int = 32,
    on_shard: Callable[[int, int], None] | None = None,
) -> EncodeSummary:
    """Store the latents of all shards of a dataset; shards that are done are skipped.

    Args:
        dataset: Dataset to encode.
        autoencoder: Autoencoder that ``config`` names.
        config: Settings of the autoencoder.
        image_size: Side of the encoded images, pixels.
        variants: Number of stored forms of each image; all but the first are changed at random.
        augmentation: Random changes of these forms; None takes the default ones.
        devices: Devices that encode, a shard at a time each; the autoencoder may be on any.
        threads: Number of threads that decode images ahead of each device; with 0 they take turns.
        batch_size: Images that are encoded at once on a device.
        on_shard: Called after each shard with (shards done, shards in all).

    Raises:
        UsageError: The folder holds latents of other settings, or the autoencoder takes no images of this size.

    """
    if image_size % autoencoder.factor:
        raise UsageError(
            f"the autoencoder {config.kind} takes no images of {image_size} pixels",
            f"choose a multiple of {autoencoder.factor} for --image-size",
        )
    storage = dataset.storage
    stored_side = read_manifest(dataset).image_size
    folder = latents_folder(dataset, config, autoencoder, image_size)
    side = image_size // autoencoder.factor
    free: Queue[tuple[Autoencoder, torch.device]] = Queue()
    for device in devices:
        free.put((copy_to(autoencoder, device), device))
    probe = free.queue[0][0].encode(torch.zeros(1, 3, image_size, image_size, device=devices[0]))
    settings = LatentSettings(
        autoencoder=config.kind,
        fingerprint=fingerprint(autoencoder),
        image_size=image_size,
        variants=variants,
        augmentation=augmentation or AugmentationConfig(),
        latent_channels=autoencoder.latent_channels,
        has_variance=probe.log_variance is not None,
        latent_size=side,
    )
    earlier = _read_settings(storage, folder)
    if earlier is None:
        storage.write_bytes(latents_settings_file(folder), settings.model_dump_json(indent=2).encode())
    elif earlier != settings:
        raise UsageError(
            f"{storage.describe(folder)} holds {earlier.variants} variants of other settings",
            "encode with the same --variants and augmentation, or remove the folder",
        )
    shards = list_shards(dataset)
    done = set(storage.list_files(folder, ".parquet"))
    left = [shard for shard in shards if latents_file(folder, shard.name) not in done]

    def encode_shard(shard: Shard) -> tuple[int, int, list[str]]:
        chosen, device = free.get()
        try:
            frames = _Variants(storage, shard, settings, stored_side)
            table = _encoded_table(frames, chosen, settings, device, batch_size, threads)
        finally:
            free.put((chosen, device))
        data = table_to_parquet(table, ROWS_A_GROUP)
        storage.write_bytes(latents_file(folder, shard.name), data)
        return len(table), len(data), frames.unreadable

    rows = size = 0
    unreadable: list[str] = []
    with ThreadPoolExecutor(len(devices), "encode") as workers:
        futures = [workers.submit(encode_shard, shard) for shard in left]
        try:
            for number, future in enumerate(as_completed(futures), start=len(shards) - len(left) + 1):
                of_shard = future.result()
                rows, size = rows + of_shard[0], size + of_shard[1]
                unreadable += of_shard[2]
                if on_shard:
                    on_shard(number, len(shards))
        finally:
            workers.shutdown(cancel_futures=True)
    finished = len(shards) - len(left)
    return EncodeSummary(storage.describe(folder), len(left), finished, rows, size, tuple(sorted(unreadable)))


def open_latents(
    dataset: Dataset, autoencoder: Autoencoder, config: AutoencoderConfig, image_size: int
) -> "LatentStore":
    """Return the stored latents of an autoencoder at an image size.

    Raises:
        UsageError: The dataset has no latents of this autoencoder at this size.

    """
    folder = latents_folder(dataset, config, autoencoder, image_size)
    storage = dataset.storage
    settings = _read_settings(storage, folder)
    if settings is None:
        raise UsageError(
            f"{storage.describe()} has no latents of this {config.kind} at {image_size} px ({folder})",
            "run `handdata encode` with the same preset and settings",
        )
    return LatentStore(storage, folder, settings)


@dataclass(frozen=True)
class LatentStore:
    """A folder of stored latents."""

    storage: Storage
    folder: str
    settings: LatentSettings

    def reader(self, shards: Sequence[Shard], expected: ExpectedRows) -> "LatentReader":
        """Return a reader of the latents of some shards.

        Raises:
            UsageError: A shard is not encoded.

        """
        return LatentReader(self, shards, expected)


class LatentReader:
    """Frames of stored latents, by shard, row and variant. Threads may read at once.

    Raises:
        RunError: A file does not hold the ``expected`` rows any more.

    """

    def __init__(self, store: LatentStore, shards: Sequence[Shard], expected: ExpectedRows) -> None:
        self._storage = store.storage
        self._expected = expected
        self._settings = store.settings
        self._names = [latents_file(store.folder, shard.name) for shard in shards]
        done = set(self._storage.list_files(store.folder, ".parquet"))
        missing = [name for name in self._names if name not in done]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(shards)} shards have no latents in {self._storage.describe(store.folder)}",
                "run `handdata encode` again: it continues where it stopped",
            )
        with ThreadPoolExecutor(READERS) as readers:
            blobs = list(readers.map(self._read_blobs, self._names))
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in blobs])])
        self._blobs = np.concatenate(blobs)
        self._labels = remembered_by_source(self._read_labels, shards)

    @property
    def variants(self) -> int:
        """Stored forms of each frame."""
        return self._settings.variants

    def read(self, wanted: Sequence[tuple[int, int, int]]) -> StoredFrames:
        """Return frames, their latents read at once.

        Args:
            wanted: (shard, row in its file, variant) of each frame.

        """
        rows = [(shard, variant * self._rows_of(shard) + row) for shard, row, variant in wanted]
        blobs = self._blobs[[self._starts[shard] + row for shard, row in rows]].tolist()
        ranges = [
            (self._names[shard], start, length) for (shard, _), (start, length, _) in zip(rows, blobs, strict=True)
        ]
        read = self._storage.read_ranges(ranges)
        settings = self._settings
        channels, side = settings.latent_channels, settings.latent_size
        moments = 2 if settings.has_variance else 1
        # A bytearray: tensors of the arrays may be written to.
        stored = np.frombuffer(bytearray().join(read), "<f2")
        planes = stored.reshape(len(rows), moments * channels + 2, side, side)
        labels = [(*self._labels(shard), row) for shard, row in rows]
        return StoredFrames(
            moments=np.ascontiguousarray(planes[:, :-2]).reshape(-1, moments, channels, side, side),
            weight=planes[:, -2],
            mask=planes[:, -1],
            keypoints=np.stack([keypoints[row] for keypoints, _, row in labels]),
            valid=np.stack([valid[row] for _, valid, row in labels]),
            intact=np.array([is_intact(data, checksum) for data, (_, _, checksum) in zip(read, blobs, strict=True)]),
        )

    def place(self, shard: int, row: int) -> str:
        """Return how messages name a row of a shard."""
        return place_of(self._storage, self._names[shard], row)

    def _rows_of(self, shard: int) -> int:
        return int(self._starts[shard + 1] - self._starts[shard]) // self.variants

    def _read_blobs(self, name: str) -> NDArray[np.uint32]:
        """Return where each row's latent lies in a file: (rows, 3) first byte, number of bytes, and CRC-32 or 0."""
        with self._storage.open_parquet(name) as file:
            ranges = blob_ranges(file, "latent")
            checksums = blob_checksums(file, "latent")
        if ranges is None:
            raise UsageError(f"{self._storage.describe(name)} was not written by `handdata encode`", "remove it")
        return np.column_stack([ranges, np.zeros(len(ranges), np.uint32) if checksums is None else checksums])

    def _read_labels(self, shard: int) -> tuple[FloatArray, BoolArray]:
        name, labels = self._names[shard], ("keypoints_2d", "keypoints_valid")
        table = self._storage.read_parquet(name, ["sample_id", *labels])
        require_rows(self._storage.describe(name), table["sample_id"], *self._expected(shard))
        flat = [table[label].combine_chunks().flatten().to_numpy(zero_copy_only=False) for label in labels]
        shape = (len(table), KEYPOINT_COUNT)
        return flat[0].reshape(*shape, 2), flat[1].astype(bool).reshape(shape)


class _Variants:
    """The frames of a shard in the order of its file of latents: all rows unchanged, then each variant of all rows."""

    def __init__(self, storage: Storage, shard: Shard, settings: LatentSettings, stored_side: int) -> None:
        names = ["sample_id", "sequence_id", *PIXEL_COLUMNS, *LABEL_COLUMNS]
        self._table = storage.read_parquet(shard.name, names)
        self._labels = labels_of(self._table)
        self._settings = settings
        self._stored_side = stored_side
        self._storage, self._name = storage, shard.name
        self._unreadable: dict[int, str] = {}
        self.ids: list[str] = self._table["sample_id"].to_pylist()
        self._sequences: list[str] = self._table["sequence_id"].to_pylist()

    def __len__(self) -> int:
        return len(self.ids) * self._settings.variants

    @property
    def unreadable(self) -> list[str]:
        """What could not be decoded so far, a message for each row."""
        return [self._unreadable[row] for row in sorted(self._unreadable)]

    def __getitem__(self, position: int) -> Frame | None:
        """Return a frame, None where its image cannot be decoded."""
        variant, row = divmod(position, len(self.ids))
        try:
            return self._frame(variant, row)
        except UnreadableImageError as error:
            self._unreadable[row] = error.message
            return None

    def _frame(self, variant: int, row: int) -> Frame:
        image, mask = images_of(self._table, row)
        labels = self._labels
        place = place_of(self._storage, self._name, row)
        encoded = EncodedFrame(image, mask, labels.keypoints[row], labels.valid[row], labels.pad_ltrb[row], place)
        size, augmentation = self._settings.image_size, self._settings.augmentation
        if variant == 0:
            return resize(encoded.decode(largest_reduction(self._stored_side, size, 1.0)), size)
        frame = encoded.decode(largest_reduction(self._stored_side, size, augmentation.smallest_crop))
        shared, own = (
            np.random.default_rng([variant, *hashlib.sha256(name.encode()).digest()[:8]])
            for name in (self._sequences[row], self.ids[row])
        )
        return augment_alone(frame, size, augmentation, shared, own)


def _encoded_table(
    frames: _Variants,
    autoencoder: Autoencoder,
    settings: LatentSettings,
    device: torch.device,
    batch_size: int,
    threads: int,
) -> pa.Table:
    rows: list[dict[str, Any]] = []
    nothing = np.zeros((KEYPOINT_COUNT, 2), np.float32), np.zeros(KEYPOINT_COUNT, np.bool_)
    for batch in _decoded_batches(frames, batch_size, threads):
        latents = iter(_encoded_batch([frame for frame in batch if frame], autoencoder, settings, device))
        for frame in batch:
            variant, row = divmod(len(rows), len(frames.ids))
            latent = np.full_like(_blank(settings), np.nan) if frame is None else next(latents)
            keypoints, valid = nothing if frame is None else (frame.keypoints, frame.valid)
            rows.append(
                {
                    "sample_id": frames.ids[row],
                    "variant": variant,
                    "latent": latent.tobytes(),
                    "keypoints_2d": keypoints.reshape(-1),
                    "keypoints_valid": valid,
                }
            )
    return pa.Table.from_pylist(rows, LATENT_SCHEMA)


def _decoded_batches(frames: _Variants, batch_size: int, threads: int) -> Iterator[list[Frame | None]]:
    """Yield the frames of a shard in batches, in their order, decoded ahead by some threads."""
    parts = [range(first, min(first + batch_size, len(frames))) for first in range(0, len(frames), batch_size)]
    if not threads:
        for part in parts:
            yield [frames[position] for position in part]
        return
    ahead: deque[list[Future[Frame | None]]] = deque()
    with ThreadPoolExecutor(threads, "decode", initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for part in parts:
            ahead.append([pool.submit(frames.__getitem__, position) for position in part])
            if len(ahead) > BATCHES_AHEAD:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]


def _blank(settings: LatentSettings) -> NDArray[np.float16]:
    """Return zeros in the form of one row's latent."""
    moments = 2 if settings.has_variance else 1
    return np.zeros((moments * settings.latent_channels + 2, settings.latent_size, settings.latent_size), "<f2")


def _encoded_batch(
    frames: Sequence[Frame], autoencoder: Autoencoder, settings: LatentSettings, device: torch.device
) -> NDArray[np.float16]:
    """Return the latents of some frames (N, channels, h, w), as ``LATENT_SCHEMA`` says."""
    if not frames:
        return _blank(settings)[None][:0]

    def stacked(planes: Sequence[NDArray[np.uint8]]) -> Tensor:
        stack = torch.from_numpy(np.stack(planes))
        return (stack.pin_memory() if device.type == "cuda" else stack).to(device, non_blocking=True)

    images = stacked([frame.image for frame in frames]).permute(0, 3, 1, 2)
    posterior = _posterior(autoencoder, images.float() / 127.5 - 1)
    side = settings.latent_size
    known = stacked([frame.known for frame in frames])[:, None].float() / 255
    mask = (stacked([frame.mask for frame in frames])[:, None] > 127).float()
    parts = [
        posterior.mean,
        *([] if posterior.log_variance is None else [posterior.log_variance]),
        F.interpolate(known, (side, side), mode="area"),
        F.interpolate(mask, (side, side), mode="nearest"),
    ]
    return np.asarray(torch.cat([part.float() for part in parts], dim=1).half().cpu().numpy(), dtype="<f2")


def _posterior(autoencoder: Autoencoder, images: Tensor) -> Posterior:
    """Encode images, on CUDA in float16, as they are stored; in float32 where numbers overflow."""
    with autocast(images.device, "float16"):
        posterior = autoencoder.encode(images)
    moments = (posterior.mean, posterior.log_variance)
    if images.device.type == "cuda" and not all(bool(m.isfinite().all()) for m in moments if m is not None):
        return autoencoder.encode(images)
    return posterior


def _read_settings(storage: Storage, folder: str) -> LatentSettings | None:
    name = latents_settings_file(folder)
    return storage.read_document(name, LatentSettings) if storage.exists(name) else None
