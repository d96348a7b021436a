"""What several trials show: a table, their ensembles, and a box for each value that varied."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from bert_ft.evals import plots
from bert_ft.evals.page import figure, grid, note, section, table
from bert_ft.evals.plots import Frame

LISTED = 200  # trials in the table


def trial_sections(result: Mapping[str, Any]) -> list[str]:
    """The page's sections for the 'trials' of a result.json; none where a run has no trials."""
    trials = result.get("trials")
    if not trials:
        return []
    metric = result["metric"]
    scores = {
        name: result["eval"][f"{name}/{metric}"]["per_trial"]
        for name in ("dev", "test")
        if f"{name}/{metric}" in result["eval"]
    }
    keys = list(dict.fromkeys(key for one in trials for key in one["settings"]))
    rows = []
    for number, one in list(enumerate(trials))[:LISTED]:
        marks = ["best"] if number == result.get("best_trial") else []
        if stop := one.get("stopped"):
            marks.append(stop.get("why") or f"stopped at {_score(stop['score'])}")
            marks[-1] += f", after {stop['step']:,} steps"
        marks += [f"collapsed: {one['collapsed']}"] if one["collapsed"] else []
        rows.append(
            (
                str(number),
                *(_shown(one["settings"].get(key, "–")) for key in keys),
                *(_score(values[number]) for values in scores.values()),
                "; ".join(marks),
            )
        )
    short = [key.rpartition(".")[2].replace("_", " ") for key in keys]
    heads = ("", *short, *(f"{name} {metric}" for name in scores), "")
    html = table(heads, rows, numeric=range(len(heads) - 1))
    if len(trials) > LISTED:
        html += note(f"The first {LISTED} of {len(trials):,}.")
    sections = [section("Trials", html)]
    by = "dev" if "dev" in scores else "test"
    if scores:
        charts = [
            figure(name, _chart(trials, key, scores[by], name), f"{by} {metric} by {name}")
            for key, name in zip(keys, short, strict=True)
            if 1 < len({str(one["settings"].get(key)) for one in trials}) < len(trials)
        ]
        sections += [section("What varied", grid(charts))] if charts else []
    together = result.get("ensembles") or {}
    lines = [
        (name.replace("_", " "), *(_score(own.get(f"{s}/{metric}")) for s in scores))
        for name, own in together.items()
    ]
    if lines:
        html = table(("", *scores), lines, numeric=range(1, 1 + len(scores)))
        sections.append(section("Together", html))
    return sections


def _chart(trials: Sequence[Mapping[str, Any]], key: str, scores: Sequence[Any], name: str) -> str:
    values = [one["settings"].get(key) for one in trials]
    of_text = {str(v): v for v in values}
    order = sorted(of_text, key=lambda v: (_number(v), v))
    labels = distinct([of_text[text] for text in order])
    groups: dict[str, list[float]] = {text: [] for text in order}
    for value, score in zip(values, scores, strict=True):
        groups[str(value)] += [] if score is None else [score]
    return box_chart(dict(zip(labels, groups.values(), strict=True)), name)


def box_chart(groups: Mapping[str, Sequence[float]], name: str, height: int = 200) -> str:
    """For each group its values as dots, and where there are four or more the box of the quartiles
    (linear between order statistics) with the median."""
    values = [v for group in groups.values() for v in group]
    if not values:
        return plots.svg(60, name, [plots.put_text(plots.WIDTH / 2, 34, "no values", "middle")])
    y_ticks = plots.ticks(min(values), max(values))
    y_labels = plots.tick_labels(y_ticks)
    frame = Frame(
        x=(0.0, float(len(groups))),
        y=(y_ticks[0], y_ticks[-1]),
        left=14 + plots.CHARACTER * max(map(len, y_labels)),
        right=plots.WIDTH - 16,
        top=10,
        bottom=height - 24,
    )
    centres = [i + 0.5 for i in range(len(groups))]
    parts = plots.axes(frame, centres, list(groups), y_ticks, y_labels)
    for centre, (label, group) in zip(centres, groups.items(), strict=True):
        if len(group) >= 4:
            low, median, high = np.percentile(group, [25, 50, 75])
            (x0, top), (x1, bottom) = frame.at(centre - 0.25, high), frame.at(centre + 0.25, low)
            middle = frame.at(centre, median)[1]
            parts.append(
                f'<rect class="area" x="{x0:.1f}" y="{top:.1f}" width="{x1 - x0:.1f}" '
                f'height="{bottom - top:.1f}"/>'
                f'<path class="line" d="M{x0:.1f} {middle:.1f}H{x1:.1f}"/>'
            )
        for value in group:
            x, y = frame.at(centre, value)
            parts.append(
                f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
                f"<title>{escape(label)}: {value:.5g}</title></circle>"
            )
    return plots.svg(height, name, parts)


def distinct(values: Sequence[Any]) -> list[str]:
    """A label for each of different values, numbers with as many digits as tell them apart."""
    by_digits = ([_shown(value, digits) for value in values] for digits in range(4, 17))
    whole = [_shown(value, 17) for value in values]
    return next((labels for labels in by_digits if len({*labels}) == len(values)), whole)


def _shown(value: Any, digits: int = 6) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")
