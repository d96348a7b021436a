"""Training of a small model, dropout on, on any mesh and from any step: for tests that change
devices, processes or both and compare what comes out."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from small import SIZES as SMALL
from small import config as small_config
from small import init, task, varied

from bert_ft.data.batches import BatchPlan
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.train import optim
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.sharding import make_mesh, place, replicated, row_shards, shardings
from bert_ft.train.step import Programs, TrainState, train_step

STEPS, EXAMPLES, ROW = 20, 16, 32
SIZES = dataclasses.replace(SMALL, vocab_size=84)  # an even number, for `tensor`


class Run:
    """One config on its mesh, compiled once. `devices`: of this many only; 0 is all there are."""

    def __init__(self, devices: int = 0, **overrides: Any):
        self.config: ConfigDict = small_config(train__learning_rate=1e-3, **overrides)
        c, m = self.config, self.config.mesh
        self.mesh = make_mesh(c, jax.devices()[:devices] if devices else ())
        self.layout = functools.partial(shardings, mesh=self.mesh, preset=m.preset, rules=m.rules)
        self.model = Model(
            SIZES,
            functools.partial(SequenceHead, 3),
            jnp.dtype("float32"),
            c.model.remat,
            c.model.layer_loop,
        )
        self.optimizer = optim.make_optimizer(c, STEPS)
        self.plan = BatchPlan(
            varied(60),
            EXAMPLES,
            STEPS,
            ROW,
            seed=1,
            accumulate=c.train.accumulate,
            multiple=row_shards(self.mesh),
            at_most=1,
        )
        self.programs: Programs | None = None

    def start(self) -> TrainState:
        """The state before the first step, the same numbers on any mesh."""
        params = init(self.model)
        params = jax.device_put(params, self.layout(params))
        moments = self.layout(jax.eval_shape(self.optimizer.init, params))
        opt_state = jax.jit(self.optimizer.init, out_shardings=moments)(params)
        step = jax.device_put(jnp.int32(0), replicated(self.mesh))
        return TrainState(step, params, opt_state)

    def restored(self, directory: Path, step: int) -> TrainState:
        """The checkpoint of a step, from whatever mesh it was saved on."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.start()
        )
        with checkpoints(directory) as saved:
            found = saved.restore(abstract, {}, step=step)
        assert found is not None and found[1] == step == int(found[0].step)
        return found[0]

    def train(
        self, state: TrainState, until: int = STEPS, save: Path | None = None
    ) -> tuple[TrainState, list[float]]:
        """(the state after `until` steps, the losses from the state's own step on); the state is
        saved under `save` where that is given."""
        accumulate, losses = self.config.train.accumulate, []
        for i in range(int(state.step), until):
            make = functools.partial(self.plan.batch, i)
            batch = place(make, self.plan.shape(i), self.mesh, accumulate)
            if self.programs is None:
                places = jax.tree.map(lambda x: x.sharding, state)
                out = (places, replicated(self.mesh))
                self.programs = Programs(self._step, out, donate=True)
                self.programs.compile(state, batch)
            state, metrics = self.programs(state, batch)
            losses.append(float(metrics["loss"]))
        if save:
            with checkpoints(save) as saved:
                saved.save(until, state, {})
        return state, losses

    def _step(self, state: TrainState, batch: Any) -> Any:
        return train_step(
            state,
            batch,
            model=self.model,
            task=task(),
            optimizer=self.optimizer,
            schedule=optim.schedule(self.config, STEPS),
            rate=0.1,
            seed=3,
            accumulate=self.config.train.accumulate,
        )


def checkpoints(directory: Path) -> Checkpoints:
    return Checkpoints(directory, keep=9, every_steps=0, every_seconds=0, say=print)
