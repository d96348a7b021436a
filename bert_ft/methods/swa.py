"""Stochastic weight averaging (Izmailov et al. 2018, algorithm 1): the equal average of the
parameters after every `every` steps, from a share of the run's steps on. The average is scored,
kept and exported; training goes on from the last step's parameters.

a_n+1 = (n a_n + theta) / (n + 1), without the paper's cycles of the rate: train.schedule is
'constant' or decays as ever. Before the first of them the average is the last step's parameters.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_ft.methods.method import Method, Params, Wrapped


class Swa(Method):
    name = "swa"
    wraps_update = True

    def update(
        self, inner: optax.GradientTransformation, steps: Any
    ) -> optax.GradientTransformation:
        every, share = self.knobs.every, self.knobs.start

        def init(params: Params) -> Wrapped:
            # A copy: the step gives its memory away, and the two must not be one.
            average = jax.tree.map(jnp.array, params)
            return Wrapped(inner.init(params), (jnp.int32(0), jnp.int32(0), average))

        def update(gradient: Params, state: Wrapped, params: Params) -> tuple[Params, Wrapped]:
            updates, wrapped = inner.update(gradient, state.inner, params)
            done, number, average = state.own
            done += 1
            first = jnp.maximum(jnp.int32(jnp.round(share * steps)), 1)
            taken = (done >= first) & ((done - first) % every == 0)
            # The new ones' share: 1 up to the first that counts, then 1/2, 1/3, …; 0 between them.
            w = jnp.where(taken, 1 / (number + 1), jnp.where(done < first, 1.0, 0.0))
            average = jax.tree.map(
                lambda a, p, u: jnp.where(w == 1, p + u, a + w * (p + u - a)),
                average,
                params,
                updates,
            )
            return updates, Wrapped(wrapped, (done, number + taken, average))

        return optax.GradientTransformation(init, update)  # type: ignore[arg-type]

    def reported(self, params: Params, state: Wrapped | None) -> Params:
        assert state is not None
        return state.own[2]
