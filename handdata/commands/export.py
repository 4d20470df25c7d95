"""Commands that write what other people's tools open: ``export weights``, ``export dataset``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import (
    Checkpoint,
    CheckpointPreset,
    Commercial,
    DatasetName,
    Licence,
    RunName,
    Workspace,
    commercial_licences,
    licence_names,
    url_of_run,
)
from handdata.console import ProgressLine, byte_size, out, print_table, say
from handdata.jobs.exports.documents import ExportRequest, FormatName
from handdata.pipeline.settings import load_settings
from handdata.schemas import SPLITS, Split, UsageError

if TYPE_CHECKING:
    from handdata.jobs.exports.export import ExportSummary

export_app = typer.Typer(
    invoke_without_command=True,
    help="Write a run's weights or an annotated dataset in the form that other people's tools open.",
    epilog="`handdata export --run NAME` is `handdata export weights --run NAME`, as it was before.",
)

WeightsFile = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="File of the weights: .pt, .pth or .safetensors.")
]
_WEIGHTS_FILE = Path("foundhand.pt")

_OPENED_BY = {
    "foundhand": "handdata ingest --source foundhand10m --root {out}",
    "coco": 'pycocotools.coco.COCO("{out}/annotations/hands_{split}.json")',
    "webdataset": 'webdataset.WebDataset(sorted(glob.glob("{out}/{split}/*.tar"))).decode("rgb")',
    "huggingface": 'datasets.load_dataset("{out}")',
    "fiftyone": "python {out}/load.py",
    "rerun": "rerun {out}/{split}/SOURCE/SEQUENCE/*.rrd",
}
"""What opens an export of each format."""


@export_app.callback()
def _export(
    context: typer.Context,
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", hidden=True)] = None,
    run: Annotated[str | None, typer.Option("--run", hidden=True)] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", hidden=True)] = None,
    preset: Annotated[str | None, typer.Option("--preset", hidden=True)] = None,
    out_file: Annotated[Path | None, typer.Option("--out", hidden=True)] = None,
) -> None:
    given = any(value is not None for value in (workspace, run, checkpoint, preset, out_file))
    if context.invoked_subcommand is None:
        weights(workspace, run or "default", checkpoint, preset, out_file or _WEIGHTS_FILE)
    elif given:
        command = context.invoked_subcommand
        raise UsageError(f"options come after `export {command}`", f"see `handdata export {command} --help`")


@export_app.command(epilog="Example: handdata export weights --run default --out foundhand-mine.pt")
def weights(
    workspace: Workspace = None,
    run: RunName = "default",
    checkpoint: Checkpoint = None,
    preset: CheckpointPreset = None,
    out_file: WeightsFile = _WEIGHTS_FILE,
) -> None:
    """Write a run's averaged weights as a file that the public FoundHand code, `sample` and `train --init` read."""
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.weights import named_weights
    from handdata.trainer.checkpoints import averaged_weights, first_weights, load_for_sampling, training_licences
    from handdata.trainer.weights import write_foundhand

    settings = load_settings(workspace=workspace)
    trained = named_weights(checkpoint or url_of_run(Storage(settings.workspace), run), settings.weights)
    model, trained_with = load_for_sampling(trained, preset=preset, on_note=say)
    licences = training_licences(averaged_weights(trained), first_weights(trained))
    write_foundhand(model, out_file, json.dumps(trained_with), licences)
    out.print(f"Written: {out_file.absolute()}")


@export_app.command(
    epilog="Example: handdata export dataset --format coco --where \"NOT array_contains(flags, 'blurry')\" --out coco"
)
def dataset(
    format_name: Annotated[
        FormatName, typer.Option("--format", metavar="NAME", help=f"Layout of the files: {', '.join(_OPENED_BY)}.")
    ],
    out_url: Annotated[
        str, typer.Option("--out", metavar="DIR_OR_URL", help="Folder of the export, empty or that of the same export.")
    ],
    workspace: Workspace = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="SQL condition over the sample columns; only rows that fulfil it are taken."),
    ] = None,
    licence: Licence = None,
    commercial: Commercial = False,
    split: Annotated[Split | None, typer.Option(help="The only split to take.", show_default="all")] = None,
    dataset: DatasetName = "dataset",
    push_to: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="Dataset of the Hugging Face Hub that --format huggingface is uploaded to; a new one is private.",
        ),
    ] = None,
) -> None:
    """Write annotated samples in a layout that other people's tools open, with the licences of all sources.

    Interrupted, the same command continues; after the dataset has changed, it brings the export into line.
    """
    from handdata.jobs.exports.export import export_dataset
    from handdata.pipeline.storage import Dataset, Storage

    if where is not None and not where.strip():
        raise UsageError("--where has no condition", "leave it out to take all rows")
    if push_to is not None:
        from handdata.jobs.exports.huggingface import require_repository

        require_repository(push_to)
        if format_name != "huggingface":
            raise UsageError(f"--push-to goes with --format huggingface, not with {format_name}")
    settings = load_settings(workspace=workspace)
    stored = Dataset(Storage(settings.workspace), dataset)
    licences = [] if licence is None else licence_names(licence)
    if commercial:
        licences = commercial_licences(stored, licences)
    request = ExportRequest(
        format=format_name,
        workspace=stored.storage.url(),
        dataset=dataset,
        where=where,
        licences=tuple(licences),
        split=split,
    )
    if not out_url.strip():
        raise UsageError("--out names no folder", "such as --out export")
    target = Storage(out_url)
    with ProgressLine("Exporting", None, "units") as progress:
        summary = export_dataset(
            request,
            target,
            lambda done, total, samples: progress.set(done, f"{samples:,} samples", total=total),
        )
    _show(summary, format_name, target.describe())
    if push_to is not None:
        from handdata.jobs.exports.huggingface import push

        out.print(f"Pushed: {push(target, push_to, summary.terms)}")


def _show(summary: "ExportSummary", format_name: str, place: str) -> None:
    splits = [split for split in SPLITS if any(split in of_source for of_source in summary.manifest.sources.values())]
    print_table(
        "Exported",
        {
            "samples": f"{summary.samples:,}, {byte_size(summary.bytes)}",
            "units": f"{summary.units:,} ({summary.done_before:,} done before)",
            "sources": ", ".join(sorted(summary.manifest.sources)),
            "licences": ", ".join(f"{name} {count:,}" for name, count in summary.licences.items()),
            "folder": place,
        },
    )
    say(f"what these licences oblige to is in {place}/LICENSE.md")
    out.print(f"Open it: {_OPENED_BY[format_name].format(out=place, split=splits[0])}")
