"""Commands from shards to a trained model: ``presets``, ``train``, ``encode``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import (
    AsJson,
    Commercial,
    Device,
    Licence,
    TrainingDataset,
    Workspace,
    commercial_licences,
    licence_names,
    run_option,
)
from handdata.console import ProgressLine, escape, out, print_json, print_table, say, say_connecting, say_next
from handdata.pipeline.settings import load_settings
from handdata.schemas import UsageError
from handdata.trainer.presets import PRESETS, PURPOSES, AutoencoderKind, default_preset

if TYPE_CHECKING:
    from handdata.trainer.loop import TrainSummary

training_app = typer.Typer()

PresetName = Annotated[
    str, typer.Option("--preset", metavar="NAME", help=f"Name of the training preset: {', '.join(PRESETS)}.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="TOML", help="File of settings that replace the preset's, nested as in the preset."
    ),
]


@training_app.command(epilog="Example: handdata train --preset tiny --steps 300")
def train(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help=f"Name of the training preset: {', '.join(PRESETS)}.",
            show_default="foundhand-xl on a CUDA GPU, else tiny; with --resume the run's settings",
        ),
    ] = None,
    config: Config = None,
    workspace: Workspace = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Number of GPUs; with 0 the CPU trains, with more than 1 Ray Train starts a process for each.",
            show_default="a GPU if there is one",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster address, for more than one GPU.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of optimiser steps.", show_default="the preset's"),
    ] = None,
    run: Annotated[str, run_option("Folder of the run below <workspace>/runs.")] = "default",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the run's latest checkpoint, with the run's own settings.")
    ] = False,
    fork: Annotated[
        bool,
        typer.Option(
            "--fork",
            help="Start a new run at the run's latest checkpoint, where settings may be others; it records both.",
        ),
    ] = False,
    init: Annotated[
        str | None, typer.Option(metavar="FILE", help="Published FoundHand or ImageNet DiT weights to start from.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="SQL condition over the sample columns; only rows that fulfil it are used."),
    ] = None,
    licence: Licence = None,
    commercial: Commercial = False,
    dataset: TrainingDataset = None,
) -> None:
    """Train the two-frame diffusion transformer on the annotated dataset."""
    from handdata.pipeline.storage import Dataset, Storage
    from handdata.pipeline.storage.layout import run_folder
    from handdata.pipeline.weights import named_weights
    from handdata.trainer import resuming
    from handdata.trainer.checkpoints import latest_checkpoint
    from handdata.trainer.presets import load_preset

    settings = load_settings(workspace=workspace)
    storage = Storage(settings.workspace)
    licences = None if licence is None else licence_names(licence)
    if address is not None and (gpus or 0) < 2:
        raise UsageError("--address is for several GPUs", "say how many with --gpus; one trains without Ray")
    if where is not None and not where.strip():
        raise UsageError("--where has no condition", "leave it out to use all rows")
    of_run = resuming.run_settings(storage, run) if resume or fork else None
    if resume and not fork and latest_checkpoint(storage.url(run_folder(run))) is None:
        say(f"the run {run} has no checkpoint to go on from: it begins at step 0")
    device = None if gpus is not None and gpus > 1 else _training_device(gpus)
    if init is not None:
        init = named_weights(init, settings.weights)
    base = of_run or load_preset(preset, config, lambda: _preset_of_machine(gpus, init))
    if commercial:
        licences = commercial_licences(Dataset(storage, dataset or base.data.dataset), licences or base.data.licences)
    if of_run is None:
        chosen = base.choosing_rows(where, licences or (), dataset).trained_for(steps, init)
    else:
        rows = {"data.where": where, "data.licences": licences, "data.dataset": dataset}
        typed = resuming.typed_settings(preset, config, rows | {"optimisation.steps": steps, "init": init})
        chosen = resuming.resumed_settings(run, of_run, typed)
    if fork:
        (run, chosen), resume = resuming.fork(storage, run, chosen, say), True
        say(f"the new history is the run {run}")
    elif of_run is not None:
        resuming.require_same_history(run, of_run, chosen)
    with ProgressLine(f"Training {run}", chosen.optimisation.steps, "steps") as progress:

        def show(step: int, total: int, loss: float, rate: float) -> None:
            progress.set(step, f"loss {loss:.3f}, {rate:.0f} pairs/s", total)

        if gpus is not None and gpus > 1:
            from handdata.pipeline.run.cluster import offer_token

            offer_token()
            from handdata.jobs.train import train_in_processes

            summary = train_in_processes(
                chosen,
                storage,
                run,
                processes=gpus,
                use_gpus=True,
                address=address,
                resume=resume,
                on_step=show,
                on_note=say,
                on_connect=say_connecting,
            )
        else:
            from handdata.trainer.loop import train as run_train

            summary = run_train(chosen, storage, run, resume=resume, device=device, on_step=show, on_note=say)
    _show_trained(summary, run, workspace)


def _preset_of_machine(gpus: int | None, init: str | None) -> str:
    """Return the preset that trains where none is named, and say so."""
    import torch

    on_gpu = torch.cuda.is_available() if gpus is None else gpus > 0
    name = default_preset(on_gpu)
    where = "a CUDA GPU trains" if on_gpu else "a CPU trains" if gpus == 0 else "there is no CUDA GPU"
    start = "" if not on_gpu else f", started from {init}" if init else ", started from nothing (see --init)"
    say(f"no --preset is named and {where}: {name}, {PURPOSES[name]}{start}; `handdata presets` lists all")
    return name


@training_app.command(epilog="Example: handdata presets foundhand-xl > mine.toml")
def presets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Preset to show whole, as a file of settings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the training presets; one is shown whole, as `train --config` takes it."""
    from handdata.trainer.presets import as_toml, load_preset

    if name is not None:
        preset = load_preset(name)
        if as_json:
            print_json(preset.model_dump(mode="json"))
        else:
            out.print(escape(f"# {name}: {PURPOSES[name]}\n\n{as_toml(name)}"), end="")
        return
    if as_json:
        print_json({name: preset.model_dump(mode="json") for name, preset in PRESETS.items()})
        return
    rows = [
        (
            name,
            PURPOSES.get(name, ""),
            f"{preset.image_size}",
            preset.autoencoder.kind,
            f"{preset.model.hidden_size} x {preset.model.depth}",
            f"{preset.optimisation.batch_size}",
            f"{preset.optimisation.steps:,}",
        )
        for name, preset in PRESETS.items()
    ]
    print_table("Presets", rows, header=("name", "for", "px", "latents", "width x depth", "batch", "steps"))
    out.print("Without --preset `handdata train` takes foundhand-xl on a CUDA GPU, and tiny on a CPU")
    say_next("presets foundhand-xl", "train --preset tiny")


def _show_trained(summary: "TrainSummary", run: str, workspace: str | None) -> None:
    table = {"steps": f"{summary.steps:,}", "checkpoint": summary.checkpoint_url}
    if summary.loss is not None:
        table["loss"] = f"{summary.loss:.4f}"
    if summary.validation is not None:
        following = summary.validation
        table["validation loss"] = f"{following.true_loss:.4f}"
        table["with permuted keypoints"] = f"{following.permuted_loss:.4f}"
    if summary.unreadable:
        table["pairs that could not be read"] = f"{summary.unreadable:,}"
    if summary.skipped:
        table["steps without a finite gradient"] = f"{summary.skipped:,}"
    print_table("Trained", table)
    say_next("sample gesture-transfer", run=None if run == "default" else run, workspace=workspace)


@training_app.command(epilog="Example: handdata encode --preset foundhand-xl --variants 4")
def encode(
    preset: PresetName = "foundhand-xl",
    config: Config = None,
    workspace: Workspace = None,
    dataset: TrainingDataset = None,
    autoencoder: Annotated[
        AutoencoderKind | None, typer.Option(help="Kind of autoencoder.", show_default="the preset's")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_NAME", help="Weights of the autoencoder.", show_default="the preset's"),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, metavar="PIXELS", help="Side of the encoded images.", show_default="the preset's"),
    ] = None,
    variants: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Number of latents of each image; all but the first are augmented."),
    ] = 1,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Number of GPUs; with 0 the CPU encodes.",
            show_default="a GPU if there is one",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Compute every image's latents once, and store them beside the shards for training (`data.latents = true`).

    Interrupted, the same command continues; finished, it does nothing.
    """
    from handdata.pipeline.shards import read_manifest
    from handdata.pipeline.storage import Dataset, Storage
    from handdata.trainer.autoencoders import load_autoencoder
    from handdata.trainer.data.latents import encode as run_encode
    from handdata.trainer.devices import encoding_devices
    from handdata.trainer.loop import DECODING_THREADS
    from handdata.trainer.presets import load_preset

    storage = Storage(load_settings(workspace=workspace).workspace)
    devices = encoding_devices(gpus, device)
    chosen = load_preset(preset, config).choosing_rows(dataset=dataset)
    stored = Dataset(storage, chosen.data.dataset)
    read_manifest(stored)  # a missing dataset ends here, before weights are downloaded
    settings = chosen.autoencoder.changed(autoencoder, weights)
    with ProgressLine("Encoding", None, "shards") as progress:
        summary = run_encode(
            stored,
            load_autoencoder(settings),
            settings,
            image_size or chosen.image_size,
            variants=variants,
            augmentation=chosen.augmentation,
            devices=devices,
            threads=DECODING_THREADS if devices[0].type == "cuda" else 0,
            on_shard=progress.count,
        )
    table = {
        "shards": f"{summary.shards:,} ({summary.done_before:,} done before)",
        "latents": f"{summary.rows:,}, {summary.bytes / 2**20:,.1f} MiB",
        "folder": summary.folder,
    }
    if summary.unreadable:
        table["images that could not be decoded"] = f"{len(summary.unreadable):,}; training passes over them"
        say(summary.unreadable[0])
    print_table("Encoded", table)
    out.print("Put `latents = true` below `\\[data]` in the file of settings that training takes")
    say_next(f"train --preset {preset} --config FILE", dataset=dataset, workspace=workspace)


def _training_device(gpus: int | None) -> str | None:
    """Return the device for a number of GPUs; None, which lets the trainer choose, without a number.

    Raises:
        UsageError: A GPU was asked for and there is none.

    """
    import torch

    if gpus is None:
        return None
    if gpus and not torch.cuda.is_available():
        raise UsageError("--gpus 1 was asked for, this machine has no CUDA GPU", "use --gpus 0")
    return "cuda" if gpus else "cpu"
