"""The command line: thin commands that parse, call one library function and print.

Libraries are imported inside the commands, so that ``handdata --help`` answers at once.
"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from handdata._version import __version__
from handdata.console import ProgressLine, counted, errors_in_one_line, out, print_table
from handdata.schemas import UsageError

if TYPE_CHECKING:
    from handdata.pipeline.settings import Settings
    from handdata.schemas import SourceCard

app = typer.Typer(
    name="handdata",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn hand datasets into annotated shards, and train the FoundHand diffusion transformer on them.",
    epilog="A first look: `handdata demo`. With your own data: `handdata ingest --source hagrid --root DIR`, "
    "`handdata annotate`, `handdata train`.",
)


class SplitName(StrEnum):
    """Splits, as a choice."""

    train = "train"
    val = "val"
    test = "test"


class MasksName(StrEnum):
    """Mask policies, as a choice."""

    auto = "auto"
    sam = "sam"
    grabcut = "grabcut"
    dataset = "dataset"
    none = "none"


class KeypointsName(StrEnum):
    """Keypoint policies, as a choice."""

    prefer_dataset = "prefer-dataset"
    dataset = "dataset"
    mediapipe = "mediapipe"


class CropName(StrEnum):
    """Crop modes, as a choice."""

    frame = "frame"
    stable = "stable"


Workspace = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="PATH_OR_URL",
        help="Where records, dataset and runs go.",
        show_default="./workspace",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]


def _settings(**flags: Any) -> "Settings":
    """Return the settings: flag > variable > handdata.toml > default."""
    from handdata.pipeline.settings import SETTINGS_FILE, Settings

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"setting {where}: {first['msg']}", f"check flags, HANDDATA_ variables and {SETTINGS_FILE}"
        ) from None
    except ValueError as error:  # a TOML file that does not parse
        raise UsageError(f"{SETTINGS_FILE} cannot be read: {error}") from None


def _version(show: bool) -> None:
    if show:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Hold the options of all commands."""


@app.command(epilog="Example: handdata sources hagrid")
def sources(
    name: Annotated[str | None, typer.Argument(help="Show this source's card.")] = None, as_json: AsJson = False
) -> None:
    """List the datasets that handdata knows, their licences and what they label."""
    from handdata.adapters.registry import registered_adapters
    from handdata.schemas import SOURCE_CARDS, UnknownSourceError

    adapters = registered_adapters()
    cards = SOURCE_CARDS | {source: adapter.card for source, adapter in adapters.items()}
    if name is not None:
        if name not in cards:
            raise UnknownSourceError(f"unknown source {name!r}", f"there are {', '.join(cards)}")
        _print_card(cards[name], as_json)
        return
    if as_json:
        documents = [card.model_dump() for card in cards.values()]
        sys.stdout.write(json.dumps({"sources": documents}) + "\n")
        return
    rows = []
    for source, card in cards.items():
        kind = "video" if card.video else "stills"
        views = f"{card.viewpoint}, {kind}" + (", multi-view" if card.multi_view else "")
        rows.append((source, card.size, views, card.labels, card.license, card.homepage))
    print_table("Sources", rows, header=("name", "size", "views", "labels", "licence", "homepage"))


def _print_card(card: "SourceCard", as_json: bool) -> None:
    if as_json:
        sys.stdout.write(card.model_dump_json() + "\n")
        return
    facts = card.model_dump(exclude={"layout", "download", "pitfalls"})
    print_table(card.title, {name.replace("_", " "): value for name, value in facts.items()})
    for heading, text in (("Layout", card.layout), ("Download", card.download), ("Pitfalls", card.pitfalls)):
        if text:
            out.print(f"\n[bold]{heading}[/]")
            out.print(text.rstrip(), markup=False)


@app.command(epilog="Example: handdata synth --out sources/synthetic --identities 8 --sequences 24 --frames 12")
def synth(
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", show_default="<sources root>/synthetic")
    ] = None,
    identities: Annotated[int, typer.Option(min=1, help="Different hands.")] = 8,
    sequences: Annotated[int, typer.Option(min=1, help="Videos in all.")] = 24,
    frames: Annotated[int, typer.Option(min=1, help="Frames a video.")] = 12,
    cameras: Annotated[int, typer.Option(min=1, help="Synchronised views.")] = 2,
    size: Annotated[int, typer.Option(min=32, max=2048, metavar="PIXELS", help="Side of the square frames.")] = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Render the built-in synthetic dataset: hands with exact keypoints, masks and cameras."""
    from handdata.adapters.synthesis.dataset import write_dataset

    target = out_dir or _settings().sources_root / "synthetic"
    total = sequences * frames * cameras
    with ProgressLine("Rendering", total, "frames") as progress:
        write_dataset(target, identities, sequences, frames, cameras, size, seed, on_progress=progress.advance)
    print_table("Rendered", {"frames": f"{total:,}", "identities": identities, "where": target})
    out.print(f"Next: handdata ingest --source synthetic --root {target}")


@app.command(epilog="Example: handdata ingest --source hagrid --root /data/hagrid")
def ingest(
    source: Annotated[str, typer.Option("--source", "-s", metavar="NAME", help="See `handdata sources`.")],
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The dataset as downloaded.", show_default="<sources root>/<source>"),
    ] = None,
    workspace: Workspace = None,
    split: Annotated[SplitName | None, typer.Option(help="Only this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N records.")] = None,
    stride: Annotated[int, typer.Option(min=1, metavar="K", help="Keep frames whose number is a multiple of K.")] = 1,
    mano: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your MANO_RIGHT.pkl and MANO_LEFT.pkl, for labels that need them."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a record was rejected.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a downloaded dataset into normalized records. A second run replaces the source's records."""
    from handdata.adapters import AdapterOptions
    from handdata.adapters.registry import find_adapter
    from handdata.pipeline.ingest import ingest as run_ingest
    from handdata.pipeline.records import records_folder, rejected_folder
    from handdata.pipeline.storage import Storage

    settings = _settings(workspace=workspace, mano_dir=mano)
    adapter = find_adapter(source)
    storage = Storage(settings.workspace)
    with ProgressLine(f"Ingesting {source}", None, "partitions") as progress:
        summary = run_ingest(
            adapter,
            root or settings.sources_root / source,
            storage,
            split=split.value if split else None,
            limit=limit,
            stride=stride,
            options=AdapterOptions(mano_dir=settings.mano_dir),
            on_progress=lambda done, total, records: progress.set(done, f"{records:,} records", total),
        )
    where = storage.describe(records_folder(source))
    if as_json:
        sys.stdout.write(json.dumps({**asdict(summary), "where": where}) + "\n")
    else:
        table = {"records": counted(summary.splits), "rejected": counted(summary.rejected), "where": where}
        if summary.rejected:
            table["reasons in"] = storage.describe(rejected_folder("ingest", source))
        print_table(f"Ingested {source}", table)
        out.print("Next: handdata annotate")
    if strict and summary.rejected:
        raise typer.Exit(1)


@app.command(epilog="Example: handdata annotate --source hagrid --masks grabcut --image-size 256")
def annotate(
    source: Annotated[
        list[str] | None,
        typer.Option("--source", "-s", metavar="NAME", help="Repeatable.", show_default="all ingested"),
    ] = None,
    workspace: Workspace = None,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="SAM actors, each on one GPU.")] = 0,
    cpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU actors.", show_default="all cores")] = None,
    masks: Annotated[MasksName | None, typer.Option(help="Where masks come from.", show_default="auto")] = None,
    keypoints: Annotated[KeypointsName | None, typer.Option(show_default="prefer-dataset")] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="S", help="Side of the crops, pixels.", show_default="512")
    ] = None,
    sam_checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="A SAM vit_h, vit_l or vit_b.")] = None,
    crop: Annotated[
        CropName | None, typer.Option(help="A square for each frame, or one a run.", show_default="frame")
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N records a source.")] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="N records a source, spread over its sequences: a first look."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a record was rejected.")] = False,
    as_json: AsJson = False,
) -> None:
    """Annotate ingested records: keypoints, square crops, masks, quality flags; write Parquet shards.

    Interrupted, the same command continues; finished, it does nothing.
    """
    from handdata.pipeline.engine import annotate as run_annotate
    from handdata.pipeline.shards import DATASET
    from handdata.pipeline.storage import Storage

    settings = _settings(workspace=workspace)
    chosen = {
        "masks": masks.value if masks else None,
        "keypoints": keypoints.value if keypoints else None,
        "image_size": image_size,
        "crop": crop.value if crop else None,
    }
    overrides = {name: value for name, value in chosen.items() if value is not None}
    annotation = _settings(annotate={**settings.annotate.model_dump(), **overrides}).annotate
    storage = Storage(settings.workspace)
    with ProgressLine("Annotating", None, "records") as progress:
        summary = run_annotate(
            storage,
            annotation,
            sources=source or (),
            cpus=cpus,
            gpus=gpus,
            address=address,
            weights=settings.weights,
            sam_checkpoint=sam_checkpoint,
            limit=limit,
            sample=sample,
            on_plan=lambda to_do, done: progress.set(0, f"({done:,} done before)" if done else "", to_do),
            on_unit=lambda marker: progress.advance(marker.records),
        )
    where = storage.describe(f"{DATASET}/data")
    held = [counts for splits in summary.manifest.sources.values() for counts in splits.values()]
    document = {
        "records": summary.records,
        "samples": summary.samples,
        "rejected": summary.rejected,
        "flags": summary.flags,
        "dataset": {
            "samples": sum(counts.samples for counts in held),
            "rejected": sum(counts.rejected.total() for counts in held),
            "bytes": sum(counts.bytes for counts in held),
            "image_size": summary.manifest.image_size,
            "complete": summary.manifest.complete,
        },
        "where": where,
    }
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        print_table(
            "Annotated" if summary.records else "Nothing to do: every record is annotated",
            {
                "samples": f"{summary.samples:,} of {summary.records:,} records",
                "rejected": counted(summary.rejected),
                "flags": counted(summary.flags),
                "dataset": f"{document['dataset']['samples']:,} samples, {document['dataset']['bytes'] / 1e6:,.1f} MB",  # type: ignore[index]
                "where": where,
            },
        )
        out.print("Next: handdata report, handdata train")
    if strict and summary.rejected:
        raise typer.Exit(1)


@app.command(epilog="Example: handdata inspect --source hagrid --root /data/hagrid --n 12 --out sheet.png")
def inspect(
    source: Annotated[str, typer.Option("--source", "-s", metavar="NAME", help="See `handdata sources`.")],
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The dataset as downloaded.", show_default="<sources root>/<source>"),
    ] = None,
    count: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Frames, spread over the dataset.")] = 12,
    out_file: Annotated[Path, typer.Option("--out", metavar="PNG", help="The sheet.")] = Path("sheet.png"),
    mano: Annotated[Path | None, typer.Option(metavar="DIR", help="Your MANO files, where labels need them.")] = None,
) -> None:
    """Draw the labels of some frames, to see at one look whether they sit right; nothing is ingested."""
    from handdata.adapters import AdapterOptions
    from handdata.adapters.registry import find_adapter
    from handdata.pipeline.inspection import inspect_source
    from handdata.pipeline.report import encode_png
    from handdata.pipeline.storage import Storage

    settings = _settings(mano_dir=mano)
    sheet = inspect_source(
        find_adapter(source),
        root or settings.sources_root / source,
        count,
        columns=min(count, 4),
        options=AdapterOptions(mano_dir=settings.mano_dir),
    )
    Storage(out_file.absolute().parent).write_bytes(out_file.name, encode_png(sheet))
    out.print(f"Look at {out_file.absolute()}")


@app.command(epilog="Example: handdata report --out report")
def report(
    workspace: Workspace = None,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page and the picture go.")] = Path(
        "report"
    ),
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Show this training run's losses.")] = None,
    generated: Annotated[Path | None, typer.Option(metavar="PNG", help="Show this grid of generated hands.")] = None,
) -> None:
    """Write one page and one contact sheet about the annotated dataset: pictures, numbers, rejections, losses."""
    from handdata.pipeline.report import read_metrics, write_report
    from handdata.pipeline.storage import Storage

    storage = Storage(_settings(workspace=workspace).workspace)
    metrics = read_metrics(storage, run) if run else None
    files = write_report(storage, out_dir, metrics=metrics, generated=generated)
    print_table("Report", {"page": files.html, "contact sheet": files.png})


@app.command(epilog="Example: handdata train --preset tiny --steps 300")
def train(
    preset: Annotated[str, typer.Option(metavar="NAME", help="A row of the table in trainer/presets.py.")] = "tiny",
    config: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Settings that replace the preset's, in the same nesting.")
    ] = None,
    workspace: Workspace = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="0: on the CPU.", show_default="1 where there is one")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", show_default="the preset's")] = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="Folder under <workspace>/runs.")] = "default",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
    init: Annotated[
        str | None, typer.Option(metavar="FILE", help="Start from published FoundHand or ImageNet DiT weights.")
    ] = None,
) -> None:
    """Train the two-frame diffusion transformer on the annotated dataset."""
    from handdata.pipeline.storage import Storage
    from handdata.trainer.loop import train as run_train
    from handdata.trainer.presets import load_preset

    storage = Storage(_settings(workspace=workspace).workspace)
    chosen = load_preset(preset, config)
    with ProgressLine(f"Training {preset}", steps or chosen.optimisation.steps, "steps") as progress:
        summary = run_train(
            chosen,
            storage,
            run,
            steps=steps,
            resume=resume,
            init=init,
            device=_training_device(gpus),
            on_step=lambda step, total, loss, rate: progress.set(step, f"loss {loss:.3f}, {rate:.0f} pairs/s", total),
        )
    table = {"steps": f"{summary.steps:,}", "checkpoint": summary.checkpoint_url}
    if summary.loss is not None:
        table["loss"] = f"{summary.loss:.4f}"
    if summary.validation is not None:
        following = summary.validation
        table["validation loss"] = f"{following.true_loss:.4f}"
        table["with permuted keypoints"] = f"{following.permuted_loss:.4f}"
    print_table("Trained", table)
    out.print("Next: handdata sample gesture-transfer")


def _training_device(gpus: int | None) -> str | None:
    """Return the device for a number of GPUs; without a number the trainer chooses."""
    import torch

    if gpus is None:
        return None
    if gpus > 1:
        raise UsageError(f"--gpus {gpus}: this version trains in one process", "use --gpus 1 or --gpus 0")
    if gpus and not torch.cuda.is_available():
        raise UsageError("--gpus 1 was asked for, this machine has no CUDA GPU", "use --gpus 0")
    return "cuda" if gpus else "cpu"


sample_app = typer.Typer(no_args_is_help=True, help="Make pictures with a trained checkpoint.")
app.add_typer(sample_app, name="sample")


@sample_app.command(
    "gesture-transfer",
    epilog="Example: handdata sample gesture-transfer --reference me.jpg --target pose.jpg --out me-posing.png",
)
def sample_gesture_transfer(
    workspace: Workspace = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="A training run of the workspace.")] = "default",
    checkpoint: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="A checkpoint.", show_default="the run's latest")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="PHOTO_OR_SAMPLE", help="Whose hand.", show_default="drawn from the dataset")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="PHOTO_OR_KEYPOINTS_OR_SAMPLE", help="Which pose.", show_default="drawn")
    ] = None,
    count: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Pairs to draw from the dataset.")] = 6,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Denoising.", show_default="the preset's")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, metavar="SCALE", show_default="the preset's")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
    out_file: Annotated[Path, typer.Option("--out", metavar="PNG", help="The figure.")] = Path("gesture-transfer.png"),
) -> None:
    """Draw a reference's hand in the pose of a target: a figure of reference, pose, truth and result."""
    from handdata.jobs.sample import GestureTransferRequest
    from handdata.jobs.sample import sample_gesture_transfer as run_sample
    from handdata.pipeline.storage import Storage

    settings = _settings(workspace=workspace)
    storage = Storage(settings.workspace)
    request = GestureTransferRequest(
        checkpoint=checkpoint or storage.describe(f"runs/{run}"),
        reference=reference,
        target=target,
        count=count,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
    )
    with ProgressLine("Sampling", None, "steps") as progress:
        picture = run_sample(
            request, storage, settings.annotate, settings.weights, lambda step, total: progress.set(step, total=total)
        )
    Storage(out_file.absolute().parent).write_bytes(out_file.name, picture)
    out.print(f"Look at {out_file.absolute()}")


@app.command(epilog="Example: handdata demo --out demo-output")
def demo(
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("demo-output"),
) -> None:
    """Run the whole road on synthetic hands, from rendering to generated pictures, and write a page about it."""
    from handdata.jobs.demo import run_demo

    run_demo(out_dir, lambda command: app(list(command), standalone_mode=False), lambda line: out.print(line))


weights_app = typer.Typer(no_args_is_help=True, help="Model files: list, fetch and verify them.")
app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def weights_list() -> None:
    """List the model files that handdata can use, and where they lie."""
    from handdata.pipeline.weights import WEIGHTS, find_weights

    folder = _settings().weights
    rows = [
        (file.name, file.purpose, f"{file.size_bytes / 1e6:,.0f} MB", str(find_weights(file.name, folder) or "-"))
        for file in WEIGHTS.values()
    ]
    print_table("Model files", rows, header=("name", "for", "size", "found at"))


@weights_app.command("fetch")
def weights_fetch(name: Annotated[str, typer.Argument(help="A name of `handdata weights list`.")]) -> None:
    """Download a model file and check its SHA-256; nothing happens where it is there."""
    from handdata.pipeline.weights import require_weights

    _known_weights(name)
    with ProgressLine(f"Fetching {name}", None, "bytes") as progress:
        path = require_weights(name, _settings().weights, lambda done, total: progress.set(done, total=total))
    out.print(f"{name}: {path}")


@weights_app.command("verify")
def weights_verify() -> None:
    """Check the SHA-256 of every model file that is on this machine."""
    from handdata.pipeline.weights import WEIGHTS, find_weights, sha256_of

    folder = _settings().weights
    broken = 0
    for file in WEIGHTS.values():
        path = find_weights(file.name, folder)
        if path is None:
            out.print(f"{file.name}: not on this machine")
            continue
        good = sha256_of(path) == file.sha256
        broken += not good
        out.print(f"{file.name}: {'ok' if good else 'NOT the published file'} ({path})")
    if broken:
        raise typer.Exit(1)


def _known_weights(name: str) -> None:
    from handdata.pipeline.weights import WEIGHTS

    if name not in WEIGHTS:
        raise UsageError(f"unknown model file {name!r}", f"there are {', '.join(WEIGHTS)}")


def main() -> None:
    """Run the command line; the entry point ``handdata``."""
    with errors_in_one_line():
        app()


__all__ = ["app", "main"]
