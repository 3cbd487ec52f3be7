"""
Bars and curves as inline SVG, for pages that allow neither scripts nor styles of their own: everything is placed by
attributes, and what has to keep its size (lines, text) is outside of what is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..dates import day_text
from ..sizes import format_size
from ..telemetry.growth import DAY_S, History, thinned
from .html import Markup, element

#: The most points of a small curve.
SMALL_POINTS = 30
#: A quota that is more than so many times as large as what is stored would flatten the curve: it is left out.
WIDEST = 5
#: What axes end with, in the largest unit: a quarter of each is a short number.
_ENDS = (1, 2, 4, 8, 12, 20, 40, 60, 80, 100, 200, 400, 600, 800)


def bar(used: int, most: int, kind: str = "", warn_from: float = 0.9) -> Markup:
    """
    A bar.

    @param kind: its class; empty for one that warns when it is nearly full.
    @param warn_from: from which part on it warns; 0 for never.
    """
    part = min(1.0, used / most) if most else 1.0
    kind = kind or ("bad" if part >= 1 else "warning" if warn_from and part >= warn_from else "good")
    return element(
        "svg",
        element("rect", class_="track", width="100", height="6"),
        element("rect", class_=kind, width=f"{100 * part:.1f}", height="6"),
        class_="bar",
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _shape(points: History, width: int, height: int, top: float, margin: int = 0) -> tuple[Markup, Markup]:
    """The area below a curve, and its line."""
    first, last = points[0][0], points[-1][0]
    across, up = width / max(1, last - first), (height - 2 * margin) / (top or 1)
    line = " ".join(f"{(day - first) * across:.1f},{height - margin - size * up:.1f}" for day, size in points)
    return element("polygon", points=f"0,{height} {line} {width},{height}"), element("polyline", points=line)


def small_curve(points: History, limit: int | None) -> Markup:
    """
    A curve for a table, with its quota as a dashed line if that is near.

    @param points: at least two.
    """
    points = thinned(list(points), SMALL_POINTS)
    top = _top(points, limit, 2)
    shapes: list[Markup] = [element("title", in_words(points, limit)), *_shape(points, 120, 28, top, 2)]
    if limit is not None and limit <= top:
        y = f"{26 - limit * 24 / (top or 1):.1f}"
        shapes.append(element("line", class_="limit", x1="0", x2="120", y1=y, y2=y))
    return element("svg", shapes, class_="curve", viewBox="0 0 120 28", preserveAspectRatio="none", role="img")


def _top(points: History, limit: int | None, widest: int) -> int:
    most = max(size for _, size in points)
    return max(most, limit) if limit is not None and limit <= widest * most else most


def axis_end(most: int) -> int:
    """The end of an axis from 0: the lowest round number that is not below a size."""
    unit = 1
    while True:
        for number in _ENDS:
            if number * unit >= max(most, 4):
                return number * unit
        unit *= 1024


def chart(points: History, limit: int | None, limit_name: str = "Quota") -> Markup:
    """
    A large curve with its axes, and with its quota as a dashed line.

    @param points: at least two sizes by days since 1970.
    """
    end = axis_end(_top(points, limit, WIDEST))
    ticks = [format_size(end * part // 4) if part else "0" for part in (4, 3, 2, 1, 0)]
    first, last = points[0][0], points[-1][0]
    days = sorted({first, (first + last) // 2, last})
    lines = [element("line", class_="grid", x1="0", x2="100%", y1=f"{y}%", y2=f"{y}%") for y in (25, 50, 75)]
    marks: list[Markup] = []
    if limit is not None and limit <= end:
        share = 100 - limit * 100 / end
        y = f"{share:.2f}%"
        marks = [
            element("line", class_="limit", x1="0", x2="100%", y1=y, y2=y),
            # Below the line where there is no room above it.
            element(
                "text",
                f"{limit_name} {format_size(limit)}",
                x="100%",
                y=y,
                dx="-6",
                dy="15" if share < 12 else "-6",
                text_anchor="end",
            ),
        ]
    curve = element(
        "svg", *_shape(points, 640, 160, end), class_="large curve", viewBox="0 0 640 160", preserveAspectRatio="none"
    )
    return element(
        "figure",
        element("ol", [element("li", tick) for tick in ticks], class_="y", aria_hidden="true"),
        element(
            "svg", element("title", in_words(points, limit, limit_name)), lines, curve, marks, class_="plot", role="img"
        ),
        element("ol", [element("li", day_text(day * DAY_S)) for day in days], class_="x", aria_hidden="true"),
        element("figcaption", in_words(points, limit, limit_name)),
        class_="chart",
    )


def in_words(points: Sequence[tuple[int, int]], limit: int | None = None, limit_name: str = "Quota") -> str:
    """What a curve says."""
    days = points[-1][0] - points[0][0]
    text = f"From {format_size(points[0][1])} to {format_size(points[-1][1])} in {days} day{'s' if days != 1 else ''}."
    return text if limit is None else f"{text} {limit_name}: {format_size(limit)}."
