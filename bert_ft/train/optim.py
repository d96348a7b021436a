"""Schedule, decay mask, clipping: one optax chain."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bert_ft.models.hf import flatten

# LayerNorm, biases and learnt weights of losses, by their role in this code base, whatever their
# module is called.
UNDECAYED = re.compile(r"/(bias|scale|log_variance|task_weight)$")


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, …: linear warmup from 0, then linear or cosine decay to 0 at
    `steps`, or constant. The first step of a warmup of w steps has rate 1/w of the peak."""
    peak, warmup = config.train.learning_rate, int(round(config.train.warmup * steps))
    rest = max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[config.train.schedule]
    if not warmup:
        return after
    return optax.join_schedules([lambda i: peak * (i + 1) / warmup, after], [warmup])


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


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """g * min(1, limit / |g|) (Pascanu et al. 2013, algorithm 1). optax's own divides by the norm,
    and XLA then writes the quotient to memory instead of fusing it into both moments' updates."""

    def clip(gradient: optax.Updates, _: optax.Params | None) -> optax.Updates:
        norm = optax.global_norm(gradient)
        scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
        return jax.tree.map(lambda g: g * scale, gradient)

    return optax.stateless(clip)


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) behind a clip of the global norm."""
    t = config.train
    parts = [clip_by_global_norm(t.clip_norm)] if t.clip_norm else []
    parts += [
        optax.scale_by_adam(t.beta1, t.beta2, t.epsilon),
        optax.add_decayed_weights(t.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, steps)),
    ]
    return optax.chain(*parts)
