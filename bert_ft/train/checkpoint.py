"""Checkpoints: asynchronous, atomic, checked when read. The only file that imports Orbax.

A checkpoint is a directory `<step>` with two items: `state`, the leaves by path, and `meta`, JSON:
what the caller gave, and dtype, shape and checksum of every leaf. Orbax writes it under a
temporary name and renames it, so that a killed run leaves whole checkpoints only; the checksums
find what happens to the files afterwards.
"""

import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from bert_ft.errors import InputError
from bert_ft.train.checksum import checksums, describe, flatten
from bert_ft.train.refuse import check_leaves, check_meta, few

PyTree = Any
T = TypeVar("T")

# A broadcast waits for the step in flight, so several processes look at the clock this rarely.
CLOCK_EVERY_STEPS = 10


class Checkpoints:
    """The checkpoints of a run, and beside them in `best/` the parameters of its best score.

    Every process of a run makes one and calls the same methods in the same order. Use it as a
    context manager, or call `close`.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int,
        every_steps: int,
        every_seconds: float,
        say: Callable[[str], None],
        ignore: frozenset[str] = frozenset(),
        read_only: bool = False,
    ):
        """Makes `directory` (local or gs://) and removes what a killed save left in it.

        Args:
          keep: how many of the newest checkpoints stay.
          every_steps, every_seconds: when `due` says so; 0 turns the rule off.
          say: takes one line for the user.
          ignore: prefixes of meta keys that may differ on restore, such as `log.`.
          read_only: restore only; nothing is made or removed. For another run's directory.

        Raises InputError where the directory cannot be written.
        """
        _quiet_orbax()
        directory = epath.Path(directory)
        if not directory.as_uri().startswith("gs:"):
            directory = epath.Path(directory.absolute())
        self._main = _Store(directory, keep, say, ignore)
        self._best = _Store(directory.parent / "best", 1, say, ignore)
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._saved_at = time.monotonic()
        if not read_only:
            _check_writable(directory)
            self._main.open()

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps. All processes get the same answer.

        The clock is process 0's. With several processes it is read every CLOCK_EVERY_STEPS steps.
        """
        if self._every_steps and step and step % self._every_steps == 0:
            return True
        if not self._every_seconds:
            return False
        late = time.monotonic() - self._saved_at >= self._every_seconds
        if jax.process_count() == 1:
            return late
        if step % CLOCK_EVERY_STEPS:
            return False
        with jax.transfer_guard("allow"):
            return bool(multihost_utils.broadcast_one_to_all(np.array(late)))

    def preempted(self, step: int) -> bool:
        """Whether the machine is being taken away and `step` is where all processes save.

        Only under `jax.distributed`, whose coordinator agrees on the step; False without it.
        """
        return ocp.utils.reached_preemption(step)

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Starts to save `state`, a pytree of jax.Arrays, and `meta`, which must fit in JSON.

        Waits for the save before it, then for the copy of `state` to the host; writing goes on in
        the background. The caller may donate `state` at once. A step already saved is left as it
        is. A save that fails is reported through `say` by the next save, or raised by `wait`.
        """
        self._saved_at = time.monotonic()
        self._main.save(step, state, meta)

    def restore(
        self, abstract_state: PyTree, meta: Mapping[str, Any], *, step: int | None = None
    ) -> tuple[PyTree, int, dict[str, Any]] | None:
        """The newest good checkpoint, or `step`: (state, step, stored meta); None if there is none.

        Args:
          abstract_state: jax.ShapeDtypeStructs with `.sharding`, of any mesh.
          meta: what must equal the stored meta, keys under `ignore` excepted; keys that are not
            given here are not compared, so `{}` compares nothing.

        Raises InputError where the checkpoint was written with another config, data set or
        architecture, or where none can be read. A damaged one is said and the one before is used;
        the next save removes it.
        """
        return self._main.restore(abstract_state, meta, step)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints on disk, ascending."""
        return self._main.steps()

    def save_best(self, step: int, state: PyTree, meta: Mapping[str, Any], score: float) -> None:
        """As `save`, into `best/`, replacing the one there once this one is complete.

        Whether `score` is the better is the caller's to decide.
        """
        self._best.save(step, state, {**meta, "score": float(score)})

    def best(self) -> tuple[int, float] | None:
        """(step, score) of the checkpoint in `best/`, or None if there is none that can be read."""
        self._best.settle()
        for step in reversed(self._best.steps()):
            with contextlib.suppress(Exception):
                return step, self._best.read_meta(step)["meta"]["score"]
        return None

    def restore_best(
        self, abstract_state: PyTree, meta: Mapping[str, Any]
    ) -> tuple[PyTree, int, dict[str, Any]] | None:
        """As `restore`, from `best/`; the stored meta has the score under `score`."""
        return self._best.restore(abstract_state, meta, None)

    def wait(self) -> None:
        """Waits until everything is on disk. Raises InputError if the last save failed."""
        for store in (self._main, self._best):
            store.settle()
        for store in (self._main, self._best):
            if store.failure:
                failure, store.failure = store.failure, None
                raise InputError(f"{failure}; make room there or choose another --workdir")

    def close(self) -> None:
        """`wait`, then ends Orbax's threads, also where `wait` raises."""
        try:
            self.wait()
        finally:
            self._main.close()
            self._best.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # the error on its way out must not be replaced by one of ours, which is said anyway
            with contextlib.suppress(InputError):
                self.close()


class _Damaged(Exception):
    """A checkpoint cannot be read or is not what was saved; the message says why."""


class _Store:
    """One directory of checkpoints, of which the `keep` newest stay."""

    def __init__(
        self, directory: epath.Path, keep: int, say: Callable[[str], None], ignore: frozenset[str]
    ):
        self.failure: str | None = None  # of the last save, until it is raised or made good
        self._directory = directory
        self._keep = keep
        self._say = say
        self._ignore = tuple(ignore)
        self._manager: ocp.CheckpointManager | None = None
        self._pending: int | None = None  # the step whose save has not been waited for
        self._error: Exception | None = None  # that kept it from starting
        self._stale: set[int] = set()  # damaged, or later than the step that was restored

    def open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            # By hand: Orbax's own cleaning may not be over when a process that saves nothing ends.
            if jax.process_index() == 0 and self._directory.exists():
                for half_written in ocp.utils.tmp_checkpoints(self._directory):
                    half_written.get().rmtree()
            # zstd would cost four times the processor time for a twelfth less disk.
            state = ocp.PyTreeCheckpointHandler(use_compression=False)
            handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
            handlers.add("state", ocp.args.PyTreeSave, state)
            options = ocp.CheckpointManagerOptions(
                # Else, where a directory cannot be made, Orbax's threads wait for it for minutes,
                # and the process with them when it ends.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
                # Saves are forced: `due` and `preempted` decide. Written out all the same, since
                # a policy of one's own replaces the default that saves on preemption.
                save_decision_policy=ocp.checkpoint_managers.PreemptionCheckpointingPolicy(),
            )
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=handlers
            )
        return self._manager

    def steps(self) -> list[int]:
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted(entry.step for entry in found)

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        self.settle()
        if step in set(self.steps()) - self._stale:
            self.failure = None
            return
        leaves = flatten(state)
        with jax.transfer_guard("allow"):
            sums = checksums(state)
        described = {path: [describe(x), sums[path]] for path, x in leaves.items()}
        content = json.loads(json.dumps({"meta": dict(meta), "leaves": described}))
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(leaves),
            meta=ocp.args.JsonSave({"content": content, "sha256": _seal(content)}),
        )
        self._pending = step
        _, self._error = _attempt(self._start, step, args)

    def _start(self, step: int, args: ocp.args.Composite) -> None:
        manager = self.open()
        for old in sorted(self._stale & set(self.steps())):
            reason = "damaged, or later than the step that was restored"
            self._say(f"checkpoint {self._directory / str(old)} is removed: {reason}")
            manager.delete(old)
        self._stale = set()
        with jax.transfer_guard("allow"):
            manager.save(step, args=args, force=True)

    def settle(self) -> None:
        """Waits for the save under way, if any, and takes note of how it ended."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        error, self._error = self._error, None
        if self._manager is not None:
            _, later = _attempt(self._manager.wait_until_finished)
            error = error or later
        if _everywhere(error is None):
            self.failure = None
            return
        kept = self.steps()
        self.failure = f"checkpoint {self._directory / str(step)} was not saved: {_reason(error)}"
        last = f"the last good one is that of step {kept[-1]}" if kept else "there is none yet"
        self._say(f"WARNING: {self.failure}; {last}; the next save tries again")
        # The next save opens a new manager: this one counts the failed step among its own. Opening
        # also frees the space that the half-written one takes.
        self.close()

    def read_meta(self, step: int) -> dict[str, Any]:
        path = self._directory / str(step) / "meta"
        stored = ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore())
        if stored["sha256"] != _seal(stored["content"]):
            raise _Damaged(f"the checksum of {path} does not match")
        return stored["content"]

    def read_state(self, step: int, content: dict[str, Any], abstract: PyTree) -> PyTree:
        leaves = flatten(abstract)
        args = ocp.args.PyTreeRestore(
            item=leaves, restore_args=ocp.checkpoint_utils.construct_restore_args(leaves)
        )
        with jax.transfer_guard("allow"):
            state = _read_leaves(self._directory / str(step) / "state", args)
            sums = checksums(state)
        bad = [path for path in leaves if sums[path] != content["leaves"][path][1]]
        if bad:
            raise _Damaged(f"the checksum of {few(bad, ', ')} does not match")
        return jax.tree.unflatten(jax.tree.structure(abstract), [state[path] for path in leaves])

    def restore(
        self, abstract: PyTree, meta: Mapping[str, Any], step: int | None
    ) -> tuple[PyTree, int, dict[str, Any]] | None:
        self.settle()
        found = self.steps()
        if step is not None and step not in found:
            raise InputError(f"{self._directory}: no checkpoint of step {step}; there are {found}")
        faults = []
        for candidate in [step] if step is not None else reversed(found):
            content, error = _attempt(self.read_meta, candidate)
            if _everywhere(error is None):
                where = self._directory / str(candidate)
                check_meta(where, content["meta"], meta, self._ignore)
                check_leaves(where, content["leaves"], flatten(abstract))
                state, error = _attempt(self.read_state, candidate, content, abstract)
                if _everywhere(error is None):
                    self._stale = {other for other in found if other > candidate}
                    return state, candidate, content["meta"]
            faults.append(f"step {candidate}: {_reason(error)}")
            path = self._directory / str(candidate)
            self._say(f"WARNING: checkpoint {path} is damaged ({_reason(error)}), not used")
        if not faults:
            return None
        raise InputError(
            f"{self._directory}: no checkpoint can be read ({few(faults, '; ')}); put a copy back,"
            f" or start again with another --workdir"
        )

    def close(self) -> None:
        if self._manager is not None:
            with contextlib.suppress(Exception):  # said by `settle`; Orbax raises it once more
                self._manager.close()
            self._manager = None


def _attempt(call: Callable[..., T], *args: Any) -> tuple[T, None] | tuple[Any, Exception]:
    """The result of `call(*args)` and None, or None and what it raised: a damaged file, a full
    disk and a lost connection come out of Orbax and TensorStore as exceptions of any type."""
    try:
        return call(*args), None
    except Exception as error:
        return None, error


def _everywhere(ok: bool) -> bool:
    """Whether `ok` on every process, so that all go the same way."""
    if jax.process_count() == 1:
        return ok
    with jax.transfer_guard("allow"):
        return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _check_writable(directory: epath.Path) -> None:
    error = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{jax.process_index()}"
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as caught:
        error = caught
    if not _everywhere(error is None):
        raise InputError(
            f"{directory}: checkpoints cannot be written here: {_reason(error)}; "
            f"make room or choose another --workdir"
        )


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception | None) -> str:
    """One line of what went wrong; the system's own words where there are any."""
    if error is None:
        return "it failed on another process"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, _Damaged):
        return str(error)
    text = " ".join(str(error).split())
    system = re.search(r"os_error_code='(\d+)'", text)  # as TensorStore writes it
    return os.strerror(int(system[1])) if system else f"{type(error).__name__}: {text[:160]}"


def _read_leaves(path: epath.Path, args: ocp.args.PyTreeRestore) -> dict[str, jax.Array]:
    """The leaves under `path`. Raises _Damaged where Orbax cannot read them."""
    with warnings.catch_warnings():
        # Where one read fails Orbax drops the others: "coroutine was never awaited".
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            # The handler itself, without the manager: it has no barrier, at which the other
            # processes would wait for one that could not read its shard.
            return ocp.PyTreeCheckpointHandler().restore(path, args=args)
        except Exception as error:
            reason = _reason(error)
        gc.collect()
    raise _Damaged(reason)


def _quiet_orbax() -> None:
    """Keeps Orbax's log and its tracebacks off the terminal: `say` tells what went wrong."""
    log = logging.getLogger("absl")
    if _not_orbax in log.filters:
        return
    log.addFilter(_not_orbax)
    logging.getLogger("asyncio").addFilter(_not_dropped_read)
    earlier = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # The reads that a failed restore dropped, as they end: the coroutine, or TensorStore's
        # thread, which has no object to name and finds the loop of that restore closed.
        code = getattr(unraisable.object, "cr_code", None)
        dropped = "orbax" in getattr(code, "co_filename", "")
        late = unraisable.object is None and "loop is closed" in str(unraisable.exc_value)
        if not (dropped or late):
            earlier(unraisable)

    sys.unraisablehook = hook


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.CRITICAL


def _not_dropped_read(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("never retrieved" in text and ("orbax" in text or "tensorstore" in text))
