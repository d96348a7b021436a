"""Schedule, decay mask, clipping, rates of parts of the model: one optax chain."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bert_ft.methods.method import Method
from bert_ft.methods.registry import make_methods
from bert_ft.models.hf import flatten
from bert_ft.train.knobs import Knobs, knobs_of

# LayerNorm, biases, a chain's among them, DoRA's norms and learnt weights of losses, by their role
# in this code base, whatever their module is called.
UNDECAYED = re.compile(r"/(bias|scale|crf_start|crf_end|lora_magnitude|log_variance|task_weight)$")


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
    """config.train.optimizer behind a clip of the global norm, then the rates of the model's parts,
    then what methods do with the update. `knobs` stand for the config's numbers and may be traced.
    """
    k, methods = knobs or knobs_of(config, steps), make_methods(config)
    optimizer = optax.chain(
        clip_by_global_norm(k.clip_norm),
        *directions(config, k),
        optax.scale_by_learning_rate(schedule(config, steps, k)),
        *([by_part(config)] if has_rates(config) else []),
    )
    for method in methods:
        optimizer = method.update(optimizer, k.steps)
    return optimizer


def directions(config: ConfigDict, k: Knobs) -> tuple[optax.GradientTransformation, ...]:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2), Lion (Chen et al. 2023, algorithm 2), LAMB
    (You et al. 2020, algorithm 2) or Adafactor (Shazeer & Stern 2018, algorithms 4 and 5), each
    with the decay of weights as in AdamW. Adafactor's step is not relative to the size of a
    parameter (their section 8), so that a learning rate means what it means to AdamW; a matrix is
    factored from 128 rows and columns on, as in the authors' code, and the update clipped at a root
    mean square of 1."""
    t = config.train
    adam = optax.scale_by_adam(t.beta1, t.beta2, t.epsilon)
    decay = optax.add_decayed_weights(k.weight_decay, mask=decayed)
    return {
        "adamw": (adam, decay),
        "lion": (optax.scale_by_lion(t.beta1, t.beta2), decay),
        "lamb": (adam, decay, optax.scale_by_trust_ratio()),
        "adafactor": (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decay),
    }[t.optimizer]


def has_rates(config: ConfigDict) -> bool:
    return any(type(method).rates is not Method.rates for method in make_methods(config))


def rates_of(config: ConfigDict, params: Any) -> dict[str, float]:
    """{path: factor of the learning rate} of all that is trained: the product of the methods'."""
    out = dict.fromkeys(flatten(params), 1.0)
    for method in make_methods(config):
        for path, factor in method.rates(list(out)).items():
            out[path] *= factor
    return out


def by_part(config: ConfigDict) -> optax.GradientTransformation:
    """The update of each parameter times its factor. It stands behind Adam, which divides by the
    size of what it is given: a factor of the gradient would do nothing."""

    def init(params: optax.Params) -> optax.EmptyState:
        rates_of(config, params)  # raises here, before a run has begun, what is wrong with them
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rates = rates_of(config, updates)

        def one(keys: Any, update: jax.Array) -> jax.Array:
            rate = rates["/".join(k.key for k in keys)]
            return update if rate == 1 else update * rate

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(init, update)


def rate_lines(rates: Mapping[str, float], peak: float) -> Iterator[str]:
    """The learning rate of each group of parameters, a line each, lowest first; for the log. A
    group is named by the shortest beginnings of paths under which all have its rate."""
    under: dict[str, set[float]] = defaultdict(set)
    for path, rate in rates.items():
        for beginning in _beginnings(path):
            under[beginning].add(rate)
    groups: dict[float, dict[str, None]] = defaultdict(dict)
    for path, rate in rates.items():
        groups[rate][next(b for b in _beginnings(path) if len(under[b]) == 1)] = None
    for rate, names in sorted(groups.items()):
        of = ", ".join(sorted(names))
        yield f"learning rate x {rate:.4g}, {rate * peak:.3g} at the peak: {of}"


def _beginnings(path: str) -> list[str]:
    """'top/a/bias' -> ['top', 'top/a', 'top/a/bias']."""
    names = path.split("/")
    return ["/".join(names[: n + 1]) for n in range(len(names))]
