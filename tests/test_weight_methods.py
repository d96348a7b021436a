"""Methods that bear on weights: their formulas, their beginning, what they train."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import SIZES, config, init, model, varied

from bert_ft.checks import check
from bert_ft.data.batches import EvalPlan
from bert_ft.data.prompts import with_places
from bert_ft.errors import InputError
from bert_ft.methods.method import STEP, Slope
from bert_ft.methods.registry import make_methods, make_weights
from bert_ft.models.bert import Dense
from bert_ft.models.heads import CoralHead, Model
from bert_ft.models.hf import flatten, unflatten
from bert_ft.models.noise import Noise
from bert_ft.train import optim
from bert_ft.train.knobs import knobs_of

MODEL = model()
LINEAR = r"(query|value|up)$"  # of two sizes
MODULES = ("houlsby", "pfeiffer", "prefix", "prompt")


def methods(use, **knobs):
    """A config; `lora__rank=2` sets methods.lora.rank."""
    c = config(methods__use=use)
    for key, value in knobs.items():
        group, _, name = key.partition("__")
        c.methods[group][name] = value
    return c


def plan(packed=True, prompt=0):
    return EvalPlan(with_places(varied(12), prompt), 12, 32, packed=packed)


def logits(params, batch, made=MODEL):
    return np.asarray(made.apply({"params": params}, batch)["logits"])


@pytest.fixture(scope="module")
def params():
    return init(MODEL)


@pytest.fixture(scope="module")
def plain(params):
    return logits(params, plan().batch(0))


def stirred(tree, seed=1, spread=0.3):
    """Parameters of a method as after training: none of them 0 or as drawn."""
    rng = np.random.default_rng(seed)
    moved = {p: v + spread * rng.normal(size=v.shape) for p, v in flatten(tree).items()}
    return unflatten({p: jnp.asarray(v, jnp.float32) for p, v in moved.items()})


LOW_RANK = {
    "lora": methods("lora", lora__rank=3, lora__targets=LINEAR),
    "rslora": methods("lora", lora__rank=3, lora__rank_stabilized=True),
    "dora": methods("lora", lora__rank=3, lora__dora=True, lora__targets=LINEAR),
    "adalora": methods("adalora", adalora__targets=LINEAR, adalora__rank=8),
}


@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank_begins_as_the_model_is_and_merges_to_what_it_computes(name, params, plain):
    weights, batch = make_weights(LOW_RANK[name]), plan().batch(0)
    trained, frozen = weights.begin(params, 0)
    # DoRA divides norms by themselves, which rounds.
    np.testing.assert_allclose(
        logits(weights.form(frozen, trained, 0), batch), plain, atol=1e-5, rtol=0
    )
    formed = weights.form(frozen, stirred(trained), 0)
    merged = weights.merged(formed)
    assert flatten(merged).keys() == flatten(params).keys()
    made = logits(formed, batch)
    assert np.abs(made - plain).max() > 0.1
    np.testing.assert_allclose(logits(merged, batch), made, atol=5e-5, rtol=0)


def test_rank_stabilized_scale():
    assert make_methods(LOW_RANK["lora"])[0].scale == pytest.approx(16 / 3)
    assert make_methods(LOW_RANK["rslora"])[0].scale == pytest.approx(16 / 3**0.5)


def test_dropout_is_of_what_a_reads():
    """x W + b + s (drop(x) A) B at a rate of its own; the mask is Noise's, of about half."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (64, 5), "bias": (5,), "lora_a": (64, 2), "lora_b": (2, 5)}
    leaves = {f"d/{k}": rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    x = rng.normal(size=(1, 4, 64)).astype(np.float32)
    method = make_methods(methods("lora", lora__rank=2, lora__dropout=0.5))[0]
    assert method.draws and not make_methods(methods("lora"))[0].draws
    tree = {k.removeprefix("d/"): v for k, v in method.form(leaves, 0).items()}
    drop = Noise(np.array([[1, 2]], np.uint32), 0.0, np.arange(4)[None]).dense(0, 1)
    mask = np.asarray(drop(jnp.ones_like(x), jnp.float32(0.5)))
    assert set(np.unique(mask)) == {0.0, 2.0} and 0.35 < (mask > 0).mean() < 0.65
    right = x @ leaves["d/kernel"] + leaves["d/bias"]
    right += 8.0 * (x * mask) @ leaves["d/lora_a"] @ leaves["d/lora_b"]
    made = Dense(5, jnp.float32, 0.1).apply({"params": tree}, x, drop)
    np.testing.assert_allclose(made, right, rtol=1e-4, atol=1e-3)


def test_dropout_is_the_same_packed_or_padded():
    shallow = model(dataclasses.replace(SIZES, num_hidden_layers=1))
    weights = make_weights(methods("lora", lora__dropout=0.5, lora__targets=LINEAR))
    trained, frozen = weights.begin(init(shallow), 0)
    formed = weights.form(frozen, stirred(trained), 0)
    first, padded = plan(), plan(packed=False)
    apply = jax.jit(shallow.apply)

    def found(given, rng):
        made = apply({"params": formed}, given.batch(0), rng, 0.0)
        return np.asarray(made["logits"])[np.argsort(given.order[0])]

    noisy = found(first, jax.random.key(3))
    assert np.abs(noisy - found(first, None)).max() > 0.1
    np.testing.assert_allclose(noisy, found(padded, jax.random.key(3)), atol=5e-5, rtol=0)


def test_a_prefix_of_no_length_changes_nothing(params, plain):
    weights = make_weights(methods("prefix", prefix__length=0))
    trained, frozen = weights.begin(params, 0)
    formed = weights.form(frozen, trained, 0)
    np.testing.assert_array_equal(logits(formed, plan().batch(0)), plain)


@pytest.mark.parametrize("use", ["lora", "adalora", "bitfit", "freeze"])
def test_targets_that_nothing_has_are_no_run_of_the_head_alone(use, params):
    weights = make_weights(methods(use, **{f"{use}__targets": r"self/(q|v)_proj$"}))
    of = "dense layers" if "lora" in use else "model's parameters"
    words = rf"config.methods.{use}.targets: 'self.*_proj\$' matches none of the {of}; accepted: "
    with pytest.raises(InputError, match=words + "a regex that does, as of encoder/layer_0/attent"):
        weights.begin(params, 0)


def test_a_schedule_of_what_is_not_trained(params):
    (method,) = make_methods(methods("unfreeze", unfreeze__schedule='[["layer_0", 3], ["x/", 9]]'))
    with pytest.raises(InputError, match="config.methods.unfreeze.schedule: 'x/' matches none of"):
        method.update(optax.sgd(0.1), 12).init(params)


def test_dora_is_equation_5_and_its_norm_is_a_constant_to_the_gradient():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (6, 5), "bias": (5,), "lora_a": (6, 2), "lora_b": (2, 5)}
    leaves = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    leaves["lora_magnitude"] = rng.uniform(1, 2, 5).astype(np.float32)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    method = make_methods(methods("lora", lora__rank=2, lora__dora=True, lora__targets="d"))[0]

    def output(own):
        given = method.form({f"d/{k}": v for k, v in {**leaves, **own}.items()}, 0)
        tree = {k.removeprefix("d/"): v for k, v in given.items()}
        return Dense(5, jnp.float32, 0.1).apply({"params": tree}, x)

    moved = leaves["kernel"] + 8.0 * leaves["lora_a"] @ leaves["lora_b"]
    norm = np.sqrt((moved**2).sum(axis=0))
    right = x @ (leaves["lora_magnitude"] * moved / norm) + leaves["bias"]
    np.testing.assert_allclose(output({}), right, rtol=1e-5, atol=1e-5)
    found = jax.grad(lambda a: output({"lora_a": a}).sum())(leaves["lora_a"])
    by_kernel = x.T @ np.ones((4, 5)) * (leaves["lora_magnitude"] / norm)
    np.testing.assert_allclose(found, 8.0 * by_kernel @ leaves["lora_b"].T, rtol=1e-4, atol=1e-4)


def trained_paths(use, params, **knobs):
    trained, frozen = make_weights(methods(use, **knobs)).begin(params, 0)
    both = [*flatten(trained), *flatten(frozen)]
    assert len(both) == len(set(both)), "a parameter is trained and frozen"
    return set(flatten(trained))


def test_what_is_trained(params):
    paths = flatten(params)
    top = {p for p in paths if p.startswith("top/")}
    biases = {p for p in paths if p.endswith("bias")}
    assert trained_paths("bitfit", params) == top | biases
    tables = {p for p in paths if re.match("encoder/(word|position|type)/", p)}
    assert tables and trained_paths("freeze", params) == set(paths) - tables
    below = trained_paths("freeze", params, freeze__targets=r"layer_0/|^encoder/(?!layer)")
    assert {p for p in below if "encoder" in p} == {p for p in paths if "layer_1/" in p}
    norms = {p for p in paths if re.search(r"layer_\d/(attention/)?norm/", p)}
    found = trained_paths("houlsby", params)
    assert {p for p in found if "/houlsby/" not in p} == top | norms
    assert sum("/houlsby/" in p for p in found) == 2 * 2 * 4
    assert {p for p in trained_paths("prefix", params) if "top/" not in p} == {
        f"encoder/layer_{i}/attention/prefix_{name}" for i in range(2) for name in ("key", "value")
    }


@pytest.mark.parametrize("use", ["lora", "bitfit", "pfeiffer"])
def test_nothing_else_is_trained_where_also_train_is_empty(use, params):
    c = methods(use, bitfit__targets="query/bias$")
    c.methods.also_train = ""
    trained = flatten(make_weights(c).begin(params, 0)[0])
    own = {p for p in trained if p not in flatten(params)}
    biases = {f"encoder/layer_{i}/attention/query/bias" for i in range(2)}
    assert set(trained) == (biases if use == "bitfit" else own)


def test_what_freeze_finds_no_other_method_trains(params):
    paths, found = flatten(params), r"^encoder/layer_0/|pooler"
    kept = {p for p in paths if re.search(found, p)}
    assert trained_paths("freeze", params, freeze__targets=found) == set(paths) - kept
    for use in ("bitfit", "lora", "houlsby", "pfeiffer"):
        for order in (f"{use},freeze", f"freeze,{use}"):
            beside = trained_paths(order, params, freeze__targets=found)
            assert beside == trained_paths(use, params) - kept


@pytest.mark.parametrize("name", ["log_variance", "task_weight"])
def test_what_weighs_the_losses_is_always_trained(name):
    for use in ("lora", "freeze"):
        c = methods(use, freeze__targets="^top/")
        c.methods.also_train = "classifier|pooler"
        assert make_weights(c).trains(f"top/{name}")
        assert not make_weights(c).trains("top/other/bias")


@pytest.mark.parametrize("use", ["lora", "adalora"])
@pytest.mark.parametrize("biases", [(0.5,), (1.0, 0.0, -1.0)], ids=["2 ranks", "4 ranks"])
def test_low_rank_of_ordinal_ranks_is_what_it_is_merged_to(use, biases):
    """Their classifier is one column with a bias a rank (models/heads.py, Coral)."""
    made = Model(SIZES, functools.partial(CoralHead, biases), jnp.dtype("float32"))
    dora = {"lora__dora": True} if use == "lora" else {}
    c = methods(use, **{f"{use}__targets": "classifier"}, **dora)
    c.methods.also_train = ""
    weights, model, batch = make_weights(c), init(made), plan().batch(0)

    trained, frozen = weights.begin(model, 0)
    np.testing.assert_allclose(
        logits(weights.form(frozen, trained, 0), batch, made), logits(model, batch, made), atol=1e-6
    )
    moved = jax.tree.map(lambda x: x + 0.3, trained)
    given = weights.form(frozen, moved, 0)
    assert np.abs(logits(given, batch, made) - logits(model, batch, made)).max() > 0.01
    np.testing.assert_allclose(
        logits(weights.merged(given), batch, made), logits(given, batch, made), atol=1e-5
    )


def test_a_gain_near_1_is_not_rounded_to_half_precision():
    """1.003 is 1 in bfloat16, whose number nearest to 1.003 x 1.9921875 is 2."""
    own = {"kernel": jnp.eye(1), "bias": jnp.zeros(1), "lora_a": jnp.zeros((1, 1))}
    own |= {"lora_b": jnp.zeros((1, 1)), "lora_scale": jnp.float32(1)}
    x = jnp.full((1, 1), 1.9921875)
    given = {**own, "lora_gain": jnp.full(1, 1.003)}
    made = Dense(1, jnp.bfloat16, 0.1).apply({"params": given}, x)
    assert made.dtype == jnp.bfloat16 and float(made[0, 0]) == 2.0


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer"])
def test_adapters_begin_as_the_model_is(name, params, plain):
    weights = make_weights(methods(name))
    trained, frozen = weights.begin(params, 0)
    np.testing.assert_array_equal(logits(weights.form(frozen, trained, 0), plan().batch(0)), plain)
    with pytest.raises(InputError, match=f"'{name}', which can't be merged"):
        weights.merged(params)


@pytest.mark.parametrize("name", MODULES)
def test_modules_packed_padded_and_in_every_loop(name, params, plain):
    weights = make_weights(methods(name, prompt__length=5))
    trained, frozen = weights.begin(params, 0)
    formed = weights.form(frozen, stirred(trained), 0)
    soft = 5 if name == "prompt" else 0
    first, padded = plan(prompt=soft), plan(packed=False, prompt=soft)
    assert first.shape.rows < 12, "nothing was packed"
    made = logits(formed, first.batch(0))
    assert np.abs(made - plain).max() > 0.05, "the module does nothing"
    back = np.argsort(padded.order[0])[first.order[0]]
    apart = logits(formed, padded.batch(0))[back]
    np.testing.assert_allclose(made, apart, atol=5e-5, rtol=0)
    other = Model(SIZES, MODEL.head, jnp.dtype("float32"), "layer", "scan")
    np.testing.assert_allclose(logits(formed, first.batch(0), other), made, atol=5e-5, rtol=0)


def test_a_prompt_of_words_is_those_words_in_the_text(params):
    """Behind the first token, at its positions, of its type."""
    data, words = varied(12), np.array([3, 70, 8])
    places = with_places(data, 3)
    first = places.offsets[:-1]
    tokens = places.tokens.copy()
    for k, word in enumerate(words):
        tokens[first + 1 + k] = word
    plain = EvalPlan(dataclasses.replace(places, tokens=tokens), 12, 32)
    soft = {**params["encoder"], "prompt": params["encoder"]["word"]["embedding"][words]}
    np.testing.assert_allclose(
        logits({**params, "encoder": soft}, EvalPlan(places, 12, 32).batch(0)),
        logits(params, plain.batch(0)),
        atol=1e-6,
    )
    lengths = np.diff(places.offsets) - 3
    np.testing.assert_array_equal(lengths, np.diff(data.offsets))
    rest = np.ones(len(places.tokens), bool)
    rest[(first[:, None] + [1, 2, 3]).reshape(-1)] = False
    np.testing.assert_array_equal(places.tokens[rest], data.tokens)


def test_houlsby_and_pfeiffer_stand_where_their_papers_say():
    """A layer whose sub-layers add what their biases say, so that the rest is by hand."""
    from scipy.special import erf

    from bert_ft.models.bert import Layer

    rng = np.random.default_rng(0)
    hidden = SIZES.hidden_size
    x = rng.normal(size=(1, 3, hidden)).astype(np.float32)
    ones, zeros = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
    said = rng.normal(size=(2, hidden)).astype(np.float32)

    def dense(into, out, bias=None):
        kernel = np.zeros((into, out), np.float32)
        return {"kernel": kernel, "bias": np.zeros(out, np.float32) if bias is None else bias}

    def adapter():
        shapes = {"narrow": (hidden, 3), "widen": (3, hidden)}
        return {
            k: {"kernel": rng.normal(size=s).astype(np.float32), "bias": rng.normal(size=s[1])}
            for k, s in shapes.items()
        }

    def adapted(a, act, x):
        return (
            act(x @ a["narrow"]["kernel"] + a["narrow"]["bias"]) @ a["widen"]["kernel"]
            + (a["widen"]["bias"])
        )

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)

    size = (hidden, hidden)
    attention = {name: dense(*size) for name in ("query", "key", "value")}
    attention |= {"output": dense(*size, said[0]), "norm": {"scale": ones, "bias": zeros}}
    layer = {
        "attention": attention, "norm": {"scale": ones, "bias": zeros},
        "up": dense(hidden, SIZES.intermediate_size),
        "down": dense(SIZES.intermediate_size, hidden, said[1]),
    }  # fmt: skip
    batch = {k: np.zeros((1, 3), np.int32) for k in ("positions", "segments")}
    batch["segments"] += 1

    def run(layer):
        given = jax.tree.map(jnp.asarray, layer)
        return Layer(SIZES, jnp.dtype("float32")).apply({"params": given}, x, batch, None, 0)

    first, second = adapter(), adapter()
    made = run({**layer, "attention": {**attention, "houlsby": first}, "houlsby": second})

    def gelu(x):
        return x * (1 + erf(x / 2**0.5)) / 2

    middle = norm(x + said[0] + adapted(first, gelu, said[0]))
    right = norm(middle + said[1] + adapted(second, gelu, said[1]))
    np.testing.assert_allclose(made, right, atol=1e-4)
    middle = norm(x + said[0])
    inner = adapted(first, lambda x: np.maximum(x, 0), norm(middle + said[1]))
    made = run({**layer, "pfeiffer": first})
    np.testing.assert_allclose(made, norm(middle + said[1] + inner), atol=1e-4)


FRESH = {"adamw": 1e-3, "lion": 1e-6, "lamb": 1e-3}


@pytest.mark.parametrize("name", FRESH)
def test_unfreeze_trains_from_its_step_on_as_if_it_began_there(name):
    """The other parameter is a witness; the late one's first updates are those of a fresh start."""
    c = methods("unfreeze", unfreeze__schedule='[["late/", 30]]')
    c.train.optimizer, c.train.epsilon = name, 1e-12
    knobs = knobs_of(c, 100).replace(weight_decay=0.0)
    inner = optax.chain(*optim.directions(c, knobs), optax.scale(-1e-3))
    (method,) = make_methods(c)
    optimizer, fresh = method.update(inner, 0), inner
    params = {"late": {"kernel": jnp.ones(3)}, "other": {"kernel": jnp.ones(3)}}
    state, alone = optimizer.init(params), fresh.init(params["late"])
    rng, step, other = np.random.default_rng(0), jax.jit(optimizer.update), jax.jit(fresh.update)
    for i in range(36):
        g = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=3), jnp.float32), params)
        slope = method.gradient(lambda *_, g=g: Slope(0.0, 1.0, {}, g, None), None, None)
        updates, state = step(slope(params, {STEP: i}, None).gradient, state, params)
        assert np.abs(updates["other"]["kernel"]).min() > 0
        if i < 30:
            moments = getattr(state.inner[0], "nu", state.inner[0].mu)
            assert not np.any(updates["late"]["kernel"]) and not np.any(moments["late"]["kernel"])
            continue
        right, alone = other(g["late"], alone, params["late"])
        np.testing.assert_allclose(updates["late"]["kernel"], right["kernel"], rtol=FRESH[name])


@pytest.mark.parametrize("use", ["lora,pfeiffer", "adalora,pfeiffer"])
def test_low_rank_beside_adapters_whose_paths_its_targets_find(use, params, plain):
    weights = make_weights(methods(use, lora__targets="layer_", adalora__targets="layer_"))
    trained, frozen = weights.begin(params, 0)
    assert not any("pfeiffer" in p and re.search("(lora|ada)_", p) for p in flatten(trained))
    formed = weights.form(frozen, trained, 0)
    np.testing.assert_allclose(logits(formed, plan().batch(0)), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "use, knobs, words",
    [
        ("lora,adalora", {}, "one of lora, adalora"),
        ("adalora", {"adalora__rank": 4}, "target_rank"),
        ("adalora", {"adalora__end": 10}, "adalora.begin"),
        ("bitfit", {"bitfit__targets": "("}, "a regex"),
        ("unfreeze", {"unfreeze__schedule": '{"a": 1}'}, r"\[\[\"REGEX\", STEP\]"),
        ("unfreeze", {"unfreeze__schedule": '[["a", -1]]'}, r"\[\[\"REGEX\", STEP\]"),
        ("prefix", {"prefix__length": 0}, "1 or more"),
        ("prompt", {"prompt__length": 0}, "1 or more"),
    ],
)
def test_refused(use, knobs, words):
    c = methods(use, **knobs)
    c.data.train = c.model.pretrained = "x"
    with pytest.raises(InputError, match=words):
        check(c)


def test_scan_needs_the_same_parameters_in_every_layer(params):
    weights = make_weights(methods("lora", lora__targets="layer_0/attention/query"))
    trained, frozen = weights.begin(params, 0)
    # The last layer is outside the scan where the head reads first tokens only.
    sizes = dataclasses.replace(SIZES, num_hidden_layers=3)
    deep = Model(sizes, MODEL.head, jnp.dtype("float32"), "none", "scan")
    formed = weights.form(frozen, trained, 0)
    formed["encoder"]["layer_2"] = formed["encoder"]["layer_1"]
    with pytest.raises(InputError, match="layer_loop"):
        logits(formed, plan().batch(0), deep)
