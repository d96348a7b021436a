"""python -m bert_ft.main --config=FILE[:variant] --workdir=DIR [--mode=…] [--config.a.b=value …]"""

import sys
import time

STARTED = time.monotonic()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from bert_ft.command_line import parse, prepare_host  # noqa: E402
from bert_ft.errors import EXIT_DONE, EXIT_INPUT, EXIT_NOT_FINITE, InputError, NotFinite  # noqa: E402

MODES = ("train", "eval", "predict")
CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="a config file")
WORKDIR = flags.DEFINE_string("workdir", None, "where the run keeps everything", required=True)
MODE = flags.DEFINE_enum("mode", "train", MODES, "what to do")


def main(argv: list[str]) -> int:
    try:
        config, workdir = parse(argv, CONFIG, WORKDIR, MODE)
        prepare_host(config)
        if MODE.value == "train":
            from bert_ft.train.loop import run

            return run(config, workdir, STARTED)
        from bert_ft.train import finish

        (finish.evaluate if MODE.value == "eval" else finish.predict)(config, workdir)
        return EXIT_DONE
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_INPUT
    except NotFinite as e:
        print(f"error: {e}; the last good checkpoint is kept", file=sys.stderr)
        return EXIT_NOT_FINITE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
