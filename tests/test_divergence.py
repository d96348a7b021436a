"""How far two outputs are apart, task by task, against scipy and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import entropy
from small import config

from bert_ft.models.heads import MASKED
from bert_ft.tasks.registry import make_task

RNG = np.random.default_rng(0)
P, Q = RNG.normal(0, 2, (2, 5, 3)).astype(np.float32)
WEIGHT = np.array([1, 1, 1, 1, 0], np.float32)  # the last one is filling


def kl(p, q, temperature=1.0):
    return entropy(softmax(p / temperature, axis=-1), softmax(q / temperature, axis=-1), axis=-1)


def bernoulli(p, q, temperature=1.0):
    p, q = expit(p / temperature), expit(q / temperature)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def of(name, p, q, temperature=1.0, batch=None, **knobs):
    made = make_task(
        config(task__name=name, data__text_pair="b" if name == "span" else "", **knobs)
    )
    batch = {"weight": jnp.asarray(WEIGHT), "label": jnp.zeros(5, jnp.int32), **(batch or {})}
    return made.divergence(p, q, batch, temperature)


EACH = {
    "classification": kl,
    "multilabel": lambda *of: bernoulli(*of).mean(axis=1),
    "ordinal": lambda *of: bernoulli(*of).sum(axis=1),
    "regression": lambda p, q, _: (p[:, 0] - q[:, 0]) ** 2,
}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", EACH)
def test_by_example(name, temperature):
    p, q = ({"logits": x[:, :1] if name == "regression" else x} for x in (P, Q))
    scale = 1 if name == "regression" else temperature**2
    expected = (scale * EACH[name](P, Q, temperature) * WEIGHT).sum()
    np.testing.assert_allclose(of(name, p, q, temperature), expected, rtol=1e-5)
    assert abs(float(of(name, p, p, temperature))) < 1e-5


def test_class_weights_count_as_in_the_loss():
    weights, label = np.array([0.5, 2.0, 1.0], np.float32), np.array([1, 0, 2, 1, 1])
    p, q = ({"logits": x, "class_weights": weights} for x in (P, Q))
    found = of("classification", p, q, batch={"label": label})
    np.testing.assert_allclose(found, (kl(P, Q) * weights[label] * WEIGHT).sum(), rtol=1e-5)


def test_spans_know_no_place_beyond_the_example():
    p, q = ({side: x.copy() for side in ("start", "end")} for x in (P, Q))
    for x in (p, q):
        x["end"][:, 2] = MASKED
    expected = (kl(P, Q) + kl(P[:, :2], Q[:, :2])) / 2
    np.testing.assert_allclose(of("span", p, q), (expected * WEIGHT).sum(), rtol=1e-5)


@pytest.mark.parametrize("decode", ["argmax", "crf"])
def test_tags_are_compared_at_owned_words(decode):
    """Two windows of three places in one packed row; a chain that scores nothing is no chain."""
    logits = RNG.normal(0, 2, (2, 1, 8, 4)).astype(np.float32)
    chain = {"start": jnp.zeros(4), "steps": jnp.zeros((4, 4)), "end": jnp.zeros(4)}
    p, q = ({"logits": x, **chain} for x in logits)
    batch = {
        "example_start": jnp.array([0, 4]),
        "words": jnp.array([[1, 2, -1], [1, 2, 3]]),
        "owned": jnp.array([[1, 1, 0], [0, 1, 1]]),
        "edges": jnp.ones((2, 2)),
        "weight": jnp.ones(2),
    }
    each = kl(logits[0, 0], logits[1, 0])
    found = of("tagging", p, q, batch=batch, task__decode=decode)
    np.testing.assert_allclose(found, each[[1, 2, 6, 7]].sum(), rtol=1e-4)
