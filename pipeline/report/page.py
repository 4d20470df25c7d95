"""The HTML page of ``handdata report``."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from PIL import Image

from handdata._version import __version__
from handdata.pictures.charts import LossCurves, chart_picture, chart_svg, histogram, loss_chart, read_losses
from handdata.pictures.drawing import fit, tile
from handdata.pictures.png import encode_png
from handdata.pipeline.records.stored import ingested_sources, read_ingest_summary
from handdata.pipeline.report.sheets import choose_samples, draw_sample, sample_contact_sheet, tail
from handdata.pipeline.shards import list_shards, read_index, read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.damage import parse_curves
from handdata.pipeline.storage.layout import metrics_file
from handdata.schemas import SIDES, SOURCE_CARDS, SPLITS, DatasetManifest, UsageError
from handdata.schemas.arrays import ByteArray

REPORT_PAGE = "report.html"
CONTACT_SHEET = "contact-sheet.png"

_NUMBER_COLUMNS: Final = ("hand_px", "mask_score", "mask_spill", "sharpness", "contrast")
_MOST_SHARDS: Final = 64
"""Most shards that the histograms read, chosen at random: with more they change little."""
_PAGE_SAMPLES: Final = 20
_PAGE_SAMPLE_PX: Final = 256
_LOWER_PX: Final = 575
"""Width of the loss chart and of the generated hands on the contact sheet: both side by side fill it."""


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Full paths or URLs of a report's files."""

    html: str
    png: str


def read_metrics(storage: Storage, run: str) -> list[dict[str, int | float]]:
    """Return the rows of a training run's ``metrics.jsonl``.

    Raises:
        UsageError: The workspace has no such run.
        StorageError: The file is damaged.

    """
    name = metrics_file(run)
    if not storage.exists(name):
        raise UsageError(f"{storage.describe()} has no training run {run!r}", "run `handdata train` first")
    return parse_curves(storage.read_bytes(name), storage.describe(name), name)


def write_report(
    dataset: Dataset,
    target: Path,
    *,
    metrics: Sequence[Mapping[str, object]] | None = None,
    generated: Path | ByteArray | None = None,
    title: str = "handdata report",
) -> ReportFiles:
    """Write ``report.html``, one page about a dataset, and ``contact-sheet.png``, its pictures in one.

    Args:
        dataset: The dataset.
        target: Folder for the two files; it is created.
        metrics: Rows of a training run's ``metrics.jsonl``: ``step`` with any of ``loss``, ``validation_loss`` and
            ``permuted_loss``.
        generated: Grid of generated hands, as a PNG file or as RGB pixels.
        title: Title of the page.

    Raises:
        UsageError: There is no dataset.
        StorageError: The files cannot be written.

    """
    manifest = read_manifest(dataset)
    samples = choose_samples(dataset, _PAGE_SAMPLES, seed=0)
    curves = read_losses(metrics or ())
    grid = _read_grid(generated) if generated is not None else None
    sections = [
        _numbers_section(dataset.storage, manifest),
        _samples_section(samples, manifest),
        _histograms_section(dataset, manifest),
        _loss_section(curves),
        _generated_section(grid),
    ]
    page = PAGE.substitute(
        title=escape(title),
        headline=escape(_headline(manifest, curves)),
        style=STYLE,
        sections="\n".join(section for section in sections if section),
        footer=escape(f"handdata {__version__} · {dataset.describe()} · crops of {manifest.image_size} px"),
    )
    folder = Storage(target)
    folder.write_bytes(REPORT_PAGE, page.encode())
    folder.write_bytes(CONTACT_SHEET, encode_png(_whole_sheet(samples, curves, grid)))
    return ReportFiles(html=folder.describe(REPORT_PAGE), png=folder.describe(CONTACT_SHEET))


def _read_grid(generated: Path | ByteArray) -> ByteArray:
    return np.array(Image.open(generated).convert("RGB")) if isinstance(generated, Path) else generated


def _whole_sheet(samples: Sequence[Mapping[str, Any]], curves: LossCurves, grid: ByteArray | None) -> ByteArray:
    """Return the contact sheet: the samples, below them the loss curve and the generated hands where there are any."""
    sheet = sample_contact_sheet(samples, columns=5, tile_px=224)
    below, captions = [], []
    if curves.last_step:
        below.append(chart_picture(loss_chart(curves), _LOWER_PX))
        captions.append("Loss by training step")
    if grid is not None:
        scale = min(1.0, _LOWER_PX / grid.shape[1])
        below.append(fit(grid, round(grid.shape[1] * scale), round(grid.shape[0] * scale)))
        captions.append("Generated hands")
    if not below:
        return sheet
    lower = tile(below, 2, 10, captions)
    width = max(sheet.shape[1], lower.shape[1])
    return np.concatenate(
        [
            np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=int(part[0, 0, 0]))
            for part in (sheet, lower)
        ]
    )


def _headline(manifest: DatasetManifest, curves: LossCurves) -> str:
    counts = [split for splits in manifest.sources.values() for split in splits.values()]
    samples, records = sum(split.samples for split in counts), sum(split.records for split in counts)
    parts = [
        f"{_count(samples, 'annotated sample')} from {_count(records, 'record')} "
        f"of {_count(len(manifest.sources), 'source')}"
    ]
    parts.append(f"{records - samples:,} rejected" if records > samples else "none rejected")
    if not manifest.complete:
        parts.append("annotation not finished")
    if curves.last_step:
        parts.append(f"trained for {curves.last_step:,} steps")
    gain = curves.condition_gain
    if gain is not None:
        parts.append(f"true keypoints {'lower' if gain >= 0 else 'raise'} the validation loss by {abs(gain):.0%}")
    return "; ".join(parts) + "."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Link(NamedTuple):
    """A text in a table that links to a homepage."""

    text: str
    homepage: str


def html_table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[str | int | _Link]], total: bool = False
) -> str:
    """Return an HTML table; numbers are aligned right, and the last row stands out if it is the total."""
    body = [list(row) for row in rows]
    if not body:
        return ""
    numeric = [all(str(row[column])[:1].isdigit() for row in body) for column in range(len(header))]

    def cells(row: Sequence[str | int | _Link], tag: Literal["td", "th"]) -> str:
        texts = map(_cell, row)
        classes = [' class="number"' if is_number else "" for is_number in numeric]
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(f"<{tag}{scope}{name}>{text}</{tag}>" for text, name in zip(texts, classes, strict=True))

    lines = [f"<tr>{cells(row, 'td')}</tr>" for row in body]
    if total:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="total">', 1)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{cells(header, 'th')}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(cell: str | int | _Link) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, _Link) and cell.homepage.startswith("https://"):
        return f'<a href="{escape(cell.homepage)}" rel="noreferrer">{escape(cell.text)}</a>'
    return escape(cell.text if isinstance(cell, _Link) else cell)


def html_section(name: str, heading: str, content: str) -> str:
    """Return a section of the page under its heading."""
    return f'<section id="{name}"><h2>{escape(heading)}</h2>\n{content}\n</section>'


def _numbers_section(storage: Storage, manifest: DatasetManifest) -> str:
    counts = [
        (source, split, splits[split])
        for source, splits in sorted(manifest.sources.items())
        for split in SPLITS
        if split in splits
    ]
    rows: list[list[str | int]] = [
        [source, split, of.records, of.samples, of.records - of.samples, f"{of.bytes / 2**20:,.1f} MiB"]
        for source, split, of in counts
    ]
    if len(counts) > 1:
        parts = [of for _, _, of in counts]
        records, samples = sum(of.records for of in parts), sum(of.samples for of in parts)
        size = f"{sum(of.bytes for of in parts) / 2**20:,.1f} MiB"
        rows.append(["all", "", records, samples, records - samples, size])
    total = sum(of.samples for _, _, of in counts)
    flags = sum((of.flags for _, _, of in counts), start=Counter[str]())
    tables = [
        html_table(
            "Annotated, by source and split",
            ["source", "split", "records", "samples", "rejected", "size"],
            rows,
            total=len(counts) > 1,
        ),
        html_table(
            "Rejected, by reason",
            ["stage", "source", "reason", "rows"],
            _rejections(storage, manifest),
        ),
        html_table(
            "Flags (one sample may have several)",
            ["flag", "samples", "share"],
            [[flag.replace("_", " "), count, f"{count / total:.1%}"] for flag, count in flags.most_common()],
        ),
        html_table(
            "Licences: what you train on these samples is bound by them",
            ["source", "dataset", "licence"],
            [[name, _dataset_link(name), text] for name, text in sorted(manifest.licenses.items())],
        ),
    ]
    return html_section("numbers", "Numbers", "\n".join(table for table in tables if table))


def _dataset_link(source: str) -> _Link:
    card = SOURCE_CARDS.get(source)  # sources of other packages have none here
    return _Link(card.title, card.homepage) if card else _Link("", "")


def _rejections(storage: Storage, manifest: DatasetManifest) -> Iterator[list[str | int]]:
    """Yield stage, source, reason and number of the rows that ingest and annotate rejected."""
    for source in ingested_sources(storage):
        for reason, count in sorted(read_ingest_summary(storage, source).rejected.items()):
            yield ["ingest", source, reason.replace("_", " "), count]
    for source, splits in sorted(manifest.sources.items()):
        rejected = sum((split.rejected for split in splits.values()), start=Counter[str]())
        for reason, count in rejected.most_common():
            yield ["annotate", source, reason.replace("_", " "), count]


def data_uri(kind: Literal["jpeg", "png"], data: bytes) -> str:
    """Return the bytes of an image as an address inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _samples_section(samples: Sequence[Mapping[str, Any]], manifest: DatasetManifest) -> str:
    total = sum(split.samples for splits in manifest.sources.values() for split in splits.values())
    if not samples:
        return html_section("samples", "Annotated samples", "<p>No record became a sample: see the reasons above.</p>")
    figures = []
    for sample in samples:
        states = dict(zip(SIDES, sample["hand_state"], strict=True))
        hands = ", ".join(f"{side} {state}" for side, state in states.items())
        stream = io.BytesIO()
        # 4:4:4, or the thin coloured lines would bleed.
        Image.fromarray(draw_sample(sample, _PAGE_SAMPLE_PX)).save(stream, "JPEG", quality=88, subsampling=0)
        mask = sample["mask_origin"] or "none"
        alt = f"Hand crop {sample['sample_id']} with keypoints and mask drawn; {hands}; mask: {mask}"
        if sample["flags"]:
            alt += f"; flags: {', '.join(sample['flags'])}"
        figures.append(
            f'<figure><img src="{data_uri("jpeg", stream.getvalue())}" width="{_PAGE_SAMPLE_PX}" '
            f'height="{_PAGE_SAMPLE_PX}" alt="{escape(alt)}"><figcaption title="{escape(sample["sample_id"])}">'
            f"<b>{escape(sample['source'])}</b> {escape(tail(sample['sample_id']))}<br>"
            f"mask: {escape(mask)}</figcaption></figure>"
        )
    legend = (
        '<p>Right hands are drawn <span class="first-hand">warm, marked R</span>, left hands '
        '<span class="second-hand">cool, marked L</span>; from thumb to little finger the lines darken. '
        'The mask is <span class="mask">green</span>. '
        f"Shown: {len(samples)} of {total:,}, spread over sources and sequences.</p>"
    )
    return html_section("samples", "Annotated samples", f'{legend}<div class="samples">{"".join(figures)}</div>')


def _histograms_section(dataset: Dataset, manifest: DatasetManifest) -> str:
    shards = list_shards(dataset)
    if not shards:
        return ""
    # Neighbours among the sorted shards are close in time; a random choice is spread over the dataset.
    chosen = [shards[position] for position in np.random.default_rng(0).permutation(len(shards))[:_MOST_SHARDS]]
    index = read_index(dataset.storage, chosen, _NUMBER_COLUMNS)
    hand_px = np.array(index["hand_px"].to_list(), dtype=np.float64)
    right, left = (side_px[side_px > 0] for side_px in hand_px.T)
    thresholds = _thresholds(manifest)
    charts = [
        histogram(
            "Hand size (pixels of the full image)",
            {"left hands": left, "right hands": right},  # in this order the colours are those of the drawings
            flagged=thresholds.get("min_hand_px"),
        )
    ]
    for column, title in (
        ("mask_score", "Mask score (share of keypoints inside the mask)"),
        ("mask_spill", "Mask spill (share of the mask far from the hands)"),
    ):
        values = index[column].drop_nulls().to_numpy().astype(np.float64)
        if len(values):
            threshold = thresholds.get(f"{'min' if column == 'mask_score' else 'max'}_{column}")
            charts.append(histogram(title, {column: values}, limits=(0, 1), flagged=threshold))
    for column, title, logarithmic in (
        ("sharpness", "Sharpness (variance of the Laplacian)", True),
        ("contrast", "Contrast of the hand box (grey levels)", False),
    ):
        values = index[column].drop_nulls().to_numpy().astype(np.float64)
        if len(values):
            flagged = thresholds.get(f"min_{column}")
            charts.append(histogram(title, {column: values}, logarithmic=logarithmic, flagged=flagged))
    figures = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{chart_svg(chart)}</figure>" for chart in charts
    )
    note = f"<p>From {len(index):,} samples{'' if len(chosen) == len(shards) else ' of shards drawn at random'}.</p>"
    return html_section("histograms", "Quality", f'{note}<div class="charts">{figures}</div>')


def _thresholds(manifest: DatasetManifest) -> dict[str, tuple[Literal["below", "above"], float]]:
    """Return the thresholds of flags by the name of their setting, if all runs of the dataset used the same."""
    found: dict[str, set[float]] = {}
    for annotator in manifest.annotator_hashes.values():
        settings = annotator.get("settings")
        quality = settings.get("quality") if isinstance(settings, dict) else None
        for name, value in (quality or {}).items():
            if name != "reject":
                found.setdefault(name, set()).add(float(value))
    return {
        name: ("below" if name.startswith("min_") else "above", values.pop())
        for name, values in found.items()
        if len(values) == 1
    }


def _loss_section(curves: LossCurves) -> str:
    if not curves.last_step:
        return ""
    text = "The training loss: faint as measured, strong as the mean of neighbouring steps."
    if curves.true and curves.permuted:
        text += (
            " The validation losses use the same noise and timesteps, once with the target keypoints of each image "
            "and once with those of another: a model that ignores its keypoints has the same loss with both."
        )
    gain = curves.condition_gain
    if gain is not None:
        text += (
            f" At the end the loss with true keypoints ({curves.true[-1][1]:.4g}) lies {abs(gain):.1%} "
            f"{'below' if gain >= 0 else 'above'} that with permuted ones."
        )
    figure = f'<figure class="loss">{chart_svg(loss_chart(curves))}<figcaption>{escape(text)}</figcaption></figure>'
    return html_section("loss", "Training", figure)


def _generated_section(grid: ByteArray | None) -> str:
    if grid is None:
        return ""
    height, width = grid.shape[:2]
    return html_section(
        "generated",
        "Generated hands",
        f'<figure class="generated"><img src="{data_uri("png", encode_png(grid))}" width="{width}" height="{height}" '
        'alt="Grid of hands that the trained model generated"></figure>',
    )


STYLE: Final = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#20242c;--quiet:#5b6472;--rule:#dfe2e7;
--first:#1769c2;--second:#c2410c;--faint:#b9c3d0;--limit:#59626f;--mask:#047857;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{--paper:#14161a;--card:#1c1f25;--ink:#e8eaee;--quiet:#a0a9b6;--rule:#343943;
--first:#6cb6ff;--second:#ff9d5c;--faint:#4a5361;--limit:#b4bcc8;--mask:#34d399;--link:#7cbcff}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-size:1rem}
main,footer{max-width:70rem;margin:0 auto;padding:0 1.25rem}
header{max-width:70rem;margin:0 auto;padding:2.5rem 1.25rem 0}
h1{font-size:1rem;font-weight:600;color:var(--quiet);margin:0 0 .4rem}
.headline{font-size:clamp(1.35rem,1rem + 1.6vw,2rem);line-height:1.25;font-weight:650;letter-spacing:-.01em;
margin:0;max-width:52rem;color:var(--ink);text-wrap:balance}
section{margin-top:2.75rem}
h2{font-size:1.2rem;margin:0 0 .75rem;letter-spacing:-.005em}
p{margin:0 0 1rem;max-width:48rem;color:var(--quiet)}
a{color:var(--link)}
#numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem 2.5rem;
align-items:start}
#numbers h2,#numbers .scroll:last-child{grid-column:1/-1}
#numbers h2{margin-bottom:-.5rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding-bottom:.35rem}
th{font-weight:500;color:var(--quiet)}
th,td{text-align:left;vertical-align:top;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap}
.total td{font-weight:600;border-bottom:0}
figure{margin:0}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(11.5rem,1fr));gap:1.1rem .9rem}
img{display:block;max-width:100%;height:auto;border-radius:.3rem}
.samples img{width:100%}
figcaption{font-size:.8rem;line-height:1.4;color:var(--quiet);margin-top:.35rem;overflow-wrap:anywhere}
figcaption b{color:var(--ink);font-weight:600}
.first-hand,.second-hand,.mask{font-weight:600}
.first-hand{color:var(--second)}.second-hand{color:var(--first)}.mask{color:var(--mask)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem}
.charts figure,.loss{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;padding:.9rem}
.charts figcaption{margin:0 0 .4rem;font-size:.85rem;font-weight:600;color:var(--ink)}
.loss{max-width:46rem}
.generated img{image-rendering:pixelated;width:min(100%,46rem)}
.chart{display:block;width:100%;height:auto}
.chart text{fill:var(--quiet);font-size:12px;font-family:inherit}
.line{fill:none;stroke-linejoin:round;stroke-linecap:round}
.line.first{stroke:var(--first)}.line.second{stroke:var(--second)}.line.faint{stroke:var(--faint)}
.line.limit{stroke:var(--limit)}.line.grid{stroke:var(--rule)}
.bar.first{fill:var(--first)}.bar.second{fill:var(--second)}
footer{margin-top:3rem;padding-bottom:2.5rem;font-size:.8rem;color:var(--quiet);overflow-wrap:anywhere}
@media(max-width:30rem){header{padding-top:1.5rem}table{font-size:.8rem}th,td{padding-right:.5rem}
.samples{grid-template-columns:repeat(2,1fr)}
.loss .chart text{font-size:15px}}
@media print{:root{--paper:#fff;--card:#fff}section{break-inside:avoid}}
"""

PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="headline">$headline</p>
</header>
<main>
$sections
</main>
<footer>$footer</footer>
</body>
</html>
""")
