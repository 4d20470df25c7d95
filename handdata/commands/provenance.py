"""Commands that say where data is from and what became of it: ``card``, ``show``, ``rejected``."""

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import AsJson, DatasetName, Workspace, run_option
from handdata.console import ProgressLine, escape, out, print_json, print_table
from handdata.pipeline.settings import load_settings
from handdata.schemas import RejectReason, UsageError, known_names

if TYPE_CHECKING:
    from handdata.pipeline.report.rejected import Rejections
    from handdata.schemas.arrays import ByteArray

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

    The dataset's card is README.md in its folder, with LICENSE.md and croissant.json; the run's is README.md, with
    LICENSE.md, in the folder of the run. Hugging Face opens the dataset's folder by its card.
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
    from handdata.schemas.terms import LICENCES_FILE

    storage = Storage(load_settings(workspace=workspace).workspace)
    made = model_card(storage, run, read_evaluation(evaluation) if evaluation else None)
    folder = run_folder(run)
    storage.write_bytes(f"{folder}/{LICENCES_FILE}", made.licences.encode())
    storage.write_bytes(f"{folder}/{CARD}", made.card.encode())
    files = {"card": CARD, "licences": LICENCES_FILE}
    print_table("Model card", {name: storage.describe(f"{folder}/{file}") for name, file in files.items()})


def _write_dataset_card(workspace: str | None, dataset: str) -> None:
    from handdata.pipeline.report.card_files import write_card
    from handdata.pipeline.storage import Dataset, Storage

    stored = Dataset(Storage(load_settings(workspace=workspace).workspace), dataset)
    with ProgressLine("Reading labels", None, "shards") as progress:
        files = write_card(stored, date.today(), progress.count)
    print_table("Dataset card", {name: stored.describe(file) for name, file in files.items()})


@provenance_app.command(epilog="Example: handdata show rhd/train/00012/000000-0 --out record.png")
def show(
    record_id: Annotated[str, typer.Argument(help="Id of a record, as the columns record_id and sample_id have it.")],
    workspace: Workspace = None,
    dataset: DatasetName = "dataset",
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File of the picture: .png, .jpg or .webp.")
    ] = Path("record.png"),
    as_json: AsJson = False,
) -> None:
    """Show where a record's picture, keypoints, sides and mask come from, by which settings and models, and draw it."""
    from handdata.pictures.files import require_format
    from handdata.pipeline.report.origins import find_origins
    from handdata.pipeline.storage import Dataset, Storage

    require_format(out_file)
    found = find_origins(Dataset(Storage(load_settings(workspace=workspace).workspace), dataset), record_id)
    facts: dict[str, str] = {"state": found.state, **found.facts}
    if found.picture is not None:
        facts["drawn in"] = _write_picture(found.picture, out_file)
    if as_json:
        print_json({"record_id": record_id, **facts})
    else:
        print_table(record_id, facts)


@provenance_app.command(epilog="Example: handdata rejected --reason frame_missing --sheet rejected.png")
def rejected(
    workspace: Workspace = None,
    source: Annotated[
        str | None, typer.Option("--source", "-s", metavar="NAME", help="Source name.", show_default="all")
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="CODE", help="Code of a reason.", show_default="all")] = None,
    count: Annotated[
        int, typer.Option("--n", min=0, metavar="N", help="Number of records that are listed and drawn.")
    ] = 20,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Contact sheet to write: .png, .jpg or .webp.")
    ] = None,
    dataset: DatasetName = "dataset",
    as_json: AsJson = False,
) -> None:
    """List rejected records: how many for which reason, some of each with the detail, and a sheet of their pictures."""
    from handdata.pictures.files import require_format
    from handdata.pipeline.report.origins import require_sources
    from handdata.pipeline.report.rejected import read_rejections, rejected_sheet
    from handdata.pipeline.storage import Dataset, Storage

    if sheet is not None:
        require_format(sheet, option="--sheet")
    stored = Dataset(Storage(load_settings(workspace=workspace).workspace), dataset)
    if reason is not None and reason not in [*RejectReason]:
        raise UsageError(f"--reason {reason}: no reason for a rejection", known_names(reason, RejectReason))
    sources = require_sources(stored)
    if source is not None and source not in sources:
        raise UsageError(f"{stored.storage.describe()} has no records of source {source}", known_names(source, sources))
    found = read_rejections(stored, count, source=source, reason=reason)
    drawn = None
    if sheet is not None and found.chosen:
        drawn = _write_picture(rejected_sheet(stored, found.chosen), sheet)
    if as_json:
        counts = [
            {"stage": stage, "source": of, "reason": why, "records": n} for (stage, of, why), n in found.counts.items()
        ]
        print_json({"counts": counts, "records": [asdict(row) for row in found.chosen], "sheet": drawn})
        return
    _show_rejections(found, drawn)


def _show_rejections(found: "Rejections", drawn: str | None) -> None:
    if not found.counts:
        out.print("No record was rejected" if drawn is None else f"No record was rejected; {drawn}")
        return
    rows = [(stage, source, reason, f"{count:,}") for (stage, source, reason), count in found.counts.items()]
    print_table("Rejected", rows, header=("stage", "source", "reason", "records"))
    if found.chosen:
        some = [(row.record_id, row.reason, row.detail) for row in found.chosen]
        total = sum(found.counts.values())
        title = f"{len(some):,} of {total:,}" if len(some) < total else "All of them"
        print_table(title, some, header=("record", "reason", "detail"))
    if drawn is not None:
        out.print(f"Look at {escape(drawn)}")


def _write_picture(picture: "ByteArray", file: Path) -> str:
    """Write a picture in the format of its name, and return where it is."""
    from PIL import Image

    from handdata.pictures.files import encode_picture
    from handdata.pipeline.storage import Storage

    content, file = encode_picture(Image.fromarray(picture), file)
    Storage(file.absolute().parent).write_bytes(file.name, content)
    return str(file.absolute())
