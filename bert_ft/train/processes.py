"""The processes of a run: how they find each other, and the board on which they leave notes.

The board is the key-value store of jax.distributed's coordination service, which process 0 serves.
It works where a collective cannot: before the devices are known to agree, and from a thread of a
process whose main thread hangs in a step.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax

from bert_ft.command_line import Place
from bert_ft.errors import Stuck, first_line

SHUTDOWN_S = 60  # for the last words of processes that all have said they are done


@dataclasses.dataclass
class Board:
    """Notes of all processes. Keys are used once a run, so a note never changes."""

    client: Any
    process: int
    processes: int
    limit_s: float  # for a barrier, while all are alive
    hosts: tuple[str, ...] = ()
    _old: list[str] = dataclasses.field(default_factory=list)

    def post(self, topic: str, text: str) -> None:
        """This process's note on a topic. A second one is ignored."""
        try:
            self.client.key_value_set(f"bert_ft/{topic}/{self.process}", text)
        except jax.errors.JaxRuntimeError as e:
            if "ALREADY_EXISTS" not in str(e):
                raise

    def read(self, topic: str) -> dict[int, str]:
        """{process: its note}, of those who have posted one."""
        found = self.client.key_value_dir_get(f"bert_ft/{topic}/")
        return {int(key.rpartition("/")[2]): text for key, text in found}

    def forget(self, topic: str) -> None:
        """Takes this process's note away, when all have read it: once they meet again."""
        self._old.append(f"bert_ft/{topic}/{self.process}")
        if len(self._old) > 4:
            self.client.key_value_delete(self._old.pop(0))

    def wait(self, name: str) -> None:
        """Until all processes are here. Raises JaxRuntimeError after `limit_s` without them."""
        self.client.wait_at_barrier(f"bert_ft/{name}", max(1, int(self.limit_s * 1000)))

    def name(self, process: int) -> str:
        """Which process, and where it runs."""
        host = f" ({self.hosts[process]})" if self.hosts else ""
        return f"process {process}{host}"


_board: Board | None = None
_numbers = itertools.count()


def board() -> Board | None:
    """None in a run of one process."""
    return _board


def number() -> int:
    """A number that tells the uses of a name apart, the same on all processes."""
    return next(_numbers)


def join(
    place: Place | None, join_s: float, silence_s: float, limit_s: float, lost: Callable[[], None]
) -> Board | None:
    """Connects this process with the others: those of the command line, or of the TPU slice that
    this machine is part of. None, and no word to anybody, where it is alone. Raises Stuck where
    they have not all come after `join_s`.

    `lost()` is called, in a thread of its own, when a process has not been heard of for `silence_s`
    or process 0 is gone; it should end the process, for JAX's service would do it right after.
    """
    global _board
    if place is None and not _in_a_tpu_slice():
        return None
    from jax._src import distributed  # the public half has neither the client nor its callback

    connect = distributed._jax.get_distributed_runtime_client
    _on_terminate(lost)
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    # XLA's CPU backend has few threads: collectives of two programs in flight, each waiting for its
    # other side in another process, could hold all of them.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    where: dict[str, Any] = (
        {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
        if place
        else {}
    )
    try:
        # Without a callback the service's client aborts the process when another one is lost.
        distributed._jax.get_distributed_runtime_client = lambda *args, **options: connect(
            *args, **options, missed_heartbeat_callback=lambda status: lost()
        )
        with warnings.catch_warnings():
            jax.distributed.initialize(
                **where,
                initialization_timeout=max(1, int(join_s)),
                heartbeat_timeout_seconds=max(1, int(silence_s)),
                shutdown_timeout_seconds=SHUTDOWN_S,
            )
    except RuntimeError as e:  # of jaxlib, or of the conversion that its message fails in
        seen = f"{place.processes} processes at {place.coordinator}" if place else "the TPU slice"
        raise Stuck(
            f"not all of {seen} had come after {join_s:g} s (watchdog.join_s), and process 0 must "
            f"listen there: {first_line(e)}"
        ) from e
    finally:
        distributed._jax.get_distributed_runtime_client = connect
    state = distributed.global_state
    if state.num_processes == 1:
        return None
    _board = Board(state.client, state.process_id, state.num_processes, limit_s)
    return _board


def leave_together() -> None:
    """At the end of a run in which nothing went wrong: nobody shuts the service down early."""
    if _board is not None:
        jax.distributed.shutdown()


def this_host() -> str:
    return f"{socket.gethostname()}, pid {os.getpid()}"


def _in_a_tpu_slice() -> bool:
    """Whether JAX finds that this machine has TPUs and is one of several that share a run; it asks
    the environment, and the metadata server only of a machine with TPUs. One alone has nobody to
    meet, and may have no address at which JAX would find it (Kaggle's is 'local')."""
    from jax._src import cloud_tpu_init
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    wanted = jax.config.values["jax_platforms"] or "tpu"
    if not cloud_tpu_init.running_in_cloud_tpu_vm or "tpu" not in wanted.split(",")[0]:
        return False
    if GceTpuCluster.is_env_present():
        return GceTpuCluster.get_process_count() > 1
    if not GkeTpuCluster.is_env_present():
        return False
    # get_process_count would ask for the slices a metadata server that may not be there.
    slices = int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)
    return slices * len(GkeTpuCluster._get_worker_list_in_slice()) > 1


_kept: list[Any] = []  # what C++ points to


def _on_terminate(lost: Callable[[], None]) -> None:
    """`lost()` where C++ would abort. The service's client calls its callback with an absl::Status,
    for which jaxlib 0.10 has no conversion to Python: instead of the callback being called,
    std::bad_cast is thrown out of a thread, which is std::terminate."""
    if not sys.platform.startswith("linux"):
        return
    kind = ctypes.CFUNCTYPE(None)
    handler = kind(lost)
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
    except (OSError, AttributeError):  # another C++ library: the process then aborts, with 134
        return
    set_terminate.restype, set_terminate.argtypes = ctypes.c_void_p, [kind]
    set_terminate(handler)
    _kept.append(handler)


def tell(line: str) -> None:
    """On standard error, by process 0 alone."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
