"""What an export keeps in its folder to go on where it stopped: what was asked for, and what each unit gave.

OUT/.handdata/export.json                                the request
OUT/.handdata/files/source=<s>/<shard>.json          files of a unit, written before them
OUT/.handdata/units/source=<s>/<shard>.json          what a unit gave, written after its files
OUT/.handdata/parts/source=<s>/<shard>.json              what a format joins at the end
"""

from collections import Counter
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from handdata.schemas import Split

STATE: Final = ".handdata"
REQUEST: Final = f"{STATE}/export.json"
FILES: Final = f"{STATE}/files"
UNITS: Final = f"{STATE}/units"
PARTS: Final = f"{STATE}/parts"

FormatName = Literal["foundhand", "coco", "webdataset", "huggingface", "fiftyone", "rerun"]


class ExportRequest(BaseModel):
    """Which samples are exported, and to which format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: FormatName
    workspace: str
    dataset: str
    where: str | None = None
    """SQL condition on the columns of a sample."""
    licences: tuple[str, ...] = ()
    """Only samples under these licences, by their ids or names; none named: all."""
    split: Split | None = None
    """The only split to take; None for all."""


class ExportedShard(BaseModel):
    """What one shard of the dataset gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the shard's file without its suffix."""
    source: str
    split: Split
    samples: NonNegativeInt
    bytes: NonNegativeInt = 0
    """Size of what was written."""
    licences: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Samples by the id of their licence."""
    flags: Counter[str] = Field(default_factory=Counter)
    """Samples by flag."""


class ExportedFiles(BaseModel):
    """Files that one shard of the dataset gives, relative to the folder of the export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...]
