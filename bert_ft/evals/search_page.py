"""search.html: how a sweep has gone, and where in its space the good trials are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bert_ft.evals import plots
from bert_ft.evals.merit import merit
from bert_ft.evals.page import figure, grid, header, note, page, section, table
from bert_ft.evals.plots import Frame
from bert_ft.evals.trials_page import box_chart, distinct

LISTED = 200  # trials in the table


def search_page(name: str, found: Mapping[str, Any]) -> str:
    """The page of a search.json."""
    metric, best, space = found["metric"], found["best"], found["space"]
    known = [one for one in found["trials"] if one["value"] is not None]
    without = [one for one in found["trials"] if one["value"] is None]
    scores = [(metric, f"{best['value']:.4f}", "", f"trial {best['number']}")] if best else []
    facts = [(_short(k), _shown(v)) for k, v in best["settings"].items()] if best else []
    if best:
        facts.append(("train with it", found["command"]))
    charts = [
        figure("best so far", _progress(known, metric), f"{metric} by number of the trial"),
        *(
            figure(_short(key), _panel(known, key, *next(iter(of.items()))), f"{metric}")
            for key, of in space.items()
        ),
    ]
    rows = [
        (
            str(one["number"]),
            *(_shown(one["settings"].get(key, "–")) for key in space),
            "–" if one["value"] is None else f"{one['value']:.4f}",
            f"stopped after {one['step']:,} steps" if one["step"] else one["state"],
        )
        for one in (*sorted(known, key=lambda one: -merit(metric, one["value"])), *without)[:LISTED]
    ]
    heads = ("", *map(_short, space), metric, "")
    listed = table(heads, rows, numeric=range(len(heads) - 1))
    if len(rows) < len(found["trials"]):
        listed += note(f"The first {len(rows)} of {len(found['trials'])}; search.json has all.")
    return page(
        f"{name}: search",
        [
            header(name, f"{len(found['trials'])} trials", facts, scores, "No trial has a score."),
            section("Search", grid(charts)),
            section("Trials, the best first", listed),
        ],
    )


def _progress(known: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Each trial's score, and the best of those that ended."""
    if not known:
        return _nothing("best so far")
    points = [(float(one["number"]), one["value"], one) for one in known]
    ended = [(x, y) for x, y, one in points if one["state"] == "complete"]
    best = itertools.accumulate(ended, lambda a, b: (b[0], max(a[1], b[1], key=_merit(metric))))
    numbers = [x for x, _, _ in points]
    low, high = min(numbers), max(max(numbers), min(numbers) + 1)
    ticks = [t for t in plots.ticks(low, high, most=4) if t == int(t)]
    frame = _frame(points, (low, high))
    path = "".join(
        f"M{x:.1f} {y:.1f}" if not i else f"H{x:.1f}V{y:.1f}"
        for i, (x, y) in enumerate(frame.at(*one) for one in best)
    )
    line = f'<path class="line" d="{path}"><title>best so far</title></path>'
    return _drawn(frame, points, ticks, [f"{t:g}" for t in ticks], "best so far", [line])


def _merit(metric: str) -> Any:
    return lambda value: merit(metric, value)


def _panel(known: Sequence[Mapping[str, Any]], key: str, kind: str, values: Sequence[Any]) -> str:
    """Scores over the values of one setting: points over a range, a box for each choice."""
    name = _short(key)
    mine = [one for one in known if key in one["settings"]]
    if not mine:
        return _nothing(name)
    if kind == "choice":
        of = [[one["value"] for one in mine if one["settings"][key] == v] for v in values]
        return box_chart(dict(zip(distinct(values), of, strict=True)), name)
    scale = math.log10 if kind == "log" else float
    low, high = map(float, values)
    points = [(scale(one["settings"][key]), one["value"], one) for one in mine]
    ticks = _decades(low, high) if kind == "log" else plots.ticks(low, high, most=4)
    within = [t for t in ticks if low <= t <= high * (1 + 1e-9)]
    frame = _frame(points, (scale(low), scale(high)))
    return _drawn(frame, points, [scale(t) for t in within], [f"{t:g}" for t in within], name, [])


def _decades(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic range, few of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 3 else (1, 3)
    return [float(f"{step}e{power}") for power in powers for step in steps]


def _frame(points: Sequence[tuple[float, float, Any]], x: tuple[float, float]) -> Frame:
    y_ticks = plots.ticks(min(y for _, y, _ in points), max(y for _, y, _ in points))
    labels = plots.tick_labels(y_ticks)
    left = 14 + plots.CHARACTER * max(map(len, labels))
    return Frame(x, (y_ticks[0], y_ticks[-1]), left, plots.WIDTH - 16, 10, 176)


def _drawn(
    frame: Frame,
    points: Sequence[tuple[float, float, Mapping[str, Any]]],
    ticks: Sequence[float],
    labels: Sequence[str],
    name: str,
    parts: Sequence[str],
) -> str:
    """Points in a frame; those that were stopped early in the other colour."""
    y_ticks = plots.ticks(min(y for _, y, _ in points), max(y for _, y, _ in points))
    drawn = plots.axes(frame, ticks, labels, y_ticks, plots.tick_labels(y_ticks))
    for x, y, one in points:
        px, py = frame.at(x, y)
        style = "dot" if one["state"] == "complete" else "dot other"
        what = ", ".join(f"{_short(k)} {_shown(v)}" for k, v in one["settings"].items())
        hint = f"trial {one['number']}: {y:.5g}, {what}"
        drawn.append(
            f'<circle class="{style}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
            f"<title>{escape(hint)}</title></circle>"
        )
    return plots.svg(200, name, [*drawn, *parts])


def _nothing(name: str) -> str:
    return plots.svg(60, name, [plots.put_text(plots.WIDTH / 2, 34, "no scores", "middle")])


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
