"""What each method makes of a train step's time: the demo's batch, by turns in one process.

taskset -c 0 python -m experiments.methods.steps     # steps.jsonl

The programs that python -m bert_ft.main compiles for configs/sentiment.py with each method, on the
same batch of 32 reviews. On one core the processor's seconds count, which other work on the machine
does not add to (--clock=wall elsewhere). A method's step is compared with plain training's of the
same round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import jax

from bert_ft import command_line
from experiments.methods import adversarial, tuning
from experiments.parity.tasks import Task
from experiments.speed.turns import CLOCKS, about, by_turns, ratios, spread, write

HERE = Path(__file__).parent
PLAIN = "plain"
CASES = {
    **{name: adversarial.task_of(name, ()) for name in adversarial.METHODS if name != "misspelt"},
    **{
        name: Task("configs/sentiment.py", "", of)
        for name, of in tuning.METHODS.items()
        if name != "all"  # which is plain
    },
}
STEPS = 1000  # that the run would have: no budget or schedule ends while it is measured


def step_of(task: Task) -> Callable[[], None]:
    """A call is a step of its run, on a state of its own."""
    from bert_ft.train import optim
    from bert_ft.train.loop import batch_plan, train_programs
    from bert_ft.train.sharding import place
    from bert_ft.train.start import fresh_state
    from bert_ft.train.system import assemble

    config = task.read_config()
    config.train.steps, config.data.row_counts = STEPS, 1
    system = assemble(config, lambda line: None, sets=("train",))
    plan = batch_plan(system, STEPS)
    state = fresh_state(system, optim.make_optimizer(config, STEPS), lambda line: None)
    batch = place(lambda rows: plan.batch(0, rows), plan.shape(0), system.mesh)
    programs = train_programs(system, STEPS, state)
    programs.compile(state, batch)
    held = [state]

    def step() -> None:
        held[0], metrics = programs(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    return step


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--methods", nargs="+", choices=list(CASES), default=list(CASES))
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--clock", choices=list(CLOCKS), default="processor")
    p.add_argument("--out", type=Path, default=HERE / "steps.jsonl", help="written anew")
    args = p.parse_args()
    names = [PLAIN, *(name for name in args.methods if name != PLAIN)]
    command_line.prepare_host(CASES[PLAIN].read_config())
    cases = {}
    for name in names:
        cases[name] = step_of(CASES[name])
        print(f"compiled: {name}", flush=True)
    seconds = by_turns(cases, args.rounds, args.clock)
    print("| | step, ms | of plain's |\n|---|---|---|")
    for name, spent in seconds.items():
        median = 1e3 * statistics.median(spent)
        print(f"| {name} | {median:.0f} | {spread(ratios(spent, seconds[PLAIN]))} |")
    lines = [{"method": name, "seconds": spent, **about()} for name, spent in seconds.items()]
    write(args.out, lines)


if __name__ == "__main__":
    main()
