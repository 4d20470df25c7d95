"""``handdata sample``: find the frames that a user means, run a task on a checkpoint, return the images.

A reference is a sample of the dataset (its id) or a photograph (a path); a target is either of these, or a file of 42
keypoints or of 3D joints and cameras. A folder stands for the files in it. Without any, pairs are drawn from the
dataset's held-out samples.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np

from handdata.adapters.folder import PHOTOGRAPHS
from handdata.jobs.figures import CARRIED, OURS, TRUTH, side_by_side
from handdata.jobs.films import FPS, FilmPoses, poses_of_clip, poses_of_file
from handdata.jobs.fixing import fix_photo
from handdata.jobs.outputs import MadeFrom, NamedFrame, PictureFolder
from handdata.jobs.poses import KeypointsSize, NamedPair, around, is_keypoint_file, other_hands, targets_in
from handdata.pipeline.annotation.clips import numbered_files
from handdata.pipeline.annotation.photo import annotate_photo
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import RUNS
from handdata.schemas import HandDataError, UnreadableImageError, UsageError, samples_to_table
from handdata.schemas.arrays import BoolArray, ByteArray
from handdata.trainer.checkpoints import BUILTIN, averaged_weights
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.data.pairs import PairDataset, open_pairs
from handdata.trainer.data.reading import decode_frame
from handdata.trainer.data.sample_index import all_of
from handdata.trainer.data.splits import SHOWN_FIRST
from handdata.trainer.devices import choose_device
from handdata.trainer.evaluation import carried_references
from handdata.trainer.figures import grid, truth_of
from handdata.trainer.poses import KEYPOINT_FILES
from handdata.trainer.presets import BATCH_SIZE, DataConfig, PairConfig, SamplingOptions, SourceConfig
from handdata.trainer.tasks import (
    gesture_transfer,
    keypoints_only,
    load_sampler,
    nearest,
    require_none_needed,
    unconditional,
    unguided,
    video,
)
from handdata.trainer.upscaling import Upscaler

_MOMENTS = PairConfig(video=1, view=0, still=0)
_VIEWS = PairConfig(video=0, view=1, still=0)
_STILLS = PairConfig(video=0, view=0, still=1)

_MOST_ROWS = 100
"""Largest number of rows of a figure."""
_FILES_WITHOUT_A_WORD = 10
"""Number of files of a folder that are looked at before a line is due."""
_FILM_ROWS = 12
"""Largest number of a video's frames in its figure."""
_ROWS_OF_A_RATE = 30
"""Frames of a video by whose times its rate is told."""
_CANDIDATE_PAIRS = 1000
"""Pairs among which those of different sequences are chosen."""

OnStep = Callable[[int, int], None]
OnNote = Callable[[str], None]
OnImage = Callable[[int, ByteArray], None]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What ``handdata sample`` was asked for.

    Args:
        checkpoint: Path or URL of a file of weights, or of a checkpoint's or a run's folder.
        dataset: Dataset of the samples; None takes the one that the checkpoint was trained on.
        references: Sample ids, photographs or folders of these; none draws pairs from the dataset.
        targets: Sample ids, photographs, keypoint files or folders of these; none draws them with the references.
        keypoints_size: Width and height of the image that keypoints in files are pixels of; None takes what the file
            says, else the size of the picture beside it, else the generated image's.
        turntable: Number of views around the reference that are drawn instead of targets; 0 draws none.
        reference_source: Source of the references of domain transfer.
        target_source: Source of the targets of domain transfer.
        count: Number of drawn pairs, of images, or of frames of a video.
        start: Number of the first frame of a video, from 0 on.
        recent: Number of a video's frames made last that are references too.
        options: Steps, guidance and seed; the same seed also gives the same pairs.
        out_dir: Folder of every picture at the network's own size; None writes none.
        upscaler: Folder of the upscaler that enlarges them, too; None enlarges none.
        batch_size: Number of pictures that are drawn at once.
        device: Device to generate on; None takes CUDA's where there is one.
        checkpoint_preset: Preset of weights that carry no settings.

    """

    checkpoint: str
    dataset: str | None = None
    references: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    keypoints_size: KeypointsSize | None = None
    turntable: int = 0
    reference_source: str | None = None
    target_source: str | None = None
    count: int = 6
    start: int = 0
    recent: int = 1
    options: SamplingOptions = SamplingOptions()
    out_dir: Path | None = None
    upscaler: Path | None = None
    batch_size: int = BATCH_SIZE
    device: str | None = None
    checkpoint_preset: str | None = None


@dataclass(frozen=True, slots=True)
class Film:
    """A generated video.

    Args:
        frames: Frames (T, S, S, 3) RGB.
        fps: Frames per second of the video that lent its poses.
        figure: Figure of some of the frames, beside reference, pose and truth.

    """

    frames: ByteArray
    fps: float
    figure: ByteArray


class Sampling:
    """A request with its checkpoint loaded; each task is a method."""

    def __init__(
        self,
        request: SampleRequest,
        storage: Storage,
        settings: AnnotateSettings,
        weights: Path | None = None,
        on_note: OnNote | None = None,
    ) -> None:
        """Load the checkpoint.

        Args:
            request: Checkpoint, frames and options.
            storage: Workspace of the dataset.
            settings: Annotation of photographs.
            weights: Folder of MediaPipe's model; None looks in the usual places.
            on_note: Called with a line on what was drawn and left out, such as an image that cannot be decoded.

        Raises:
            WeightsError: The checkpoint is missing or not one of ours.

        """
        self._request, self._storage, self._settings, self._weights = request, storage, settings, weights
        self._note = on_note or (lambda line: None)
        self._file = averaged_weights(request.checkpoint)
        self._sampler = load_sampler(self._file, request.dataset, request.device, request.checkpoint_preset, self._note)
        self._preset = self._sampler.preset
        self._upscaler = Upscaler(request.upscaler, choose_device(request.device)) if request.upscaler else None

    def gesture_transfer(self, progress: OnStep | None = None) -> ByteArray:
        """Return a figure: a row for each pair with reference, target pose, carried reference, result and truth.

        Raises:
            UsageError: A reference or target is neither a file nor a sample, shows no hand, or only one is given.

        """
        pairs = self._named_pairs() or self._drawn_pairs()
        return self._transferred("gesture-transfer", pairs, Task.POSE_CHANGE, progress)

    def domain_transfer(self, progress: OnStep | None = None) -> ByteArray:
        """Return such a figure of poses of one source with the appearance of another.

        Raises:
            UsageError: As in ``gesture_transfer``, or the sources are not named.

        """
        pairs = self._named_pairs() or self._pairs_across_sources()
        return self._transferred("domain-transfer", pairs, Task.POSE_CHANGE, progress)

    def novel_view(self, progress: OnStep | None = None) -> ByteArray:
        """Return such a figure of moments seen by another camera; several references are of one moment.

        Raises:
            UsageError: As in ``gesture_transfer``, or a turntable has no 3D joints to turn.

        """
        pairs = self._turntable() if self._request.turntable else self._named_views() or self._drawn_views()
        return self._transferred("novel-view", pairs, Task.VIEW_CHANGE, progress)

    def keypoints_only(self, progress: OnStep | None = None) -> ByteArray:
        """Return a figure of hands that the network imagines in the pose of targets.

        Raises:
            UsageError: A target is neither a file nor a sample, or the network needs a reference.

        """
        targets = list(chain.from_iterable(self._named_targets()))
        pairs: list[NamedPair] = [((), target) for target in targets or [target for _, target in self._drawn_pairs()]]
        return self._transferred("keypoints-only", pairs, Task.POSE_CHANGE, progress)

    def unconditional(self, progress: OnStep | None = None) -> ByteArray:
        """Return a grid of images without reference and pose."""
        options = unguided(self._request.options)

        def draw(numbers: list[int], on_image: OnImage) -> None:
            unconditional(
                self._sampler,
                len(numbers),
                options,
                numbers=numbers,
                batch_size=self._request.batch_size,
                on_image=on_image,
                progress=progress,
            )

        return grid(self._drawn(self.folder("unconditional", options), [MadeFrom()] * self._request.count, draw))

    def folder(self, task: str, options: SamplingOptions | None = None, **details: object) -> PictureFolder:
        """Return the folder of a task's pictures, which writes none where none was asked for."""
        request = self._request
        options = options or request.options
        return PictureFolder(
            request.out_dir, task, self._file, self._preset, options, details, self._upscaler, self._note
        )

    def _drawn(
        self, folder: PictureFolder, made_from: Sequence[MadeFrom], draw: Callable[[list[int], OnImage], None]
    ) -> list[ByteArray]:
        """Return pictures: those that an earlier call has left in the folder, and what ``draw`` makes of the others.

        Args:
            folder: Where each is written as soon as it is there.
            made_from: What each is made from.
            draw: Called with the numbers of pictures, and with what takes each by its place among these.

        """
        found = ((number, folder.find(number, each)) for number, each in enumerate(made_from))
        images = {number: image for number, image in found if image is not None}
        missing = [number for number in range(len(made_from)) if number not in images]
        self._say_what_is_replaced(folder, missing, made_from)
        if images:
            self._note(
                f"{len(images)} of {len(made_from)} pictures are in {self._request.out_dir} from an earlier call"
            )

        def keep(place: int, image: ByteArray) -> None:
            number = missing[place]
            images[number] = image
            folder.write(number, image, made_from[number])

        if missing:
            draw(missing, keep)
        return [images[number] for number in range(len(made_from))]

    def _say_what_is_replaced(
        self, folder: PictureFolder, numbers: Iterable[int], made_from: Sequence[MadeFrom]
    ) -> None:
        others = sum(folder.is_there(number, made_from[number]) for number in numbers)
        if others:
            self._note(
                f"warning: {others} pictures of an earlier call in {self._request.out_dir} are of other settings: "
                "these take their place"
            )

    def video(self, progress: OnStep | None = None) -> Film:
        """Return a video of a reference's hand in the poses of another video.

        The poses are those of a video file, a folder of frames, a file of keypoints, or the video of the dataset that a
        sample belongs to. Without a reference their first frame is the reference.

        Raises:
            UsageError: The target is none of these, or has poses alone and no reference is given; a reference is
                neither file nor sample; or there are no videos.

        """
        request = self._request
        poses = self._film_poses()
        references = self._moment() if request.references else () if poses.first is None else (poses.first,)
        if not references:
            raise UsageError(
                f"{request.targets[0]} holds poses alone, which show no hand",
                "give --reference: a photograph or a sample_id",
            )
        if warning := other_hands([(references, target) for target in poses.targets]):
            self._note(warning)
        folder = self.folder("video", recent=request.recent)
        made_from = [MadeFrom.of(references, target) for target in poses.targets]
        self._say_what_is_replaced(folder, range(len(made_from)), made_from)
        frames = video(
            self._sampler,
            [each.frame for each in references],
            [each.frame for each in poses.targets],
            request.options,
            recent=request.recent,
            on_image=lambda number, image: folder.write(number, image, made_from[number]),
            progress=progress,
        )
        shown = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _FILM_ROWS)).round().astype(int))
        pairs = [(references[0].frame, poses.targets[number].frame) for number in shown]
        columns = {OURS: [frames[number] for number in shown], TRUTH: [truth_of(target) for _, target in pairs]}
        return Film(frames, poses.fps or FPS, side_by_side(pairs, columns, joints=True))

    def _film_poses(self) -> FilmPoses:
        request = self._request
        numbers = range(request.start, request.start + request.count)
        if len(request.targets) > 1:
            raise UsageError("a video has one --target", "a folder of frames is one, and so is a file of many poses")
        path = Path(request.targets[0]) if request.targets else None
        if path is not None and path.exists():
            side, settings = self._preset.image_size, self._settings
            if is_keypoint_file(path):
                return poses_of_file(path, numbers, side, settings.crop_scale, self._note, request.keypoints_size)
            self._warn_of_photographs()
            return poses_of_clip(path, numbers, side, settings, self._weights, self._note)
        dataset, row = self._sample(request.targets[0]) if request.targets else self._first_of_a_video()
        every = dataset.video_rows(row)
        rows = every[request.start : request.start + request.count]
        if not rows:
            raise UsageError(
                f"the video {dataset.sequence_id(row)} has {len(every)} frames, and none from number {request.start} on"
            )
        targets = [each for (each,) in self._readable(dataset, ((each,) for each in rows))]
        if not targets:
            raise UsageError(f"no frame of the video {dataset.sequence_id(row)} can be read")
        if len(targets) < request.count:
            self._note(
                f"the video {dataset.sequence_id(row)} has {len(targets)} frames to draw from, not {request.count}"
            )
        return FilmPoses(targets, targets[0], _rate_of(dataset, rows))

    def fix(self, photo: Path, region: BoolArray | None = None, progress: OnStep | None = None) -> ByteArray:
        """Return a photograph (H, W, 3) RGB with its hands, or a region, drawn anew, as ``fix_photo`` does."""
        require_none_needed(self._sampler)
        self._warn_of_photographs()
        folder = self.folder("fix")
        return fix_photo(
            self._sampler,
            photo,
            self._settings,
            self._weights,
            self._request.options,
            progress,
            region=region,
            on_square=lambda number, frame, wanted, drawn: folder.write(
                number, drawn, MadeFrom.of_repair(str(photo), frame, wanted)
            ),
            on_note=self._note,
        )

    def _transferred(self, name: str, pairs: list[NamedPair], task: Task, progress: OnStep | None) -> ByteArray:
        size, options = self._preset.image_size, self._request.options
        frames = [([resize(each.frame, size) for each in given], resize(target.frame, size)) for given, target in pairs]
        if warning := other_hands(pairs):
            self._note(warning)
        if len(pairs) > _MOST_ROWS:
            if self._request.out_dir is None:
                raise UsageError(
                    f"a figure has room for {_MOST_ROWS} pictures, not for {len(pairs)}", "give --out-dir DIR"
                )
            self._note(f"the figure shows the first {_MOST_ROWS} of {len(pairs)} pictures")

        def draw(numbers: list[int], on_image: OnImage) -> None:
            targets = [frames[number][1] for number in numbers]
            draw_some = (
                partial(gesture_transfer, self._sampler, [frames[number][0] for number in numbers], targets, task=task)
                if frames[0][0]
                else partial(keypoints_only, self._sampler, targets)
            )
            draw_some(
                options=options,
                numbers=numbers,
                batch_size=self._request.batch_size,
                on_image=on_image,
                progress=progress,
            )

        made_from = [MadeFrom.of(given, target) for given, target in pairs]
        generated = self._drawn(self.folder(name), made_from, draw)[:_MOST_ROWS]
        shown = [(given[nearest(given, target)] if given else None, target) for given, target in frames[:_MOST_ROWS]]
        carried = carried_references([(reference, target) for reference, target in shown if reference is not None])
        columns = ({CARRIED: carried} if carried else {}) | {OURS: generated}
        if any(target.known.any() for _, target in shown):
            columns[TRUTH] = [truth_of(target) for _, target in shown]
        return side_by_side(shown, columns, joints=True)

    def _named_pairs(self) -> list[NamedPair]:
        """Return references and targets in their order; a single one of either goes with all of the others.

        Raises:
            UsageError: There are as many as cannot be paired, or of one kind none.

        """
        if not self._names_both():
            return []
        references, targets = self._named_references(), self._named_targets()
        count = max(len(references), len(targets))
        if not {len(references), len(targets)} <= {1, count}:
            raise UsageError(
                f"{len(references)} references and {len(targets)} targets make no pairs",
                "give as many of one as of the other, or a single one of either",
            )
        pairs: list[NamedPair] = []
        for number in range(count):
            of_reference, of_target = references[number % len(references)], targets[number % len(targets)]
            pairs += [((reference,), target) for reference in of_reference for target in of_target]
        if not pairs:
            raise UsageError("no reference has a target: what of them cannot be used is said above")
        return pairs

    def _named_views(self) -> list[NamedPair]:
        """Return all references, of one moment, with each target."""
        if not self._names_both():
            return []
        references = self._moment()
        return [(references, target) for target in chain.from_iterable(self._named_targets())]

    def _moment(self) -> tuple[NamedFrame, ...]:
        references = tuple(chain.from_iterable(self._named_references()))
        if not references:
            raise UsageError("no reference can be used: why is said above")
        return references

    def _names_both(self) -> bool:
        references, targets = self._request.references, self._request.targets
        if bool(references) != bool(targets):
            raise UsageError("give both --reference and --target, or neither", "neither draws pairs from the dataset")
        return bool(references)

    def _turntable(self) -> list[NamedPair]:
        """Return views around a reference, from its own 3D joints and camera.

        Raises:
            UsageError: Targets are given too, or the reference has no 3D joints or no camera.

        """
        request = self._request
        if request.targets:
            raise UsageError("--turntable makes the targets", "leave --target out")
        if request.references:
            first = request.references[0]
            if Path(first).exists():
                raise UsageError(
                    f"--turntable turns joints in 3D, and a photograph such as {first} has joints in 2D alone",
                    "name a sample_id whose source has 3D joints and cameras, or give --target a file of these",
                )
            dataset, row = self._sample(first)
            references = self._moment()
        else:
            dataset = self._pairs(_VIEWS, _MOMENTS)
            row = dataset.rows_at(0)[0]
            references = next(self._readable(dataset, [(row,)]), ())
            if not references:
                raise UsageError("the drawn reference cannot be read", "name one with --reference")
        found = dataset.columns(row, ["sample_id", "source", "keypoints_3d", "camera_k"])
        side = read_manifest(Dataset(self._storage, self._preset.data.dataset)).image_size
        size, scale = self._preset.image_size, self._settings.crop_scale
        targets = around(found, side, request.turntable, size, scale, self._note)
        return [(references, target) for target in targets]

    def _named_references(self) -> list[Sequence[NamedFrame]]:
        return self._loaded(self._request.references, lambda name: [NamedFrame(name, self._reference(name))])

    def _named_targets(self) -> list[Sequence[NamedFrame]]:
        return self._loaded(self._request.targets, self._poses, of_poses=True)

    def _loaded(
        self, names: Sequence[str], load: Callable[[str], Sequence[NamedFrame]], of_poses: bool = False
    ) -> list[Sequence[NamedFrame]]:
        """Return what each name stands for, a folder for the files in it; of these, none where one cannot be used.

        In a folder a picture and its keypoints, of the same name, are one: the pose is taken from the keypoints, all
        else from the picture.
        """
        found: list[Sequence[NamedFrame]] = []
        for name in names:
            if not Path(name).is_dir():
                found.append(load(name))
                continue
            files = [file for file in numbered_files(Path(name), (*PHOTOGRAPHS, *KEYPOINT_FILES)) if file.is_file()]
            labelled = {file.stem for file in files if is_keypoint_file(file)}
            shown = {file.stem for file in files if not is_keypoint_file(file)}
            files = [
                file for file in files if file.stem not in (labelled & shown) or is_keypoint_file(file) == of_poses
            ]
            if not files:
                raise UsageError(f"no photograph and no keypoint file is in {name}")
            if len(files) > _FILES_WITHOUT_A_WORD:
                self._note(f"looking for hands in {len(files)} files of {name}")
            for file in files:
                try:
                    found.append(load(str(file)))
                except UsageError as error:
                    self._note(f"passed over {error.message}")
                    found.append(())
        return found

    def _poses(self, name: str) -> list[NamedFrame]:
        path, scale = Path(name), self._settings.crop_scale
        if is_keypoint_file(path) and path.is_file():
            return targets_in(path, self._preset.image_size, scale, self._note, self._request.keypoints_size)
        return [NamedFrame(name, self._frame(name))]

    def _pairs(self, *kinds: PairConfig, where: str | None = None) -> PairDataset:
        """Return pairs of rows that the run's settings choose, and ``where`` does not leave out.

        They are of the first kind, of some, that a held-out split has, or else the split that was trained on.

        Raises:
            UsageError: There is no dataset, or no such pair.

        """
        read_manifest(Dataset(self._storage, self._preset.data.dataset))
        preset = self._preset.choosing_rows(where=all_of(self._preset.data.where, where))
        for split in SHOWN_FIRST:
            for pairs in kinds:
                try:
                    return open_pairs(self._storage, preset, split, pairs=pairs, seed=self._request.options.seed)
                except UsageError:
                    continue
        chosen = f" among rows where {preset.data.where}" if preset.data.where else ""
        chosen += f", licences {', '.join(preset.data.licences)}" if preset.data.licences else ""
        raise UsageError(
            f"{self._storage.describe()} has no pairs to draw{chosen}",
            "drawn pairs are of rows that the run was trained to use; --reference and --target name any others",
        )

    def _drawn_pairs(self) -> list[NamedPair]:
        """Return moments of held-out videos, or, in a dataset without videos, views of a moment."""
        return self._shown(self._pairs(_MOMENTS, _VIEWS))

    def _drawn_views(self) -> list[NamedPair]:
        return self._shown(self._pairs(_VIEWS))

    def _shown(self, dataset: PairDataset) -> list[NamedPair]:
        pairs = [dataset.rows_at(position)[:2] for position in range(min(len(dataset), _CANDIDATE_PAIRS))]
        # The first pair of every sequence comes before the second of any.
        turns: Counter[str] = Counter()
        ranked = []
        for target, reference in pairs:
            sequence = dataset.sequence_id(target)
            ranked.append((turns[sequence], target, reference))
            turns[sequence] += 1
        rows = ((row, target) for _, target, row in sorted(ranked, key=itemgetter(0)) if row is not None)
        shown: list[NamedPair] = [
            ((reference,), target) for reference, target in islice(self._readable(dataset, rows), self._request.count)
        ]
        if not shown:
            raise UsageError(f"no pair of {self._storage.describe()} can be read")
        return shown

    def _readable(self, dataset: PairDataset, drawn: Iterable[tuple[int, ...]]) -> Iterator[tuple[NamedFrame, ...]]:
        """Yield the frames of drawn rows, and pass over groups of rows with an image that cannot be decoded."""
        for rows in drawn:
            try:
                yield tuple(
                    NamedFrame(dataset.columns(row, ["sample_id"])["sample_id"], dataset.frame(row)) for row in rows
                )
            except UnreadableImageError as error:
                self._note(f"passed over {error.message}")

    def _pairs_across_sources(self) -> list[NamedPair]:
        request = self._request
        there = read_manifest(Dataset(self._storage, self._preset.data.dataset)).sources
        has = f"this dataset has {', '.join(there)}"
        if request.reference_source is None or request.target_source is None:
            raise UsageError("give --reference-source and --target-source, or --reference and --target", has)
        frames = []
        for source in (request.reference_source, request.target_source):
            if source not in there:
                raise UsageError(f"the dataset has no source {source}", has)
            named = _STILLS.model_copy(update={"sources": {source: SourceConfig()}})
            pairs = self._pairs(named, where=f"source = '{source}'")
            rows = ((pairs.rows_at(position)[0],) for position in range(len(pairs)))
            frames.append([frame for (frame,) in islice(self._readable(pairs, rows), request.count)])
            if not frames[-1]:
                raise UsageError(f"no image of the source {source} can be read")
        return [((reference,), target) for reference, target in zip(*frames, strict=False)]

    def _first_of_a_video(self) -> tuple[PairDataset, int]:
        dataset = self._pairs(_MOMENTS)
        return dataset, dataset.rows_at(0)[0]

    def _sample(self, name: str) -> tuple[PairDataset, int]:
        # A sample that is named may be one that the run's settings leave out.
        data = DataConfig(dataset=self._preset.data.dataset, unlabelled_hands=True, no_content=True, side_unknown=True)
        every = self._preset.model_copy(update={"data": data, "pairs": PairConfig()})
        for split in SHOWN_FIRST:
            try:
                dataset = open_pairs(self._storage, every, split, pairs=PairConfig())
                return dataset, dataset.find(name)
            except UsageError:
                continue
        raise UsageError(
            f"{name} is neither a file, a folder nor a sample of {self._storage.describe()}",
            "sample ids are in the column sample_id",
        )

    def _reference(self, name: str) -> Frame:
        if is_keypoint_file(name):
            raise UsageError(
                f"--reference {name} holds keypoints, which show no hand",
                "give a photograph or a sample_id; --target takes keypoints",
            )
        return self._frame(name)

    def _saw_rendered_hands_alone(self) -> bool:
        """Return whether the network is the package's, or of a run of this workspace on handdata's own hands alone."""
        if self._file == averaged_weights(BUILTIN):
            return True
        if not self._file.startswith(self._storage.url(RUNS)):
            return False
        try:
            return {*read_manifest(Dataset(self._storage, self._preset.data.dataset)).sources} == {"synthetic"}
        except HandDataError:  # the dataset is gone
            return False

    def _warn_of_photographs(self) -> None:
        if self._saw_rendered_hands_alone():
            self._note("warning: this network has seen rendered hands alone, as the demo's: photographs are new to it")

    def _frame(self, name: str) -> Frame:
        path = Path(name)
        if path.is_file():
            self._warn_of_photographs()
            return photo_frame(path, self._settings, self._weights)
        dataset, row = self._sample(name)
        return dataset.frame(row)


def _rate_of(dataset: PairDataset, rows: Sequence[int]) -> float | None:
    """Return the frames per second of a video's rows, where their times are known."""
    times = [dataset.columns(row, ["timestamp_s"])["timestamp_s"] for row in rows[:_ROWS_OF_A_RATE]]
    steps = [after - before for before, after in pairwise(times) if before is not None and after is not None]
    return 1 / float(np.median(steps)) if steps and np.median(steps) > 0 else None


def photo_frame(photo: Path, settings: AnnotateSettings, weights: Path | None = None) -> Frame:
    """Return a photograph as the frame around its hands; ``annotate_photo`` says what it takes and raises."""
    return decode_frame(samples_to_table([annotate_photo(photo, settings, weights)]), 0)
