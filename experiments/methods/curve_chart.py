"""A small SVG of curves over sizes that double: a line a method, a dot and a whisker a size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from bert_ft.evals.plots import tick_labels, ticks

WIDTH, HEIGHT, TOP, LEFT, RIGHT = 640, 340, 34, 48, 24
LEGEND = 20  # a line of it
# Told apart by those who see no red or green as well (Okabe & Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080")

# An image in a page follows the reader's light or dark scheme, not the page's.
STYLE = """text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}
.grid{stroke:#d0d7de}.line{fill:none;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}}"""


def curve_chart(title: str, curves: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """{method: {size: measurements}} -> the SVG; lines join means, whiskers are one sample standard
    deviation either way. At most as many methods as there are colours."""
    sizes = sorted({size for curve in curves.values() for size in curve})
    ends = [edge for curve in curves.values() for v in curve.values() for edge in _edges(v)]
    at = ticks(min(ends), max(ends))
    bottom = HEIGHT - 40
    span = max(math.log2(sizes[-1] / sizes[0]), 1.0)

    def x(size: int) -> float:
        return LEFT + 12 + math.log2(size / sizes[0]) / span * (WIDTH - RIGHT - LEFT - 24)

    def y(value: float) -> float:
        return bottom - (value - at[0]) / (at[-1] - at[0]) * (bottom - TOP)

    parts = [f'<text class="title" x="8" y="18">{escape(title)}</text>']
    for tick, label in zip(at, tick_labels(at), strict=True):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    for size in sizes:
        parts.append(
            f'<text x="{x(size):.1f}" y="{bottom + 20}" text-anchor="middle">{size}</text>'
        )
    for k, (name, curve) in enumerate(curves.items()):
        colour, row = COLOURS[k], HEIGHT + LEGEND * k
        points = [(x(size) + 3 * k, *map(y, _edges(v)), v) for size, v in sorted(curve.items())]
        line = "L".join(f"{a:.1f} {(low + high) / 2:.1f}" for a, low, high, _ in points)
        parts.append(f'<path class="line" stroke="{colour}" d="M{line}"/>')
        for a, low, high, values in points:
            parts.append(f'<path stroke="{colour}" d="M{a:.1f} {low:.1f}V{high:.1f}"/>')
            said = ", ".join(f"{v:.4g}" for v in values)
            parts.append(f'<circle fill="{colour}" cx="{a:.1f}" cy="{(low + high) / 2:.1f}" r="4">')
            parts[-1] += f"<title>{escape(name)}: {said}</title></circle>"
        parts.append(f'<path class="line" stroke="{colour}" d="M{LEFT} {row}h24"/>')
        parts.append(f'<text x="{LEFT + 32}" y="{row + 4}">{escape(name)}</text>')
    height = HEIGHT + LEGEND * len(curves)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _edges(values: Sequence[float]) -> tuple[float, float]:
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return mean - std, mean + std
