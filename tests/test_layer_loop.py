"""Rematerialisation and the loop over layers change memory and time, and no number.

Dropout is on: each layer has its own words of noise, so that a scan draws what the loop draws."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from small import CLASSES, SIZES, config, init, task, varied

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.errors import InputError
from bert_ft.models.heads import Model, SequenceHead, TokenHead
from bert_ft.models.hf import flatten
from bert_ft.train.step import loss_and_gradient

BERT = dataclasses.replace(SIZES, num_hidden_layers=3)
WAYS = [w for w in itertools.product(("none", "dots", "layer"), ("loop", "scan"))][1:]
HEADS = {
    "first": functools.partial(SequenceHead, CLASSES),
    "all": functools.partial(TokenHead, 3, 0.0),
}
BATCH = BatchPlan(varied(60), 16, 1, 32, seed=1, at_most=1).batch(0)


def gradient_of(sizes, remat="none", loop="loop", rate=0.1):
    """(loss, gradient by path) of one batch."""
    made = Model(sizes, HEADS["first"], jnp.dtype("float32"), remat, loop)

    def run(params, batch, key):
        return loss_and_gradient(made, task(), params, batch, key, rate, 1)

    metrics, gradient = jax.jit(run)(init(made), BATCH, jax.random.key(3))
    return float(metrics["loss"]), flatten(gradient)


@functools.cache
def reference():
    return gradient_of(BERT)


def assert_same(found, expected):
    assert abs(found[0] - expected[0]) < 1e-5
    assert found[1].keys() == expected[1].keys()
    for path, value in expected[1].items():
        np.testing.assert_allclose(found[1][path], value, rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("remat", "loop"), WAYS)
def test_the_same_gradient(remat, loop):
    assert_same(gradient_of(BERT, remat, loop), reference())


def test_dropout_was_on():
    without, _ = gradient_of(BERT, rate=0.0)
    assert abs(without - reference()[0]) > 0.01


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        # Where the head reads first tokens only, the last layer is not of the scan.
        ("first", {"num_hidden_layers": 1}),
        ("first", {"num_hidden_layers": 2}),
        ("all", {"num_hidden_layers": 1}),
        ("all", {}),
        ("first", {"family": "roberta", "position_offset": 2, "type_vocab_size": 1}),
        ("first", {"family": "distilbert", "type_vocab_size": 0}),
        ("first", {"family": "electra", "embedding_size": 16}),
    ],
)
def test_the_same_outputs_and_parameters_in_any_encoder(head, changes):
    sizes = dataclasses.replace(BERT, **changes)
    plain, scanned = (
        Model(sizes, HEADS[head], jnp.dtype("float32"), *way)
        for way in (("none", "loop"), ("dots", "scan"))
    )
    params = init(plain)
    assert jax.tree.structure(params) == jax.tree.structure(init(scanned)), "other parameters"
    ours, theirs = (
        jax.jit(made.apply)({"params": params}, BATCH, jax.random.key(3), 0.1)["logits"]
        for made in (scanned, plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def kept(capsys, remat, loop="loop"):
    """Shapes that the backward pass finds kept beside what went in."""
    made = Model(BERT, HEADS["all"], jnp.dtype("float32"), remat, loop)

    def total(params):
        return made.apply({"params": params}, BATCH, jax.random.key(0), 0.1)["logits"].sum()

    print_saved_residuals(total, init(made))
    lines = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    shapes = (re.match(r"\w+\[([\d,]*)\]", line)[1] for line in lines)
    return [tuple(map(int, filter(None, shape.split(",")))) for shape in shapes]


def test_what_is_kept_for_the_backward_pass(capsys):
    """'none' keeps attention's probabilities, 'dots' the products with weights and not those,
    'layer' nothing as wide as the feed-forward block."""
    rows = len(BATCH["tokens"])
    probabilities = (rows, BERT.num_attention_heads, 32, 32)
    wide = (rows, 32, BERT.intermediate_size)
    counts = {
        remat: [kept(capsys, remat).count(s) for s in (probabilities, wide)]
        for remat in ("none", "dots", "layer")
    }
    assert min(counts["none"]) >= 3
    assert counts["dots"] == [0, 3]
    assert counts["layer"] == [0, 0]
    assert not [s for s in kept(capsys, "layer", "scan") if s[1:] in (probabilities, wide)]
    assert [s for s in kept(capsys, "none", "scan") if s[1:] == probabilities]


def test_the_scan_compiles_one_layer_for_all():
    def layers_in(loop):
        made = Model(BERT, HEADS["all"], jnp.dtype("float32"), "none", loop)
        jaxpr = jax.make_jaxpr(made.apply)({"params": init(made)}, BATCH)
        return str(jaxpr).count("= erf ")

    assert (layers_in("loop"), layers_in("scan")) == (3, 1)


def test_what_an_lstm_has_not():
    usable = {"data__train": "files:x.csv", "model__tokenizer": "vocab.txt"}
    with pytest.raises(InputError, match="model.remat is 'layer'; accepted: 'none' where"):
        check(config(model__kind="lstm", model__remat="layer", **usable))
    with pytest.raises(InputError, match="model.layer_loop is 'for'; accepted: 'loop' or 'scan'"):
        check(config(model__layer_loop="for", **usable))
    check(config(model__remat="dots", model__layer_loop="scan", **usable))
