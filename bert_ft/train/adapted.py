"""config.model.adapter: a run that starts from an adapter of the peft library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.method_checks import names
from bert_ft.models import hf, peft
from bert_ft.models.heads import kind_of
from bert_ft.models.stored_heads import scale_of
from bert_ft.train.meaning import ANSWERS, UNSAID, WHICH, in_unit, require_same, told
from bert_ft.train.system import System


def adapted(system: System, trained: Any, digest: str, say: Callable[[str], None]) -> Any:
    """What is trained, with config.model.adapter's values, but for those of a head where
    config.model.head is 'new'. `digest`: of what it stands beside. Raises InputError where that
    adapter is of another method, form or base than the config's, or its outputs mean other things
    than this run's."""
    at, m = system.config.model.adapter, system.config.methods
    model, head = hf.flatten(system.abstract_params), system.config.model.head != "new"
    adapter = peft.read(paths.at(at), model, system.encoder, kind_of(system.model.head), head)
    wrong = [f"methods.use={adapter.use}"] if adapter.use not in names(system.config) else []
    for knob, value in adapter.knobs.items():
        if knob != "dropout" and m[adapter.use][knob] != value:  # which is of training alone
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
    for path, array in _in_own_unit(system, adapter, digest, say).items():
        flat[path] = jax.device_put(array, flat[path].sharding)
    new = sorted(flat.keys() - adapter.tensors.keys())
    say(f"start: adapter {at}, a {adapter.use}; new: {', '.join(new) or '-'}")
    return hf.unflatten(flat)


def _in_own_unit(
    system: System, adapter: peft.Adapter, digest: str, say: Callable[[str], None]
) -> Mapping[str, Any]:
    """The adapter's tensors as this run has them, once it is known to mean the same."""
    at = system.config.model.adapter
    about, where = told(paths.at(at)), f"config.model.adapter: {at}"
    if about.get("base_sha256", digest) != digest:
        raise InputError(
            f"{where} was trained beside another base than this run's; accepted: its own, as "
            "config.model.pretrained"
        )
    if not any(path.startswith("top/") for path in adapter.tensors):
        return adapter.tensors
    if "fitted" not in about:
        say(f"note: {at} {UNSAID}")
        return adapter.tensors
    fitted, instead = about["fitted"], ", or config.model.head=new, which leaves its head out"
    require_same(system, about["config"]["task.name"], fitted, where, (*WHICH, *ANSWERS), instead)
    return in_unit(adapter.tensors, about, scale_of(system.task, system.fitted))
