"""The record of a run: result.json, the test set's predictions, the report, and the last words."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_ft import paths
from bert_ft.config import config_hash
from bert_ft.data.batches import BatchPlan
from bert_ft.errors import InputError, NotFinite
from bert_ft.method_checks import names
from bert_ft.train.optim import has_rates, rate_lines, rates_of, undecayed_paths
from bert_ft.train.system import System

PACKAGES = (
    "bert_ft",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
)
SPEED = (
    *("examples_per_s", "tokens_per_s", "real_token_fraction", "step_ms_p50", "compiles"),
    *("row_counts", "seconds_to_first_step"),
)
UNTIL_THEN = "speed.json"  # 'speed' until result.json is there


class StepClock:
    """Times of train steps, on the host, where each tick waits for the step before it."""

    def __init__(self) -> None:
        self.first_step_s: float | None = None
        self.seconds: list[float] = []
        self._last: float | None = None

    def tick(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now

    def restart(self) -> None:
        """After an evaluation or a save, whose time is no step's."""
        self._last = None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a disk that is full, or may not be written, the user's error."""
    try:
        yield
    except OSError as e:
        raise InputError(
            f"{e.filename or path}: can't be written: {e.strerror or e}; make room or "
            "choose another"
        ) from e


def write_text(path: Path, text: str) -> None:
    """A UTF-8 file, whole or not at all. Raises InputError where it can't be written."""
    with writing(path):
        paths.write_whole(path, text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines. What JSON has no form for, such as a timestamp of a Parquet file, is its text; a
    number that is none, such as an empty cell's NaN there, is null."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    def defined(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: defined(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [defined(v) for v in value]
        number = isinstance(value, (float, np.floating))
        return None if number and not np.isfinite(value) else value

    lines = (json.dumps(defined(o), ensure_ascii=False, default=plain) + "\n" for o in objects)
    write_text(path, "".join(lines))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on a result."""
    out = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = ""
    return out


def git_commit() -> str:
    """The commit of the code that runs, '+' where files differ from it; '' outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if commit and git("status", "--porcelain", "--", str(here)) else "")
    except OSError:
        return ""


def finite(metrics: Mapping[str, Any]) -> np.ndarray:
    """bool (), or (trials,): whether the loss of a step is finite, and its gradient: if not, the
    parameters after it are lost, though the loss tells only in the next step."""
    return np.isfinite(metrics["loss"]) & np.isfinite(metrics["gradient_norm"])


def require_finite(metrics: Mapping[str, Any] | None, step: int, plan: BatchPlan) -> None:
    """Raises NotFinite, with its batch's source rows, for the metrics of the step before `step`."""
    if metrics is not None and not finite(metrics).all():
        rows = [int(r) for r in np.asarray(plan.data.row[plan.examples(step - 1)])]
        raise NotFinite(step, rows, "gradient" if np.isfinite(metrics["loss"]).all() else "loss")


def trained_shapes(system: System) -> Any:
    """The tree of shapes of what is trained."""
    return jax.eval_shape(lambda p: system.weights.begin(p, 0)[0], system.abstract_params)


def sizes_of(system: System) -> tuple[int, int]:
    """(parameters that the model is given, those that are trained)."""
    begun = jax.eval_shape(lambda p: system.weights.begin(p, 0), system.abstract_params)
    trained, frozen = (sum(int(np.prod(x.shape)) for x in jax.tree.leaves(t)) for t in begun)
    return trained + frozen, trained


def summary(system: System, plan: BatchPlan) -> str:
    """What is about to run, before the first step."""
    total, trainable = sizes_of(system)
    share = f", of which {trainable:,} are trained" if trainable != total else ""
    used, trained = names(system.config), trained_shapes(system)
    rates = rates_of(system.config, trained) if has_rates(system.config) else {}
    mesh = ", ".join(f"{a} {n}" for a, n in system.mesh.shape.items())
    device, preset = system.mesh.devices.flat[0], system.config.mesh.preset
    return "\n".join(
        (
            f"mesh: {mesh} on {device.platform} ({device.device_kind}), preset {preset}",
            f"model: {total:,} parameters{share}, {system.model.dtype} matmuls",
            *([f"methods, each around those before it: {', '.join(used)}"] if used else []),
            f"no weight decay on: {', '.join(undecayed_paths(trained))}",
            *rate_lines(rates, system.config.train.learning_rate),
            f"batches: {plan.steps:,} steps of {plan.batch_size} examples in rows of "
            f"{plan.row_length} tokens; row counts {', '.join(map(str, plan.counts))}, "
            "a compiled step each",
        )
    )


def speed(plan: BatchPlan, first: int, compiles: int, clock: StepClock) -> dict[str, Any]:
    """The 'speed' object of result.json; times exclude evaluations and saves."""
    steps = range(first, plan.steps)
    places = sum(plan.shape(s).rows for s in steps) * plan.row_length * plan.accumulate
    real = sum(plan.tokens(s) for s in steps)
    timed = len(clock.seconds) > 0  # the first two steps of a start are not
    mean, median = (float(f(clock.seconds)) if timed else 1.0 for f in (np.mean, np.median))
    per_step = real / max(len(steps), 1)
    return {
        "examples_per_s": round(plan.batch_size / mean, 2) if timed else None,
        "tokens_per_s": round(per_step / mean, 1) if timed else None,
        "real_token_fraction": round(real / max(places, 1), 4),
        "step_ms_p50": round(median * 1e3, 2) if timed else None,
        "compiles": compiles,
        "row_counts": list(plan.counts),
        "seconds_to_first_step": round(clock.first_step_s or 0.0, 2),
    }


def keep_speed(workdir: Path, found: Mapping[str, Any]) -> None:
    """Until result.json has it, for a start that has no step to do: the last evaluation may be
    interrupted."""
    if jax.process_index() == 0:
        write_json(workdir / UNTIL_THEN, found)


def old_costs(workdir: Path) -> dict[str, Any]:
    """'speed' of the start that did the last steps, and 'goodput' where that has ended; nulls where
    there was none."""
    kept, path = workdir / UNTIL_THEN, workdir / "result.json"
    if kept.is_file():
        return {"speed": json.loads(kept.read_text())}
    found = json.loads(path.read_text()) if path.is_file() else {}
    old = {"speed": found.get("speed") or dict.fromkeys(SPEED)}
    return old | {k: v for k, v in found.items() if k == "goodput" and v is not None}


def result(
    system: System,
    step: int,
    scores: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, int],
    params_sha256: str,
    data: str,
    costs: Mapping[str, Any],
) -> dict[str, Any]:
    """The object of result.json. `scores`: {'test': {'accuracy': 0.83}}; `sizes`: of 'test' its
    rows, of 'test/mrr' what that is a mean over where it isn't rows; `costs`: {'speed': …,
    'goodput': …}, and of an evaluation with other keys than the training's {'scored_with': …}."""
    total, trainable = sizes_of(system)
    return {
        "config_hash": config_hash(system.config),
        "git_commit": git_commit(),
        "versions": versions(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": data,
        "seeds": [system.config.train.seed],
        "steps": step,
        "metric": system.config.eval.metric or system.task.metric,
        "eval": {
            f"{name}/{metric}": {
                "mean": v,
                "std": 0.0,
                "per_trial": [v],
                "n_examples": sizes.get(f"{name}/{metric}", sizes[name]),
            }
            for name, values in scores.items()
            # JSON has no NaN: an undefined score, such as the correlation of a constant, is null.
            for metric, v in ((m, v if np.isfinite(v) else None) for m, v in values.items())
        },
        "params_sha256": params_sha256,
        **costs,
        "params": {"total": total, "trainable": trainable},
    }
