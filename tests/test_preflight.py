"""Preflight: what it reads out of compiled programs, what it counts, and the real thing, small."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import config

from bert_ft import preflight, trials
from bert_ft.data.batches import Shape
from bert_ft.errors import InputError
from bert_ft.methods.weights import FormedModel
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.hf import flatten
from bert_ft.train.advice import USABLE, advice
from bert_ft.train.chips import CHIPS, slice_of
from bert_ft.train.collectives import Collective, collectives, operations
from bert_ft.train.cost import bound, compiled, product_flops, step_flops
from bert_ft.train.group import abstract_step, make_group
from bert_ft.train.sharding import abstract_batch, held_bytes, make_mesh, place
from bert_ft.train.step import TrainState, loss_and_gradient

# 1,003 words: no axis divides them, so fsdp splits the table's other side, as it does BERT's own.
SIZES = EncoderConfig(
    vocab_size=1003,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=128,
)
MESHES = {
    "data": {"mesh__preset": "replicate"},
    "fsdp": {"mesh__preset": "fsdp"},
    "both": {"mesh__preset": "fsdp", "mesh__data": 2, "mesh__fsdp": 4},
}
BATCH, LENGTH = 32, 128
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed: pip install '.[tpu]'"
)


def system(devices=(), **overrides):
    given = {"preflight__model": "base", "data__max_length": LENGTH, "train__batch_size": BATCH}
    c = config(**given | overrides)
    made, assumed = preflight.system_for(c, devices, print)
    assert len(assumed) == 2
    return made


def small_base(monkeypatch):
    monkeypatch.setitem(preflight.SIZES, "base", SIZES)


def test_what_a_method_adds_to_a_text_is_in_the_rows():
    c = config(preflight__model="base", data__max_length=LENGTH, train__batch_size=BATCH)
    for use, longest in (("prompt", 512 - 20), ("prefix", 512 - 16)):
        c.methods.use, c.data.max_length = use, longest + 1
        with pytest.raises(InputError, match=f"512 positions, less {512 - longest}"):
            preflight.system_for(c, (), print)
    c.methods.use, c.data.max_length = "prompt", LENGTH
    made, _ = preflight.system_for(c, (), print)
    assert made.row_length == 2 * LENGTH and (made.sets["train"].lengths == LENGTH + 20).all()


# Reading optimised HLO. Lines as jax 0.10.2 and libtpu 0.0.42 write them, cut short.

LOOP = """
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %i.1 = s32[] get-tuple-element(%p), index=0
  %two.1 = s32[] constant(2)
  %next.1 = s32[] add(%i.1, %two.1), metadata={op_name="x"}
  %ar.1 = f32[8]{0} all-reduce(%x), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%sum.1
  ROOT %tuple.1 = (s32[], f32[8]) tuple(%next.1, %ar.1)
}

%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %n.1 = s32[] constant(6)
  %i.2 = s32[] get-tuple-element(%p), index=0
  ROOT %less.1 = pred[] compare(%i.2, %n.1), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1
}
"""


@pytest.mark.parametrize(
    ("groups", "axis", "size"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "tensor", 2),
        ("replica_groups={{0,2},{4,6},{1,3},{5,7}}", "fsdp", 2),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data", 2),
        ("replica_groups={}", "data+fsdp+tensor", 8),
        ("replica_groups=[4,2]<=[8]", "tensor", 2),
        ("replica_groups=[2,4]<=[8]", "fsdp+tensor", 4),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", "data+fsdp", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", "data", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", "fsdp+tensor", 4),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", "fsdp", 2),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", "tensor", 2),
        ("source_target_pairs={{0,1},{1,0}}", "tensor", 2),
    ],
)
def test_groups_of_devices_in_every_form(groups, axis, size):
    kind = "collective-permute" if groups.startswith("source") else "all-reduce"
    line = f"  %x.1 = bf16[16,3]{{1,0:T(8,128)(2,1)}} {kind}(%y), channel_id=1, {groups}, z=1"
    [found] = collectives(line, {"trial": 1, "data": 2, "fsdp": 2, "tensor": 2})
    share = 1 if groups.startswith("source") else 2 * (size - 1) / size
    assert found == Collective(kind, axis, 1, 96, 96 * share, "ici")


def test_what_is_unknown_is_said_to_be():
    line = (
        "  %x = f32[4]{0} all-gather(%y), channel_id=1, replica_groups=new['form'], dimensions={0}"
    )
    [found] = collectives(line, {"data": 8})
    assert found.axis == "?" and found.count == 1 and found.bytes == 16


def test_collectives_in_a_loop_count_as_often_as_it_turns():
    [found] = collectives(LOOP, {"data": 2, "fsdp": 4})
    assert (found.axis, found.count, found.bytes) == ("fsdp", 3, 3 * 32)
    known = LOOP.replace(
        "body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert collectives(known, {"data": 2, "fsdp": 4})[0].count == 5


def test_pieces_of_one_collective_are_one_and_starts_are_read_by_their_results():
    text = "\n".join(
        (
            "  %a = f32[8]{0} all-gather(%x), channel_id=1, replica_groups={}, dimensions={0}",
            "  %b = f32[8]{0} all-gather(%y), channel_id=1, replica_groups={}, dimensions={0}",
            "  %c = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), channel_id=2, replica_groups={}",
            "  %d = f32[8]{0} all-gather-done(%c)",
            "  %e = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), "
            "channel_id=3, source_target_pairs={{0,1}}",
            "  %f = f32[2]{0} reduce-scatter(%x), channel_id=4, replica_groups={{0,1,2,3}}",
            "  %g = (f32[2]{0}, bf16[4]{0}) all-reduce(%x, %y), channel_id=5, replica_groups={}",
        )
    )
    found = {(c.kind, c.count, c.bytes) for c in collectives(text, {"data": 4})}
    assert found == {
        ("all-gather", 2, 64),
        ("collective-permute", 1, 16),
        ("reduce-scatter", 1, 32),
        ("all-reduce", 1, 16),
    }


def test_a_tpu_writes_a_reduce_scatter_as_a_computation_of_that_name():
    text = (
        "%all-reduce-scatter.5 (p: f32[8]) -> f32[2] {\n"
        "  %r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={}\n}\n"
        "ENTRY %main (a: f32[8]) -> f32[2] {\n"
        "  %f = f32[2]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.5\n}\n"
    )
    [found] = collectives(text, {"data": 4})
    assert (found.kind, found.bytes, found.sent) == ("reduce-scatter", 32, 24)


def test_between_slices():
    """As libtpu writes it: the host's runtime stands in for the collective."""
    line = (
        "  %send = (bf16[1,8,128]{2,1,0}, u32[], token[]) send(%x, %after), channel_id=3, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    [found] = collectives(line, {"data": 2, "fsdp": 4}, 2)
    assert found == Collective("all-reduce", "data", 1, 2048, 2048.0, "dcn")


# Counting.


def counted(monkeypatch, **overrides):
    small_base(monkeypatch)
    made = system(**overrides)
    _, state, batch = preflight.real_step(made)
    parts = (made.abstract_params, batch, state.params, state.frozen)
    return made, *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parts)


def freezing(targets):
    return {"methods__use": "freeze", "methods__freeze": ConfigDict({"targets": targets})}


# What is trained beside the head.
TRAINED = {
    "all": {},
    "factors": {"methods__use": "lora"},
    "biases": {"methods__use": "bitfit"},
    "upper layer": freezing("^encoder/(?!layer_1/)"),
    "nothing": freezing("^encoder/"),
}


@pytest.mark.parametrize("trained", TRAINED)
def test_operations_are_those_that_xla_counts_in_an_unrolled_step(monkeypatch, trained):
    """On top of the products XLA counts the element-wise operations, some percent here, of which
    what is frozen saves few."""
    made, params, batch, trained, frozen = counted(monkeypatch, **TRAINED[trained])
    ours = step_flops(made.model, made.task, params, batch, 1, made.weights)

    def gradient(trained, frozen, batch):
        model = FormedModel(made.model, made.weights, frozen, 0)
        return loss_and_gradient(model, made.task, trained, batch, None, 0.0, 1)

    xla = jax.jit(gradient).lower(trained, frozen, batch).compile().cost_analysis()["flops"]
    assert ours <= xla <= 1.15 * ours


def test_operations_are_those_of_the_formula(monkeypatch):
    """Of a layer, a token: 2 x its weights, and 4 S H for scores and mixing; the last layer's
    queries, output and feed-forward only for the slots (4 a row), then pooler and classifier. The
    backward pass has twice as many, half of them for the weights that are trained."""
    h, i, s, rows, n = 64, 256, LENGTH, BATCH, BATCH
    found = {}
    for trained in TRAINED:
        made, params, batch, *_ = counted(monkeypatch, **TRAINED[trained])
        found[trained] = step_flops(made.model, made.task, params, batch, 1, made.weights)
    slots = batch["slots"].shape[1]
    dense = rows * s * 2 * (4 * h * h + 2 * h * i)
    last = rows * s * 4 * h * h + rows * slots * 2 * (2 * h * h + 2 * h * i)
    attention = rows * s * 4 * s * h + rows * slots * 4 * s * h
    pooler, classifier = n * 2 * h * h, n * 2 * h * 2
    head = pooler + classifier
    forward = dense + last + attention + head
    assert found["all"] == 3 * forward
    # No weights' gradient, but that of hidden states down to the first bias, in the embeddings.
    assert found["biases"] == 2 * (dense + last) + 3 * (attention + head)
    # Of x A B each factor has three products. In the first layer x has no gradient, nor have keys.
    r = made.config.methods.lora.rank
    factors = (3 * rows * s + rows * slots) * 2 * 2 * h * r
    below = rows * s * 2 * (3 * h * h + 2 * h * r + s * h)
    assert found["factors"] == found["biases"] + 3 * factors - below
    upper = last + rows * slots * 4 * s * h
    # Its own input has no gradient: of keys, values and, for the slots, queries.
    own = rows * s * 4 * h * h + rows * slots * 2 * h * h
    assert found["upper layer"] == forward + 2 * (upper + head) - own
    assert found["nothing"] == forward + 2 * head - pooler


def test_loops_and_branches_are_counted_as_they_run():
    x = jax.ShapeDtypeStruct((8, 8), np.float32)

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    once = 2 * 8**3
    assert product_flops(jax.make_jaxpr(loop)(x).jaxpr) == 5 * once
    assert product_flops(jax.make_jaxpr(jax.checkpoint(branch))(x).jaxpr) == 2 * once


def test_accumulation_changes_no_count(monkeypatch):
    small_base(monkeypatch)
    counts = []
    for accumulate in (1, 4):
        made = system(train__accumulate=accumulate)
        _, state, batch = preflight.real_step(made)
        counts.append(step_flops(made.model, made.task, state.params, batch, accumulate))
    assert counts[0] == counts[1]


def test_the_bound_is_its_longest_part():
    chip, sent = CHIPS["v5e"], [Collective("all-reduce", "data", 1, 1, 2e9, "ici")]
    made = bound(chip, 4, int(4 * 197e12 * 1e-3), int(819e9 * 2e-3), sent, 100)
    assert (made["compute_ms"], made["memory_ms"], made["network_ms"]) == pytest.approx((1, 2, 10))
    assert made["by"] == "network" and made["ms"] == pytest.approx(10)
    assert made["mfu"] == pytest.approx(0.1) and made["examples_per_s"] == pytest.approx(10_000)
    slow = [Collective("all-reduce", "data", 1, 1, 3.125e9, "dcn")]
    assert bound(chip, 4, 1, 1, slow, 100)["ms"] == pytest.approx(1000)


# Slices.


@pytest.mark.parametrize(
    ("text", "slice_"),
    [
        ("v5e:4x8", ("v5e", "4x8")),
        ("v5e-8", ("v5e", "2x4")),
        ("v5e-256", ("v5e", "16x16")),
        ("v5litepod-16", ("v5e", "4x4")),
        ("v4-32", ("v4", "2x2x4")),
        ("v5p-16", ("v5p", "2x2x2")),
        ("v6e-16", ("v6e", "4x4")),
        ("v4:4x4x8", ("v4", "4x4x8")),
    ],
)
def test_slices(text, slice_):
    assert slice_of(text) == slice_


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v5e",
        "v5litepod",
        "v5e:",
        "v5e-",
        "v5e:3x5",
        "v5e:32x32",
        "v4:4x4",
        "v4:8x4x4",
        "v4-31",
        "v9:2x2",
        "v5p:0x4x4",
    ],
)
def test_slices_that_do_not_exist(text):
    with pytest.raises(InputError, match="is no slice; accepted: v5e or v6e with 1x1"):
        slice_of(text)


def test_refused_in_a_line(run_here, tmp_path, monkeypatch):
    run_here(tmp_path / "run", "--mode=preflight").refused("preflight.topology", "v5e:2x4")
    words = ["--mode=preflight", "--config.preflight.topology=v5e:3x5"]
    run_here(tmp_path / "run", *words).refused("'v5e:3x5' is no slice", "v5e:2x4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)  # libtpu's own import sets it
    words = ["--mode=preflight", "--config.preflight.topology=v5e:2x2"]
    run_here(tmp_path / "run", *words).refused("libtpu", "not installed", "'.[tpu]'")
    words = ["--mode=preflight", "--config.preflight.model=base", "--config.task.name=regression"]
    done = run_here(tmp_path / "run", *words, "--config.preflight.topology=v5e:2x2")
    done.refused("preflight.model", "'base'", "not classification")
    assert not done.workdir.exists()


# The real step.


def test_shapes_are_those_that_are_placed(monkeypatch):
    small_base(monkeypatch)
    made = system(train__accumulate=2)
    shape = Shape(rows=4, row_length=8, slots=2, examples=3, row_arrays=frozenset({"tokens"}))
    batch = {"tokens": np.zeros((2, 4, 8), np.int32), "weight": np.zeros((2, 3), np.float32)}
    placed = place(lambda _: batch, shape, made.mesh, 2)
    part = batch | {"tokens": batch["tokens"][:, :1]}
    for name, said in abstract_batch(part, shape, made.mesh, 2).items():
        real = placed[name]
        assert (said.shape, said.dtype) == (real.shape, real.dtype)
        assert said.sharding == real.sharding


def read(made):
    """The collectives of the training step, [kind, [dtype, elements] of its arrays]; elements of
    each parameter, and of the encoder without its word table."""
    programs, state, batch = preflight.real_step(made)
    text = programs.compile(state, batch).as_text()
    encoder = {path: math.prod(x.shape) for path, x in flatten(state.params["encoder"]).items()}
    return {
        "operations": [
            [op.kind, [[dtype, math.prod(dims)] for dtype, dims in op.shapes]]
            for op in operations(text, made.mesh.size)
        ],
        "parameters": [math.prod(x.shape) for x in jax.tree.leaves(state.params)],
        "encoder": sum(encoder.values()) - encoder["word/embedding"],
        "axes": sorted({c.axis for c in collectives(text, dict(made.mesh.shape))}),
    }


def main():
    preflight.SIZES["base"] = SIZES
    print(json.dumps({name: read(system(**c)) for name, c in MESHES.items()}))


@pytest.fixture(scope="module")
def on_cpu():
    """In a process with eight devices of its own."""
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    path = f"{here}{os.pathsep}{here.parent}"
    given = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", "import test_preflight; test_preflight.main()"],
        cwd=here,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_design(found, mesh):
    """Gradients are reduced over all devices and only parameters are gathered. What else goes
    about: a vector an example, from the device that has its row to all, whose heads then are the
    same; and where fsdp splits the word table, token ids, and vectors from those who have a part of
    each word to the one who has the row, and their gradients back: no more than the rows' own."""
    elements = {kind: [] for kind in ("all-gather", "all-to-all", "all-reduce", "reduce-scatter")}
    for kind, arrays in found["operations"]:
        elements[kind].append([n for dtype, n in arrays if dtype not in ("s32", "u32")])
    flat = {kind: [n for arrays in each for n in arrays] for kind, each in elements.items()}
    assert sum(flat["all-reduce"] + flat["reduce-scatter"]) >= found["encoder"]
    strays = [n for n in flat["all-gather"] if n not in found["parameters"]]
    assert not strays, "something else than a parameter is gathered"
    hidden_states = BATCH * LENGTH * SIZES.hidden_size
    assert hidden_states not in [n for each in flat.values() for n in each]
    if mesh == "data":
        assert not flat["all-gather"] and not flat["all-to-all"]
    else:
        assert flat["all-gather"] and len(elements["all-to-all"]) <= 3
        assert all(sum(arrays) <= hidden_states // 4 for arrays in elements["all-to-all"])


@pytest.mark.parametrize("mesh", list(MESHES))
def test_gradients_are_reduced_and_no_activations_gathered(on_cpu, mesh):
    check_design(on_cpu[mesh], mesh)
    assert set(on_cpu[mesh]["axes"]) <= {"data", "fsdp", "data+fsdp"}


@needs_libtpu
def test_the_same_on_tpus(monkeypatch):
    small_base(monkeypatch)
    devices = preflight.topology_devices("v5e", "2x4")
    check_design(read(system(devices, mesh__preset="fsdp")), "fsdp")


@needs_libtpu
def test_preflight_without_a_tpu(run_cli, tmp_path):
    """The program, from a config's own data, in an environment that says nothing of platforms."""
    words = ["--mode=preflight", "--config.preflight.topology=v5e-4", "--config.train.dtype=auto"]
    done = run_cli(tmp_path / "run", *words).ok()
    assert "v5e:2x2: 4 chips; mesh data 4" in done.out and "not a measurement" in done.out
    [report] = json.loads((tmp_path / "run" / "preflight.json").read_text())
    keys = "topology devices compile_s bytes hbm_bytes fits collectives flops_per_step bound"
    assert set(keys.split()) <= set(report)
    assert report["topology"] == "v5e:2x2" and report["devices"] == 4 and report["fits"]
    for held in (report["bytes"], report["eval_bytes"]):
        assert {"arguments", "outputs", "temporaries", "others", "total"} == set(held)
    assert {"ms", "mfu", "examples_per_s"} <= set(report["bound"])
    assert 0 < report["bound"]["mfu"] <= 1
    [reduction] = report["collectives"]
    assert (reduction["kind"], reduction["axis"]) == ("all-reduce", "data")
    assert report["assumed"] == [] and report["eval_compile_s"] > 0
    assert not (tmp_path / "run" / "checkpoints").exists()


@needs_libtpu
def test_two_slices_are_parts_of_the_data_axis(monkeypatch):
    small_base(monkeypatch)
    devices = preflight.topology_devices("v5e", "2x2", 2)
    made = system(devices, mesh__preset="fsdp")
    assert dict(made.mesh.shape) == {"trial": 1, "data": 2, "fsdp": 4, "tensor": 1}
    slices = [d.slice_index for d in made.mesh.devices.flat]
    assert slices == [0] * 4 + [1] * 4
    with pytest.raises(InputError, match="mesh.data is 1; accepted: a multiple of the 2 slices"):
        system(devices, mesh__data=1, mesh__fsdp=8, mesh__preset="fsdp")


@needs_libtpu
@pytest.mark.parametrize(
    ("slices", "overrides"),
    [
        (1, {"mesh__tensor": 2}),
        (1, {"mesh__trial": 2}),
        (2, {"mesh__data": 4, "mesh__fsdp": 4, "mesh__tensor": 2}),
    ],
)
def test_a_mesh_whose_axes_share_one_of_the_network(slices, overrides):
    """Of 4 x 4 chips none of the sizes here is a whole side."""
    devices = preflight.topology_devices("v6e", "4x4", slices)
    made = make_mesh(config(**overrides), devices)
    assert made.size == 16 * slices and set(made.devices.flat) == set(devices)
    assert all(made.shape[key.removeprefix("mesh__")] == n for key, n in overrides.items())


def test_shared_batches_lie_in_memory_once(monkeypatch):
    small_base(monkeypatch)
    for shared in (False, True):
        made = system(jax.devices()[:1], trial__width=4, trial__share_batches=shared)
        made.config.trials = '{"seed": [0, 1, 2, 3]}'
        group = make_group(made, made.config, trials.settings(made.config), [0, 1, 2, 3])
        _, _, batch, one, _ = abstract_step(group)
        read = group.samples()[0]["tokens"].shape
        assert batch["tokens"].shape == (() if shared else (4,)) + one["tokens"].shape == read


@needs_libtpu
def test_what_does_not_fit_is_said_with_what_to_change(monkeypatch):
    """By libtpu's own refusal, that of before 0.0.42, made to come early."""
    small_base(monkeypatch)
    made = system(preflight.topology_devices("v5e", "2x2"))

    def refuse(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 25.50G of 15.75G hbm. Exceeded hbm capacity by 9.75G."
        )

    monkeypatch.setattr(preflight.Programs, "compile", refuse)
    report = preflight.examine(made, CHIPS["v5e"])
    assert not report["fits"] and not report["compiled"] and report["bound"] is None
    assert report["bytes"]["total"] == int(25.5 * 2**30)
    [line] = report["advice"]
    assert "--config.train.batch_size=16" in line and "--config.train.accumulate=2" in line
    shown = preflight.table({"topology": "v5e:2x2", "slices": 1, "assumed": [], **report})
    assert "DOES NOT FIT" in shown and "25.50 GiB of 15.75 GiB" in shown


@needs_libtpu
@pytest.mark.parametrize(
    ("kind", "shape"), [("v4", "2x2x1"), ("v5e", "2x2"), ("v5p", "2x2x1"), ("v6e", "2x2")]
)
def test_the_compilers_own_refusal_is_read(kind, shape):
    """Of what is too large: two arrays of 3/4 of the memory, one of them an argument."""
    mesh = jax.sharding.Mesh(np.array(preflight.topology_devices(kind, shape)[:1]), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows, said = CHIPS[kind].hbm * 3 // 4096, []
    argument = jax.ShapeDtypeStruct((rows, 256), jax.numpy.float32, sharding=whole)

    def make():
        try:
            return jax.jit(lambda x: x + 1, out_shardings=whole).lower(argument).compile()
        except jax.errors.JaxRuntimeError as e:
            said.append(str(e))
            raise

    program, sizes, _ = compiled(make, argument, 0)
    assert program is None and sizes["arguments"] == rows * 1024
    assert sizes["total"] == pytest.approx(2 * rows * 1024, rel=0.01)
    if there := re.search(r"available HBM \(([\d.]+)G\)", said[0]):
        assert CHIPS[kind].hbm == int(float(there[1]) * 2**30)


def examined(monkeypatch, chip=CHIPS["v5e"], evaluation=True, **overrides):
    """(the report of the small model on one device, its state)."""
    small_base(monkeypatch)
    made = system(jax.devices()[:1], **overrides)
    return preflight.examine(made, chip, evaluation), preflight.real_step(made)[1]


def test_what_is_frozen_is_neither_written_nor_multiplied_by_four(monkeypatch):
    """The word table is most of the model, and the batch of one sequence takes little beside it."""
    sizes = dataclasses.replace(SIZES, vocab_size=100_003)
    monkeypatch.setattr(sys.modules[__name__], "SIZES", sizes)
    tables = "^encoder/(word|position|type)/"
    kwargs = {"train__batch_size": 1, **freezing(tables)}
    report, state = examined(monkeypatch, evaluation=False, **kwargs)
    held = report["bytes"]
    frozen, kept = held_bytes(state.frozen), held_bytes((state.params, state.opt_state))
    assert frozen > 20e6 > 10 * kept
    moved = held["arguments"] + held["outputs"] + 2 * held["temporaries"] - 2 * frozen
    assert report["bound"]["memory_ms"] == pytest.approx(1e3 * moved / CHIPS["v5e"].hbm_rate)
    # About as many as the memory holds of what one example takes beside the state.
    [most] = re.findall(r"up to about ([\d,]+) examples", report["advice"][0])
    each = held["total"] - frozen - kept
    assert 2**30 < int(most.replace(",", "")) * each < 2 * 16 * 2**30


def test_advice_counts_what_is_in_memory_at_a_time(monkeypatch):
    """Of 96 examples in 4 micro-batches 24 are; 3 times too much is 8 of them, 12 micro-batches."""
    small_base(monkeypatch)
    made = system(jax.devices()[:1], train__batch_size=96, train__accumulate=4)
    state = preflight.real_step(made)[1]
    rows = 64 * held_bytes((state, state.params))
    report = {
        **{"compiled": False, "fits": False, "places": 1, "devices": 1, "batch": {"examples": 96}},
        **{"hbm_bytes": int((rows // 64 + rows / 3 + 1) / USABLE) + 1},
        "bytes": {"total": rows // 64 + rows},
    }
    [line] = advice(made.config, report, state)
    assert "--config.train.batch_size=32 fits" in line and "or keep 96 with" in line
    assert "--config.train.accumulate=12" in line


def test_the_evaluation_lies_in_memory_beside_the_moments(monkeypatch):
    report, state = examined(monkeypatch)
    held = report["eval_bytes"]
    assert held["others"] == held_bytes(state) - held_bytes(state.params)
    assert held["arguments"] >= held_bytes(state.params) and report["fits"]
    # What forms weights makes new ones, beside the whole state.
    report, state = examined(monkeypatch, methods__use="lora")
    assert report["eval_bytes"]["others"] == held_bytes(state)


def test_an_evaluation_that_does_not_fit_is_said_too(monkeypatch):
    """Because of what lies beside it, or by libtpu's refusal; training has less to hold."""
    few = {"train__batch_size": 4, "eval__batch_size": 256}
    compile, made, refused = preflight.Programs.compile, {}, []

    def once(self, state, *rest):
        if type(state) in refused:
            raise jax.errors.JaxRuntimeError("Used 25.50G of 15.75G hbm.")
        if type(state) not in made:
            made[type(state)] = compile(self, state, *rest)
        return made[type(state)]

    monkeypatch.setattr(preflight.Programs, "compile", once)
    chip = CHIPS["v5e"]
    whole, _ = examined(monkeypatch, chip, **few)
    both = [whole[k]["total"] for k in ("bytes", "eval_bytes")]
    assert whole["fits"] and both[0] < both[1]
    between = dataclasses.replace(chip, hbm=sum(both) // 2)
    for seen, kinds in ((between, []), (chip, [k for k in made if k is not TrainState])):
        refused += kinds
        report, _ = examined(monkeypatch, seen, **few)
        assert report["compiled"] and not report["fits"] and report["bound"]
        [line] = report["advice"]
        assert re.search(r"evaluation does not fit .*--config.eval.batch_size=\d+ does", line)
        shown = preflight.table({"topology": "a CPU", "slices": 1, "assumed": [], **report})
        assert re.search(r"evaluating .*: DOES NOT FIT", shown) and ": fits (" in shown
    assert report["eval_bytes"]["total"] > 25.5 * 2**30


def test_trials_that_follow_each_other_all_lie_in_memory(monkeypatch):
    small_base(monkeypatch)
    made = system(jax.devices()[:1], trial__width=1, trial__at_once=3)
    made.config.trials = '{"seed": [0, 1, 2, 3]}'
    group = make_group(made, made.config, trials.settings(made.config), [0, 1, 2, 3])
    report = preflight.examine(made, CHIPS["v5e"], evaluation=False, group=group)
    assert [report[name] for name in ("trials", "places", "in_step")] == [4, 3, 1]
    alone = preflight.examine(made, CHIPS["v5e"], evaluation=False)
    # Parameters and two moments of each of the two others, and their few numbers.
    state = 3 * 4 * sum(x.size for x in jax.tree.leaves(made.abstract_params))
    assert 2 * state <= report["bytes"]["others"] < 2 * state + 1024
    assert alone["bytes"]["others"] == 0
    shown = preflight.table({"topology": "a CPU", "slices": 1, "assumed": [], **report})
    assert "trials       4, 3 of them at a time, 1 of them in a step; the others in 2" in shown


@needs_libtpu
def test_trials_are_compiled_together_and_share_only_their_losses(monkeypatch, tmp_path):
    small_base(monkeypatch)
    c = config(
        **{"preflight__model": "base", "preflight__topology": "v5e-4"},
        **{"preflight__effort": "quick", "data__max_length": LENGTH, "train__batch_size": BATCH},
        mesh__trial=2,
    )
    c.trials = '{"seed": [0, 1, 2, 3]}'
    [report] = preflight.preflight(c, tmp_path)
    assert (report["trials"], report["in_step"], report["mesh"]["trial"]) == (4, 4, 2)
    assert report["batch"]["examples"] == 4 * BATCH
    made = system(preflight.topology_devices("v5e", "2x2"))
    _, state, batch = preflight.real_step(made)
    alone = step_flops(made.model, made.task, state.params, batch, 1)
    assert report["flops_per_step"] == 4 * alone
    bound = report["bound"]
    assert bound["examples_per_s"] == pytest.approx(4 * BATCH / bound["ms"] * 1e3)
    between = [c for c in report["collectives"] if c["axis"] != "data"]
    assert all(c["axis"] == "trial" and c["bytes"] < 1024 for c in between), between
    assert "trials at once on a chip" in report["advice"][0]
