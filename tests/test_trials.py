"""config.trials: products and lists, what may share a program, and what is refused."""

import json

import pytest
from small import config

from bert_ft import trials
from bert_ft.errors import InputError
from bert_ft.varying import said


def with_trials(given):
    c = config()
    c.trials = given if isinstance(given, str) else json.dumps(given)
    return c


def test_none_is_one_trial():
    assert trials.settings(config()) == [{}]


def test_a_product_varies_its_last_name_fastest():
    found = trials.settings(with_trials({"seed": [0, 1], "learning_rate": [1e-5, 2]}))
    rates = [1e-5, 2.0, 1e-5, 2.0]
    assert found == [
        {"train.seed": s, "train.learning_rate": r}
        for s, r in zip([0, 0, 1, 1], rates, strict=True)
    ]
    assert type(found[1]["train.learning_rate"]) is float


def test_a_list_says_each_trial_and_full_keys_are_names_too():
    given = [{"seed": 3}, {"train.seed": 4, "train.batch_size": 8}, {"label_smoothing": 0.1}]
    assert trials.settings(with_trials(given)) == [
        {"train.seed": 3},
        {"train.seed": 4, "train.batch_size": 8},
        {"task.label_smoothing": 0.1},
    ]


def test_a_trial_is_a_config_of_its_own():
    c = with_trials({"seed": [5, 6]})
    c.lock()
    one = trials.config_of(c, trials.settings(c)[1])
    assert (one.train.seed, one.trials, c.train.seed) == (6, "", 0)


def test_groups_are_what_cannot_share_a_program():
    c = config()
    listed = [
        {"train.seed": 0},
        {"train.batch_size": 16},
        {"train.learning_rate": 1e-3},
        {"train.batch_size": 16, "model.dropout": 0.2},
        {"task.label_smoothing": 0.1},
    ]
    assert trials.groups(c, listed, ["task.label_smoothing"]) == [[0, 2, 4], [1, 3]]
    assert trials.groups(c, listed, []) == [[0, 2], [1, 3], [4]]


def test_a_trial_is_said_in_short_names():
    assert said({"train.seed": 1, "train.learning_rate": 5e-5}) == ("seed 1, learning_rate 5e-05")
    assert said({"train.batch_size": 8}) == "train.batch_size 8"


@pytest.mark.parametrize(
    "given, words",
    [
        ("{seed: 1}", "is no JSON"),
        ('{"seed": [0], "seed": [1]}', "is no JSON ('seed' is given twice)"),
        ({}, "accepted: {"),
        ([], "accepted: {"),
        ([1, 2], "accepted: {"),
        ({"seed": 1}, "'seed' is 1; accepted: a list of one value or more"),
        ({"seed": []}, "'seed' is []"),
        ({"sed": [1]}, "'sed' is no key; accepted: seed, "),
        ({"learning_rat": [1e-5]}, "did you mean learning_rate?"),
        ({"seed": ["a"]}, "config.train.seed is 'a'; accepted: int"),
        ({"seed": [1.5]}, "config.train.seed is 1.5; accepted: int"),
        ({"trials": ["x"]}, "'trials' is no key"),
        ([{"seed": 1}, {"seed": 2}, {"seed": 1}], "trials 0 and 2 are the same: seed 1"),
        ([{"seed": 1, "train.seed": 2}], "'train.seed' is given twice"),
        ({"mesh.data": [1, 2]}, "'mesh.data' can't vary, for it is the whole command's"),
        ({"trial.width": [1, 2]}, "'trial.width' can't vary"),
        ({"seed": list(range(101)), "steps": list(range(1, 101))}, "makes 10,100 trials"),
    ],
)
def test_refused(given, words):
    with pytest.raises(InputError) as e:
        trials.settings(with_trials(given))
    assert words in str(e.value)
