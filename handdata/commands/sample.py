"""Commands that generate images with a trained checkpoint: ``sample TASK``."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.api import REPAIR_GUIDANCE
from handdata.commands.generation import (
    AllTargets,
    ClusterAddress,
    DrawingGpus,
    GeneratedDataset,
    ParentsDataset,
    RepairGenerated,
    generate_dataset,
    gpus_of,
)
from handdata.commands.options import (
    Checkpoint,
    CheckpointPreset,
    Device,
    RunOrBuiltin,
    TrainedDataset,
    Workspace,
    finite,
    require_place,
    takes_sampling_options,
    url_of_run,
)
from handdata.console import ProgressLine, out, say
from handdata.pipeline.settings import Settings, load_settings
from handdata.schemas import GENERATED, UsageError
from handdata.trainer.presets import BATCH_SIZE, GUIDANCE, SamplingOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from PIL import Image

    from handdata.jobs.sample import Sampling
    from handdata.pipeline.storage import Storage
    from handdata.schemas.arrays import ByteArray

sample_app = typer.Typer(no_args_is_help=True, help="Generate images with a trained checkpoint.")

References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="PHOTO_OR_SAMPLE",
        help="Photograph or sample_id of the hand, or a folder of photographs; may be given several times.",
        show_default="drawn from the dataset",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="PHOTO_OR_KEYPOINTS_OR_SAMPLE",
        help="Photograph, keypoint file or sample_id of the pose, or a folder of files; may be given several times.",
        show_default="drawn from the dataset",
    ),
]
KeypointsSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--keypoints-size",
        min=1,
        metavar="WIDTH HEIGHT",
        help="Size of the image that keypoints in files are pixels of.",
        show_default="as the file says, else of the picture beside it, else of the generated image",
    ),
]
Count = Annotated[int, typer.Option("--n", min=1, metavar="N", help="Number of generated images.")]
OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir",
        metavar="DIR",
        help="Folder of every picture at the network's own size: PNG files that say what they were made from.",
    ),
]
Upscale = Annotated[
    bool,
    typer.Option(
        "--upscale", help="Write each picture of --out-dir four times as wide, too: ours, by ldm_super_resolution."
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, metavar="N", help="Number of pictures that are drawn at once.")
]
Figure = Annotated[Path, typer.Option("--out", metavar="FILE", help="File of the figure: .png, .jpg or .webp.")]


@sample_app.command(
    "gesture-transfer",
    epilog="Example: handdata sample gesture-transfer --reference me.jpg --target pose.jpg --out me-posing.png",
)
@takes_sampling_options()
def gesture_transfer(
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    dataset: TrainedDataset = None,
    references: References = None,
    targets: Targets = None,
    keypoints_size: KeypointsSize = None,
    count: Count = 6,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    batch_size: BatchSize = BATCH_SIZE,
    out_file: Figure = Path("gesture-transfer.png"),
    out_dir: OutDir = None,
    upscale: Upscale = False,
) -> None:
    """Generate a reference's hand in the pose of a target: a figure of reference, pose, result and truth.

    Several references and targets are paired in their order; a single one of either goes with all of the others.
    """
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        dataset=dataset,
        references=references,
        targets=targets,
        keypoints_size=keypoints_size,
        count=count,
        options=options,
        out_dir=out_dir,
        upscale=upscale,
        batch_size=batch_size,
        device=device,
    )
    _draw_figure(sampling.gesture_transfer, out_file, out_dir)


@sample_app.command(
    "domain-transfer",
    epilog="Example: handdata sample domain-transfer --reference-source hagrid --target-source rhd --all",
)
@takes_sampling_options()
def domain_transfer(
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    from_dataset: ParentsDataset = None,
    references: References = None,
    targets: Targets = None,
    keypoints_size: KeypointsSize = None,
    reference_source: Annotated[str | None, typer.Option(metavar="NAME", help="Source of the references.")] = None,
    target_source: Annotated[str | None, typer.Option(metavar="NAME", help="Source of the targets.")] = None,
    count: Count = 6,
    every: AllTargets = False,
    dataset: GeneratedDataset = None,
    gpus: DrawingGpus = None,
    address: ClusterAddress = None,
    repair: RepairGenerated = False,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    batch_size: BatchSize = BATCH_SIZE,
    out_file: Figure = Path("domain-transfer.png"),
    out_dir: OutDir = None,
    upscale: Upscale = False,
) -> None:
    """Generate the poses of one source with the appearance of another, such as synthetic hands as photographs.

    The result is a figure; with --all or --dataset it is a dataset of annotated samples, which train reads.
    Interrupted, the same command continues; finished, it does nothing.
    """
    if every or dataset is not None:
        if references or targets or out_dir is not None or upscale:
            raise UsageError(
                "--reference, --target, --out-dir and --upscale are for a figure",
                "a dataset takes --reference-source and --target-source",
            )
        settings = load_settings(workspace=workspace)
        generate_dataset(
            settings,
            _weights(settings, run, checkpoint),
            options,
            (reference_source, target_source),
            checkpoint_preset=preset,
            parents=from_dataset,
            dataset=dataset or GENERATED,
            count=None if every else count,
            batch_size=batch_size,
            gpus=gpus_of(gpus, device),
            address=address,
            repair=repair,
        )
        return
    if gpus is not None or address is not None or repair:
        raise UsageError("--gpus, --address and --repair are for a dataset", "write one with --all or --dataset")
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        dataset=from_dataset,
        references=references,
        targets=targets,
        keypoints_size=keypoints_size,
        reference_source=reference_source,
        target_source=target_source,
        count=count,
        options=options,
        out_dir=out_dir,
        upscale=upscale,
        batch_size=batch_size,
        device=device,
    )
    _draw_figure(sampling.domain_transfer, out_file, out_dir)


@sample_app.command(
    "novel-view", epilog="Example: handdata sample novel-view --reference me.jpg --target projected-keypoints.npy"
)
@takes_sampling_options()
def novel_view(
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    dataset: TrainedDataset = None,
    references: References = None,
    targets: Targets = None,
    keypoints_size: KeypointsSize = None,
    turntable: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Views all around the reference instead of targets, from its sample's 3D joints and camera.",
            show_default="none",
        ),
    ] = 0,
    count: Count = 6,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    batch_size: BatchSize = BATCH_SIZE,
    out_file: Figure = Path("novel-view.png"),
    out_dir: OutDir = None,
    upscale: Upscale = False,
) -> None:
    """Generate the moment of a reference as another camera sees it, from the keypoints in that camera.

    Several references are of one moment, seen by several cameras. A target may also be a file of 3D joints and cameras.
    """
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        dataset=dataset,
        references=references,
        targets=targets,
        keypoints_size=keypoints_size,
        turntable=turntable,
        count=count,
        options=options,
        out_dir=out_dir,
        upscale=upscale,
        batch_size=batch_size,
        device=device,
    )
    _draw_figure(sampling.novel_view, out_file, out_dir)


@sample_app.command("video", epilog="Example: handdata sample video --reference me.jpg --target wave.mov --n 48")
@takes_sampling_options()
def video(
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    dataset: TrainedDataset = None,
    references: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="PHOTO_OR_SAMPLE",
            help="Photograph or sample_id of the hand, or a folder of photographs; may be given several times.",
            show_default="the video's first frame",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="VIDEO_OR_KEYPOINTS_OR_SAMPLE",
            help="What gives the poses: video file, folder of frames, file of keypoints (N, 42, 2), or sample_id of a "
            "frame of a video.",
            show_default="drawn from the dataset",
        ),
    ] = None,
    keypoints_size: KeypointsSize = None,
    count: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Number of frames.")] = 12,
    start: Annotated[int, typer.Option(min=0, metavar="N", help="First frame of the poses, counted from 0.")] = 0,
    recent: Annotated[
        int, typer.Option(min=0, metavar="N", help="Frames made last that are references too, 1 as published.")
    ] = 1,
    fps: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=240,
            callback=finite,
            metavar="HZ",
            help="Frames per second of the written video; where nobody says, 10.",
            show_default="those of the poses",
        ),
    ] = None,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    out_file: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File of the video: .mp4, .webp or .gif; a figure of some of its frames lies beside it.",
        ),
    ] = Path("video.mp4"),
    out_dir: OutDir = None,
) -> None:
    """Generate a hand in the poses of a video, every frame from the same noise.

    All frames of a video file, or of a folder, are cut with one square, so that the surroundings stand still. With the
    first frame as reference, what the hand holds is in it too.
    """
    from handdata.pictures.films import FASTEST_GIF_FPS, encode_film, require_film_format
    from handdata.pipeline.storage import Storage

    require_film_format(out_file)
    figure_file = out_file.with_suffix(".png")
    _require_apart([figure_file], [*(references or ()), *([] if target is None else [target])])
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        dataset=dataset,
        references=references,
        targets=() if target is None else (target,),
        keypoints_size=keypoints_size,
        count=count,
        start=start,
        recent=recent,
        options=options,
        device=device,
        out_dir=out_dir,
        is_video=True,
    )
    require_place(figure_file)
    with ProgressLine("Sampling", None, "frames") as progress:
        film = sampling.video(progress.count)
    shown_fps = fps or film.fps
    if out_file.suffix.lower() == ".gif" and shown_fps > FASTEST_GIF_FPS:
        say(
            f"browsers show a GIF of {shown_fps:g} frames a second at another speed: "
            f"--fps {FASTEST_GIF_FPS} is the most, and .webp and .mp4 keep it"
        )
    Storage(out_file.absolute().parent).write_bytes(out_file.name, encode_film(film.frames, out_file, shown_fps))
    out.print(f"{len(film.frames)} frames: {out_file.absolute()}")
    _write_figure(figure_file, film.figure, out_dir)


@sample_app.command("fix", epilog="Example: handdata sample fix malformed.png --mask region.png --out repaired.png")
@takes_sampling_options("sampler", "pose_guidance", "appearance_guidance", guidance_scale=REPAIR_GUIDANCE)
def fix(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="Image with malformed hands.")],
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Image of the photograph's size, white (from 128) where it is drawn anew."),
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="X0 Y0 X1 Y1", help="Box that is drawn anew: pixels of the upright photograph."),
    ] = None,
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File of the repaired image: .png, .jpg or .webp.")
    ] = Path("fixed.png"),
    out_dir: OutDir = None,
    upscale: Upscale = False,
) -> None:
    """Generate the hands of an image anew; the rest stays as it is, to the pixel.

    What is drawn is a mask's white part, a box, or each hand that MediaPipe finds.
    """
    from handdata.pictures.files import require_format
    from handdata.pipeline.annotation.photo import has_alpha, like_photo
    from handdata.pipeline.annotation.regions import marked_region

    _require_apart([out_file, out_dir], [photo, mask])
    region = marked_region(photo, mask, box)
    require_format(out_file, alpha=has_alpha(photo))
    if out_file.suffix.lower() in (".jpg", ".jpeg"):
        say("JPEG changes all pixels a little: .png and .webp keep those that are not drawn")
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        options=options,
        device=device,
        out_dir=out_dir,
        upscale=upscale,
    )
    with ProgressLine("Repairing", None, "steps") as progress:
        image = sampling.fix(photo, region, progress.count)
    _write_picture(out_file, like_photo(photo, image), exact=True)


@sample_app.command("keypoints-only", epilog="Example: handdata sample keypoints-only --target poses --out-dir hands")
@takes_sampling_options("pose_guidance", "appearance_guidance")
def keypoints_only(
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    dataset: TrainedDataset = None,
    targets: Targets = None,
    keypoints_size: KeypointsSize = None,
    count: Count = 6,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    batch_size: BatchSize = BATCH_SIZE,
    out_file: Figure = Path("keypoints-only.png"),
    out_dir: OutDir = None,
    upscale: Upscale = False,
) -> None:
    """Generate hands in given poses without a reference: the network imagines hand and surroundings."""
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        dataset=dataset,
        targets=targets,
        keypoints_size=keypoints_size,
        count=count,
        options=options,
        out_dir=out_dir,
        upscale=upscale,
        batch_size=batch_size,
        device=device,
    )
    _draw_figure(sampling.keypoints_only, out_file, out_dir)


@sample_app.command("unconditional", epilog="Example: handdata sample unconditional --n 16 --seed 3")
@takes_sampling_options(*GUIDANCE)
def unconditional(
    workspace: Workspace = None,
    run: RunOrBuiltin = None,
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    count: Count = 16,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    batch_size: BatchSize = BATCH_SIZE,
    out_file: Figure = Path("unconditional.png"),
    out_dir: OutDir = None,
    upscale: Upscale = False,
) -> None:
    """Sample unconditionally: a grid of hands, without reference or pose."""
    sampling = _sampling(
        out_file,
        workspace,
        run,
        checkpoint,
        checkpoint_preset=preset,
        count=count,
        options=options,
        out_dir=out_dir,
        upscale=upscale,
        batch_size=batch_size,
        device=device,
    )
    _draw_figure(sampling.unconditional, out_file, out_dir)


def _sampling(
    out_file: Path,
    workspace: str | None,
    run: str | None,
    checkpoint: str | None,
    *,
    is_video: bool = False,
    references: "Sequence[str] | None" = None,
    targets: "Sequence[str] | None" = None,
    out_dir: Path | None = None,
    upscale: bool = False,
    **request: object,
) -> "Sampling":
    from handdata.pictures.files import require_format
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.weights import UPSCALER, model_folder

    if upscale and out_dir is None:
        raise UsageError(
            "--upscale enlarges the pictures of --out-dir, which was not given", "name a folder: --out-dir pictures"
        )
    if not is_video:
        require_format(out_file)
    references, targets = tuple(references or ()), tuple(targets or ())
    _require_apart([out_file, out_dir], [*references, *targets])
    settings = load_settings(workspace=workspace)
    storage = Storage(settings.workspace)
    upscaler = model_folder(UPSCALER, settings.weights) if upscale else None
    chosen = _weights(settings, run, checkpoint)
    from handdata.jobs.sample import SampleRequest, Sampling  # torch and MediaPipe: seconds, once it is known what for

    sampling = Sampling(
        SampleRequest(
            checkpoint=chosen,
            references=references,
            targets=targets,
            out_dir=out_dir,
            upscaler=upscaler,
            **request,  # type: ignore[arg-type]
        ),
        storage,
        settings.annotate,
        settings.weights,
        cache(say),
    )
    require_place(out_file)
    if out_dir is not None:
        require_place(out_dir / "0000.png")
    return sampling


def _require_apart(written: "Iterable[Path | None]", read: "Iterable[str | Path | None]") -> None:
    """Check that nothing is written over what it is made from.

    Raises:
        UsageError: A file or a folder is both.

    """
    inputs = {Path(each).resolve() for each in read if each is not None}
    for place in written:
        if place is not None and place.resolve() in inputs:
            raise UsageError(
                f"{place} would be written over what it is made from", "choose another place with --out and --out-dir"
            )


def _weights(settings: Settings, run: str | None, checkpoint: str | None) -> str:
    """Return the checkpoint that is named, or where the run lies."""
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.weights import named_weights

    return named_weights(checkpoint, settings.weights) if checkpoint else _trained(Storage(settings.workspace), run)


def _trained(storage: "Storage", name: str | None) -> str:
    """Return where a run lies; without a name the default one, or the built-in network where there is no run at all.

    Raises:
        UsageError: The workspace has other runs.

    """
    from handdata.pipeline.storage.layout import list_runs
    from handdata.trainer.checkpoints import BUILTIN

    if name is None and not list_runs(storage):
        say(f"{storage.describe()} has no run: the built-in network draws, which has seen rendered hands alone")
        return BUILTIN
    return url_of_run(storage, name or "default")


def _draw_figure(draw: "Callable[[Callable[[int, int], None]], ByteArray]", file: Path, out_dir: Path | None) -> None:
    """Write the figure of a task, which is called with what takes its progress."""
    with ProgressLine("Sampling", None, "steps") as progress:
        figure = draw(progress.count)
    _write_figure(file, figure, out_dir)


def _write_figure(file: Path, figure: "ByteArray", out_dir: Path | None) -> None:
    from PIL import Image

    _write_picture(file, Image.fromarray(figure))
    if out_dir is not None:
        out.print(f"Every picture is in {out_dir.absolute()}")


def _write_picture(file: Path, picture: "Image.Image", *, exact: bool = False) -> None:
    from handdata.pictures.files import encode_picture
    from handdata.pipeline.storage import Storage

    content, written = encode_picture(picture, file, exact=exact)
    if written != file:
        say(f"{file.suffix} cannot hold a picture of {picture.width} x {picture.height} pixels: it is written as .png")
    Storage(written.absolute().parent).write_bytes(written.name, content)
    out.print(f"Look at {written.absolute()}")
