"""A run of several real processes on this machine, for tests of what they do together."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from conftest import ROOT, Done, command, environment

from bert_ft.train.sinks import read_metrics


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclasses.dataclass
class Several:
    """Processes of one run. Use it as a context manager: it leaves none behind."""

    workdir: Path
    processes: list[subprocess.Popen]
    logs: list[Path]
    born: float

    def __enter__(self) -> Several:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def signal(self, process: int, number: int) -> None:
        self.processes[process].send_signal(number)

    def err(self, process: int = 0) -> str:
        return self.logs[process].read_text(errors="replace")

    def codes(self, timeout: float = 600, but: Sequence[int] = ()) -> list[int | None]:
        """Exit codes of all processes but those that never end."""
        until = time.monotonic() + timeout
        for i, process in enumerate(self.processes):
            if i not in but:
                try:
                    process.wait(max(0.1, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGABRT)
                    raise AssertionError(f"process {i} hangs:\n{self.err(i)}") from None
        return [None if i in but else p.returncode for i, p in enumerate(self.processes)]

    def done(self, timeout: float = 600) -> Done:
        """Of process 0; all must have ended well."""
        codes = self.codes(timeout)
        assert set(codes) == {0}, f"{codes}\n" + "\n----\n".join(
            self.err(i)[-3000:] for i in range(len(codes))
        )
        return Done(0, "", self.err(), self.workdir)

    def last_step(self, name: str = "train/loss") -> int:
        path = self.workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        steps = [x["step"] for x in lines if x["name"] == name and x["time"] > self.born]
        return max(steps, default=0)

    def until(self, reached: Callable[[], bool], timeout: float = 600) -> bool:
        """Waits; False where a process ended first."""
        deadline = time.monotonic() + timeout
        while all(p.poll() is None for p in self.processes):
            if reached():
                return True
            assert time.monotonic() < deadline, self.err()
            time.sleep(0.01)
        return False


def start(
    workdir: Path,
    config: Path,
    cache: Path,
    *flags: str,
    count: int = 2,
    total: int = 0,
    devices: int = 2,
    each: Callable[[int], Sequence[str]] = lambda i: (),
    extra: Mapping[str, str] | None = None,
    program: Sequence[str] = (),
    caches: Sequence[Path] = (),
) -> Several:
    """`count` processes of `devices` devices. each(i): flags of process i alone; `total`: how many
    they are told that they are; `program`: instead of `-m bert_ft.main`; `caches`: one a process,
    where they do not share one.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    logs_at = workdir.parent / f"{workdir.name}-logs"
    logs_at.mkdir(exist_ok=True)
    port, processes, logs, born = free_port(), [], [], time.time()
    for i in range(count):
        words = command(config, workdir, *flags, *each(i))
        if program:
            words = [sys.executable, *program, *words[3:]]
        words += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={total or count}"]
        env = environment(caches[i] if caches else cache, devices) | dict(extra or {})
        logs.append(logs_at / f"{i}.txt")
        with logs[-1].open("ab") as err:
            processes.append(
                subprocess.Popen(
                    [*words, f"--process_id={i}"], env=env, cwd=ROOT, stdout=err, stderr=err
                )
            )
    return Several(workdir, processes, logs, born)


def quick(silence_s: int = 6) -> tuple[str, ...]:
    """Limits that suit a test."""
    limits = {"silence_s": silence_s, "barrier_s": 60, "join_s": 20}
    return tuple(f"--config.watchdog.{key}={value}" for key, value in limits.items())
