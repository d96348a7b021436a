"""The exponential moving average of what is trained (Polyak & Juditsky 1992; the decay a step as in
Izmailov et al. 2018, section 3, is constant). The average is scored, kept and exported; training
goes on from the last step's parameters.

a_0 = theta_0, a_t = d_t a_t-1 + (1 - d_t) theta_t with d_t = min(decay, t / (9 + t)), 0.1 at the
first step, so that a short run is not an average of its beginning.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_ft.methods.method import Method, Params, Wrapped


class Ema(Method):
    name = "ema"
    wraps_update = True

    def update(
        self, inner: optax.GradientTransformation, steps: Any
    ) -> optax.GradientTransformation:
        decay = self.knobs.decay

        def init(params: Params) -> Wrapped:
            # A copy: the step gives its memory away, and the two must not be one.
            average = jax.tree.map(jnp.array, params)
            return Wrapped(inner.init(params), (jnp.int32(0), average))

        def update(gradient: Params, state: Wrapped, params: Params) -> tuple[Params, Wrapped]:
            updates, wrapped = inner.update(gradient, state.inner, params)
            step, average = state.own
            d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
            average = jax.tree.map(
                lambda a, p, u: d * a + (1 - d) * (p + u), average, params, updates
            )
            return updates, Wrapped(wrapped, (step + 1, average))

        return optax.GradientTransformation(init, update)  # type: ignore[arg-type]

    def reported(self, params: Params, state: Wrapped | None) -> Params:
        assert state is not None
        return params if self.knobs.decay == 0 else state.own[1]
