"""Commands that say where data is from and what became of it: ``card``, ``show``, ``rejected``."""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from handdata.commands.options import DatasetName, Workspace, run_option
from handdata.console import ProgressLine, print_table
from handdata.pipeline.settings import load_settings
from handdata.schemas import UsageError

provenance_app = typer.Typer()


@provenance_app.command(epilog="Example: handdata card --run default --evaluation results/evaluation.json")
def card(
    workspace: Workspace = None,
    dataset: DatasetName = "dataset",
    run: Annotated[
        str | None, run_option("Training run whose model card is written instead of the dataset's card.")
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scores of the run: the evaluation.json of `handdata evaluate --out`."),
    ] = None,
) -> None:
    """Write the card of a dataset, or of a trained network: sources, licences, how labels were made, their quality.

    The dataset's card is README.md in its folder, with LICENSE.md and croissant.json; the run's is README.md in the
    folder of the run. Hugging Face opens the dataset's folder by its card.
    """
    if evaluation is not None and run is None:
        raise UsageError("--evaluation is for the card of a training run", "name the run with --run")
    if run is not None:
        _write_model_card(workspace, run, evaluation)
    else:
        _write_dataset_card(workspace, dataset)


def _write_model_card(workspace: str | None, run: str, evaluation: Path | None) -> None:
    from handdata.jobs.model_card import model_card, read_evaluation
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.storage.layout import CARD, run_folder

    storage = Storage(load_settings(workspace=workspace).workspace)
    text = model_card(storage, run, read_evaluation(evaluation) if evaluation else None)
    name = f"{run_folder(run)}/{CARD}"
    storage.write_bytes(name, text.encode())
    print_table("Model card", {"card": storage.describe(name)})


def _write_dataset_card(workspace: str | None, dataset: str) -> None:
    from handdata.pipeline.report.card_files import write_card
    from handdata.pipeline.storage import Dataset, Storage

    stored = Dataset(Storage(load_settings(workspace=workspace).workspace), dataset)
    with ProgressLine("Reading labels", None, "shards") as progress:
        files = write_card(stored, date.today(), lambda done, total: progress.set(done, total=total))
    print_table("Dataset card", {name: stored.describe(file) for name, file in files.items()})
