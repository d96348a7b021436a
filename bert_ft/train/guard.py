"""All that stands around a run: signals, the watchdog, the other processes, the wanted backend; and
how each way of coming out of it becomes an exit code that the other processes hear of."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from bert_ft.command_line import Place
from bert_ft.config import flat
from bert_ft.errors import EXIT_STUCK, KNOWN, InputError, Stuck, first_line, told
from bert_ft.train import barriers, phases, preemption, processes, watchdog
from bert_ft.train.backend import require_backend
from bert_ft.train.lock import locked
from bert_ft.train.record import versions
from bert_ft.train.sinks import require_installed

# What a collective or the coordination service says when the other side is gone.
GONE = ("gloo", "unavailable", "deadline_exceeded", "connection reset", "coordination", "aborted")


@contextmanager
def guarded(
    config: ConfigDict, workdir: Path, mode: str, place: Place | None, started: float
) -> Iterator[None]:
    """Around a run, of one process or of several. A run of several that ends otherwise than well
    ends its process here: the others are waiting, and Python's own way out would wait for them."""
    w = config.watchdog
    phases.begin(started)

    def stuck(why: str) -> None:
        watchdog.leave(why, workdir, _process(place), lambda: _post(EXIT_STUCK, why))

    def leave(code: int, line: str) -> None:
        if code not in (0, 2, 75, 77, 130):
            stuck(line)
        print(line, file=sys.stderr, flush=True)
        _post(code, line)
        os._exit(code)

    def lost() -> None:
        stuck(
            f"another process ended, or was silent for {w.silence_s:g} s (watchdog.silence_s), "
            f"while this one, {_process(place)}, was in {phases.failed()}"
        )

    with (
        closing(watchdog.Watchdog(config, stuck)),
        closing(preemption.listen(leave)) as stop,
    ):
        try:
            here = processes.join(place, w.join_s, w.silence_s, w.barrier_s, lost)
        except Stuck as error:
            stuck(str(error))
        stop.follow(here)
        try:
            _check(config, workdir, mode, place)
            alone = mode == "train" and (here is None or here.process == 0)
            with locked(workdir) if alone else nullcontext():
                yield
            barriers.barrier("the end")
            if here is not None:
                here.post("left", "0")
        except BaseException as error:
            if here is None:
                raise
            _end(error, here, stuck)
    if here is not None:
        processes.leave_together()


def _process(place: Place | None) -> int:
    here = processes.board()
    return here.process if here else place.process if place else 0


def _check(config: ConfigDict, workdir: Path, mode: str, place: Place | None) -> None:
    """What can be told before any data is read."""
    here = processes.board()
    if here is not None:
        if mode == "export":
            raise InputError(
                f"--mode=export works in one process, not {here.processes}; start one, without "
                "--coordinator, --num_processes and --process_id"
            )
        barriers.meet()
        asked: dict[str, Any] = {"--num_processes": here.processes, "--mode": mode}
        packages = {k: v for k, v in versions().items() if k != "python"}
        barriers.agree("versions", packages | asked)
        lasting = {k: v for k, v in flat(config).items() if not k.startswith(barriers.LOCAL)}
        barriers.agree("config", lasting)
    if mode == "preflight":  # it compiles for devices that are not here
        return
    devices = jax.devices()
    require_backend(config, devices[0])
    kinds = {"device count": jax.local_device_count(), "device": devices[0].device_kind}
    barriers.agree("devices", kinds)
    if mode == "train":
        require_installed(config)
        barriers.require_shared(workdir)


def _post(code: int, line: str) -> None:
    """Tells the others, unless that takes long: process 0 may be what is gone."""
    here = processes.board()
    if here is None:
        return

    def post() -> None:
        with suppress(jax.errors.JaxRuntimeError):
            here.post("left", f"{code} {line}")

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(2)


def _end(error: BaseException, here: processes.Board, stuck: Any) -> NoReturn:
    text = str(error).lower()
    if isinstance(error, Stuck):
        stuck(str(error))
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in GONE):
        stuck(f"another process is gone, in {phases.failed()}: {first_line(error)}")
    if isinstance(error, KNOWN):
        code, line = told(error), first_line(error)
    else:
        traceback.print_exception(error)
        code, line = 1, f"{type(error).__name__}: {first_line(error)}"
    _post(code, line)
    deadline = time.monotonic() + preemption.FAREWELL_S + 3
    while here.process == 0 and time.monotonic() < deadline:  # the board ends with its process
        with suppress(jax.errors.JaxRuntimeError):
            if len(here.read("left")) == here.processes:
                break
        time.sleep(0.1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
