"""Spaces of settings: what is drawn from them, and what is refused."""

import json
import math

import numpy as np
import pytest

from bert_ft import space
from bert_ft.errors import InputError
from bert_ft.space import Dimension


def test_names_and_types_are_the_configs():
    found = space.parsed(
        '{"dropout": {"uniform": [0, 0.3]}, "train.batch_size": {"int": [4, 8]}}', "x"
    )
    assert found == [
        Dimension("model.dropout", "uniform", (0.0, 0.3)),
        Dimension("train.batch_size", "int", (4, 8)),
    ]
    assert type(found[0].values[0]) is float
    assert space.ends(found) == [
        {"model.dropout": 0.0},
        {"model.dropout": 0.3},
        {"train.batch_size": 4},
        {"train.batch_size": 8},
    ]


def test_draws_fill_the_range():
    given = {
        "learning_rate": {"log": [1e-5, 1e-1]},
        "dropout": {"uniform": [0.1, 0.5]},
        "seed": {"int": [3, 5]},
        "schedule": {"choice": ["linear", "cosine"]},
    }
    given["train.schedule"] = given.pop("schedule")
    dimensions, rng = space.parsed(json.dumps(given), "x"), np.random.default_rng(0)
    drawn = [space.draw(dimensions, rng) for _ in range(400)]
    assert {one["train.seed"] for one in drawn} == {3, 4, 5}
    assert {one["train.schedule"] for one in drawn} == {"linear", "cosine"}
    rates = [math.log10(one["train.learning_rate"]) for one in drawn]
    assert -5 <= min(rates) < -4.9 and -1.1 < max(rates) <= -1
    assert np.mean(rates) == pytest.approx(-3, abs=0.2)  # 3.5 standard errors
    dropouts = [one["model.dropout"] for one in drawn]
    assert 0.1 <= min(dropouts) < 0.11 and 0.49 < max(dropouts) <= 0.5


@pytest.mark.parametrize(
    "given, words",
    [
        ("{", "--space is no JSON"),
        ('{"seed": {"int": [0, 1]}, "seed": {"int": [0, 9]}}', "'seed' is given twice"),
        ("[]", "--space is '[]'; accepted: {"),
        ("{}", "--space is '{}'; accepted: {"),
        ({"learning_rat": {"log": [1, 2]}}, "'learning_rat' is no key; accepted: seed"),
        ({"mesh.data": {"int": [1, 2]}}, "'mesh.data' can't vary"),
        ({"seed": [0, 1]}, """'seed' is [0, 1]; accepted: {"int": […]} or {"choice": […]}"""),
        ({"seed": {"uniform": [0, 1]}}, "'seed' is"),
        ({"dropout": {"normal": [0, 1]}}, "'dropout' is"),
        ({"dropout": {"uniform": []}}, "'uniform' is []; accepted: a list"),
        ({"dropout": {"uniform": [0.1]}}, "accepted: two numbers"),
        ({"dropout": {"uniform": [0.1, 0.1]}}, "which holds nothing"),
        ({"dropout": {"uniform": [0.3, 0.1]}}, "which holds nothing"),
        ({"learning_rate": {"log": [0, 1e-3]}}, "'log' is [0, 0.001]; accepted: numbers above 0"),
        ({"seed": {"int": [0, 1.5]}}, "accepted: two whole numbers"),
        ({"seed": {"choice": [1, "a"]}}, "config.train.seed is 'a'"),
        ({"seed": {"choice": [1, 1]}}, "accepted: each value once"),
        ({"seed": {"int": [0, 1]}, "train.seed": {"int": [0, 1]}}, "'train.seed' is given twice"),
    ],
)
def test_refused(given, words):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(InputError) as e:
        space.parsed(text, "--space")
    assert words in str(e.value) and "\n" not in str(e.value)
