"""Trials: a trial alone, among others, stacked, and over a mesh; numbers as arguments."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.sharding import AxisType, Mesh
from small import config, init, model, task, varied

from bert_ft.data.batches import BatchPlan, in_waves
from bert_ft.errors import InputError
from bert_ft.train import fleet, optim
from bert_ft.train.knobs import knobs_of
from bert_ft.train.sharding import AXES, place, row_shards, shardings
from bert_ft.train.step import TrainState, train_step

STEPS, DEVICES = 50, 8
KINDS = (
    {"train__learning_rate": 1e-3},
    {"train__learning_rate": 3e-3, "train__warmup": 0.3, "train__weight_decay": 0.3},
    {"train__learning_rate": 1e-3, "model__dropout": 0.3, "train__clip_norm": 0.05},
    {"train__learning_rate": 2e-3, "task__label_smoothing": 0.2, "model__dropout": 0.0},
)


def mesh_of(devices, trial):
    array = np.asarray(jax.devices()[:devices]).reshape(trial, -1, 1, 1)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def run(kinds, width=1, devices=1, trial=1, steps=STEPS, shared=False, of_steps=None, until=None):
    """The losses (K, steps) of trials of these kinds, trial k of seed k, and their parameters."""
    mesh, made, base = mesh_of(devices, trial), model(), config(train__learning_rate=1e-3)
    configs = [config(train__seed=k, **kind) for k, kind in kinds]
    whole = of_steps or [steps] * len(kinds)
    groups = fleet.waves(len(kinds), mesh, width)
    plans = [
        BatchPlan(varied(60), 8, steps, 32, seed=0 if shared else c.train.seed, at_most=1,
                  multiple=row_shards(mesh))
        for c in configs
    ]  # fmt: skip
    plans = in_waves(plans, groups)

    def begin(c, count):
        knobs, params = knobs_of(c, count, type(task())(c)), init(made, c.train.seed)
        opt_state = optim.make_optimizer(c, count).init(params)
        state = TrainState(jnp.int32(0), params, opt_state)
        state = jax.device_put(state, shardings(state, mesh, "replicate"))
        return fleet.make_trial(state, knobs, mesh)

    step = functools.partial(fleet.trial_step, model=made, task=task(), config=base, noisy=True)
    losses, params, programs = np.zeros((len(kinds), steps)), [None] * len(kinds), None
    for wave in groups:
        state = fleet.stack((begin(configs[k], whole[k]) for k in wave), len(wave), mesh)
        programs = programs or fleet.wave_programs(state, len(wave), step, mesh, shared)
        for i in range(until or steps):
            first = plans[wave[0]]
            if len(wave) == 1 or shared:
                batch = place(functools.partial(first.batch, i), first.shape(i), mesh)
            else:
                makes = [functools.partial(plans[k].batch, i) for k in wave]
                batch = fleet.place_wave(makes, first.shape(i), mesh)
            programs.compile(state, batch)
            state, metrics = programs(state, batch)
            losses[wave.start : wave.stop, i] = np.atleast_1d(metrics["loss"])
        for lane, k in enumerate(wave):
            params[k] = jax.device_get(fleet.take(state, lane, len(wave)).state)
    assert len(programs) == 1
    return losses, params


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


@functools.cache
def one_after_the_other():
    return run(list(enumerate(KINDS)))


def test_a_trial_alone_is_bit_for_bit_the_same_one_among_others():
    losses, states = one_after_the_other()
    for k in (1, 3):
        alone, (state,) = run([(k, KINDS[k])])
        np.testing.assert_array_equal(alone[0], losses[k])
        assert bits(state) == bits(states[k])
    assert len({x.tobytes() for x in losses}) == len(KINDS)


def test_numbers_as_arguments_are_those_of_a_run_with_constants():
    """The plain step, whose program has its numbers as constants, on the trial's own batches."""
    losses, _ = one_after_the_other()
    for k, kind in enumerate(KINDS):
        c, made = config(train__seed=k, **kind), model()
        of_task = type(task())(c)
        optimizer, schedule = optim.make_optimizer(c, STEPS), optim.schedule(c, STEPS)
        params = init(made, k)
        state = TrainState(jnp.int32(0), params, optimizer.init(params))
        step = jax.jit(
            functools.partial(
                train_step, model=made, task=of_task, optimizer=optimizer, schedule=schedule,
                rate=c.model.dropout, seed=k, accumulate=1,
            )
        )  # fmt: skip
        plan = BatchPlan(varied(60), 8, STEPS, 32, seed=k, at_most=1)
        for i in range(STEPS):
            state, metrics = step(state, plan.batch(i))
            assert float(metrics["loss"]) == pytest.approx(losses[k, i], abs=1e-4), (k, i)


@pytest.mark.parametrize("width", [2, 4])
def test_stacked_trials_have_the_losses_of_trials_alone(width):
    expected, states = one_after_the_other()
    losses, stacked = run(list(enumerate(KINDS)), width)
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    for a, b in zip(stacked, states, strict=True):
        assert int(a.step) == int(b.step) == STEPS


def test_all_may_have_the_same_batches():
    """Two trials that differ in nothing then have the same losses."""
    losses, _ = run([(0, {}), (0, {}), (1, {})], width=3, steps=5, shared=True)
    np.testing.assert_array_equal(losses[0], losses[1])
    assert np.abs(losses[0] - losses[2]).max() > 1e-3


def test_a_trial_that_has_done_its_steps_stays_as_it_is():
    kinds = [(0, KINDS[0]), (1, KINDS[1])]
    some, more = (run(kinds, width=2, steps=9, of_steps=[6, 9], until=until)[1] for until in (6, 9))
    assert [int(trial.step) for trial in more] == [6, 9]
    assert bits(some[0]) == bits(more[0]) and bits(some[1]) != bits(more[1])


def test_a_lane_is_taken_and_put_bit_for_bit():
    mesh = mesh_of(1, 1)
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    odd = np.array([-0.0, np.nan, np.inf, 1e-42, 3.5], np.float32)
    trees = [
        jax.device_put(
            {"x": odd * (1 if k else -1), "half": odd.astype(jnp.bfloat16), "n": np.int32(-k)}, here
        )
        for k in range(4)
    ]
    wave = fleet.stack((tree for tree in trees[:3]), 3, mesh)
    wave = fleet.put(wave, 1, trees[3], 3)
    for lane, expected in enumerate([trees[0], trees[3], trees[2]]):
        assert bits(fleet.take(wave, lane, 3)) == bits(expected)


def test_waves_fill_the_mesh():
    one, two = mesh_of(1, 1), jax.sharding.AbstractMesh((2, 1, 1, 1), AXES)
    assert fleet.waves(6, one, 4) == [range(0, 3), range(3, 6)]  # the widest that divides
    assert fleet.waves(6, two, 1) == [range(0, 2), range(2, 4), range(4, 6)]
    with pytest.raises(InputError, match="mesh.trial is 2 for 5 trials"):
        fleet.waves(5, two, 1)


def over_meshes():
    """In a process of eight devices: the greatest difference to one device for each mesh."""
    assert jax.device_count() == DEVICES
    wave = a_wave_holds_only_its_share()
    kinds = list(enumerate(KINDS))
    expected, _ = run(kinds, steps=20)
    found = {}
    for name, (width, devices, trial) in MESHES.items():
        losses, _ = run(kinds, width, devices, trial, steps=20)
        found[name] = float(np.abs(losses - expected).max())
    print(json.dumps({**found, "lane": wave}))


def a_wave_holds_only_its_share():
    """The greatest difference of lanes taken from a wave over eight devices, of which each holds
    one trial while the wave is made, and one more that is on its way."""
    mesh, size = mesh_of(DEVICES, DEVICES), 1 << 16
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    values = [jax.random.normal(jax.random.key(k), (size,)) for k in range(2)]
    held = []

    def trials():
        for k in range(DEVICES):
            yield jax.device_put({"x": values[k % 2] * k}, here)
            shards = (s for x in jax.live_arrays() if x.size >= size for s in x.addressable_shards)
            there = [s.data for s in shards if s.device.id == DEVICES - 1]
            held.append(len({x.unsafe_buffer_pointer() for x in there}))

    wave = fleet.stack(trials(), DEVICES, mesh)
    assert max(held) <= 3, held  # the share, the trial being put there and the next
    assert {s.data.shape for s in wave["x"].addressable_shards} == {(1, size)}
    taken = [fleet.take(wave, k, DEVICES)["x"] for k in range(DEVICES)]
    return max(float(abs(x - values[k % 2] * k).max()) for k, x in enumerate(taken))


MESHES = {"4 trials x 2": (1, 8, 4), "2 trials x 4, in pairs": (2, 8, 2), "8 data": (1, 8, 1)}


def test_trials_and_data_over_eight_devices():
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    program = "import test_fleet; test_fleet.over_meshes()"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("lane") == 0
    assert found.keys() == MESHES.keys() and max(found.values()) < 1e-4, found
