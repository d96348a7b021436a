"""The record of several trials, from the records that each of them has left."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft import config as defaults
from bert_ft import paths, trials
from bert_ft.config import config_hash
from bert_ft.errors import InputError
from bert_ft.evals.merit import merit
from bert_ft.evals.report import read_rows, write_report
from bert_ft.methods.registry import make_weights
from bert_ft.train import record
from bert_ft.train.sinks import read_metrics
from bert_ft.varying import Settings, said

STOPPED = "stopped.json"  # in the place of result.json, of a trial that was stopped early
STUCK = 0.05  # a train loss that has not fallen by this share has learnt nothing


def trial_dir(workdir: Path, number: int) -> Path:
    return workdir / "trials" / str(number)


def together_path(workdir: Path, tag: str) -> Path:
    """What the trials of a program are worth together; `tag` is that of its Group."""
    return workdir / "trials" / f"together{tag}.json"


def is_done(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("result.json", STOPPED))


def refuse_trials(workdir: Path) -> None:
    """Raises InputError where a workdir is of a run of trials: it has none of its own."""
    if before := (_read(workdir / "config.json") or {}).get("trials"):
        raise InputError(
            f"{workdir} is of a run of config.trials={before!r}; accepted: the same --config.trials"
            f", or one of its trials, such as {trial_dir(workdir, 0)}"
        )


def soup_config(config: ConfigDict) -> ConfigDict:
    """The config of the mean of trials, from that of its first one. Where methods train factors of
    weights (LoRA), the mean is of the weights, and a run without methods."""
    if not make_weights(config).factors:
        return config
    c = copy.deepcopy(config)
    with c.unlocked():
        c.methods.use, c.methods.also_train = "", ""
    return c


def chosen(config: ConfigDict, workdir: Path, key: str) -> tuple[ConfigDict, Path]:
    """The config and the workdir of the trial that the config's `key`, 'best', a number or a soup,
    names; both as they are where the run has no trials."""
    group, _, name = key.partition(".")
    which = config[group][name]
    found = _read(workdir / "result.json") or {}
    if which in found.get("ensembles", {}) and (workdir / "trials" / which).is_dir():
        number = found["ensembles"][which]["members"][0]
        settings = found["trials"][number]["settings"]
        return soup_config(trials.config_of(config, settings)), workdir / "trials" / which
    if "trials" not in found:
        if which != "best":
            raise InputError(
                f"config.{key} is {which!r}; accepted: 'best': {workdir} has no trials"
            )
        return config, workdir
    count = len(found["trials"])
    if which == "best" and found["best_trial"] is None:
        raise InputError(
            f"config.{key} is 'best', but {workdir} has no scores on dev to choose by; accepted: a "
            f"number from 0 to {count - 1}"
        )
    number = found["best_trial"] if which == "best" else which
    if not str(number).isdigit() or int(number) >= count:
        raise InputError(f"config.{key} is {which!r}; accepted: {_names(found)}")
    one = found["trials"][int(number)]
    if one["steps"] is None:
        raise InputError(
            f"config.{key} is {which!r}, whose program ended early, its loss not finite; accepted: "
            "a trial that went to its end"
        )
    if stop := one.get("stopped"):
        raise InputError(
            f"config.{key} is {which!r}, which was stopped after {stop['step']} steps; accepted: a "
            "trial that went to its end"
        )
    settings = found["trials"][int(number)]["settings"]
    return trials.config_of(config, settings), trial_dir(workdir, int(number))


def _names(found: dict[str, Any]) -> str:
    soups = [repr(name) for name in found.get("ensembles", {}) if name.startswith("soup")]
    return ", ".join(["'best'", *soups, f"or 0 to {len(found['trials']) - 1}"])


def gather(config: ConfigDict, workdir: Path, settings: Sequence[Settings]) -> list[str]:
    """Writes result.json, predictions/test.jsonl (of the best trial; without scores on dev of the
    first that came to its end) and report.html; returns what to say."""
    folders = [trial_dir(workdir, k) for k in range(len(settings))]
    stops = [_read(f / STOPPED) for f in folders]
    results = [_read(f / "result.json") for f in folders]
    result = combined(config, settings, results, stops, [collapsed(f) for f in folders])
    result["ensembles"] = _ensembles(workdir)
    best = result["best_trial"]
    shown = range(len(folders)) if best is None else (best,)
    predicted = {k: folders[k] / "predictions" / "test.jsonl" for k in shown if results[k]}
    of = next((k for k, path in predicted.items() if path.exists()), None)
    result["predictions_of"] = of
    record.write_json(workdir / "result.json", result)
    if of is not None:
        paths.write_whole(workdir / "predictions" / "test.jsonl", predicted[of].read_text())
    if config.eval.report:
        with record.writing(workdir / "report.html"):
            write_report(workdir, defaults.default().to_dict())
    return _said(result, settings, workdir)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def combined(
    config: ConfigDict,
    settings: Sequence[Settings],
    results: Sequence[dict[str, Any] | None],
    stops: Sequence[dict[str, Any] | None],
    collapsed: Sequence[str],
) -> dict[str, Any]:
    """result.json of all trials: mean and sample standard deviation over those that went to their
    end and whose score is defined. Of a trial that did not, `stops` says where it was stopped."""
    ended = [r for r in results if r is not None]
    # All may have been stopped, by a sweep.
    first = ended[0] if ended else {"metric": next(filter(None, stops))["metric"], "speed": {}}
    scores = {}
    for name in dict.fromkeys(n for r in ended for n in r["eval"]):
        entries = [r and r["eval"].get(name) for r in results]
        values = [e["mean"] if e else None for e in entries]
        there = [v for v in values if v is not None]
        scores[name] = {
            "mean": float(np.mean(there)) if there else None,
            "std": float(np.std(there, ddof=1)) if len(there) > 1 else 0.0,
            "per_trial": values,
            "n_examples": next(e["n_examples"] for e in entries if e),
        }
    digests = [r["params_sha256"] if r else None for r in results]
    dev = scores.get(f"dev/{first['metric']}", {}).get("per_trial", [])
    known = [k for k, v in enumerate(dev) if v is not None]
    # Rates of a step that all trials are in: there is none where some were stopped, had other steps
    # to do, had to wait, or had a program, and so a clock, of their own.
    clocks = {r["speed"].get("step_ms_p50") for r in ended}
    waited = 0 < config.trial.at_once < len(settings) or config.trial.samples > 0
    alike = len(clocks) == 1 and len({r["steps"] for r in ended}) == 1
    in_one_step = alike and not any(stops) and not waited
    rates: dict[str, float | None] = {}
    for name in ("examples_per_s", "tokens_per_s"):
        own = [r["speed"][name] for r in ended if in_one_step]
        rates[name] = sum(own) if own and all(own) else None
    return {
        **first,
        "config_hash": config_hash(config),
        "seeds": [s for r in ended for s in r["seeds"]],
        "steps": max((r["steps"] for r in ended), default=0),
        "best_trial": max(known, key=lambda k: merit(first["metric"], dev[k])) if known else None,
        "trials": [
            {
                "settings": one,
                "params_sha256": r["params_sha256"] if r else None,
                "steps": r["steps"] if r else stop["step"] if stop else None,
                "collapsed": fell,
                "stopped": stop,
            }
            for one, r, stop, fell in zip(settings, results, stops, collapsed, strict=True)
        ],
        "eval": scores,
        "params_sha256": hashlib.sha256("".join(d or "-" for d in digests).encode()).hexdigest(),
        "speed": {**first["speed"], **rates},
    }


def _ensembles(workdir: Path) -> dict[str, Any]:
    """{name: {'members', and SET/METRIC: value}}; of several programs the name ends in the tag of
    each."""
    out: dict[str, Any] = {}
    for path in sorted((workdir / "trials").glob("together*.json")):
        together, tag = json.loads(path.read_text()), path.stem.removeprefix("together")
        if together["mean_prediction"]:
            out[f"mean_prediction{tag}"] = {
                f"{name}/{metric}": value
                for name, scores in together["mean_prediction"].items()
                for metric, value in scores.items()
            }
        for name, members in together["soups"].items():
            own = json.loads((workdir / "trials" / name / "result.json").read_text())
            out[name] = {"members": members, **{k: v["mean"] for k, v in own["eval"].items()}}
    return out


def collapsed(folder: Path) -> str:
    """Why a trial has learnt nothing, or ''. One whose loss has hardly fallen but which is right
    more often than the commonest label is, by two standard errors, has."""
    rows = read_rows(folder / "predictions" / "test.jsonl")
    said = [str(row.get("prediction")) for row in rows]
    known = [str(row.get("label")) for row in rows]
    if len(rows) > 1 and len({*said}) == 1 and len({*known}) > 1:
        return f"predicts {said[0]!r} for all rows"
    if rows:
        right = np.mean([a == b for a, b in zip(said, known, strict=True)])
        common = max(Counter(known).values()) / len(rows)
        if right > common + 2 * np.sqrt(common * (1 - common) / len(rows)):
            return ""
    metrics = folder / "metrics.jsonl"
    losses = [
        line["value"]
        for line in (read_metrics(metrics) if metrics.exists() else [])
        if line["name"] == "train/loss" and line["value"] is not None
    ]
    part = max(1, len(losses) // 10)
    if len(losses) > 5 and np.mean(losses[-part:]) > (1 - STUCK) * np.mean(losses[:part]):
        return "its loss has not fallen"
    return ""


def own_metrics(path: Path, trial: int, to: Path, begun: int) -> None:
    """The lines of one trial, as a run alone writes them: its steps are counted from where it
    begun, after so many of the program's."""
    lines = [
        {**line, "step": line["step"] - begun}
        for line in read_metrics(path)
        if line.get("trial") == trial
    ]
    record.write_lines(to, ({k: v for k, v in line.items() if k != "trial"} for line in lines))


def merged_metrics(parts: Sequence[tuple[Path, Sequence[int]]], to: Path) -> None:
    """(a group's metrics.jsonl, its trials' numbers) -> one file."""
    lines = [
        {**line, "trial": numbers[line["trial"]]} if "trial" in line else line
        for path, numbers in parts
        for line in read_metrics(path)
    ]
    record.write_lines(to, sorted(lines, key=lambda line: line["step"]))


def _said(result: dict[str, Any], settings: Sequence[Settings], workdir: Path) -> list[str]:
    lines = []
    for name, score in result["eval"].items():
        if name.endswith(f"/{result['metric']}") and score["mean"] is not None:
            count = sum(v is not None for v in score["per_trial"])
            over = f"± {score['std']:.4f} over {count} trials" if count > 1 else "of 1 trial"
            lines.append(f"{name}: {score['mean']:.4f} {over} (n = {score['n_examples']:,})")
    stops = [one["stopped"] for one in result["trials"]]
    if early := sum(bool(stop) and not stop.get("why") for stop in stops):
        lines.append(f"{early} of {len(settings)} trials were stopped early")
    for k, stop in enumerate(stops):
        if stop and stop.get("why"):
            after = f"after {stop['step']:,} steps"
            lines.append(
                f"trial {k} ({said(settings[k])}) counts for nothing: {stop['why']} {after}"
            )
    if result["best_trial"] is not None:
        best = result["best_trial"]
        lines.append(f"best on dev: trial {best} ({said(settings[best])})")
    elif (of := result["predictions_of"]) is not None:
        lines.append(f"predictions/test.jsonl: of trial {of}; no score on dev says which is best")
    for name, scores in result["ensembles"].items():
        score = f"test/{result['metric']}"
        score = score if score in scores else f"dev/{result['metric']}"
        if (value := scores.get(score)) is not None:
            lines.append(f"{name}: {score} {value:.4f}")
    seen: dict[str, int] = {}
    for k, one in enumerate(result["trials"]):
        if (digest := one["params_sha256"]) and (first := seen.setdefault(digest, k)) != k:
            same = f"trials {first} and {k} ({said(settings[k])}) are bit for bit"
            lines.append(f"{same} the same: what they differ in changes nothing in this run")
    for k, one in enumerate(result["trials"]):
        if one["collapsed"]:
            lines.append(f"trial {k} ({said(settings[k])}) collapsed: {one['collapsed']}")
    return [
        *lines,
        f"results: {workdir / 'result.json'}, and of each trial in {workdir / 'trials'}",
    ]
