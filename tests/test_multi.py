"""Several tasks on one encoder: the joint loss, its weights, mixed sets, and the program."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from conftest import BAD, GOOD, ROOT, SUBJECTS, VERBS, read_jsonl, write_bert, write_jsonl

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.data.encode import encode
from bert_ft.data.sources import Rows, open_source, source_of, split_of
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.methods.registry import make_methods
from bert_ft.models import hf
from bert_ft.models.heads import Model
from bert_ft.parts import part_configs
from bert_ft.tasks.multilabel import MultiLabel
from bert_ft.tasks.parted import both, merged, single
from bert_ft.tasks.registry import make_task
from bert_ft.tasks.weighting import chance_loss
from bert_ft.train.step import loss_and_gradient
from bert_ft.train.system import texts_of, uris
from bert_ft.train.training_set import training_rows, with_order

SHARED = ROOT.parent / "shared" / "data"


def clauses(count, seed):
    """Rows of words with a tag each, an intent (whether the first adjective is good), a number."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        tokens, tags, kinds = [], [], []
        for _ in range(int(rng.integers(1, 4))):
            kind = int(rng.integers(2))
            kinds.append(kind)
            words = str(rng.choice(SUBJECTS)).split()
            tokens += [*words, str(rng.choice(VERBS)), str(rng.choice((BAD, GOOD)[kind])), ","]
            tags += [
                "B-TOPIC",
                *["I-TOPIC"] * (len(words) - 1),
                "O",
                ("B-BAD", "B-GOOD")[kind],
                "O",
            ]
        row = {"id": f"r{i}", "tokens": tokens, "tags": tags, "intent": ("no", "yes")[kinds[0]]}
        rows.append({**row, "text": " ".join(tokens), "good": sum(kinds)})
    return rows


JOINT = {
    "intent": {"data.label": "intent"},
    "slots": {"task.name": "tagging", "data.label": "tags", "task.stride": 6},
    "good": {"task.name": "regression", "data.label": "good"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("multi")
    made = {n: write_jsonl(root / f"{n}.jsonl", clauses(c, s)) for n, c, s in (
        ("train", 96, 1), ("dev", 20, 2), ("test", 21, 3), ("other", 24, 4),
    )}  # fmt: skip
    return {**made, "model": write_bert(root / "bert"), "root": root}


def multi(parts=None, **more):
    parts = json.dumps(JOINT if parts is None else parts)
    given = {"task__name": "multi", "task__parts": parts, "data__text": "tokens"}
    return make_task(small.config(**{**given, **more}))


def joint(files, task, names=("train",), fitted=None):
    """The merged set of one group for each of `names`, and its tokenizer."""
    tokenizer = load_tokenizer(files["model"])
    sets = []
    for group, name in zip(task.groups, names, strict=True):
        source = open_source(f"files:{files[name]}", cache_dir=files["root"])
        sets.append(encode(source, group, tokenizer, 16, files["root"], fitted, lambda _: None))
    return task.merge(sets)


def made(files, **more):
    """(task, model, params, data) of the three parts on the same rows."""
    task = multi(**more)
    data = joint(files, task)
    model = Model(hf.read_config(files["model"]), task.head(data.fitted))
    return task, model, small.init(model), data


def plan(data, **more):
    return BatchPlan(data, 8, 4, 32, seed=1, at_most=1, **more)


def gradient(task, model, params, batch, accumulate=1, rate=0.1, methods=()):
    key = jax.random.key(3)
    return jax.jit(
        lambda p, b: loss_and_gradient(model, task, p, b, key, rate, accumulate, methods)
    )(params, batch)


def close(a, b, tolerance=1e-5):
    a, b = hf.flatten(a), hf.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=tolerance, err_msg=path)


def test_one_example_carries_the_labels_of_all_parts(files):
    task, _, _, data = made(files)
    rows = read_jsonl(files["train"])
    first = np.flatnonzero(np.asarray(data.fields["intent/weight"]))
    assert len(data) > len(rows) == len(first), "long rows have windows; an intent counts once"
    labels = [data.fitted["intent"]["labels"][i] for i in data.fields["intent/label"][first]]
    assert labels == [row["intent"] for row in rows]
    assert data.fields["good/label"][first].tolist() == [row["good"] for row in rows]
    assert data.fields["slots/owned"].sum() == sum(len(row["tokens"]) for row in rows)
    cut = np.bincount(data.row)[data.row[first]] > 1  # beyond the window that an intent is read off
    assert 0 < cut.sum() < len(rows)
    np.testing.assert_array_equal(np.asarray(data.truncated)[first], cut)
    assert np.asarray(data.truncated).sum() == cut.sum(), "once a row"


def test_the_loss_is_the_weighted_sum_of_the_parts_own(files):
    task, model, params, data = made(files, task__weights="0.5,2,1")
    batch = plan(data).batch(0)
    metrics, _ = gradient(task, model, params, batch, rate=0.0)
    outputs = model.apply({"params": params}, batch)
    wanted = 0.0
    for weight, (part, own) in zip((0.5, 2, 1), task.parts.items(), strict=True):
        view = {k.removeprefix(f"{part}/"): v for k, v in batch.items()}
        view["weight"] = batch["weight"] * batch[f"{part}/weight"]
        total, count, _ = own.loss(outputs[part], view)
        np.testing.assert_allclose(metrics[f"{part}/loss"], total / count, rtol=1e-5)
        wanted += weight * total / count
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def test_versions_of_the_rows_keep_the_labels_of_all_parts(files):
    more = {"data__augment": "typos:1", "data__augment_epochs": 2, "data__augment_share": 0.9}
    parts, given = json.dumps(JOINT), {"task__name": "multi", "data__text": "tokens"}
    c = small.config(**given, **more, task__parts=parts)
    task = make_task(c)
    source = open_source(f"files:{files['train']}", cache_dir=files["root"])
    versions = training_rows(c, source)
    first, rows = source.read(), versions.read()
    assert len(rows) == 2 * len(first) == 192
    for name in ("intent", "good"):
        assert rows.columns[name] == 2 * first.columns[name]
    assert [[*tags] for tags in rows.columns["tags"]] == [[*t] for t in 2 * first.columns["tags"]]
    changed = {
        tag
        for k, (words, tags) in enumerate(
            zip(rows.columns["tokens"], rows.columns["tags"], strict=True)
        )
        for word, other, tag in zip(words, first.columns["tokens"][k % 96], tags, strict=True)
        if word != other
    }
    assert changed == {"O"}
    tokenizer = load_tokenizer(files["model"])
    made = encode(versions, task.groups[0], tokenizer, 16, files["root"], None, lambda _: None)
    data = task.merge([with_order(c, made, versions)])
    assert data.source_rows == 96 and sum(data.order.sizes) == len(data)
    batches = BatchPlan(data, 8, 4, 32, seed=1, mixture=task.mixture(data, 8))
    assert max(batches.examples(0)) < data.order.sizes[0]  # epoch 0 is of version 0
    assert data.of_an_epoch == len(data) / 2


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradnorm"])
def test_packing_and_accumulation_change_nothing(files, weighting):
    task, model, params, data = made(files, task__weighting=weighting)
    one, grad = gradient(task, model, params, plan(data).batch(1))
    padded, grad_padded = gradient(task, model, params, plan(data, packed=False).batch(1))
    four, grad_four = gradient(task, model, params, plan(data, accumulate=4).batch(1), 4)
    for metrics in (padded, four):
        assert metrics.keys() == one.keys()
        for name in one:
            np.testing.assert_allclose(metrics[name], one[name], atol=2e-5, err_msg=name)
    close(grad, grad_padded)
    close(grad, grad_four)


@pytest.mark.parametrize("use", ["fgm", "pgd", "freelb", "rdrop,smart"])
def test_a_method_of_all_parts_packed_padded_and_accumulated(files, use):
    task, model, params, data = made(files, task__weighting="uncertainty")
    methods = make_methods(small.config(methods__use=use))
    metrics, packed = gradient(task, model, params, plan(data).batch(1), methods=methods)
    _, padded = gradient(task, model, params, plan(data, packed=False).batch(1), methods=methods)
    halves = plan(data, accumulate=2).batch(1)
    again, summed = gradient(task, model, params, halves, 2, methods=methods)
    close(packed, padded)
    close(summed, packed)
    for name in metrics:
        if not name.endswith("gradient_norm"):  # squares of halves are no squares of sums
            np.testing.assert_allclose(again[name], metrics[name], rtol=1e-4, err_msg=name)
    _, plain = gradient(task, model, params, plan(data).batch(1))
    apart = max(np.abs(a - b).max() for a, b in zip(
        hf.flatten(plain).values(), hf.flatten(packed).values(), strict=True))  # fmt: skip
    assert apart > 1e-3


def test_fgm_shifts_words_along_the_gradient_of_the_weighted_sum(files):
    task, model, params, data = made(files, task__weights="0.5,2,1")
    batch = plan(data).batch(0)

    def loss(params, shift):
        outputs = model.apply({"params": params}, {**batch, "word_shift": shift})
        found = task.sums(outputs, batch)
        return sum(
            w * own.total / own.count for w, own in zip((0.5, 2, 1), found.values(), strict=True)
        )

    none = jnp.zeros((*batch["tokens"].shape, model.config.hidden_size))
    clean, uphill = jax.grad(loss, (0, 1))(params, none)
    shift = np.zeros(none.shape, np.float32)
    for k in range(1, batch["segments"].max() + 1):
        own = batch["segments"] == k
        shift[own] = 0.7 * uphill[own] / np.linalg.norm(uphill[own])
    there = jax.grad(loss)(params, jnp.asarray(shift))
    wanted = jax.tree.map(lambda a, b: (a + 0.5 * b) / 1.5, clean, there)
    c = small.config(methods__use="fgm")
    c.methods.fgm.update({"epsilon": 0.7, "weight": 0.5})
    metrics, found = gradient(task, model, params, batch, rate=0.0, methods=make_methods(c))
    close(found, wanted)
    np.testing.assert_allclose(metrics["adversarial_loss"], loss(params, shift), rtol=1e-4)


@pytest.mark.parametrize("use", ["rdrop", "smart", "sam"])
def test_gradnorm_goes_by_the_losses_alone(use):
    given = {"task__name": "multi", "data__text": "tokens", "task__weighting": "gradnorm"}
    c = small.config(**given, task__parts=json.dumps(JOINT), methods__use=use)
    c.data.train, c.model.pretrained = "files:x", "y"
    with pytest.raises(InputError, match=f"methods.use is '{use}'; accepted: no {use} where"):
        check(c)


def test_rdrop_is_that_of_each_part_weighed_as_its_loss(files):
    task, model, params, data = made(files, task__weights="0.5,2,1")
    batch = plan(data).batch(0)
    weights = dict(zip(task.parts, (0.5, 2, 1), strict=True))

    def loss(params):
        keys = jax.random.key(3), jax.random.fold_in(jax.random.key(3), 0x5244)
        p, q = (model.apply({"params": params}, batch, key, 0.1) for key in keys)
        total = 0.0
        for part, own in task.parts.items():
            given = {**batch, **{k.removeprefix(f"{part}/"): v for k, v in batch.items()}}
            given["weight"] = batch["weight"] * batch[f"{part}/weight"]
            (a, count, _), (b, _, _) = (own.loss(x[part], given) for x in (p, q))
            far = own.divergence(p[part], q[part], given)
            far += own.divergence(q[part], p[part], given)
            total += weights[part] * ((a + b) / 2 + 0.7 * far / 2) / count
        return total

    value, wanted = jax.jit(jax.value_and_grad(loss))(params)
    c = small.config(methods__use="rdrop")
    c.methods.rdrop.alpha = 0.7
    metrics, found = gradient(task, model, params, batch, methods=make_methods(c))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    close(found, wanted)


def test_a_part_that_a_batch_lacks_has_no_loss_and_no_gradient(files):
    task, model, params, data = made(files)
    batch = plan(data).batch(0)
    batch = {**batch, "good/weight": np.zeros_like(batch["good/weight"])}
    metrics, grad = gradient(task, model, params, batch)
    assert metrics["good/loss"] == metrics["good/gradient_norm"] == 0
    assert not any(np.any(v) for v in jax.tree.leaves(grad["top"]["good"]))
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((metrics, grad)))


def test_uncertainty_is_the_formula_of_kendall(files):
    """Beside finite differences of the formula, written down once more, in what is learnt."""
    task, model, params, data = made(files, task__weighting="uncertainty", task__weight_rate=1.0)
    batch, s = plan(data).batch(0), np.asarray([0.3, -0.2, 0.1], np.float32)
    params["top"]["log_variance"] = jnp.asarray(s)
    metrics, grad = gradient(task, model, params, batch)
    losses = np.asarray([metrics[f"{part}/loss"] for part in JOINT], np.float64)

    def formula(s):
        sigma = np.exp(s / 2)
        factor = np.asarray([1, 1, 0.5])  # the third is a regression
        return (factor * losses / sigma**2 + np.log(sigma)).sum()

    np.testing.assert_allclose(metrics["loss"], formula(s.astype(np.float64)), rtol=1e-5)
    slope = [(formula(s + e) - formula(s - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(grad["top"]["log_variance"], slope, atol=1e-4)


def test_gradient_norms_are_those_at_the_encoders_output(files):
    """Beside the derivative by the hidden states of a model cut in two by hand."""
    task, model, params, data = made(files, task__weights="1,3,1")
    batch = plan(data).batch(0)
    metrics, _ = gradient(task, model, params, batch, rate=0.0)
    bound = model.bind({"params": params})
    hidden = bound.encoder(batch, None)

    def loss(hidden):
        outputs = model.apply({"params": params}, hidden, method=lambda m, h: m.top(h, batch, None))
        own = task.sums(outputs, batch)["slots"]
        return own.total / own.count

    norm = 3 * jnp.linalg.norm(jax.grad(loss)(hidden))
    np.testing.assert_allclose(metrics["slots/gradient_norm"], norm, rtol=1e-4)


def test_a_part_may_be_called_as_anothers_tap(files):
    own = {"data.label": "intent"}
    task, model, params, data = made(files, parts={"tap_a": own, "a": own})
    metrics, _ = gradient(task, model, params, plan(data).batch(0))
    assert {"tap_a/gradient_norm", "a/gradient_norm"} <= metrics.keys()


def test_the_metric_of_a_part_is_asked_of_that_part():
    parts = json.dumps(JOINT)
    given = small.config(task__name="multi", task__parts=parts, eval__metric="slots/f1/X")
    asked = {part: own.eval.metric for part, own in part_configs(given).items()}
    assert asked == {"intent": "", "slots": "f1/X", "good": ""}


def test_gradnorm_moves_the_weights_towards_equal_norms(files):
    """The sign of the step is that of the paper's loss by finite differences; a few hundred steps
    of it alone, with the parts' own norms held, bring the norms together."""
    task, model, params, data = made(
        files, task__weighting="gradnorm", task__weight_rate=1.0, task__asymmetry=0.0
    )
    batch, run = plan(data).batch(0), jax.jit(lambda p, b: gradient(task, model, p, b, rate=0.0))
    before = None
    for _ in range(200):
        metrics, grad = run(params, batch)
        norms = np.asarray([metrics[f"{part}/gradient_norm"] for part in JOINT])
        before = norms if before is None else before
        params["top"]["task_weight"] -= 0.02 * grad["top"]["task_weight"]
    assert norms.std() / norms.mean() < 0.05 < before.std() / before.mean()
    weights = np.asarray([metrics[f"{part}/weight"] for part in JOINT])
    np.testing.assert_allclose(weights.sum(), 3, rtol=1e-5)


def test_the_loss_of_a_guess_at_chance(files):
    task, _, _, data = made(files)
    assert chance_loss(task.parts["intent"], "intent", data.fitted["intent"]) == np.log(2)
    tags = len(data.fitted["slots"]["labels"])
    assert chance_loss(task.parts["slots"], "slots", data.fitted["slots"]) == np.log(tags)
    assert chance_loss(task.parts["good"], "good", data.fitted["good"]) == 1.0


def test_the_loss_of_a_guess_at_chance_of_weighted_labels():
    labels = [["a"], ["b"], ["b"], *[[]] * 17]
    rows = Rows({"text": ["t"] * 20, "label": labels}, None, "x", ())
    task = MultiLabel(small.config(task__name="multilabel", task__class_weights="balanced"))
    fitted = task.fit(rows)
    batch = {"weight": np.ones(20), **task.targets(rows, fitted)}
    guess = {
        "logits": np.zeros((20, 2), np.float32),
        "class_weights": np.asarray(fitted["weights"]),
    }
    total, count, _ = task.loss(guess, batch)
    assert chance_loss(task, "", fitted) == pytest.approx(float(total / count))
    assert chance_loss(task, "", {**fitted, "weights": [], "positives": []}) == np.log(2)


TWO = {
    "intent": {"data.label": "intent", "data.text": "text"},
    "good": {"task.name": "regression", "data.label": "good", "data.text": "text"},
}


def two_sets(files):
    parts = {p: {**keys, "data.train": p} for p, keys in TWO.items()}
    task = multi(parts)
    assert [list(g.parts) for g in task.groups] == [["intent"], ["good"]]
    return task, joint(files, task, ("train", "other"))


def test_two_sets_stand_one_after_the_other(files):
    task, data = two_sets(files)
    assert data.aside["examples"].tolist() == [96, 24] and data.source_rows == 120
    assert data.row.tolist() == list(range(120))
    np.testing.assert_array_equal(data.fields["intent/weight"], np.arange(120) < 96)
    np.testing.assert_array_equal(data.fields["good/weight"], np.arange(120) >= 96)
    view, there = task.view(data, "good")
    assert there.tolist() == list(range(96, 120)) and view.row.tolist() == list(range(24))
    assert view.fields["label"].tolist() == [r["good"] for r in read_jsonl(files["other"])]
    sizes = task.sizes(data, {"mean": 0.5, "intent/accuracy": 0.5, "good/rmse": 0.5})
    assert sizes == {"intent/accuracy": 96, "good/rmse": 24}
    assert (task.mixture(data, 8).stream(0, 0, 120) >= 96).sum() == 24


def test_parts_of_the_same_rows_must_read_the_same_text(files):
    parts = {"intent": TWO["intent"], "good": {**TWO["good"], "data.text_pair": "intent"}}
    with pytest.raises(InputError, match="'intent' and 'good' read other texts"):
        joint(files, multi(parts))


def checked(parts, **more):
    given = {"task__name": "multi", "task__parts": parts, "model__pretrained": "x", **more}
    c = small.config(**given)
    c.data.train = "files:x"
    check(c)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": {"data.text": "words"}}, "'intent': data.text is 'tokens'; accepted: 'words', "),
        ({"intent": {"data.text": "text"}}, "'intent': data.text is 'text'; accepted: 'tokens', "),
        ({"good": {"data.text_pair": "b"}}, "'good': data.text_pair is 'b'; accepted: '', "),
        ({"slots": {"task.name": "span", "data.text_pair": "b"}}, "'intent': data.text_pair is ''"),
        ({"slots": {"task.name": "masked"}}, "task.name is 'masked'; accepted: 'classification' "),
    ],
)
def test_parts_of_the_same_rows_that_read_other_columns(change, words):
    parts = {part: {**keys, **change.get(part, {})} for part, keys in JOINT.items()}
    with pytest.raises(InputError) as error:
        checked(json.dumps(parts), data__text="tokens")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_blank_question_is_predicted_for_in_a_part_as_alone(files):
    where = {"data.text": "question", "data.text_pair": "context", "task.max_question": 6}
    parts = {"where": {"task.name": "span", "task.stride": 2, "data.label": "a", **where}}
    kind = {"data.text": "question", "data.text_pair": "context", "data.label": "kind"}
    task, tokenizer = multi({**parts, "kind": kind}), load_tokenizer(files["model"])
    columns = {"question": ["film", " "], "context": ["great film", "dull plot"]}
    fitted = {"where": {"unanswerable": False}, "kind": {"labels": ["x", "y"]}}
    data = task.encode_unlabelled(Rows(columns, [1, 2], "q.csv"), tokenizer, 16, fitted)
    assert data.fields["where/context"][1].tolist() == [0, 0] and len(data) == 2
    with pytest.raises(InputError, match="q.csv:2: .*'question' is empty"):
        task.encode(Rows(columns, [1, 2], "q.csv"), tokenizer, 16, fitted)


def test_tags_and_spans_are_of_rows_of_their_own():
    """Whatever the other part reads: no columns would make their windows the same."""
    spans = {"task.name": "span", "data.text_pair": "tokens", "task.stride": 6}
    parts = {"slots": JOINT["slots"], "where": spans}
    said = "'where': task.name is 'span'; accepted: rows of their own for 'slots' and 'where'"
    with pytest.raises(InputError, match=said):
        checked(json.dumps(parts), data__text="tokens")
    other = json.dumps({**parts, "where": {**spans, "data.train": "files:y"}})
    checked(other, data__text="tokens")
    checked(other, data__text="tokens", data__text_pair="b")  # which the tags do not take over


def test_parts_of_other_files_read_columns_of_their_own():
    own = {"data.text": "text", "data.train": "files:y"}
    checked(json.dumps({**JOINT, "good": {**JOINT["good"], **own}}), data__text="tokens")


def test_trials_are_of_the_whole_run():
    """One part has no dev set; the trials of the second config differ in their parts."""
    parts = {"intent": {}, "good": {"data.label": "good", "data.train": "files:y", "data.dev": ""}}
    c = small.config(task__name="multi", task__parts=json.dumps(parts), model__pretrained="x")
    c.data.train, c.data.dev, c.eval.every_steps = "files:x", "files:z", 50
    c.trials, c.trial.halving, c.mesh.trial = '{"seed": [0, 1]}', 2, 2
    c.trial.space, c.trial.samples = '{"learning_rate": {"log": [1e-5, 1e-3]}}', 4
    check(c)
    c.trial.space, c.trial.samples = "", 0
    c.trials = json.dumps({"task.parts": [json.dumps(parts), json.dumps(JOINT)]})
    check(c)


def test_the_example_of_readme():
    text = (ROOT / "README.md").read_text()
    found = re.search(r"data.text=(\w+) --config.task.parts='([^']+)'", text)
    assert found
    checked(found[2], data__text=found[1])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("{", ["config.task.parts is no JSON"]),
        ('{"a": {}, "b": {}, "a": {}}', ["config.task.parts", "'a' is given twice"]),
        ("{}", ["two parts or more"]),
        ('{"a": {"data.labl": "x"}, "b": {}}', ["'a'", "data.labl", "did you mean data.label"]),
        ('{"a": {"task.stride": "x"}, "b": {}}', ["'a'", "task.stride", "int"]),
        ('{"a b": {}, "b": {}}', ["'a b'", "letters"]),
        ('{"a": {"train.seed": 1}, "b": {}}', ["'a'", "train.seed", "task.*"]),
        ('{"a": {"task.name": "taging"}, "b": {}}', ["taging", "tagging"]),
        ('{"a": {"task.stride": -1}, "b": {}}', ["'a'", "task.stride", "0 or more"]),
    ],
)
def test_parts_that_are_none(run_here, tmp_path, parts, words):
    done = run_here(tmp_path / "run", "--config.task.name=multi", f"--config.task.parts={parts}")
    done.refused(*words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["weights=1,2"], ["2 weights for 3 parts"]),
        (["weights=0,0,0"], ["task.weights", "0 or more, not all of them 0"]),
        (["alpha=0.5"], ["alpha", "3 parts"]),
        (["weighting=gradnorm", "mixing=turns"], ["weighting", "turns"]),
        (["weighting=uncertainty", "weights=1,1,1"], ["weighting", "fixed"]),
        (["mixing=randomly"], ["mixing", "proportion"]),
    ],
)
def test_weights_and_mixings_that_are_none(run_here, tmp_path, flags, words):
    flags = ["label_names=", f"parts={json.dumps(JOINT)}", *flags]
    flags = [f"--config.task.{flag}" for flag in flags]
    run_here(tmp_path / "run", "--config.task.name=multi", *flags).refused(*words)


@pytest.fixture(scope="module")
def flags(files):
    sets = [f"--config.data.{n}=files:{files[n]}" for n in ("train", "dev", "test")]
    names = ["--config.task.label_names=", "--config.data.text=tokens"]
    return [
        *sets,
        *names,
        "--config.task.name=multi",
        f"--config.model.pretrained={files['model']}",
    ]


@pytest.fixture(scope="module")
def trained(run_cli, files, flags, tmp_path_factory):
    """One run of the three parts on the same rows."""
    words = [*flags, f"--config.task.parts={json.dumps(JOINT)}", "--config.train.steps=60"]
    words += ["--config.eval.every_steps=30", "--config.task.weighting=uncertainty"]
    return run_cli(tmp_path_factory.mktemp("joint") / "run", *words).ok(), words


def test_the_program_learns_all_parts_at_once(trained):
    done, _ = trained
    scores = {name: s["mean"] for name, s in done.result["eval"].items()}
    assert scores["test/intent/accuracy"] > 0.9 and scores["test/slots/f1"] > 0.9
    assert scores["test/good/pearson"] > 0.8
    own = [scores[f"test/{m}"] for m in ("intent/accuracy", "slots/f1", "good/pearson")]
    assert scores["test/mean"] == pytest.approx(np.mean(own))
    for part in JOINT:
        for name in ("loss", "gradient_norm", "weight"):
            values = done.values(f"train/{part}/{name}")
            assert len(values) == 60 and np.isfinite(list(values.values())).all()
    weights = [done.values(f"train/{part}/weight")[60] for part in JOINT]
    assert len(set(weights)) == 3 and weights != [1.0, 1.0, 0.5], "they are learnt"
    html = (done.workdir / "report.html").read_text()
    assert all(f"<h2>{part}: " in html for part in JOINT), "the report has a section a part"


def test_answers_have_every_part_and_predict_gives_them_again(trained, run_here, files, tmp_path):
    done, words = trained
    told = read_jsonl(done.workdir / "predictions/test.jsonl")
    rows = read_jsonl(files["test"])
    assert [a["label"]["intent"] for a in told] == [r["intent"] for r in rows]
    given = write_jsonl(
        tmp_path / "in.jsonl", [{"id": r["id"], "tokens": r["tokens"]} for r in rows]
    )
    predict = ["--mode=predict", f"--config.predict.input={given}"]
    predict += [f"--config.predict.output={tmp_path / 'out.jsonl'}"]
    run_here(done.workdir, *words, *predict).ok()
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == [r["id"] for r in rows]
    assert [line["label"]["intent"] for line in lines] == [a["prediction"]["intent"] for a in told]
    for line, answer in zip(lines, told, strict=True):
        said = [(s["start"], s["end"], s["type"]) for s in line["label"]["slots"]]
        assert said == [(s["start"], s["end"], s["type"]) for s in answer["prediction"]["slots"]]
        for span in line["label"]["slots"]:
            assert line["text"][span["start"] : span["end"]] == span["text"]


def test_two_parts_that_tag_keep_their_own_words_and_tags():
    """On the same rows, and of two data sets about the same rows."""

    def tagged(part):
        return {"text": "a b", "prediction": [part], "words": [[0, 1]], "tags": [part],
                "truncated": False}  # fmt: skip

    answers = {part: tagged(part) for part in ("slots", "topics")}
    asked = {"q": "?", "prediction": {"text": "a"}, "n_best": [{"text": "a"}], "truncated": True}
    for told in (
        both(merged(answers), merged({"reply": asked})),
        both(
            merged({"slots": answers["slots"], "reply": asked}),
            merged({"topics": answers["topics"]}),
        ),
    ):
        assert told["tags"] == {"slots": ["slots"], "topics": ["topics"]}
        assert told["text"] == "a b" and told["q"] == "?" and told["truncated"] is True
        for part, own in {**answers, "reply": asked}.items():
            alone = single(told, part)
            assert {k: alone[k] for k in own if k != "truncated"} == {
                k: v for k, v in own.items() if k != "truncated"
            }
            assert ("tags" in alone, "n_best" in alone) == ("tags" in own, "n_best" in own)


@pytest.mark.parametrize("part", ["intent", "slots"])
def test_a_part_is_exported_with_the_encoder(trained, run_here, tmp_path, part):
    """As that part's own kind of model; export itself compares the outputs on real rows."""
    done, words = trained
    to = tmp_path / part
    flags = [f"--config.export.to={to}", f"--config.export.part={part}", "--mode=export"]
    run_here(done.workdir, *words, *flags).ok()
    about = json.loads((to / "config.json").read_text())
    kind = {"intent": "SequenceClassification", "slots": "TokenClassification"}[part]
    assert about["architectures"] == [f"BertFor{kind}"]
    labels = json.loads((done.workdir / "model/task.json").read_text())["fitted"][part]["labels"]
    assert list(about["id2label"].values()) == labels
    card = (to / "README.md").read_text()
    scores = re.findall(r"^\| (?:dev|test)/(\S+) \|", card, re.M)
    assert scores and all(name.startswith(f"{part}/") for name in scores)
    assert "of the run, all its parts: `" in card


def test_export_asks_for_a_part(trained, run_here, tmp_path):
    done, words = trained
    flags = [f"--config.export.to={tmp_path / 'out'}", "--mode=export"]
    run_here(done.workdir, *words, *flags).refused("export.part is ''", "'intent', 'slots', 'good'")


def two_files(files, flags, mixing):
    parts = {
        "intent": TWO["intent"],
        "good": {**TWO["good"], "data.train": f"files:{files['other']}", "data.test": ""},
    }
    words = [f"--config.task.parts={json.dumps(parts)}", f"--config.task.mixing={mixing}"]
    return [*flags, *words, "--config.eval.keep_best=True", "--config.eval.every_steps=10"]


def test_two_data_sets_in_one_run_and_eight_devices_as_one(run_cli, files, flags, tmp_path):
    words = two_files(files, flags, "temperature")
    one, many = (run_cli(tmp_path / str(n), *words, devices=n).ok() for n in (1, 8))
    assert one.result["eval"]["test/intent/accuracy"]["n_examples"] == 21
    assert "test/good/pearson" not in one.result["eval"]
    for name in ("train/loss", "train/good/loss", "dev/mean"):
        a, b = one.values(name), many.values(name)
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=1e-4, err_msg=name)


def test_data_sets_that_take_turns(run_here, files, flags, tmp_path):
    done = run_here(tmp_path / "run", *two_files(files, flags, "turns")).ok()
    seen = [v > 0 for v in done.values("train/good/loss").values()]
    assert seen == [False, True] * 10


def test_rows_with_the_texts_of_one_data_set_get_its_answers(run_here, files, flags, tmp_path):
    """The part that tags has no dev or test set, so no batch of these has its fields either."""
    own = {"data.train": f"files:{files['other']}", "data.dev": "", "data.test": ""}
    slots = {"task.name": "tagging", "data.label": "tags", "task.stride": 6, **own}
    parts = f"--config.task.parts={json.dumps({'intent': TWO['intent'], 'slots': slots})}"
    words = [*flags, parts, "--config.train.steps=2"]
    done = run_here(tmp_path / "run", *words).ok()
    rows = clauses(5, 7)

    def predicted(*columns):
        given = write_jsonl(tmp_path / "in.jsonl", [{c: r[c] for c in columns} for r in rows])
        flags = ["--mode=predict", f"--config.predict.input={given}"]
        return run_here(done.workdir, *words, *flags, f"--config.predict.output={tmp_path / 'out'}")

    for columns, said in (
        (["text"], {"intent"}),
        (["tokens"], {"slots"}),
        (["tokens", "text"], {"intent", "slots"}),
    ):
        predicted(*columns).ok()
        assert [set(line["label"]) for line in read_jsonl(tmp_path / "out")] == [said] * 5
    predicted("good").refused("its columns are 'good'; a part reads 'text' or 'tokens'")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: the ATIS corpus")
def test_atis_intents_and_slots_on_the_same_rows(files):
    parts = {"intent": {}, "slots": {"task.name": "tagging", "data.label": "tags"}}
    task = multi(parts, data__label="label", task__unseen_labels="score")
    source = open_source(f"files:{SHARED}/atis/train", cache_dir=files["root"])
    rows = source.read()
    group = task.groups[0]
    tokenizer = load_tokenizer(files["model"])
    data = task.merge([group.encode(rows, tokenizer, 128, group.fit(rows))])
    assert data.fields["intent/weight"].sum() == data.source_rows == 4478
    assert data.fields["slots/owned"].sum() == sum(map(len, rows.columns["tokens"]))
    assert len(data.fitted["intent"]["labels"]) == 21 and len(data.fitted["slots"]["labels"]) == 120
    # Five of the test set's intents are not among them; all its requests are scored.
    test = open_source(f"files:{SHARED}/atis/test", cache_dir=files["root"]).read()
    scored = task.merge([group.encode(test, tokenizer, 128, group.fit(rows))])
    intent = np.asarray(scored.fields["intent/label"])[scored.fields["intent/weight"] > 0]
    assert len(intent) == 893 and (intent >= 21).sum() == 5
    assert len(scored.fitted["intent"]["unseen"]) == 4


def test_a_file_is_divided_by_the_text_of_the_part_that_reads_it(tmp_path):
    rows = [{**row, "body": row["text"][::-1]} for row in clauses(60, 9)]
    own = []
    for name in ("one", "two"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        own.append({f"data.{n}": f"files:{path}?split={n}" for n in ("train", "dev", "test")})
    parts = {
        "intent": {"data.label": "intent", **own[0]},
        "good": {"task.name": "regression", "data.label": "good", "data.text": "body", **own[1]},
    }
    task = multi(parts, data__text="text", data__label="intent")
    c = small.config(task__name="multi", task__parts=json.dumps(parts), data__text="text")
    c.data.cache_dir = str(tmp_path)
    for text, uri in zip(texts_of(task), uris(c, task, "train"), strict=True):
        found = source_of(c, uri, text=text).read().columns[text]
        assert found == [row[text] for row in rows if split_of(row[text]) == "train"]
    assert sorted(texts_of(task)) == ["body", "text"]
