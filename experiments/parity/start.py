"""The weights that our run of a task and seed begins with, as a directory that transformers loads.

python -m experiments.parity.start --task="MRPC" --seed=0 --out=DIR

The pretrained encoder and the head, which is new and drawn by the seed: two systems of which each
draws its own differ by that alone, on small data by points. PyTorch is not needed.
"""

from __future__ import annotations

from pathlib import Path

import jax

from bert_ft import command_line
from bert_ft.models import hf
from bert_ft.models.heads import kind_of
from bert_ft.train.initial import initial_params
from bert_ft.train.system import assemble
from experiments.parity.tasks import TASKS, arguments


def write(name: str, seed: int, out: Path) -> None:
    """Makes `out`."""
    c = TASKS[name].read_config()
    c.train.seed = seed
    command_line.prepare_host(c)
    system = assemble(c, print)
    params = jax.device_get(initial_params(system, print))
    labels = next(iter(hf.label_names(system.fitted)), [])
    out.mkdir(parents=True)
    problem = getattr(system.task, "problem_type", "")
    hf.save(out, system.encoder, params, kind_of(system.model.head), labels, problem)
    system.tokenizer.save_pretrained(out)


def main() -> None:
    args = arguments(__doc__, out="a directory that is made")
    write(args.task, args.seed, args.out)


if __name__ == "__main__":
    main()
