"""config.model.adapter: a run that starts from an adapter of the peft library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.method_checks import names
from bert_ft.models import hf, peft
from bert_ft.models.heads import kind_of
from bert_ft.train.system import System


def adapted(system: System, trained: Any, say: Callable[[str], None]) -> Any:
    """What is trained, with config.model.adapter's values. Raises InputError where that adapter is
    of another method, or form, than the config's."""
    at, m = system.config.model.adapter, system.config.methods
    model = hf.flatten(system.abstract_params)
    adapter = peft.read(paths.at(at), model, system.encoder, kind_of(system.model.head))
    wrong = [f"methods.use={adapter.use}"] if adapter.use not in names(system.config) else []
    for knob, value in adapter.knobs.items():
        if not wrong and m[adapter.use][knob] != value:
            wrong.append(f"methods.{adapter.use}.{knob}={value}")
    if wrong:
        flags = " ".join(f"--config.{flag}" for flag in wrong)
        raise InputError(f"config.model.adapter: {at} is of another form; give {flags}")
    flat = hf.flatten(trained)
    other = sorted(adapter.tensors.keys() - flat.keys())
    other += [p for p in flat if p not in adapter.tensors and p.startswith("encoder/")]
    if other:
        raise InputError(
            f"config.model.adapter: {at} and this run do not both have {', '.join(other[:3])}; "
            f"give the methods.{adapter.use}.targets and methods.also_train that it was made with"
        )
    for path, array in adapter.tensors.items():
        flat[path] = jax.device_put(array, flat[path].sharding)
    new = sorted(flat.keys() - adapter.tensors.keys())
    say(f"start: adapter {at}, a {adapter.use}; new: {', '.join(new) or '-'}")
    return hf.unflatten(flat)
