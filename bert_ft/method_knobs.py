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

    m.fgm = ConfigDict()
    m.fgm.epsilon = 1.0  # L2 norm of the step on each example's word vectors
    m.fgm.weight = 1.0  # of the adversarial loss beside the clean one's 1

    m.ema = ConfigDict()
    m.ema.decay = 0.999  # of the average a step; the average is what is scored and kept

    m.swa = ConfigDict()
    m.swa.start = 0.75  # share of the steps after which averaging begins; 1: the last step alone
    m.swa.every = 1  # steps from one that is averaged to the next

    m.layer_decay = ConfigDict()
    m.layer_decay.decay = 0.8  # of the rate a layer, head to embeddings (Clark et al. 2020, B)

    m.rates = ConfigDict()
    # Factors of the learning rate in JSON, a regex over paths of parameters each, the first that is
    # found counts: [["^top/topic/", 10.0], ["bias$", 2]]
    m.rates.rules = ""

    m.sam = ConfigDict()
    m.sam.rho = 0.05  # L2 norm of the step to the point whose gradient is taken (Foret et al., 3.1)

    m.noise_scale = ConfigDict()
    m.noise_scale.decay = 0.99  # of the averages of noise and signal a step
    return m
