"""Devices change where numbers are, not what they are: 1 and 8, every preset, dropout on."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from small import config, init, model, task, varied

from bert_ft.data.batches import BatchPlan
from bert_ft.errors import InputError
from bert_ft.models.hf import flatten
from bert_ft.train import optim, sharding
from bert_ft.train.sharding import AXES, RULES, make_mesh, place, row_shards, shardings, spec_for
from bert_ft.train.step import Programs, TrainState, train_step
from bert_ft.train.system import example_batch

STEPS, DEVICES = 20, 8
RUNS = {
    "one": {},
    "data": {"mesh__data": 8},
    "fsdp": {"mesh__data": 1, "mesh__fsdp": 8, "mesh__preset": "fsdp"},
    "data and fsdp": {"mesh__data": 2, "mesh__fsdp": 4, "mesh__preset": "fsdp"},
    "tensor": {"mesh__data": 4, "mesh__tensor": 2, "mesh__preset": "tensor"},
    "accumulated": {"mesh__data": 8, "train__accumulate": 2},
}


def mesh_of(c, devices):
    if devices > 1:
        return make_mesh(c)
    array = np.asarray(jax.devices()[:1]).reshape((1,) * len(AXES))
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def train(devices, **overrides):
    """{losses, moments that do not lie as their parameters do, share of params on device 0}."""
    c = config(train__learning_rate=1e-3, **overrides)
    mesh, preset, accumulate = mesh_of(c, devices), c.mesh.preset, c.train.accumulate
    optimizer, schedule = optim.make_optimizer(c, STEPS), optim.schedule(c, STEPS)
    made = model()
    params = init(made)
    params = jax.device_put(params, shardings(params, mesh, preset))
    moments = jax.eval_shape(optimizer.init, params)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings(moments, mesh, preset))(params)
    step = jax.device_put(jnp.int32(0), sharding.replicated(mesh))
    state = TrainState(step, params, opt_state)

    def run(state, batch):
        return train_step(
            state, batch, model=made, task=task(), optimizer=optimizer, schedule=schedule,
            rate=0.1, seed=3, accumulate=accumulate,
        )  # fmt: skip

    places = jax.tree.map(lambda x: x.sharding, state)
    programs = Programs(run, (places, sharding.replicated(mesh)), donate=True)
    plan = BatchPlan(
        varied(60),
        16,
        STEPS,
        32,
        seed=1,
        accumulate=accumulate,
        multiple=row_shards(mesh),
        at_most=1,
    )
    losses = []
    for i in range(STEPS):
        batch = place(functools.partial(plan.batch, i), plan.shape(i), mesh, accumulate)
        if i == 0:
            programs.compile(state, batch)
        state, metrics = programs(state, batch)
        losses.append(float(metrics["loss"]))
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(s))
    lie = {k: v.sharding for k, v in flatten(state.params).items()}
    strays = [k for m in (adam.mu, adam.nu) for k, v in flatten(m).items() if v.sharding != lie[k]]
    leaves = jax.tree.leaves(state.params)
    here = sum(x.addressable_shards[0].data.size for x in leaves)
    return {"losses": losses, "strays": strays, "share": here / sum(x.size for x in leaves)}


def has_moments(x):
    return hasattr(x, "mu") and hasattr(x, "nu")


def main():
    assert len(jax.devices()) == DEVICES
    out = {name: train(1 if name == "one" else DEVICES, **c) for name, c in RUNS.items()}
    print(json.dumps(out))


@pytest.fixture(scope="module")
def runs():
    """All of them in one process with eight devices; this one may have a single one."""
    here = Path(__file__).parent
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", "import test_sharding; test_sharding.main()"],
        cwd=here,
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", [n for n in RUNS if n != "one"])
def test_losses_of_twenty_steps_are_those_of_one_device(name, runs):
    one = np.array(runs["one"]["losses"])
    assert one[-5:].mean() < one[:5].mean(), "nothing was learnt"
    np.testing.assert_allclose(runs[name]["losses"], one, rtol=0, atol=1e-4)


def test_moments_lie_where_their_parameters_do(runs):
    assert {name: run["strays"] for name, run in runs.items()} == dict.fromkeys(RUNS, [])


def test_fsdp_and_tensor_really_split_the_parameters(runs):
    share = {name: run["share"] for name, run in runs.items()}
    assert share["one"] == share["data"] == 1
    # All but biases, LayerNorm, and what no axis of it divides.
    assert share["fsdp"] < 0.25 and share["data and fsdp"] < 0.35 and share["tensor"] < 0.75


def abstract(trial=1, data=1, fsdp=1, tensor=1):
    sizes = (trial, data, fsdp, tensor)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shapes():
    made = jax.eval_shape(model().init, jax.random.key(0), example_batch())["params"]
    return {path: leaf.shape for path, leaf in flatten(made).items()}


@pytest.mark.parametrize("preset", sorted(RULES))
def test_every_parameter_matches_a_rule_and_every_rule_a_parameter(preset):
    left = dict.fromkeys(pattern for pattern, _ in RULES[preset])
    for path, shape in shapes().items():
        spec = spec_for(path, shape, abstract(fsdp=4, tensor=2), preset)
        assert len(spec) <= len(shape), path
        left.pop(next(p for p, _ in RULES[preset] if re.search(p, path)), None)
    assert not left, "rules that match nothing: a name has changed"


def test_a_parameter_without_a_rule_is_an_error(monkeypatch):
    monkeypatch.setitem(RULES, "replicate", ((r"/kernel$", P()),))
    with pytest.raises(KeyError, match="encoder/norm/scale"):
        spec_for("encoder/norm/scale", (32,), abstract(), "replicate")


def test_the_tensor_preset_splits_columns_then_rows():
    """Megatron's way (Shoeybi et al. 2019, 3): one sum after attention, one after the rest."""
    layer = "encoder/layer_0/"
    expected = {
        "attention/query/kernel": P(None, "tensor"),
        "attention/key/bias": P("tensor"),
        "attention/output/kernel": P("tensor", None),
        "attention/output/bias": P(),
        "up/kernel": P(None, "tensor"),
        "up/bias": P("tensor"),
        "down/kernel": P("tensor", None),
        "down/bias": P(),
        "norm/scale": P(),
    }
    for path, spec in expected.items():
        assert spec_for(layer + path, shapes()[layer + path], abstract(tensor=2), "tensor") == spec


def test_fsdp_takes_the_largest_axis_that_it_divides():
    mesh = abstract(fsdp=8)
    assert spec_for("x/kernel", (32, 48), mesh, "fsdp") == P(None, "fsdp")
    assert spec_for("x/kernel", (48, 32), mesh, "fsdp") == P("fsdp", None)
    assert spec_for("x/embedding", (83, 32), mesh, "fsdp") == P(None, "fsdp")
    assert spec_for("x/kernel", (3, 5), mesh, "fsdp") == P(None, None)
    assert spec_for("x/bias", (32,), mesh, "fsdp") == P()


def test_meshes_that_do_not_divide_the_devices():
    count = len(jax.devices())
    assert dict(make_mesh(config()).shape) == {"trial": 1, "data": count, "fsdp": 1, "tensor": 1}
    for overrides in ({"mesh__data": count + 2}, {"mesh__tensor": count + 1}):
        with pytest.raises(InputError, match=f"the {count} devices") as e:
            make_mesh(config(**overrides))
        name, size = next((k[6:], v) for k, v in overrides.items())
        assert f"{name} {size}" in str(e.value)


def test_another_backend_than_was_asked_for_is_an_error():
    with pytest.raises(InputError, match=r"config\.mesh\.backend is 'tpu', but JAX found"):
        make_mesh(config(mesh__backend="tpu"))


def test_row_shards():
    assert row_shards(abstract(data=4, fsdp=2, tensor=3)) == 8
