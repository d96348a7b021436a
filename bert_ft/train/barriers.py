"""Barriers, named and timed, and what all processes must agree on before they train together."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from bert_ft import paths
from bert_ft.errors import InputError, Stuck, first_line
from bert_ft.train import phases
from bert_ft.train.processes import Board, board, number, this_host

SHOWN = 6  # differences named in a message before "and n more"
# Where a file of a host is, and what it shows: these need not agree.
LOCAL = ("data.cache_dir", "data.prefetch", "compile.cache_dir", "log.", "watchdog.")
APPEARS_S = 30.0  # a network file system may show another machine's file late


def barrier(name: str) -> None:
    """Waits for all processes; nothing in a run of one. Raises Stuck, with the barrier's name and
    who is missing, after config.watchdog.barrier_s."""
    here = board()
    if here is None:
        return
    unique, began = f"{name}/{number()}", time.monotonic()
    with phases.within(phases.now().kind, f"barrier {name!r}"):
        here.post(f"at/{unique}", "")
        try:
            here.wait(unique)
        except jax.errors.JaxRuntimeError as e:
            late = sorted(set(range(here.processes)) - set(_read(here, f"at/{unique}")))
            who = ", ".join(map(here.name, late)) or first_line(e)
            raise Stuck(
                f"barrier {name!r}: after {time.monotonic() - began:.1f} s still without {who}"
            ) from e
        here.forget(f"at/{unique}")


def _read(here: Board, topic: str) -> dict[int, str]:
    with suppress(jax.errors.JaxRuntimeError):
        return here.read(topic)
    return {}


def share(name: str, value: Any) -> list[Any]:
    """The values (JSON) of all processes, by process; [value] in a run of one."""
    here = board()
    if here is None:
        return [value]
    topic = f"{name}/{number()}"
    here.post(topic, json.dumps(value))
    barrier(name)
    found = here.read(topic)
    here.forget(topic)
    return [json.loads(found[process]) for process in range(here.processes)]


def meet() -> None:
    """Learns where each process runs, for the messages that name one."""
    here = board()
    if here is not None:
        here.hosts = tuple(share("hosts", this_host()))


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Raises InputError, on all processes, with each value beside its host, where the processes
    have different values."""
    here = board()
    if here is None:
        return
    found = share(f"agreement on {what}", dict(values))
    keys = sorted({key for one in found for key in one})
    different = [key for key in keys if len({json.dumps(one.get(key)) for one in found}) > 1]
    if different:
        lines = [f"{key}: {_beside_hosts(here, [one.get(key) for one in found])}"
                 for key in different[:SHOWN]]  # fmt: skip
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise InputError(
            f"the processes of this run differ in {what}: {'; '.join(lines)}{more}; "
            "start all of them alike"
        )


def _beside_hosts(here: Board, values: list[Any]) -> str:
    who: dict[str, list[int]] = {}
    for process, value in enumerate(values):
        who.setdefault("absent" if value is None else json.dumps(value), []).append(process)
    return ", ".join(
        f"{value} on {', '.join(map(here.name, some[:3]))}"
        + (f" and {len(some) - 3} more" if len(some) > 3 else "")
        for value, some in who.items()
    )


def require_shared(workdir: Path) -> None:
    """Raises InputError, on all processes, where process 0 can't write the workdir, or where they
    do not see the same one: each then would keep checkpoints of its own, and go on from another
    step than the others."""
    here = board()
    if here is None:
        return
    probe = workdir / f".shared-{share('probe', uuid.uuid4().hex)[0]}"
    refused = _written(workdir, probe) if here.process == 0 else ""
    if refused := share("whether the workdir can be written", refused)[0]:
        raise InputError(refused)
    deadline = time.monotonic() + min(APPEARS_S, here.limit_s / 2)
    while not (seen := _seen(probe)) and time.monotonic() < deadline:
        time.sleep(0.5)
    all_seen = share("who sees the workdir", seen)
    if here.process == 0:
        with paths.reached(probe):
            probe.unlink(missing_ok=True)
    if not all(all_seen):
        blind = [here.name(process) for process, found in enumerate(all_seen) if not found]
        raise InputError(
            f"--workdir={workdir} is another directory on {', '.join(blind[:3])} than on "
            f"{here.name(0)}; give one that all machines share: a network file system, or gs://"
        )


def _written(workdir: Path, probe: Path) -> str:
    """Writes the probe; says why it can't, '' where it can."""
    try:
        paths.require_writable(workdir, "--workdir")
        with paths.reached(probe):
            probe.write_text("")
    except InputError as e:
        return str(e)
    return ""


def _seen(probe: Path) -> bool:
    with suppress(OSError), paths.reached(probe):  # a directory may be closed to this process
        return probe.exists()
    return False
