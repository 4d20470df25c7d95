"""Trained networks: ``handdata.load_model``."""

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from handdata.api import REPAIR_GUIDANCE
from handdata.api.datasets import HandSample, require_torch
from handdata.api.errors import names_arguments
from handdata.api.photos import Photo, image_file
from handdata.console import ProgressLine, say
from handdata.pipeline.settings import Settings, load_settings
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import list_runs, run_folder
from handdata.pipeline.weights import UPSCALER, WEIGHTS, model_folder, named_weights
from handdata.schemas import UsageError, known_names
from handdata.schemas.arrays import BoolArray, ByteArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.presets import BATCH_SIZE, Preset, SamplerName, SamplingOptions

if TYPE_CHECKING:
    from handdata.trainer.conditioning import Task
    from handdata.trainer.tasks import References, Sampler
    from handdata.trainer.upscaling import Upscaler

Reference: TypeAlias = Photo | HandSample
"""What shows a hand."""
Target: TypeAlias = Photo | HandSample
"""What has a pose: an image with a hand, or 42 keypoints, (42, 2) or (2, 21, 2), or a file of these."""
KeypointsSize: TypeAlias = tuple[int, int]
"""Width and height of the image that keypoints are pixels of."""


class FurtherOptions(TypedDict, total=False):
    """Options of sampling that tasks take beside steps, guidance and seed; the preset's by default."""

    sampler: SamplerName
    """``ddpm`` as published, or ``ddim``, ``dpm++`` or ``unipc``, which need 10 to 25 steps."""
    pose_guidance: float
    """Guidance scale of the pose alone, in place of ``guidance``."""
    appearance_guidance: float
    """Guidance scale of the reference alone, in place of ``guidance``."""
    guided_channels: int
    """Guide the first so many latent channels; as published 3."""


@names_arguments
def load_model(
    model: str | Path = "builtin",
    device: str | None = None,
    *,
    preset: str | None = None,
    workspace: str | Path | None = None,
) -> "HandModel":
    """Load a trained network for sampling.

        >>> model = handdata.load_model("default", workspace="workspace")
        >>> model.image_size
        32

    Args:
        model: Name of a training run of the workspace, path or URL of a checkpoint's file or folder or of published
            FoundHand weights, ``foundhand`` for those that ``handdata weights`` knows, or ``builtin`` for the small
            network that comes with handdata.
        device: Device to sample on; by default CUDA's where there is one.
        preset: Name of the preset of weights that carry no settings: ``foundhand-xl`` for the published ones.
        workspace: Folder or URL of the workspace; by default that of the settings.

    Raises:
        UsageError: There is no such run, file, preset or device.
        WeightsError: What there is has no checkpoint, or it is not readable.

    """
    require_torch("load_model")
    from handdata.trainer.checkpoints import BUILTIN
    from handdata.trainer.tasks import load_sampler

    settings = load_settings(workspace=None if workspace is None else str(workspace))
    name, storage = str(model), Storage(settings.workspace)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and storage.exists(run_folder(name)):
        checkpoint = storage.url(run_folder(name))
    elif name == BUILTIN or name in WEIGHTS or "://" in name or Path(name).expanduser().exists():
        checkpoint = named_weights(name, settings.weights)
    else:
        raise UsageError(
            f"{storage.describe()} has no run {name}, and no file or folder has this name",
            known_names(name, [*list_runs(storage), BUILTIN]),
        )
    return HandModel(load_sampler(checkpoint, device=device, preset=preset, on_note=say), settings, name)


class HandModel:
    """A trained network. Each task returns PIL images; the same seed gives the same ones.

        >>> model = handdata.load_model("default", workspace="workspace")
        >>> samples = handdata.open_dataset("workspace", split="val")
        >>> image = model.gesture_transfer(samples[0], samples[1], steps=2)
        >>> image.size
        (32, 32)

    Args:
        sampler: Network, autoencoder and preset.
        settings: Annotation of photographs.
        name: What was loaded.

    """

    def __init__(self, sampler: "Sampler", settings: Settings, name: str) -> None:
        self._sampler, self._settings, self._name = sampler, settings, name
        self._upscaler: Upscaler | None = None

    def __repr__(self) -> str:
        return f"<HandModel {self._name}: {self.image_size} x {self.image_size} px>"

    @property
    def preset(self) -> Preset:
        """Settings that the network was trained with."""
        return self._sampler.preset

    @property
    def image_size(self) -> int:
        """Side of the generated images, pixels."""
        return self.preset.image_size

    @overload
    def gesture_transfer(
        self,
        reference: Reference,
        target: Target,
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> Image.Image: ...
    @overload
    def gesture_transfer(
        self,
        reference: list[Reference],
        target: list[Target],
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> list[Image.Image]: ...
    @names_arguments
    def gesture_transfer(
        self,
        reference: Reference | list[Reference],
        target: Target | list[Target],
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> Image.Image | list[Image.Image]:
        """Draw a reference's hand and surroundings in the pose of a target.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> model.gesture_transfer("photo.jpg", "pose.npy", steps=2).save("transferred.png")

        Args:
            reference: Image that shows the hand, or a list of them: path, PIL image, array or sample.
            target: Image whose pose is drawn, or keypoints: an array or a file. For a list of references a list.
            keypoints_size: Width and height of the image that keypoints are pixels of; by default what a file of them
                says, else of the picture beside the file, else of the generated image.
            batch_size: Number of images that are drawn at once; it does not change them.
            steps: Number of denoising steps; the preset's by default.
            guidance: Scale of classifier-free guidance, 1 is none; the preset's by default.
            seed: Seed of all that is random.
            further: See ``FurtherOptions``.

        Returns:
            An image, or a list of them for lists.

        Raises:
            UsageError: What is given is no image, or shows no hand.

        """
        from handdata.trainer.conditioning import Task

        references = [self._frame(each) for each in (reference if isinstance(reference, list) else [reference])]
        targets = self._targets(target, keypoints_size)
        if len(references) != len(targets):
            raise UsageError(
                f"{len(references)} references and {len(targets)} targets", "give a target for each reference"
            )
        options = SamplingOptions(steps, guidance, seed, **further)
        images = self._transferred(references, targets, Task.POSE_CHANGE, options, batch_size)
        return images if isinstance(reference, list) or isinstance(target, list) else images[0]

    domain_transfer = gesture_transfer
    """Draw the hand of one domain in the pose of another, such as a rendered pose as a photograph: the same task."""

    @overload
    def novel_view(
        self,
        reference: Reference | list[Reference],
        target: Target,
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> Image.Image: ...
    @overload
    def novel_view(
        self,
        reference: Reference | list[Reference],
        target: list[Target],
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> list[Image.Image]: ...
    @names_arguments
    def novel_view(
        self,
        reference: Reference | list[Reference],
        target: Target | list[Target],
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> Image.Image | list[Image.Image]:
        """Draw the moment of a reference as other cameras see it, from the keypoints in these cameras.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> views = handdata.open_dataset("workspace", split="val", where="frame_index = 0")
            >>> model.novel_view(views[0], views[1].keypoints, keypoints_size=(64, 64), steps=2).size
            (32, 32)

        Args:
            reference: Image of the moment, or a list of images of it by several cameras.
            target: Keypoints in another camera's image, or what shows them; or a list, or a file, of several.
            keypoints_size: As in ``gesture_transfer``.
            batch_size: Number of images that are drawn at once; it does not change them.
            steps: Number of denoising steps; the preset's by default.
            guidance: Scale of classifier-free guidance, 1 is none; the preset's by default.
            seed: Seed of all that is random.
            further: See ``FurtherOptions``.

        Returns:
            An image; a list of them for a list, or for a file of 3D joints and several cameras.

        Raises:
            UsageError: What is given is no image, or shows no hand.

        """
        from handdata.trainer.conditioning import Task

        references = [self._frame(each) for each in (reference if isinstance(reference, list) else [reference])]
        if not references:
            raise UsageError("a view needs a reference")
        targets = self._targets(target, keypoints_size)
        options = SamplingOptions(steps, guidance, seed, **further)
        images = self._transferred([references] * len(targets), targets, Task.VIEW_CHANGE, options, batch_size)
        return images if isinstance(target, list) or len(images) > 1 else images[0]

    @names_arguments
    def turntable(
        self,
        sample: HandSample,
        count: int,
        *,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> list[Image.Image]:
        """Draw a sample's moment as cameras see it that go around it in a full turn, the first its own.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> sample = handdata.open_dataset("workspace", split="val")[0]
            >>> len(model.turntable(sample, 4, steps=2))
            4

        Args:
            sample: Sample with 3D joints and a camera.
            count: Number of views.
            batch_size: Number of images that are drawn at once; it does not change them.
            steps: Number of denoising steps; the preset's by default.
            guidance: Scale of classifier-free guidance, 1 is none; the preset's by default.
            seed: Seed of all that is random.
            further: See ``FurtherOptions``.

        Raises:
            UsageError: The sample has no 3D joints or no camera.

        """
        from handdata.jobs.poses import around
        from handdata.trainer.conditioning import Task

        if not isinstance(sample, HandSample):
            raise UsageError(
                f"turntable turns joints in 3D, which a {type(sample).__name__} has not", "give a sample of a dataset"
            )
        side, scale = sample.image.shape[0], self._settings.annotate.crop_scale
        targets = [view.frame for view in around(sample.row, side, count, self.image_size, scale, say)]
        options = SamplingOptions(steps, guidance, seed, **further)
        return self._transferred([sample.frame] * count, targets, Task.VIEW_CHANGE, options, batch_size)

    @names_arguments
    def keypoints_only(
        self,
        target: Target | list[Target],
        *,
        keypoints_size: KeypointsSize | None = None,
        batch_size: int = BATCH_SIZE,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> Image.Image | list[Image.Image]:
        """Draw hands in the pose of targets without a reference: the network imagines hand and surroundings.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> model.keypoints_only("pose.npy", steps=2).size
            (32, 32)

        Args:
            target: Image whose pose is drawn, or keypoints: an array or a file; or a list of these.
            keypoints_size: As in ``gesture_transfer``.
            batch_size: Number of images that are drawn at once; it does not change them.
            steps: Number of denoising steps; the preset's by default.
            guidance: Scale of classifier-free guidance, 1 is none; the preset's by default.
            seed: Seed of all that is random.
            further: See ``FurtherOptions``.

        Raises:
            UsageError: What is given has no pose, or the network needs a reference.

        """
        from handdata.trainer.tasks import keypoints_only

        targets = self._targets(target, keypoints_size)
        with ProgressLine("Sampling", None, "steps") as progress:
            images = keypoints_only(
                self._sampler,
                targets,
                SamplingOptions(steps, guidance, seed, **further),
                batch_size=batch_size,
                progress=progress.count,
            )
        drawn = _as_pil(images)
        return drawn if isinstance(target, list) or len(drawn) > 1 else drawn[0]

    @names_arguments
    def video(
        self,
        reference: Reference | list[Reference] | None,
        targets: Sequence[Target] | str | Path,
        *,
        frames: range | None = None,
        keypoints_size: KeypointsSize | None = None,
        recent: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **further: Unpack[FurtherOptions],
    ) -> list[Image.Image]:
        """Draw a video: a reference's hand in the pose of one target after another, every frame from the same noise.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> samples = handdata.open_dataset("workspace", split="val")
            >>> first, *others = model.video(samples[0], samples[:3], steps=2)
            >>> first.save("video.webp", save_all=True, append_images=others, duration=100)

        Args:
            reference: Image that shows the hand, or a list of images of it; None takes the first frame of a video file
                or of a folder.
            targets: Images whose poses are drawn, or keypoints, in the video's order; or the path of a video file, of a
                folder of its frames, or of a file of keypoints (N, 42, 2).
            frames: Frames of such a file or folder that are drawn, counted from 0; None draws all.
            keypoints_size: Width and height of the image that keypoints in a file are pixels of, where it does not say.
            recent: Number of frames made last that are references too; 1 as published.
            steps: Number of denoising steps; the preset's by default.
            guidance: Scale of classifier-free guidance, 1 is none; the preset's by default.
            seed: Seed of all that is random.
            further: See ``FurtherOptions``.

        Returns:
            An image for each target; of a file those that have a pose, and the others are said.

        Raises:
            UsageError: What is given is no image or video, or shows no hand.

        """
        from handdata.trainer.tasks import video

        nothing = (isinstance(reference, list) and not reference) or (
            not isinstance(targets, Path) and not len(targets)
        )
        if nothing:
            raise UsageError("a video needs a reference and a target for each of its frames")
        if isinstance(targets, str | Path):
            poses, first = self._film(Path(targets).expanduser(), frames, keypoints_size)
        else:
            poses, first = [self._pose(target) for target in targets], None
        if reference is None:
            if first is None:
                raise UsageError("poses alone show no hand", "give a reference: a photograph or a sample")
            references = [first]
        else:
            references = [self._frame(each) for each in (reference if isinstance(reference, list) else [reference])]
        with ProgressLine("Sampling", None, "frames") as progress:
            drawn = video(
                self._sampler,
                references,
                poses,
                SamplingOptions(steps, guidance, seed, **further),
                recent=recent,
                progress=progress.count,
            )
        return _as_pil(drawn)

    def _film(
        self, path: Path, frames: range | None, keypoints_size: KeypointsSize | None
    ) -> tuple[list[Frame], Frame | None]:
        """Return the poses of a file or a folder, and its first frame."""
        from handdata.jobs.films import poses_of_clip, poses_of_file
        from handdata.jobs.poses import is_keypoint_file

        numbers, settings = range(sys.maxsize) if frames is None else frames, self._settings
        if not isinstance(numbers, range) or numbers.step != 1 or numbers.start < 0:
            raise UsageError(f"frames is {numbers!r}", "give a range of frames one after another, such as range(0, 48)")
        _require_size(keypoints_size)
        if is_keypoint_file(path):
            found = poses_of_file(path, numbers, self.image_size, settings.annotate.crop_scale, say, keypoints_size)
        else:
            found = poses_of_clip(path, numbers, self.image_size, settings.annotate, settings.weights, say)
        return [each.frame for each in found.targets], None if found.first is None else found.first.frame

    @names_arguments
    def fix(
        self,
        photo: Reference,
        *,
        mask: Photo | BoolArray | None = None,
        box: tuple[int, int, int, int] | None = None,
        steps: int | None = None,
        guidance: float = REPAIR_GUIDANCE,
        seed: int = 0,
        guided_channels: int | None = None,
    ) -> Image.Image:
        """Draw the hands of a photograph anew; the rest stays as it is, to the pixel.

        The image is upright, and has the photograph's alpha and colour profile, and its EXIF block as ``info["exif"]``.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> model.fix("photo.jpg", box=(40, 60, 200, 220), steps=2).save("fixed.png")

        Args:
            photo: Image with malformed hands: path, PIL image, array or sample.
            mask: Image or array (H, W) of the upright photograph's size: what is True, or of a level of at least 128,
                is drawn anew. By default each hand that MediaPipe finds is.
            box: Left, top, right and bottom of what is drawn anew, pixels of the upright photograph.
            steps: Number of denoising steps; the preset's by default.
            guidance: Scale of classifier-free guidance, 1 is none; more than for other tasks, as published.
            seed: Seed of all that is random.
            guided_channels: As in ``FurtherOptions``.

        Raises:
            UsageError: It is no readable image, or the mask or the box does not fit it.
            NoHandError: MediaPipe finds no hand in it, and neither mask nor box is given.

        """
        from handdata.jobs.fixing import fix_photo
        from handdata.pipeline.annotation.photo import like_photo
        from handdata.pipeline.annotation.regions import marked_region

        settings = self._settings
        options = SamplingOptions(steps, guidance, seed, guided_channels=guided_channels)
        image = photo.image if isinstance(photo, HandSample) else photo
        if isinstance(mask, np.ndarray) and mask.ndim == 2:
            if mask.dtype not in (np.bool_, np.uint8):
                raise UsageError(f"a mask is an array of bool or of levels 0 to 255 in uint8, not of {mask.dtype}")
            mask = Image.fromarray(mask)
        with ExitStack() as files, ProgressLine("Repairing", None, "steps") as progress:
            path = files.enter_context(image_file(image))
            marks = None if mask is None else files.enter_context(image_file(mask))
            fixed = fix_photo(
                self._sampler,
                path,
                settings.annotate,
                settings.weights,
                options,
                progress.count,
                region=marked_region(path, marks, box),
                on_note=say,
            )
            return like_photo(path, fixed)

    @names_arguments
    def unconditional(
        self, count: int = 1, *, steps: int | None = None, seed: int = 0, sampler: SamplerName | None = None
    ) -> list[Image.Image]:
        """Draw images without reference and pose.

            >>> model = handdata.load_model("default", workspace="workspace")
            >>> len(model.unconditional(4, steps=2))
            4

        Args:
            count: Number of images.
            steps: Number of denoising steps; the preset's by default.
            seed: Seed of all that is random.
            sampler: As in ``FurtherOptions``.

        """
        from handdata.trainer.tasks import unconditional

        with ProgressLine("Sampling", None, "steps") as progress:
            images = unconditional(
                self._sampler,
                count,
                SamplingOptions(steps, seed=seed, sampler=sampler),
                progress=progress.count,
            )
        return _as_pil(images)

    @names_arguments
    def upscale(self, image: Image.Image, *, seed: int = 0) -> Image.Image:
        """Enlarge a generated image by latent diffusion's super-resolution, four times as wide: ours, not the paper's.

        It needs the weights ``ldm_super_resolution``, and knows nothing of hands.

        Args:
            image: Image, as another task gives it.
            seed: Seed of all that is random.

        Raises:
            WeightsError: The weights are not on this machine, or not readable.

        """
        from handdata.trainer.upscaling import Upscaler

        if self._upscaler is None:
            device = next(self._sampler.network.parameters()).device
            self._upscaler = Upscaler(model_folder(UPSCALER, self._settings.weights), device)
        return Image.fromarray(self._upscaler.enlarge(np.asarray(image.convert("RGB")), seed))

    def _transferred(
        self,
        references: "Sequence[References]",
        targets: Sequence[Frame],
        task: "Task",
        options: SamplingOptions,
        batch_size: int,
    ) -> list[Image.Image]:
        from handdata.jobs.outputs import NamedFrame
        from handdata.jobs.poses import other_hands
        from handdata.trainer.tasks import gesture_transfer

        shown = [(each,) if isinstance(each, Frame) else tuple(each or ()) for each in references]
        pairs = [
            (tuple(NamedFrame("the reference", frame) for frame in several), NamedFrame("the target", target))
            for several, target in zip(shown, targets, strict=True)
        ]
        if warning := other_hands(pairs):
            say(warning)
        with ProgressLine("Sampling", None, "steps") as progress:
            images = gesture_transfer(
                self._sampler,
                references,
                targets,
                options,
                task=task,
                batch_size=batch_size,
                progress=progress.count,
            )
        return _as_pil(images)

    def _frame(self, reference: Reference) -> Frame:
        """Return the frame of what shows a hand."""
        from handdata.jobs.sample import photo_frame

        if isinstance(reference, HandSample):
            return reference.frame
        with image_file(reference) as path:
            return photo_frame(path, self._settings.annotate, self._settings.weights)

    def _targets(self, target: Target | list[Target], size: KeypointsSize | None) -> list[Frame]:
        """Return the frames of what has poses: one each, but of a file of several views all."""
        _require_size(size)
        given = target if isinstance(target, list) else [target]
        return [frame for each in given for frame in self._poses(each, size)]

    def _pose(self, target: Target) -> Frame:
        """Return the frame of what has a pose."""
        frame, *others = self._poses(target, None)
        if others:
            raise UsageError(f"{target} holds {1 + len(others)} views of a moment, where one pose is wanted")
        return frame

    def _poses(self, target: Target, size: KeypointsSize | None) -> list[Frame]:
        from handdata.jobs.poses import is_keypoint_file, target_of_array, targets_in

        scale = self._settings.annotate.crop_scale
        if isinstance(target, np.ndarray) and target.shape[-1:] == (2,):
            return [target_of_array(target, self.image_size, scale, say, size)]
        if isinstance(target, str | Path) and is_keypoint_file(target):
            found = targets_in(Path(target).expanduser(), self.image_size, scale, say, size)
            return [each.frame for each in found]
        return [self._frame(target)]


def _require_size(size: KeypointsSize | None) -> None:
    if size is not None and not (len(size) == 2 and min(size) >= 1):
        raise UsageError(f"keypoints_size is {size}", "give width and height of the image, pixels")


def _as_pil(images: ByteArray) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images]
