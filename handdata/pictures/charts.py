"""Histograms and loss curves as inline SVG for pages, and as pixels for sheets.

A chart is a list of lines, bars and words in its own units. Two small functions turn it into SVG, whose colours are CSS
classes that follow the page's light or dark theme, or into an RGB array.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from handdata.schemas.arrays import ByteArray

Kind = Literal["first", "second", "faint", "grid", "limit"]
"""Role of a mark; on a page, the CSS class that colours it."""

_PICTURE_COLOURS: Final[dict[Kind, str]] = {
    "first": "#1769c2",
    "second": "#c2410c",
    "faint": "#b9c3d0",
    "grid": "#e3e7ec",
    "limit": "#6b7280",
}
_MOST_POINTS: Final = 300
"""A curve of more points is averaged in groups of neighbours: no screen shows more, and pages stay small."""
_BINS: Final = 24


@dataclass(frozen=True, slots=True)
class _Line:
    points: Sequence[tuple[float, float]]
    kind: Kind
    width: float = 2
    dash: str = ""


@dataclass(frozen=True, slots=True)
class _Bar:
    left: float
    top: float
    width: float
    height: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class _Words:
    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of ``width`` x ``height`` units, about the pixels of a small screen.

    Args:
        title: Description of what it shows, also for those who cannot see it.
        width: Units.
        height: Units.
        marks: Lines, bars and words in the order of drawing.

    """

    title: str
    width: int
    height: int
    marks: list[_Line | _Bar | _Words] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values from ``low``..``high`` to units from ``start`` to ``end``, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def position(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return about five round values inside the range."""
        if self.logarithmic and self.high / self.low > 8:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if self.high / self.low > 300 else (1, 2, 5)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
            values = [step * count for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in values if self.low * 0.9999 <= value <= self.high * 1.0001]


def histogram(
    title: str,
    series: Mapping[str, NDArray[np.floating]],
    *,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
    flagged: tuple[Literal["below", "above"], float] | None = None,
) -> Chart:
    """Return a histogram; the bars of a second series stand on those of the first.

    Args:
        title: Quantity and its unit.
        series: One or two series by name; values that are not finite do not count.
        limits: Lowest and highest value of the axis, by default those of the data; values beyond count in the outermost
            bars.
        logarithmic: Whether the axis is logarithmic; values below its start count in its first bar.
        flagged: Side of a flag's threshold that is flagged, and the threshold.

    """
    chart = Chart(title, 360, 200)
    values = {name: array[np.isfinite(array)] for name, array in series.items()}
    everything = np.concatenate(list(values.values()))
    low, high = limits or _data_limits(everything, logarithmic)
    across = _Axis(low, high, 40, chart.width - 14, logarithmic)
    edges = np.geomspace(low, high, _BINS + 1) if logarithmic else np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(np.clip(array, low, high), edges)[0] for array in values.values()]
    highest = max(1, int(sum(counts, start=np.zeros(_BINS, dtype=int)).max()))
    up = _Axis(0, highest, chart.height - 28, 30)
    for count in (0, highest):
        chart.marks.append(_Line([(40, up.position(count)), (chart.width - 14, up.position(count))], "grid", 1))
        chart.marks.append(_Words(34, up.position(count) + 4, _number(count), "end"))
    base = np.zeros(_BINS)
    kinds: tuple[Kind, Kind] = ("first", "second")
    for kind, of_series in zip(kinds, counts, strict=False):
        for position, count in enumerate(of_series.tolist()):
            if count:
                left, right = across.position(edges[position]), across.position(edges[position + 1])
                top, bottom = up.position(base[position] + count), up.position(base[position])
                chart.marks.append(_Bar(left + 0.5, top, right - left - 1, bottom - top, kind))
        base += of_series
    for value in across.ticks():
        chart.marks.append(_Words(across.position(value), chart.height - 11, _number(value), "middle"))
    if flagged is not None and low < flagged[1] < high:
        at = across.position(flagged[1])
        chart.marks.append(_Line([(at, 22), (at, up.start)], "limit", 1.5, "4 3"))
        anchor: Literal["start", "end"] = "start" if at < chart.width / 2 else "end"
        text = f"flagged {flagged[0]} {_number(flagged[1])}"
        chart.marks.append(_Words(at + (4 if anchor == "start" else -4), 44, text, anchor))
    if len(values) > 1:
        _add_legend(chart, [(name, kind, "") for name, kind in zip(values, kinds, strict=False)])
    return chart


@dataclass(frozen=True, slots=True)
class LossCurves:
    """The losses of a training run by step. Lists are empty where the run did not measure them."""

    train: list[tuple[float, float]]
    true: list[tuple[float, float]]
    """Validation loss with the true target keypoints."""
    permuted: list[tuple[float, float]]
    """Validation loss with the target keypoints permuted within the batch."""

    @property
    def condition_gain(self) -> float | None:
        """Share by which the last loss with true keypoints lies below that with permuted ones; None if unmeasured."""
        permuted = dict(self.permuted)
        both = [(loss, permuted[step]) for step, loss in self.true if step in permuted]
        return 1 - both[-1][0] / both[-1][1] if both and both[-1][1] > 0 else None

    @property
    def last_step(self) -> int:
        """The last step that has any loss, 0 where none has."""
        return int(max((step for curve in (self.train, self.true, self.permuted) for step, _ in curve), default=0))


def read_losses(metrics: Iterable[Mapping[str, object]]) -> LossCurves:
    """Return the curves in the rows of a trainer's ``metrics.jsonl``.

    A row has ``step`` and any of ``loss``, ``validation_loss`` and ``permuted_loss``. Other keys, and numbers that are
    not finite, are ignored.
    """
    curves: dict[str, list[tuple[float, float]]] = {"loss": [], "validation_loss": [], "permuted_loss": []}
    for row in metrics:
        step = row.get("step")
        for key, curve in curves.items():
            value = row.get(key)
            if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
                curve.append((float(step), float(value)))
    return LossCurves(*(sorted(curve) for curve in curves.values()))


def loss_chart(curves: LossCurves) -> Chart:
    """Return the chart of the training loss, raw and smoothed, and the validation losses (true, permuted keypoints)."""
    chart = Chart("Loss by training step", 520, 300)
    train = _averaged(curves.train)
    points = [*train, *curves.true, *curves.permuted]
    losses = np.array([loss for _, loss in points] or [1.0])
    steps = np.array([step for step, _ in points] or [0.0])
    logarithmic = bool(losses.min() > 0)
    margin = losses.max() - losses.min() or abs(losses.max()) or 1
    low, high = losses.min() - 0.06 * margin, losses.max() + 0.06 * margin
    if logarithmic:
        low, high = losses.min() * 0.94, losses.max() * 1.06
    up = _Axis(float(low), float(high), chart.height - 44, 36, logarithmic)
    last = float(steps.max())
    across = _Axis(min(0.0, float(steps.min())), last if last > 0 else 1.0, 62, chart.width - 16)
    for value in up.ticks():
        chart.marks.append(_Line([(62, up.position(value)), (chart.width - 16, up.position(value))], "grid", 1))
        chart.marks.append(_Words(56, up.position(value) + 4, _number(value), "end"))
    for value in across.ticks():
        chart.marks.append(_Words(across.position(value), chart.height - 24, _number(value), "middle"))
    chart.marks.append(_Words((62 + chart.width - 16) / 2, chart.height - 5, "training step", "middle"))

    def line(curve: Sequence[tuple[float, float]], kind: Kind, width: float, dash: str = "") -> None:
        placed = [(across.position(step), up.position(loss)) for step, loss in curve]
        if len(placed) == 1:  # a line of one point is invisible
            placed = [(placed[0][0] - 3, placed[0][1]), (placed[0][0] + 3, placed[0][1])]
        if placed:
            chart.marks.append(_Line(placed, kind, width, dash))

    line(train, "faint", 1)
    line(_smoothed(train), "limit", 2)
    line(curves.permuted, "second", 2.5, "7 4")
    line(curves.true, "first", 2.5)
    legend: list[tuple[str, Kind, str]] = []
    if train:
        legend.append(("training", "limit", ""))
    if curves.true:
        legend.append(("true keypoints", "first", ""))
    if curves.permuted:
        legend.append(("permuted keypoints", "second", "7 4"))
    _add_legend(chart, legend)
    return chart


def chart_svg(chart: Chart) -> str:
    """Return a chart as an ``<svg>`` element that scales with its container and is described to screen readers."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escape(chart.title)}">'
    ]
    for mark in chart.marks:
        if isinstance(mark, _Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
            dash = f' stroke-dasharray="{mark.dash}"' if mark.dash else ""
            parts.append(f'<polyline class="line {mark.kind}" stroke-width="{mark.width}"{dash} points="{points}"/>')
        elif isinstance(mark, _Bar):
            parts.append(
                f'<rect class="bar {mark.kind}" x="{mark.left:.1f}" y="{mark.top:.1f}" '
                f'width="{mark.width:.1f}" height="{mark.height:.1f}"/>'
            )
        else:
            parts.append(
                f'<text x="{mark.x:.1f}" y="{mark.y:.1f}" text-anchor="{mark.anchor}">{escape(mark.text)}</text>'
            )
    return "".join([*parts, "</svg>"])


def chart_picture(chart: Chart, width: int) -> ByteArray:
    """Return a chart on white as a (height, width, 3) RGB array; dashed lines are drawn through."""
    zoom = 2 * width / chart.width  # drawn at twice the size and shrunk, since Pillow's lines have hard edges
    picture = Image.new("RGB", (round(chart.width * zoom), round(chart.height * zoom)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(12 * zoom)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for mark in chart.marks:
        if isinstance(mark, _Line):
            points = [(x * zoom, y * zoom) for x, y in mark.points]
            draw.line(points, _PICTURE_COLOURS[mark.kind], max(1, round(mark.width * zoom)), joint="curve")
        elif isinstance(mark, _Bar):
            box = (mark.left, mark.top, mark.left + mark.width, mark.top + mark.height)
            draw.rectangle([zoom * edge for edge in box], fill=_PICTURE_COLOURS[mark.kind])
        else:
            draw.text((mark.x * zoom, mark.y * zoom), mark.text, "#22262e", font, anchors[mark.anchor])
    return np.array(picture.resize((width, round(width * chart.height / chart.width)), Image.Resampling.LANCZOS))


def _add_legend(chart: Chart, entries: Sequence[tuple[str, Kind, str]]) -> None:
    left = 40.0 if chart.width < 400 else 62.0
    for text, kind, dash in entries:
        chart.marks.append(_Line([(left, 13), (left + 22, 13)], kind, 3, dash))
        chart.marks.append(_Words(left + 28, 17, text))
        left += 28 + 7.2 * len(text) + 18


def _data_limits(values: NDArray[np.floating], logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        values = values[values > 0]
    if not len(values):
        return 1.0, 10.0
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        return low / 1.1, high * 1.1
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _averaged(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the curve, averaged in groups of neighbours where it has more points than a screen shows."""
    if len(curve) <= _MOST_POINTS:
        return list(curve)
    groups = np.array_split(np.array(curve), _MOST_POINTS)
    return [(float(step), float(loss)) for step, loss in (group.mean(axis=0) for group in groups)]


def _smoothed(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the curve, each loss averaged over as many neighbours on either side, up to a twentieth of all."""
    losses = np.array([loss for _, loss in curve])
    smoothed = []
    for position, (step, _) in enumerate(curve):
        reach = min(len(curve) // 20, position)  # at the steep start a one-sided mean would lag
        smoothed.append((step, float(losses[position - reach : position + reach + 1].mean())))
    return smoothed


def _number(value: float) -> str:
    """Return a tick's label, without meaningless digits: 20k, 0.25."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
