"""``handdata evaluate``: generated hands beside the truth, and beside what learns nothing or another method made.

All ways to make an image of a target are scored on one list of pairs: drawn by a checkpoint or found in a folder, the
reference copied, the reference carried to the target's keypoints, and the mean image. Images of networks go to files
first, so that an evaluation that was stopped draws none of them twice; they are scored one pair at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import cv2
import numpy as np

from handdata.jobs.figures import CARRIED, OURS, TRUTH, side_by_side
from handdata.jobs.listed_images import ImageFolder, draw_pairs
from handdata.jobs.measures import REGION, LearnedMeasures, Marks, load_learned, marks_of, marks_of_set
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import DATASET
from handdata.pipeline.weights import require_weights, sha256_of
from handdata.schemas import Split, UnreadableImageError, UsageError, WeightsError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.checkpoints import averaged_weights
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.pair_lists import ListedFrames, ListedPair, PairList, choose_pairs, kinds_of
from handdata.trainer.data.pairs import PairDataset, open_pairs
from handdata.trainer.data.splits import TRAINED_FIRST
from handdata.trainer.devices import choose_device
from handdata.trainer.evaluation import (
    Interval,
    Scores,
    carried_references,
    interval,
    mean_image,
    mean_scores,
    summed_up,
)
from handdata.trainer.metrics import LEAST_OF_A_SET, FoundHand, flicker, pose_marks
from handdata.trainer.presets import DataConfig, PairConfig, PairTask, Preset, SamplingOptions
from handdata.trainer.tasks import Sampler, load_sampler

COPY, MEAN = "copied reference", "mean picture"
CARRIED_OVER = "carried reference, hand left in"
_BASELINES: Final = (COPY, CARRIED, CARRIED_OVER, MEAN)

PUBLISHED_SIZE: Final = 256
"""Largest side of a new list's images, pixels: that of FoundHand's own."""
SHOWN_CASES: Final = 3
"""Number of best, of median and of worst cases."""

_MEAN_OF = 1000
"""Largest number of training images that the mean image is made of."""
_RANKED_BY: Final = "psnr_box"
"""Measure that orders the cases."""
_DETECTOR_PX = 256
"""Side to which small images are enlarged for the detector."""

OnNote = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What ``handdata evaluate`` was asked for.

    Args:
        checkpoint: Path or URL of a file of weights, or of a checkpoint's or a run's folder; None scores ``images``.
        images: Folder of images that another program has made of the pairs of ``pair_list``.
        beside: Further checkpoints, or folders of images, that are scored in the same table.
        pair_list: Pairs that are scored; None chooses them by the following five.
        task: What lies between reference and target.
        split: Split of the pairs.
        count: Largest number of pairs.
        least_motion: Smallest mean motion of a pair's joints, in hand lengths; None as in ``choose_pairs``.
        image_size: Side of the scored images, pixels; None takes the network's.
        dataset: Dataset of the pairs; None takes the one that the checkpoint was trained on.
        options: Steps, guidance and seed; the same seed also gives the same pairs.
        shown: Number of pairs in the figure.
        device: Device to generate on; None takes CUDA's where there is one.
        checkpoint_preset: Preset of weights that carry no settings.

    """

    checkpoint: str | None
    images: Path | None = None
    beside: tuple[str, ...] = ()
    pair_list: PairList | None = None
    task: PairTask = "pose"
    split: Split = "val"
    count: int = 200
    least_motion: float | None = None
    image_size: int | None = None
    dataset: str | None = None
    options: SamplingOptions = SamplingOptions()
    shown: int = 8
    device: str | None = None
    checkpoint_preset: str | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """What made the images of a way.

    Args:
        origin: Checkpoint or folder of images.
        sha256: SHA-256 of the checkpoint's file; None for images that another program has made.
        sampling: Settings of its sampler, the seed among them.

    """

    origin: str
    sha256: str | None = None
    sampling: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PairMarks:
    """What the images of one pair are worth.

    Args:
        id: Name of the pair.
        video: Source and sequence of the pair.
        motion: Mean motion in hand lengths.
        marks: Marks of each way.

    """

    id: str
    video: str
    motion: float
    marks: dict[str, Marks]


@dataclass(frozen=True, slots=True)
class Case:
    """A pair that is shown.

    Args:
        id: Name of the pair.
        marks: Marks of its generated image.
        picture: Titled columns: reference, pose, carried reference, generated image, those beside it, truth (H, W, 3).

    """

    id: str
    marks: Marks
    picture: ByteArray


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found; means with 95% intervals.

    Args:
        pairs: Number of pairs.
        sequences: Number of their videos.
        motion: Mean motion of the pairs in hand lengths.
        scores: Scores of each way to make the image.
        above: Differences of generated images and each other way, pair by pair.
        truth: What the detector finds in the true targets.
        pair_list: How the pairs were chosen, and the hash of the list.
        methods: What made the images of each way that another one could have made.
        region: Which pixels are compared.
        detector: What finds hands in images.
        pair_marks: Marks of each pair.
        cases: Best, median and worst pairs of the generated images by ``ranked_by``.
        ranked_by: Measure that orders the cases.
        missing: A line on each measure whose weights are not here.
        figure: Titled columns: reference, pose, carried reference, generated image, truth, mean image (H, W, 3).

    """

    pairs: int
    sequences: int
    motion: float
    scores: dict[str, Scores]
    above: dict[str, Scores]
    truth: Scores
    pair_list: dict[str, Any]
    methods: dict[str, Method]
    region: str
    detector: str
    pair_marks: list[PairMarks]
    cases: dict[str, list[Case]]
    ranked_by: str
    missing: list[str]
    figure: ByteArray

    def document(self) -> dict[str, Any]:
        """Return all but the pictures as plain values that strict JSON knows: NaN is None, infinity ``"Infinity"``."""
        values = asdict(self) | {"cases": {name: [case.id for case in of] for name, of in self.cases.items()}}
        document: dict[str, Any] = _as_json({name: of for name, of in values.items() if name != "figure"})
        return document


def _as_json(value: Any) -> Any:
    """Return values without the numbers that JSON has not: NaN is None, infinity is ``"Infinity"``."""
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def make_pair_list(
    dataset: Dataset,
    *,
    task: PairTask,
    split: Split,
    count: int,
    seed: int,
    least_motion: float | None = None,
    image_size: int | None = None,
    on_note: OnNote | None = None,
) -> PairList:
    """Choose pairs of a dataset's usable rows, for a file that others score their images on.

    Args:
        dataset: Dataset of the pairs.
        task: What lies between reference and target.
        split: Split of the pairs.
        count: Largest number of pairs.
        seed: Seed of the choice.
        least_motion: Smallest mean motion in hand lengths; None as in ``choose_pairs``.
        image_size: Side of the scored images, pixels; None takes the stored one, at most ``PUBLISHED_SIZE``.
        on_note: Called with a line on each image that cannot be decoded.

    Raises:
        UsageError: There is no such pair.

    """
    size = image_size or min(read_manifest(dataset).image_size, PUBLISHED_SIZE)
    rows = PairDataset(dataset, image_size=size, split=split, pairs=kinds_of(task), seed=seed)
    return choose_pairs(rows, task, count, split=split, least_motion=least_motion, on_note=on_note)


def evaluate(
    request: EvaluationRequest,
    storage: Storage,
    weights: Path | None = None,
    on_pair: Callable[[int, int], None] | None = None,
    on_note: OnNote | None = None,
    folder: Path | None = None,
) -> Evaluation:
    """Score the images of a pair list beside the baselines; those of checkpoints are drawn first.

    Args:
        request: Checkpoint or images, pairs and options.
        storage: Workspace of the dataset.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        on_pair: Called with (pairs drawn and scored, pairs to draw and to score in all).
        on_note: Called with a line on each image that cannot be decoded and is passed over.
        folder: Folder below which drawn images stay, and are found again; None keeps none.

    Raises:
        UsageError: The split has no such pair, the dataset is not the list's, or images are missing.
        WeightsError: The checkpoint is missing or not one of ours, or MediaPipe's model is nowhere.

    """
    model = require_weights("hand_landmarker", weights)  # before hours of drawing
    learned = load_learned(weights, choose_device(request.device))
    beside = _named(request.beside)
    sampler, data, checkpoint = None, DataConfig(), ""
    if request.checkpoint is not None:
        checkpoint = averaged_weights(request.checkpoint)  # once: a run that goes on has another one later
        sampler = load_sampler(checkpoint, request.dataset, request.device, request.checkpoint_preset, on_note)
        data = sampler.preset.data
    dataset = Dataset(storage, request.dataset or (data.dataset if sampler else DATASET))
    pairs = request.pair_list
    if pairs is None:
        if sampler is None:
            raise UsageError("images are scored on the pair list that they were made for", "name it with --pair-list")
        pairs = pairs_for(sampler.preset, request, storage, on_note)
    frames = ListedFrames(dataset, pairs)
    if learned.inception and len(pairs.pairs) < LEAST_OF_A_SET:
        missing = (*learned.missing, "not measured: fid and kid, which compare sets: the list has one pair")
        learned = replace(learned, inception=None, missing=missing)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(TemporaryDirectory()))
        folders: dict[str, ImageFolder] = {}
        methods: dict[str, Method] = {}
        networks = (sampler is not None) + sum(not _is_folder(origin) for origin in beside.values())
        sets = (1 + len(beside) + len(_BASELINES)) if learned.inception else 0
        total = (networks + 1 + sets) * len(pairs.pairs)
        done = 0

        def draw(way: str, drawer: Sampler, origin: str) -> None:
            nonlocal done
            sampling = request.options.applied_to(drawer.preset).model_dump(mode="json")
            sampling |= {"seed": request.options.seed, "image_size": drawer.preset.image_size}
            methods[way] = Method(origin, hashes[way], sampling)
            target = place / way.replace(" ", "-")
            begun = done
            draw_pairs(drawer, pairs, frames, request.options, target, hashes[way], lambda at, _: tell(begun + at))
            folders[way] = ImageFolder(target, pairs)
            done = begun + len(pairs.pairs)

        def tell(at: int) -> None:
            if on_pair:
                on_pair(at, total)

        if request.images is not None:
            folders[OURS] = ImageFolder(request.images, pairs, on_note)
            methods[OURS] = Method(str(request.images))
        for way, origin in beside.items():  # what is given is looked at before anything is drawn
            if _is_folder(origin):
                folders[way] = ImageFolder(Path(origin), pairs, on_note)
                methods[way] = Method(origin)
        files = {way: averaged_weights(origin) for way, origin in beside.items() if way not in folders}
        hashes = {way: checkpoint_sha256(file) for way, file in files.items()}
        if sampler is not None and request.checkpoint is not None:
            hashes[OURS] = checkpoint_sha256(checkpoint)
            draw(OURS, sampler, request.checkpoint)
            sampler = None  # its memory is the next network's
        for way, file in files.items():
            draw(way, load_sampler(file, request.dataset, request.device, None, on_note), beside[way])
        folders = {OURS: folders[OURS]} | {way: folders[way] for way in beside}
        mean = _mean_of_training(storage, dataset.name, data, pairs.size, on_note)
        ways = _ways(folders, mean)
        videos = [pair.video for pair in pairs.pairs]
        with HandDetector(model, AnnotateSettings().detection_confidence) as detector:
            marked = _marked(pairs, frames, ways, mean, detector, learned, lambda at: tell(done + at))
        done += len(pairs.pairs)
        by_way = {way: [of_pair[way] for of_pair in marked.of_pairs] for way in ways}
        scores, above = summed_up(by_way, OURS, videos)
        for way, make in ways.items():
            if marked.flicker[way]:
                clips = [pairs.pairs[clip[0]].video for clip in pairs.clips() if len(clip) > 1]
                scores[way]["flicker"] = interval(marked.flicker[way], clips)
            if learned.inception:
                make_numbered, count = partial(_image, pairs, frames, make), len(pairs.pairs)
                of_set = marks_of_set(make_numbered, partial(_truth, pairs, frames), count, learned.inception)
                scores[way] |= {name: Interval(mark, math.nan, math.nan) for name, mark in of_set.items()}
                done += len(pairs.pairs)
                tell(done)
        return Evaluation(
            pairs=len(pairs.pairs),
            sequences=len(set(videos)),
            motion=float(np.mean([pair.motion for pair in pairs.pairs])),
            scores=scores,
            above=above,
            truth=mean_scores(marked.truth, videos),
            pair_list=pairs.model_dump(mode="json", exclude={"pairs", "format"}),
            methods={way: methods[way] for way in folders},
            region=REGION,
            detector=f"MediaPipe hand_landmarker, SHA-256 {sha256_of(model)[:12]}, "
            f"confidence {AnnotateSettings().detection_confidence:g}, images enlarged to {_DETECTOR_PX} px",
            pair_marks=[
                PairMarks(pair.id, pair.video, pair.motion, marks)
                for pair, marks in zip(pairs.pairs, marked.of_pairs, strict=True)
            ],
            cases=_cases(pairs, frames, ways, by_way[OURS]),
            ranked_by=_RANKED_BY,
            missing=list(learned.missing),
            figure=_figure(pairs, frames, ways, request.shown),
        )


def pairs_for(preset: Preset, request: EvaluationRequest, storage: Storage, on_note: OnNote | None = None) -> PairList:
    """Choose the pairs of the rows that a network's settings choose, at its size.

    Raises:
        UsageError: The split has no such pair.

    """
    if request.image_size:
        preset = preset.model_copy(update={"image_size": request.image_size})
    kinds = preset.pairs.model_copy(update={**kinds_of(request.task).model_dump(include={"video", "view", "still"})})
    dataset = open_pairs(
        storage, preset, request.split, pairs=kinds.model_copy(update={"sources": {}}), seed=request.options.seed
    )
    return choose_pairs(
        dataset,
        request.task,
        request.count,
        split=request.split,
        least_motion=request.least_motion,
        on_note=on_note,
    )


def _named(beside: Sequence[str]) -> dict[str, str]:
    """Return the checkpoints and folders by the names of their ways.

    Raises:
        UsageError: Two have one name.

    """
    named: dict[str, str] = {}
    for origin in beside:
        parts = [part for part in origin.rstrip("/").split("/") if part not in ("checkpoints", "")]
        way = f"beside: {parts[-1]}" if parts else origin
        if way in named:
            raise UsageError(f"--beside {named[way]} and {origin} would have one name", "rename one of them")
        named[way] = origin
    return named


def _is_folder(origin: str) -> bool:
    """Tell whether ``--beside`` names a folder of images, not a checkpoint."""
    return "://" not in origin and any(Path(origin).glob("*.png"))


def checkpoint_sha256(file: str) -> str:
    """Return the SHA-256 of a file of weights, a path or a URL.

    Raises:
        WeightsError: There is no such file.

    """
    if "://" in file:
        with Storage(file).local_copy() as local:
            return sha256_of(local)
    path = Path(file).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"there is no checkpoint and no folder of images at {file}", "name a file of weights, or a folder"
        )
    return sha256_of(path)


def _mean_of_training(storage: Storage, name: str, data: DataConfig, size: int, on_note: OnNote | None) -> ByteArray:
    """Return the mean image of the split to train on, or of what the settings choose of the others."""
    for split in TRAINED_FIRST:
        try:
            dataset = PairDataset(Dataset(storage, name), image_size=size, split=split, pairs=PairConfig(), data=data)
        except UsageError:
            continue
        rows = [dataset.rows_at(position)[0] for position in range(min(len(dataset), _MEAN_OF))]
        images = []
        for row in rows:
            try:
                images.append(dataset.frame(row).image)
            except UnreadableImageError as error:
                if on_note:
                    on_note(f"passed over {error.message}")
        if images:
            return mean_image(images)
    raise UsageError(f"{storage.describe()} has no samples", "run `handdata annotate` first")


_MakeImage = Callable[[ListedPair, Frame, Frame], ByteArray]
"""A pair, its reference and its target -> an image (S, S, 3) of the target."""


def _ways(folders: Mapping[str, ImageFolder], mean: ByteArray) -> dict[str, _MakeImage]:
    """Return the ways to make an image of a target: those of folders, then the baselines."""

    def stored(folder: ImageFolder) -> _MakeImage:
        return lambda pair, reference, target: folder.image(pair.id)

    return {
        **{way: stored(folder) for way, folder in folders.items()},
        COPY: lambda pair, reference, target: reference.image,
        CARRIED: lambda pair, reference, target: carried_references([(reference, target)])[0],
        CARRIED_OVER: lambda pair, reference, target: carried_references([(reference, target)], painted_out=False)[0],
        MEAN: lambda pair, reference, target: mean,
    }


def _image(pairs: PairList, frames: ListedFrames, make: _MakeImage, number: int) -> ByteArray:
    pair = pairs.pairs[number]
    return make(pair, frames.frame(pair.reference), frames.frame(pair.target))


def _truth(pairs: PairList, frames: ListedFrames, number: int) -> ByteArray:
    return frames.frame(pairs.pairs[number].target).image


class _Marked(NamedTuple):
    """Marks of all pairs."""

    of_pairs: list[dict[str, Marks]]
    """Those of each way, by pair."""
    truth: list[Marks]
    """Those of the pose in the true targets."""
    flicker: dict[str, list[float]]
    """Unsteadiness of each way, by clip of two frames or more."""


def _marked(
    pairs: PairList,
    frames: ListedFrames,
    ways: Mapping[str, _MakeImage],
    mean: ByteArray,
    detector: HandDetector,
    learned: LearnedMeasures,
    on_pair: Callable[[int], None],
) -> _Marked:
    """Return the marks of all pairs; the images of one clip are in memory at a time."""

    def find(image: ByteArray) -> list[FoundHand]:
        return in_mean if image is mean else find_hands(detector, image)

    in_mean = find_hands(detector, mean)
    marked = _Marked([], [], {way: [] for way in ways})
    for clip in pairs.clips():
        made: dict[str, list[ByteArray]] = {way: [] for way in ways}
        true: list[ByteArray] = []
        for number in clip:
            pair = pairs.pairs[number]
            reference, target = frames.frame(pair.reference), frames.frame(pair.target)
            for way, make in ways.items():
                made[way].append(make(pair, reference, target))
            true.append(target.image)
            marked.of_pairs.append({way: marks_of(images[-1], target, find, learned) for way, images in made.items()})
            marked.truth.append(pose_marks(target.image, target, find))
            on_pair(number + 1)
        if len(clip) > 1:
            for way, images in made.items():
                marked.flicker[way].append(flicker(np.stack(images), np.stack(true)))
    return marked


def _cases(
    pairs: PairList, frames: ListedFrames, ways: Mapping[str, _MakeImage], marks: Sequence[Marks]
) -> dict[str, list[Case]]:
    """Return the best, the median and the worst pairs by the marks of their generated images; none is shown twice."""
    order = np.argsort([-mark[_RANKED_BY] for mark in marks], kind="stable").tolist()
    shown = min(SHOWN_CASES, len(order) // 3) or 1
    middle = (len(order) - shown) // 2
    parts = {"best": order[:shown], "median": order[middle : middle + shown], "worst": order[-shown:][::-1]}
    columns = [CARRIED, *(way for way in ways if way not in _BASELINES)]
    return {
        name: [
            Case(pairs.pairs[number].id, marks[number], _rows(pairs, frames, ways, [number], columns))
            for number in numbers
        ]
        for name, numbers in parts.items()
    }


def _figure(pairs: PairList, frames: ListedFrames, ways: Mapping[str, _MakeImage], shown: int) -> ByteArray:
    """Lay out pairs of different videos, a row each, below the titles of their columns."""
    first = {pair.video: number for number, pair in reversed(list(enumerate(pairs.pairs)))}
    return _rows(pairs, frames, ways, list(first.values())[::-1][:shown], [CARRIED, OURS, TRUTH, MEAN])


def _rows(
    pairs: PairList,
    frames: ListedFrames,
    ways: Mapping[str, _MakeImage],
    numbers: Sequence[int],
    columns: Sequence[str],
) -> ByteArray:
    """Lay out some pairs, a row each, with the images of some ways; the truth comes last unless it is named."""
    listed = [pairs.pairs[number] for number in numbers]
    two = [(frames.frame(pair.reference), frames.frame(pair.target)) for pair in listed]
    truth = [target.image for _, target in two]
    images = {
        way: truth if way == TRUTH else [ways[way](pair, *both) for pair, both in zip(listed, two, strict=True)]
        for way in columns
    }
    return side_by_side(two, images | {TRUTH: truth})


def find_hands(detector: HandDetector, image: ByteArray) -> list[FoundHand]:
    """Return the hands in an image, which is enlarged where it is small."""
    size = image.shape[0]
    scale = max(_DETECTOR_PX / size, 1.0)
    enlarged = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = detector.detect(np.asarray(enlarged, dtype=np.uint8))
    return [FoundHand(hand.side, np.asarray((hand.keypoints + 0.5) / scale - 0.5, np.float32)) for hand in found]
