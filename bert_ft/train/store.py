"""A directory of checkpoints as Orbax keeps it. The only file that imports Orbax.

A checkpoint is a directory `<step>` with two items: `state`, the leaves by path, and `meta`, JSON:
what the caller gave, and dtype, shape and checksum of every leaf. Orbax writes it under a
temporary name and renames it, so that a killed run leaves whole checkpoints only; the checksums
find what happens to the files afterwards.
"""

import contextlib
import gc
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import flags
from etils import epath

from bert_ft.errors import InputError
from bert_ft.train.barriers import share
from bert_ft.train.checksum import checksums, describe, flatten
from bert_ft.train.refuse import check_leaves, check_meta, few

PyTree = Any
T = TypeVar("T")


class _Damaged(Exception):
    """A checkpoint cannot be read or is not what was saved; the message says why."""


class Store:
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
        # The next save removes both.
        self._stale: set[int] = set()  # damaged, or later than the step that was restored
        self._foreign: set[int] = set()  # of another run

    def open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            if jax.process_count() > 1:
                # Else its barriers are collectives, in the way of those of the step in flight.
                flags.FLAGS["experimental_orbax_use_distributed_barrier"].value = True
            # By hand: Orbax's own cleaning may not be over when a process that saves nothing ends.
            self._clear()
            # zstd would cost four times the processor time for a twelfth less disk.
            state = ocp.PyTreeCheckpointHandler(use_compression=False)
            handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
            handlers.add("state", ocp.args.PyTreeSave, state)
            options = ocp.CheckpointManagerOptions(
                # Else, where a directory cannot be made, Orbax's threads wait for it for minutes,
                # and the process with them when it ends.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                # Those of two directories that save at once must not meet at one barrier.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self._directory.name
                ),
                preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
                # Saves are forced: `due` and train/preemption.py decide. Written out all the same,
                # since a policy of one's own replaces the default that saves on preemption.
                save_decision_policy=ocp.checkpoint_managers.PreemptionCheckpointingPolicy(),
            )
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=handlers
            )
        return self._manager

    def _clear(self) -> None:
        """Removes what a save that was killed, or failed, has left."""
        if jax.process_index() == 0 and self._directory.exists():
            for half_written in ocp.utils.tmp_checkpoints(self._directory):
                half_written.get().rmtree()

    def steps(self) -> list[int]:
        """As process 0 sees them: a network file system may show another process others."""
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return share("steps saved", sorted(entry.step for entry in found))[0]

    def own(self) -> list[int]:
        return [step for step in self.steps() if step not in self._foreign]

    def forget(self) -> None:
        """What is there is not of this run."""
        self._foreign = set(self.steps())

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        self.settle()
        if step in set(self.own()) - self._stale:
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
        old = sorted((self._stale | self._foreign) & set(self.steps()))
        self._pending = step
        _, self._error = _attempt(self._start, step, args, old)

    def _start(self, step: int, args: ocp.args.Composite, old: list[int]) -> None:
        manager = self.open()
        self._remove(old)
        self._stale, self._foreign = set(), set()
        with jax.transfer_guard("allow"):
            manager.save(step, args=args, force=True)

    def drop_foreign(self) -> None:
        """Removes what is of another run; it stays where it can't be, and is not read."""
        if self._foreign:
            old = sorted(self._foreign & set(self.steps()))
            _attempt(self._remove, old)
            self._foreign -= set(old) - set(self.steps())

    def _remove(self, old: Iterable[int]) -> None:
        for step in old:
            why = "damaged, of another run, or later than the step that this one began from"
            self._say(f"checkpoint {self._directory / str(step)} is removed: {why}")
            self.open().delete(step)

    def settle(self) -> None:
        """Waits for the save under way, if any, and takes note of how it ended."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        error, self._error = self._error, None
        if self._manager is not None:
            _, later = _attempt(self._manager.wait_until_finished)
            error = error or later
        if everywhere(error is None):
            self.failure = None
            return
        kept = self.steps()
        self.failure = f"checkpoint {self._directory / str(step)} was not saved: {reason(error)}"
        last = f"the last good one is that of step {kept[-1]}" if kept else "there is none yet"
        # The next save opens a new manager: this one counts the failed step among its own. What is
        # half-written may be all the space that the run's other files have left.
        self.close()
        _attempt(self._clear)
        self._say(f"WARNING: {self.failure}; {last}; the next save tries again")

    def scored(self) -> tuple[int, float] | None:
        """(step, the score in its meta) of the newest that can be read."""
        self.settle()
        for step in reversed(self.own()):
            content, error = _attempt(self.read_meta, step)
            if everywhere(error is None):
                return step, content["meta"]["score"]
            path = self._directory / str(step)
            self._say(f"WARNING: checkpoint {path} is damaged ({reason(error)}), not used")
            self._stale.add(step)
        return None

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
        found = self.own()
        if step is not None and step not in found:
            raise InputError(f"{self._directory}: no checkpoint of step {step}; there are {found}")
        faults = []
        for candidate in [step] if step is not None else reversed(found):
            content, error = _attempt(self.read_meta, candidate)
            if everywhere(error is None):
                where = f"checkpoint {self._directory / str(candidate)}"
                check_meta(where, content["meta"], meta, self._ignore)
                check_leaves(where, content["leaves"], flatten(abstract))
                state, error = _attempt(self.read_state, candidate, content, abstract)
                if everywhere(error is None):
                    self._stale = {other for other in found if other > candidate}
                    return state, candidate, content["meta"]
            faults.append(f"step {candidate}: {reason(error)}")
            path = self._directory / str(candidate)
            self._say(f"WARNING: checkpoint {path} is damaged ({reason(error)}), not used")
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


def everywhere(ok: bool) -> bool:
    """Whether `ok` on every process, so that all go the same way."""
    return all(share("did it work", ok))


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def reason(error: Exception | None) -> str:
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
            why = reason(error)
        gc.collect()
    raise _Damaged(why)
