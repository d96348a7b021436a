"""Schedule, decay mask, clipping: one optax chain."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bert_ft.methods.registry import make_methods
from bert_ft.models.hf import flatten
from bert_ft.train.knobs import Knobs, knobs_of

# LayerNorm, biases, DoRA's norms and learnt weights of losses, by their role in this code base,
# whatever their module is called.
UNDECAYED = re.compile(r"/(bias|scale|lora_magnitude|log_variance|task_weight)$")


def schedule(config: ConfigDict, steps: int, knobs: Knobs | None = None) -> optax.Schedule:
    """Learning rate of step 0, 1, …: linear warmup from 0, then linear or cosine decay to 0 at
    `steps`, or constant. The first step of a warmup of w steps has rate 1/w of the peak. `knobs`
    stand for the config's numbers and may be traced."""
    k = knobs or knobs_of(config, steps)
    kind = config.train.schedule

    def rate(step: Any) -> jax.Array:
        i, rest = jnp.asarray(step, jnp.float32), jnp.maximum(k.steps - k.warmup, 1)
        gone = jnp.clip((i - k.warmup) / rest, 0.0, 1.0)
        left = {
            "linear": lambda: 1 - gone,
            "cosine": lambda: (1 + jnp.cos(jnp.pi * gone)) / 2,
            "constant": lambda: jnp.ones_like(gone),
        }[kind]()
        share = jnp.where(i < k.warmup, (i + 1) / jnp.maximum(k.warmup, 1), left)
        return k.learning_rate * share

    return rate


def decayed(params: Any) -> Any:
    """True for each parameter that weight decay applies to."""
    mask = {path: not UNDECAYED.search("/" + path) for path in flatten(params)}
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: mask["/".join(k.key for k in keys)], params
    )


def undecayed_paths(params: Any) -> list[str]:
    """Paths that weight decay does not apply to, with layers' numbers left out; for the log."""
    return sorted(
        {re.sub(r"layer_\d+", "layer_*", p) for p in flatten(params) if UNDECAYED.search("/" + p)}
    )


def clip_by_global_norm(limit: jax.Array | float) -> optax.GradientTransformation:
    """g * min(1, limit / |g|) (Pascanu et al. 2013, algorithm 1). optax's own divides by the norm,
    and XLA then writes the quotient to memory instead of fusing it into both moments' updates."""

    def clip(gradient: optax.Updates, _: optax.Params | None) -> optax.Updates:
        norm = optax.global_norm(gradient)
        scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
        return jax.tree.map(lambda g: g * scale, gradient)

    return optax.stateless(clip)


def make_optimizer(
    config: ConfigDict, steps: int, knobs: Knobs | None = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) behind a clip of the global norm. `knobs` stand for the
    config's numbers and may be traced."""
    t, k = config.train, knobs or knobs_of(config, steps)
    optimizer = optax.chain(
        clip_by_global_norm(k.clip_norm),
        optax.scale_by_adam(t.beta1, t.beta2, t.epsilon),
        optax.add_decayed_weights(k.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, steps, k)),
    )
    for method in make_methods(config):
        optimizer = method.update(optimizer)
    return optimizer
