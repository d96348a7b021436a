"""How long compiling takes, and how often: cold and from the cache, loop and scan.

python -m experiments.speed.compilation [--sizes=base,large] [--platforms=cpu,v5e:2x2]

The train step of BERT of that size, 32 examples of 128 tokens a chip, as --mode=preflight has it;
for a TPU by libtpu, without one. Each case is a process of its own with an empty cache directory,
and then a second process with the one that the first has filled (`--config.compile.cache_dir`; a
compilation for TPUs is not cached here). `tracing_s` is Python's part, tracing and lowering to
MLIR; `compiler_s` XLA's, or that of reading the cache; `seconds` the whole by the wall, and
`processor_s` that of all threads, which other work on the machine doesn't count into; `count` is
how many times XLA compiled a train step, programs from the cache not counted.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bert_ft import command_line, config
from experiments.attempts import Attempts
from experiments.speed.turns import about, write

HERE = Path(__file__).parent
LOOPS = ("loop", "scan")
COMPILED, HIT = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
TRACED = tuple(
    f"/jax/core/compile/{stage}_duration" for stage in ("jaxpr_trace", "jaxpr_to_mlir_module")
)


class Heard:
    """What JAX says of the compilations of functions whose name holds `name`, while entered. A
    program that the cache has is a compilation to it, beside which it says a hit, without a name.
    """

    def __init__(self, name: str):
        self.name, self.hits = name, 0
        self.spent: dict[str, list[float]] = {event: [] for event in (COMPILED, *TRACED)}

    def _hit(self, event: str, **_: Any) -> None:
        self.hits += event == HIT

    def _spent(self, event: str, duration_secs: float, **about: Any) -> None:
        if event in self.spent and self.name in str(about.get("fun_name")):
            self.spent[event].append(duration_secs)

    @property
    def count(self) -> int:
        return len(self.spent[COMPILED]) - self.hits

    def __enter__(self) -> Heard:
        import jax

        jax.monitoring.register_event_listener(self._hit)
        jax.monitoring.register_event_duration_secs_listener(self._spent)
        return self

    def __exit__(self, *_: object) -> None:
        import jax

        jax.monitoring.unregister_event_listener(self._hit)
        jax.monitoring.unregister_event_duration_listener(self._spent)


def measure(size: str, platform: str, loop: str, length: int, cache: str) -> dict[str, Any]:
    c = config.default()
    c.compile.cache_dir, c.preflight.model, c.data.max_length = cache, size, length
    c.model.layer_loop, c.train.steps = loop, 1
    command_line.prepare_host(c)
    import jax

    from bert_ft.preflight import real_step, system_for, topology_devices
    from bert_ft.train.chips import slice_of

    devices = () if platform == "cpu" else topology_devices(*slice_of(platform))
    c.train.batch_size = 32 * max(len(devices), 1)
    system, _ = system_for(c, devices, lambda _: None)
    programs, state, batch = real_step(system)
    with Heard("train_step") as heard:
        began, before = time.perf_counter(), time.process_time()
        programs.compile(state, batch)
        spent, processor = time.perf_counter() - began, time.process_time() - before
    return {
        "seconds": spent,
        "tracing_s": sum(sum(heard.spent[event]) for event in TRACED),
        "compiler_s": sum(heard.spent[COMPILED]),
        "processor_s": processor,
        "count": heard.count,
        "jax": jax.__version__,
    }


def in_a_process(case: dict[str, Any], cache: str) -> dict[str, Any]:
    words = [f"--{name}={value}" for name, value in case.items()]
    command = [sys.executable, "-m", "experiments.speed.compilation", f"--cache={cache}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--sizes", default="base,large")
    p.add_argument("--platforms", default="cpu,v5e:2x2")
    p.add_argument("--length", type=int, default=128)
    p.add_argument("--out", type=Path, default=HERE / "compilation.jsonl", help="written anew")
    p.add_argument("--cache", help="one case, here; prints JSON")
    p.add_argument("--size", choices=("base", "large"))
    p.add_argument("--platform")
    p.add_argument("--loop", choices=LOOPS)
    args = p.parse_args()
    if args.cache:
        print(json.dumps(measure(args.size, args.platform, args.loop, args.length, args.cache)))
        return
    lines: list[dict[str, Any]] = []
    attempts = Attempts()
    print(
        "| | start | tracing and lowering, s | compiler, s | processor, s | compilations |\n"
        "|---|---|---|---|---|---|"
    )
    for size, platform, loop in itertools.product(
        args.sizes.split(","), args.platforms.split(","), LOOPS
    ):
        case = {"size": size, "platform": platform, "loop": loop, "length": args.length}
        with tempfile.TemporaryDirectory() as cache:
            for start in ("cold", "cached") if platform == "cpu" else ("cold",):
                name = f"{size}, {platform}, {loop}, {start}"
                found = attempts.of(name, functools.partial(in_a_process, case, cache))
                if found is None:
                    break
                lines.append({**case, "start": start, **found, **about()})
                write(args.out, lines)
                print(
                    f"| {size}, {platform}, {loop} | {start} | {found['tracing_s']:.1f} | "
                    f"{found['compiler_s']:.1f} | {found['processor_s']:.1f} | {found['count']} |",
                    flush=True,
                )
    attempts.end()


if __name__ == "__main__":
    main()
