"""What may stand with what in config.methods.use, in which order, and what depends on the steps."""

import json

import numpy as np
import pytest
from small import config, init, model

from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.method_checks import check_steps
from bert_ft.method_tables import ASCENTS
from bert_ft.methods.registry import make_weights


def use(names, **more):
    c = config(methods__use=names, data__train="files:a.csv", model__pretrained="dir", **more)
    c.methods.distil.teacher = "teacher"
    c.methods.unfreeze.schedule = '[["layer_1/", 2]]'
    if {"pseudo", "uda"} & set(names.split(",")):
        c.data.unlabelled, c.data.augment, c.data.augment_share = "files:b.csv", "swap:0.1", 1.0
    return c


@pytest.mark.parametrize(
    ("first", "then"),
    [
        *(("focal", name) for name in ("distil", "contrastive", "rdrop")),
        *(("distil", name) for name in ("hints", "pseudo", "uda", "smart", "rdrop", "adalora")),
        *(("contrastive", name) for name in ("hints", "smart", "rdrop", "adalora")),
        ("unfreeze", "adalora"),
        ("unfreeze", "noise_scale"),
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


@pytest.mark.parametrize(
    ("name", "key", "value", "steps", "says"),
    [
        (
            "unfreeze",
            "schedule",
            '[["a", 9], ["b", 10]]',
            10,
            "'[\"b\", 10]'; accepted: a step less",
        ),
        ("pseudo", "begin", 9, 10, "9; accepted: less than 9: the run has 10 steps"),
    ],
)
def test_what_begins_after_the_run_never_acts(name, key, value, steps, says):
    c = use(name)
    c.methods.pseudo.end = 20
    c.methods[name][key] = value
    check(c, "train")
    check_steps(c, steps + 1)
    for refuses in (lambda: check_steps(c, steps), lambda: check(c, "train")):
        with pytest.raises(InputError) as said:
            refuses()
        assert f"config.methods.{name}.{key} is {says}" in str(said.value)
        c.train.steps = steps


def test_an_average_has_more_steps_than_its_first():
    c = use("swa")
    c.methods.swa.every = 5
    check_steps(c, 20)  # after 15 and 20
    c.methods.swa.every = 6
    with pytest.raises(InputError, match="swa.every is 6; accepted: 5 or less: the run has 20"):
        check_steps(c, 20)
    c.methods.swa.start = 1.0  # the last step alone
    check_steps(c, 20)


def test_what_is_also_trained_is_there():
    """Its default may find nothing: some tasks have no head of their own."""
    c, params = use("lora"), init(model())
    headless = {"encoder": params["encoder"]}
    assert make_weights(c).begin(headless, 0)
    c.methods.also_train = "^head/"
    with pytest.raises(InputError, match="methods.also_train: '.head/' matches none of the model"):
        make_weights(c).begin(params, 0)
    c.methods.use = ""
    assert make_weights(c).begin(params, 0)[1] == {}, "where nothing is frozen it says nothing"


@pytest.mark.parametrize(
    ("given", "more", "says"),
    [
        ({"alpha": [0.1, 1.0]}, {}, "config.task.alpha is 0.1; accepted: -1.0 where task.name is"),
        ({"alpha": [0.1, 1.0]}, {"methods__use": "rdrop"}, "'multi', or methods.rdrop.alpha"),
        ({"weights": ["1,2", "2,1"]}, {}, "config.task.weights is '1,2'; accepted: ''"),
        (
            {"methods.rdrop.alpha": [0.1, 1.0]},
            {},
            "methods.use is ''; accepted: rdrop in it where methods.rdrop.alpha varies",
        ),
        ({"epochs": [1, 2]}, {"train__steps": 4}, "train.steps is 4; accepted: 0, or trials that"),
    ],
)
def test_trials_that_differ_in_what_nothing_reads(given, more, says):
    c = use(more.pop("methods__use", ""), **more)
    c.trials = json.dumps(given)
    with pytest.raises(InputError) as said:
        check(c, "train")
    assert says in str(said.value) and str(said.value).startswith("config.trials: trial 0 (")


def test_a_space_may_draw_the_method_whose_knobs_it_draws():
    c = use("", data__dev="files:b.csv", eval__every_steps=2, trial__halving=2, trial__samples=2)
    c.trials = '{"seed": [1, 2]}'
    space = {"methods.rdrop.alpha": {"uniform": [0.1, 1.0]}}
    c.trial.space = json.dumps(space)
    with pytest.raises(InputError, match="rdrop in it where methods.rdrop.alpha varies"):
        check(c, "train")
    c.trial.space = json.dumps({**space, "methods.use": {"choice": ["", "rdrop"]}})
    check(c, "train")


def test_halving_needs_an_evaluation_before_the_end():
    c = config(trial__halving=2, eval__every_steps=100)
    check_steps(c, 101)
    with pytest.raises(InputError, match=r"trial.halving is 2; accepted: 0 where eval.every_steps"):
        check_steps(c, 100)


def test_nothing_to_train():
    c = use("freeze")
    c.methods.freeze.targets = "."
    with pytest.raises(InputError, match="methods.use is 'freeze', with which no parameter is tr"):
        make_weights(c).begin({"encoder": {"bias": np.zeros(3)}}, 0)


def test_one_step_may_have_pseudo_labels():
    check_steps(use("pseudo"), 1)


def test_an_empty_schedule_unfreezes_nothing():
    c = use("unfreeze")
    c.methods.unfreeze.schedule = ""
    with pytest.raises(InputError, match="unfreeze.schedule is ''; accepted: .* names unfreeze"):
        check(c, "train")


@pytest.mark.parametrize("name", ["lora", "adalora", "bitfit", "freeze"])
def test_empty_targets_would_be_all(name):
    c = use(name)
    c.methods[name].targets = ""
    with pytest.raises(InputError, match=f"config.methods.{name}.targets is ''; accepted: a regex"):
        check(c, "train")


def test_uda_compares_no_text_with_itself():
    c = use("uda")
    check(c, "train")
    c.data.augment_share = 0.5
    with pytest.raises(InputError, match="config.data.augment_share is 0.5; accepted: 1 with uda"):
        check(c, "train")


@pytest.mark.parametrize(
    ("optimizer", "key"),
    [*(("adafactor", key) for key in ("beta1", "beta2", "epsilon")), ("lion", "epsilon")],
)
def test_numbers_that_an_optimizer_does_not_read(optimizer, key):
    c = use("", train__optimizer=optimizer)
    check(c, "train")
    c.train[key] = 0.5
    words = f"config.train.{key} is 0.5; accepted: .*, the default: train.optimizer '{optimizer}'"
    with pytest.raises(InputError, match=words):
        check(c, "train")
    c.train.optimizer = "lamb"
    check(c, "train")
