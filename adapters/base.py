"""What an adapter is: a dataset as its users download it, turned into normalized records.

An adapter lists **partitions** (cheaply: folder and file names only), reads the **records** of one partition (labels
and file headers, never pixels), and opens a frame's **mask** later, on the worker that annotates it. It knows nothing
of Ray, storage or progress: the callers do that. Adapters hold no state but their options, so they travel to workers.

``docs/adding-a-source.md`` shows how to write one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Final, Protocol, runtime_checkable

from handdata.adapters.reading.listing import holds_match
from handdata.schemas.arrays import BoolArray
from handdata.schemas.errors import UsageError
from handdata.schemas.record import HandRecord, Split
from handdata.schemas.record_batch import RecordBatch
from handdata.schemas.rejection import Rejection
from handdata.schemas.sources import SourceCard

MOST_FRAMES_PER_S: Final = 10_000
_OF_ALL_SOURCES: Final = frozenset({"mano_dir", "follow_links"})


@dataclass(frozen=True, slots=True)
class Layout:
    """One arrangement of files that a dataset is known to come in.

    Args:
        name: Name that users know, for messages ("v1", "cropped images").
        patterns: Globs relative to the root; each must match at least once.
        part: Part of the dataset that this layout and others hold in different places; where several that name
            the same part match one folder, nothing tells which one is meant. Layouts without it may all be there.
        release: Release of the dataset that comes in this layout, as its makers name it; None where several do.

    """

    name: str
    patterns: tuple[str, ...]
    part: str = ""
    is_typical: bool = True
    """Whether a folder that has it is proposed to a user who named another source."""
    release: str | None = None

    def missing_from(self, folder: Path) -> list[str]:
        """Return the patterns that match nothing below ``folder``.

        Raises:
            DatasetReadError: A folder on the way cannot be read.

        """
        return [pattern for pattern in self.patterns if not holds_match(folder, pattern)]


@dataclass(frozen=True, slots=True)
class Partition:
    """A share of a source that one worker ingests whole.

    All labels of one frame belong to one partition, so that the adapter can merge them into one record.

    Args:
        name: Name that is unique within the source; partitions are ingested and stored in the order of their names.
        split: Split of all its records.
        paths: Label files or folders to read, POSIX paths relative to the root.
        selection: Part of ``paths``, in the adapter's own terms, where one file serves several partitions.

    """

    name: str
    split: Split
    paths: tuple[str, ...]
    selection: str = ""


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """Options of a user; those behind ``follow_links`` are errors for sources that do not take them (``TakesOptions``).

    Args:
        mano_dir: Folder of the user's own MANO_RIGHT.pkl and MANO_LEFT.pkl, for labels that are MANO parameters.
        follow_links: Whether links below the top of the root are followed, wherever they lead.
        licence: Licence of the data, an SPDX id or a text; None for the one of the source's card.
        val_share: Share of the people who are held out; None for the source's own rule.
        fps: Frames that are kept of a second of video, at most; None for all.
        frames_as_video: Frames a second of the videos that folders of numbered images are; None where they are stills.
        mirrored: Whether the images are mirror images.

    """

    mano_dir: Path | None = None
    follow_links: bool = False
    licence: str | None = None
    val_share: float | None = None
    fps: float | None = None
    frames_as_video: float | None = None
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 <= self.val_share < 1:
            raise UsageError(f"--val-share {self.val_share:g} is no share from 0 to below 1")
        for name, rate in (("fps", self.fps), ("frames-as-video", self.frames_as_video)):
            if rate is not None and not 0 < rate <= MOST_FRAMES_PER_S:
                raise UsageError(f"--{name} {rate:g} is no frame rate, above 0 and up to {MOST_FRAMES_PER_S:,}")
        if self.licence is not None and not self.licence.strip():
            raise UsageError("--licence is empty", "give an SPDX id, such as CC-BY-4.0, or a text")

    def own(self) -> dict[str, str | float | bool]:
        """Return the options that a user has given and only some sources take, by name."""
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.name not in _OF_ALL_SOURCES and getattr(self, option.name) != option.default
        }


class Adapter(Protocol):
    """One source. Implementations are plain classes; a contract test runs every registered one."""

    card: ClassVar[SourceCard]
    """Who made it, under which licence, what it labels."""
    layouts: ClassVar[tuple[Layout, ...]]
    """The arrangements it is known to come in; a root must match one."""

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None: ...

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield the partitions below ``root`` in a deterministic order, reading folder and file names only."""
        ...

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield each frame of a partition once, in a deterministic order, as a record or as a rejection.

        Memory must not grow with the number of records: label files of gigabytes are streamed. An unreadable label is
        a rejection that names the file, never an exception; ``frame_rejection`` makes one of whatever a frame raised.
        """
        ...

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Return the (height, width) mask of all hands of a record that has one.

        Raises:
            RecordError: The mask cannot be read.

        """
        ...


@runtime_checkable
class BatchAdapter(Adapter, Protocol):
    """A source that also gives its records as columns, for label files of millions of frames; ingest prefers that."""

    def record_batches(self, root: Path, partition: Partition) -> Iterator[RecordBatch]:
        """Yield the rows of ``records``, in the same order, as batches of about a thousand."""
        ...


@runtime_checkable
class WarningAdapter(Adapter, Protocol):
    """A source that can say beforehand what will surprise the user."""

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield a line for each thing that is read otherwise than the user may expect, from folder and file names.

        It is called after ``partitions`` has ended without an error.
        """
        ...


@runtime_checkable
class TakesOptions(Adapter, Protocol):
    """A source with options of its own."""

    own_options: ClassVar[frozenset[str]]
    """Names of the fields of ``AdapterOptions`` that it takes beside those of all sources."""


def refuse_foreign_options(adapter: type[Adapter], options: AdapterOptions) -> None:
    """Raise where a user gave options that the source does not take.

    Raises:
        UsageError: It names the first of them.

    """
    taken: frozenset[str] = getattr(adapter, "own_options", frozenset())
    for name in options.own():
        if name not in taken:
            takes = ", ".join(f"--{each.replace('_', '-')}" for each in sorted(taken)) or "no option of this kind"
            raise UsageError(
                f"--{name.replace('_', '-')} is no option of the source {adapter.card.name}", f"it takes {takes}"
            )


def warnings_of(adapter: Adapter, root: Path) -> tuple[str, ...]:
    """Return what an adapter warns of; nothing where it has no warnings to give."""
    return tuple(adapter.warnings(root)) if isinstance(adapter, WarningAdapter) else ()


@runtime_checkable
class PartialAdapter(Adapter, Protocol):
    """A source that ships more than handdata has a use for."""

    unused: ClassVar[tuple[str, ...]]
    """Patterns of folders and archives, relative to the root, whose presence needs no warning; ``*`` spans levels."""


def unused_parts(adapter: Adapter) -> tuple[str, ...]:
    """Return the patterns of what an adapter leaves unread on purpose."""
    return adapter.unused if isinstance(adapter, PartialAdapter) else ()
