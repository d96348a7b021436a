"""Sharpness-aware minimization (Foret et al. 2021): the gradient at the worst point near by.

e = rho g / |g| (eq. 2 with p = 2), g being the gradient of the whole batch and |g| its L2 norm over
all that is trained; the optimizer is given the gradient at w + e (eq. 3, without its second-order
term, as in the paper's algorithm 1). Both passes have the same dropout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from bert_ft.methods.method import Method, Params, Whole


class Sam(Method):
    """Two passes a step. The metrics are those at w; `sharp_loss` is the loss at w + e."""

    name = "sam"

    def whole(self, gradient: Whole) -> Whole:
        rho = self.knobs.rho
        if rho == 0:
            return gradient

        def there(params: Params) -> tuple[dict[str, jax.Array], Params]:
            metrics, here = gradient(params)
            scale = rho / jnp.maximum(optax.global_norm(here), 1e-30)
            away = jax.tree.map(lambda p, g: p + scale * g, params, here)
            found, slope = gradient(away)
            return {**metrics, "sharp_loss": found["loss"]}, slope

        return there
