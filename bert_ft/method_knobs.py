"""The knobs of every method, once, as config.methods.NAME.*; none does anything before
config.methods.use names it."""

from __future__ import annotations

from ml_collections import ConfigDict

# In the encoder, the matrices that Hu et al. 2022, 4.2, adapt: those of queries and values.
QUERY_VALUE = r"attention/(query|value)$"


def defaults() -> ConfigDict:
    m = ConfigDict()
    m.use = ""  # names, comma-separated; each wraps what those before it have made
    # Of the methods that freeze the model: what is trained beside what they add, a regex over paths
    # of parameters. The head is new, so it must learn.
    m.also_train = r"^top/"

    m.lora = ConfigDict()
    m.lora.targets = QUERY_VALUE  # regex over paths of dense layers
    m.lora.rank = 8
    m.lora.alpha = 16.0  # the update is B A x alpha / rank
    m.lora.dropout = 0.0  # of what A reads
    m.lora.rank_stabilized = False  # True: alpha / sqrt(rank), which a large rank does not stifle
    m.lora.dora = False  # True: the norms of the outputs' weights are trained apart from direction

    m.adalora = ConfigDict()
    m.adalora.targets = QUERY_VALUE  # regex over paths of dense layers, as of lora
    m.adalora.rank = 12  # at first; half as much again as at the end, as in the paper
    m.adalora.target_rank = 8  # the mean over the layers at the end
    m.adalora.alpha = 24.0  # the update is P e Q x alpha / rank
    m.adalora.begin = 50  # steps before the first triplet goes …
    m.adalora.end = 300  # … and until the last one has gone; less than a run has
    m.adalora.beta1 = 0.85  # of the average of a weight's importance …
    m.adalora.beta2 = 0.85  # … and of its uncertainty
    m.adalora.orthogonality = 0.1  # weight of the penalty on P and Q, a mean over the layers

    m.bitfit = ConfigDict()
    m.bitfit.targets = r"^encoder/.*bias$"  # regex over paths of parameters: what is trained

    m.freeze = ConfigDict()
    m.freeze.targets = r"^encoder/(word|position|type)/"  # regex: what is not trained

    m.unfreeze = ConfigDict()
    # [[REGEX, STEP], …] in JSON: what a regex finds is trained from its step on, by the first that
    # finds it; the rest from the start. [["layer_[0-3]/", 200], ["layer_4/", 100]]
    m.unfreeze.schedule = ""

    m.houlsby = ConfigDict()
    m.houlsby.width = 64  # of the bottleneck (Houlsby et al. 2019, 3.2: 8 to 256 for 1,024)

    m.pfeiffer = ConfigDict()
    m.pfeiffer.width = 24  # of the bottleneck; a sixteenth of MiniLM's 384, as AdapterHub has it

    m.prefix = ConfigDict()
    m.prefix.length = 16  # keys and values a layer; so many positions fewer are left for tokens
    m.prefix.std = 0.02  # of their first values; BERT's own

    m.prompt = ConfigDict()
    m.prompt.length = 20  # soft tokens a sequence (Lester et al. 2021, 3.2: more gain little)

    m.fgm = ConfigDict()
    m.fgm.epsilon = 1.0  # L2 norm of the step on each example's word vectors
    m.fgm.weight = 1.0  # of the adversarial loss beside the clean one's 1

    m.ema = ConfigDict()
    m.ema.decay = 0.999  # of the average a step; the average is what is scored and kept
    return m
