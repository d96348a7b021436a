"""The second stage: what it is trained on, its loss, scores before and after, the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_jsonl, write_jsonl
from sklearn.metrics import ndcg_score
from small import SIZES, config, init
from test_matching import faq, rows_of

from bert_ft.data.batches import BatchPlan
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.models.heads import Model, kind_of
from bert_ft.models.hf import flatten
from bert_ft.tasks.cross_encoder import CrossEncoder, wrong_ahead
from bert_ft.train.export import _real_rows
from bert_ft.train.step import loss_and_gradient

PAIRS = (("film", "great"), ("plot", "dull"), ("film", "weak"), ("music", "great"))


@pytest.fixture(scope="module")
def tokenizer(world):
    return load_tokenizer(world.model)


def task(**overrides) -> CrossEncoder:
    given = {"task__name": "cross_encoder", "data__text_pair": "answer", "task__negatives": 2}
    return CrossEncoder(config(**{**given, **overrides}))


def words(data, tokenizer):
    """[question, candidate] of each sequence."""
    out = []
    for a, b in zip(data.offsets, data.offsets[1:], strict=False):
        ids, types = data.tokens[a:b], data.types[a:b]
        sides = (tokenizer.decode(ids[types == t], skip_special_tokens=True) for t in (0, 1))
        out.append(list(sides))
    return out


def test_a_training_example_is_a_group(tokenizer):
    film = ["great", "dull", "weak", "stale"]
    lists = [film, ["x", "dull", "y"], film[::-1], ["dull", "y"]]
    data = task().encode_training(rows_of(*PAIRS, candidates=lists), tokenizer, 16, {})
    assert data.pieces == 3 and len(data) == 4
    groups = np.asarray(words(data, tokenizer)).reshape(4, 3, 2)
    assert groups[0].tolist() == [["film", "great"], ["film", "dull"], ["film", "stale"]]
    assert groups[1].tolist() == [["plot", "dull"], ["plot", "x"], ["plot", "y"]]
    assert groups[2].tolist() == [["film", "weak"], ["film", "stale"], ["film", "dull"]]


def test_without_lists_answers_of_other_rows_are_drawn(tokenizer):
    pairs = [*PAIRS, ("scene", "stale")]
    data = task().encode_training(rows_of(*pairs), tokenizer, 16, {})
    again = task().encode_training(rows_of(*pairs), tokenizer, 16, {})
    np.testing.assert_array_equal(data.tokens, again.tokens)
    groups = np.asarray(words(data, tokenizer)).reshape(5, 3, 2)
    for (question, answer), group in zip(pairs, groups, strict=True):
        assert (group[:, 0] == question).all() and group[0, 1] == answer
        right = {a for q, a in pairs if q == question}
        assert len({*group[1:, 1]}) == 2 and not right & {*group[1:, 1]}
    with pytest.raises(InputError, match="4 distinct answers are too few"):
        task(task__negatives=3).encode_training(rows_of(*pairs), tokenizer, 16, {})


@pytest.mark.parametrize(("choice", "kind"), [(False, "sequence"), (True, "choice")])
def test_loss_is_torchs_over_each_group(choice, kind, tokenizer):
    torch = pytest.importorskip("torch")
    made = task(task__multiple_choice=choice)
    assert kind_of(made.head({})) == kind
    rows = rows_of(*PAIRS, candidates=[["stale", "x", "y"]] * 4)
    data = made.encode_training(rows, tokenizer, 16, {})
    model = Model(
        SIZES.__class__(**{**SIZES.__dict__, "vocab_size": len(tokenizer)}), made.head({})
    )
    params = init(model)
    batch = {k: jnp.asarray(v) for k, v in BatchPlan(data, 4, 1, 32).batch(0).items()}
    logits = jax.jit(model.apply)({"params": params}, batch)["logits"].reshape(4, 3)
    metrics, gradient = jax.jit(lambda p, b: loss_and_gradient(model, made, p, b, None, 0.0, 1))(
        params, batch
    )
    right = torch.zeros(4, dtype=torch.long)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(np.asarray(logits)), right)
    assert float(metrics["loss"]) == pytest.approx(float(theirs), rel=1e-5)
    assert all(np.isfinite(np.asarray(v)).all() for v in jax.tree.leaves(gradient))
    # A tie is no hit.
    for right, hits in ((0.0, 0.0), (1.0, 2.0)):
        alike = jnp.zeros((2, 3)).at[:, 0].set(right).reshape(6, 1)
        assert made.loss({"logits": alike}, {"weight": jnp.ones(2)})[2]["accuracy"] == hits
    # The groups are summed, so micro-batches give the same.
    plan = BatchPlan(data, 4, 1, 32, accumulate=2)
    parts = {k: jnp.asarray(v) for k, v in plan.batch(0).items()}
    split, found = jax.jit(lambda p, b: loss_and_gradient(model, made, p, b, None, 0.0, 2))(
        params, parts
    )
    assert float(split["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for path, value in flatten(gradient).items():
        np.testing.assert_allclose(flatten(found)[path], value, atol=1e-5, err_msg=path)


def test_wrong_ones_ahead():
    question = np.array([0, 0, 0, 1, 1, 2])
    value = np.array([1.0, 2.0, 2.0, 5.0, 1.0, 0.0])
    right = np.array([False, True, False, False, True, True])
    assert wrong_ahead(question, value, right).tolist() == [1, 1, 0]


def test_scores_before_and_after(tokenizer):
    """film: both right ones listed; plot: none is; music: the one, alone in its list."""
    film = ["dull", "great", "weak", "x"]
    lists = [film, ["x", "y"], film, ["great"]]
    rows, made = rows_of(*PAIRS, candidates=lists), task()
    data = made.encode(rows, tokenizer, 16, {})
    assert words(data, tokenizer)[:2] == [["film", "dull"], ["film", "great"]]
    assert len(data) == 4 + 2 + 1 and list(data.aside["rights"]) == [2, 1, 1]
    value = np.array([0.1, 0.9, 0.5, 0.7, 3.0, 2.0, 1.0])
    scores = made.score({"value": value}, data)
    # film: great first, weak third; plot: never.
    assert scores["mrr"] == pytest.approx((1 + 0 + 1) / 3)
    assert scores["map"] == pytest.approx(((1 + 2 / 3) / 2 + 0 + 1) / 3)
    assert scores["recall@1"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert scores["first_stage_mrr"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert scores["first_stage_map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 0 + 1) / 3)
    film = ndcg_score([[0, 1, 1, 0]], [value[:4]], k=10)
    assert scores["ndcg@10"] == pytest.approx((film + 0 + 1) / 3)
    assert (scores["questions"], scores["pairs"]) == (3, 7)
    assert made.sizes(data, scores) == dict.fromkeys(scores, 3)
    answers = made.answers({"value": value}, data, rows)
    assert [a["rank"] for a in answers] == [1, None, 3, 1]
    assert [c["text"] for c in answers[0]["candidates"]] == ["great", "x", "weak", "dull"]
    assert [c["first_stage"] for c in answers[0]["candidates"]] == [2, 4, 3, 1]
    # All alike: in either, ties count against the right ones.
    value = np.zeros(7)
    assert [a["rank"] for a in made.answers({"value": value}, data, rows)] == [3, None, 4, 1]
    assert made.score({"value": value}, data)["mrr"] == pytest.approx((1 / 3 + 0 + 1) / 3)


def test_a_question_asked_of_other_candidates_is_another_one(tokenizer):
    """As in multiple choice: which is right?"""
    pairs, lists = (("which", "great"), ("which", "weak")), [["great", "dull"], ["dull", "weak"]]
    rows, made = rows_of(*pairs, candidates=lists), task()
    data = made.encode(rows, tokenizer, 16, {})
    assert list(data.aside["rights"]) == [1, 1]
    value = {"value": np.array([2.0, 1.0, 1.0, 3.0])}
    answers = made.answers(value, data, rows)
    assert [(a["prediction"], a["rank"]) for a in answers] == [("great", 1), ("weak", 1)]
    assert made.score(value, data)["mrr"] == 1
    learnt = task(task__negatives=1).encode_training(
        rows_of(*pairs, candidates=[["great", "weak"], ["weak", "dull"]]), tokenizer, 16, {}
    )
    assert [w[1] for w in words(learnt, tokenizer)] == ["great", "weak", "weak", "dull"]


def test_only_the_top_k_are_read(tokenizer):
    rows = rows_of(*PAIRS[:2], candidates=[["x", "y", "great"], ["dull", "x", "y"]])
    data = task(task__top_k=2).encode(rows, tokenizer, 16, {})
    assert len(data) == 4 and not data.aside["right"][:2].any()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "candidates is an empty list"),
        ("great", "candidates is 'great', not a list"),
        (["great", 3], "candidates holds 3; accepted"),
        ([{"score": 1}], "candidates holds {'score': 1}; accepted"),
    ],
)
def test_lists_that_cannot_be(tokenizer, value, said):
    rows = rows_of(*PAIRS[:2], candidates=[["dull"], value])
    with pytest.raises(InputError) as caught:
        task().encode(rows, tokenizer, 16, {})
    assert str(caught.value).startswith("a.csv:3: ") and said in str(caught.value)


def test_rows_to_export_by_where_all_that_there_is_are_pairs(tokenizer, tmp_path):
    """All that the run had were questions and answers, of which the first five are the same one."""
    pairs = [{"text": f"film {i}", "answer": "great" if i < 5 else f"x {i}"} for i in range(9)]
    train = write_jsonl(tmp_path / "train.jsonl", pairs)
    given = {"task__name": "cross_encoder", "data__text_pair": "answer", "task__negatives": 2}
    name, rows = _real_rows(config(**given, data__train=f"files:{train}", export__rows=5))
    data = task().encode(rows, tokenizer, 16, {})
    assert name == "train"
    assert words(data, tokenizer) == [[p["text"], p["answer"]] for p in pairs[:5]]


def test_both_stages(run_here, deep, tmp_path):
    """Lists of a barely trained bi-encoder; the cross-encoder re-ranks them, and says what was."""
    train, test = (write_jsonl(tmp_path / f"{i}.jsonl", faq(i, 120)) for i in (0, 1))
    shared = [
        *("--config.data.text_pair=answer", "--config.task.label_names=", "--config.data.dev="),
        f"--config.model.pretrained={deep}",
    ]
    first = [
        *shared,
        "--config.task.name=matching",
        *(f"--config.data.train=files:{train}", f"--config.data.test=files:{test}"),
        "--config.train.steps=4",
    ]
    stage = run_here(tmp_path / "first", *first).ok()
    lists = tmp_path / "lists.jsonl"
    run_here(
        stage.workdir,
        *first,
        "--mode=predict",
        *(f"--config.predict.input={train}", f"--config.predict.output={lists}"),
    ).ok()
    assert [r["answer"] for r in read_jsonl(lists)] == [r["answer"] for r in read_jsonl(train)]
    second = [
        *shared,
        *("--config.task.name=cross_encoder", "--config.task.negatives=4"),
        f"--config.data.train=files:{lists}",
        f"--config.data.test=files:{stage.workdir}/predictions/test.jsonl",
        "--config.train.steps=120",
        "--config.train.learning_rate=2e-3",
    ]
    done = run_here(tmp_path / "second", *second).ok()
    scores = {k: v["mean"] for k, v in done.result["eval"].items()}
    before = {k: v["mean"] for k, v in stage.result["eval"].items()}
    # Cut to its ten best, the first stage's list is the one it was scored by.
    for name in ("recall@1", "recall@5", "recall@10", "ndcg@10"):
        assert scores[f"test/first_stage_{name}"] == pytest.approx(before[f"test/{name}"], abs=1e-6)
    assert scores["test/recall@10"] == pytest.approx(scores["test/first_stage_recall@10"])
    assert scores["test/mrr"] > scores["test/first_stage_mrr"] + 0.05

    out = tmp_path / "out.jsonl"
    asked = stage.workdir / "predictions" / "test.jsonl"
    words = [f"--config.predict.input={asked}", f"--config.predict.output={out}"]
    run_here(done.workdir, *second, "--mode=predict", *words).ok()
    again = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    for line, one in zip(read_jsonl(out), again, strict=True):
        assert line["text"] == one["text"] and line["label"] == one["prediction"]
        assert [c["text"] for c in line["candidates"]] == [c["text"] for c in one["candidates"]]

    to = tmp_path / "export"
    done = run_here(done.workdir, *second, "--mode=export", f"--config.export.to={to}").ok()
    assert "BertForSequenceClassification of step 120" in done.out
