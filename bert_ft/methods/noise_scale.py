"""The gradient noise scale B = S / |G|^2 (McCandlish et al. 2018, eq. 2.9): about the batch size
up to which a larger one saves as many steps as it takes more examples. It changes nothing.

Estimates of S, the trace of the covariance of one example's gradient, and of |G|^2, the square of
the true gradient's norm, are unbiased (appendix A.1):

    |G|^2 = (N |g|^2 - n |g_n|^2) / (N - n)
    S = (|g_n|^2 - |g|^2) / (1 / n - 1 / N)

of the gradient g of the batch of N and those g_n of its micro-batches of n. Where micro-batches
hold different numbers, as of words, |g_n|^2 is their mean by number, which is unbiased with
n = N / their count. Each is averaged over steps before they are divided, for the mean of ratios is
not the ratio of means.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_ft.methods.method import Method, Params, Pass, Slope, Whole, Wrapped
from bert_ft.models.bert import Batch

_SQUARES, _PARTS = "gradient_squares", "micro_batches"  # both divided by N in the end
SIGNAL, NOISE = "gradient_signal", "gradient_noise"


class NoiseScale(Method):
    """Metrics: `gradient_signal` and `gradient_noise`, the estimates of |G|^2 and S of a step;
    `noise_scale`, the ratio of their exponential averages, in units of what the loss is a mean of
    (examples, or words). The averages are begun at 0, which their ratio does not see."""

    name = "noise_scale"
    wraps_update = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.accumulate = config.train.accumulate

    def gradient(self, slope: Pass, task: Any, model: Any) -> Pass:
        def measured(params: Params, batch: Batch, rng: jax.Array | None) -> Slope:
            found = slope(params, batch, rng)
            # n times the square of the mean's norm: (sum / n)^2 n.
            squares = _square(found.gradient) / jnp.maximum(found.count, 1e-30)
            own = {_SQUARES: squares, _PARTS: jnp.ones_like(squares)}
            return dataclasses.replace(found, extra={**found.extra, **own})

        return measured

    def whole(self, gradient: Whole) -> Whole:
        def measured(params: Params) -> tuple[dict[str, jax.Array], Params]:
            metrics, found = gradient(params)
            small, inverse = metrics.pop(_SQUARES), metrics.pop(_PARTS)  # inverse: 1 / n
            big, count = _square(found), self.accumulate
            # In units of N = count / inverse: (N |g|^2 - n |g_n|^2) / (N - n), n = N / count.
            signal = (count * big - small) / (count - 1)
            noise = (small - big) / (inverse * (1 - 1 / count))
            return {**metrics, SIGNAL: signal, NOISE: noise}, found

        return measured

    def update(
        self, inner: optax.GradientTransformation, steps: Any
    ) -> optax.GradientTransformation:
        def init(params: Params) -> Wrapped:
            return Wrapped(inner.init(params), (jnp.float32(0), jnp.float32(0)))

        def update(gradient: Params, state: Wrapped, params: Params) -> tuple[Params, Wrapped]:
            updates, wrapped = inner.update(gradient, state.inner, params)
            return updates, Wrapped(wrapped, state.own)

        return optax.GradientTransformation(init, update)  # type: ignore[arg-type]

    def observe(self, metrics: dict[str, jax.Array], own: Any) -> tuple[dict[str, jax.Array], Any]:
        d = self.knobs.decay
        signal, noise = (
            d * a + (1 - d) * metrics[k] for a, k in zip(own, (SIGNAL, NOISE), strict=True)
        )
        return {**metrics, "noise_scale": noise / signal}, (signal, noise)


def _square(gradient: Params) -> jax.Array:
    return jnp.square(optax.global_norm(gradient))
