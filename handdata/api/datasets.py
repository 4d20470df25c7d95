"""An annotated dataset: ``handdata.open_dataset``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import polars as pl
import pyarrow as pa
from PIL import Image

from handdata.api.errors import names_arguments
from handdata.pictures.drawing import draw_crop
from handdata.pipeline.settings import load_settings
from handdata.pipeline.shards import list_shards, read_samples
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import DATASET, require_dataset_name
from handdata.schemas import PIXEL_COLUMNS, SAMPLE_SCHEMA, SPLITS, Split, UsageError, license_id_of
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.reading import StoredRows, remembered_by_source, require_rows
from handdata.trainer.data.sample_index import all_of, chosen_rows
from handdata.trainer.data.splits import training_split
from handdata.trainer.presets import DataConfig, Preset, load_preset

if TYPE_CHECKING:
    import datasets

    from handdata.api.tensors import SampleTensors
    from handdata.trainer.data.pairs import PairDataset

_SMALL_COLUMNS = tuple(name for name in SAMPLE_SCHEMA.names if name not in PIXEL_COLUMNS)


@names_arguments
def open_dataset(
    workspace: str | Path | None = None,
    split: Split | None = None,
    where: str | None = None,
    *,
    dataset: str = DATASET,
) -> "HandDataset":
    """Open an annotated dataset, or the rows of it that fulfil a condition.

        >>> dataset = handdata.open_dataset("workspace", split="train", where="sharpness > 5")
        >>> len(dataset) > 0
        True

    Args:
        workspace: Folder or URL of the workspace; by default that of the settings.
        split: The only split to take; all by default.
        where: SQL condition on the columns of a sample, such as ``"NOT array_contains(flags, 'blurry')"``.
        dataset: Folder of the dataset in the workspace.

    Raises:
        UsageError: There is no such dataset or split, or ``where`` is no condition on its columns.

    """
    require_dataset_name(dataset)
    settings = load_settings(workspace=None if workspace is None else str(workspace))
    return HandDataset(Dataset(Storage(settings.workspace), dataset), split, where)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HandSample:
    """One annotated crop around the hands of one image.

        >>> sample = handdata.open_dataset("workspace")[0]
        >>> sample.image.shape, sample.keypoints.shape, sample.valid.shape
        ((64, 64, 3), (2, 21, 2), (2, 21))
        >>> sample.row["source"], sample.license_id, sample.attributes, sample.flags
        ('synthetic', 'Apache-2.0', {}, ())

    Args:
        frame: Image, mask and keypoints as the trainer has them.
        has_mask: Whether there is a mask.
        row: All columns of the sample but for its pixels, by name.

    """

    frame: Frame
    has_mask: bool
    row: dict[str, Any]

    def __repr__(self) -> str:
        height, width, _ = self.frame.image.shape
        flags = f", flags {', '.join(self.flags)}" if self.flags else ""
        return f"<HandSample {self.sample_id}: {width} x {height} px, {int(self.valid.sum())} joints{flags}>"

    @property
    def sample_id(self) -> str:
        """Name of the sample."""
        return str(self.row["sample_id"])

    @property
    def image(self) -> ByteArray:
        """Pixels (H, W, 3) RGB of the crop."""
        return self.frame.image

    @property
    def keypoints(self) -> FloatArray:
        """Joints (2, 21, 2) of the right and the left hand, pixels of the crop; zeros where not valid."""
        return self.frame.keypoints.reshape(2, 21, 2)

    @property
    def valid(self) -> BoolArray:
        """Which joints (2, 21) are annotated and inside the crop."""
        return self.frame.valid.reshape(2, 21)

    @property
    def mask(self) -> BoolArray | None:
        """Pixels (H, W) of the hands; None where there is no mask."""
        return self.frame.mask >= 128 if self.has_mask else None

    @property
    def attributes(self) -> dict[str, str]:
        """What the dataset says beside hands and camera, such as ``gesture``; empty where it says nothing."""
        text = self.row["attributes"]
        return {} if text is None else dict(json.loads(text))

    @property
    def license_id(self) -> str:
        """SPDX id of the licence of the data, or a ``LicenseRef-``."""
        return self.row["license_id"] or license_id_of(self.row["license"])

    @property
    def flags(self) -> tuple[str, ...]:
        """Quality flags."""
        return tuple(self.row["flags"])

    def draw(self, size: int = 512) -> Image.Image:
        """Return a picture of the sample, ``size`` pixels wide: mask, keypoints with their sides, and flags drawn.

        >>> handdata.open_dataset("workspace")[0].draw().save("sample.png")

        """
        _require_size("size", size)
        frame = self.frame
        mask = frame.mask if self.has_mask else None
        return Image.fromarray(draw_crop(frame.image, mask, frame.keypoints, frame.valid, self.flags, size))


class HandDataset(Sequence[HandSample]):
    """The samples of an annotated dataset, in the order of its files. Images are read when a sample is.

        >>> dataset = handdata.open_dataset("workspace", where="frame_index = 0")
        >>> dataset
        <HandDataset dataset: 12 samples where frame_index = 0>
        >>> all(sample.valid.any() for sample in dataset)
        True
        >>> dataset[-1].sample_id == dataset[len(dataset) - 1].sample_id
        True

    Args:
        dataset: Where it lies.
        split: The only split to take.
        where: SQL condition on a sample's columns.

    Raises:
        UsageError: There is no such dataset or split, or ``where`` is no condition on its columns.

    """

    def __init__(self, dataset: Dataset, split: Split | None = None, where: str | None = None) -> None:
        self.dataset, self.split, self.where = dataset, split, where
        if split not in (None, *SPLITS):
            raise UsageError(f"there is no split {split}", f"there are {', '.join(SPLITS)}")
        self._shards = list_shards(dataset, splits=None if split is None else [split])
        if not self._shards:
            which = f" in split {split}" if split else ""
            raise UsageError(f"{dataset.describe()} has no samples{which}", "run `handdata annotate`")
        if where is not None and not isinstance(where, str):
            raise UsageError(f"where is an SQL condition, a text, not {type(where).__name__}")
        every = DataConfig(where=where, unlabelled_hands=True, no_content=True, side_unknown=True)
        self._rows = StoredRows(dataset.storage, self._shards, chosen_rows(dataset, self._shards, every))
        self._table = remembered_by_source(self._read_small, self._shards)

    def __repr__(self) -> str:
        split = f" in split {self.split}" if self.split else ""
        where = f" where {self.where}" if self.where else ""
        return f"<HandDataset {self.dataset.name}: {len(self):,} samples{split}{where}>"

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, position: int) -> HandSample: ...
    @overload
    def __getitem__(self, position: slice) -> list[HandSample]: ...
    def __getitem__(self, position: int | slice) -> HandSample | list[HandSample]:
        """Return a sample, or the samples of a slice.

        Raises:
            UnreadableImageError: An image cannot be decoded.

        """
        if isinstance(position, slice):
            return [self[number] for number in range(len(self))[position]]
        number = range(len(self))[index(position)]
        shard, row = self._rows.in_shard(number)
        (stored,) = self._rows.read([(number, True)])
        (columns,) = self._table(shard).slice(row, 1).to_pylist()
        frame = stored.decode()
        # Those of the file are kept for its other rows.
        own = replace(frame, keypoints=frame.keypoints.copy(), valid=frame.valid.copy())
        return HandSample(own, stored.mask is not None, columns)

    @names_arguments
    def find(self, sample_id: str) -> HandSample:
        """Return a sample by its name.

        Raises:
            UsageError: There is none of this name.

        """
        return self[self._rows.find(sample_id)]

    @names_arguments
    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns of the samples as an Arrow table, in memory.

            >>> table = handdata.open_dataset("workspace").to_arrow(["sample_id", "image"])
            >>> table.num_rows, table.column_names
            (48, ['sample_id', 'image'])

        Args:
            columns: Names of columns; by default all but ``image`` and ``hand_mask``.

        Raises:
            UsageError: A sample has no such column.

        """
        wanted = list(_SMALL_COLUMNS if columns is None else [columns] if isinstance(columns, str) else columns)
        if len(set(wanted)) < len(wanted):
            raise UsageError(f"a column is asked for twice: {', '.join(wanted)}")
        if unknown := [name for name in wanted if name not in SAMPLE_SCHEMA.names]:
            raise UsageError(f"a sample has no column {unknown[0]!r}", f"there are {', '.join(SAMPLE_SCHEMA.names)}")
        tables = []
        for shard in range(len(self._shards)):
            rows, _ = self._rows.of_shard(shard)
            if len(rows):
                tables.append(self._read(shard, list(dict.fromkeys(["sample_id", *wanted]))).take(rows).select(wanted))
        schema = pa.schema([SAMPLE_SCHEMA.field(name) for name in wanted], SAMPLE_SCHEMA.metadata)
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])

    @names_arguments
    def to_polars(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return columns of the samples as a polars table, in memory.

            >>> table = handdata.open_dataset("workspace").to_polars(["split", "sharpness"])
            >>> table.group_by("split").len().sort("split").rows()
            [('test', 8), ('train', 32), ('val', 8)]

        Args:
            columns: Names of columns; by default all but ``image`` and ``hand_mask``.

        Raises:
            UsageError: A sample has no such column.

        """
        return pl.DataFrame(self.to_arrow(columns)).with_columns(pl.col(pl.Categorical).cast(pl.String))

    @names_arguments
    def to_torch(self, image_size: int | None = None) -> "SampleTensors":
        """Return the samples as a torch ``Dataset``, of which a ``DataLoader`` makes batches.

            >>> from torch.utils.data import DataLoader
            >>> batch = next(iter(DataLoader(handdata.open_dataset("workspace").to_torch(), batch_size=4)))
            >>> batch["image"].shape, batch["keypoints"].shape
            (torch.Size([4, 3, 64, 64]), torch.Size([4, 2, 21, 2]))

        Args:
            image_size: Side that images, masks and keypoints are resized to; by default they stay as stored.

        """
        require_torch("to_torch")
        from handdata.api.tensors import SampleTensors

        if image_size is not None:
            _require_size("image_size", image_size)
        return SampleTensors(self, image_size)

    @names_arguments
    def pairs(self, preset: str | Preset = "tiny", *, augmented: bool = True, seed: int = 0) -> "PairDataset":
        """Return the pairs of reference and target that a preset trains on, as a torch ``Dataset``.

        They are of this dataset's split (``train`` where it is of all) and fulfil its condition. Rows that the preset
        does not train on are left out.

            >>> pairs = handdata.open_dataset("workspace", split="train").pairs("tiny")
            >>> pairs[0].target_image.shape, pairs[0].target_keypoints.shape
            (torch.Size([3, 32, 32]), torch.Size([42, 2]))

        Args:
            preset: Name of a preset, or its settings.
            augmented: Whether pairs are changed at random, as in training.
            seed: Seed of all that is random about pairs.

        Raises:
            UsageError: There is no such preset, or no pair.

        """
        require_torch("pairs")
        from handdata.trainer.data.pairs import open_pairs

        settings = load_preset(preset) if isinstance(preset, str) else preset
        return open_pairs(
            self.dataset.storage,
            settings.choosing_rows(where=all_of(settings.data.where, self.where), dataset=self.dataset.name),
            self.split or training_split(self.dataset),
            augmentation=settings.augmentation if augmented else None,
            seed=seed,
        )

    @names_arguments
    def to_huggingface(self) -> "datasets.Dataset":
        """Return the samples with their images as a Hugging Face ``datasets.Dataset``, in memory.

            >>> hands = handdata.open_dataset("workspace", split="val").to_huggingface()
            >>> hands.num_rows, hands[0]["image"].size
            (8, (64, 64))

        Raises:
            UsageError: The library ``datasets`` is not installed.

        """
        try:
            import datasets
        except ImportError:
            raise UsageError('to_huggingface needs the library "datasets"', "pip install datasets") from None
        return cast("datasets.Dataset", datasets.Dataset(self.to_arrow(SAMPLE_SCHEMA.names)))

    def _read_small(self, shard: int) -> pa.Table:
        return self._read(shard, _SMALL_COLUMNS)

    def _read(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Return columns of all rows of a shard.

        Raises:
            RunError: The shard has changed since the dataset was opened.

        """
        table = read_samples(self.dataset.storage, self._shards[shard], columns)
        place = self.dataset.storage.describe(self._shards[shard].name)
        require_rows(place, table["sample_id"], *self._rows.of_shard(shard))
        return table


def _require_size(name: str, size: int) -> None:
    """Check the side of an image.

    Raises:
        UsageError: It is no whole number of pixels from 1 on.

    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UsageError(f"{name} is {size!r}, and should be a whole number of pixels, at least 1")


def require_torch(name: str) -> None:
    """Check that torch is installed.

    Raises:
        UsageError: It is not.

    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UsageError(f"{name} needs torch", 'pip install "handdata[train]"')
