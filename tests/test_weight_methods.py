"""Methods that bear on weights: their formulas, their beginning, what they train."""

import dataclasses
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
from bert_ft.methods import adalora
from bert_ft.methods.method import Sums, Wrapped
from bert_ft.methods.registry import make_methods, make_weights
from bert_ft.models.bert import Dense
from bert_ft.models.heads import Model
from bert_ft.models.hf import flatten, unflatten

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
        logits(weights.form(frozen, trained, 0), batch), plain, atol=2e-6, rtol=0
    )
    formed = weights.form(frozen, stirred(trained), 0)
    merged = weights.merged(formed)
    assert flatten(merged).keys() == flatten(params).keys()
    made = logits(formed, batch)
    assert np.abs(made - plain).max() > 0.1
    np.testing.assert_allclose(logits(merged, batch), made, atol=1e-5, rtol=0)


def test_rank_stabilized_scale():
    assert make_methods(LOW_RANK["lora"])[0].scale == pytest.approx(16 / 3)
    assert make_methods(LOW_RANK["rslora"])[0].scale == pytest.approx(16 / 3**0.5)


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
    np.testing.assert_allclose(made, apart, atol=1e-5, rtol=0)
    other = Model(SIZES, MODEL.head, jnp.dtype("float32"), "layer", "scan")
    np.testing.assert_allclose(logits(formed, first.batch(0), other), made, atol=1e-5, rtol=0)


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


def test_unfreeze_trains_from_its_step_on_as_if_it_began_there():
    """The other parameter is a witness; the late one's first updates are those of a fresh Adam."""
    c = methods("unfreeze", unfreeze__schedule='[["late/", 30]]')
    inner = optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-12), optax.scale(-1e-3))
    optimizer, fresh = make_methods(c)[0].update(inner, 0), inner
    params = {"late": {"kernel": jnp.ones(3)}, "other": {"kernel": jnp.ones(3)}}
    state, alone = optimizer.init(params), fresh.init(params["late"])
    rng, step, other = np.random.default_rng(0), jax.jit(optimizer.update), jax.jit(fresh.update)
    for i in range(36):
        g = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=3), jnp.float32), params)
        updates, state = step(g, state, params)
        assert np.abs(updates["other"]["kernel"]).min() > 0
        if i < 30:
            moments = state.inner[0]
            assert not np.any(updates["late"]["kernel"]) and not np.any(
                moments.nu["late"]["kernel"]
            )
            continue
        right, alone = other(g["late"], alone, None)
        np.testing.assert_allclose(updates["late"]["kernel"], right["kernel"], rtol=1e-3)


def numpy_adalora(values, gradients, steps, first, last, begin, end, beta):
    """Algorithm 1 of the paper, triplets masked at each step, with SGD of rate 0.1 on e alone."""
    mean = {k: np.zeros_like(v) for k, v in values.items()}
    spread = {k: np.zeros_like(v) for k, v in values.items()}
    counts = []
    for t in range(steps):
        g = gradients[t]
        if t < end:
            for k in values:
                i = np.abs(values[k] * g[k])
                mean[k] = beta * mean[k] + (1 - beta) * i
                spread[k] = beta * spread[k] + (1 - beta) * np.abs(i - mean[k])
        layers = sorted(k[:-6] for k in values if k.endswith("/ada_e"))
        score = []
        for layer in layers:
            s = {n: mean[f"{layer}/ada_{n}"] * spread[f"{layer}/ada_{n}"] for n in "aeb"}
            score.append(s["e"] + s["a"].mean(axis=0) + s["b"].mean(axis=1))
        part = 1.0 if t < begin else max(1 - (t - begin) / (end - begin), 0.0)
        b = last + int((first - last) * part**3 + 1e-9)
        order = np.argsort(-np.concatenate(score), kind="stable")
        keep = np.isin(np.arange(first), order[:b]).reshape(len(layers), -1)
        for layer, mask in zip(layers, keep, strict=True):
            e = values[f"{layer}/ada_e"] - 0.1 * g[f"{layer}/ada_e"]
            values[f"{layer}/ada_e"] = np.where(mask, e, 0)
        counts.append(int(keep.sum()))
    return values, counts


def test_adalora_follows_the_papers_algorithm():
    knobs = {"rank": 4, "target_rank": 1, "begin": 3, "end": 9}
    c = methods("adalora", **{f"adalora__{k}": v for k, v in knobs.items()})
    inner = optax.sgd(0.1)
    optimizer, rng = make_methods(c)[0].update(inner, 0), np.random.default_rng(0)
    shapes = {"ada_a": (5, 4), "ada_e": (4,), "ada_b": (4, 6)}
    flat = {f"{x}/{k}": rng.normal(size=s) for x in "uv" for k, s in shapes.items()}
    gradients = [{k: rng.normal(size=v.shape) for k, v in flat.items()} for _ in range(12)]
    for g in gradients:  # P and Q stay, so that only one rule is by hand
        g.update({k: 0.01 * v for k, v in g.items() if not k.endswith("ada_e")})

    def tree(flat):
        return unflatten({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})

    params, step, found = tree(flat), jax.jit(optimizer.update), []
    state = optimizer.init(params)
    for g in gradients:
        updates, state = step(tree(g), state, params)
        moved = flatten(optax.apply_updates(params, updates))
        still = flatten(params)
        params = unflatten({k: v if k.endswith("e") else still[k] for k, v in moved.items()})
        e = np.concatenate([np.asarray(v) for k, v in flatten(params).items() if k[-1] == "e"])
        found.append(int((e != 0).sum()))
    right, counts = numpy_adalora(flat, gradients, 12, 8, 2, 3, 9, 0.85)
    assert found == counts and counts[:4] == [8] * 4 and counts[-3:] == [2] * 3
    assert len(set(counts)) > 3
    for k, v in flatten(params).items():
        np.testing.assert_allclose(v, right[k], atol=1e-5, err_msg=k)
    assert isinstance(state, Wrapped)


def test_adalora_penalty_is_equation_4_in_the_loss_and_none_without_its_weight(params):
    trained = make_weights(methods("adalora", adalora__rank=8)).begin(params, 0)[0]

    def clean(params, batch, rng):
        return Sums(jnp.float32(6.0), jnp.float32(12), {}, None)

    def mean_loss(weight):
        method = make_methods(methods("adalora", adalora__orthogonality=weight))[0]
        made = method.objective(clean, None, None)(trained, {}, None)
        return float(made.total / made.count), float(made.extra["orthogonality"] / made.count)

    found = []
    for path, value in flatten(trained).items():
        if path.endswith(("ada_a", "ada_b")):
            q = np.asarray(value.T if path.endswith("ada_a") else value)
            found.append(np.linalg.norm(q @ q.T - np.eye(8)) ** 2)
    assert len(found) == 8
    assert mean_loss(0.0)[0] == 0.5
    loss, seen = mean_loss(0.25)
    assert seen == pytest.approx(np.mean(found), rel=1e-5)
    assert loss == pytest.approx(0.5 + 0.25 * np.mean(found), rel=1e-5)


def test_budget_agrees_with_peft_step_by_step():
    layer = pytest.importorskip("peft.tuners.adalora.layer")
    allocator = object.__new__(layer.RankAllocator)
    allocator.init_bgt, allocator.target_bgt = 24, 7
    settings = {"tinit": 4, "tfinal": 10, "total_step": 40, "deltaT": 1}
    allocator.peft_config = type("Config", (), settings)
    steps = jnp.arange(40)
    ours = adalora.budget(steps, 24, 7, 4, 30)
    assert ours.tolist() == [allocator.budget_schedule(int(i))[0] for i in steps]


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
