"""What experiments/speed makes of programs, profiles and cases, without measuring anything."""

import argparse
import json
import math
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SIZES, init, model, varied

from bert_ft.data.batches import BatchPlan
from bert_ft.train.cost import product_flops
from experiments.attempts import Attempts
from experiments.speed import anatomy, compilation, fused_attention, gpu, long, turns
from experiments.speed.hlo import Hlo

IN = "jit(train_step)/jvp(Model)/encoder"
BACK = "jit(train_step)/transpose(jvp(Model))/encoder"
PROGRAM = f"""HloModule jit_train_step, is_scheduled=true

%fused_gather (param_0.1: f32[100,8], param_1.1: s32[6,1]) -> f32[6,8] {{
  %param_0.1 = f32[100,8]{{1,0}} parameter(0)
  %param_1.1 = s32[6,1]{{1,0}} parameter(1)
  ROOT %gather.1 = f32[6,8]{{1,0}} gather(%param_0.1, %param_1.1), offset_dims={{1}}
}}

%fused_scatter (param_0.2: f32[100,8], param_1.2: s32[6,1], param_2.2: f32[6,8]) -> f32[100,8] {{
  %param_0.2 = f32[100,8]{{1,0}} parameter(0)
  %param_1.2 = s32[6,1]{{1,0}} parameter(1)
  %param_2.2 = f32[6,8]{{1,0}} parameter(2)
  ROOT %scatter.1 = f32[100,8]{{1,0}} scatter(%param_0.2, %param_1.2, %param_2.2), to_apply=%add
}}

%fused_drop (param_0.3: u32[6,8], param_1.3: f32[6,8]) -> f32[6,8] {{
  %param_0.3 = u32[6,8]{{1,0}} parameter(0)
  %param_1.3 = f32[6,8]{{1,0}} parameter(1)
  %xor.1 = u32[6,8]{{1,0}} xor(%param_0.3, %param_0.3)
  ROOT %select.1 = f32[6,8]{{1,0}} select(%xor.1, %param_1.3, %param_1.3)
}}

%fused_dot (param_0.4: f32[6,8], param_1.4: f32[8,5]) -> f32[6,5] {{
  %param_0.4 = f32[6,8]{{1,0}} parameter(0)
  %param_1.4 = f32[8,5]{{1,0}} parameter(1)
  ROOT %dot.1 = f32[6,5]{{1,0}} dot(%param_0.4, %param_1.4), lhs_contracting_dims={{1}}, \
rhs_contracting_dims={{0}}, metadata={{op_name="{IN}/layer_0/up/dot_general"}}
}}

ENTRY %main (a: f32[100,8], i: s32[6,1], u: u32[6,8], w: f32[8,5], q: f32[2,3,4,5]) -> f32[6,5] {{
  %a = f32[100,8]{{1,0}} parameter(0)
  %i = s32[6,1]{{1,0}} parameter(1)
  %u = u32[6,8]{{1,0}} parameter(2)
  %w = f32[8,5]{{1,0}} parameter(3)
  %q = f32[2,3,4,5]{{3,2,1,0}} parameter(4)
  %words = f32[6,8]{{1,0}} fusion(%a, %i), kind=kLoop, calls=%fused_gather, \
metadata={{op_name="{IN}/word/gather"}}
  %rows = f32[100,8]{{1,0}} fusion(%a, %i, %words), kind=kLoop, calls=%fused_scatter, \
metadata={{op_name="{BACK}/word/scatter-add"}}
  %drop = f32[6,8]{{1,0}} fusion(%u, %words), kind=kLoop, calls=%fused_drop, \
metadata={{op_name="{BACK}/layer_1/attention/mul"}}
  %up = f32[6,5]{{1,0}} fusion(%drop, %w), kind=kCustom, calls=%fused_dot, \
metadata={{op_name="{IN}/layer_0/up/dot_general"}}
  %scores = f32[2,3,4,4]{{3,2,1,0}} dot(%q, %q), lhs_batch_dims={{0,1}}, \
lhs_contracting_dims={{3}}, rhs_batch_dims={{0,1}}, rhs_contracting_dims={{3}}, \
metadata={{op_name="{BACK}/layer_0/attention/rnqd,rnkd->rnqk/dot_general"}}
  %moment = f32[6,5]{{1,0}} add(%up, %up), metadata={{op_name="jit(train_step)/add"}}
  %norm = f32[6,5]{{1,0}} add(%up, %up), metadata={{op_name="{IN}/layer_0/attention/norm/add"}}
  %bias = f32[6,5]{{1,0}} add(%up, %up), metadata={{op_name="{IN}/layer_0/attention/query/add"}}
  ROOT %copy.9 = f32[6,5]{{1,0}} copy(%moment)
}}
"""


def test_what_instructions_compute_and_move():
    hlo = Hlo(PROGRAM)
    found = {name: hlo.instructions[name] for name in ("words", "rows", "drop", "up", "scores")}
    products = {name: hlo.products(one) for name, one in found.items()}
    assert [p.flops for p in products["up"]] == [2 * 6 * 8 * 5]
    (scores,) = products["scores"]
    assert scores.flops == 2 * 6 * 4 * 4 * 5
    q = jnp.ones((2, 3, 4, 5))
    assert scores(q, q).shape == (2, 3, 4, 4)
    row, index = 4 * 6 * 8, 4 * 6
    # Of a table only the rows that are looked up, or changed, whose sums are read and written.
    assert hlo.moved(found["words"]) == 2 * row + index
    assert hlo.moved(found["rows"]) == 3 * row + index
    assert hlo.moved(found["drop"]) == 3 * row


def test_parts_of_the_model():
    hlo = Hlo(PROGRAM)
    parts = {
        "words": ("embeddings", "forward"),
        "rows": ("embeddings", "backward"),
        "drop": ("dropout, and what is fused with it", "backward"),
        "up": ("feed-forward products", "forward"),
        "scores": ("attention's products", "backward"),
        "moment": ("clip and AdamW", "update"),
        "norm": ("LayerNorm", "forward"),
        "bias": ("biases, sums", "forward"),
        "copy.9": ("other", ""),
    }
    assert {name: anatomy.part_of(hlo.instructions[name]) for name in parts} == parts


def test_times_of_a_profile_add_up_to_those_in_which_something_ran():
    def event(name, ts, dur=1.0):
        return {"name": name, "ts": ts, "dur": dur, "args": {"hlo_op": name}}

    events = [event("dot", 0), event("add", 2), event("loop", 20), event("body", 24)]
    events += [event("dot", 40)]
    ends = (("dot", 10), ("add", 4), ("loop", 30), ("body", 29), ("dot", 41))
    events += [{"name": f"end: {name}", "ts": ts} for name, ts in ends]
    spent = anatomy.shares(anatomy.intervals(events), {"loop"})
    assert spent == {"dot": 2 + 1 + 6 + 1, "add": 1, "loop": 4 + 1, "body": 5}


def test_operations_of_a_model_that_computes_every_token(monkeypatch):
    """Those of PyTorch's, on the gpu, are ours without the head's shortcut."""
    monkeypatch.setitem(gpu.SIZES, "small", (32, 2, 4, 48))
    made, batch = model(SIZES), BatchPlan(varied(8), 8, 1, 16, packed=False).batch(0)
    encoded = jax.make_jaxpr(lambda p: made.apply({"params": p}, batch, method="encoded"))
    rows, top = len(batch["tokens"]), 2 * (32**2 + 2 * 32)
    whole = 3 * (product_flops(encoded(init(made)).jaxpr) + rows * top)
    assert gpu.their_flops("small", rows, 16) == whole


def test_a_case_that_fails_or_hangs_is_told_in_its_line(tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu", '--case={"of": "check"}', f"--out={out}"])

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(gpu, "measure", fails)
    gpu.main()
    assert json.loads(out.read_text()) == {"left_out": "MemoryError:"}
    monkeypatch.setattr(gpu, "CASE_S", 0.1)
    assert gpu.in_a_process({"of": "check"}, tiny=True) == {"left_out": "not done in 0.1 s"}


def test_a_form_of_attention_that_is_the_plain_one_and_one_that_is_not(monkeypatch):
    monkeypatch.setattr(fused_attention, "SHAPES", ((8, 8), (2, 8)))
    found = fused_attention.differences("plain")
    assert found["equal"] and 0 < found["difference"]["plain"] < 2e-2

    def broken(form, queries, keys, dtype):
        return [np.full(3, np.nan if form == "cudnn" else 1.0)]

    monkeypatch.setattr(fused_attention, "both", broken)
    found = fused_attention.differences("cudnn")
    assert not found["equal"] and math.isnan(found["difference"]["cudnn"])


def test_a_form_that_does_not_fit_is_not_run(monkeypatch, capsys):
    ran = []

    def form(name, needed):
        def once(state):
            ran.append(name)
            return state

        shapes = {"w": jax.ShapeDtypeStruct((10,), jnp.float32)}
        return SimpleNamespace(
            temporaries=lambda: needed, shapes=lambda: shapes, state=lambda: {}, once=once
        )

    monkeypatch.setattr(long, "free_bytes", lambda: 1040)
    args = argparse.Namespace(show_only=False, rounds=2, clock="wall")
    forms = {name: form(name, needed) for name, needed in (("large", 1001), ("small", 1000))}
    seconds = long.timed(forms, args, Attempts())
    assert len(seconds.pop("small")) == 2 and not seconds and set(ran) == {"small"}
    assert "large: not run" in capsys.readouterr().out


def test_a_program_from_the_cache_is_no_compilation():
    with compilation.Heard("train_step") as heard:
        for name in ("train_step", "init", "train_step"):
            jax.monitoring.record_event_duration_secs(compilation.COMPILED, 2.0, fun_name=name)
        jax.monitoring.record_event(compilation.HIT)
        jax.monitoring.record_event_duration_secs(compilation.TRACED[0], 0.5, fun_name="train_step")
    jax.monitoring.record_event(compilation.HIT)
    assert heard.count == 1
    assert heard.spent[compilation.COMPILED] == [2.0, 2.0]
    assert heard.spent[compilation.TRACED[0]] == [0.5]


def test_each_side_has_the_batch_size_that_is_its_fastest(monkeypatch):
    now = [0.0]
    monkeypatch.setitem(turns.CLOCKS, "wall", lambda: now[0])

    def costs(at):
        def call(size):
            now[0] += abs(size - at) + 1

        return call

    sides = {"ours": (costs(32), (8, 32, 64)), "theirs": (costs(4), (1, 4))}
    best, spent = turns.best_batches(sides, "wall")
    assert best == {"ours": 32, "theirs": 4}
    assert spent["ours, batches of 8"] == [25, 25]
    run, times = turns.repeated(lambda: costs(0)(2), 10)
    began = now[0]
    run()
    assert times == 4 and now[0] - began == pytest.approx(12)
