"""The user's own photographs and videos, as they come from a phone, a browser or a camera. No labels of any kind.

Layout, with folders of splits or without::

    <root>/[train|val|test/][<person>/]**/<photograph or video>

The first folder level, below the splits or without them, is the ``subject_id``; a file beside those folders has none.
Photographs stand upright: width, height and pixels are those of the image turned as its EXIF orientation says, on the
worker too (``extra["upright"]``). What a file's bytes say decides what it is, whatever its name; a file is passed over
where neither its bytes nor its name say photograph or video. Of an animation the first image is taken.

**Held out** are, without folders of splits, whole people: a tenth of them, chosen by a hash of their names, from ten
people on; with fewer only on request (``val_share``). With less than two people, single files are chosen; files of one
shot go together: a photograph and its video (a Live Photo of an iPhone), what was edited of it, a burst.

A file with the content of another one of its person is rejected. Where people share it, the records have one
``origin_id``, so that training takes one of them, and none that is held out too.

**Videos** give every frame, or as many a second as ``fps`` says, by their times. With ``frames_as_video`` a folder of
numbered photographs is one, whose frame numbers are those of the names.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.images import is_iso_image, read_upright_size
from handdata.adapters.reading.listing import (
    ARCHIVE_SUFFIXES,
    NotRegularFileError,
    files_in,
    folders_in,
    names_in,
    only_one,
    open_file,
    read_head,
    size_of,
)
from handdata.adapters.reading.video import video_info
from handdata.schemas import (
    KEYPOINT_COUNT,
    SOURCE_CARDS,
    SPLITS,
    DatasetReadError,
    HandRecord,
    LayoutError,
    RecordError,
    Rejection,
    RejectReason,
    SourceCard,
    Split,
    UsageError,
    record_name,
)
from handdata.schemas.arrays import BoolArray

Kind: TypeAlias = Literal["photograph", "video", "raw"]

PEOPLE_TO_HOLD_OUT_FROM: Final = 10
"""With fewer people nothing is held out unasked: one of three is a third of the data."""
HELD_OUT_SHARE: Final = 0.1

PHOTOGRAPHS: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".hif", ".avif"),
    *(".mpo", ".gif", ".jxl", ".jp2"),
)
"""Ends of names of photographs. The last three are of formats that are not read: their files are rejected by name."""
_RAW: Final = (
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2", ".rwl", ".pef"),
    *(".srw", ".3fr", ".fff", ".iiq", ".mos", ".mef", ".mrw", ".dcr", ".kdc", ".erf", ".gpr", ".x3f"),
)
"""Raw files of cameras. Most are TIFFs whose first image is a small preview."""
_VIDEOS: Final = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm"),
    *(".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv"),
)
_COMPANIONS: Final = (
    *(".lrv", ".thm", "_original", ".bak", ".part", ".crdownload", ".aae", ".xmp", ".json", ".txt", ".html", ".pdf"),
    *(".m4a", ".m4b", ".m4p", ".m4r", ".aax", ".mka", ".weba", ".3ga", ".wav", ".mp3", ".psd", ".ai"),
)
"""Ends of names that are passed over unseen: small copies that cameras write, backups of editors, sound, texts."""
_SPLIT_WORDS: Final[dict[str, Split]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORDS_BESIDE: Final = frozenset(
    {
        "data",
        "dataset",
        "frames",
        "hands",
        "images",
        "img",
        "imgs",
        "photos",
        "pics",
        "pictures",
        "set",
        "split",
        "videos",
    }
)
"""Words that folders of splits have beside the split: ``train_images``."""
_HEAD_BYTES: Final = 64
_PHOTOGRAPH_MARKS: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM....\0{4}", re.DOTALL
)
_VIDEO_MARKS: Final = re.compile(rb"\x1aE\xdf\xa3|RIFF....AVI |....(?:ftyp(?!M4[AB] )|moov|mdat|wide)", re.DOTALL)
_NUMBERED: Final = re.compile(r"(?P<name>.*?)(?P<number>[0-9]{1,9})")
_OF_ONE_SECOND: Final = re.compile(r"burst[_-]?[0-9]{8,}|[0-9]{8}[_-]?[0-9]{6}")
"""Time of day in a name: phones name edits, bursts and videos of a photograph by its second."""
_OF_AN_IPHONE: Final = re.compile(r"(img_)e?([0-9]{4,}).*")
_DECORATION: Final = re.compile(r"[ _.~-]*(?:\([0-9]+\)|~[0-9]+|copy|edit|edited|hevc|mp)$")
"""What is added to the name of a photograph for its video, a copy, or what was edited of it."""
_SHOWN: Final = 8
_END_BYTES: Final = 1 << 16
"""Bytes at the end of files by which most of those that differ do."""
_CLOCK_S: Final = 1e-6
"""Seconds by which the times of frames may be off."""


class PictureFolder(Layout):
    """A layout of which nothing but photographs and videos is known, at whatever depth they lie."""

    def missing_from(self, folder: Path) -> list[str]:
        """Return the patterns where ``folder`` holds neither photograph nor video, or only the dataset's folder."""
        try:
            is_root = not _holds_root(folder) and any(
                _kind_of(path) for below in _walk(folder) for path in _candidates(below)
            )
        except DatasetReadError:
            is_root = True  # who reads it says what cannot be read; a folder in it must not be taken instead
        return [] if is_root else [*self.patterns]


@dataclass(frozen=True, slots=True)
class _Place:
    """The folder of a person with all below it, or the files that lie beside such folders.

    Args:
        folder: The person's folder, or the one that holds the files.
        is_loose: Whether these are the files beside the people's folders.

    """

    folder: Path
    is_loose: bool

    @property
    def person(self) -> str | None:
        """Name of the person; None where no folder says it."""
        return None if self.is_loose else self.folder.name

    def listings(self) -> Iterator[list[Path]]:
        """Yield the files of each folder that may be photographs or videos."""
        for folder in [self.folder] if self.is_loose else _walk(self.folder):
            yield _candidates(folder)

    @property
    def base(self) -> Path:
        """Folder that ``sequence_id`` is relative to: that of the split."""
        return self.folder if self.is_loose else self.folder.parent

    def name_of(self, path: Path) -> str:
        """Return the path below the split, as a ``sequence_id``."""
        return path.relative_to(self.base).as_posix() if path != self.base else path.name

    def paths_of(self, names: Iterable[str]) -> list[Path]:
        """Return the paths of some ``sequence_id``."""
        return [self.base / name for name in names]

    def partition(self, root: Path, split: Split, selection: "_Selection") -> Partition:
        """Return the files of a split in this place as a partition."""
        name = f"{split}/{self.person}" if self.person else split
        return Partition(name, split, (self.folder.relative_to(root).as_posix(),), selection.encoded())


@dataclass(frozen=True, slots=True)
class _Selection:
    """What a partition takes of its place, and what is known of its files.

    Args:
        is_shared: Whether the place has files of both splits.
        copies: Hashes of those files, by their ``sequence_id``, whose content is in another place too.

    """

    is_shared: bool
    copies: Mapping[str, str]

    def encoded(self) -> str:
        """Return the ``selection`` of a partition."""
        return json.dumps([self.is_shared, dict(self.copies)])

    @classmethod
    def of(cls, partition: Partition) -> "_Selection":
        """Return that of a partition."""
        return cls(*json.loads(partition.selection))


class FolderAdapter:
    """Reads photographs and videos of the user's own."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["folder"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        PictureFolder("at any depth", ("photographs or videos",), is_typical=False),
    )
    own_options: ClassVar[frozenset[str]] = frozenset({"licence", "val_share", "fps", "frames_as_video", "mirrored"})

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield one partition for each person of a split, and one for the files beside the people's folders.

        Raises:
            LayoutError: A folder is nearly named as a split, or two folders are one.
            UsageError: ``val_share`` is given, and there are folders of splits.

        """
        _refuse_doubled_folders(root)
        splits = _splits(root)
        if splits and self.options.val_share is not None:
            raise UsageError(
                f"--val-share: {root} has folders of splits ({_listed(splits.values(), root)})",
                "they say what is held out; leave the option out",
            )
        copies = _copies(list(_all_places(root)))
        if splits:
            of_splits = [(split, place, False) for split, base in splits.items() for place in _places(base)]
        else:
            of_splits = list(self._held_out(root))
        found = [
            place.partition(root, split, _Selection(is_shared, copies.get(place, {})))
            for split, place, is_shared in of_splits
        ]
        yield from sorted(found, key=lambda partition: partition.name)

    def _held_out(self, root: Path) -> Iterator[tuple[Split, _Place, bool]]:
        """Yield the places of a folder without splits, each with its split, and whether it is in both splits."""
        places, share = list(_places(root)), self._share(root)
        held = _held_people(places, share)
        for place in places:
            shared = self._held_units(place, share) if held is None else set()
            is_val = held is not None and place.person in held
            yield "val" if is_val else "train", place, bool(shared)
            if shared:
                yield "val", place, True

    def _share(self, root: Path) -> float:
        """Return the share of people, or of files, that is held out from a folder without splits."""
        if self.options.val_share is not None:
            return self.options.val_share
        return HELD_OUT_SHARE if len(_people(_places(root))) >= PEOPLE_TO_HOLD_OUT_FROM else 0

    def _held_units(self, place: _Place, share: float) -> set[str]:
        return _chosen({unit for files in place.listings() for unit in self._units(place, files).values()}, share)

    def _units(self, place: _Place, files: Sequence[Path]) -> dict[Path, str]:
        """Return what each file of a folder is held out with: files of one shot are one unit, and frames of a video."""
        numbers = self._frame_numbers(files)
        stems = {_stem(path) for path in files}
        return {
            path: f"{place.name_of(path.parent)}/" if path in numbers else _shot_of(_stem(path), stems)
            for path in files
        }

    def _frame_numbers(self, files: Sequence[Path]) -> dict[Path, int]:
        """Return the frame numbers of a folder's photographs; none where they are no frames of a video."""
        photographs = [path for path in files if _suffix(path) in PHOTOGRAPHS]
        if self.options.frames_as_video is None or len(photographs) < 2:
            return {}
        matches = [match for path in photographs if (match := _NUMBERED.fullmatch(path.stem))]
        numbers = {int(match["number"]) for match in matches}
        if len(numbers) < len(photographs) or len({match["name"] for match in matches}) > 1:
            return {}
        return {path: int(match["number"]) for path, match in zip(photographs, matches, strict=True)}

    def warnings(self, root: Path) -> Iterator[str]:
        """Yield what is held out, and what is taken otherwise than its name may say."""
        splits = _splits(root)
        bases = list(splits.values()) or [root]
        if splits:
            beside = [*_candidates(root), *(folder for folder in folders_in(root) if folder not in bases)]
            if beside:
                yield f"beside the folders of splits, and so not taken: {_listed(beside, root)}"
            people = {split: _people(_places(base)) for split, base in splits.items()}
            yield f"people by split: {', '.join(f'{split} {len(names):,}' for split, names in people.items())}"
            counts = Counter(spelling for names in people.values() for spelling in set(map(_plainly, names)))
            every = {name for names in people.values() for name in names}
            if several := sorted(name for name in every if counts[_plainly(name)] > 1):
                yield f"in several splits, so that a model is tested on people it has seen: {_some(several)}"
        else:
            yield self._rule(list(_places(root)), self._share(root))
            every = set(_people(_places(root)))
            counts = Counter(map(_plainly, every))
            if alike := sorted(name for name in every if counts[_plainly(name)] > 1):
                yield f"named alike, and taken as different people, of whom some may be held out: {_some(alike)}"
        nested = [child for base in bases for person in folders_in(base) for child in (person, *folders_in(person))]
        deep = [child for child in nested if _nearly_split(child) and child not in bases]
        if deep:
            yield f"named as splits, and taken as people's folders, since they lie too deep: {_listed(deep, root)}"
        twice = [child for child in nested if child.name == child.parent.name]
        if twice:
            yield f"named as the folder around them (unpacked twice?): {_listed(twice, root)}"
        copies = [path for place, found in _copies(list(_all_places(root))).items() for path in place.paths_of(found)]
        if copies:
            yield (
                f"in several people's folders, byte for byte, and counted once in training: {len(copies):,} files, "
                f"{_listed(copies, root)}"
            )
        packed = [root / name for name in names_in(root) if name.lower().endswith(ARCHIVE_SUFFIXES)]
        if packed:
            yield f"packed, and so not looked into: {_listed(packed, root)}"
        if self.options.frames_as_video is not None:
            yield from self._no_videos(root)

    def _no_videos(self, root: Path) -> Iterator[str]:
        """Yield a line where the photographs of folders are no frames, though they may be meant so."""
        several = [
            (folder, files)
            for folder in _walk(root)
            if len(files := [path for path in _candidates(folder) if _suffix(path) in PHOTOGRAPHS]) > 1
        ]
        stills = [folder for folder, files in several if not self._frame_numbers(files)]
        if len(stills) == len(several):
            yield "--frames-as-video: in no folder are all photographs numbered, so that none is a video"
        elif stills:
            listed = _listed(stills, root)
            yield f"--frames-as-video: not all photographs are numbered, so that these are no videos: {listed}"

    def _rule(self, places: Sequence[_Place], share: float) -> str:
        """Return what is held out, in words."""
        people = _people(places)
        folders = f"{len(people):,} {'person' if len(people) == 1 else 'people'} (folders below the root)"
        count = f"there {'is' if len(people) == 1 else 'are'} {folders}"
        held = _held_people(places, share)
        if held:
            loose = next((len(files) for place in places if place.is_loose for files in place.listings()), 0)
            beside = f"; the {loose:,} files beside these folders, which may show them, are trained on" if loose else ""
            return f"held out, of {folders}: {', '.join(sorted(held))}{beside}"
        if held is None and share:
            files = sum(len(self._held_units(place, share)) for place in places)
            return f"held out: {files:,} files, which may show people who are trained on, too; {count}"
        return (
            f"nothing is held out: {count}, and from {PEOPLE_TO_HOLD_OUT_FROM} on a tenth of them is; "
            f"--val-share {HELD_OUT_SHARE} holds out that share of these"
        )

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield each photograph and each frame of the videos, folder by folder, shorter names first."""
        folder = root / partition.paths[0]
        place = _Place(folder, is_loose="/" not in partition.name)
        selection = _Selection.of(partition)
        held = self._held_units(place, self._share(root)) if selection.is_shared else None
        seen, copies = _Contents(), selection.copies
        for files in place.listings():
            numbers = self._frame_numbers(files)
            units = self._units(place, files)
            taken = {path for path in files if held is None or (units[path] in held) == (partition.split == "val")}
            frames = {path: numbers[path] for path in files if path in taken and path in numbers}
            yield from self._frames(partition.split, place, frames, copies)
            for path in sorted(set(files) - numbers.keys(), key=_of_copies_last):
                if path in taken:
                    yield from self._file(partition.split, place, path, seen, copies)
                elif _kind_of(path) in ("photograph", "video"):  # a copy of it in this split would be in both
                    seen.same_as(path)

    def _frames(
        self, split: Split, place: _Place, numbers: Mapping[Path, int], copies: Mapping[str, str]
    ) -> Iterator[HandRecord | Rejection]:
        """Yield the photographs of a folder as the frames of a video."""
        rate = self.options.frames_as_video
        if rate is None or not numbers:
            return
        frames = sorted((number, path) for path, number in numbers.items())
        times = np.array([(number - frames[0][0]) / rate for number, _ in frames])
        for at in self._kept(times):
            number, path = frames[at]
            sequence_id = place.name_of(path.parent)
            try:
                yield self._record(
                    split,
                    place,
                    path,
                    sequence_id,
                    read_upright_size(path),
                    number,
                    float(times[at]),
                    content=copies.get(place.name_of(path)),
                )
            except Exception as error:  # whatever it is, it costs this frame alone
                yield frame_rejection(record_name(self.card.name, split, sequence_id, number), str(path), error)

    def _file(
        self, split: Split, place: _Place, path: Path, seen: "_Contents", copies: Mapping[str, str]
    ) -> Iterator[HandRecord | Rejection]:
        """Yield what one file gives; nothing where neither its bytes nor its name say photograph or video."""
        sequence_id = place.name_of(path)
        content = copies.get(sequence_id)
        try:
            kind = _kind_of(path) or _kind_by_name(path)
            if kind is None:
                return
            if kind == "raw":
                raise RecordError(
                    RejectReason.IMAGE_CORRUPT,
                    f"{path} is a camera's raw file, of which only a preview could be read: export it as JPEG or TIFF",
                )
            if same := seen.same_as(path):
                raise RecordError(RejectReason.IMAGE_DUPLICATE, f"{path} is a copy of {same}, byte for byte")
            if kind == "photograph":
                yield self._record(split, place, path, sequence_id, read_upright_size(path), content=content)
                return
            info = video_info(path)
            for index in self._kept(info.times_s):
                time_s = float(info.times_s[index])
                size = (info.width, info.height)
                yield self._record(split, place, path, sequence_id, size, index, time_s, index, content)
        except Exception as error:
            yield frame_rejection(record_name(self.card.name, split, sequence_id), str(path), error)

    def _kept(self, times_s: NDArray[np.float64]) -> list[int]:
        """Return the frames that ``fps`` leaves: the first of each of its steps."""
        fps = self.options.fps
        if fps is None:
            return list(range(len(times_s)))
        steps = np.floor((times_s + _CLOCK_S) * fps)
        return [int(at) for at in np.flatnonzero(np.diff(steps, prepend=-1) > 0)]

    def _record(
        self,
        split: Split,
        place: _Place,
        path: Path,
        sequence_id: str,
        size: tuple[int, int],
        frame_index: int = 0,
        timestamp_s: float | None = None,
        video_frame: int | None = None,
        content: str | None = None,
    ) -> HandRecord:
        extra = {"upright": video_frame is None, "mirrored": self.options.mirrored}
        return HandRecord(
            source=self.card.name,
            split=split,
            sequence_id=sequence_id,
            frame_index=frame_index,
            timestamp_s=timestamp_s,
            subject_id=place.person,
            origin_id=None if content is None else f"folder/{content}/{video_frame or 0}",
            image_uri=str(path),
            video_frame=video_frame,
            width=size[0],
            height=size[1],
            viewpoint="exo",
            keypoints_valid=np.zeros(KEYPOINT_COUNT, dtype=np.bool_),
            keypoints_2d=np.zeros((KEYPOINT_COUNT, 2)),
            hand_state=("unknown", "unknown"),
            extra={"file_bytes": size_of(path), **{name: True for name, is_so in extra.items() if is_so}},
        )

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: there are no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"folder has no masks, asked for that of {record.image_uri}")


class _Contents:
    """The files of a partition that were read, to find the same content again. Files of one size are read, once."""

    def __init__(self) -> None:
        self._first_of_size: dict[int, Path] = {}
        self._by_content: dict[bytes, Path] = {}

    def same_as(self, path: Path) -> Path | None:
        """Return the earlier file with the same content, and remember this one where there is none."""
        size = size_of(path)
        first = self._first_of_size.setdefault(size, path)
        if first is path or not size:
            return None
        self._by_content.setdefault(_digest(first), first)
        same = self._by_content.setdefault(_digest(path), path)
        return None if same is path else same


def _copies(places: Sequence[_Place]) -> dict[_Place, dict[str, str]]:
    """Return, by place, a hash of each file whose content is in another place too, by its ``sequence_id``.

    Only files of one size are read, and of these only the ends where they differ.
    """
    groups: dict[tuple[int, bytes], list[tuple[_Place, Path]]] = defaultdict(list)
    for place in places:
        for path in (path for files in place.listings() for path in files):
            if size := size_of(path):
                groups[size, b""].append((place, path))
    for most in (_END_BYTES, None):
        refined: dict[tuple[int, bytes], list[tuple[_Place, Path]]] = defaultdict(list)
        for (size, _), found in groups.items():
            if len({place for place, _ in found}) > 1:
                for place, path in found:
                    refined[size, _digest(path, most)].append((place, path))
        groups = refined
    copies: dict[_Place, dict[str, str]] = defaultdict(dict)
    for (_, digest), found in groups.items():
        if digest and len({place for place, _ in found}) > 1:
            for place, path in found:
                copies[place][place.name_of(path)] = digest.hex()[:32]
    return copies


def _stem(path: Path) -> str:
    return path.name.strip().rpartition(".")[0].casefold() or path.name.casefold()


def _shot_of(stem: str, stems: Collection[str]) -> str:
    """Return the name of the shot that a file is of: a photograph, its video, its edits and copies, or a burst.

    Args:
        stem: Name of the file, without its end, in small letters.
        stems: Those of all files of its folder.

    """
    if second := _OF_ONE_SECOND.search(stem):
        return re.sub("[^0-9]", "", second[0])
    if of_iphone := _OF_AN_IPHONE.fullmatch(stem):
        return of_iphone[1] + of_iphone[2]
    plain = _DECORATION.sub("", stem)
    return plain if plain in stems else stem


def _of_copies_last(path: Path) -> tuple[int, str]:
    """Order files so that of equal ones that stays which is not named as a copy: their names are longer."""
    return len(path.name), path.name


def _digest(path: Path, most: int | None = None) -> bytes:
    """Return a hash of a file, or of its last bytes; nothing where there is none, or an empty one."""
    digest, size = hashlib.sha256(), 0
    try:
        with open_file(path) as stream:
            if most is not None:
                stream.seek(max(size_of(path) - most, 0))
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    except (FileNotFoundError, NotRegularFileError):
        pass
    return digest.digest() if size else b""


def _chosen(names: Collection[str], share: float) -> set[str]:
    """Return a share of some names, at least one of them and not all, by a hash."""
    count = min(max(1, round(share * len(names))), len(names) - 1) if share else 0
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    return set(ranked[: max(count, 0)])


def _plainly(name: str) -> str:
    """Return a person's name without what systems change in copies: case, blanks, the coding of accents."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _people(places: Iterable[_Place]) -> list[str]:
    return [place.person for place in places if place.person is not None]


def _held_people(places: Sequence[_Place], share: float) -> set[str] | None:
    """Return the people who are held out; None where there are too few of them to hold out whole ones."""
    people = _people(places)
    return _chosen(people, share) if len(people) > 1 else None


def _places(base: Path) -> Iterator[_Place]:
    """Yield the places of a split, or of a root without splits."""
    if _candidates(base):
        yield _Place(base, is_loose=True)
    for folder in folders_in(base):
        if any(_candidates(below) for below in _walk(folder)):
            yield _Place(folder, is_loose=False)


def _all_places(root: Path) -> Iterator[_Place]:
    """Yield the places of a root, of all its splits."""
    for base in list(_splits(root).values()) or [root]:
        yield from _places(base)


def _split_of(folder: Path) -> Split | None:
    return next((split for split in SPLITS if folder.name.strip().casefold() == split), None)


def _nearly_split(folder: Path) -> Split | None:
    """Return the split that a folder's name may mean: ``validation``, ``train_images``, ``test2017``."""
    name = re.sub("20[0-9]{2}", "", folder.name.casefold())
    words = re.findall("[^\\W_]+", name)
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 and _WORDS_BESIDE.union(_SPLIT_WORDS).issuperset(words) else None


def _splits(root: Path) -> dict[Split, Path]:
    """Return the folders of splits of a root.

    Raises:
        LayoutError: Two folders are named as one split, or a folder is nearly named as one.

    """
    found: dict[Split, list[Path]] = defaultdict(list)
    for folder in folders_in(root):
        if split := _split_of(folder):
            found[split].append(folder)
        elif nearly := _nearly_split(folder):
            raise LayoutError(
                f"{folder} would be taken as the folder of a person", f"rename it to {nearly!r} if it is that split"
            )
    places = {split: only_one(folders, f"folders of the split {split}") for split, folders in found.items()}
    return {split: place for split, place in places.items() if place is not None}


def _holds_root(folder: Path) -> bool:
    """Return whether the folders in a folder are divided into splits, not the folder itself."""
    children = folders_in(folder)
    if any(map(_split_of, children)) or _candidates(folder):
        return False
    divided = any(_split_of(below) for child in children for below in folders_in(child))
    return divided or (len(children) == 1 and _holds_root(children[0]))


def _refuse_doubled_folders(root: Path) -> None:
    """Raise where two folders are one by a link: its photographs would be there twice.

    Raises:
        LayoutError: It names both.

    """
    seen: dict[str, Path] = {}
    for folder in _walk(root):
        first = seen.setdefault(os.path.realpath(folder), folder)
        if first is not folder:
            raise LayoutError(f"{folder} and {first} are one folder, by a link", "remove the link")


def _walk(folder: Path, above: frozenset[str] | None = None) -> Iterator[Path]:
    """Yield a folder and all below it, but for links that lead back to a folder on the way."""
    real = os.path.realpath(folder)
    above = frozenset(map(os.path.realpath, folder.parents)) if above is None else above
    if real in above:
        return
    yield folder
    for child in folders_in(folder):
        yield from _walk(child, above | {real})


def _candidates(folder: Path) -> list[Path]:
    """Return the files of a folder that are photographs or videos by their names, or else by their bytes."""
    known = (*PHOTOGRAPHS, *_RAW, *_VIDEOS)
    passed_over = (*known, *_COMPANIONS, *ARCHIVE_SUFFIXES, "/")
    others = [folder / name for name in names_in(folder) if not name.strip().lower().endswith(passed_over)]
    return sorted([*files_in(folder, *known), *(path for path in others if _kind_of(path))])


def _suffix(path: Path) -> str:
    return path.suffix.strip().lower()


def _kind_of(path: Path) -> Kind | None:
    """Return what the first bytes of a file say that it is."""
    if _suffix(path) in _RAW:
        return "raw"
    try:
        head = read_head(path, _HEAD_BYTES)
    except (FileNotFoundError, NotRegularFileError):
        return None
    if _PHOTOGRAPH_MARKS.match(head) or is_iso_image(head):
        return "photograph"
    return "video" if _VIDEO_MARKS.match(head) else None


def _kind_by_name(path: Path) -> Kind | None:
    """Return what a file's name says that it is."""
    if _suffix(path) in _VIDEOS:
        return "video"
    return "photograph" if _suffix(path) in PHOTOGRAPHS else None


def _listed(paths: Iterable[Path], root: Path) -> str:
    return _some([path.relative_to(root).as_posix() for path in paths])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
