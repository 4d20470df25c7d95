"""From a dataset to records: ``sources``, ``synth``, ``ingest``, ``inspect``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import AsJson, SplitName, Workspace, load_settings
from handdata.console import ProgressLine, counted, out, print_table

if TYPE_CHECKING:
    from handdata.schemas import SourceCard

sources_app = typer.Typer()


@sources_app.command(epilog="Example: handdata sources hagrid")
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


@sources_app.command(epilog="Example: handdata synth --out sources/synthetic --identities 8 --sequences 24 --frames 12")
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

    target = out_dir or load_settings().sources_root / "synthetic"
    total = sequences * frames * cameras
    with ProgressLine("Rendering", total, "frames") as progress:
        write_dataset(target, identities, sequences, frames, cameras, size, seed, on_progress=progress.advance)
    print_table("Rendered", {"frames": f"{total:,}", "identities": identities, "where": target})
    out.print(f"Next: handdata ingest --source synthetic --root {target}")


@sources_app.command(epilog="Example: handdata ingest --source hagrid --root /data/hagrid")
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
    from handdata.pipeline.records.ingest import ingest as run_ingest
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.storage.layout import records_folder, rejected_folder

    settings = load_settings(workspace=workspace, mano_dir=mano)
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
        document = {name: value for name, value in asdict(summary).items() if name not in ("files", "rejected_files")}
        sys.stdout.write(json.dumps({**document, "where": where}) + "\n")
    else:
        table = {"records": counted(summary.splits), "rejected": counted(summary.rejected), "where": where}
        if summary.dropped:
            table["left out"] = f"{summary.dropped:,} that were dropped (`handdata drop`)"
        if summary.rejected:
            table["reasons in"] = storage.describe(rejected_folder("ingest", source))
        print_table(f"Ingested {source}", table)
        out.print("Next: handdata annotate")
    if strict and summary.rejected:
        raise typer.Exit(1)


@sources_app.command(epilog="Example: handdata inspect --source hagrid --root /data/hagrid --n 12 --out sheet.png")
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
    from handdata.pictures.png import encode_png
    from handdata.pipeline.report.inspection import inspect_source
    from handdata.pipeline.storage import Storage

    settings = load_settings(mano_dir=mano)
    sheet = inspect_source(
        find_adapter(source),
        root or settings.sources_root / source,
        count,
        columns=min(count, 4),
        options=AdapterOptions(mano_dir=settings.mano_dir),
    )
    Storage(out_file.absolute().parent).write_bytes(out_file.name, encode_png(sheet))
    out.print(f"Look at {out_file.absolute()}")
