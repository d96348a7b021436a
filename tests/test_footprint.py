"""Bytes a device by group, and what no rule could split, before the first step."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from small import SIZES, config, model

from bert_ft.mesh_rules import AXES
from bert_ft.models.hf import flatten
from bert_ft.train import footprint, optim
from bert_ft.train.sharding import shardings
from bert_ft.train.step import TrainState
from bert_ft.train.system import example_batch


def mesh(data=1, fsdp=1, tensor=1):
    return AbstractMesh((1, data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def state(m, preset, rules=""):
    """Of shapes with shardings."""
    params = jax.eval_shape(model().init, jax.random.key(0), example_batch())["params"]
    opt_state = jax.eval_shape(optim.make_optimizer(config(), 10).init, params)
    made = TrainState(jax.ShapeDtypeStruct((), np.int32), params, opt_state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        made,
        shardings(made, m, preset, rules),
    )


def test_groups_hold_every_parameter_once():
    h, i, n = SIZES.hidden_size, SIZES.intermediate_size, SIZES.num_hidden_layers
    expected = {
        "embeddings": (83 + 40 + 2) * h,
        "attention": n * 4 * (h * h + h),
        "feed-forward": n * (2 * h * i + i + h),
        "norms": (2 * n + 1) * 2 * h,
        "head": h * h + h + 3 * h + 3,
    }
    found = footprint.device_bytes(state(mesh(), "replicate"))
    assert found.pop("optimizer moments")[0] == 4 * (2 * sum(expected.values()) + 2)  # 2 counters
    assert found == {name: (4 * count, 4 * count) for name, count in expected.items()}


def test_bytes_on_a_device_are_those_of_its_shards():
    m = mesh(data=2, fsdp=2, tensor=2)
    made = state(m, "fsdp+tensor")
    leaves = jax.tree.leaves((made.params, made.opt_state))
    here = sum(4 * int(np.prod(x.sharding.shard_shape(x.shape))) for x in leaves)
    found = footprint.device_bytes(made)
    assert sum(part for _, part in found.values()) == here
    # Matrices by 4, the word table (83 rows) by 2.
    assert found["feed-forward"][1] < 0.3 * found["feed-forward"][0]
    assert found["norms"][0] == found["norms"][1]


def test_the_table_adds_up_and_is_short():
    lines = footprint.table(state(mesh(fsdp=4), "fsdp"), 4)
    assert len(lines) == 8 and "on each of 4" in lines[0]
    columns = [re.match(r"(.{18})\s+([\d.,]+)\s+([\d.,]+)", line).groups() for line in lines[1:]]
    numbers = np.array([[float(x.replace(",", "")) for x in c[1:]] for c in columns])
    assert columns[-1][0].strip() == "total"
    np.testing.assert_allclose(numbers[:-1].sum(axis=0), numbers[-1], atol=0.035)
    assert "of gradient within a step" in lines[-1]


def test_what_is_frozen_has_no_gradient():
    made = state(mesh(), "replicate")
    encoder = sum(x.size * 4 for x in jax.tree.leaves(made.params["encoder"]))
    head = sum(x.size * 4 for x in jax.tree.leaves(made.params["top"]))
    params = {"top": made.params["top"]}
    split = dataclasses.replace(made, params=params, frozen={"encoder": made.params["encoder"]})
    assert f", and {(encoder + head) / 1e6:.2f} of gradient" in footprint.table(made, 1)[-1]
    assert f", and {head / 1e6:.2f} of gradient" in footprint.table(split, 1)[-1]


@pytest.mark.parametrize(
    ("sizes", "overrides", "said"),
    [
        ({"data": 4}, {}, []),
        ({"fsdp": 4}, {"preset": "fsdp"}, []),  # 3 classes, but 32 features
        (
            {"tensor": 2},
            {"preset": "tensor"},
            ["tensor 2 divides nothing of embeddings: encoder/word/embedding (83 x 32) stays"],
        ),
        (
            {"fsdp": 5},
            {"rules": json.dumps([["classifier/kernel$", "fsdp"]])},
            [
                "fsdp 5 divides nothing of head: top/classifier/kernel (32 x 3) stays whole",
                "preset 'replicate' and config.mesh.rules put no parameter on fsdp 5",
            ],
        ),
        (
            {"fsdp": 2, "tensor": 2},
            {"preset": "fsdp"},
            ["preset 'fsdp' put no parameter on tensor 2, which only repeats the computation"],
        ),
        (
            {"fsdp": 2},
            {},
            ["preset 'replicate' put no parameter on fsdp 2, which splits the batch"],
        ),
        (
            {"fsdp": 2},
            {"rules": json.dumps([["bias$", ["fsdp"]], ["/upp/", "fsdp"]])},
            [
                "fsdp 2 divides nothing of head: top/classifier/bias (3) stays whole",
                "config.mesh.rules: '/upp/' matches no parameter",
            ],
        ),
    ],
)
def test_a_rule_that_divides_nothing_says_so(sizes, overrides, said):
    c = config(**{f"mesh__{k}": v for k, v in overrides.items()})
    made = state(mesh(**sizes), c.mesh.preset, c.mesh.rules)
    lines = list(footprint.unsplit(flatten(made.params), mesh(**sizes), c))
    assert len(lines) == len(said), lines
    for line, words in zip(lines, said, strict=True):
        assert line.startswith("sharding: ") and words in line
