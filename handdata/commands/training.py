"""From shards to a model and its pictures: ``train`` and ``sample``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import AsJson, OtherDataset, SplitName, Workspace, load_settings
from handdata.console import ProgressLine, out, print_table
from handdata.schemas import UsageError

if TYPE_CHECKING:
    from handdata.trainer.evaluation import Interval

training_app = typer.Typer()

_CHART_PX = 960


@training_app.command(epilog="Example: handdata train --preset tiny --steps 300")
def train(
    preset: Annotated[str, typer.Option(metavar="NAME", help="A row of the table in trainer/presets.py.")] = "tiny",
    config: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Settings that replace the preset's, in the same nesting.")
    ] = None,
    workspace: Workspace = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="0: on the CPU; more than 1: processes that Ray Train starts, and restarts where one is lost.",
            show_default="1 where there is one",
        ),
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster, for N > 1.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", show_default="the preset's")] = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="Folder under <workspace>/runs.")] = "default",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
    init: Annotated[
        str | None, typer.Option(metavar="FILE", help="Start from published FoundHand or ImageNet DiT weights.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Only rows for which this SQL expression over the sample columns is true."),
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="A,B", help="Only rows under these licences.")] = None,
    dataset: OtherDataset = None,
) -> None:
    """Train the two-frame diffusion transformer on the annotated dataset."""
    from handdata.pipeline.storage import Storage
    from handdata.trainer.presets import load_preset

    storage = Storage(load_settings(workspace=workspace).workspace)
    chosen = load_preset(preset, config).choosing_rows(where, licence.split(",") if licence else (), dataset)
    with ProgressLine(f"Training {preset}", steps or chosen.optimisation.steps, "steps") as progress:

        def show(step: int, total: int, loss: float, rate: float) -> None:
            progress.set(step, f"loss {loss:.3f}, {rate:.0f} pairs/s", total)

        if gpus is not None and gpus > 1:
            from handdata.jobs.train import train_in_processes

            summary = train_in_processes(
                chosen,
                storage,
                run,
                processes=gpus,
                use_gpus=True,
                address=address,
                steps=steps,
                resume=resume,
                init=init,
                on_step=show,
            )
        else:
            from handdata.trainer.loop import train as run_train

            device = _training_device(gpus)
            summary = run_train(
                chosen, storage, run, steps=steps, resume=resume, init=init, device=device, on_step=show
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


@training_app.command(epilog="Example: handdata encode --preset foundhand-xl --variants 4")
def encode(
    preset: Annotated[str, typer.Option(metavar="NAME", help="The preset that will be trained.")] = "foundhand-xl",
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="Settings that replace the preset's.")] = None,
    workspace: Workspace = None,
    dataset: OtherDataset = None,
    autoencoder: Annotated[
        str | None, typer.Option(metavar="KIND", help="sd-vae, taef2 or pixel.", show_default="the preset's")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH_OR_NAME", help="The autoencoder's.", show_default="the preset's")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, metavar="S", help="Pixels.", show_default="the preset's")
    ] = None,
    variants: Annotated[
        int, typer.Option(min=1, metavar="N", help="1: unchanged pictures; more: changed ones too.")
    ] = 1,
    gpus: Annotated[
        int | None, typer.Option(min=0, max=1, metavar="N", help="0: on the CPU.", show_default="1 where there is one")
    ] = None,
) -> None:
    """Compute every picture's latents once, and store them beside the shards for training (`data.latents = true`).

    Interrupted, the same command continues; finished, it does nothing.
    """
    from handdata.pipeline.shards import read_manifest
    from handdata.pipeline.storage import Storage
    from handdata.trainer.autoencoders import load_autoencoder
    from handdata.trainer.data.latents import encode as run_encode
    from handdata.trainer.presets import load_preset

    storage = Storage(load_settings(workspace=workspace).workspace)
    chosen = load_preset(preset, config).choosing_rows(dataset=dataset)
    read_manifest(storage, chosen.data.dataset)  # a missing dataset is told before weights are downloaded
    settings = chosen.autoencoder.changed(autoencoder, weights)
    device = _training_device(gpus) or _training_device(int(_has_cuda())) or "cpu"
    with ProgressLine("Encoding", None, "shards") as progress:
        summary = run_encode(
            storage,
            load_autoencoder(settings, device),
            settings,
            image_size or chosen.image_size,
            dataset=chosen.data.dataset,
            variants=variants,
            augmentation=chosen.augmentation,
            device=device,
            on_shard=lambda done, total: progress.set(done, total=total),
        )
    print_table(
        "Encoded",
        {
            "shards": f"{summary.shards:,} ({summary.done_before:,} done before)",
            "latents": f"{summary.rows:,}, {summary.bytes / 2**20:,.1f} MiB",
            "folder": summary.folder,
        },
    )
    out.print("Next: handdata train --config FILE, with `latents = true` below `[data]` in the file")


@training_app.command(epilog="Example: handdata export --run default --out foundhand-mine.pt")
def export(
    workspace: Workspace = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="A training run of the workspace.")] = "default",
    checkpoint: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="A checkpoint.", show_default="the run's latest")
    ] = None,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .pt, .pth or .safetensors file.")] = Path(
        "foundhand.pt"
    ),
) -> None:
    """Write a run's averaged weights as a file that the public FoundHand code, and --init, read."""
    from handdata.pipeline.storage import Storage
    from handdata.trainer.checkpoints import load_for_sampling
    from handdata.trainer.weights import write_foundhand

    storage = Storage(load_settings(workspace=workspace).workspace)
    model, _ = load_for_sampling(checkpoint or storage.describe(f"runs/{run}"))
    write_foundhand(model, out_file)
    out.print(f"Written: {out_file.absolute()}")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _training_device(gpus: int | None) -> str | None:
    """Return the device for a number of GPUs; without a number the trainer chooses."""
    import torch

    if gpus is None:
        return None
    if gpus and not torch.cuda.is_available():
        raise UsageError("--gpus 1 was asked for, this machine has no CUDA GPU", "use --gpus 0")
    return "cuda" if gpus else "cpu"


@training_app.command(epilog="Example: handdata evaluate --run default --split test --out results")
def evaluate(
    workspace: Workspace = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="A training run of the workspace.")] = "default",
    checkpoint: Annotated[
        str | None, typer.Option(metavar="PATH_OR_URL", help="A checkpoint.", show_default="the run's latest")
    ] = None,
    dataset: OtherDataset = None,
    split: Annotated[SplitName, typer.Option(help="Whose pairs are drawn.")] = SplitName.val,
    count: Annotated[int, typer.Option("--pairs", min=2, metavar="N", help="Pairs at most.")] = 200,
    min_motion: Annotated[
        float, typer.Option(min=0, metavar="HAND_LENGTHS", help="Mean motion of a pair's joints, at least.")
    ] = 0.3,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Denoising.", show_default="the preset's")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, metavar="SCALE", show_default="the preset's")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same pairs and pictures.")] = 0,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write figures as JSON and PNG there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score generated hands beside the truth, a copied reference and the mean picture, on pairs that move.

    PSNR and SSIM inside the target's hand box; PCK: joints that MediaPipe finds near the target's in the drawn hand.
    """
    from handdata.jobs.evaluate import EvaluationRequest
    from handdata.jobs.evaluate import evaluate as run_evaluate
    from handdata.pictures.charts import chart_picture, loss_chart, read_losses
    from handdata.pictures.png import encode_png
    from handdata.pipeline.report.page import read_metrics
    from handdata.pipeline.storage import Storage

    settings = load_settings(workspace=workspace)
    storage = Storage(settings.workspace)
    request = EvaluationRequest(
        checkpoint=checkpoint or storage.describe(f"runs/{run}"),
        dataset=dataset,
        split=split.value,
        count=count,
        least_motion=min_motion,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
    )
    with ProgressLine("Evaluating", None, "pairs") as progress:
        found = run_evaluate(request, storage, settings.weights, lambda done, total: progress.set(done, total=total))
    document = found.document()
    if out_dir is not None:
        folder = Storage(out_dir.absolute())
        folder.write_bytes("evaluation.json", json.dumps(document, indent=2).encode())
        folder.write_bytes("evaluation.png", encode_png(found.figure))
        if checkpoint is None:
            losses = loss_chart(read_losses(read_metrics(storage, run)))
            folder.write_bytes("losses.png", encode_png(chart_picture(losses, _CHART_PX)))
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    ways = {**found.scores, "truth": found.truth, **{f"above {way}": of_way for way, of_way in found.above.items()}}
    names = list(next(iter(found.scores.values())))
    rows = [(way, *(_spread(of_way[name]) if name in of_way else "" for name in names)) for way, of_way in ways.items()]
    title = f"{found.pairs} pairs of {found.sequences} videos that move {found.motion:.2f} hand lengths; 95% intervals"
    print_table(title, rows, header=("", *names))
    if out_dir is not None:
        out.print(f"Look at {out_dir.absolute() / 'evaluation.png'}")


def _spread(score: "Interval") -> str:
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})"
