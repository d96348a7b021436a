"""What a run's predictions show: confusion or scatter, calibration, and the worst mistakes."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from bert_ft.evals import metrics, plots, spans
from bert_ft.evals.judge import rows_of_part
from bert_ft.evals.page import cards, figure, fold, grid, mistake, note, section, table

MISTAKES = 20
SHOWN_CHARACTERS = 500
SCATTER_POINTS = 3000
OTHERS = ("id", "label", "prediction", "probabilities", "truncated")  # what a row has beside texts


def prediction_sections(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The page's sections for the rows of predictions/test.jsonl, which may be none.

    Each is {"text", "label", "prediction", "probabilities": {name: p}}. Strings and integers are
    classes; numbers without probabilities are a regression; pieces of the text are answers or
    entities (spans.py); what is none of these gets a sentence.
    """
    if not rows:
        missing = "There is no predictions/test.jsonl: no confusion, calibration or mistakes."
        return [section("Predictions", note(missing))]
    if spans.are_answers(rows):
        return spans.answer_sections(rows)
    if spans.are_entities(rows):
        return spans.entity_sections(rows)
    if all(isinstance(row.get("prediction"), dict) for row in rows) and _parts(rows):
        return [html for part in _parts(rows) for html in _of_part(rows, part)]
    sides = [row.get(side) for row in rows for side in ("label", "prediction")]
    scored = all(isinstance(row.get("probabilities"), dict) for row in rows)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in sides)
    if numbers and not scored:
        return _regression(rows)
    if all(isinstance(x, str | int) for x in sides):
        return _classification(rows, scored)
    other = f"{len(rows):,} predictions, whose labels are neither classes nor numbers: no charts."
    return [section("Predictions", note(other))]


def _parts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The parts of a task that has several: the keys of both the label and the prediction."""
    known: set[str] = set()
    for row in rows:
        label = row.get("label") or {}
        if not isinstance(label, dict):
            return []
        known |= set(label) & set(row["prediction"])
    return list(dict.fromkeys(k for row in rows for k in row["prediction"] if k in known))


def _of_part(rows: Sequence[dict[str, Any]], part: str) -> list[str]:
    """A part's sections, under a heading with its name."""
    own = rows_of_part(rows, part)
    return [html.replace("<h2>", f"<h2>{escape(part)}: ", 1) for html in prediction_sections(own)]


def _regression(rows: Sequence[dict[str, Any]]) -> list[str]:
    labels = np.array([row["label"] for row in rows], float)
    guesses = np.array([row["prediction"] for row in rows], float)
    shown = np.linspace(0, len(rows) - 1, min(len(rows), SCATTER_POINTS)).astype(int)
    caption = (
        f"Pearson {metrics.pearson(labels, guesses):.3f}, "
        f"Spearman {metrics.spearman(labels, guesses):.3f}, "
        f"RMSE {metrics.rmse(labels, guesses):.3f}, MAE {metrics.mae(labels, guesses):.3f}"
    )
    if len(shown) < len(rows):
        caption += f"; {len(shown):,} of {len(rows):,} examples are drawn"
    chart = plots.scatter_chart(labels[shown], guesses[shown])
    error = np.nan_to_num(np.abs(guesses - labels), nan=np.inf)
    worst = [i for i in np.argsort(-error, kind="stable")[:MISTAKES] if error[i] > 0]
    worst_cards = [_card(rows[int(i)], f"{guesses[i]:.2f}", "", f"{labels[i]:.2f}") for i in worst]
    return [
        section("Predictions", grid([figure("Prediction and label", chart, caption)])),
        _cards("Largest errors", worst_cards),
    ]


def _classification(rows: Sequence[dict[str, Any]], scored: bool) -> list[str]:
    known = [str(name) for name in rows[0]["probabilities"]] if scored else []
    seen = {str(row[side]) for row in rows for side in ("label", "prediction")}
    names = known + sorted(seen - set(known), key=lambda s: (s.isdigit() and len(s), s))
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[str(row["label"])] for row in rows])
    guesses = np.array([number[str(row["prediction"])] for row in rows])
    confusion = metrics.confusion_matrix(labels, guesses, len(names))
    caption = f"{np.trace(confusion):,} of {len(rows):,} right; rows are labels, shade their share"
    if len(names) > plots.NAMED_CLASSES:
        caption += "; numbers as in the table of classes"
    figures = [figure("Confusion", plots.confusion_chart(confusion, names), caption)]
    sureness = np.full(len(rows), np.nan)
    if scored:
        table_NxC = [[row["probabilities"].get(name) or 0.0 for name in names] for row in rows]
        probabilities_NxC = np.array(table_NxC, float)
        sureness = probabilities_NxC[np.arange(len(rows)), guesses]
        got = metrics.calibration(labels, probabilities_NxC, guesses=guesses)
        caption = f"ECE {got.ece:.1%}; below: examples per bin, {got.count.max():,} at most"
        keys = [("cell", "accuracy"), ("gap", "gap to confidence")]
        figures.append(figure("Reliability", plots.reliability_chart(got), caption, keys))
    if len(names) > 2:
        figures.append(_most_confused(confusion, names))
    wrong = np.flatnonzero(labels != guesses)
    wrong = wrong[np.argsort(-np.nan_to_num(sureness[wrong]), kind="stable")][:MISTAKES]
    wrong_cards = []
    for i in wrong:
        percent = f"{sureness[i]:.1%}" if scored else ""
        wrong_cards.append(_card(rows[int(i)], names[guesses[i]], percent, names[labels[i]]))
    return [
        section("Predictions", grid(figures) + _class_table(confusion, names)),
        _cards("Most confident mistakes" if scored else "Mistakes", wrong_cards),
    ]


def _most_confused(confusion: np.ndarray, names: Sequence[str]) -> str:
    wrong = confusion - np.diag(np.diag(confusion))
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:10]:
        label, guess = divmod(int(place), len(names))
        if n := int(wrong[label, guess]):
            rows.append((names[label], names[guess], f"{n:,}", f"{n / confusion[label].sum():.0%}"))
    heads = ("label", "predicted", "n", "of label")
    return figure("Most often confused", table(heads, rows, numeric=(2, 3)), "")


def _class_table(confusion: np.ndarray, names: Sequence[str]) -> str:
    scores = np.stack(metrics.per_class(confusion), axis=1)
    rows = [
        (f"{i}", name, f"{confusion[i].sum():,}", *(f"{100 * score:.1f}" for score in scores[i]))
        for i, name in enumerate(names)
    ]
    heads = ("", "class", "n", "prec. %", "rec. %", "F1 %")
    html = table(heads, rows, numeric=(2, 3, 4, 5))
    return fold(f"{len(names)} classes", html, is_open=len(names) <= 12)


def _cards(heading: str, html_cards: Sequence[str]) -> str:
    if not html_cards:
        return section(heading, note("There are none."))
    return section(heading, cards(html_cards))


def _card(row: dict[str, Any], prediction: str, sureness: str, label: str) -> str:
    # A row's texts stand under the names of their columns, which are the user's.
    texts = [v for k, v in row.items() if k not in OTHERS and isinstance(v, str | list)]
    lines = [line for v in texts for line in (v if isinstance(v, list) else [v])]
    text = "\n".join(map(str, lines)) or "(no text in the predictions)"
    return mistake(text, prediction, sureness, label, SHOWN_CHARACTERS)
