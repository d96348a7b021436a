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
from bert_ft.train import optim
from bert_ft.train.cost import step_flops
from bert_ft.train.step import TrainState, train_step
from bert_ft.train.system import example_batch

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
    """A train step with dropout and AdamW. `trials`: of as many states at once (vmap)."""

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
        trials: int = 1,
    ):
        c = config.default()
        attend = attend_on(attention, drops, jax.devices()[0])
        head, kind = functools.partial(SequenceHead, 2), jnp.dtype(dtype)
        self.model, self.task = Model(sizes, head, kind, remat, loop, attend), Classification(c)
        self.optimizer, self.trials = optim.make_optimizer(c, STEPS), trials
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
        many = run if trials == 1 else jax.vmap(run, in_axes=(0, None))
        self.jit = jax.jit(many, donate_argnums=0)
        self.compiled: Any = None

    def shapes(self) -> TrainState:
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), example_batch())["params"]
        moments = jax.eval_shape(self.optimizer.init, shapes)
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, moments)
        lead = () if self.trials == 1 else (self.trials,)
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*lead, *s.shape), s.dtype), state)

    @property
    def flops(self) -> int:
        """Model operations, padding included, of all trials."""
        one = jax.eval_shape(self.model.init, jax.random.key(0), example_batch())["params"]
        return self.trials * step_flops(self.model, self.task, one, self.batch, 1)

    def compile(self) -> Any:
        self.compiled = self.compiled or self.jit.lower(self.shapes(), self.batch).compile()
        return self.compiled

    def temporaries(self) -> int:
        return self.compile().memory_analysis().temp_size_in_bytes

    def run(self) -> Callable[[], None]:
        """A call is a step, waited for."""
        program, rng = self.compile(), np.random.default_rng(0)

        def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            small = rng.normal(0, 0.02, leaf.shape) if leaf.dtype == jnp.float32 else None
            return (
                jnp.zeros(leaf.shape, leaf.dtype)
                if small is None
                else jnp.asarray(small, leaf.dtype)
            )

        shapes = self.shapes()
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.opt_state)
        state = TrainState(
            jnp.zeros(shapes.step.shape, jnp.int32), jax.tree.map(draw, shapes.params), zeros
        )
        held = [state]

        def step() -> None:
            held[0], metrics = program(held[0], self.batch)
            jax.block_until_ready((held[0], metrics))

        return step
