"""Devices change where numbers are, not what they are: 1 and 8, every preset, dropout on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import XLA_FLAGS
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from meshes import STEPS, Run
from several import free_port
from small import config, model

from bert_ft.data.batches import Shape
from bert_ft.errors import InputError
from bert_ft.mesh_rules import AXES, PRESETS, Rule
from bert_ft.models.hf import flatten
from bert_ft.train.checksum import params_sha256
from bert_ft.train.sharding import make_mesh, place, ranges, row_shards, shardings, spec_for, split
from bert_ft.train.system import example_batch

DEVICES, HALF = 8, 10
RUNS = {
    "one": {"devices": 1},
    "data": {"mesh__data": 8},
    "fsdp": {"mesh__preset": "fsdp"},
    "tensor": {"mesh__data": 4, "mesh__tensor": 2, "mesh__preset": "tensor"},
    "all three": {"mesh__fsdp": 2, "mesh__tensor": 2, "mesh__preset": "fsdp+tensor"},
    "accumulated": {"mesh__data": 8, "train__accumulate": 4},
    "of rules": {
        "mesh__fsdp": 4,
        "mesh__rules": json.dumps([["/down/kernel$", [["data", "fsdp"]]], ["/kernel$", "fsdp"]]),
    },
    "scanned": {
        "mesh__fsdp": 2,
        "mesh__tensor": 2,
        "mesh__preset": "fsdp+tensor",
        "model__remat": "layer",
        "model__layer_loop": "scan",
    },
}
FOUR = {"devices": 4, "mesh__preset": "fsdp"}


def has_moments(x):
    return hasattr(x, "mu") and hasattr(x, "nu")


def about(state, losses):
    """{losses, digest, moments that lie otherwise than their parameters, device 0's share}."""
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(s))
    lie = {k: v.sharding for k, v in flatten(state.params).items()}
    strays = [k for m in (adam.mu, adam.nu) for k, v in flatten(m).items() if v.sharding != lie[k]]
    leaves = jax.tree.leaves(state.params)
    here = sum(x.addressable_shards[0].data.size for x in leaves)
    return {
        "losses": losses,
        "digest": params_sha256(state.params),
        "strays": strays,
        "share": here / sum(x.size for x in leaves),
    }


def drawn(run):
    """Digest of the parameters that the model's own initialisers draw where they belong."""
    shapes = jax.eval_shape(run.model.init, jax.random.key(0), example_batch())["params"]
    make = jax.jit(
        lambda key: run.model.init(key, example_batch())["params"],
        out_shardings=run.layout(shapes),
    )
    return params_sha256(make(jax.random.key(0)))


def main(directory):
    assert len(jax.devices()) == DEVICES
    made, out = {name: Run(**c) for name, c in RUNS.items()}, {}
    for name, run in made.items():
        state, losses = run.train(run.start(), HALF, directory if name == "data" else None)
        state, more = run.train(state)
        out[name] = about(state, losses + more)
    state, losses = made["data"].train(made["data"].restored(directory, HALF))
    out["same again"] = about(state, losses)
    losses, at = [], HALF
    for run, until in ((Run(**FOUR), 14), (made["one"], 17), (made["tensor"], STEPS)):
        state, more = run.train(run.restored(directory, at), until, directory)
        losses, at = losses + more, until
    out["moved"] = about(state, losses)
    digests = [drawn(made[name]) for name in ("one", "all three")]
    print(json.dumps({"runs": out, "drawn": digests}))


# Which device is at each place of a mesh; one process has the first four, another the others. They
# take turns, as on a v4-32; one has a run of rows and one apart, as on a v5litepod-16; and each row
# is on two devices, some of them of both processes.
TURNS = {
    "data": ((8, 1), [0, 4, 1, 5, 2, 6, 3, 7]),
    "ring": ((8, 1), [7, 0, 4, 5, 6, 1, 2, 3]),
    "tensor": ((4, 2), [0, 4, 1, 2, 5, 6, 7, 3]),
}


def placed(turn, accumulate, rows=16):
    """(rows asked for, {first row: what a device of this process has of them})."""
    (shards, tensor), order = TURNS[turn]
    devices = np.array(jax.devices())[order].reshape(1, shards, 1, tensor)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shape = Shape(rows, 3, 1, 5, frozenset({"tokens"}))
    asked = []

    def make(some):
        some = some or range(rows)
        asked.extend(some)
        tokens = np.repeat(np.array(some, np.int32)[:, None], 3, axis=1)
        made = {"tokens": tokens, "weight": np.arange(5, dtype=np.float32)}
        return made if accumulate == 1 else {k: np.stack([v, v + 100]) for k, v in made.items()}

    batch = place(make, shape, mesh, accumulate)
    axis = 0 if accumulate == 1 else 1
    here = [(s.index[axis].start or 0, s.data) for s in batch["tokens"].addressable_shards]
    assert np.array_equal(
        np.asarray(batch["weight"].addressable_data(0)).reshape(-1, 5)[0], range(5)
    )
    return asked, [(start, np.asarray(data).tolist()) for start, data in here]


def main_of_two(process, port):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    assert len(jax.local_devices()) == 4
    print(json.dumps({f"{t}/{n}": placed(t, n) for t in TURNS for n in (1, 2)}), flush=True)


@pytest.fixture(scope="module")
def of_two():
    """What `placed` gives in each of two processes."""
    here, port = Path(__file__).parent, free_port()
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
    }
    codes = [f"import test_sharding as t; t.main_of_two({i}, {port})" for i in range(2)]
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=here, env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for code in codes
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in both]
    assert not any(process.returncode for process in both), [err[-2000:] for _, err in said]
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in said]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("turn", TURNS)
def test_hosts_that_take_turns_in_the_mesh(of_two, turn, accumulate):
    """Each device has its own rows, for which its host asked, and for no others."""
    (shards, tensor), order = TURNS[turn]
    each = 16 // shards
    for process, found in enumerate(of_two):
        asked, here = found[f"{turn}/{accumulate}"]
        mine = {k // tensor for k, device in enumerate(order) if device // 4 == process}
        assert sorted(asked) == [shard * each + i for shard in sorted(mine) for i in range(each)]
        assert len(here) == 4 and {start // each for start, _ in here} == mine
        for start, data in here:
            own = [[row] * 3 for row in range(start, start + each)]
            assert data == (own if accumulate == 1 else [own, [[x + 100 for x in r] for r in own]])


def test_ranges_of_rows():
    assert ranges({(0, 4), (4, 8)}) == [range(8)]
    assert ranges([(12, 14), (0, 2), (8, 10), (10, 12)]) == [range(2), range(8, 14)]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All of it in one process with eight devices; this one may have a single one."""
    here, directory = Path(__file__).parent, tmp_path_factory.mktemp("meshes")
    flags = f"--xla_force_host_platform_device_count={DEVICES} {XLA_FLAGS}"
    code = f"import pathlib, test_sharding as t; t.main(pathlib.Path({str(directory)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
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


@pytest.fixture(scope="module")
def runs(everything):
    return everything["runs"]


@pytest.mark.parametrize("name", [n for n in RUNS if n != "one"])
def test_losses_of_twenty_steps_are_those_of_one_device(name, runs):
    one = np.array(runs["one"]["losses"])
    assert len(one) == STEPS and one[-5:].mean() < one[:5].mean(), "nothing was learnt"
    np.testing.assert_allclose(runs[name]["losses"], one, rtol=0, atol=1e-4)


def test_moments_lie_where_their_parameters_do(runs):
    assert {name: run["strays"] for name, run in runs.items()} == dict.fromkeys(runs, [])


def test_presets_and_rules_really_split_the_parameters(runs):
    share = {name: run["share"] for name, run in runs.items()}
    assert share["one"] == share["data"] == 1
    # All but biases, LayerNorm, and what no axis of it divides.
    assert share["fsdp"] < 0.25 and share["tensor"] < 0.7
    assert share["all three"] == share["scanned"] < 0.4
    assert share["of rules"] < 0.6


def test_fresh_parameters_are_the_same_on_any_mesh(everything):
    """They are drawn where they belong; so JAX must draw by place, not by device."""
    assert jax.config.jax_threefry_partitionable
    assert len(set(everything["drawn"])) == 1


def test_a_checkpoint_goes_on_bit_for_bit_on_the_same_mesh(runs):
    assert runs["same again"]["losses"] == runs["data"]["losses"][HALF:]
    assert runs["same again"]["digest"] == runs["data"]["digest"]


def test_a_checkpoint_goes_on_on_other_meshes_and_numbers_of_devices(runs):
    """Saved by 8 under data, then 4 under fsdp, then 1, then 4 x 2 with tensor."""
    expected = runs["data"]["losses"][HALF:]
    np.testing.assert_allclose(runs["moved"]["losses"], expected, rtol=0, atol=1e-4)
    assert runs["moved"]["share"] == runs["tensor"]["share"]


def abstract(trial=1, data=1, fsdp=1, tensor=1):
    sizes = (trial, data, fsdp, tensor)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shapes():
    made = jax.eval_shape(model().init, jax.random.key(0), example_batch())["params"]
    return {path: leaf.shape for path, leaf in flatten(made).items()}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_matches_a_rule_and_every_rule_a_parameter(preset):
    left = dict.fromkeys(rule.pattern for rule in PRESETS[preset])
    for path, shape in shapes().items():
        spec = spec_for(path, shape, abstract(fsdp=4, tensor=2), preset)
        assert len(spec) <= len(shape), path
        left.pop(next(r.pattern for r in PRESETS[preset] if re.search(r.pattern, path)), None)
    assert not left, "rules that match nothing: a name has changed"


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="encoder/norm/scale"):
        split("encoder/norm/scale", (32,), abstract(), [Rule("/kernel$")])


def test_the_tensor_preset_splits_columns_then_rows():
    """Megatron's way (Shoeybi et al. 2019, 3): one sum after attention, one after the rest."""
    layer = "encoder/layer_0/"
    expected = {
        "attention/query/kernel": P(None, "tensor"),
        "attention/key/bias": P("tensor"),
        "attention/output/kernel": P("tensor"),
        "attention/output/bias": P(),
        "up/kernel": P(None, "tensor"),
        "up/bias": P("tensor"),
        "down/kernel": P("tensor"),
        "down/bias": P(),
        "norm/scale": P(),
    }
    for path, spec in expected.items():
        assert spec_for(layer + path, shapes()[layer + path], abstract(tensor=2), "tensor") == spec


def test_fsdp_takes_the_largest_axis_that_it_divides():
    mesh = abstract(fsdp=8)
    assert spec_for("x/kernel", (32, 48), mesh, "fsdp") == P(None, "fsdp")
    assert spec_for("x/kernel", (48, 32), mesh, "fsdp") == P("fsdp")
    assert spec_for("x/embedding", (83, 32), mesh, "fsdp") == P(None, "fsdp")
    assert spec_for("x/kernel", (3, 5), mesh, "fsdp") == P()
    assert spec_for("x/bias", (32,), mesh, "fsdp") == P()


def test_fsdp_takes_what_tensor_leaves():
    mesh = abstract(fsdp=4, tensor=2)
    for path, shape, spec in (
        ("layer_0/up/kernel", (32, 48), P("fsdp", "tensor")),
        ("layer_0/down/kernel", (48, 32), P("tensor", "fsdp")),
        ("layer_0/up/bias", (48,), P("tensor")),
        ("encoder/word/embedding", (84, 32), P("tensor", "fsdp")),
        ("encoder/word/embedding", (83, 32), P(None, "fsdp")),
        ("encoder/position/embedding", (40, 32), P("fsdp")),
        ("encoder/norm/scale", (32,), P()),
    ):
        assert spec_for(path, shape, mesh, "fsdp+tensor") == spec, path


def test_rules_of_the_user_go_before_the_presets():
    mesh, rules = (
        abstract(data=2, fsdp=4, tensor=2),
        json.dumps(
            [
                ["/up/kernel$", [["data", "fsdp"], "tensor"]],
                ["^encoder/word", "tensor"],
                ["norm", []],
            ]
        ),
    )
    for path, shape, spec in (
        ("encoder/layer_0/up/kernel", (32, 48), P(("data", "fsdp"), "tensor")),
        ("encoder/word/embedding", (84, 32), P("tensor")),
        ("encoder/norm/kernel", (8, 8), P()),
        ("encoder/layer_0/down/kernel", (48, 32), P("fsdp")),
    ):
        assert spec_for(path, shape, mesh, "fsdp", rules) == spec, path
    # A pattern that begins at the path's beginning holds for the moments, too.
    state = optax.adam(1e-3).init({"encoder": {"word": {"embedding": np.zeros((84, 32))}}})
    found = shardings(state, mesh, "fsdp", rules)
    assert [s.spec for s in jax.tree.leaves(found)] == [P(), P("tensor"), P("tensor")]


@pytest.mark.parametrize(
    "spec",
    ['[null, "tensor"]', '"tensor"', '[null, ["tensor"]]', '[null, ["fsdp", "tensor"]]'],
)
def test_tensor_is_kept_from_the_features_of_a_table(spec):
    """XLA makes another loss of it where fsdp and data have sizes, too."""
    with pytest.raises(InputError, match=r"features of encoder/word/embedding \(7 x 32\)"):
        spec_for(
            "encoder/word/embedding", (7, 32), abstract(tensor=2), "tensor", f'[["word", {spec}]]'
        )


def test_a_rule_with_more_axes_than_its_parameter_has():
    rules = '[["bias$", [null, "fsdp"]]]'
    with pytest.raises(InputError, match=r"'bias\$' splits 2 axes; top/bias.* has 1: 32"):
        spec_for("top/bias", (32,), abstract(fsdp=2), "replicate", rules)


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
