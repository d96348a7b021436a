"""Batches made ahead of the device, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    make: Callable[[int], T], steps: Iterable[int], depth: int
) -> Generator[T, None, None]:
    """make(step) for each step, in order, made up to `depth` ahead in a thread. An exception in the
    thread is raised here. Closing the iterator ends the thread and waits for it: one that is still
    at work in XLA as Python exits would abort the process."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                put((make(step), None))
            put((None, StopIteration()))
        except BaseException as e:  # handed to the caller, whatever it is
            put((None, e))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
