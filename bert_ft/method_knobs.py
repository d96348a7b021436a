"""The knobs of every method, once, as config.methods.NAME.*; none does anything before
config.methods.use names it."""

from __future__ import annotations

from ml_collections import ConfigDict

# In the encoder, the matrices that Hu et al. 2022, 4.2, adapt: those of queries and values.
QUERY_VALUE = r"attention/(query|value)$"
ALSO_TRAIN = r"^top/"  # the head is new, so it must learn; some tasks have none


def defaults() -> ConfigDict:
    m = ConfigDict()
    m.use = ""  # names, comma-separated; each wraps what those before it have made
    # Of the methods that freeze the model: what is trained beside what they add, a regex over paths
    # of parameters; '' is nothing.
    m.also_train = ALSO_TRAIN

    m.lora = ConfigDict()
    m.lora.targets = QUERY_VALUE  # regex over paths of dense layers
    m.lora.rank = 8
    m.lora.alpha = 16.0  # the update is B A x alpha / rank
    m.lora.dropout = 0.0  # of what A reads in the encoder's layers; there is none in the head's
    m.lora.rank_stabilized = False  # True: alpha / sqrt(rank), which a large rank does not stifle
    m.lora.dora = False  # True: the norms of the outputs' weights are trained apart from direction

    m.adalora = ConfigDict()
    m.adalora.targets = QUERY_VALUE  # regex over paths of dense layers, as of lora
    m.adalora.rank = 12  # at first; half as much again as at the end, as in the paper
    m.adalora.target_rank = 8  # the mean over the layers at the end
    m.adalora.alpha = 24.0  # the update is P e Q x alpha / rank
    m.adalora.begin = 50  # steps before the first triplet goes …
    m.adalora.end = 300  # … and until the last one has gone; at most what a run has
    m.adalora.beta1 = 0.85  # of the average of a weight's importance …
    m.adalora.beta2 = 0.85  # … and of its uncertainty
    m.adalora.orthogonality = 0.1  # weight of the penalty on P and Q, a mean over the layers

    m.bitfit = ConfigDict()
    m.bitfit.targets = r"^encoder/.*bias$"  # regex over paths of parameters: what is trained

    m.freeze = ConfigDict()
    m.freeze.targets = r"^encoder/(word|position|type)/"  # regex: what is not trained, by no method

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
    # Norms here and below are by sequence: an example may have two, or windows. The usual code has
    # one norm, 1, of a whole batch, which is 0.18 for each of 32 texts if they share it alike.
    m.fgm.epsilon = 0.1  # L2 norm of the step on a sequence's word vectors; at 0.3 MiniLM is lost
    m.fgm.weight = 1.0  # of the adversarial loss beside the clean one's 1

    m.pgd = ConfigDict()
    m.pgd.steps = 3  # of ascent; each costs a pass back to the word vectors
    m.pgd.step = 0.04  # L2 norm of one
    m.pgd.epsilon = 0.1  # L2 norm of all together, at most
    m.pgd.weight = 1.0  # as fgm.weight

    m.freelb = ConfigDict()
    m.freelb.steps = 3  # of ascent, and passes
    m.freelb.step = 0.1  # L2 norm of one
    m.freelb.epsilon = 0.4  # L2 norm of all together, at most
    m.freelb.start = 0.1  # bound of the L2 norm of the random beginning

    m.smart = ConfigDict()
    m.smart.epsilon = 0.3  # L2 norm of the shift
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

    m.hints = ConfigDict()  # its teacher is distil.teacher
    m.hints.hidden = 1.0  # weight of the hidden states' mean square beside the loss …
    m.hints.attention = 1.0  # … and of that of attention's scores
    m.hints.layers = ""  # of the teacher, one for each of the student's; '' spreads them evenly
    m.hints.width = 0  # of the teacher's hidden states; 0 is the student's own

    m.pseudo = ConfigDict()
    m.pseudo.threshold = 0.95  # probability from which a guess is a label (Sohn et al. 2020, 4)
    m.pseudo.weight = 1.0  # of the loss of such labels beside that of the others, at most
    m.pseudo.begin = 0  # step up to which the weight is 0 …
    m.pseudo.end = 100  # … and from which, if it is later, it is all there

    m.uda = ConfigDict()
    m.uda.weight = 1.0  # of the divergence beside the loss (Xie et al. 2020, eq. 1)
    m.uda.temperature = 0.4  # of the text's own distribution; below 1 it is sharpened
    m.uda.threshold = 0.8  # its largest probability, from which the text counts

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
