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

    m.pgd = ConfigDict()
    m.pgd.steps = 3  # of ascent; each costs a pass back to the word vectors
    m.pgd.step = 0.3  # L2 norm of one, by example
    m.pgd.epsilon = 1.0  # L2 norm of all together, at most
    m.pgd.weight = 1.0  # as fgm.weight

    m.freelb = ConfigDict()
    m.freelb.steps = 3  # of ascent, and passes
    m.freelb.step = 0.1  # L2 norm of one, by example
    m.freelb.epsilon = 0.4  # L2 norm of all together, at most
    m.freelb.start = 0.1  # bound of the L2 norm of the random beginning

    m.smart = ConfigDict()
    m.smart.epsilon = 0.3  # L2 norm of the shift, by example
    m.smart.weight = 1.0  # of the divergence beside the loss
    m.smart.steps = 1  # of the power iteration; Miyato et al. 2018, 3.3: one is enough
    m.smart.start = 0.1  # L2 norm of its probe: small, but float32 must see the difference
    m.smart.symmetric = True  # False: virtual adversarial training

    m.rdrop = ConfigDict()
    m.rdrop.alpha = (
        1.0  # of the divergence beside the loss; Liang et al. 2021 take 0.1 to 1 on GLUE
    )

    m.focal = ConfigDict()
    m.focal.gamma = 2.0  # the best in Lin et al. 2017, 3.2; 0 is the plain cross entropy

    m.contrastive = ConfigDict()
    m.contrastive.weight = 0.5  # w of (1 - w) CE + w SCL; Gunel et al. 2021 search 0.1 to 0.9 …
    m.contrastive.temperature = 0.3  # … and 0.1 to 0.7, finding 0.9 and 0.3 best

    m.mixup = ConfigDict()
    m.mixup.alpha = 0.2  # of Beta(alpha, alpha); 0 mixes nothing, 1 is uniform

    m.distil = ConfigDict()
    m.distil.teacher = ""  # the workdir of a run with the same tokenizer and labels, of any size
    m.distil.temperature = 2.0  # T; Hinton et al. 2015, section 4: lower for a small student
    m.distil.weight = 0.5  # w of the teacher's word; 1 - w is that of the labels

    m.ema = ConfigDict()
    m.ema.decay = 0.999  # of the average a step; the average is what is scored and kept
    return m
