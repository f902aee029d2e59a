"""Curves over epochs as SVG text: no library, no font and no network needed.

Two polylines are no reason to bring matplotlib, and all that it needs, with `train`.
"""

from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 34
_TICKS = 5


@dataclass(frozen=True)
class Chart:
    """One curve.

    Attributes:
        title: What is drawn.
        values: One an epoch.
        first_epoch: Epoch of the first value, from 1.
        levels: Values to draw as flat lines, by name.
        marked: Epoch to mark, from 1; 0 for none.
    """

    title: str
    values: tuple[float, ...]
    first_epoch: int = 1
    levels: tuple[tuple[str, float], ...] = ()
    marked: int = 0


def draw(chart: Chart) -> str:
    """The chart as an <svg> element; a text in its place where there are no values."""
    if not chart.values:
        return f"<p>{escape(chart.title)}: no epoch was run.</p>"
    low, high = _range([*chart.values, *(value for _, value in chart.levels)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img">',
        f"<title>{escape(chart.title)}</title>",
        _text(_LEFT, 16, chart.title, "start"),
    ]
    for step in range(_TICKS):
        value = low + (high - low) * step / (_TICKS - 1)
        height = _y(value, low, high)
        parts.append(_line(height, "grid"))
        parts.append(_text(_LEFT - 6, height + 4, f"{value:.4g}", "end"))
    for name, value in chart.levels:
        height = _y(value, low, high)
        parts.append(_line(height, "level"))
        parts.append(_text(_WIDTH - _RIGHT, height - 4, name, "end"))
    points = [
        (_x(index, len(chart.values)), _y(value, low, high))
        for index, value in enumerate(chart.values)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    for index, (x, y) in enumerate(points):
        epoch = chart.first_epoch + index
        size = 5 if epoch == chart.marked else 2.5
        tip = f"<title>epoch {epoch}: {chart.values[index]:.4g}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}">{tip}</circle>')
        if index % max(1, len(points) // 10) == 0:
            parts.append(_text(x, _HEIGHT - _BOTTOM + 16, str(epoch), "middle"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, "epoch", "end"))
    return "\n".join([*parts, "</svg>"])


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    space = 0.05 * (high - low) or 0.5
    return low - space, high + space


def _x(index: int, count: int) -> float:
    width = _WIDTH - _LEFT - _RIGHT
    return _LEFT + (width * index / (count - 1) if count > 1 else width / 2)


def _y(value: float, low: float, high: float) -> float:
    height = _HEIGHT - _TOP - _BOTTOM
    return _TOP + height * (1 - (value - low) / (high - low))


def _line(height: float, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
        f'y1="{height:.1f}" y2="{height:.1f}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
