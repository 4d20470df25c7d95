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
)
from handdata.console import ProgressLine, out, print_json, print_table, say
from handdata.pipeline.settings import load_settings
from handdata.schemas import Split
from handdata.trainer.presets import SamplingOptions

if TYPE_CHECKING:
    from handdata.jobs.evaluate import Evaluation
    from handdata.trainer.evaluation import Interval

evaluating_app = typer.Typer()

_CHART_PX = 960


@evaluating_app.command(epilog="Example: handdata evaluate --run default --split test --out results")
@takes_sampling_options()
def evaluate(
    workspace: Workspace = None,
    run: RunName = "default",
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    dataset: TrainedDataset = None,
    split: Annotated[Split, typer.Option(help="Split of the scored pairs.")] = "val",
    count: Annotated[int, typer.Option("--pairs", min=2, metavar="N", help="Largest number of pairs.")] = 200,
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
    options: SamplingOptions = SamplingOptions(),
    device: Device = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the scores as JSON and the figures as PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score generated hands beside the truth and what learns nothing, on pairs that move.

    What learns nothing: the reference copied, the reference carried to the target's keypoints, and the mean image.

    PSNR and SSIM are those inside the target's hand box. PCK is the share of joints that MediaPipe finds in the
    generated hand near the target's.
    """
    from handdata.jobs.evaluate import EvaluationRequest
    from handdata.jobs.evaluate import evaluate as run_evaluate
    from handdata.pipeline.report.page import read_metrics
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.storage.layout import metrics_file, run_folder
    from handdata.pipeline.weights import named_weights

    settings = load_settings(workspace=workspace)
    storage = Storage(settings.workspace)
    metrics = None  # of a run that was copied without its curves, too
    if out_dir is not None:
        require_place(out_dir / "evaluation.json")
        if checkpoint is None and storage.exists(metrics_file(run)):
            metrics = read_metrics(storage, run)
    request = EvaluationRequest(
        checkpoint=named_weights(checkpoint or storage.url(run_folder(run)), settings.weights),
        dataset=dataset,
        split=split,
        count=count,
        least_motion=min_motion,
        options=options,
        device=device,
        checkpoint_preset=preset,
    )
    with ProgressLine("Evaluating", None, "pairs") as progress:
        found = run_evaluate(
            request, storage, settings.weights, lambda done, total: progress.set(done, total=total), cache(say)
        )
    if out_dir is not None:
        _write_scores(found, out_dir, metrics)
    if as_json:
        print_json(found.document())
        return
    _show_scores(found)
    if out_dir is not None:
        out.print(f"Look at {out_dir.absolute() / 'evaluation.png'}")


def _write_scores(found: "Evaluation", out_dir: Path, metrics: list[dict[str, Any]] | None) -> None:
    """Write the scores and the figures of an evaluation.

    Args:
        found: Evaluation to write.
        out_dir: Folder of the files.
        metrics: Metrics of the run, whose losses are drawn too; None without a run.

    """
    from handdata.pictures.charts import chart_picture, loss_chart, read_losses
    from handdata.pictures.png import encode_png
    from handdata.pipeline.storage import Storage

    folder = Storage(out_dir.absolute())
    folder.write_bytes("evaluation.json", json.dumps(found.document(), indent=2).encode())
    folder.write_bytes("evaluation.png", encode_png(found.figure))
    if metrics is not None:
        losses = loss_chart(read_losses(metrics))
        folder.write_bytes("losses.png", encode_png(chart_picture(losses, _CHART_PX)))


def _show_scores(found: "Evaluation") -> None:
    above = {f"above {baseline}": scores for baseline, scores in found.above.items()}
    names = list(next(iter(found.scores.values())))
    rows = [
        (way, *(_spread(scores[name]) if name in scores else "" for name in names))
        for way, scores in {**found.scores, "truth": found.truth, **above}.items()
    ]
    title = f"{found.pairs} pairs of {found.sequences} videos that move {found.motion:.2f} hand lengths; 95% intervals"
    print_table(title, rows, header=("", *names))


def _spread(score: "Interval") -> str:
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})"
