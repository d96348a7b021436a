"""python -m bert_ft.select --config=FILE --workdir=RUN --pool=URI --n=N: what to label next.

Writes the chosen rows, with all their columns, score and rank, as JSON lines: to be labelled, and
joined to the training set.
"""

import sys
import time
from types import SimpleNamespace

from absl import flags

from bert_ft import errors, paths
from bert_ft.command_line import parse, prepare_host
from bert_ft.main import CONFIG, WORKDIR

POOL = flags.DEFINE_string("pool", None, "a data URI of rows with or without labels")
COUNT = flags.DEFINE_integer("n", None, "how many rows to choose")
BY = flags.DEFINE_string("by", "margin", "margin, entropy, badge, k_centre or random")
OVER = flags.DEFINE_string("over", "mean", "of several words or labels a row: their mean or max")
OUT = flags.DEFINE_string("out", "", "a new file; '' is WORKDIR/selected.jsonl")
SEED = flags.DEFINE_integer("seed", 0, "of what badge, k_centre and random draw")


def main(argv: list[str]) -> int:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__, *(f"  --{f.name}: {f.help}" for f in flags.FLAGS.get_key_flags_for_module(
            sys.modules[__name__])), sep="\n")  # fmt: skip
        return errors.EXIT_DONE
    try:
        config, workdir = parse(argv, CONFIG, WORKDIR, SimpleNamespace(value="eval"))
        if not POOL.value or COUNT.value is None:
            raise errors.InputError("--pool and --n are needed; give --pool=URI --n=NUMBER")
        prepare_host(config)
        import jax

        from bert_ft.data.sources import source_of
        from bert_ft.train.guard import guarded
        from bert_ft.train.processes import tell
        from bert_ft.train.record import write_lines
        from bert_ft.train.selection import Asked, select

        with guarded(config, workdir, "eval", None, time.monotonic()):
            out = paths.at(OUT.value) if OUT.value else workdir / "selected.jsonl"
            if out.resolve() in [path.resolve() for path in source_of(config, POOL.value).files]:
                raise errors.InputError(f"--out is {out}, a file of --pool; give another name")
            if out.exists():  # it may hold labels by now
                raise errors.InputError(
                    f"--out is {out}, which is there; accepted: the name of a file that is not"
                )
            asked = Asked(POOL.value, COUNT.value, BY.value, OVER.value, SEED.value)
            rows = select(config, workdir, asked, tell)
            if jax.process_index() == 0:
                write_lines(out, rows)
                print(f"{len(rows):,} rows by {asked.by}: {out}")
            return errors.EXIT_DONE
    except errors.KNOWN as e:
        return errors.told(e)


if __name__ == "__main__":
    errors.run(main)
