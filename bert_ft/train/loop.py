"""`run(config, workdir)`: assemble, then the loop, in this order: evaluate, save, draw, step."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import flat
from bert_ft.data.batches import BatchPlan, prefetch
from bert_ft.errors import EXIT_DONE, EXIT_PREEMPTED, InputError
from bert_ft.evals.metrics import lower_is_better
from bert_ft.train import footprint, optim
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.finish import conclude, eval_programs, require_metric, score_set, tune
from bert_ft.train.record import StepClock, old_speed, require_finite, speed, summary, write_json
from bert_ft.train.sharding import place, replicated
from bert_ft.train.start import checkpoints, initial_state, meta
from bert_ft.train.step import CompileCount, Programs, TrainState, train_step
from bert_ft.train.system import System, assemble, save_model_files
from bert_ft.train.writer import Writer


def total_steps(config: ConfigDict, examples: int) -> int:
    """train.steps, or as many as train.epochs take; the next epoch fills the last batch."""
    return config.train.steps or math.ceil(config.train.epochs * examples / config.train.batch_size)


def batch_plan(system: System, steps: int) -> BatchPlan:
    t, data = system.config.train, system.sets["train"]
    return BatchPlan(
        data,
        t.batch_size,
        steps,
        system.row_length,
        seed=t.seed,
        packed=system.config.data.packing == "on",
        accumulate=t.accumulate,
        multiple=system.shards,
        at_most=system.config.data.row_counts,
        mixture=system.task.mixture(data, t.batch_size)
        if hasattr(system.task, "mixture")
        else None,
        draw=getattr(system.task, "draw", None),
    )


def train_programs(system: System, steps: int, state: TrainState) -> Programs:
    t = system.config.train
    schedule = optim.schedule(system.config, steps)
    optimizer = optim.make_optimizer(system.config, steps)

    def train(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        return train_step(
            state,
            batch,
            model=system.model,
            task=system.task,
            optimizer=optimizer,
            schedule=schedule,
            rate=system.config.model.dropout,
            seed=t.seed,
            accumulate=t.accumulate,
        )

    train.__name__ = "train_step"
    places = jax.tree.map(lambda x: x.sharding, state)
    return Programs(train, (places, replicated(system.mesh)), donate=True)


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come: the loop then saves and leaves with 75."""
    seen: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    except ValueError:  # not the main thread: somebody else's signals
        yield lambda: False
        return
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGTERM, before)


def run(config: ConfigDict, workdir: Path, started: float | None = None) -> int:
    """Trains, evaluates and reports; returns the exit code. `started`: time.monotonic() at which
    the process began. Raises InputError on the user's faults, NotFinite on a loss that is not."""
    started = time.monotonic() if started is None else started
    paths.require_writable(workdir, "--workdir")
    lines: list[str] = []

    def say(line: str) -> None:
        """Before there is a writer, whose record begins at the step that is restored below."""
        lines.append(line)
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)

    system = assemble(config, say)
    if "train" not in system.sets:
        raise InputError("config.data.train is ''; give a data URI")
    steps = total_steps(config, len(system.sets["train"]))
    plan = batch_plan(system, steps)
    with checkpoints(config, workdir, say) as saved, _told_to_stop() as stop:
        state = initial_state(system, optim.make_optimizer(config, steps), saved, say)
        first = int(state.step)
        if first < steps:
            require_metric(system, state.params)
        if jax.process_index() == 0:
            write_json(workdir / "config.json", flat(config))
            save_model_files(system, workdir)
        writer = Writer(
            workdir,
            total_steps=steps,
            start_step=first,
            progress=config.log.progress,
            tensorboard=config.log.tensorboard,
            wandb=config.log.wandb,
            active=jax.process_index() == 0,
            every_steps=config.log.every_steps,
            config=flat(config),
            said=lines,
        )
        try:
            return _train(system, plan, state, saved, writer, workdir, started, stop)
        finally:
            writer.close()


def _train(
    system: System,
    plan: BatchPlan,
    state: TrainState,
    saved: Checkpoints,
    writer: Writer,
    workdir: Path,
    started: float,
    stop: Callable[[], bool],
) -> int:
    config, mesh, steps = system.config, system.mesh, plan.steps
    first = int(state.step)
    programs, evaluators = train_programs(system, steps, state), eval_programs(system)
    has_dev = "dev" in system.sets
    metric = config.eval.metric or system.task.metric
    sign = -1 if lower_is_better(metric) else 1
    best = (saved.best() if config.eval.keep_best else None) or (-1, -math.inf)
    clock = StepClock()

    def fetch(step: int) -> dict[str, jax.Array]:
        return place(
            lambda rows: plan.batch(step, rows), plan.shape(step), mesh, config.train.accumulate
        )

    def save(step: int) -> None:
        require_finite(writer.flush(), step, plan)
        with writer.paused():
            saved.save(step, state, meta(system))

    def assess(step: int) -> dict[str, float]:
        """Scores dev; under keep_best keeps the parameters that score higher than any before."""
        nonlocal best
        with writer.paused():
            scores = score_set(system, evaluators, state.params, "dev")
        writer.scalars(step, {f"dev/{k}": v for k, v in scores.items()})
        # An undefined score, such as the correlation of a constant, is worse than any other.
        value = -math.inf if math.isnan(scores[metric]) else sign * scores[metric]
        if config.eval.keep_best and (best[0] < 0 or value > best[1]):
            best = step, value
            saved.save_best(step, state.params, meta(system), best[1])
        return scores

    batches = prefetch(fetch, range(first, steps), config.data.prefetch)
    with CompileCount("train_step") as compiles, closing(batches):
        if first < steps:
            programs.compile(state, fetch(first))
            writer.say(summary(system, plan))
            writer.say("\n".join(footprint.lines(state, mesh, config)))
        for step in range(first, steps):
            if step > first:
                if has_dev and config.eval.every_steps and step % config.eval.every_steps == 0:
                    assess(step)
                    clock.restart()
                if saved.due(step):
                    save(step)
                    clock.restart()
            if stop() or saved.preempted(step):
                save(step)
                saved.wait()
                writer.say(f"preempted: saved at step {step} of {steps}; start me again to go on")
                return EXIT_PREEMPTED
            with jax.transfer_guard("disallow"):
                state, metrics = programs(state, next(batches))
                done = writer.train(
                    step + 1, metrics, examples=config.train.batch_size, tokens=plan.tokens(step)
                )
            require_finite(done, step, plan)
            if step == first:
                jax.block_until_ready(metrics)
                clock.first_step_s = time.monotonic() - started
                for rows in plan.counts:  # the others: a run shows at once that it runs
                    programs.compile(state, fetch(plan.first_step_of(rows)))
            else:  # the first step was waited for above, so no wait would tell its time
                clock.tick()
        require_finite(writer.flush(), steps, plan)
        writer.end_steps()
    if first < steps and compiles.count != len(plan.counts):
        raise AssertionError(
            f"{compiles.count} compilations of the train step, {len(plan.counts)} row counts"
        )
    scores = {"dev": assess(steps)} if has_dev else {}
    if first < steps:
        save(steps)
    params, reported = state.params, steps
    if config.eval.keep_best:
        found = saved.restore_best(system.abstract_params, {})
        assert found is not None
        params, reported = found[0], found[1]
        if reported != steps:
            scores["dev"] = score_set(system, evaluators, params, "dev")
    else:
        saved.save_best(steps, params, meta(system), scores.get("dev", {}).get(metric, 0.0))
    saved.wait()
    speeds = speed(plan, first, compiles.count, clock) if first < steps else old_speed(workdir)
    system, scores = tune(system, params, scores, evaluators, workdir)
    conclude(system, params, reported, scores, speeds, evaluators, workdir, writer)
    return EXIT_DONE
