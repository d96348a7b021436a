"""What may stand with what in config.methods.use, in which order, and what depends on the steps."""

import pytest
from small import config

from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.method_checks import ASCENTS, check_steps


def use(names, **more):
    c = config(methods__use=names, data__train="files:a.csv", model__pretrained="dir", **more)
    c.methods.distil.teacher = "teacher"
    return c


@pytest.mark.parametrize(
    ("first", "then"),
    [
        *(("focal", name) for name in ("distil", "contrastive", "rdrop")),
        ("unfreeze", "adalora"),
        *((name, average) for name in ("unfreeze", "adalora") for average in ("ema", "swa")),
        *((name, "noise_scale") for name in ASCENTS),
        ("noise_scale", "sam"),
    ],
)
def test_orders(first, then):
    accumulate = 2 if "noise_scale" in (first, then) else 1
    check(use(f"{first},{then}", train__accumulate=accumulate), "train")
    wrong = use(f"{then},layer_decay,{first}", train__accumulate=accumulate)
    with pytest.raises(InputError) as said:
        check(wrong, "train")
    start = f"config.methods.use is '{then},layer_decay,{first}'; accepted: {first} before {then}, "
    assert str(said.value).startswith(start + "which") or str(said.value).startswith(
        start + "whose"
    )


def test_rdrop_and_mixup_are_rivals():
    for names in ("rdrop,mixup", "mixup,rdrop"):
        with pytest.raises(InputError, match="accepted: one of rdrop, mixup"):
            check(use(names), "train")


def test_a_budget_ends_within_the_run():
    """Of steps in the config at once, of epochs as soon as they are counted."""
    c = use("adalora")
    check(c, "train")
    check_steps(c, 300)
    for steps, says in ((299, lambda: check_steps(c, 299)), (20, lambda: check(c, "train"))):
        c.train.steps = steps
        words = f"config.methods.adalora.end is 300; accepted: {steps}, the steps of the run, or"
        with pytest.raises(InputError, match=words):
            says()
