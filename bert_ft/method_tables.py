"""Which methods go together, in which order, for which tasks, and the bounds of their knobs: what
method_checks.py holds a config to."""

from __future__ import annotations

# By what a method wraps, as in README's table.
ASCENTS = ("fgm", "pgd", "freelb")  # each looks for the shift that raises the loss
SHIFTING = (*ASCENTS, "smart")  # they shift word vectors
UNLABELLED = ("pseudo", "uda")  # they learn from data.unlabelled
BUILT_IN = (
    *("lora", "adalora", "bitfit", "houlsby", "pfeiffer", "prefix", "prompt"),
    "layer_decay",
)
BERT_ONLY = (*SHIFTING, *BUILT_IN, "hints")  # they know its modules
ONE_LOSS = ("noise_scale",)  # not of a task that weighs several
# At most one of each.
RIVALS = (
    ASCENTS,
    ("focal", "mixup"),
    ("contrastive", "mixup"),
    ("distil", "mixup"),
    ("hints", "mixup"),
    ("rdrop", "mixup"),  # whose two passes would be of two mixtures
    ("pseudo", "mixup"),  # which would mix vectors with those of texts without labels …
    ("uda", "mixup"),
    ("pseudo", "contrastive"),  # … and which would compare them
    ("uda", "contrastive"),
    ("lora", "adalora"),
    ("ema", "swa"),
)
# The first stands before the others in methods.use.
BEFORE = (
    ("focal", ("distil", "contrastive", "rdrop"), "which weighs the loss that focal changes"),
    *(
        (
            name,
            ("hints", "pseudo", "uda", "smart", "rdrop", "adalora"),
            f"which adds to what {name} weighs",
        )
        for name in ("distil", "contrastive")
    ),
    ("unfreeze", ("adalora",), "which sets dropped triplets to 0 whatever is frozen"),
    ("unfreeze", ("noise_scale",), "which compares gradients that unfreeze leaves"),
    *(
        (name, ("ema", "swa"), f"which averages what {name} leaves")
        for name in ("unfreeze", "adalora")
    ),
    *((name, ("noise_scale",), f"which compares gradients that {name} makes") for name in ASCENTS),
    ("noise_scale", ("sam",), "whose gradient is not that of the micro-batches"),
)
_BY_EXAMPLE = ("classification", "multilabel", "regression", "ordinal")
_SURE = ("classification", "multilabel", "ordinal")
TASKS_OF = {  # those that have what a method asks of a task
    "smart": (*_BY_EXAMPLE, "tagging", "span", "multi"),
    "rdrop": (*_BY_EXAMPLE, "tagging", "span", "multi"),
    "focal": ("classification", "multilabel", "multi"),
    "contrastive": ("classification", "multi"),
    "mixup": (*_BY_EXAMPLE, "multi"),
    "pseudo": (*_SURE, "multi"),
    "uda": (*_SURE, "multi"),
    "distil": (*_BY_EXAMPLE, "tagging", "span", "multi"),
    "hints": (*_BY_EXAMPLE, "tagging", "span", "multi"),
    "prompt": _BY_EXAMPLE,  # their head reads the first token, so soft ones need no label
}
LEAST = {
    1: (
        *("lora.rank", "adalora.target_rank", "houlsby.width", "pfeiffer.width", "prefix.length"),
        "prompt.length",
        *("pgd.steps", "freelb.steps", "smart.steps", "swa.every"),
    ),
    0: (
        *("adalora.begin", "adalora.orthogonality", "prefix.std"),
        *(f"{name}.epsilon" for name in SHIFTING),
        *("fgm.weight", "pgd.weight", "smart.weight", "pgd.step", "freelb.step", "freelb.start"),
        *("rdrop.alpha", "focal.gamma", "mixup.alpha", "sam.rho"),
        *("pseudo.weight", "pseudo.begin", "uda.weight"),
        *("hints.hidden", "hints.attention", "hints.width"),
    ),
}
POSITIVE = (
    *("lora.alpha", "adalora.alpha", "smart.start"),
    *("contrastive.temperature", "distil.temperature", "uda.temperature"),
)
SHARES = (
    *("contrastive.weight", "distil.weight", "swa.start"),
    *("pseudo.threshold", "uda.threshold"),
)
BELOW_1 = ("lora.dropout", "adalora.beta1", "adalora.beta2", "ema.decay", "noise_scale.decay")
