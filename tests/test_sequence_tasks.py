"""Pairs of texts, class weights and smoothing, several labels, numbers, ranks."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import World, read_jsonl, reviews, write_jsonl
from small import config, encoded, init, model, varied

from bert_ft.data.batches import BatchPlan
from bert_ft.data.sources import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError, Preempted
from bert_ft.evals.answers import prediction_sections
from bert_ft.models import hf
from bert_ft.models.heads import Coral
from bert_ft.tasks.classification import Classification, cross_entropy
from bert_ft.tasks.multilabel import MultiLabel, best_threshold
from bert_ft.tasks.ordinal import Ordinal
from bert_ft.tasks.registry import TASKS
from bert_ft.tasks.regression import Regression
from bert_ft.train import loop
from bert_ft.train.step import loss_and_gradient


def rows_of(**columns):
    count = len(next(iter(columns.values())))
    return Rows({k: list(v) for k, v in columns.items()}, list(range(2, count + 2)), "set.csv")


def data_of(fitted, **fields):
    count = len(next(iter(fields.values())))
    made = encoded([3] * count)
    return made.__class__(**{**vars(made), "fields": fields, "fitted": fitted})


def test_pairs_are_read_as_transformers_reads_them(world: World):
    """Tokens, types and, packed, the vector that the head reads."""
    torch = pytest.importorskip("torch")
    from transformers import BertModel

    rows = rows_of(
        a=["the film is great", "its acting", "dull"] * 3,
        b=["this movie was awful to me", "for two hours once again", "x"] * 3,
        label=[0, 1, 1] * 3,
    )
    task = Classification(config(data__text="a", data__text_pair="b"))
    tokenizer = load_tokenizer(world.model)
    data = task.encode(rows, tokenizer, 10, task.fit(rows))
    theirs = tokenizer(
        rows.columns["a"], rows.columns["b"], truncation=True, max_length=10, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    for i, (start, stop) in enumerate(zip(data.offsets, data.offsets[1:], strict=False)):
        real = theirs["attention_mask"][i].bool()
        assert data.tokens[start:stop].tolist() == theirs["input_ids"][i][real].tolist()
        assert data.types[start:stop].tolist() == theirs["token_type_ids"][i][real].tolist()
    assert data.truncated.tolist() == [True, False, False] * 3

    ours = model(hf.read_config(world.model), classes=2)
    shapes = init(ours)
    found, new = hf.load(world.model, shapes)
    params = hf.unflatten(found | {path: hf.flatten(shapes)[path] for path in new})
    batch = BatchPlan(data, 9, 1, 32).batch(0)
    assert len(batch["tokens"]) < 9
    logits = jax.jit(ours.apply)({"params": params}, batch)["logits"]
    with torch.no_grad():
        pooled = BertModel.from_pretrained(world.model)(**theirs).pooler_output.numpy()
    wanted = pooled @ params["top"]["classifier"]["kernel"] + params["top"]["classifier"]["bias"]
    order = BatchPlan(data, 9, 1, 32).examples(0)
    np.testing.assert_allclose(logits, wanted[order], atol=1e-4)


SLICES = {"train": 0, "dev": 20, "test": 40}
LOGITS = np.random.default_rng(0).normal(0, 2, (12, 3)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 12).astype(np.int32)


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 5.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_torchs(weights, smoothing):
    torch = pytest.importorskip("torch")
    given = None if weights is None else jnp.asarray(weights)
    loss, counted = cross_entropy(LOGITS, LABELS, given, smoothing)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS),
        torch.tensor(LABELS).long(),
        None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(float(loss.sum() / counted.sum()), float(wanted), rtol=1e-5)


def test_zero_strength_changes_nothing():
    plain, one = (cross_entropy(LOGITS, LABELS, w, 0.0) for w in (None, jnp.ones(3)))
    nll = -np.asarray(jax.nn.log_softmax(LOGITS))[np.arange(12), LABELS]
    assert np.array_equal(plain[0], nll) and np.array_equal(one[0], nll)
    assert np.array_equal(plain[1], np.ones(12)) and np.array_equal(one[1], np.ones(12))


def test_weights_are_kept_when_a_batch_is_split_and_packed():
    """The whole batch is divided once by its sum of weights, however it is cut up."""
    task = Classification(config(task__label_smoothing=0.1))
    made = model()
    made = made.clone(head=task.head({"labels": list("abc"), "weights": [0.2, 1.0, 5.0]}))
    params, data = init(made), varied(8)
    got = []
    for packed, parts in ((True, 1), (False, 2)):
        batch = BatchPlan(data, 8, 1, 32, packed=packed, accumulate=parts).batch(0)
        step = partial(loss_and_gradient, made, task, rng=None, rate=0.0, accumulate=parts)
        got.append(jax.jit(lambda p, b, step=step: step(params=p, batch=b))(params, batch))
    for other in got[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got[0], other
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_weighs_0_has_no_loss(smoothing):
    """Nor has a batch of nothing else, whose loss was 0/0; nor what smoothing gives such a label,
    which a batch with others would divide by little."""
    task = Classification(config(task__label_smoothing=smoothing))
    made = model().clone(head=task.head({"labels": list("abc"), "weights": [0.0, 1.0, 5.0]}))
    params, data = init(made), varied(8)
    step = jax.jit(partial(loss_and_gradient, made, task, rng=None, rate=0.0, accumulate=1))

    def of(label):
        batch = BatchPlan(data, 8, 1, 32).batch(0)
        return step(params=params, batch={**batch, "label": jnp.asarray(label, jnp.int32)})

    metrics, gradient = of([0] * 8)
    assert metrics["loss"] == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))
    metrics, gradient = of([1, 2, 0, 0, 0, 0, 0, 0])
    assert metrics["loss"] > 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    outputs, none = {"logits": LOGITS}, {"label": LABELS, "weight": jnp.zeros(12)}
    assert Classification(config()).loss(outputs, none)[1] == 0  # as a part of several reads it


def test_class_weights_of_a_config():
    rows = rows_of(text=["x"] * 6, label=["b", "a", "a", "a", "a", "a"])
    fit = Classification(config(task__class_weights="balanced")).fit(rows)
    np.testing.assert_allclose(fit["weights"], [6 / (2 * 5), 6 / (2 * 1)])
    # Cui et al. 2019: in proportion to (1 - beta) / (1 - beta^n), their mean 1.
    effective = {"task__class_weights": "effective", "task__class_beta": 0.5}
    inverse = np.array([0.5 / (1 - 0.5**5), 0.5 / (1 - 0.5)])
    fit = Classification(config(**effective)).fit(rows)
    np.testing.assert_allclose(fit["weights"], inverse / inverse.mean())
    effective["task__class_beta"] = 0.0
    np.testing.assert_allclose(Classification(config(**effective)).fit(rows)["weights"], [1, 1])
    assert Classification(config(task__class_weights="1,3")).fit(rows)["weights"] == [1, 3]
    assert "weights" not in Classification(config()).fit(rows)
    with pytest.raises(InputError, match="class_weights gives 3 weights for 2 labels: a, b"):
        Classification(config(task__class_weights="1,2,3")).fit(rows)
    with pytest.raises(InputError, match="positive_label is 'c'; accepted: 'a', 'b'"):
        Classification(config(task__positive_label="c")).fit(rows)
    fitted = Classification(config()).fit(rows)
    with pytest.raises(InputError, match="positive_label is 'c'; accepted: 'a', 'b'"):
        Classification(config(task__positive_label="c")).about(rows, fitted)  # of an evaluation


def test_f1_is_of_the_positive_label():
    fitted = {"labels": ["a", "b"], "names": ["a", "b"]}
    data = data_of(fitted, label=np.asarray([0, 0, 1, 1]))
    p = {"probabilities": np.asarray([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])}
    scores = [Classification(config(task__positive_label=x)).score(p, data) for x in ("", "a", "b")]
    assert [round(s["f1"], 4) for s in scores] == [0.8, 0.6667, 0.8]


def multilabel():
    return MultiLabel(config(task__name="multilabel", task__label_delimiter=";"))


def test_several_labels_from_lists_and_strings():
    task = multilabel()
    written = [' ["b", "a"]', "['c']", "[]", "", '["a"]']
    assert task.label_sets(rows_of(text="vwxyz", label=written)) == [
        {"a", "b"},
        {"c"},
        set(),
        set(),
        {"a"},
    ]
    assert task.label_sets(rows_of(text="v", label=["[a]; b"])) == [{"[a]", "b"}]
    as_json = ['["a\\/b"]', '["\\ud83d\\ude00", 7]']
    assert task.label_sets(rows_of(text="vw", label=as_json)) == [{"a/b"}, {"😀", "7"}]
    for cell in ("['good' 'film']", "[ 2 13]", '["a", null]', "[unk]", "[{[]: 1}]"):
        with pytest.raises(InputError, match=r"set.csv:2: label is .*; accepted: a list of labels"):
            task.label_sets(rows_of(text="v", label=[cell]))
    rows = rows_of(text="vwxyz", label=["b; a", ["c"], [], "", ["a", "a"]])
    fitted = task.fit(rows)
    assert fitted["labels"] == ["a", "b", "c"]
    label = task.targets(rows, fitted)["label"]
    assert label.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(
        InputError, match=r"set.csv:3: label 'd' is not among .*'a', 'b', 'c'; with "
    ):
        task.targets(rows_of(text="vw", label=["a", "d"]), fitted)
    with pytest.raises(InputError, match=r"set.csv:2: label is 3; accepted: a list .*';'"):
        task.fit(rows_of(text="v", label=[3]))
    with pytest.raises(InputError, match=r"'1' and '1.0' are one number"):  # as pandas writes gaps
        task.fit(rows_of(text="vw", label=["1;2", "1.0"]))
    ones = task.fit(rows_of(text="vw", label=["1;2", "2"]))
    with pytest.raises(InputError, match=r"'1' and '1.0' are one number"):
        task.targets(rows_of(text="v", label=["1.0"]), ones)
    weighed = MultiLabel(config(task__class_weights="balanced", task__label_delimiter=";"))
    np.testing.assert_allclose(weighed.fit(rows)["weights"], [3 / 2, 4, 4])
    by_number = config(
        task__class_weights="effective", task__class_beta=0.5, task__label_delimiter=";"
    )
    expected = [(1 - 0.5**3) / (1 - 0.5**2), *[(1 - 0.5**4) / (1 - 0.5)] * 2]
    np.testing.assert_allclose(MultiLabel(by_number).fit(rows)["weights"], expected)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 3.0)])
def test_several_labels_loss_is_torchs(weights):
    torch = pytest.importorskip("torch")
    label = np.random.default_rng(2).integers(0, 2, (12, 3)).astype(np.int8)
    outputs = {"logits": jnp.asarray(LOGITS)}
    if weights:
        outputs["class_weights"] = jnp.asarray(weights)
    batch = {"label": jnp.asarray(label), "weight": jnp.ones(12)}
    total, count, _ = multilabel().loss(outputs, batch)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS),
        torch.tensor(label).float(),
        pos_weight=None if weights is None else torch.tensor(weights),
    )
    np.testing.assert_allclose(float(total / count), float(wanted), rtol=1e-5)


def test_several_labels_scores_are_scikit_learns():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    label, p = rng.integers(0, 2, (50, 4)), rng.random((50, 4))
    thresholds = [0.3, 0.5, 0.7, 0.2]
    data = data_of({"labels": list("abcd"), "thresholds": thresholds}, label=label)
    scores = multilabel().score({"probabilities": p}, data)
    guess = p >= thresholds
    for name, wanted in (
        ("f1_micro", sk.f1_score(label, guess, average="micro")),
        ("f1_macro", sk.f1_score(label, guess, average="macro")),
        ("precision", sk.precision_score(label, guess, average="micro")),
        ("recall", sk.recall_score(label, guess, average="micro")),
        ("exact_match", sk.accuracy_score(label, guess)),
    ):
        assert scores[name] == pytest.approx(wanted), name


def test_a_label_of_several_that_training_lacked_may_count_as_missed(world: World):
    sk = pytest.importorskip("sklearn.metrics")
    task = MultiLabel(config(task__name="multilabel", task__unseen_labels="score"))
    rows = rows_of(text="vwx", label=[["a", "d"], ["b"], ["c", "d"]])
    fitted = {"labels": ["a", "b"], "weights": [], "unseen": []}
    data = task.encode(rows, load_tokenizer(world.model), 9, fitted)
    assert data.fitted["unseen"] == ["c", "d"]
    label = data.fields["label"]
    assert label.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]]
    p = {"probabilities": np.asarray([[0.9, 0.2], [0.4, 0.7], [0.1, 0.3]], np.float32)}
    scores = task.score(p, data)
    guess = np.asarray([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    for average in ("micro", "macro"):
        wanted = sk.f1_score(label, guess, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(wanted)
    assert scores["exact_match"] == pytest.approx(1 / 3) and scores["unseen"] == 3
    assert scores["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.6, 0.7, 0.9, 0.7]).mean())
    assert len(task.tune(p, data)["thresholds"]) == 2
    assert [a["label"] for a in task.answers(p, data, rows)] == [["a", "d"], ["b"], ["c", "d"]]
    assert task.signature() != MultiLabel(config(task__name="multilabel")).signature()


def test_best_threshold_is_that_of_a_search():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    for _ in range(4):
        label, p = rng.integers(0, 2, 15), np.round(rng.random(15), 1)
        label[0] = 1
        chosen = sk.f1_score(label, p >= best_threshold(label, p))
        others = [sk.f1_score(label, p >= t, zero_division=0) for t in np.linspace(0, 1, 21)]
        assert chosen == pytest.approx(max(others))
    assert best_threshold(np.zeros(3), np.asarray([0.1, 0.2, 0.3])) == 0.5
    assert best_threshold(np.asarray([0, 1]), np.asarray([0.1, 0.9])) == 0.5


def test_numbers_in_and_out():
    sp = pytest.importorskip("scipy.stats")
    task = Regression(config(task__name="regression", task__range="0,5"))
    rows = rows_of(text="abcd", label=["3.8", 1, "5.000", 0.0])
    fitted = task.fit(rows)
    fields = task.targets(rows, fitted)
    assert abs(fields["target"].mean()) < 1e-6 and abs(fields["target"].std() - 1) < 1e-6
    data = data_of(fitted, **fields)
    predicted = {"value": fields["target"] + np.float32([0.1, -0.2, 0.0, 0.3])}
    values = fitted["mean"] + fitted["scale"] * predicted["value"].astype(float)
    scores, label = task.score(predicted, data), np.asarray([3.8, 1, 5, 0])
    assert scores["pearson"] == pytest.approx(sp.pearsonr(label, values).statistic, abs=1e-6)
    assert scores["spearman"] == pytest.approx(sp.spearmanr(label, values).statistic)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((label - values) ** 2)))
    assert scores["mae"] == pytest.approx(np.mean(np.abs(label - values)))
    answers = task.answers(predicted, data, rows)
    assert [a["label"] for a in answers] == [3.8, 1.0, 5.0, 0.0]
    assert answers[0]["prediction"] == pytest.approx(values[0], abs=1e-6)
    json.dumps(answers)
    page = "".join(prediction_sections([{**a, "text": [f"{a['text']}!", "?"]} for a in answers]))
    assert "Pearson" in page and "Largest errors" in page and "a!\n?" in page

    plain = Regression(config(task__label_scaling="none"))
    assert plain.targets(rows, plain.fit(rows))["target"].tolist() == fields["label"].tolist()


@pytest.mark.parametrize(
    ("labels", "shown"), [((1e-7, 4e-7), "3.86e-07"), ((0.5, 3.5), "3.36"), ((2e7, 8e7), "7717157")]
)
def test_predictions_keep_all_digits(labels, shown):
    """With fewer, those that hardly differ correlate otherwise than they were scored."""
    task = Regression(config(task__name="regression"))
    rows = rows_of(text="abc", label=[*labels, labels[1]])
    fitted = task.fit(rows)
    fields = task.targets(rows, fitted)
    predicted = {"value": fields["target"] - np.float32(0.1)}
    wanted = task.values(predicted, data_of(fitted, **fields))
    answers = task.answers(predicted, data_of(fitted, **fields), rows)
    assert [a["prediction"] for a in json.loads(json.dumps(answers))] == wanted.tolist()
    assert task.sentence(answers[1]).startswith(shown)


def test_numbers_that_float32_can_t_tell_apart_are_refused():
    task = Regression(config(task__name="regression"))
    with pytest.raises(InputError, match=r"^set.csv: column 'label' .*float32.* such as 2.02401e"):
        task.fit(rows_of(text="abcd", label=[20240100, 20240101, 20240102, 20240105]))
    assert task.fit(rows_of(text="abcd", label=[20200100, 20210101, 20230102, 20240105]))


@pytest.mark.parametrize("kind", ["regression", "ordinal"])
@pytest.mark.parametrize("label", ["six", 6, -1, "nan", "", True, [1], 10**400, "1e39"])
def test_a_rating_that_is_none(kind, label):
    task = TASKS[kind](config(task__name=kind, task__range="1,5"))
    with pytest.raises(InputError, match=r"^set.csv:4: label is .*accepted: a number from 1 to 5"):
        task.fit(rows_of(text="abc", label=[1, 5, label]))


def test_ranks():
    task = Ordinal(config(task__range="1,5"))
    fitted = task.fit(rows_of(text="abcd", label=["5", 5, 1, 2.0]))
    assert fitted["ranks"] == [1, 2, 3, 4, 5]
    above = 1 / (1 + np.exp(-np.asarray(fitted["biases"])))
    np.testing.assert_allclose(above, [7 / 9, 5 / 9, 4 / 9, 3 / 9])
    assert Ordinal(config()).fit(rows_of(text="ab", label=[7, 1.5]))["ranks"] == [1.5, 7]
    five = "set.csv:3: label is 2.5; accepted: the ranks 1, 2, 3, 4, 5$"
    with pytest.raises(InputError, match=five):
        task.targets(rows_of(text="ab", label=[1, 2.5]), fitted)
    free = Ordinal(config())
    with pytest.raises(InputError, match=r"accepted: the ranks 1, 5; with config.task.range='LOW,"):
        free.targets(rows_of(text="a", label=[3]), free.fit(rows_of(text="ab", label=[1, 5])))


def test_coral_by_its_formula():
    task, rng = Ordinal(config()), np.random.default_rng(5)
    logits, label = rng.normal(size=(7, 4)), rng.integers(0, 5, 7)
    total, count, extra = task.loss(
        {"logits": jnp.asarray(logits)}, {"label": jnp.asarray(label), "weight": jnp.ones(7)}
    )
    wanted = 0.0
    for i in range(7):  # equation 4, every importance 1
        for k in range(4):
            p = 1 / (1 + np.exp(-logits[i, k]))
            wanted -= np.log(p) if label[i] > k else np.log(1 - p)
    np.testing.assert_allclose(float(total), wanted, rtol=1e-5)
    assert count == 7
    ranks = [sum(logits[i, k] > 0 for k in range(4)) for i in range(7)]  # equation 1
    assert float(extra["accuracy"]) == sum(np.asarray(ranks) == label)


def test_coral_is_monotone_in_any_state():
    top, x = Coral((2.0, 0.5, -3.0), 0.2), np.random.default_rng(6).normal(size=(9, 8))
    params = top.init(jax.random.key(0), x)["params"]
    logits = top.apply({"params": params}, x)
    shared = x @ params["kernel"]
    np.testing.assert_allclose(logits - shared, [[2.0, 0.5, -3.0]] * 9, atol=1e-5)
    for seed in range(5):
        anywhere = {**params, "bias": 5 * jax.random.normal(jax.random.key(seed), (3,))}
        assert (np.diff(top.apply({"params": anywhere}, x), axis=1) < 0).all()


def test_answers_of_ranks():
    task = Ordinal(config())
    data = data_of({"ranks": [1.0, 2.5, 4.0], "biases": [1, 0]}, label=np.asarray([2, 0]))
    predicted = {"above": np.float32([[0.9, 0.6], [0.4, 0.1]])}
    answers = task.answers(predicted, data, rows_of(text="ab", label=[4, 1]))
    assert [(a["label"], a["prediction"]) for a in answers] == [("4", "4"), ("1", "1")]
    assert answers[0]["probabilities"] == {"1": 0.1, "2.5": 0.3, "4": 0.6}
    assert task.score(predicted, data)["rmse"] == 0


def test_ranks_that_are_nearly_the_same_have_names_of_their_own():
    ranks = [20240101.0, 20240102.0, 20240102.5]
    data = data_of({"ranks": ranks, "biases": [1, 0]}, label=np.asarray([1]))
    predicted = {"above": np.float32([[0.9, 0.6]])}
    [answer] = Ordinal(config()).answers(predicted, data, rows_of(text="a", label=[20240102]))
    assert answer["probabilities"] == {"20240101": 0.1, "20240102": 0.3, "20240102.5": 0.6}
    assert (answer["label"], answer["prediction"]) == ("20240102", "20240102.5")
    with pytest.raises(InputError, match=r"label is 20240103; accepted: the ranks 20240101, "):
        Ordinal(config()).places(rows_of(text="a", label=[20240103]), ranks)


def test_thresholds_of_dev_are_kept_and_used(run_here, world: World, tmp_path, monkeypatch):
    """A whole run, of the baseline, which takes the encoder's place."""
    rows = [
        {"id": r["id"], "text": r["text"], "label": ["good"] * r["label"] + ["film"] * (i % 3 == 0)}
        for i, r in enumerate(reviews(60, seed=1))
    ]
    sets = {n: write_jsonl(tmp_path / f"{n}.jsonl", rows[a:]) for n, a in SLICES.items()}
    workdir = tmp_path / "run"
    flags = [
        *(f"--config.data.{name}=files:{path}" for name, path in sets.items()),
        *("--config.model.kind=lstm", "--config.model.pretrained=", "--config.model.hidden_size=8"),
        *(f"--config.model.tokenizer={world.model}", "--config.model.layers=1"),
        *("--config.task.name=multilabel", "--config.task.label_names=", "--config.train.steps=3"),
        *("--config.data.row_counts=1", "--config.train.learning_rate=0.02"),
    ]
    result = run_here(workdir, *flags).ok().result
    thresholds = json.loads((workdir / "model/task.json").read_text())["fitted"]["thresholds"]
    assert len(thresholds) == 2 and thresholds != [0.5, 0.5]
    answers = read_jsonl(workdir / "predictions/test.jsonl")
    for answer in answers:
        reached = [
            p >= t for p, t in zip(answer["probabilities"].values(), thresholds, strict=True)
        ]
        said = [n for n, y in zip(answer["probabilities"], reached, strict=True) if y]
        assert answer["prediction"] == said
    hits = sum(len(set(a["label"]) & set(a["prediction"])) for a in answers)
    both = sum(len(a["label"]) + len(a["prediction"]) for a in answers)
    assert result["eval"]["test/f1_micro"]["mean"] == pytest.approx(2 * hits / both)

    # A start of the finished run, left before dev is scored anew, does not take them away.
    def left(*_):
        raise Preempted

    with monkeypatch.context() as patched:
        patched.setattr(loop, "score_set", left)
        assert run_here(workdir, *flags).code == 75
    kept = json.loads((workdir / "model/task.json").read_text())["fitted"]["thresholds"]
    assert kept == thresholds
    # Another process reads them with the model.
    (tmp_path / "new.jsonl").write_text(sets["test"].read_text())
    predict = ["--mode=predict", f"--config.predict.input={tmp_path / 'new.jsonl'}"]
    run_here(workdir, *flags, *predict).ok()
    again = read_jsonl(workdir / "predictions/new.jsonl")
    assert [a["label"] for a in again] == [a["prediction"] for a in answers]
