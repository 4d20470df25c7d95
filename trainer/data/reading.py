"""Reading chosen frames of annotated shards: only the bytes of their images, decoded no larger than needed."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

from handdata.pipeline.shards import Shard, read_row_group
from handdata.pipeline.storage import Storage
from handdata.schemas import KEYPOINT_COUNT, RunError, UnreadableImageError, UsageError
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.sample import JPEG_SIGNATURE, PIXEL_COLUMNS
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.remembered import Remembered

LABEL_COLUMNS: Final = ("keypoints_2d", "keypoints_valid", "pad_ltrb")

Result = TypeVar("Result")

ExpectedRows = Callable[[int], tuple[NDArray[np.integer], NDArray[np.uint64]]]
"""Shard's number -> its rows that are used, and the hashes of their sample ids (polars' own)."""

CACHED_LABELS: Final = 192
"""Files of each source whose labels a process holds, at most 0.8 MB each: those among which its rows are shuffled, the
next ones, and neighbours. A source with many files would push out those of the others from a memory for all."""

CACHED_ROW_GROUPS: Final = 32
"""Row groups of images that a process holds, of files that do not say where each image lies."""

CACHED_RECTANGLES: Final = 16
"""Planes of an image's size that a process holds; most frames have no padding and share one."""

LARGEST_ENLARGEMENT: Final = 1.2
"""An image is decoded at a half, a quarter or an eighth where no crop of it is then enlarged by more than this.

As much as the default crops of 0.85 ask for when images have twice the training size. On 26 photographs the result
differs from that of full decoding (49 dB at the smallest crop) as much as one resizing filter from another (50 dB).
"""

_READ_ANEW: Final = "did drop, flag or annotate --overwrite change the dataset? --resume goes on with what is there now"

_MOST_PIXELS: Final = 1 << 30
"""Largest number of pixels of a JPEG image, as OpenCV allows for other formats."""

# OpenCV's flags "reduced, grey" hold the reduction alone; "RGB" beside them makes the image coloured.
_REDUCED: Final = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}


class Labels(NamedTuple):
    """The labels of a file's N rows."""

    keypoints: FloatArray
    """(N, 42, 2) pixels of the stored image."""
    valid: BoolArray
    pad_ltrb: FloatArray
    """(N, 4) pixels of the stored image."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One row as stored; ``mask`` is None where it has none, or where none was asked for."""

    image: bytes
    mask: bytes | None
    keypoints: FloatArray
    valid: BoolArray
    pad_ltrb: FloatArray
    place: str = "an image"
    """Where it is stored, for messages."""
    checksums: tuple[int, int] = (0, 0)
    """CRC-32 that image and mask had when they were written; 0 where the file does not say."""

    def decode(self, reduction: int = 1, into: ByteArray | None = None) -> Frame:
        """Decode the image and its mask.

        Args:
            reduction: 1, 2, 4 or 8, by which the stored side is divided; it is a multiple of it.
            into: Memory (S, S, 3) that a JPEG of this size is decoded into; the frame then holds it.

        Raises:
            UnreadableImageError: The image or its mask has changed, cannot be decoded, or is no square.

        """
        self._require_unchanged()
        image = self._decoded("image", lambda: _decode_image(self.image, reduction, into))
        side = image.shape[0]
        mask = _rectangle(side, 0, 0, 0, 0)
        if (stored := self.mask) is not None:
            mask = self._decoded("hand mask", lambda: _decode_by_opencv(stored, cv2.IMREAD_GRAYSCALE))
            if mask.shape != (side, side):
                mask = np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
        return Frame(
            image=image,
            mask=mask,
            known=_known(side, self.pad_ltrb / np.float32(reduction)),
            keypoints=((self.keypoints + 0.5) / reduction - 0.5).astype(np.float32)
            if reduction > 1
            else self.keypoints,
            valid=self.valid,
        )

    def _require_unchanged(self) -> None:
        """Compare checksums: many changed bytes decode without a word, to other pixels."""
        for what, data, checksum in zip(("image", "hand mask"), (self.image, self.mask), self.checksums, strict=True):
            if data is not None and not is_intact(data, checksum):
                raise UnreadableImageError(f"{self.place}: the {what} is damaged: its checksum differs", _READ_ANEW)

    def _decoded(self, what: str, decode: Callable[[], ByteArray]) -> ByteArray:
        try:
            pixels = decode()
        except (ValueError, cv2.error) as error:
            why = " ".join(str(error).split())
            raise UnreadableImageError(f"{self.place}: the {what} cannot be decoded: {why}", _READ_ANEW) from error
        if pixels.shape[0] != pixels.shape[1]:
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise UnreadableImageError(f"{self.place}: the {what} is {size} pixels, no square", _READ_ANEW)
        return pixels


class Blob(NamedTuple):
    """Where a value lies in a file, and its CRC-32: 0 where the file does not say."""

    start: int
    length: int
    checksum: int


class WantedFrame(NamedTuple):
    """A row of a shard, and where its image and mask lie in the file."""

    shard: int
    row: int
    blobs: tuple[Blob, Blob] | None
    """Image and mask; None where the file does not say."""
    with_mask: bool = True


class FrameReader:
    """Frames of some shards, by file and row. Threads may read at once.

    Raises:
        RunError: A file does not hold the ``expected`` rows any more.

    """

    def __init__(self, storage: Storage, shards: Sequence[Shard], expected: ExpectedRows) -> None:
        self._storage = storage
        self._shards = shards
        self._expected = expected
        self._labels = remembered_by_source(self._read_labels, shards)
        self._row_group = Remembered(self._read_row_group, CACHED_ROW_GROUPS)

    def labels(self, shard: int) -> Labels:
        """Return the labels of a shard's rows, by its number; no image is read for them."""
        return self._labels(shard)

    def read(self, wanted: Sequence[WantedFrame]) -> list[EncodedFrame]:
        """Return frames as stored; the bytes of all are read at once."""
        ranges = [
            (self._shards[frame.shard].name, blob.start, blob.length)
            for frame in wanted
            if frame.blobs is not None
            for blob in frame.blobs
            if blob.length
        ]
        parts = iter(self._storage.read_ranges(ranges))
        encoded = []
        for frame in wanted:
            checksums = (0, 0)
            if frame.blobs is None:  # a page that is read whole has a checksum of its own
                image, mask = self._images(frame.shard, frame.row)
            else:
                image = next(parts)
                mask = next(parts) if frame.blobs[1].length else None
                checksums = frame.blobs[0].checksum, frame.blobs[1].checksum
            labels = self._labels(frame.shard)
            encoded.append(
                EncodedFrame(
                    image=image,
                    mask=mask if frame.with_mask else None,
                    keypoints=labels.keypoints[frame.row],
                    valid=labels.valid[frame.row],
                    pad_ltrb=labels.pad_ltrb[frame.row],
                    place=place_of(self._storage, self._shards[frame.shard].name, frame.row),
                    checksums=checksums,
                )
            )
        return encoded

    def _read_labels(self, shard: int) -> Labels:
        name = self._shards[shard].name
        table = self._storage.read_parquet(name, ["sample_id", *LABEL_COLUMNS])
        require_rows(self._storage.describe(name), table["sample_id"], *self._expected(shard))
        return labels_of(table)

    def _images(self, shard: int, row: int) -> tuple[bytes, bytes | None]:
        """Return the encoded image and mask of a row through its whole row group."""
        with self._storage.open_parquet(self._shards[shard].name) as file:
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        group = int(np.searchsorted(ends, row, side="right"))
        table = self._row_group(shard, group)
        return images_of(table, row - int(ends[group]) + len(table))

    def _read_row_group(self, shard: int, group: int) -> pa.Table:
        return read_row_group(self._storage, self._shards[shard], group, PIXEL_COLUMNS)


class StoredRows:
    """Rows of shards, by their position in a table of ``chosen_rows``, read on demand. Threads may read at once.

    Args:
        storage: Workspace of the shards.
        shards: Shards that the table names by position.
        rows: The table, in the order of the shards.

    """

    def __init__(self, storage: Storage, shards: Sequence[Shard], rows: pl.DataFrame) -> None:
        self._storage = storage
        counts = np.bincount(rows["shard"].to_numpy(), minlength=len(shards))
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        """First row of each shard, and the number of all rows."""
        self._row = rows["row"].to_numpy()
        self._sample = rows["sample"].to_numpy()
        # A file tells of both columns, or of neither: a mask of which it does not tell is there all the same.
        told = pl.all_horizontal(pl.col("image_start", "hand_mask_start").is_not_null())
        places = pl.col(*(f"{name}_{part}" for name in PIXEL_COLUMNS for part in ("start", "bytes", "crc32")))
        self._blobs = rows.select(pl.when(told).then(places.fill_null(0)).otherwise(0)).to_numpy(order="c")
        self._reader = FrameReader(storage, shards, self.of_shard)

    def __len__(self) -> int:
        return len(self._row)

    def read(self, wanted: Sequence[tuple[int, bool]]) -> list[EncodedFrame]:
        """Return rows as stored, each given with whether its mask is wanted; the bytes of all are read at once."""
        return self._reader.read([self._frame(row, with_mask) for row, with_mask in wanted])

    def joints(self, row: int) -> tuple[FloatArray, BoolArray]:
        """Return a row's keypoints (42, 2), pixels of the stored image, and which are there; no image is read."""
        shard, row_in_file = self.in_shard(row)
        labels = self._reader.labels(shard)
        return labels.keypoints[row_in_file], labels.valid[row_in_file]

    def find(self, sample_id: str) -> int:
        """Return the position of a sample.

        Raises:
            UsageError: The sample is not among the rows.

        """
        (found,) = self.find_all([sample_id])
        if found is None:
            raise UsageError(f"no sample {sample_id} in {self._storage.describe()}")
        return found

    def find_all(self, sample_ids: Sequence[str]) -> list[int | None]:
        """Return the position of each sample, None of those that are not among the rows."""
        hashes = pl.Series(sample_ids, dtype=pl.String).hash().to_numpy()
        rows = np.flatnonzero(np.isin(self._sample, hashes))
        position = dict(zip(self._sample[rows].tolist(), rows.tolist(), strict=True))
        return [position.get(wanted) for wanted in hashes.tolist()]

    def in_shard(self, row: int) -> tuple[int, int]:
        """Return a row's shard, and its row in the shard's file."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return shard, int(self._row[row])

    def of_shard(self, shard: int) -> tuple[NDArray[np.integer], NDArray[np.uint64]]:
        """Return the rows of a shard that are used, and the hashes of their sample ids."""
        first, stop = self.starts[shard : shard + 2]
        return self._row[first:stop], self._sample[first:stop]

    def _frame(self, row: int, with_mask: bool) -> WantedFrame:
        stored = self._blobs[row].tolist()
        image, mask = Blob(*stored[:3]), Blob(*stored[3:])
        blobs = image, mask if with_mask else Blob(0, 0, 0)
        return WantedFrame(*self.in_shard(row), blobs if image.length else None, with_mask)


def remembered_by_source(read: Callable[[int], Result], shards: Sequence[Shard]) -> Callable[[int], Result]:
    """Return a function that reads something of a shard, by its number, and remembers ``CACHED_LABELS`` of a source."""
    return _OfSource({shard.source: Remembered(read, CACHED_LABELS) for shard in shards}, shards)


@dataclass(frozen=True, slots=True)
class _OfSource(Generic[Result]):
    """A function of a shard's number, with a memory for each source."""

    remembered: Mapping[str, Remembered[Result]]
    shards: Sequence[Shard]

    def __call__(self, shard: int) -> Result:
        return self.remembered[self.shards[shard].source](shard)


def largest_reduction(stored_side: int, size: int, smallest_crop: float) -> int:
    """Return the reduction, 1, 2, 4 or 8, to decode images at for training at ``size`` pixels.

    Args:
        stored_side: Side of the stored images, pixels.
        size: Side of the training images, pixels.
        smallest_crop: Least share of an image's side that a crop keeps; 1 where images are not cropped, which are then
            never enlarged.

    """
    enlargement = 1 if smallest_crop == 1 else LARGEST_ENLARGEMENT
    fits = [
        reduction
        for reduction in _REDUCED
        if stored_side % reduction == 0 and smallest_crop * stored_side / reduction * enlargement >= size
    ]
    return max(fits, default=1)


def decode_frame(table: pa.Table, row: int) -> Frame:
    """Decode one row of a table of samples.

    Raises:
        UnreadableImageError: The row's image cannot be decoded.

    """
    image, mask = images_of(table, row)
    labels = labels_of(table.slice(row, 1))
    return EncodedFrame(image, mask, labels.keypoints[0], labels.valid[0], labels.pad_ltrb[0]).decode()


def is_intact(data: bytes, checksum: int) -> bool:
    """Tell whether bytes have their CRC-32; 0 stands for one that is not known."""
    return checksum in (0, zlib.crc32(data))


def place_of(storage: Storage, name: str, row: int) -> str:
    """Return how messages name a row of a file."""
    return f"{storage.describe(name)}, row {row}"


def require_rows(name: str, sample_ids: pa.ChunkedArray, rows: NDArray[np.integer], hashes: NDArray[np.uint64]) -> None:
    """Check that a file's rows are still the samples that the index was made of.

    Args:
        name: Name of the file in messages.
        sample_ids: Column of the whole file.
        rows: Rows that are used.
        hashes: Hashes of their sample ids when the index was made.

    Raises:
        RunError: The file no longer holds these samples in these rows.

    """
    found = pl.Series(sample_ids).hash().to_numpy()
    if len(rows) and (rows.max() >= len(found) or not np.array_equal(found[rows], hashes)):
        raise RunError(f"{name} has changed since this run began", _READ_ANEW)


def labels_of(table: pa.Table) -> Labels:
    """Return the labels of a table with ``LABEL_COLUMNS``."""

    def values(name: str) -> NDArray[np.generic]:
        array = table[name].combine_chunks()
        return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(table), -1)

    return Labels(
        keypoints=values("keypoints_2d").astype(np.float32).reshape(len(table), KEYPOINT_COUNT, 2),
        valid=values("keypoints_valid").astype(bool),
        pad_ltrb=values("pad_ltrb").astype(np.float32),
    )


def images_of(table: pa.Table, row: int) -> tuple[bytes, bytes | None]:
    """Return the encoded image and mask of a row of a table with both columns; an image that is not there is empty."""
    image, mask = table["image"][row].as_py(), table["hand_mask"][row].as_py()
    return (image and image["bytes"]) or b"", mask and mask["bytes"]


def _decode_image(data: bytes, reduction: int, into: ByteArray | None) -> ByteArray:
    if not data.startswith(JPEG_SIGNATURE):
        return _decode_by_opencv(data, _REDUCED[reduction])
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if height * width > _MOST_PIXELS:
        raise ValueError(f"it announces {width} x {height} pixels")
    height, width = height // reduction, width // reduction
    buffer = into if into is not None and into.shape == (height, width, 3) else None
    image = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=reduction, buffer=buffer)
    return np.asarray(image, dtype=np.uint8)


def _decode_by_opencv(data: bytes, flag: int) -> ByteArray:
    if not data:
        raise ValueError("it is empty")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise ValueError("it is no image, or a damaged one")
    return np.asarray(image, dtype=np.uint8)


def _known(size: int, pad_ltrb: FloatArray) -> ByteArray:
    """Return (size, size): 255 on pixels that lie wholly inside the source image; read-only."""
    left, top, right, bottom = np.ceil(pad_ltrb).astype(int).tolist()
    return _rectangle(size, left, top, size - right, size - bottom)


@lru_cache(CACHED_RECTANGLES)
def _rectangle(size: int, left: int, top: int, right: int, bottom: int) -> ByteArray:
    """Return (size, size): 255 inside a rectangle, 0 outside; read-only, since most frames share one of a few."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[top:bottom, left:right] = 255
    pixels.setflags(write=False)
    return pixels
