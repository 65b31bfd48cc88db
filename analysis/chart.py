"""Figures of the HTML report: panels of positioned marks, each with a text that gives its exact numbers.

draw.py makes figures for files with matplotlib. The page needs other figures: small panels, one per problem, that flow
into as many columns as fit the window and are readable on a phone, and marks that pointer, touch, keyboard and screen
reader can reach. templates/chart.svg.j2 writes a Panel as SVG. This module does not depend on HTML.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from .naming import number

WIDTH = 320  # of every panel, in units of its view box; one unit is about a CSS pixel on a phone
LEFT, RIGHT, TOP, BELOW = 38, 8, 22, 34
HEIGHT = 196
LABEL = 56  # letters that fit a panel's width
HEADING = 50  # letters that do where they are those of a model's name, which are wider
# Outlines of a line's marks, centred on the origin. Series differ in shape and dash, not only in colour.
SHAPES = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3.2-3.2h6.4v6.4h-6.4z",
    "M0-4.2L4 3H-4z",
    "M0-4.4L4.4 0L0 4.4L-4.4 0z",
    "M0 4.2L4-3H-4z",
    "M-1.4-4h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z",
)
DASHES = ("none", "6 3", "1.5 3", "8 3 1.5 3", "3 2", "12 3")


@dataclass(frozen=True)
class Mark:
    """A point at (x, y), or a bar whose upper left corner is (x, y)."""

    x: float
    y: float
    text: str
    width: float | None = None
    height: float | None = None
    label: str | None = None  # written beside a bar


@dataclass(frozen=True)
class Series:
    name: str
    place: int  # index of the page's colour, shape and dash
    marks: list[Mark] = field(default_factory=list)
    line: str = ""
    errors: str = ""
    band: str = ""

    @property
    def shape(self) -> str:
        # Shapes shift by one whenever the colours repeat, so that 36 series all look different.
        return SHAPES[(self.place + self.place // len(SHAPES)) % len(SHAPES)]

    @property
    def dash(self) -> str:
        return DASHES[self.place % len(DASHES)]


@dataclass(frozen=True)
class Axis:
    """An interval of values (low, high) and the interval of the view box that shows it (begin, end)."""

    low: float
    high: float
    begin: float
    end: float
    label: str = ""
    ticks: tuple[tuple[float, str], ...] = ()

    @property
    def lines(self) -> list[str]:
        """The label, with its unit on a line of its own where both do not fit."""
        return self.label.replace(" (", "\n(", len(self.label) > LABEL).split("\n")

    def at(self, value: float) -> float:
        return round(self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin), 1)


@dataclass(frozen=True)
class Panel:
    title: str
    kind: str  # bars | lines | histogram | points
    x: Axis
    y: Axis
    series: list[Series]
    summary: str  # text for screen readers
    facets: dict[str, str] = field(default_factory=dict)
    height: float = HEIGHT
    headings: tuple[tuple[float, str], ...] = ()  # (y, text) above groups of bars
    of: str = ""  # what the choices of panels show; put before the title only where scripts are off
    points: int | None = None  # index of the list of points from which the page's script makes marks


def ticks(low: float, high: float, most: int = 6, least: float = 0.0) -> tuple[tuple[float, str], ...]:
    """Round values from low to high, at most `most` of them and at least `least` apart, with their labels."""
    rough = max((high - low) / max(most - 1, 1), least)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * size for size in (1, 2, 5, 10) if scale * size >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [step * place for place in range(first, math.floor(high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step)))
    return tuple((value, number(value, digits)) for value in values)


def layer_ticks(layers: Sequence[int], most: int = 10) -> tuple[tuple[float, str], ...]:
    """Ticks at multiples of 1, 2, 5, 10, …, at most `most` of them, from the first of the layers to the last."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if (layers[-1] - layers[0]) / step < most)
    return tuple((layer, str(layer)) for layer in range(-(-layers[0] // step) * step, layers[-1] + 1, step))


def across(low: float, high: float, label: str, marks: tuple[tuple[float, str], ...], margin: float = 0.03) -> Axis:
    """The x axis of a panel, with room for marks at both ends."""
    spare = max(high - low, 1e-9) * margin
    return Axis(low - spare, high + spare, LEFT, WIDTH - RIGHT, label, marks)


def upward(low: float, high: float, label: str) -> Axis:
    """The y axis of a panel, with room for marks at both ends."""
    spare = (high - low) * 0.03
    return Axis(low - spare, high + spare, HEIGHT - BELOW, TOP, label, ticks(low, high))


def path(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{'L' if place else 'M'}{x.at(a):g} {y.at(b):g}" for place, (a, b) in enumerate(points))


def errors(x: Axis, y: Axis, points: Iterable[tuple[float, float, float | None]]) -> str:
    """A bar of one standard error on each side of every point that has one."""
    return "".join(f"M{x.at(a):g} {y.at(b - e):g}V{y.at(b + e):g}" for a, b, e in points if e)


def band(x: Axis, y: Axis, points: Sequence[tuple[float, float, float | None]]) -> str:
    """A band of one standard error on each side of a line. Empty for a single point or if any error is missing."""
    if len(points) < 2 or any(e is None for _, _, e in points):
        return ""
    upper = path(x, y, ((a, b + (e or 0.0)) for a, b, e in points))
    lower = path(x, y, ((a, b - (e or 0.0)) for a, b, e in reversed(points)))
    return f"{upper}L{lower[1:]}Z"


def dots(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    """Points as one path of round-capped strokes of length 0, about a dozen bytes per point."""
    return "".join(f"M{x.at(a):g} {y.at(b):g}h0" for a, b in points)


def line(
    name: str,
    place: int,
    x: Axis,
    y: Axis,
    points: Sequence[tuple[float, float, float | None, str]],
    as_band: bool = False,
) -> Series:
    """A line through points (x, y, standard error, text), with the errors as bars or as one band."""
    with_errors = [(a, b, error) for a, b, error, _ in points]
    return Series(
        name,
        place,
        marks=[Mark(x.at(a), y.at(b), text) for a, b, _, text in points],
        line=path(x, y, ((a, b) for a, b, _ in with_errors)),
        errors="" if as_band else errors(x, y, with_errors),
        band=band(x, y, with_errors) if as_band else "",
    )


def bars_across(
    title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float | None, str]]]], x_label: str, summary: str
) -> Panel:
    """Horizontal bars from 0 to 1, with a heading above each group and the value beside each bar.

    groups: (heading, [(series, value, text)]) from the top. Every group has the same series in the same order.
    """
    thick, gap, head, space = 11.0, 2.0, 15.0, 9.0
    x = Axis(0.0, 1.0, 4.0, WIDTH - 40.0, x_label, ((0.0, "0"), (0.25, ".25"), (0.5, ".5"), (0.75, ".75"), (1.0, "1")))
    top, headings = 4.0, []
    marks: dict[str, list[Mark]] = {}
    for heading, members in groups:
        for line in wrap(heading, HEADING, break_on_hyphens=False):
            headings.append((top + 10.0, line))
            top += head
        for name, value, text in members:
            drawn = min(max(value or 0.0, 0.0), 1.0)
            mark = Mark(x.begin, top, text, max(x.at(drawn) - x.begin, 1.0), thick, number(value))
            marks.setdefault(name, []).append(mark)
            top += thick + gap
        top += space
    y = Axis(0.0, 1.0, top, 0.0)
    series = [Series(name, place, found) for place, (name, found) in enumerate(marks.items())]
    return Panel(title, "bars", x, y, series, summary, height=top + BELOW, headings=tuple(headings))


def histogram(title: str, counts: Sequence[int], texts: Sequence[str], labels: tuple[str, str], summary: str) -> Panel:
    """Vertical bars at 0, 1, 2, …. labels: of the x and the y axis."""
    x = Axis(-0.7, len(counts) - 0.3, LEFT, WIDTH - RIGHT, labels[0], layer_ticks(range(len(counts))))
    most = max(counts)
    y = Axis(0.0, most * 1.05, HEIGHT - BELOW, TOP, labels[1], ticks(0, most, least=1.0))
    wide = 0.84 * (x.at(1) - x.at(0))
    marks = [
        Mark(x.at(place) - wide / 2, y.at(count), text, wide, y.begin - y.at(count))
        for place, (count, text) in enumerate(zip(counts, texts, strict=True))
        if count
    ]
    return Panel(title, "histogram", x, y, [Series("", 0, marks)], summary)
