"""The command that scores generated hands: ``evaluate``."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handdata.commands.options import (
    AsJson,
    Checkpoint,
    CheckpointPreset,
    Device,
    RunName,
    TrainedDataset,
    Workspace,
    finite,
    require_place,
    takes_sampling_options,
    url_of_run,
)
from handdata.console import ProgressLine, byte_size, escape, out, print_json, print_table, say, say_next
from handdata.pipeline.settings import load_settings
from handdata.schemas import Split, UsageError
from handdata.trainer.presets import PairTask, SamplingOptions

if TYPE_CHECKING:
    from handdata.jobs.evaluate import Evaluation, EvaluationRequest
    from handdata.pipeline.storage import Storage
    from handdata.trainer.data.pair_lists import PairList

evaluating_app = typer.Typer()

_CHART_PX = 960
_LIST_PANEL = "Pair lists"

_OF_THE_CHOICE = ("split", "count", "task", "min_motion", "image_size")
_OF_NETWORKS = ("run", "checkpoint", "preset", "device", *(set(SamplingOptions.__annotations__) - {"seed"}))
_OF_SCORES = (*_OF_NETWORKS, "beside", "out_dir", "as_json")


@evaluating_app.command(
    epilog="Example: handdata evaluate --run default --split test --out results. For results that can be compared: "
    "handdata evaluate --make-pair-list pairs.json --split test --pairs 1000, and with it "
    "handdata evaluate --pair-list pairs.json --images DIR --out results"
)
@takes_sampling_options()
def evaluate(
    context: typer.Context,
    workspace: Workspace = None,
    run: RunName = "default",
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    dataset: TrainedDataset = None,
    split: Annotated[Split, typer.Option(help="Split of the scored pairs.")] = "val",
    count: Annotated[int, typer.Option("--pairs", min=2, metavar="N", help="Largest number of pairs.")] = 200,
    task: Annotated[
        PairTask,
        typer.Option(
            help="What lies between the frames of a pair: another moment, another camera, or a run of frames.",
        ),
    ] = "pose",
    min_motion: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            metavar="HAND_LENGTHS",
            help="Smallest mean motion of a pair's joints.",
            show_default="0.3; where no pair moves so far, the faster half of the pairs",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=4096,
            metavar="PIXELS",
            help="Side of the scored images.",
            show_default="the network's; of a new pair list the stored one, at most that of FoundHand's own",
        ),
    ] = None,
    make_pair_list: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_LIST_PANEL, help="Choose pairs, write them there, and end."),
    ] = None,
    pair_list: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_LIST_PANEL, help="Score the pairs of this list."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_LIST_PANEL,
            help="Score the images of another program, PAIR_ID.png for each pair, instead of a checkpoint's.",
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH_OR_URL",
            rich_help_panel=_LIST_PANEL,
            help="Another checkpoint, or a folder of images, in the same table. Repeat it for several.",
            show_default=False,
        ),
    ] = None,
    export_pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_LIST_PANEL,
            help="Write references, targets, masks and keypoints of the list there, for other programs, and end.",
        ),
    ] = None,
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the scores as JSON, Markdown and a page, of the figures as PNG, and of the drawn images, "
            "which the same command does not draw again.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score generated hands beside the truth and what learns nothing, on pairs that move.

    What learns nothing: the reference copied, the reference carried to the target's keypoints, and the mean image.

    Measured are likeness to the truth (of the whole image, and inside the target's hand box), the pose that MediaPipe
    finds in the image (PCK is the share of joints near the target's), skin colour, the flicker of clips, and LPIPS,
    FID, KID and DINOv2's similarity where their weights are here.
    """
    from handdata.jobs.evaluate import EvaluationRequest
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.storage.layout import metrics_file
    from handdata.pipeline.weights import named_weights
    from handdata.trainer.data.pair_lists import read_pair_list

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    _require_use(given)
    settings = load_settings(workspace=workspace)
    storage = Storage(settings.workspace)
    if make_pair_list is not None:
        _make_pair_list(storage, dataset, make_pair_list, task, split, count, options.seed, min_motion, image_size)
        return
    pairs = read_pair_list(pair_list) if pair_list is not None else None
    if export_pairs is not None and pairs is not None and pair_list is not None:
        _export_pairs(storage, dataset, pairs, pair_list, export_pairs)
        return
    metrics = None  # of a run that was copied without its curves, too
    if out_dir is not None:
        require_place(out_dir / "evaluation.json")
        if checkpoint is None and images is None and storage.exists(metrics_file(run)):
            from handdata.pipeline.report.page import read_metrics

            metrics = read_metrics(storage, run)
    request = EvaluationRequest(
        checkpoint=None if images else named_weights(checkpoint or url_of_run(storage, run), settings.weights),
        images=images,
        beside=tuple(named_weights(each, settings.weights) for each in beside or ()),
        pair_list=pairs,
        task=task,
        split=split,
        count=count,
        least_motion=min_motion,
        image_size=image_size,
        dataset=dataset,
        options=options,
        device=device,
        checkpoint_preset=preset,
    )
    found = _evaluated(request, storage, settings.weights, out_dir)
    if out_dir is not None:
        _write_scores(found, out_dir, metrics)
    if as_json:
        print_json(found.document())
        return
    _show_scores(found)
    if out_dir is not None:
        out.print(f"Look at {escape(str(out_dir.absolute() / 'evaluation.html'))}")


def _require_use(given: set[str]) -> None:
    """Check that each option that was given has an effect beside the others.

    Raises:
        UsageError: One has none.

    """
    without_effect: dict[str, tuple[str, ...]] = {
        "make_pair_list": ("pair_list", "images", "export_pairs", *_OF_SCORES),
        "export_pairs": ("images", "seed", *_OF_THE_CHOICE, *_OF_SCORES),
        "pair_list": _OF_THE_CHOICE,
        "images": ("run", "checkpoint", "preset"),
    }
    for mode, others in without_effect.items():
        if mode in given and (vain := [name for name in others if name in given]):
            raise UsageError(f"{_flag(vain[0])} has no effect with {_flag(mode)}", "leave one of them out")
    for mode in ("images", "export_pairs"):
        if mode in given and "pair_list" not in given:
            raise UsageError(f"{_flag(mode)} needs the pairs that it is about", "name their list with --pair-list")


def _flag(name: str) -> str:
    renamed = {"count": "pairs", "out_dir": "out", "as_json": "json"}
    return "--" + renamed.get(name, name).replace("_", "-")


def _make_pair_list(
    storage: "Storage",
    dataset: str | None,
    file: Path,
    task: PairTask,
    split: Split,
    count: int,
    seed: int,
    least_motion: float | None,
    image_size: int | None,
) -> None:
    from handdata.jobs.evaluate import make_pair_list
    from handdata.pipeline.storage import Dataset, Storage
    from handdata.pipeline.storage.layout import DATASET

    require_place(file)
    pairs = make_pair_list(
        Dataset(storage, dataset or DATASET),
        task=task,
        split=split,
        count=count,
        seed=seed,
        least_motion=least_motion,
        image_size=image_size,
        on_note=cache(say),
    )
    Storage(file.absolute().parent).write_bytes(file.name, pairs.encode())
    print_table(
        f"Pair list {file}",
        {
            "pairs": f"{len(pairs.pairs):,} of {len({pair.video for pair in pairs.pairs}):,} videos",
            "pair rule": pairs.rule,
            "size": f"{pairs.size} x {pairs.size} pixels",
            "SHA-256": pairs.sha256,
        },
    )
    say_next(f"evaluate --pair-list {file} --run default", f"evaluate --pair-list {file} --export-pairs DIR")


def _export_pairs(storage: "Storage", dataset: str | None, pairs: "PairList", file: Path, folder: Path) -> None:
    from handdata.jobs.listed_images import EXPORTED_LIST, export_pairs
    from handdata.pipeline.storage import Dataset
    from handdata.pipeline.storage.layout import DATASET
    from handdata.trainer.data.pair_lists import ListedFrames

    require_place(folder / EXPORTED_LIST)
    frames = ListedFrames(Dataset(storage, dataset or DATASET), pairs)
    with ProgressLine("Writing", len(pairs.pairs), "pairs") as progress:
        export_pairs(pairs, frames, folder, lambda done, _: progress.set(done))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    out.print(f"Written: {len(pairs.pairs):,} pairs, {byte_size(size)}, in {escape(str(folder.absolute()))}")
    say_next(f"evaluate --pair-list {file} --images DIR")


def _evaluated(
    request: "EvaluationRequest", storage: "Storage", weights: Path | None, folder: Path | None
) -> "Evaluation":
    from handdata.jobs.evaluate import evaluate as run_evaluate

    with ProgressLine("Evaluating", None, "pairs") as progress:
        return run_evaluate(request, storage, weights, progress.count, cache(say), folder)


def _write_scores(found: "Evaluation", out_dir: Path, metrics: list[dict[str, Any]] | None) -> None:
    """Write the scores and the figures of an evaluation.

    Args:
        found: Evaluation to write.
        out_dir: Folder of the files.
        metrics: Metrics of the run, whose losses are drawn too; None without a run.

    """
    from handdata.jobs.tables import markdown, page
    from handdata.pictures.charts import chart_picture, loss_chart, read_losses
    from handdata.pictures.png import encode_png
    from handdata.pipeline.storage import Storage

    folder = Storage(out_dir.absolute())
    folder.write_bytes("evaluation.md", markdown(found).encode())
    folder.write_bytes("evaluation.html", page(found).encode())
    folder.write_bytes("evaluation.png", encode_png(found.figure))
    if metrics is not None:
        losses = loss_chart(read_losses(metrics))
        folder.write_bytes("losses.png", encode_png(chart_picture(losses, _CHART_PX)))
    folder.write_bytes("evaluation.json", json.dumps(found.document(), indent=2).encode())


def _show_scores(found: "Evaluation") -> None:
    from handdata.jobs.tables import by_measure, facts, means_of, ours_and_above, published_lines, title_of

    header, rows = means_of(found)
    print_table(title_of(found), rows, header=header)
    header, rows = by_measure(ours_and_above(found))
    print_table("Means with 95% intervals; differences pair by pair", rows, header=header)
    for name, text in facts(found).items():
        out.print(escape(f"{name}: {text}"))
    for line in [*found.missing, *published_lines(found.pair_list["task"])]:
        out.print(escape(line))
