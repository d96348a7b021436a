"""Where the numbers of a run go: metrics.jsonl, TensorBoard event files, Weights & Biases."""

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.errors import InputError

Scalar = tuple[str, int | None, float]  # name, trial (None: the run has no trials), value


class Sink(Protocol):
    """Takes the scalars of a step."""

    def write(self, step: int, values: list[Scalar]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: an object a line, each (step, name, trial) once.

    `{"step": 12, "name": "train/loss", "value": 0.61, "time": 1.7e9}`, with "trial" where a run has
    several. JSON has no NaN and no infinity: such a value is null, and "not_finite" says which.
    """

    def __init__(self, path: Path, start_step: int):
        """Opens the file to append to; of the lines there, those up to `start_step` are kept, and
        none if it is 0. A torn line, which a killed run may leave at the end, is dropped."""
        self._path = path
        self._last_step = -1
        self._last_keys: set[tuple[str, int | None]] = set()
        if path.exists():
            self._keep(lambda line: 0 < start_step and line["step"] <= start_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: list[Scalar]) -> None:
        keys = {(name, trial) for name, trial, _ in values}
        if step < self._last_step or (step == self._last_step and keys & self._last_keys):
            self._file.close()
            self._keep(lambda line: line["step"] != step or _key(line) not in keys)
            self._file = self._path.open("a", encoding="utf-8")
        if step > self._last_step:
            self._last_step, self._last_keys = step, set()
        if step == self._last_step:
            self._last_keys |= keys
        now = round(time.time(), 3)
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            self._file.close()  # an evaluation beside this run has replaced the file
            self._file = self._path.open("a", encoding="utf-8")
        # One write for all, flushed: a killed process loses nothing and tears at most a line.
        self._file.write("".join(_line(step, *value, now) for value in values))
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _keep(self, wanted: Callable[[dict], bool]) -> None:
        there = self._path.read_bytes()
        kept = [line for line in _lines(there) if wanted(line)]
        self._last_step = max((line["step"] for line in kept), default=-1)
        self._last_keys = {_key(line) for line in kept if line["step"] == self._last_step}
        if len(kept) == there.count(b"\n") and there.endswith(b"\n"):
            return  # the file stays the one that a run which is under way appends to
        with paths.replacing(self._path) as fresh, fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that are torn."""
    return _lines(path.read_bytes())


def _lines(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and "value" in line:
            lines.append(line)
    return lines


class TensorBoard:
    """Event files by the `tensorboard` package itself; TensorFlow is not needed.

    With trials, each is a run of its own (`trial_0`, ...), so that they share their charts.
    """

    def __init__(self, folder: Path, start_step: int):
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._event, self._summary, self._open = event_pb2, summary_pb2, EventFileWriter
        self._folder = folder
        self._start_step = start_step
        self._files: dict[int | None, Any] = {}

    def write(self, step: int, values: list[Scalar]) -> None:
        by_trial: dict[int | None, list[Any]] = {}
        for name, trial, value in values:
            point = self._summary.Summary.Value(tag=name, simple_value=value)
            by_trial.setdefault(trial, []).append(point)
        for trial, points in by_trial.items():
            event = self._event.Event(
                step=step, wall_time=time.time(), summary=self._summary.Summary(value=points)
            )
            self._file(trial).add_event(event)

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _file(self, trial: int | None) -> Any:
        if trial not in self._files:
            folder = self._folder if trial is None else self._folder / f"trial_{trial}"
            resumed = folder.exists() and any(folder.glob("events.*"))
            file = self._files[trial] = self._open(str(folder))
            if resumed:
                # A START makes TensorBoard discard what the killed run wrote from this step on.
                start = self._event.SessionLog(status=self._event.SessionLog.START)
                purge_step = self._start_step + 1 if self._start_step else 0
                file.add_event(
                    self._event.Event(step=purge_step, wall_time=time.time(), session_log=start)
                )
        return self._files[trial]


class WandB:
    """A Weights & Biases run, continued under its own id when the training is.

    W&B can't take back points, so the steps between a checkpoint and the kill after it are there
    twice, with equal values. `WANDB_MODE=offline` keeps everything in the workdir.
    """

    def __init__(self, project: str, workdir: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        id_file = workdir / "wandb_id.txt"
        if not id_file.exists() or not id_file.read_text(encoding="utf-8").strip():
            id_file.write_text(os.urandom(4).hex(), encoding="utf-8")
        try:
            self._run = wandb.init(
                project=project,
                id=id_file.read_text(encoding="utf-8").strip(),
                name=workdir.resolve().name,
                dir=str(workdir),
                config=config,
                resume="allow",
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"log.wandb={project!r}: {reason}; run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        # W&B drops points of steps it has seen; an axis of our own takes them in any order.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: list[Scalar]) -> None:
        point = {_with_trial(name, trial): value for name, trial, value in values}
        self._run.log({**point, "step": step})

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


def _line(step: int, name: str, trial: int | None, value: float, now: float) -> str:
    finite = math.isfinite(value)
    line: dict[str, Any] = {"step": int(step), "name": name, "value": value if finite else None}
    if not finite:
        line["not_finite"] = str(value)
    if trial is not None:
        line["trial"] = trial
    return json.dumps({**line, "time": now}) + "\n"


def _key(line: dict[str, Any]) -> tuple[str, int | None]:
    return line["name"], line.get("trial")


def _with_trial(name: str, trial: int | None) -> str:
    return name if trial is None else f"{name}/trial_{trial}"


def require_installed(config: ConfigDict) -> None:
    """Raises InputError where a sink is asked for whose package is not installed."""
    for extra in ("tensorboard", "wandb"):
        if config.log[extra] and not importlib.util.find_spec(extra):
            raise _missing(extra)


def _missing(extra: str) -> InputError:
    return InputError(
        f"log.{extra} is on, but the package {extra!r} is not installed: "
        f"pip install 'bert_ft[{extra}]', or turn log.{extra} off"
    )
