"""python -m bert_ft.main --config=FILE[:variant] --workdir=DIR [--mode=…] [--config.a.b=value …]"""

import sys
import time

STARTED = time.monotonic()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from bert_ft import errors  # noqa: E402
from bert_ft.command_line import parse, prepare_host, usage  # noqa: E402

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


def main(argv: list[str]) -> int:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(usage(MODES))
        return errors.EXIT_DONE
    try:
        config, workdir = parse(argv, CONFIG, WORKDIR, MODE)
        prepare_host(config)
        if MODE.value == "train":
            from bert_ft.train.loop import run

            return run(config, workdir, STARTED)
        from bert_ft import preflight
        from bert_ft.train import export, finish

        others = {"eval": finish.evaluate, "predict": finish.predict, "export": export.export}
        mode = {**others, "preflight": preflight.preflight}[MODE.value]
        mode(config, workdir)
        return errors.EXIT_DONE
    except errors.InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return errors.EXIT_INPUT
    except errors.NotFinite as e:
        print(f"error: {e}; the last good checkpoint is kept", file=sys.stderr)
        return errors.EXIT_NOT_FINITE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return errors.EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv))
