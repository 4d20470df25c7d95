"""Documents beside the tables: the marker of a finished unit, and the manifest of a dataset."""

from collections import Counter
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from handdata.schemas.record import Split

FORMAT_VERSION: Final = 2
"""Version of the columns of records and samples; a newer one is an error for readers.

Version 1 has absolute URIs, and lacks ``license_id``, ``source_release``, ``handdata_version`` and ``attributes``:
readers see null.
"""


class UnitMarker(BaseModel):
    """What one finished unit has written. Only files that a marker names exist for readers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit_id: str
    source: str
    split: Split
    files: tuple[str, ...]
    """Sample files, relative to ``W/dataset``; none where every record was rejected."""
    rejected_files: tuple[str, ...]
    """Rejected tables, relative to ``W``."""
    records: NonNegativeInt
    """Records of the unit = samples + the sum of ``rejected``."""
    samples: NonNegativeInt
    rejected: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Rejected records by reason."""
    flags: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Samples by flag."""
    bytes: NonNegativeInt = 0
    """Size of the sample files."""
    rejected_bytes: NonNegativeInt = 0
    """Size of the rejected tables; 0 in markers of earlier versions, which do not say."""
    annotator_hash: str
    thresholds: dict[str, float] = Field(default_factory=dict)
    """Quality thresholds behind the flags of its samples."""
    tombstones: str = ""
    """Digest of the source's tombstones that its rows honour."""
    format_version: NonNegativeInt = 1
    """Version of the columns of its rows; markers of version 1 do not say."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.records != self.samples + sum(self.rejected.values()):
            raise ValueError("records are not samples and rejected records")
        if self.files and not self.bytes:
            raise ValueError("sample files of no bytes")
        return self


class SplitCounts(BaseModel):
    """Rows of one split of one source."""

    model_config = ConfigDict(extra="forbid")

    units: int = 0
    records: int = 0
    samples: int = 0
    rejected: Counter[str] = Field(default_factory=Counter)
    flags: Counter[str] = Field(default_factory=Counter)
    bytes: int = 0

    def add(self, marker: UnitMarker) -> None:
        """Count one finished unit."""
        self.units += 1
        self.records += marker.records
        self.samples += marker.samples
        self.rejected.update(marker.rejected)
        self.flags.update(marker.flags)
        self.bytes += marker.bytes


class DatasetManifest(BaseModel):
    """``W/dataset/dataset.json``: what the dataset holds, summed from its markers."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    handdata_version: str
    image_size: NonNegativeInt
    """Side of the crops in pixels."""
    annotator_hashes: dict[str, dict[str, object]]
    """Settings and model file hashes behind each ``annotator_hash`` in the rows."""
    quality: dict[str, float] = Field(default_factory=dict)
    """Thresholds behind the flags; after an interrupted ``handdata flag`` some units still have earlier ones."""
    sources: dict[str, dict[Split, SplitCounts]]
    licenses: dict[str, str]
    """Licence of each source, as its card or the user says it."""
    license_ids: dict[str, str] = Field(default_factory=dict)
    """SPDX id or ``LicenseRef-`` of each of these licences."""
    roots: dict[str, str] = Field(default_factory=dict)
    """Folder that the URIs of each source are relative to, where it lay at last; none of sources of version 1."""
    warnings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What the ingest of a source warned of, as when its records were annotated; none of most sources."""
    complete: bool
    """Whether every planned unit has its marker."""
