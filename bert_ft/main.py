"""python -m bert_ft.main --config=FILE[:variant] --workdir=DIR [--mode=…] [--config.a.b=value …]"""

import time

STARTED = time.monotonic()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from bert_ft import errors  # noqa: E402
from bert_ft.command_line import parse, place, prepare_host, usage  # noqa: E402

MODES = {
    "train": "train, or go on from the workdir's last checkpoint; then score, record and report",
    "eval": "score a trained workdir again on data.dev and data.test",
    "predict": "label the rows of --config.predict.input=FILE.jsonl, one JSON line a row",
    "export": "write --config.export.to=DIR as transformers loads it, once its outputs agree",
    "preflight": "compile for --config.preflight.topology=SLICE of TPUs, without one, and report",
}
CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="a config file")
WORKDIR = flags.DEFINE_string("workdir", None, "where the run keeps everything")
MODE = flags.DEFINE_enum("mode", "train", list(MODES), "what to do")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several")
PROCESSES = flags.DEFINE_integer("num_processes", None, "how many there are")
PROCESS = flags.DEFINE_integer("process_id", None, "which one this is, from 0")


def main(argv: list[str]) -> int:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(usage(MODES))
        return errors.EXIT_DONE
    try:
        config, workdir = parse(argv, CONFIG, WORKDIR, MODE)
        where = place(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        prepare_host(config)
        from bert_ft.train.guard import guarded

        with guarded(config, workdir, MODE.value, where, STARTED):
            from bert_ft import preflight
            from bert_ft.train import export, finish, loop, predict, trial_loop

            if MODE.value == "train":
                train = trial_loop.run_trials if config.trials else loop.run
                return train(config, workdir, STARTED)
            evaluate = trial_loop.evaluate_trials if config.trials else finish.evaluate
            others = {"eval": evaluate, "predict": predict.predict, "export": export.export}
            mode = {**others, "preflight": preflight.preflight}[MODE.value]
            mode(config, workdir)
            return errors.EXIT_DONE
    except errors.KNOWN as e:
        return errors.told(e)


if __name__ == "__main__":
    errors.run(main)
