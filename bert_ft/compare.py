"""python -m bert_ft.compare RUN_A RUN_B: by how much two runs differ, and whether by chance.

A RUN is a finished workdir, of one run or of config.trials, or several of the same system with
other seeds, comma-separated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_ft import paths
from bert_ft.config import FREE, default, flat
from bert_ft.errors import EXIT_DONE, EXIT_INPUT, InputError
from bert_ft.evals.judge import is_number, judge
from bert_ft.evals.merit import lower_is_better
from bert_ft.evals.paired import Difference, Judged, difference
from bert_ft.evals.report import read_object, read_rows

LIKELY = 0.05
# Keys that seeds of one system may differ in.
OWN = (*FREE, "data.", "trial", "resume", "model.pretrained", "methods.distil.teacher")


def compare(
    a: Sequence[Path], b: Sequence[Path], metric: str = "", resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """{'metric', 'n', 'a', 'b', 'difference', 'low', 'high', 'p', 'seeds', 'sentence'} of the test
    sets of two systems, each the workdirs of its seeds; a run of trials is one workdir a trial. ''
    takes the first run's own metric.

    Raises InputError where the runs of a side differ in more than seeds, where one has no
    predictions, where the texts or labels of two runs differ, where two scores are of different
    labels, or where predictions don't give the score of their own result.json.
    """
    a, b = ([one for run in side for one in _each(run)] for side in (a, b))
    for side in (a, b):
        _one_system(side)
    results = {run: read_object(run / "result.json") for run in (*a, *b)}
    metric = metric or str(results[a[0]].get("metric", "accuracy"))
    rows = {run: _rows(run) for run in (*a, *b)}
    first = rows[a[0]]
    for run in (*a[1:], *b):
        _same_questions(first, rows[run], a[0], run)
    judged = {
        run: judge(rows[run], metric, str(_file(run)), _positive(run, results[run], metric))
        for run in (*a, *b)
    }
    _same_positive({run: one.of for run, one in judged.items()}, metric)
    for run, one in judged.items():
        _as_recorded(one, results[run], metric, run)
    found = difference([judged[run] for run in a], [judged[run] for run in b], resamples, seed)
    count, names = len(judged[a[0]].values), (_name(a), _name(b))
    return {
        **{"metric": metric, "n": count, "a": found.a, "b": found.b, "difference": found.gap},
        **{"low": found.low, "high": found.high, "p": found.p},
        **{"seeds": [len(a), len(b)], "resamples": resamples},
        "sentence": sentence(names, metric, found, count, (len(a), len(b))),
    }


def sentence(
    names: tuple[str, str], metric: str, d: Difference, count: int, seeds: tuple[int, int]
) -> str:
    """The result in words that promise no more than the data do."""
    better = d.gap < 0 if lower_is_better(metric) else d.gap > 0
    verdict = "better than" if better else "worse than" if d.gap else "the same as"
    test = f"; paired test p = {d.p:.3g}" if d.p is not None else ""
    # The test exchanges answers and knows nothing of seeds; the interval draws both.
    certain = (d.low > 0 or d.high < 0) and (d.p is None or d.p < LIKELY)
    end = "which chance alone would rarely bring" if certain else "which may well be chance"
    if not d.gap:
        end = "on this set"
    caution = ""
    if min(seeds) == 1:
        caution = " One seed on a side: how much another seed would change is not in the interval."
    return (
        f"{names[1]} is {verdict} {names[0]}: test {metric} {d.b:.4f} against {d.a:.4f}, a "
        f"difference of {d.gap:+.4f} (95 % interval {d.low:+.4f} to {d.high:+.4f}{test}; "
        f"n = {count:,}, seeds {seeds[0]} and {seeds[1]}), {end}.{caution}"
    )


def _each(run: Path) -> list[Path]:
    """A run, or the trials of one that went to their ends."""
    trials = read_object(run / "result.json").get("trials")
    if trials is None:
        return [run]
    ended = {
        k: one["settings"]
        for k, one in enumerate(trials)
        if one["steps"] is not None and not one["stopped"]
    }
    if not ended:
        raise InputError(f"{run}: no trial went to its end; accepted: a run with scores on test")
    systems = [{k: v for k, v in own.items() if k != "train.seed"} for own in ended.values()]
    if any(system != systems[0] for system in systems):
        raise InputError(
            f"{run}: its trials differ in more than their seeds; accepted: those of one system, "
            f"such as {run / 'trials' / str(min(ended))}, comma-separated"
        )
    return [run / "trials" / str(k) for k in ended]


def _one_system(runs: Sequence[Path]) -> None:
    """Raises InputError where a run is twice on a side, and where two differ in more than seeds,
    whose mean is of nothing; but each may have folds of the data, and a checkpoint or a teacher, of
    its own."""
    for run in runs:
        if runs.count(run) > 1:
            raise InputError(f"{run} is twice on a side; accepted: each seed's run once")
    systems = [{**flat(default()), **read_object(run / "config.json")} for run in runs]
    for run, own in zip(runs, systems, strict=True):
        for key, value in systems[0].items():
            if own.get(key) != value and not (key.startswith(OWN) or key.endswith("seed")):
                raise InputError(
                    f"{run}: its {key} is {own.get(key)!r}, that of {runs[0]} {value!r}; accepted "
                    "on a side: seeds of one system"
                )


def _file(run: Path) -> Path:
    return run / "predictions" / "test.jsonl"


def _name(runs: Sequence[Path]) -> str:
    return str(runs[0]) if len(runs) == 1 else f"{runs[0]} and {len(runs) - 1} more"


def _positive(run: Path, result: dict[str, Any], metric: str) -> str:
    """task.positive_label by which a run was scored, or its part that the metric is of."""
    key = "task.positive_label"
    config = {**read_object(run / "config.json"), **result.get("scored_with", {})}
    part = metric.rpartition("/")[0]
    own = json.loads(config.get("task.parts") or "{}").get(part, {}) if part else {}
    return str(own.get(key, config.get(key, "")))


def _same_positive(labels: dict[Path, str], metric: str) -> None:
    first, *others = labels
    for run in others:
        if labels[run] != labels[first]:
            raise InputError(
                f"{run}: its {metric} is of the label {labels[run]!r}, that of {first} of "
                f"{labels[first]!r}; accepted: runs of one task.positive_label; score one again "
                "with --mode=eval --config.task.positive_label=…"
            )


def _rows(run: Path) -> list[dict[str, Any]]:
    with paths.reached(_file(run)):
        rows = read_rows(_file(run))
    if not rows:
        raise InputError(f"{_file(run)} is not there; a run with data.test and eval.report has it")
    return rows


def _same_questions(
    one: Sequence[dict], other: Sequence[dict], of_one: Path, of_other: Path
) -> None:
    if len(one) != len(other):
        raise InputError(
            f"{_file(of_other)} has {len(other)} rows, {_file(of_one)} {len(one)}; accepted: runs "
            "of the same test set"
        )
    for number, (x, y) in enumerate(zip(one, other, strict=True), 1):
        if _asked(x) != _asked(y) or not _alike(x.get("label"), y.get("label")):
            raise InputError(
                f"{_file(of_other)}:{number}: another text or label than in {_file(of_one)}; "
                "accepted: runs of the same test set"
            )


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    """A row's texts."""
    own = ("id", "label", "prediction")
    return {k: v for k, v in row.items() if k not in own and isinstance(v, str)}


def _alike(one: Any, other: Any) -> bool:
    """Whether two labels are one; a rank, such as "1", is the number that a regression has."""
    if isinstance(one, str) == isinstance(other, str) or not (is_number(one) and is_number(other)):
        return bool(one == other)
    return float(one) == float(other)


def _as_recorded(judged: Judged, result: dict[str, Any], metric: str, run: Path) -> None:
    if not math.isfinite(judged.whole):
        raise InputError(
            f"{_file(run)}: its {metric} is undefined, as of predictions that are all alike; "
            "accepted: runs with a score, or another --metric"
        )
    recorded = (result.get("eval", {}).get(f"test/{metric}") or {}).get("mean")
    if recorded is not None and abs(recorded - judged.whole) > 1e-5 * max(1, abs(recorded)):
        raise InputError(
            f"{_file(run)}: its rows give {metric} {judged.whole:.6f}, its result.json says "
            f"{recorded:.6f}; score it again with --mode=eval"
        )


def _write(path: Path, found: dict[str, Any]) -> None:
    try:
        paths.write_whole(path, json.dumps(found, indent=2) + "\n")
    except OSError as e:
        raise InputError(f"--out={path}: can't be written: {e.strerror or e}") from e


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bert_ft.compare", description=__doc__)
    p.add_argument("a", help="workdir, or workdirs of several seeds, comma-separated")
    p.add_argument("b", help="the other system's")
    p.add_argument(
        "--metric", default="", help="the first run's own by default; may be PART/METRIC"
    )
    p.add_argument("--resamples", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0, help="of the resampling")
    p.add_argument("--out", type=Path, help="a JSON file for the numbers")
    args = p.parse_args(argv)
    try:
        if args.resamples < 1:
            raise InputError(f"--resamples={args.resamples}; accepted: 1 or more")
        a, b = ([paths.at(run) for run in side.split(",") if run] for side in (args.a, args.b))
        if not (a and b):
            raise InputError("a side has no workdir; give RUN_A and RUN_B")
        found = compare(a, b, args.metric, args.resamples, args.seed)
        print(found["sentence"])
        if args.out:
            _write(args.out, found)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
