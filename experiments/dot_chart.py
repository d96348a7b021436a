"""A small SVG of repeated measurements: a row a case, a dot a measurement, a bar in the middle."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape

from bert_ft.evals.plots import tick_labels, ticks

WIDTH, ROW, TOP, RIGHT = 640, 34, 34, 24
CHARACTER = 7.0  # width of a label's character at 12 px, generously

# An image in a page follows the reader's light or dark scheme, not the page's.
STYLE = """text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}
.grid{stroke:#d0d7de}.dot{fill:#0969da;fill-opacity:.55}.middle{stroke:#24292f;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.dot{fill:#58a6ff}
.middle{stroke:#e6edf3}}"""


def dot_chart(
    title: str,
    cases: Mapping[str, Sequence[float]],
    middle: Callable[[Sequence[float]], float] = statistics.median,
    from_zero: bool = True,
) -> str:
    """The SVG. The bar and the number beside each row's name are `middle` of its values; the axis
    begins at 0, or with `from_zero=False` near the smallest value."""
    values = [v for row in cases.values() for v in row]
    at = ticks(0.0 if from_zero else min(values), max(values))
    low, high = at[0], at[-1]
    names = {name: f"{name}: {middle(row):.4g}" for name, row in cases.items()}
    left = 16 + CHARACTER * max(map(len, names.values()))
    bottom = TOP + ROW * len(cases)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - RIGHT - left)

    parts = [f'<text class="title" x="8" y="18">{escape(title)}</text>']
    for tick, label in zip(at, tick_labels(at), strict=True):
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {TOP}V{bottom}"/>')
        parts.append(
            f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        )
    for i, (name, row) in enumerate(cases.items()):
        y, bar = TOP + ROW * (i + 0.5), x(middle(row))
        parts.append(f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">')
        parts[-1] += f"{escape(names[name])}</text>"
        parts.append(f'<path class="middle" d="M{bar:.1f} {y - 11:.1f}V{y + 11:.1f}"/>')
        parts += [
            f'<circle class="dot" cx="{x(v):.1f}" cy="{y:.1f}" r="5">'
            f"<title>{v:.5g}</title></circle>"
            for v in row
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 28}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )
