"""Commands from a dataset to records: ``sources``, ``synth``, ``ingest``, ``inspect``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import AsJson, Strict, Workspace, shown_default
from handdata.console import ProgressLine, counted, out, print_json, print_table, say_next
from handdata.pipeline.settings import Settings, load_settings
from handdata.schemas import Split, known_names

if TYPE_CHECKING:
    from handdata.pipeline.records.stored import IngestSummary
    from handdata.pipeline.storage import Storage
    from handdata.schemas import SourceCard

sources_app = typer.Typer()

SourceName = Annotated[
    str, typer.Option("--source", "-s", metavar="NAME", help="Source name, as listed by `handdata sources`.")
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Folder of the dataset, as downloaded.",
        show_default=f"{shown_default(Settings, 'sources_root')}/NAME",
    ),
]
FollowLinks = Annotated[
    bool,
    typer.Option("--follow-links", help="Follow links below the top of the dataset's folder, wherever they lead."),
]
ManoFolder = Annotated[
    Path | None,
    typer.Option(
        "--mano",
        metavar="DIR",
        help="Folder of your MANO_RIGHT.pkl and MANO_LEFT.pkl, for labels that need them.",
    ),
]


_SOME_SOURCES = "Options of some sources"
Mirrored = Annotated[
    bool,
    typer.Option(
        "--mirrored",
        rich_help_panel=_SOME_SOURCES,
        help="folder: pictures that front cameras save mirrored; right and left are exchanged.",
    ),
]
FramesAsVideo = Annotated[
    float | None,
    typer.Option(
        "--frames-as-video",
        metavar="FPS",
        rich_help_panel=_SOME_SOURCES,
        help="folder: folders of numbered images are videos of so many frames a second.",
    ),
]


@sources_app.command(epilog="Example: handdata sources hagrid")
def sources(
    name: Annotated[str | None, typer.Argument(help="Source whose card is shown.")] = None, as_json: AsJson = False
) -> None:
    """List the datasets that handdata knows, their licences and what they label."""
    from handdata.adapters.registry import known_cards
    from handdata.schemas import UnknownSourceError

    cards = known_cards()
    if name is not None:
        if name not in cards:
            raise UnknownSourceError(f"unknown source {name!r}", known_names(name, cards))
        _print_card(cards[name], as_json)
        return
    if as_json:
        print_json({"sources": [card.model_dump() for card in cards.values()]})
        return
    rows = []
    for source, card in cards.items():
        kind = "video" if card.video else "stills"
        views = f"{card.viewpoint}, {kind}" + (", multi-view" if card.multi_view else "")
        rows.append((source, card.size, views, card.labels, card.license, card.homepage))
    print_table("Sources", rows, header=("name", "size", "views", "labels", "licence", "homepage"))


def _print_card(card: "SourceCard", as_json: bool) -> None:
    if as_json:
        print_json(card.model_dump())
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
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the rendered dataset.",
            show_default=f"{shown_default(Settings, 'sources_root')}/synthetic",
        ),
    ] = None,
    identities: Annotated[int, typer.Option(min=1, metavar="N", help="Number of people.")] = 8,
    sequences: Annotated[int, typer.Option(min=1, metavar="N", help="Number of videos.")] = 24,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Number of frames of each video.")] = 12,
    cameras: Annotated[int, typer.Option(min=1, metavar="N", help="Number of synchronised cameras.")] = 2,
    size: Annotated[int, typer.Option(min=32, max=2048, metavar="PIXELS", help="Side of the square frames.")] = 256,
    frames_per_second: Annotated[
        int, typer.Option("--fps", metavar="N", help="Frame rate of the videos; divides 30.")
    ] = 30,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed; the same seed gives the same bytes.")] = 0,
) -> None:
    """Render the built-in synthetic dataset: hands with exact keypoints, masks and cameras."""
    from handdata.adapters.synthesis.dataset import write_dataset

    target = out_dir or load_settings().sources_root / "synthetic"
    total = sequences * frames * cameras
    with ProgressLine("Rendering", total, "frames") as progress:
        write_dataset(target, identities, sequences, frames, cameras, size, seed, frames_per_second, progress.advance)
    print_table("Rendered", {"frames": f"{total:,}", "identities": identities, "where": target})
    say_next("ingest --source synthetic", root=target)


@sources_app.command(epilog="Example: handdata ingest --source hagrid --root /data/hagrid")
def ingest(
    source: SourceName,
    root: Root = None,
    workspace: Workspace = None,
    split: Annotated[Split | None, typer.Option(help="Split to ingest.", show_default="all")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Largest number of records.")] = None,
    stride: Annotated[
        int, typer.Option(min=1, metavar="K", help="Divisor of the frame numbers that are kept; 1 keeps all frames.")
    ] = 1,
    mano: ManoFolder = None,
    follow_links: FollowLinks = False,
    val_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=_SOME_SOURCES,
            help="folder: share of the people that is held out as val.",
            show_default="a tenth of ten people and more",
        ),
    ] = None,
    frames_per_second: Annotated[
        float | None,
        typer.Option(
            "--fps",
            metavar="N",
            rich_help_panel=_SOME_SOURCES,
            help="folder: most frames that are kept of a second of video.",
            show_default="all",
        ),
    ] = None,
    frames_as_video: FramesAsVideo = None,
    mirrored: Mirrored = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            "--license",
            metavar="SPDX_OR_TEXT",
            rich_help_panel=_SOME_SOURCES,
            help="folder, coco: licence of the data.",
            show_default="LicenseRef-own",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace the earlier records even where a split, or a tenth of them or of their labels, is missing.",
        ),
    ] = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Turn a downloaded dataset into normalized records; a second run replaces the source's records."""
    from handdata.adapters import AdapterOptions
    from handdata.adapters.registry import find_adapter
    from handdata.pipeline.records.ingest import ingest as run_ingest
    from handdata.pipeline.storage import Storage

    settings = load_settings(workspace=workspace, mano_dir=mano)
    adapter = find_adapter(source)
    storage = Storage(settings.workspace)
    with ProgressLine(f"Ingesting {source}", None, "partitions") as progress:
        summary = run_ingest(
            adapter,
            root or settings.sources_root / source,
            storage,
            split=split,
            limit=limit,
            stride=stride,
            options=AdapterOptions(
                settings.mano_dir, follow_links, licence, val_share, frames_per_second, frames_as_video, mirrored
            ),
            force=force,
            on_progress=lambda done, total, records: progress.set(done, f"{records:,} records", total),
        )
    _show_ingested(summary, source, storage, workspace, as_json=as_json)
    if strict and summary.rejected:
        raise typer.Exit(1)


def _show_ingested(
    summary: "IngestSummary", source: str, storage: "Storage", workspace: str | None, *, as_json: bool
) -> None:
    from handdata.pipeline.storage.layout import records_folder, rejected_folder

    where = storage.describe(records_folder(source))
    if as_json:
        document = {
            name: value for name, value in asdict(summary).items() if name not in ("files", "rejected_files", "earlier")
        }
        print_json({**document, "where": where})
        return
    has = ", ".join(f"{count:,} {name}" for name, count in summary.labels.items())
    table = {"records": counted(summary.splits), "labels": has, "rejected": counted(summary.rejected), "where": where}
    if summary.dropped:
        table["dropped before"] = f"{summary.dropped:,} (`handdata drop`)"
    if summary.rejected:
        table["reasons in"] = storage.describe(rejected_folder("ingest", source))
    if summary.warnings:
        table["warnings"] = "\n".join(summary.warnings)
    print_table(f"Ingested {source}", table)
    say_next("annotate", workspace=workspace)


@sources_app.command(epilog="Example: handdata inspect --source hagrid --root /data/hagrid --n 12 --out sheet.png")
def inspect(
    source: SourceName,
    root: Root = None,
    count: Annotated[
        int, typer.Option("--n", min=1, metavar="N", help="Number of frames, spread over the dataset.")
    ] = 12,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File of the contact sheet: .png, .jpg or .webp.")
    ] = Path("sheet.png"),
    mano: ManoFolder = None,
    follow_links: FollowLinks = False,
) -> None:
    """Draw the labels of some frames on a contact sheet, which shows whether they fit; nothing is ingested."""
    from PIL import Image

    from handdata.adapters import AdapterOptions
    from handdata.adapters.registry import find_adapter
    from handdata.pictures.files import encode_picture, require_format
    from handdata.pipeline.report.inspection import inspect_source
    from handdata.pipeline.storage import Storage

    require_format(out_file)
    settings = load_settings(mano_dir=mano)
    inspection = inspect_source(
        find_adapter(source),
        root or settings.sources_root / source,
        count,
        columns=min(count, 4),
        options=AdapterOptions(mano_dir=settings.mano_dir, follow_links=follow_links),
    )
    content, out_file = encode_picture(Image.fromarray(inspection.sheet), out_file)
    Storage(out_file.absolute().parent).write_bytes(out_file.name, content)
    if inspection.warnings:
        print_table(f"Inspected {source}", {"warnings": "\n".join(inspection.warnings)})
    out.print(f"Look at {out_file.absolute()}")
