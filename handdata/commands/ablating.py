"""The command that compares designs of the network: ``ablate``."""

from pathlib import Path
from typing import Annotated

import typer

from handdata.commands.options import Device, TrainingDataset, Workspace, require_place
from handdata.commands.training import Config, PresetName
from handdata.console import ProgressLine, out, say
from handdata.pipeline.settings import load_settings
from handdata.schemas import Split, UsageError

ablating_app = typer.Typer()


@ablating_app.command(
    epilog="Example: handdata ablate --preset tiny --what heatmaps,mask --seeds 3 --out ablation",
)
def ablate(
    preset: PresetName = "tiny",
    config: Config = None,
    what: Annotated[
        str,
        typer.Option(metavar="A,B", help="Questions, separated by commas: heatmaps, mask, dropout, alignment."),
    ] = "heatmaps,mask,dropout",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of runs of each variant.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of steps of a run.", show_default="the preset's")
    ] = None,
    split: Annotated[Split, typer.Option(help="Split of the scored pairs.")] = "val",
    count: Annotated[int, typer.Option("--pairs", min=2, metavar="N", help="Largest number of scored pairs.")] = 200,
    dataset: TrainingDataset = None,
    workspace: Workspace = None,
    device: Device = None,
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the table and of each run's scores.")
    ] = Path("ablation"),
) -> None:
    """Answer the paper's questions of design: train networks with and without, score them, and write one table.

    The same command goes on where it was stopped. Alignment needs the weights of DINOv2.
    """
    from handdata.jobs.ablate import AblationRequest, as_markdown
    from handdata.jobs.ablate import ablate as run_ablate
    from handdata.pipeline.storage import Storage
    from handdata.trainer.presets import load_preset

    questions = [question.strip() for question in what.split(",") if question.strip()]
    if not questions:
        raise UsageError("--what names no question", "such as --what heatmaps,mask")
    settings = load_settings(workspace=workspace)
    require_place(out_dir / "ablation.md")
    chosen = load_preset(preset, config).choosing_rows(dataset=dataset).trained_for(steps, None)
    request = AblationRequest(chosen, questions, seeds, split, count, device)
    with ProgressLine("Comparing", None, "steps or pairs") as progress:
        found = run_ablate(
            request,
            Storage(settings.workspace),
            out_dir,
            settings.weights,
            lambda doing, done, total: progress.set(done, doing, total),
            say,
        )
    table = as_markdown(found, request)
    Storage(out_dir.absolute()).write_bytes("ablation.md", table.encode())
    out.print(table)
    out.print(f"Look at {out_dir.absolute() / 'ablation.md'}")
