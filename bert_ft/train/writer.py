"""What a run leaves behind while it runs: metrics.jsonl, log.txt, TensorBoard, W&B, a bar.

Only process 0 writes. Every process fetches the metrics, so that all of them see a loss that is
not finite at the same step and stop together.
"""

import contextlib
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.train.progress import Bar, Lines
from bert_ft.train.sinks import MetricsFile, Scalar, Sink, TensorBoard, WandB

# Speed shown is that of the last steps, so that it follows a machine whose load changes.
RATE_WINDOW_STEPS = 50
# What a run adds to while it lasts; under a gs:// workdir `flush` brings it there.
GROWING = ("metrics.jsonl", "log.txt", "tensorboard", "wandb_id.txt")
Waves = Sequence[tuple[Sequence[int], dict[str, Any]]]  # metrics of some trials, and which


@dataclasses.dataclass(frozen=True)
class _Pending:
    step: int
    metrics: Any  # a dict, or of trials [(which, dict), …]
    examples: int
    tokens: int
    live: np.ndarray | None = None  # of trials, those that have done this step …
    due: np.ndarray | None = None  # … and those of them for which it is to be recorded


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Totals when some step's metrics arrived, which is when the device had done it."""

    step: int
    examples: int
    tokens: int
    wall_s: float
    paused_s: float

    def rates_since(self, earlier: "_Mark") -> tuple[float, float]:
        """Examples/s and tokens/s of training alone."""
        spent = (self.wall_s - earlier.wall_s) - (self.paused_s - earlier.paused_s)
        if spent <= 0:
            return float("nan"), float("nan")
        return (self.examples - earlier.examples) / spent, (self.tokens - earlier.tokens) / spent


class Writer:
    """Records one run in `workdir`. `step` counts the steps done, so the first one is 1.

    A metric is a scalar, or an array [K] with one value a trial, written as K lines.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        start_step: int = 0,
        progress: bool = True,
        tensorboard: bool = False,
        wandb: str = "",
        active: bool = True,
        every_steps: int = 10,
        config: dict[str, Any] | None = None,
        said: Sequence[str] = (),
    ):
        """Opens the record and removes from it what a killed run wrote after its last checkpoint.

        Args:
          workdir: made if missing.
          total_steps: the last step of the run; recorded whatever `every_steps` is.
          start_step: the step of the restored checkpoint. Lines of later steps are removed; all
            lines are if it is 0, for then the run starts from the beginning.
          progress: show a bar, or a line now and then where standard error is no terminal.
          tensorboard: write event files under `workdir/tensorboard`.
          wandb: the Weights & Biases project; '' is off.
          active: False on every process but 0, which then writes nothing.
          every_steps: record training metrics at the multiples of it.
          config: the resolved config, for W&B.
          said: lines shown before there was a writer, to be kept in log.txt.

        Raises:
          InputError: workdir can't be written, or an extra that was asked for isn't installed.
        """
        self.metrics = workdir / "metrics.jsonl"
        self._workdir = workdir
        self._total_steps = total_steps
        self._every_steps = max(1, every_steps)
        self._active = active
        self._pending: _Pending | None = None
        self._marks: deque[_Mark] = deque(maxlen=RATE_WINDOW_STEPS + 1)
        self._first_mark: _Mark | None = None
        self._written_mark: _Mark | None = None
        self._totals = (0, 0)
        self._paused_s = 0.0
        self._progress: Bar | Lines | None = None
        self._sinks: list[Sink] = []
        if not active:
            return
        with _user_errors(workdir):
            paths.make(workdir)
            self._twin = paths.Twin(workdir, GROWING)
            workdir = self._twin.local
            self._metrics = MetricsFile(workdir / "metrics.jsonl", start_step)
            self._log = (workdir / "log.txt").open("a", encoding="utf-8")
            self._log.writelines(line + "\n" for line in said)
        if tensorboard:
            self._sinks.append(TensorBoard(workdir / "tensorboard", start_step))
        if wandb:
            self._sinks.append(WandB(wandb, workdir, config or {}))
        if progress:
            shown = Bar if sys.stderr.isatty() else Lines
            self._progress = shown(total_steps, start_step)

    def train(
        self, step: int, metrics: dict[str, jax.Array | float], *, examples: int, tokens: int
    ) -> dict[str, Any] | None:
        """Takes the metrics of a step just dispatched, and fetches those of the call before.

        Call it every step. The device is by then working on `step`, so it never waits for the
        host. Names without a '/' get the prefix 'train/'.

        Args:
          metrics: scalars or arrays [K]; in a run of several processes, replicated.
          examples: real examples in the step's global batch.
          tokens: real tokens in it.

        Returns:
          The metrics of the previous call, on the host as NumPy scalars or arrays, to be checked
          for a loss that is not finite; None on the first call and after `flush`.
        """
        done = self._fetch()
        self._pending = _Pending(step, metrics, examples, tokens)
        return done

    def trials(
        self,
        step: int,
        waves: Waves,
        *,
        live: np.ndarray,
        due: np.ndarray,
        examples: int,
        tokens: int,
    ) -> dict[str, Any] | None:
        """As `train`, for several trials: metrics of some of them at a time, scalars of one or
        arrays of as many as are named. `live` bool [K]: those that have done this step; the
        values of the others are NaN in what is returned, arrays [K]. `due` bool [K]: those of which
        it is recorded, since each counts its own steps."""
        done = self._fetch()
        self._pending = _Pending(step, waves, examples, tokens, live, due)
        return done

    def scalars(self, step: int, values: dict[str, Any], live: np.ndarray | None = None) -> None:
        """Records evaluation results, named like 'dev/accuracy', in the place of what there is for
        the same step and name. A value may be an array [K]; of it, what is `live` bool [K]."""
        self._write(step, _flatten(values, live))

    def say(self, text: str) -> None:
        """Prints a line to standard error without breaking the bar, and keeps it in log.txt."""
        if not self._active:
            return
        tqdm.write(text, file=sys.stderr)
        with _user_errors(self._workdir):
            self._log.write(text + "\n")
            self._log.flush()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside (an evaluation, a save) doesn't count towards examples/s; it does towards
        the time left."""
        if self._pending is not None:
            jax.block_until_ready(self._pending.metrics)
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused_s += time.monotonic() - began

    def flush(self) -> dict[str, Any] | None:
        """Records the step still pending, and makes everything safe on disk.

        Waits for the device. Call it before each checkpoint: a run killed after one goes on from
        its step, and would never write the metrics of that step again.

        Returns:
          The metrics that were pending, as `train` does, or None.
        """
        done = self._fetch()
        if self._active:
            with _user_errors(self._workdir):
                self._metrics.flush()
                for sink in self._sinks:
                    sink.flush()
                self._twin.send()
        return done

    def end_steps(self) -> None:
        """Ends the progress bar: what is said from here on stands below it."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def close(self) -> None:
        """Records the step still pending and closes everything. A second call does nothing."""
        try:
            self._fetch()
        finally:
            if self._active:
                self._active = False
                self._close_all()

    def _close_all(self) -> None:
        self.end_steps()
        with _user_errors(self._workdir):
            for sink in self._sinks:
                sink.close()
            self._metrics.close()
            self._log.close()
            self._twin.close()

    def _fetch(self) -> dict[str, Any] | None:
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        metrics = jax.device_get(pending.metrics)
        if pending.live is not None:
            metrics = _of_trials(metrics, pending.live)
        if self._active:
            self._record(pending, metrics)
        return metrics

    def _record(self, pending: _Pending, metrics: dict[str, Any]) -> None:
        self._totals = (self._totals[0] + pending.examples, self._totals[1] + pending.tokens)
        mark = _Mark(pending.step, *self._totals, time.monotonic(), self._paused_s)
        self._marks.append(mark)
        # The clock starts when the first step is done, so that no rate includes compilation.
        self._first_mark = self._first_mark or mark
        self._written_mark = self._written_mark or mark
        named = {f"train/{n}": value for n, value in metrics.items()}
        regular = pending.step % self._every_steps == 0 or pending.step == self._total_steps
        due = regular if pending.due is None else pending.due.any()
        values = _flatten(named, pending.due) if due else []
        if regular:
            if mark is not self._written_mark:
                examples_per_s, tokens_per_s = mark.rates_since(self._written_mark)
                values.append(("train/examples_per_s", None, examples_per_s))
                values.append(("train/tokens_per_s", None, tokens_per_s))
            self._written_mark = mark
        self._write(pending.step, values)
        if self._progress is not None:
            loss = float(np.nanmean(named.get("train/loss", np.nan)))
            self._progress.show(mark.step, f"loss {loss:.4f}{self._pace(mark)}")

    def _pace(self, mark: _Mark) -> str:
        first = self._first_mark
        if first is None or mark.step == first.step:
            return ""
        examples_per_s, _ = mark.rates_since(self._marks[0])
        left_s = (mark.wall_s - first.wall_s) / (mark.step - first.step)
        left_s *= self._total_steps - mark.step
        return f", {examples_per_s:.1f} examples/s, {tqdm.format_interval(left_s)} left"

    def _write(self, step: int, values: list[Scalar]) -> None:
        if not self._active or not values:
            return
        with _user_errors(self._workdir):
            self._metrics.write(step, values)
            for sink in self._sinks:
                sink.write(step, values)


def _of_trials(
    waves: list[tuple[Sequence[int], dict[str, Any]]], live: np.ndarray
) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for which, metrics in waves:
        for name, value in metrics.items():
            out.setdefault(name, np.full(len(live), np.nan))[list(which)] = value
    return {name: np.where(live, values, np.nan) for name, values in out.items()}


def _flatten(values: dict[str, Any], live: np.ndarray | None = None) -> list[Scalar]:
    scalars: list[Scalar] = []
    for name, value in values.items():
        host = np.asarray(value)
        if host.ndim == 0:
            scalars.append((name, None, float(host)))
        elif host.ndim == 1:
            scalars += [
                (name, trial, float(x))
                for trial, x in enumerate(host)
                if live is None or live[trial]
            ]
        else:
            raise ValueError(f"metric {name!r} has shape {host.shape}; a scalar or [trials] is due")
    return scalars


@contextlib.contextmanager
def _user_errors(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"workdir={str(workdir)!r} can't be written: {error}; free space or choose another"
        ) from error
