"""Training speed on one CPU: python -m bert_ft.main against the Hugging Face Trainer, in one run.

python -m experiments.speed.trainer

The task is that of configs/sentiment.py: all-MiniLM-L6-v2, Rotten Tomatoes, batches of 32 examples
of at most 128 tokens, float32, dropout on. Measured one at a time, each in a process of its own
and in turns over some rounds (each round with another seed, hence other batches):

    ours      the main program itself, started like any run and told to stop (SIGTERM) after the
              steps; batches are packed. Times are those in its metrics.jsonl.
    group     the Trainer, batches of like lengths (train_sampling_strategy='group_by_length')
    longest   the Trainer, random batches padded to the longest of each: like for like
    max       the Trainer, padded to 128 tokens

A time is that of whole steps of the training loop: drawing the batch, forward, backward, clip,
AdamW, bookkeeping; from the end of the last warm-up step to the end of the last step counted. So
start, compilation, checkpoints and evaluation are in neither, and there is one figure a round:
examples / seconds. 'group' is counted over 50 steps or a multiple, because the Trainer sorts
blocks of 50 batches from long to short: 50 steps in a row, wherever they begin, see every length.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.dot_chart import dot_chart
from experiments.sentiment import hf_trainer

HERE = Path(__file__).parent
STEPS = {"ours": 120, "group": 50, "longest": 25, "max": 10}  # counted a round
WARMUP = 3  # steps before them
WANTED = {"group": 2.0, "longest": 3.0, "max": 6.0}  # how many times as fast ours should be
NAMES = {
    "ours": "bert_ft, packed",
    "group": "Trainer, grouped by length",
    "longest": "Trainer, padded to the longest",
    "max": "Trainer, padded to 128",
}
PREEMPTED = 75  # the exit code of a run that was told to stop and has saved
BUSY = 0.1  # cores used by others, from which on a machine is not quiet


def measure_ours(seed: int, steps: int) -> dict[str, Any]:
    """Runs the main program until it has done WARMUP + steps steps."""
    with tempfile.TemporaryDirectory() as scratch:
        seconds = _time_main(Path(scratch), seed, steps)
    # The same plan, for the tokens and the places of the steps counted.
    from bert_ft.train.loop import batch_plan, total_steps
    from bert_ft.train.system import assemble
    from configs.sentiment import get_config

    config = get_config()
    config.train.seed = seed
    system = assemble(config, lambda _: None)
    plan = batch_plan(system, total_steps(config, len(system.sets["train"])))
    counted = range(WARMUP, WARMUP + steps)
    return {
        "seconds": seconds,
        "examples": plan.batch_size * steps,
        "tokens": sum(plan.tokens(s) for s in counted),
        "places": sum(plan.shape(s).rows for s in counted) * plan.row_length,
    }


def _time_main(scratch: Path, seed: int, steps: int) -> float:
    command = [sys.executable, "-m", "bert_ft.main", "--config=configs/sentiment.py"]
    command += [f"--workdir={scratch}/run", f"--config.train.seed={seed}"]
    command += ["--config.log.every_steps=1", "--config.log.progress=False"]
    with (scratch / "log").open("w+") as log:
        main = subprocess.Popen(command, stdout=log, stderr=log)
        ended: dict[int, float] = {}
        try:
            while WARMUP + steps not in ended and main.poll() is None:
                time.sleep(0.5)
                ended = step_ends(scratch / "run" / "metrics.jsonl")
            main.send_signal(signal.SIGTERM)
            main.wait()
        finally:
            main.kill()
        if main.returncode != PREEMPTED or WARMUP + steps not in ended:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {main.returncode}:\n{log.read()}")
    return ended[WARMUP + steps] - ended[WARMUP]


def step_ends(metrics: Path) -> dict[int, float]:
    """Step -> when its metrics reached the host, which is when the device had done it."""
    if not metrics.exists():
        return {}
    text = metrics.read_text()
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return {line["step"]: line["time"] for line in lines if line["name"] == "train/loss"}


def measure_trainer(padding: str, seed: int, steps: int) -> dict[str, Any]:
    """Runs the Trainer for WARMUP + steps steps."""
    counted = slice(WARMUP, WARMUP + steps)
    with tempfile.TemporaryDirectory() as scratch:
        trainer, timeline = hf_trainer.make_trainer(seed, padding, WARMUP + steps, scratch)
        trainer.train()
    return {
        "seconds": timeline.ended[WARMUP + steps - 1] - timeline.ended[WARMUP - 1],
        "examples": sum(timeline.examples[counted]),
        "tokens": sum(timeline.tokens[counted]),
        "places": sum(timeline.places[counted]),
    }


def in_a_process(policy: str, seed: int, steps: int) -> dict[str, Any]:
    """One measurement in a process of its own -> its line of the results."""
    command = [sys.executable, "-m", "experiments.speed.trainer", f"--measure={policy}"]
    command += [f"--seed={seed}", f"--{policy}={steps}"]
    # On a machine with a GPU this is still a comparison of CPUs; the Trainer has use_cpu=True.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    before, since = _processor_seconds(), time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    others = [now - then for now, then in zip(_processor_seconds(), before, strict=True)]
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        "policy": policy,
        "seed": seed,
        "steps": steps,
        **measured,
        "examples_per_s": round(measured["examples"] / measured["seconds"], 2),
        "tokens_per_s": round(measured["tokens"] / measured["seconds"], 1),
        "padding": round(1 - measured["tokens"] / measured["places"], 4),
        "other_cores": round((others[0] - others[1]) / (time.monotonic() - since), 3),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def _processor_seconds() -> tuple[float, float]:
    """(processor time that this machine has spent or had stolen, time spent by our children), since
    their starts; the difference of the two is other programs'. Zeros where there is no /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    user, nice, system, _, _, irq, soft_irq, steal = map(int, stat.read_text().split()[1:9])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = user + nice + system + irq + soft_irq + steal
    return busy / os.sysconf("SC_CLK_TCK"), used.ru_utime + used.ru_stime


def versions() -> dict[str, str]:
    ours = {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "flax", "optax")}
    return {**hf_trainer.versions(), **ours}


def _median(values: Sequence[float], digits: int) -> str:
    """'78.1 (77.4 to 79.0)'."""
    return (
        f"{statistics.median(values):.{digits}f} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The results in Markdown: medians over rounds, with the extremes."""
    of = {policy: [x for x in lines if x["policy"] == policy] for policy in STEPS}
    out = [
        "| | examples/s | real tokens/s | padding | ours is faster by | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for policy, rows in of.items():
        ratio, wanted = "", ""
        if policy != "ours":
            ratios = [
                ours["examples_per_s"] / theirs["examples_per_s"]
                for ours, theirs in zip(of["ours"], rows, strict=True)
            ]
            ratio, wanted = _median(ratios, 2), f"{WANTED[policy]:g}"
        cells = [
            NAMES[policy],
            _median([x["examples_per_s"] for x in rows], 1),
            _median([x["tokens_per_s"] for x in rows], 0),
            f"{100 * statistics.fmean(x['padding'] for x in rows):.1f} %",
            ratio,
            wanted,
        ]
        out.append(f"| {' | '.join(cells)} |")
    rounds, cores = len(of["ours"]), lines[0]["cores"]
    out.append(
        f"\nMedian (least to most) of {rounds} rounds, {cores} cores. Ratios round by round."
    )
    busy = [x for x in lines if x["other_cores"] > BUSY]
    if busy:
        most = max(x["other_cores"] for x in busy)
        out.append(
            f"NOT A QUIET MACHINE: in {len(busy)} of {len(lines)} measurements other programs used "
            f"more than {BUSY} cores, at most {most:.2f}."
        )
    return "\n".join(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=3)
    for policy, steps in STEPS.items():
        p.add_argument(f"--{policy}", type=int, default=steps, help="steps counted a round")
    p.add_argument("--out", type=Path, default=HERE / "trainer.jsonl", help="written anew")
    p.add_argument("--plot", type=Path, default=HERE / "trainer.svg")
    p.add_argument("--measure", choices=list(STEPS), help="one measurement, here; prints JSON")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    if args.measure:
        steps = vars(args)[args.measure]
        if args.measure == "ours":
            measured = measure_ours(args.seed, steps)
        else:
            measured = measure_trainer(args.measure, args.seed, steps)
        print(json.dumps(measured))
        return
    from bert_ft.train.record import git_commit  # imports JAX, for which the Trainer has no use

    about = {"cores": hf_trainer.cores(), "versions": versions(), "commit": git_commit()}
    lines, policies = [], list(STEPS)
    with args.out.open("w", encoding="utf-8") as file:
        for number in range(args.rounds):
            first = number % len(policies)  # no policy always follows the same other one
            for policy in policies[first:] + policies[:first]:
                line = in_a_process(policy, number, vars(args)[policy])
                lines.append({"round": number, **line, **about})
                print(f"round {number}, {policy}: {line['examples_per_s']} examples/s", flush=True)
                file.write(json.dumps(lines[-1]) + "\n")
                file.flush()
    print(table(lines))
    cases = {
        NAMES[policy]: [x["examples_per_s"] for x in lines if x["policy"] == policy]
        for policy in policies
    }
    args.plot.write_text(dot_chart("Training speed, examples/s", cases))


if __name__ == "__main__":
    main()
