"""A model's parameters before any training: pretrained, and new where there are none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bert_ft.models import hf, positions
from bert_ft.models.multi import kinds_of
from bert_ft.models.shallow import chosen_layers, deepened, picked
from bert_ft.models.stored_heads import scale_of
from bert_ft.train.barriers import agree
from bert_ft.train.system import System, example_batch


def pretrained(
    system: System, wanted: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """`hf.load`; of it the layers that config.model.layers_from takes, and the table of positions
    stretched where config.model.positions asks for it."""
    assert system.pretrained is not None
    own, stretched = hf.read_config(system.pretrained), system.config.model.positions > 0
    layers = chosen_layers(system.config.model.layers_from, own.num_hidden_layers)
    stored = deepened(wanted, own.num_hidden_layers)
    if stretched:
        table = wanted[positions.TABLE]
        shape = (own.max_position_embeddings, table.shape[1])
        stored[positions.TABLE] = jax.ShapeDtypeStruct(shape, table.dtype)
    found, new = hf.load(
        system.pretrained,
        hf.unflatten(stored),
        kinds_of(system.model.head),
        hf.label_names(system.fitted),
        system.config.model.head == "new",
        say,
        scale_of(system.task, system.fitted),
    )
    found = picked(found, layers)
    if stretched:
        found[positions.TABLE] = positions.stretch(
            found[positions.TABLE], table.shape[0], own.position_offset
        )
        say(f"start: {own.positions:,} positions interpolated to {system.encoder.positions:,}")
    return found, new


def initial_params(system: System, say: Callable[[str], None]) -> Any:
    """Pretrained parameters where there are some, else (and for a new head) the initialisers'."""
    wanted = hf.flatten(system.abstract_params)
    found: dict[str, np.ndarray] = {}
    if system.pretrained and system.config.model.pretrained:
        found, new = pretrained(system, wanted, say)
        count = sum(v.size for v in found.values())
        say(
            f"start: {count:,} pretrained parameters from {system.config.model.pretrained}; "
            f"new: {', '.join(new) or '-'}"
        )
    else:
        count = sum(int(np.prod(w.shape)) for w in wanted.values())
        say(f"start: from scratch, {count:,} parameters")
    agree("the weights they start from", {"sha256": _digest(found)})
    missing = [path for path in wanted if path not in found]

    def initialise(key: jax.Array) -> dict[str, jax.Array]:
        made = hf.flatten(system.model.init(key, example_batch())["params"])
        return {path: made[path] for path in missing}

    places = {path: wanted[path].sharding for path in missing}
    made = jax.jit(initialise, out_shardings=places)(jax.random.key(system.config.train.seed))
    loaded = {
        path: jax.make_array_from_callback(a.shape, wanted[path].sharding, a.__getitem__)
        for path, a in found.items()
    }
    return hf.unflatten({**made, **loaded})


def _digest(found: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays on the host; '' in one process, which has nobody to differ from."""
    if jax.process_count() == 1:
        return ""
    digest = hashlib.sha256()
    for path, array in sorted(found.items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
