"""`run(config, workdir)`: assemble, then the loop, in this order: evaluate, save, draw, step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import flat
from bert_ft.data.batches import BatchPlan
from bert_ft.data.prefetch import prefetch
from bert_ft.errors import EXIT_DONE, EXIT_PREEMPTED, InputError, Preempted
from bert_ft.evals.merit import beats, merit, undefined
from bert_ft.method_checks import check_steps
from bert_ft.train import footprint, optim, phases, preemption
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.finish import conclude, eval_programs, require_metric, score_set, tune
from bert_ft.train.gather import refuse_trials
from bert_ft.train.processes import tell
from bert_ft.train.record import (
    StepClock,
    keep_speed,
    old_costs,
    require_finite,
    speed,
    summary,
    write_json,
)
from bert_ft.train.sharding import place, replicated
from bert_ft.train.start import (
    abstract_state,
    checkpoints,
    frozen_digest,
    full,
    initial_state,
    meta,
    reported,
    saved_part,
    scored,
)
from bert_ft.train.step import CompileCount, Programs, TrainState, train_step
from bert_ft.train.system import System, assemble, save_model_files
from bert_ft.train.teacher import taught
from bert_ft.train.writer import Writer


def total_steps(config: ConfigDict, examples: float) -> int:
    """train.steps, or as many as train.epochs take; the next epoch fills the last batch."""
    t = config.train
    # 1.1 epochs of 100 examples in batches of 10 are 11.000000000000002 steps.
    return t.steps or math.ceil(round(t.epochs * examples / t.batch_size, 6))


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
        else data.order,
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
            weights=system.weights,
        )

    train.__name__ = "train_step"
    places = jax.tree.map(lambda x: x.sharding, state)
    return Programs(train, (places, replicated(system.mesh)), donate=True)


def run(config: ConfigDict, workdir: Path, started: float | None = None) -> int:
    """Trains, evaluates and reports; returns the exit code. `started`: time.monotonic() at which
    the process began. Raises InputError on the user's faults, NotFinite on a loss that is not."""
    started = time.monotonic() if started is None else started
    if jax.process_index() == 0:
        paths.require_writable(workdir, "--workdir")
    refuse_trials(workdir)
    say = Voice()
    with phases.within("input", "the preparation of data"):
        system = assemble(config, say)
    if "train" not in system.sets:
        raise InputError("config.data.train is ''; give a data URI")
    steps = total_steps(config, system.sets["train"].of_an_epoch)
    check_steps(config, steps)
    with phases.within("input", "what a teacher says"):
        system = taught(system, say)
    plan = batch_plan(system, steps)
    with checkpoints(config, workdir, say) as saved:
        with phases.within("restoring", "the start from a checkpoint or a model"):
            state, assessed = initial_state(system, optim.make_optimizer(config, steps), saved, say)
        first = int(state.step)
        if first < steps:
            require_metric(system, scored(system, state))
        if jax.process_index() == 0:
            write_json(workdir / "config.json", flat(config))
            # Of a finished run they have what was tuned on dev, until it is tuned anew.
            if first < steps or not (workdir / "model" / "task.json").is_file():
                save_model_files(system, workdir)
        with open_writer(config, workdir, steps, first, say) as writer:
            return _train(system, plan, state, assessed, saved, writer, workdir, started)


class Voice:
    """Says a line, which log.txt has as well, once there is one."""

    def __init__(self) -> None:
        self.lines: list[str] = []  # of before
        self.writer: Writer | None = None

    def __call__(self, line: str) -> None:
        if self.writer is not None:
            self.writer.say(line)
        else:
            self.lines.append(line)
            tell(line)


@contextmanager
def open_writer(
    config: ConfigDict, workdir: Path, steps: int, first: int, say: Voice
) -> Iterator[Writer]:
    """The record of a run of `steps` steps that goes on from `first`, which is known only once that
    is restored."""
    say.writer = writer = Writer(
        workdir,
        total_steps=steps,
        start_step=first,
        progress=config.log.progress,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        active=jax.process_index() == 0,
        every_steps=config.log.every_steps,
        config=flat(config),
        said=say.lines,
    )
    try:
        yield writer
    finally:
        say.writer = None
        writer.close()


def _train(
    system: System,
    plan: BatchPlan,
    state: TrainState,
    assessed: bool,
    saved: Checkpoints,
    writer: Writer,
    workdir: Path,
    started: float,
) -> int:
    config, mesh, steps = system.config, system.mesh, plan.steps
    first = int(state.step)
    programs, evaluators = train_programs(system, steps, state), eval_programs(system)
    has_dev = "dev" in system.sets
    metric = config.eval.metric or system.task.metric
    best = (saved.best() if config.eval.keep_best else None) or (-1, -math.inf)
    clock, frozen = StepClock(), frozen_digest(state.frozen)

    def fetch(step: int) -> dict[str, jax.Array]:
        return place(
            lambda rows: plan.batch(step, rows), plan.shape(step), mesh, config.train.accumulate
        )

    def due(step: int) -> bool:
        every = config.eval.every_steps
        return has_dev and every > 0 and step % every == 0

    def about(assessed: bool = True) -> dict[str, Any]:
        own = {"assessed": assessed, "seconds": phases.seconds(), "frozen": frozen}
        return {**meta(system), **own}

    def save(step: int, assessed: bool = True) -> None:
        with phases.within("steps", f"step {step - 1}"):  # it is waited for
            require_finite(writer.flush(), step, plan)
        with writer.paused(), phases.within("saving", f"the save of step {step}"):
            saved.save(step, saved_part(state), about(assessed))

    def preempted(step: int, assessed: bool = True) -> int:
        save(step, assessed)
        with phases.within("saving", f"the save of step {step}"):
            saved.wait()
        writer.say(f"preempted: saved at step {step} of {steps}; start me again to go on")
        return EXIT_PREEMPTED

    def assess(step: int) -> dict[str, float]:
        """Scores dev; under keep_best keeps the parameters that score higher than any before."""
        nonlocal best
        with phases.within("steps", f"step {step - 1}"):  # it is waited for
            jax.block_until_ready(state.params)
            require_finite(writer.flush(), step, plan)
        with writer.paused():
            scores = score_set(system, evaluators, scored(system, state), "dev")
        writer.scalars(step, {f"dev/{k}": v for k, v in scores.items()})
        value = merit(metric, scores[metric])
        if config.eval.keep_best and beats(value, best[1]):
            if value == -math.inf:
                writer.say(undefined(metric, step))
            best = step, value
            with phases.within("saving", f"the save of the best, step {step}"):
                saved.save_best(step, reported(system, state), about(), best[1])
        return scores

    def compile_others() -> None:
        """Those of other row counts, once a run has shown that it runs. A compilation can take
        longer than a preemption waits: it is left at once, and the first step done again."""
        phases.set_unsaved(False)
        with phases.within("compilation", "the compilation of the other row counts"):
            for rows in plan.counts:
                programs.compile(state, fetch(plan.first_step_of(rows)))
        phases.set_unsaved(True)

    batches = prefetch(fetch, range(first, steps), config.data.prefetch)
    with CompileCount("train_step") as compiles, closing(batches):
        if first < steps:
            with phases.within("compilation", "the compilation of the train step"):
                programs.compile(state, fetch(first))
            writer.say(summary(system, plan))
            writer.say("\n".join(footprint.lines(state, mesh, config)))
        phases.set_unsaved(True)
        for step in range(first, steps):
            if due(step) and (step > first or not assessed):
                try:
                    assess(step)
                except Preempted:
                    return preempted(step, assessed=False)
                clock.restart()
            if step > first and saved.due(step):
                save(step)
                clock.restart()
            if preemption.due():
                return preempted(step)
            with phases.within("input", f"the batch of step {step}"):
                batch = next(batches)
            with jax.transfer_guard("disallow"), phases.within("steps", f"step {step}"):
                state, metrics = programs(state, batch)
                done = writer.train(
                    step + 1, metrics, examples=config.train.batch_size, tokens=plan.tokens(step)
                )
            require_finite(done, step, plan)
            phases.stepped()
            if step == first:
                with phases.within("steps", f"step {step}, the first"):
                    jax.block_until_ready(metrics)
                clock.first_step_s = time.monotonic() - started
                compile_others()
            else:  # the first step was waited for above, so no wait would tell its time
                clock.tick()
        with phases.within("steps", f"step {steps - 1}"):
            require_finite(writer.flush(), steps, plan)
        writer.end_steps()
    if first < steps and compiles.count != len(plan.counts):
        raise AssertionError(
            f"{compiles.count} compilations of the train step, {len(plan.counts)} row counts"
        )
    if first < steps:
        keep_speed(workdir, speed(plan, first, compiles.count, clock))
    try:
        scores = {"dev": assess(steps)} if has_dev else {}
    except Preempted:
        return preempted(steps)
    if first < steps:
        save(steps)
    params, best_step = scored(system, state), steps
    if config.eval.keep_best:
        like = abstract_state(system, optim.make_optimizer(config, steps))
        with phases.within("saving", "the save of the best"):
            saved.wait()
        found = saved.restore_best(like.params, {})
        assert found is not None
        params, best_step = full(system, found[0], state.frozen, found[1]), found[1]
        if best_step != steps:
            scores["dev"] = score_set(system, evaluators, params, "dev")
    else:
        with phases.within("saving", f"the save of the reported step, {steps}"):
            kept, score = reported(system, state), scores.get("dev", {}).get(metric, 0.0)
            saved.save_best(steps, kept, about(), score)
    with phases.within("saving", f"the save of step {steps}"):
        saved.wait()
    phases.set_unsaved(False)  # what follows is done again by a start of the finished run
    costs = old_costs(workdir)
    system, scores = tune(system, params, scores, evaluators, workdir)
    conclude(system, params, best_step, scores, costs, evaluators, workdir, writer)
    return EXIT_DONE
