"""Pair lists: which pairs of frames are scored, chosen once and kept as a file, so that two results can be compared.

The choice looks at labels alone. Then the chosen frames, and no others, are read once: for their hashes, and since an
image that cannot be decoded is none to be drawn. A list names samples, never places: it fits every copy of a dataset,
and no dataset whose crops, masks or keypoints are others.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from handdata.pipeline.shards import list_shards
from handdata.pipeline.storage import Dataset
from handdata.schemas import Split, UnreadableImageError, UsageError
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.data.reading import EncodedFrame, StoredRows
from handdata.trainer.data.sample_index import chosen_rows
from handdata.trainer.evaluation import LEAST_MOTION, joint_motions
from handdata.trainer.presets import DataConfig, PairConfig, PairTask

FORMAT: Final = "handdata pair list 1"
CLIP_FRAMES: Final = 16
"""Largest number of targets of a clip of task ``video``."""
LEAST_SIZE_PX: Final = 16
"""Smallest side of the scored images: SSIM looks through a window of 11 pixels."""

LARGEST_SIZE_PX: Final = 4096
"""Largest side of the scored images."""

_CANDIDATES: Final = 200
"""Largest number of pairs whose labels are looked at for each one wanted, and for each one seen before
it is given up to find another: a small dataset has few."""
_READ_AT_ONCE: Final = 64
_SHOWN_IDS: Final = 3
_EVERY_ROW: Final = DataConfig(unlabelled_hands=True, no_content=True, side_unknown=True)
_SHA256: Final = r"^[0-9a-f]{64}$"

OnNote = Callable[[str], None]


class ListedPair(BaseModel):
    """A pair of a list.

    Args:
        id: Name of the pair, and of the files that hold its images.
        video: Source and sequence of both frames.
        clip: Number of the clip whose frames are drawn one after the other; None for pairs that stand alone.
        reference: Sample that lends its hand and surroundings.
        target: Sample whose pose is drawn.
        reference_sha256: Hash of the reference's stored image, mask and keypoints.
        target_sha256: The same of the target.
        motion: Mean distance of the joints that both show, in hand lengths of the target.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-z-]+$")
    video: str
    clip: int | None
    reference: str
    target: str
    reference_sha256: str = Field(pattern=_SHA256)
    target_sha256: str = Field(pattern=_SHA256)
    motion: float = Field(ge=0, allow_inf_nan=False)


class PairList(BaseModel):
    """A list of pairs, and how they were chosen.

    Args:
        format: Version of the file's layout.
        task: What lies between reference and target.
        split: Split of all frames.
        seed: Seed of the choice.
        size: Side of the images as they are given to a method, and scored, pixels.
        rule: What makes a pair, in words.
        pairs: The pairs; those of a clip follow each other.
        sha256: Hash of all of the above.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["handdata pair list 1"] = FORMAT
    task: PairTask
    split: Split
    seed: int
    size: int = Field(ge=LEAST_SIZE_PX, le=LARGEST_SIZE_PX)
    rule: str
    pairs: tuple[ListedPair, ...] = Field(min_length=1)
    sha256: str = ""

    @model_validator(mode="after")
    def _require_plain(self) -> Self:
        """Check that no two pairs share the name of their image, and that each sample has one hash."""
        if len({pair.id for pair in self.pairs}) < len(self.pairs):
            raise ValueError("two pairs have one id")
        of_samples = {pair.reference: pair.reference_sha256 for pair in self.pairs}
        of_samples |= {pair.target: pair.target_sha256 for pair in self.pairs}
        for pair in self.pairs:
            if (of_samples[pair.reference], of_samples[pair.target]) != (pair.reference_sha256, pair.target_sha256):
                raise ValueError(f"a sample of the pair {pair.id} has two hashes")
        return self

    def hash(self) -> str:
        """Return the hash that ``sha256`` has to be."""
        said = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def encode(self) -> bytes:
        """Return the list as a file's bytes: the same pairs give the same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1).encode() + b"\n"

    def clips(self) -> list[list[int]]:
        """Return the numbers of the pairs of each clip; a pair that stands alone is a clip of its own."""
        found: list[list[int]] = []
        for number, pair in enumerate(self.pairs):
            if number and pair.clip is not None and pair.clip == self.pairs[number - 1].clip:
                found[-1].append(number)
            else:
                found.append([number])
        return found


def read_pair_list(path: Path) -> PairList:
    """Read the file of a pair list.

    Raises:
        UsageError: There is none, it is no pair list, or it was changed since it was made.

    """
    try:
        pairs = PairList.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "--make-pair-list makes one") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path} is no pair list: {where + ': ' if where else ''}{first['msg']}", "--make-pair-list makes one"
        ) from None
    if pairs.hash() != pairs.sha256:
        raise UsageError(f"{path} was changed since it was made: its hash differs", "take the list as it was made")
    return pairs


def kinds_of(task: PairTask) -> PairConfig:
    """Return the weights of pairs that give those of a task alone."""
    return PairConfig(video=float(task != "view"), view=float(task == "view"), still=0.0)


def choose_pairs(
    dataset: PairDataset,
    task: PairTask,
    count: int,
    *,
    split: Split,
    least_motion: float | None = None,
    on_note: OnNote | None = None,
) -> PairList:
    """Choose pairs of a split by their labels.

    Left out are pairs without a hand that both frames show, and those with an image that cannot be decoded. No pair is
    chosen twice.

    Args:
        dataset: Pairs of the split, by ``kinds_of(task)``; its seed is that of the choice, its image size the list's.
        task: What lies between reference and target.
        count: Largest number of pairs; of task ``video``, of targets.
        split: Split of the dataset.
        least_motion: Smallest mean motion of a pair. None takes ``LEAST_MOTION`` for task ``pose``, or where no pair
            moves so far, as in slow or short videos, the faster half of the pairs; and nothing for the other tasks.
        on_note: Called with a line on each image that cannot be decoded.

    Raises:
        UsageError: No pair can be chosen, or a motion is asked of task ``video``.

    """
    if task == "video":
        if least_motion is not None:
            raise UsageError("--min-motion chooses pairs, and task video has runs of frames", "leave it out")
        rule = f"up to {CLIP_FRAMES} frames that follow one another in a video, drawn from the frame before them"
        chosen = _stored(dataset, _clips(dataset, count), count, on_note)
    else:
        least = least_motion if least_motion is not None else LEAST_MOTION if task == "pose" else 0.0
        slower: dict[tuple[int, int], float] = {}
        chosen = _stored(dataset, _moving(dataset, count, least, slower), count, on_note)
        rule = f"the joints move at least {least:g} hand lengths on average"
        if not chosen and slower and least_motion is None:
            least = float(np.median(list(slower.values())))
            faster = ((*rows, None, motion) for rows, motion in slower.items() if motion >= least)
            chosen = _stored(dataset, faster, count, on_note)
            rule = f"no pair moves {LEAST_MOTION} hand lengths: the half whose joints move at least {least:.3g}"
        frames = "one moment seen by two cameras" if task == "view" else "two moments of one video"
        rule = f"{frames}; {rule}" if least else frames
    if not chosen:
        asked = f" that moves {least:g} hand lengths" if task != "video" else ""
        raise UsageError(
            f"{dataset.storage.describe()} has no pair of frames of split {split} for task {task}{asked}",
            "lower --min-motion, or let pairs.max_gap_s be longer" if task == "pose" else "try another --task",
        )
    pairs = PairList(task=task, split=split, seed=dataset.seed, size=dataset.image_size, rule=rule, pairs=tuple(chosen))
    return pairs.model_copy(update={"sha256": pairs.hash()})


_Candidate = tuple[int, int, int | None, float]
"""Rows of target and reference, the number of the clip, and the motion."""


def _moving(
    dataset: PairDataset, count: int, least: float, slower: dict[tuple[int, int], float]
) -> Iterator[_Candidate]:
    """Yield pairs that move so far, each once, in the order of the seed; the others go to ``slower``."""
    seen: set[tuple[int, int]] = set()
    in_vain = 0
    for position in range(count * _CANDIDATES):
        if in_vain > _CANDIDATES * (len(seen) + 1):
            return
        target, reference, _ = dataset.rows_at(position)
        if reference is None or (target, reference) in seen:
            in_vain += 1
            continue
        in_vain = 0
        seen.add((target, reference))
        motions = joint_motions(dataset.rows.joints(reference), dataset.rows.joints(target))
        if not motions:
            continue
        motion = float(np.mean(motions))
        if motion < least:
            slower[target, reference] = motion
        else:
            yield target, reference, None, motion


def _clips(dataset: PairDataset, count: int) -> Iterator[_Candidate]:
    """Yield runs of frames of videos, none of which share a frame, in the order of the seed."""
    used: set[int] = set()
    tried: set[int] = set()
    in_vain = clip = 0
    for position in range(count * _CANDIDATES):
        if in_vain > _CANDIDATES * (len(tried) + 1):
            return
        first, _, _ = dataset.rows_at(position)
        if first in tried:  # what began no run begins none later: ever more frames are used
            in_vain += 1
            continue
        in_vain = 0
        tried.add(first)
        video = dataset.video_rows(first)
        start = video.index(first)
        run: list[_Candidate] = []
        for row in video[start + 1 : start + 1 + CLIP_FRAMES]:
            motions = joint_motions(dataset.rows.joints(first), dataset.rows.joints(row))
            if not motions or row in used:
                break
            run.append((row, first, clip, float(np.mean(motions))))
        if first in used or len(run) <= 1:
            continue
        used.update([first, *(row for row, *_ in run)])
        clip += 1
        yield from run


def _stored(
    dataset: PairDataset, candidates: Iterator[_Candidate], count: int, on_note: OnNote | None
) -> list[ListedPair]:
    """Return up to ``count`` of the candidates, named and hashed; those with an unreadable image are passed over."""
    hashes: dict[int, str | None] = {}
    chosen: list[tuple[_Candidate, str, str]] = []
    while part := list(islice(candidates, min(count - len(chosen), _READ_AT_ONCE))):
        new = sorted({row for target, reference, *_ in part for row in (target, reference)} - hashes.keys())
        for row, encoded in zip(new, dataset.rows.read([(row, True) for row in new]), strict=True):
            try:
                encoded.decode()
                hashes[row] = fingerprint(encoded)
            except UnreadableImageError as error:
                hashes[row] = None
                if on_note:
                    on_note(f"passed over {error.message}")
        for candidate in part:
            of_target, of_reference = hashes[candidate[0]], hashes[candidate[1]]
            if of_target and of_reference:
                chosen.append((candidate, of_target, of_reference))
    names = _sample_ids(dataset, sorted({row for candidate, *_ in chosen for row in candidate[:2]}))
    return [
        ListedPair(
            id=f"{number:05d}-{hashlib.sha256((of_target + of_reference).encode()).hexdigest()[:8]}",
            video=f"{dataset.shards[dataset.rows.in_shard(target)[0]].source}/{dataset.sequence_id(target)}",
            clip=clip,
            reference=names[reference],
            target=names[target],
            reference_sha256=of_reference,
            target_sha256=of_target,
            motion=round(motion, 4),
        )
        for number, ((target, reference, clip, motion), of_target, of_reference) in enumerate(chosen)
    ]


def _sample_ids(dataset: PairDataset, rows: Sequence[int]) -> dict[int, str]:
    """Return the name of each row; the index keeps their hashes alone."""
    by_shard: dict[int, list[int]] = {}
    for row in rows:
        by_shard.setdefault(dataset.rows.in_shard(row)[0], []).append(row)
    names: dict[int, str] = {}
    for shard, of_shard in by_shard.items():
        column = dataset.storage.read_parquet(dataset.shards[shard].name, ["sample_id"])["sample_id"]
        names |= {row: column[dataset.rows.in_shard(row)[1]].as_py() for row in of_shard}
    return names


def fingerprint(encoded: EncodedFrame) -> str:
    """Return the SHA-256 of all that a score depends on of a stored frame: image, mask, keypoints and which are there.

    Each part stands behind its length, eight bytes.
    """
    digest = hashlib.sha256()
    for part in (
        encoded.image,
        encoded.mask or b"",
        encoded.keypoints.astype("<f4").tobytes(),
        encoded.valid.astype(np.uint8).tobytes(),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


class ListedFrames:
    """The frames of a pair list in a dataset, read on demand."""

    def __init__(self, dataset: Dataset, pairs: PairList) -> None:
        """Find all frames of a list, and compare their hashes.

        Args:
            dataset: Dataset that should hold them.
            pairs: The list.

        Raises:
            UsageError: The dataset lacks a sample of the list, or its crops, masks or keypoints are others.

        """
        self._size = pairs.size
        expected = {pair.reference: pair.reference_sha256 for pair in pairs.pairs}
        expected |= {pair.target: pair.target_sha256 for pair in pairs.pairs}
        shards = sorted(list_shards(dataset, splits=[pairs.split]), key=lambda shard: shard.source)
        if not shards:
            raise UsageError(f"{dataset.describe()} has no samples in split {pairs.split}, of which the pair list is")
        self._rows = StoredRows(dataset.storage, shards, chosen_rows(dataset, shards, _EVERY_ROW))
        places = dict(zip(expected, self._rows.find_all(list(expected)), strict=True))
        missing = [name for name, row in places.items() if row is None]
        _require_none(missing, dataset, "does not hold", "name the dataset that the list was made of with --dataset")
        self._row_of = {name: row for name, row in places.items() if row is not None}
        names = list(expected)
        others = []
        for start in range(0, len(names), _READ_AT_ONCE):
            part = names[start : start + _READ_AT_ONCE]
            stored = self._rows.read([(self._row_of[name], True) for name in part])
            others += [name for name, frame in zip(part, stored, strict=True) if fingerprint(frame) != expected[name]]
        _require_none(
            others,
            dataset,
            "has another crop, mask or keypoints of",
            "scores on it could not be compared with others on this list: annotate as the list's dataset was, or make "
            "a new list",
        )

    def frame(self, sample_id: str) -> Frame:
        """Return a sample's image and labels at the list's size.

        Raises:
            UnreadableImageError: The image cannot be decoded.

        """
        (encoded,) = self._rows.read([(self._row_of[sample_id], True)])
        return resize(encoded.decode(), self._size)


def _require_none(names: Sequence[str], dataset: Dataset, what: str, hint: str) -> None:
    if names:
        shown = ", ".join(names[:_SHOWN_IDS]) + (", ..." if len(names) > _SHOWN_IDS else "")
        raise UsageError(f"{dataset.describe()} {what} {len(names):,} of the pair list's samples: {shown}", hint)
