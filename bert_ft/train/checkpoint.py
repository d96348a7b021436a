"""When checkpoints are made, which ones stay, and which one a run goes on from."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
from etils import epath

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.train.barriers import share
from bert_ft.train.quiet import quiet_orbax
from bert_ft.train.store import Store, everywhere, reason

PyTree = Any

# Several processes wait for each other to agree on the clock, so they look at it this rarely.
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
        quiet_orbax()
        directory = epath.Path(directory)
        if not paths.is_remote(directory):
            directory = epath.Path(directory.absolute())
        self._main = Store(directory, keep, say, ignore)
        self._best = Store(directory.parent / "best", 1, say, ignore)
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
        return share("is a save due", late)[0]

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Starts to save `state`, a pytree of jax.Arrays, and `meta`, which must fit in JSON.

        Waits for the save before it, then for the copy of `state` to the host; writing goes on in
        the background. The caller may donate `state` at once. A step already saved is left as it
        is. A save that fails is reported through `say` by the next save, or raised by `wait`.
        """
        self._saved_at = time.monotonic()
        self._best.drop_foreign()
        self._best.settle()  # a run that goes on from `step` must find the best before it
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

    def forget_best(self) -> None:
        """A run that begins anew has no best yet: what another left in `best/` is not read, and
        goes before the first save, so that whoever goes on from that finds none either."""
        self._best.forget()

    def drop_foreign(self) -> None:
        """Removes what `forget_best` has found."""
        self._best.drop_foreign()

    def best(self) -> tuple[int, float] | None:
        """(step, score) of the checkpoint in `best/`, or None if there is none that can be read."""
        return self._best.scored()

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
    if not everywhere(error is None):
        raise InputError(
            f"{directory}: checkpoints cannot be written here: {reason(error)}; "
            f"make room or choose another --workdir"
        )
