"""Tables of an evaluation: what a terminal, a Markdown file and an HTML page show of it, beside published results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np

from handdata._version import __version__
from handdata.jobs.evaluate import Case, Evaluation
from handdata.jobs.figures import OURS
from handdata.jobs.measures import LOWER_IS_BETTER
from handdata.pictures.png import encode_png
from handdata.pipeline.report.page import PAGE, STYLE, data_uri, html_section, html_table
from handdata.trainer.evaluation import Interval, Scores
from handdata.trainer.presets import PairTask

TRUTH_ROW: Final = "truth"
"""Row of what the detector finds in the true targets."""


@dataclass(frozen=True, slots=True)
class PublishedScores:
    """Scores as others have published them, on their own pairs.

    Args:
        method: Name of the method.
        figures: Scores by measure.
        beside: Methods that the same source compares, whose figures stand there.
        source: Where the figures stand.

    """

    method: str
    figures: Mapping[str, float]
    beside: tuple[str, ...]
    source: str


_PAPER: Final = "Chen et al., FoundHand, CVPR 2025, arXiv 2412.02690"

PUBLISHED: Final[Mapping[PairTask, PublishedScores]] = {
    "pose": PublishedScores(
        "FoundHand, gesture transfer",
        {"PSNR": 30.96, "SSIM": 0.82, "LPIPS": 0.20, "fourth column of its table": 2.58},
        ("GestureGAN", "Uni-ControlNet", "AnyControl", "CosHand"),
        _PAPER,
    ),
    "view": PublishedScores(
        "FoundHand, novel views",
        {"PSNR": 27.72, "SSIM": 0.88, "LPIPS": 0.10},
        ("ZeroNVS", "ImageDream"),
        _PAPER,
    ),
    "video": PublishedScores(
        "FoundHand, video",
        {"PSNR": 24.08, "SSIM": 0.83, "LPIPS": 0.17},
        ("ControlNeXt", "AnimateAnyone"),
        _PAPER,
    ),
}
"""Results that were measured elsewhere, by what lies between reference and target."""


def title_of(found: Evaluation) -> str:
    """Return the title of an evaluation's table."""
    return f"{found.pairs:,} pairs of {found.sequences:,} videos that move {found.motion:.2f} hand lengths"


def facts(found: Evaluation) -> dict[str, str]:
    """Return what a table's figures depend on, by name, for the lines below it."""
    pairs = found.pair_list
    of_ways = {}
    for way, method in found.methods.items():
        sampling = method.sampling or {}
        parts = [method.origin, f"SHA-256 {method.sha256[:12]}" if method.sha256 else "images of another program"]
        parts += [
            f"{name} {sampling[name]}"
            for name in ("scheduler", "steps", "guidance_scale", "pose_guidance", "appearance_guidance", "seed")
            if sampling.get(name) is not None
        ]
        if sampling:
            parts.append(f"drawn at {sampling['image_size']} px")
        of_ways[way] = ", ".join(parts)
    return {
        "pairs": f"task {pairs['task']}, split {pairs['split']}, seed {pairs['seed']}, SHA-256 {pairs['sha256'][:12]}",
        "pair rule": pairs["rule"],
        "size": f"{pairs['size']} x {pairs['size']} pixels",
        "region": found.region,
        "detector": found.detector,
        **of_ways,
    }


def by_measure(scores: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table of scores with a row a measure and a column a way, and its rows."""
    measures = list(dict.fromkeys(name for of_way in scores.values() for name in of_way))
    rows = [
        [_titled(name), *(spread(of_way[name]) if name in of_way else "" for of_way in scores.values())]
        for name in measures
    ]
    return ["", *scores], rows


def means_of(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return the table that a terminal has room for: the mean of each way and measure, without intervals."""
    scores = {**found.scores, TRUTH_ROW: found.truth}
    measures = list(dict.fromkeys(name for of_way in scores.values() for name in of_way))
    rows = [[way, *(_number(of[name].mean) if name in of else "" for name in measures)] for way, of in scores.items()]
    return ["", *map(_titled, measures)], rows


def ours_and_above(found: Evaluation) -> dict[str, Scores]:
    """Return the scores of the generated images, and how far they are above each other way, pair by pair."""
    return {OURS: found.scores[OURS], **{f"above {way}": scores for way, scores in found.above.items()}}


def _titled(measure: str) -> str:
    """Return a measure's name with the direction that is better."""
    return f"{measure} {'↓' if measure in LOWER_IS_BETTER else '↑'}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def spread(score: Interval) -> str:
    """Return a mean and its interval as text; of a measure of the whole set, which has none, the mean alone."""
    if np.isnan(score.low):
        return _number(score.mean)
    return f"{_number(score.mean)} ({_number(score.low)} to {_number(score.high)})"


def published_lines(task: PairTask) -> list[str]:
    """Return what was measured elsewhere for a task: never on these pairs, and so no row among the others."""
    found = PUBLISHED[task]
    figures = ", ".join(f"{name} {value:g}" for name, value in found.figures.items())
    return [
        f"Measured elsewhere: {found.method}: {figures} ({found.source}).",
        f"Its table compares {', '.join(found.beside)}. Its pairs are not published: such figures cannot be compared "
        "with those above.",
    ]


def markdown(found: Evaluation) -> str:
    """Return an evaluation as a Markdown document: scores, differences, what they depend on, published results."""
    lines = [f"# {title_of(found)}; means with 95% intervals over videos", ""]
    lines += [f"- {name}: {text}" for name, text in facts(found).items()]
    lines += [f"- {line}" for line in found.missing]
    lines += ["", *_markdown_table(*by_measure({**found.scores, TRUTH_ROW: found.truth})), ""]
    lines += ["## Generated above each other way, pair by pair", "", *_markdown_table(*by_measure(found.above)), ""]
    lines += ["## Measured elsewhere", "", *published_lines(found.pair_list["task"]), ""]
    return "\n".join(lines)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line(["---"] + ["---:"] * (len(header) - 1)), *map(line, rows)]


def page(found: Evaluation) -> str:
    """Return an evaluation as an HTML page, its pictures inside: scores, and the best, median and worst cases."""
    header, rows = by_measure({**found.scores, TRUTH_ROW: found.truth})
    sections = [
        html_section("scores", "Scores", html_table("Means with 95% intervals over videos", header, rows)),
        html_section(
            "above",
            "Generated above each other way, pair by pair",
            html_table("Mean differences with 95% intervals", *by_measure(found.above)),
        ),
        html_section(
            "facts",
            "What the figures depend on",
            html_table("", ["", ""], list(facts(found).items())) + _paragraphs(found.missing),
        ),
        *(
            html_section(name, f"{name.capitalize()} cases by {found.ranked_by}", "\n".join(map(_case, cases)))
            for name, cases in found.cases.items()
        ),
        html_section(
            "elsewhere",
            "Measured elsewhere",
            _paragraphs(published_lines(found.pair_list["task"])),
        ),
    ]
    return PAGE.substitute(
        title="handdata evaluate",
        headline=escape(title_of(found)),
        style=STYLE,
        sections="\n".join(sections),
        footer=escape(f"handdata {__version__}"),
    )


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _case(case: Case) -> str:
    height, width = case.picture.shape[:2]
    marks = ", ".join(f"{name} {mark:.3f}" for name, mark in case.marks.items() if not np.isnan(mark))
    return (
        f'<figure><img src="{data_uri("png", encode_png(case.picture))}" width="{width}" height="{height}" '
        f'alt="Pair {escape(case.id)}: reference, pose, and images of the target"><figcaption><b>{escape(case.id)}</b> '
        f"{escape(marks)}</figcaption></figure>"
    )
