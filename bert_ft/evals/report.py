"""report.html: one run on one page, with nothing to fetch from anywhere.

Everything is computed from the files of the workdir, so it can be written again at any time.
"""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.evals import plots
from bert_ft.evals.answers import prediction_sections
from bert_ft.evals.merit import lower_is_better
from bert_ft.evals.page import figure, fold, grid, header, note, page, section, table
from bert_ft.evals.trials_page import trial_sections

CURVES = 9
# Scores between 0 and 1 that people quote in percent; correlations they don't.
PERCENT = ("accuracy", "f1", "precision", "recall", "exact_match", "ece", "real_token_fraction")
# The score at the top is the run's own metric, else the first of these, on test before dev.
HEADLINES = (
    *("perplexity", "accuracy", "f1_micro", "f1", "exact_match", "spearman", "pearson"),
    *("mrr", "ndcg@10", "auc", "rmse"),
)


def write_report(workdir: Path, defaults: dict[str, Any] | None = None) -> Path:
    """Writes workdir/report.html, whole or not at all, and returns its path.

    Args:
      workdir: of a run, finished or not. Of result.json, metrics.jsonl, config.json and
        predictions/test.jsonl those that exist are used; what is missing is said on the page.
      defaults: the default config, nested like the run's; the page then shows the differences
        and folds the rest away.

    Raises:
      InputError: a file there is not what a run writes; names the file and the line.
    """
    if not workdir.is_dir():
        raise InputError(f"workdir={str(workdir)!r} is not a folder; give one that a run wrote")
    result, config = read_object(workdir / "result.json"), read_object(workdir / "config.json")
    flat, other = _flat(config), result.get("scored_with", {})
    model = str(flat.get("model.pretrained") or "a model from scratch")
    # Of an earlier evaluation they are not of these scores.
    own = not result or any(name.startswith("test/") for name in result.get("eval", {}))
    answers = read_rows(workdir / "predictions" / "test.jsonl") if own else []
    record = ("config_hash", "git_commit", "params_sha256", "seeds", "versions")
    html = page(
        f"{model}: {flat.get('task.name', 'report')}",
        [
            _head(workdir, model, {**flat, **other}, result),
            _scored_with(other),
            _curves(
                read_rows(workdir / "metrics.jsonl", may_be_torn=True),
                {k for k, one in enumerate(result.get("trials") or ()) if one.get("stopped")},
            ),
            *trial_sections(result),
            _whose(result),
            *prediction_sections(answers),
            _facts("Speed and size", _pick(result, ("speed", "goodput", "params", "steps"))),
            _config(flat, _flat(defaults) if defaults is not None else None),
            _facts("Record", _pick(result, record)),
        ],
    )
    path = workdir / "report.html"
    paths.write_whole(path, html)
    return path


def _head(workdir: Path, model: str, flat: dict[str, Any], result: dict[str, Any]) -> str:
    facts = [("task", "task.name"), ("train", "data.train"), ("dev", "data.dev")]
    facts.append(("test", "data.test"))
    shown = [(name, str(flat[key])) for name, key in facts if flat.get(key)]
    tiles, scores = [], result.get("eval", {})
    own = str(result.get("metric", ""))
    for name in sorted(scores, key=lambda name: _prominence(name, own)):
        entry = scores[name] if isinstance(scores[name], dict) else {"mean": scores[name]}
        trials = sum(v is not None for v in entry.get("per_trial") or [])
        spread = f"± {_number(name, entry.get('std'))}" if trials > 1 else ""
        basis = f"{entry['n_examples']:,} examples" if entry.get("n_examples") else ""
        if trials > 1:
            basis += f"{', ' if basis else ''}{trials} trials, mean ± standard deviation"
        tiles.append((_words(name), _number(name, entry.get("mean")), spread, basis))
    nothing = "Nothing was scored: there is neither a dev nor a test set."
    if not result:
        nothing = "No result.json yet: this run has not ended."
    return header(workdir.resolve().name, model, shown, tiles, nothing)


def _scored_with(other: dict[str, Any]) -> str:
    """In what an evaluation was told otherwise than the training, whose config the page shows."""
    told = ", ".join(f"{key} = {_cell('', value)}" for key, value in other.items())
    return note(f"These scores are of an evaluation with {told}.") if told else ""


def _whose(result: dict[str, Any]) -> str:
    """Of which of several trials the predictions are."""
    of = result.get("predictions_of")
    best = ", the best on dev" if result.get("best_trial") == of else ""
    return "" if of is None else note(f"What follows is of trial {of}{best}.")


def _curves(lines: Sequence[dict], stopped: Collection[int]) -> str:
    """`stopped`: the numbers of the trials that have no end to speak of."""
    found: dict[str, dict[int | None, list[tuple[int, float]]]] = {}
    for line in lines:
        value = math.nan if line["value"] is None else float(line["value"])
        trials = found.setdefault(str(line["name"]), {})
        trials.setdefault(line.get("trial"), []).append((line["step"], value))
    curves = {
        name: {trial: np.array(sorted(points), float).T for trial, points in trials.items()}
        for name, trials in found.items()
        if not name.startswith("test/")  # measured once, at the end
    }
    if not curves:
        return section("Curves", note("There is no metrics.jsonl with training to draw."))
    dev_loss: dict[int | None, np.ndarray] = {}
    if "train/loss" in curves and len(curves["train/loss"]) == 1:
        dev_loss = curves.pop("dev/loss", {})
    # A score that was measured once is a number, which the head of the page has.
    drawn = {n: c for n, c in curves.items() if any(len(x) > 1 for x, _ in c.values())} or curves
    figures = [
        _curve(name, drawn[name], dev_loss, stopped) for name in sorted(drawn, key=_curve_order)
    ]
    more = fold(f"{len(figures) - CURVES} more", grid(figures[CURVES:]))
    return section("Curves", grid(figures[:CURVES]) + (more if len(figures) > CURVES else ""))


def _curve(
    name: str,
    trials: dict[int | None, np.ndarray],
    dev_loss: dict[int | None, np.ndarray],
    stopped: Collection[int],
) -> str:
    is_loss, several = name == "train/loss", len(trials) > 1
    series, keys = [], []
    for trial, (x, y) in trials.items():
        if is_loss and not several:
            series.append(plots.Series(*plots.thin(x, y), style="raw"))
            keys = [("line", "smoothed"), ("raw", "each record")]
        if is_loss:
            y = plots.smooth(y, half_life=max(1.0, len(y) / 30))
        series.append(
            plots.Series(
                *plots.thin(x, y),
                style="thin" if several else "line",
                label="" if trial is None else f"trial {trial}",
                dots=not name.startswith("train/") and len(x) <= 40,
            )
        )
    if is_loss:
        for x, y in dev_loss.values():
            series.append(plots.Series(x, y, style="other", label="dev", dots=len(x) <= 40))
            keys.append(("other", "dev"))
    title = _words(name.removeprefix("train/")) if not is_loss else "loss"
    if name.startswith("train/") and name.endswith("accuracy"):
        title += " on training batches"
    about = _last_and_best(name, trials, stopped)
    return figure(title, plots.line_chart(series, title), about, keys)


def _last_and_best(
    name: str, trials: dict[int | None, np.ndarray], stopped: Collection[int]
) -> str:
    if len(trials) > 1:
        ended = [float(y[-1]) for trial, (_, y) in trials.items() if trial not in stopped]
        if not ended:
            return f"{len(trials)} trials, none of which came to its end"
        mean = _number(name, float(np.mean(ended)))
        if len(ended) == len(trials):
            return f"{len(trials)} trials, {mean} on average at the end"
        return f"{len(ended)} of {len(trials)} trials came to their end, with {mean} on average"
    x, y = next(iter(trials.values()))
    text = f"{_number(name, y[-1])} at step {x[-1]:,.0f}"
    if not name.startswith("train/") and np.isfinite(y).any():
        best = int(np.nanargmin(y) if lower_is_better(name) else np.nanargmax(y))
        if best < len(x) - 1:
            text += f"; best {_number(name, y[best])} at step {x[best]:,.0f}"
    return text


def _facts(heading: str, values: dict[str, Any]) -> str:
    rows = [(name, _cell(name, value)) for name, value in _flat(values).items()]
    return section(heading, table(("", ""), rows)) if rows else ""


def _config(flat: dict[str, Any], defaults: dict[str, Any] | None) -> str:
    if not flat:
        return section("Config", note("There is no config.json."))
    everything = table(("", ""), [(name, _cell("", value)) for name, value in flat.items()])
    if defaults is None:
        return section("Config", fold(f"{len(flat)} values", everything))
    changed = [
        (name, _cell("", value), _cell("", defaults.get(name)))
        for name, value in flat.items()
        if defaults.get(name) != value
    ]
    html = table(("", "this run", "default"), changed) if changed else note("All as by default.")
    return section("Config", html + fold(f"all {len(flat)} values", everything))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _pick(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _words(name: str) -> str:
    return name.replace("/", " ").replace("_", " ")


def _number(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    if name.endswith(PERCENT) or name.startswith("goodput."):
        return f"{100 * value:.1f} %"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:,.0f}"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return _number(name, value) if name else f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool) and name:
        return f"{value:,}"
    return value if isinstance(value, str) and value else json.dumps(value)


def _prominence(name: str, own: str) -> tuple[int, int, str]:
    group, _, metric = name.partition("/")
    sets, order = ("test", "dev"), (own, *HEADLINES)
    return (
        order.index(metric) if metric in order else len(order),
        sets.index(group) if group in sets else len(sets),
        name,
    )


def _curve_order(name: str) -> tuple[int, str]:
    if name == "train/loss":
        return 0, name
    if name.startswith("train/"):
        return (2 if name in ("train/learning_rate", "train/lr") else 3), name
    return 1, name


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, {} where there is none."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it or run again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object is due; remove it or run again")
    return value


def read_rows(path: Path, may_be_torn: bool = False) -> list[dict]:
    """The objects of a JSONL file, none where it is not there; `may_be_torn` forgives its last
    line."""
    if not path.exists():
        return []
    rows = []
    # Not splitlines(): it also splits at U+2028, which JSON strings may hold.
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a JSON object is due")
        except ValueError as error:
            if may_be_torn and number == len(lines):
                continue
            raise InputError(f"{path}:{number}: {error}; remove it or run again") from error
        rows.append(row)
    return rows
