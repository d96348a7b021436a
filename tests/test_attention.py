"""Every form of attention is the plain one: values and gradients, at its dtype's rounding."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from small import SIZES, config, encoded, init, model

from bert_ft import preflight
from bert_ft.checks import check
from bert_ft.data.batches import EvalPlan
from bert_ft.errors import InputError
from bert_ft.models import attention, hf
from bert_ft.models.attention import PLAIN, Attend, attend, attend_on, chosen, require_kernel
from bert_ft.models.positions import stretch
from bert_ft.train.initial import initial_params
from bert_ft.train.system import assemble

SPLASH = Attend("splash", interpret=True)
DEVICES = 8


def given(rows=2, heads=2, length=256, width=16, dtype=jnp.float32):
    """q, k, v, and segments of three texts a row with padding behind them."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(rows, heads, length, width)), dtype) for _ in range(3))
    ends = np.sort(rng.integers(20, length - 20, (rows, 3)), axis=1)
    segments = 1 + (np.arange(length)[None, :, None] >= ends[:, None, :-1]).sum(-1)
    segments = np.where(np.arange(length) < ends[:, -1:], segments, 0)
    return q, k, v, jnp.asarray(segments, jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def both(how, q, k, v, segments):
    """(values, gradients of a weighted sum of them with respect to q, k and v)."""

    def total(q, k, v):
        out = attend(how, q, k, v, segments, segments)
        return (out.astype(jnp.float32) * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    return attend(how, q, k, v, segments, segments), jax.grad(total, (0, 1, 2))(q, k, v)


def assert_same(ours, plain, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# float32 sums of some hundred terms; bfloat16 has 8 bits, and the plain form rounds the
# probabilities to them, which a kernel does not.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float32, 2e-6), pytest.param(jnp.bfloat16, 2e-2, marks=pytest.mark.long)],
)
def test_splash_is_the_plain_form(dtype, tolerance):
    args = given(rows=1, heads=1, dtype=dtype)
    ours, plain = both(SPLASH, *args), both(PLAIN, *args)
    assert ours[0].dtype == plain[0].dtype == dtype
    assert_same(ours, plain, tolerance)
    padding = np.asarray(args[3] == 0)
    assert padding.any() and not np.asarray(ours[0]).swapaxes(1, 2)[padding].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_the_call_for_a_gpu_is_the_plain_form(dtype, tolerance, monkeypatch):
    """The same call with JAX's own implementation in cuDNN's place, which only a GPU has."""
    call = jax.nn.dot_product_attention
    asked = []

    def on_cpu(*args, implementation, **kwargs):
        asked.append(implementation)
        return call(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    args = given(length=64, dtype=dtype)
    how = Attend("cudnn")
    monkeypatch.setattr(attention, "chosen", lambda how, *_: how.kernel)
    both.clear_cache()
    ours = both(how, *args)
    assert set(asked) == {"cudnn"}
    assert_same(ours, both(PLAIN, *args), tolerance)


def test_where_a_kernel_does_not_apply_the_form_is_plain():
    half, full = jnp.dtype("bfloat16"), jnp.dtype("float32")
    splash, auto = Attend("splash"), Attend("splash", 512)
    for how, shapes, dropping, form in (
        (splash, (512, 512, 64, half), False, "splash"),
        (splash, (128, 128, 64, half), False, "splash"),
        (splash, (512, 512, 64, half), True, "plain"),
        (splash, (8, 512, 64, half), False, "plain"),
        (splash, (192, 192, 64, half), False, "plain"),
        (auto, (512, 512, 64, full), False, "splash"),
        (auto, (384, 384, 64, half), False, "plain"),
        (Attend("cudnn"), (128, 128, 64, half), False, "cudnn"),
        (Attend("cudnn"), (128, 128, 64, full), False, "plain"),
        (Attend("cudnn"), (128, 128, 20, half), False, "plain"),
        (Attend("cudnn"), (7, 128, 64, half), False, "plain"),
        (PLAIN, (512, 512, 64, half), False, "plain"),
    ):
        assert chosen(how, *shapes, dropping) == form, (how, shapes, dropping)


def device(platform, capability="9.0"):
    return SimpleNamespace(platform=platform, device_kind="a device", compute_capability=capability)


def test_the_device_chooses():
    assert attend_on("auto", True, device("cpu")) == PLAIN
    assert attend_on("auto", False, device("tpu")) == Attend("splash", 512, False)
    assert attend_on("auto", True, device("gpu")) == PLAIN
    assert attend_on("cudnn", True, device("gpu")) == Attend("cudnn")
    assert attend_on("splash", False, device("tpu")) == Attend("splash", 0, False)
    for wanted, there in (
        ("splash", device("gpu")),
        ("cudnn", device("gpu", "7.5")),
        ("cudnn", device("gpu", "gfx942")),
    ):
        with pytest.raises(InputError, match=f"config.model.attention is '{wanted}'.*'auto' or"):
            attend_on(wanted, False, there)


def test_a_kernel_that_is_asked_for_is_used_or_refused():
    half, single = jnp.dtype("bfloat16"), jnp.dtype("float32")
    for how, *rest in (
        (PLAIN, 80, 32, single),
        (Attend("splash", 512), 80, 32, single),  # as 'auto' has it
        (Attend("splash"), 256, 64, half),
        (Attend("cudnn"), 80, 64, half),
    ):
        require_kernel(how, *rest)
    for how, *rest, words in (
        (Attend("splash"), 80, 64, half, "rows of 80 tokens.*a multiple of 128"),
        (Attend("cudnn"), 80, 64, single, "float32; accepted: train.dtype=bfloat16"),
        (Attend("cudnn"), 80, 20, half, "heads of 20 features"),
    ):
        with pytest.raises(InputError, match=words):
            require_kernel(how, *rest)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model.attention": "splash"}, "where probabilities are dropped"),
        ({"model.attention": "cudnn", "model.dropout": 0.0, "methods.use": "prefix"}, "prefix"),
        ({"model.attention": "cudnn", "model.dropout": 0.0, "trials": '{"seed": [0, 1]}'},
         "trial.width=1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["train", "preflight"])
def test_what_a_kernel_does_not_go_with(flags, words, mode):
    c = config(data__train="files:a.csv", model__pretrained="dir")
    c.update_from_flattened_dict(flags)
    with pytest.raises(InputError, match=words):
        check(c, mode)


def test_dropout_of_probabilities_is_a_knob_of_its_own():
    """Without it a pass with noise keeps all probabilities."""
    args = given(length=64)
    halved = jax.jit(lambda *a: attend(PLAIN, *a, args[3], args[3], lambda p: p * 0.5))(*args[:3])
    whole = both(PLAIN, *args)[0]
    np.testing.assert_allclose(halved, 0.5 * whole, rtol=0, atol=1e-6)
    kept = attend(Attend(drops=False), *args[:3], args[3], args[3], lambda p: p * 0.5)
    np.testing.assert_allclose(kept, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer_loop", ["loop", "scan"])
def test_noise_of_other_kinds_drops_no_probabilities(layer_loop, monkeypatch):
    """Such as a method's, where config.model.dropout is 0: a kernel asked for by name is used. A
    trial's own rate is an array, so its program drops."""
    asked, form = [], attention.chosen

    def heard(how, *shapes):
        asked.append((how.kernel, shapes[-1]))
        return form(PLAIN, *shapes)

    monkeypatch.setattr(attention, "chosen", heard)
    made = model(SIZES).clone(attend=Attend("splash"), layer_loop=layer_loop)
    params, batch = init(made), EvalPlan(encoded([20, 9]), 2, 32).batch(0)

    def seen(rng, rate):
        asked.clear()
        out = made.apply({"params": params}, batch, rng, rate)
        return {dropping for kernel, dropping in asked if kernel == "splash"}, out["logits"]

    key = jax.random.key(0)
    (plain, right), (quiet, made_quiet) = seen(None, 0.0), seen(key, 0.0)
    assert plain == quiet == {False}
    np.testing.assert_allclose(made_quiet, right, rtol=0, atol=1e-6)
    assert seen(key, 0.1)[0] == seen(key, jnp.float32(0.0))[0] == {True}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__attention": "flash"}, "model.attention is 'flash'; accepted: 'auto' or 'plain'"),
        ({"model__attention": "splash"}, "set model.dropout_of_attention=False"),
        ({"model__positions": 2048}, "model.positions is 2048; accepted: 0 where"),
        ({"model__positions": -1}, "model.positions is -1; accepted: 0 or more"),
        ({"model__kind": "lstm", "model__attention": "plain"}, "accepted: 'auto' where model.kind"),
    ],
)
def test_refused(overrides, words):
    usable = {"data__train": "files:a.csv", "model__tokenizer": "vocab.txt"}
    with pytest.raises(InputError, match=words):
        check(config(**usable, **overrides))


# Positions.


@pytest.mark.parametrize(("old", "new", "offset"), [(12, 40, 0), (12, 12, 2), (9, 5, 2), (1, 4, 0)])
def test_positions_are_interpolated_as_numpy_has_it(old, new, offset):
    table = np.random.default_rng(0).normal(size=(old + offset, 6)).astype(np.float32)
    made = stretch(table, new + offset, offset)
    assert made.dtype == np.float32 and made.shape == (new + offset, 6)
    np.testing.assert_array_equal(made[:offset], table[:offset])
    at = np.linspace(0, old - 1, new)
    for column in range(6):
        expected = np.interp(at, np.arange(old), table[offset:, column])
        np.testing.assert_allclose(made[offset:, column], expected, rtol=0, atol=1e-6)


def test_a_run_may_read_longer_texts_than_its_checkpoint(world, tmp_path):
    """64 positions in the checkpoint; the table's first and last rows are its own."""
    words = {"model__positions": 96, "model__pretrained": str(world.model)}
    c = config(data__max_length=96, **words)
    fitted, said = {"labels": ["0", "1"], "names": ["0", "1"]}, []
    system = assemble(c, print, sets=(), model_dir=world.model, fitted=fitted)
    made = initial_params(system, said.append)["encoder"]["position"]["embedding"]
    stored = hf.read_tensors(world.model)["embeddings.position_embeddings.weight"]
    assert made.shape == (96, stored.shape[1]) and len(stored) == 64
    np.testing.assert_array_equal(made[np.array([0, -1])], stored[[0, -1]])
    assert any("64 positions interpolated to 96" in line for line in said)


# Several devices.


def main():
    """On eight devices: splash on each one's rows and heads, values and gradients; and whether any
    device has the probabilities, or the hidden states, of all."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    args = given(rows=4, length=128)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    there = [jax.device_put(a, rows) for a in args]
    out = {}
    with jax.set_mesh(mesh):
        lowered = both.lower(SPLASH, *there)
        compiled = lowered.compile()
        ours = compiled(*there)
        out["gathers"] = compiled.as_text().count("all-gather(")
    plain = both(PLAIN, *args)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True)
    out["off"] = [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs]
    out["shards"] = [str(x.addressable_shards[0].data.shape) for x in jax.tree.leaves(ours)]
    print(json.dumps(out))


def test_on_eight_devices():
    here = Path(__file__).parent
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    path = f"{here}{os.pathsep}{here.parent}"
    done = subprocess.run(
        [sys.executable, "-c", "import test_attention; test_attention.main()"],
        cwd=here,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["off"]) < 2e-5
    assert found["gathers"] == 0
    # Four parts of 4 rows, two of 2 heads.
    assert set(found["shards"]) == {"(1, 1, 128, 16)"}


# Compiled for a TPU.


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_slice_of_tpus_compiles_the_kernel(monkeypatch):
    """Forward and backward, on each chip's own rows; probabilities are nowhere, and the operations
    that are counted are the plain form's."""
    length = 512
    small = dict(vocab_size=1003, hidden_size=64, num_attention_heads=1, intermediate_size=128)
    sizes = preflight.EncoderConfig(**small, num_hidden_layers=2)
    monkeypatch.setitem(preflight.SIZES, "base", sizes)
    devices = preflight.topology_devices("v5e", "2x2")
    c = config(
        preflight__model="base",
        preflight__effort="quick",
        data__max_length=length,
        train__batch_size=8,
        model__dropout_of_attention=False,
    )
    system, _ = preflight.system_for(c, devices, print)
    assert system.model.attend == Attend("splash", 512, False)
    programs, state, batch = preflight.real_step(system)
    counted = [
        preflight.step_flops(model, system.task, state.params, batch, 1)
        for model in (system.model, system.model.clone(attend=PLAIN))
    ]
    assert counted[0] == counted[1]
    text = programs.compile(state, batch, preflight.EFFORTS["quick"]).as_text()
    assert text.count("splash_mha_fwd") and text.count("splash_mha_dkv")
    assert f"{length},{length}]" not in text, "a chip has the probabilities of a head"


def test_a_model_with_splash_says_what_the_plain_one_says():
    """Through the encoder, packed: its last layer asks for a few tokens only and stays plain."""
    batch = EvalPlan(encoded([20, 30, 17, 25, 38, 9]), 6, 128).batch(0)
    plain = model(SIZES)
    params = init(plain)
    fused = plain.clone(attend=SPLASH)
    ours, theirs = (jax.jit(m.apply)({"params": params}, batch)["logits"] for m in (fused, plain))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
