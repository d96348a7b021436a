"""Train steps of made-up models on made-up full rows, as they run: for scripts that vary sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_ft import config
from bert_ft.data.batches import BatchPlan
from bert_ft.data.encode import Encoded
from bert_ft.models.attention import attend_on
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.tasks.classification import Classification
from bert_ft.train import fleet, optim
from bert_ft.train.cost import step_flops
from bert_ft.train.group import make_group, programs_of
from bert_ft.train.knobs import knobs_of
from bert_ft.train.sharding import make_mesh
from bert_ft.train.start import fresh_state
from bert_ft.train.step import TrainState, train_step
from bert_ft.train.system import System, example_batch

STEPS = 100


def data_of(lengths: np.ndarray, vocab: int) -> Encoded:
    """Random texts of these lengths."""
    total, count = int(np.sum(lengths)), len(lengths)
    return Encoded(
        tokens=np.random.default_rng(0).integers(1, vocab, total).astype(np.int32),
        types=np.zeros(total, np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row=np.arange(count, dtype=np.int64),
        truncated=np.zeros(count, bool),
        fields={"label": (np.arange(count) % 2).astype(np.int32)},
        token_fields={},
        pieces=1,
        fitted={"labels": ["0", "1"], "names": ["0", "1"]},
        source_rows=count,
    )


class Step:
    """A train step with dropout and AdamW."""

    def __init__(
        self,
        sizes: EncoderConfig,
        data: Encoded,
        batch: int,
        row_length: int,
        packed: bool = False,
        dtype: str = "float32",
        remat: str = "none",
        loop: str = "loop",
        attention: str = "auto",
        drops: bool = True,
        options: dict[str, Any] | None = None,  # of XLA's compiler
    ):
        c = config.default()
        attend = attend_on(attention, drops, jax.devices()[0])
        head, kind = functools.partial(SequenceHead, 2), jnp.dtype(dtype)
        self.model, self.task = Model(sizes, head, kind, remat, loop, attend), Classification(c)
        self.optimizer = optim.make_optimizer(c, STEPS)
        plan = BatchPlan(data, batch, 1, row_length, packed=packed, at_most=1)
        self.examples, self.batch = batch, {k: jnp.asarray(v) for k, v in plan.batch(0).items()}
        self.rows = plan.shape(0).rows
        run = functools.partial(
            train_step,
            model=self.model,
            task=self.task,
            optimizer=self.optimizer,
            schedule=optim.schedule(c, STEPS),
            rate=0.1,
            seed=0,
            accumulate=1,
        )
        self.jit = jax.jit(run, donate_argnums=0, compiler_options=options)
        self.compiled: Any = None

    def shapes(self) -> TrainState:
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), example_batch())["params"]
        moments = jax.eval_shape(self.optimizer.init, shapes)
        return TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, moments)

    @property
    def flops(self) -> int:
        """Model operations, padding included."""
        return step_flops(self.model, self.task, self.shapes().params, self.batch, 1)

    def compile(self) -> Any:
        self.compiled = self.compiled or self.jit.lower(self.shapes(), self.batch).compile()
        return self.compiled

    def temporaries(self) -> int:
        return self.compile().memory_analysis().temp_size_in_bytes

    def state(self) -> TrainState:
        """Parameters drawn where they stay: a host's draws for BERT-large take half a minute."""
        shapes, key = self.shapes(), jax.random.key(0)
        leaves, treedef = jax.tree.flatten(shapes.params)
        drawn = [
            0.02 * jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
            for number, leaf in enumerate(leaves)
        ]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.opt_state)
        return TrainState(jnp.int32(0), jax.tree.unflatten(treedef, drawn), zeros)

    def once(self, state: TrainState) -> TrainState:
        """A step, waited for; the state that is given is gone."""
        return jax.block_until_ready(self.compile()(state, self.batch))[0]

    def run(self) -> Callable[[], None]:
        """A call is a step on a state of its own."""
        held = [self.state()]

        def step() -> None:
            held[0] = self.once(held[0])

        return step


class Trials:
    """A float32 step of `count` trials as a run of them has it (train/group.py): each has its own
    state and its own batch, on a CPU one after the other, elsewhere stacked."""

    def __init__(
        self, sizes: EncoderConfig, data: Encoded, batch: int, row_length: int, count: int
    ):
        c = config.default()
        c.train.batch_size, c.train.steps, c.data.packing = batch, STEPS, "off"
        mesh, task = make_mesh(c), Classification(c)
        attend = attend_on("auto", True, mesh.devices.flat[0])
        model = Model(sizes, task.head(data.fitted), attend=attend)
        sets = {"train": data}
        system = System(
            c, mesh, task, None, model, sizes, sets, data.fitted, row_length, pretrained=None
        )
        settings = [{"train.seed": k} for k in range(count)]
        self.group = make_group(system, system.config, settings, list(range(count)))
        self.examples = batch * count

    @property
    def flops(self) -> int:
        system, batch = self.group.systems[0], self.group.plans[0].batch(0)
        one = step_flops(system.model, system.task, system.abstract_params, batch, 1)
        return len(self.group) * one

    def run(self) -> Callable[[], None]:
        """A call is a step of all, waited for."""
        group, system = self.group, self.group.systems[0]
        state = fresh_state(system, optim.make_optimizer(system.config, STEPS), lambda _: None)

        def begun(k: int) -> fleet.Trial:
            knobs = knobs_of(group.systems[k].config, STEPS, system.task)
            return fleet.make_trial(jax.tree.map(jnp.copy, state), knobs, system.mesh)

        waves = [fleet.stack(map(begun, wave), len(wave), system.mesh) for wave in group.waves]
        programs = programs_of(group, waves[0], alike=True)
        fetched = group.fetch(group.places("accuracy").seats(), 0)
        batches = [batch for batch in fetched if batch is not None]  # all are live at step 0
        programs.compile(waves[0], batches[0], beside=({},))

        def step() -> None:
            for w, batch in enumerate(batches):
                waves[w], _ = programs(waves[w], batch, {})
            jax.block_until_ready(waves)

        return step
