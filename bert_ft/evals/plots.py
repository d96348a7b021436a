"""Charts for report.html, as SVG text.

Drawn by hand rather than with matplotlib: colours are CSS variables of the page, so that one file
serves light and dark; it costs no import; and every chart is 360 units wide, so that on a phone as
in a desktop's three columns a unit is about a pixel and labels keep their size.
"""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from bert_ft.evals.metrics import Calibration

WIDTH = 360
NAMED_CLASSES = 20  # more names than these do not fit around a confusion matrix
CHARACTER = 6.3  # width of a label's character at 11 px, generously


@dataclasses.dataclass(frozen=True)
class Series:
    """A line; NaN leaves a gap. `style` is a CSS class: raw, line, thin or other."""

    x: np.ndarray
    y: np.ndarray
    style: str = "line"
    label: str = ""
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """The plotting area, and where data falls in it."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )


def line_chart(series: Sequence[Series], name: str, height: int = 200) -> str:
    """Lines over steps. Works from a single point on; without a finite one says "no values"."""
    finite = [s.y[np.isfinite(s.y)] for s in series]
    if not sum(map(len, finite)):
        return svg(60, name, [put_text(WIDTH / 2, 34, "no finite values", "middle")])
    y_ticks = ticks(min(f.min() for f in finite if len(f)), max(f.max() for f in finite if len(f)))
    steps = np.concatenate([s.x for s in series])
    x_ticks = [t for t in ticks(steps.min(), steps.max(), most=4) if t == int(t)]
    y_labels = tick_labels(y_ticks)
    x_range = (float(steps.min()), float(steps.max()))
    if x_range[0] == x_range[1]:
        x_ticks, x_range = [x_range[0]], (x_range[0] - 1, x_range[0] + 1)
    frame = Frame(
        x=x_range,
        y=(y_ticks[0], y_ticks[-1]),
        left=14 + CHARACTER * max(map(len, y_labels)),
        right=WIDTH - 16,
        top=10,
        bottom=height - 24,
    )
    parts = axes(frame, x_ticks, [compact(t) for t in x_ticks], y_ticks, y_labels)
    for one in series:
        parts += _line(frame, one)
    return svg(height, name, parts)


def confusion_chart(confusion_CxC: np.ndarray, names: Sequence[str]) -> str:
    """Labels down, predictions across; shade is the share of the label's examples.

    Up to 20 classes carry their names; beyond, their numbers (the order of `names`) every ten.
    """
    classes = len(names)
    named = classes <= NAMED_CLASSES
    short = [_cut(name, 13) for name in names] if named else []
    gutter = (12 + CHARACTER * max(map(len, short))) if named else 40.0
    level = named and classes <= 3
    top = 34.0 if level or not named else gutter + 18
    cell = min(84.0, (WIDTH - gutter - 6) / classes)
    side = cell * classes
    parts = [
        put_text(gutter + side / 2, 11, "predicted", "middle", "muted"),
        f'<text class="muted" text-anchor="middle" transform="translate(10 {top + side / 2:.1f}) '
        f'rotate(-90)">label</text>'
        if not named
        else "",
        f'<rect class="area" x="{gutter:.1f}" y="{top:.1f}" width="{side:.1f}" '
        f'height="{side:.1f}"/>',
    ]
    share_CxC = confusion_CxC / np.maximum(1, confusion_CxC.sum(1, keepdims=True))
    for row, column in np.argwhere(confusion_CxC > 0):
        count, share = int(confusion_CxC[row, column]), float(share_CxC[row, column])
        x, y = gutter + column * cell, top + row * cell
        hint = f"{names[row]} → {names[column]}: {count:,} ({share:.1%})"
        gap = 1.0 if cell > 8 else 0.2
        parts.append(
            f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{cell - gap:.2f}" '
            f'height="{cell - gap:.2f}" fill-opacity="{0.08 + 0.92 * share:.2f}">'
            f"<title>{escape(hint)}</title></rect>"
        )
        if len(compact(count)) * CHARACTER < cell - 2 and cell > 14:
            style = "on" if share > 0.55 else ""
            parts.append(put_text(x + cell / 2, y + cell / 2 + 4, compact(count), "middle", style))
    for i, name in enumerate(short):
        centre = gutter + (i + 0.5) * cell
        parts.append(put_text(gutter - 6, top + (i + 0.5) * cell + 4, name, "end", hint=names[i]))
        if level:
            fitting = _cut(name, max(3, int(cell / CHARACTER)))
            parts.append(put_text(centre, top - 6, fitting, "middle", hint=names[i]))
        else:
            turn = f'transform="translate({centre + 4:.1f} {top - 6:.1f}) rotate(-90)"'
            parts.append(f"<text {turn}>{escape(name)}</text>")
    for i in [] if named else range(0, classes, 10):
        parts.append(put_text(gutter - 5, top + (i + 0.5) * cell + 4, str(i), "end"))
        parts.append(put_text(gutter + (i + 0.5) * cell, top - 6, str(i), "middle"))
    return svg(math.ceil(top + side + 6), "Confusion matrix", parts)


def reliability_chart(calibration: Calibration) -> str:
    """Accuracy over confidence (Guo et al. 2017, figure 1), with the examples per bin beneath."""
    unit = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    labels = [f"{t:.1f}" for t in unit]
    frame = Frame((0, 1), (0, 1), left=36, right=WIDTH - 12, top=10, bottom=236)
    parts = axes(frame, [], [], unit, labels)
    counts = Frame((0, 1), (0, float(calibration.count.max())), 36, WIDTH - 12, 250, 300)
    parts += [
        put_text(_x, 316, label, "middle")
        for _x, label in ((frame.at(t, 0)[0], text) for t, text in zip(unit, labels, strict=True))
    ]
    for m in np.flatnonzero(calibration.count):
        low, high = calibration.edges[m], calibration.edges[m + 1]
        hit, sure = calibration.accuracy[m], calibration.confidence[m]
        n = int(calibration.count[m])
        hint = f"confidence {low:.2f} to {high:.2f}: {n:,} examples, {hit:.1%} right"
        parts.append(_box(frame, low, high, 0, hit, "cell", hint))
        parts.append(_box(frame, low, high, min(hit, sure), max(hit, sure), "gap", hint))
        parts.append(_box(counts, low, high, 0, n, "count", hint))
    (x0, y0), (x1, y1) = frame.at(0, 0), frame.at(1, 1)
    parts.append(f'<path class="ideal" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    parts.append(f'<path class="gridline" d="M36 300H{WIDTH - 12}"/>')
    parts.append(put_text(WIDTH / 2 + 12, 331, "confidence", "middle", "muted"))
    parts.append(put_text(42, 22, "accuracy", "start", "muted"))
    return svg(336, "Reliability diagram", parts)


def scatter_chart(labels: np.ndarray, predictions: np.ndarray) -> str:
    """Predictions over labels, with the diagonal; NaN is left out."""
    low = float(np.nanmin([labels, predictions]))
    high = float(np.nanmax([labels, predictions]))
    both = ticks(low, high)
    names = tick_labels(both)
    span = (both[0], both[-1])
    frame = Frame(span, span, 14 + CHARACTER * max(map(len, names)), WIDTH - 16, 10, 290)
    parts = axes(frame, both, names, both, names)
    (x0, y0), (x1, y1) = frame.at(span[0], span[0]), frame.at(span[1], span[1])
    parts.append(f'<path class="ideal" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    for label, prediction in zip(labels, predictions, strict=True):
        if math.isfinite(label) and math.isfinite(prediction):
            x, y = frame.at(label, prediction)
            parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    parts.append(put_text((frame.left + frame.right) / 2, 327, "label", "middle", "muted"))
    parts.append(put_text(frame.left + 6, 22, "prediction", "start", "muted"))
    return svg(332, "Predictions over labels", parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At least two round numbers around [low, high], spaced by 1, 2, 2.5 or 5 times 10^n."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # the same but for rounding
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The shortest decimals that tell the ticks apart; powers of ten for very small or large."""
    largest, step = max(map(abs, values)), values[1] - values[0]
    if largest < 1e-3 or largest >= 1e5:
        return next(
            labels
            for labels in ([_power_of_ten(v, digits) for v in values] for digits in range(17))
            if all(abs(float(t) - v) < step * 1e-6 for t, v in zip(labels, values, strict=True))
        )
    digits = next((d for d in range(8) if abs(round(step, d) - step) < step * 1e-6), 8)
    return [f"{v:.{digits}f}" for v in values]


def _power_of_ten(value: float, digits: int) -> str:
    mantissa, power = f"{value:.{digits}e}".split("e")
    short = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{short}e{int(power)}" if value else "0"


def compact(value: float) -> str:
    """1234 as it is, 12000 as 12k, 3.4 million as 3.4M."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e6 if unit == "M" else 1e3)
            return f"{scaled:.0f}{unit}" if scaled == int(scaled) else f"{scaled:.1f}{unit}"
    return f"{value:g}"


def thin(x: np.ndarray, y: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points: of each stretch its lowest and highest, so spikes remain."""
    if len(x) <= most:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), most // 2):
        values = np.where(np.isnan(y[part]), 0.0, y[part])
        kept += sorted({int(part[values.argmin()]), int(part[values.argmax()])})
    return x[kept], y[kept]


def smooth(y: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential average of what came before, without a pull towards 0 at the start (Adam's bias
    correction, Kingma & Ba 2015, section 3); NaN is skipped."""
    keep = 0.5 ** (1.0 / half_life)
    total = weight = 0.0
    out = np.full(len(y), np.nan)
    for i, value in enumerate(y):
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1.0
        if weight:
            out[i] = total / weight
    return out


def axes(
    frame: Frame,
    x_ticks: Sequence[float],
    x_labels: Sequence[str],
    y_ticks: Sequence[float],
    y_labels: Sequence[str],
) -> list[str]:
    parts = []
    for tick, label in zip(y_ticks, y_labels, strict=True):
        y = frame.at(frame.x[0], tick)[1]
        parts.append(f'<path class="gridline" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(put_text(frame.left - 6, y + 4, label, "end"))
    for tick, label in zip(x_ticks, x_labels, strict=True):
        if frame.x[0] <= tick <= frame.x[1]:
            parts.append(put_text(frame.at(tick, 0)[0], frame.bottom + 17, label, "middle"))
    return parts


def _line(frame: Frame, series: Series) -> list[str]:
    path, pen_down = [], False
    dots = []
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y):
            pen_down = False
            continue
        px, py = frame.at(x, y)
        path.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        pen_down = True
        if series.dots or len(series.x) == 1:
            hint = f"{series.label} {y:.5g} at step {x:g}".strip()
            dots.append(
                f'<circle class="dot {series.style}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
                f"<title>{escape(hint)}</title></circle>"
            )
    title = f"<title>{escape(series.label)}</title>" if series.label else ""
    return [f'<path class="{series.style}" d="{"".join(path)}">{title}</path>', *dots]


def _box(
    frame: Frame, low: float, high: float, bottom: float, top: float, style: str, hint: str
) -> str:
    x0, y0 = frame.at(low, bottom)
    x1, y1 = frame.at(high, top)
    return (
        f'<rect class="{style}" x="{x0 + 0.5:.1f}" y="{y1:.1f}" width="{x1 - x0 - 1:.1f}" '
        f'height="{y0 - y1:.1f}"><title>{escape(hint)}</title></rect>'
    )


def put_text(
    x: float, y: float, text: str, anchor: str = "start", style: str = "", hint: str = ""
) -> str:
    title = f"<title>{escape(hint)}</title>" if hint and hint != text else ""
    kind = f' class="{style}"' if style else ""
    return (
        f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{escape(text)}</text>'
    )


def _cut(text: str, length: int) -> str:
    """Cuts in the middle, since names of classes often differ only in their end."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def svg(height: float, name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">'
        f"{''.join(parts)}</svg>"
    )
