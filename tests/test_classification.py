"""Classification: labels are found and numbered alike everywhere, loss and scores by definition."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk
from small import config, encoded

from bert_ft.data.sources import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.evals.judge import judge
from bert_ft.tasks.classification import Classification, sorted_labels
from bert_ft.tasks.registry import make_task


def task(**overrides):
    return Classification(config(**overrides))


def rows(**columns):
    count = len(next(iter(columns.values())))
    return Rows(columns, list(range(2, count + 2)), "reviews.csv")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("uncased") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]) + "\n")
    return load_tokenizer(path)


@pytest.mark.parametrize(
    "values, expected",
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        ([10, 9, 1], ["1", "9", "10"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        ([0.5, 2, 10], ["0.5", "2", "10"]),
        ([True, False], ["False", "True"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["1", "1.50", "01", "1.5"], ["01", "1", "1.5", "1.50"]),
        (["nan", "2", "10"], ["10", "2", "nan"]),
    ],
)
def test_labels_in_order(values, expected):
    assert task().fit(rows(label=values))["labels"] == expected


def test_every_process_numbers_labels_alike():
    """Sets of strings come in another order under another hash seed: hosts must not differ."""
    labels = ["nan", "1", "01", "1.0", "1e0", "+1", "2", "inf"]
    code = "import sys; from bert_ft.tasks.classification import sorted_labels as s; "
    code += "print(s(set(sys.argv[1:])), s(set(sys.argv[2:])))"
    root = Path(__file__).parents[1]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, *labels],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{sorted_labels(set(labels))} {sorted_labels(set(labels[1:]))}\n"


def test_one_label_only_is_refused():
    with pytest.raises(
        InputError, match=r"reviews\.csv: column 'label' has one label only \('1'\)"
    ):
        task().fit(rows(label=[1, 1]))


def test_names_for_labels():
    named = task(task__label_names="bad, good")
    assert named.fit(rows(label=[1, 0])) == {"labels": ["0", "1"], "names": ["bad", "good"]}
    with pytest.raises(InputError, match=r"label_names gives 2 names .* for 3 labels"):
        named.fit(rows(label=[0, 1, 2]))
    with pytest.raises(InputError, match="label_names is same, same; accepted: another name for"):
        task(task__label_names="same,same").fit(rows(label=[1, 0]))
    words = rows(label=["happy", "sad"])
    with pytest.raises(InputError, match=r"bad, good, names for numbers; .* happy, sad; set .*''"):
        named.fit(words)
    assert task(task__label_names="happy,sad").fit(words)["names"] == ["happy", "sad"]


FITTED = {"labels": ["0", "1"], "names": ["bad", "good"]}


def test_encoding(tokenizer):
    out = task().encode(rows(text=["a b", "c d e f", "a"], label=[1, 0, 1]), tokenizer, 5, FITTED)
    np.testing.assert_array_equal(out.fields["label"], [1, 0, 1])
    np.testing.assert_array_equal(out.lengths[:, 0], [4, 5, 3])
    np.testing.assert_array_equal(out.truncated, [False, True, False])
    np.testing.assert_array_equal(out.row, [0, 1, 2])
    assert out.pieces == 1 and out.fitted == FITTED


def test_pairs(tokenizer):
    paired = task(data__text_pair="other")
    out = paired.encode(rows(text=["a"], other=["b c"], label=[0]), tokenizer, 9, FITTED)
    assert [tokenizer.convert_ids_to_tokens(int(t)) for t in out.tokens] == [
        "[CLS]", "a", "[SEP]", "b", "c", "[SEP]",
    ]  # fmt: skip
    np.testing.assert_array_equal(out.types, [0, 0, 0, 1, 1, 1])
    assert paired.columns() == ["text", "other", "label"]


def test_a_label_that_training_lacked_is_named_with_its_line(tokenizer):
    with pytest.raises(InputError, match=r"reviews\.csv:3: label '2' is not among .*: '0', '1'"):
        task().encode(rows(text=["a", "b"], label=[1, 2]), tokenizer, 9, FITTED)


def test_a_blank_label_is_none(tokenizer):
    for value in ("", " "):
        blank = rows(text=["a", "b"], label=["1", value])
        for read in (task().fit, lambda r: task().encode(r, tokenizer, 9, FITTED)):
            with pytest.raises(InputError, match=rf"reviews\.csv:3: .* where=label!={value} in"):
                read(blank)


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (float("nan"), "is nan; accepted: a label, or .*where=label!=NaN in"),
        (["x"], r"is \['x'\]; accepted: a label"),
        ({"a": 1}, "is {'a': 1}; accepted: a label"),
        (None, "no value in column 'label'"),
    ],
)
def test_what_is_no_label(value, seen, tokenizer):
    given = rows(text=["a", "b"], label=[1, value])
    for read in (task().fit, lambda r: task().encode(r, tokenizer, 9, FITTED)):
        with pytest.raises(InputError, match=rf"reviews\.csv:3: .*{seen}"):
            read(given)


def test_labels_that_are_one_number():
    with pytest.raises(InputError, match=r"'1' and '1\.0' are one number; accepted: one"):
        task().fit(rows(label=["1.0", "0", "1"]))
    assert task().fit(rows(label=["1.5", "01", "1"]))["labels"] == ["01", "1", "1.5"]


def test_labels_that_differ_by_blanks_only(tokenizer):
    said = r"reviews\.csv: column 'label'.*: '1' and '1 ' differ by blanks only"
    with pytest.raises(InputError, match=said):
        task().fit(rows(label=["1", "0", "1 "]))
    for scoring in (task(), task(task__unseen_labels="score")):
        with pytest.raises(InputError, match=said):
            scoring.encode(rows(text=["a", "b"], label=["0", "1 "]), tokenizer, 9, FITTED)


def test_a_label_that_training_lacked_may_count_as_wrong(tokenizer):
    scoring = task(task__unseen_labels="score")
    named, strange = {**FITTED, "names": ["no", "yes"]}, rows(text=["a", "b"], label=[1, "yes"])
    with pytest.raises(InputError, match="'yes' is not among the training .*but the name of one"):
        scoring.encode(strange, tokenizer, 9, named)
    source = rows(text=["a", "b", "c", "d"], label=[1, 2, 0, 3])
    data = scoring.encode(source, tokenizer, 9, FITTED)
    assert data.fitted == {**FITTED, "unseen": ["2", "3"]}
    p = np.array([[0.2, 0.8], [0.9, 0.1], [0.7, 0.3], [0.4, 0.6]])
    scores, said = scoring.score({"probabilities": p}, data), ["1", "0", "0", "1"]
    true = [str(label) for label in source.columns["label"]]
    assert scores["accuracy"] == sk.accuracy_score(true, said) == 0.5 and scores["unseen"] == 2
    assert scores["f1_macro"] == pytest.approx(sk.f1_score(true, said, average="macro"))
    assert scores["mcc"] == pytest.approx(sk.matthews_corrcoef(true, said))
    assert scores["loss"] == pytest.approx(-(np.log(0.8) + np.log(0.7)) / 2)
    answers = scoring.answers({"probabilities": p}, data, source)
    assert [a["label"] for a in answers] == ["good", "2", "bad", "3"]
    # As `compare` has it from the answers alone.
    judged = judge(answers, "f1_macro", "test")
    assert judged.score(judged.values) == pytest.approx(scores["f1_macro"])
    assert scoring.signature() != task().signature()


@pytest.mark.parametrize("text, seen", [(3, "3"), (None, "no value"), (["a", 3], r"\['a', 3\]")])
def test_what_is_not_a_text_is_named_with_its_line(text, seen, tokenizer):
    with pytest.raises(InputError, match=rf"reviews\.csv:3: .*{seen}"):
        task().encode(rows(text=["a", text], label=[1, 0]), tokenizer, 9, FITTED)


def test_a_missing_column_says_which_there_are(tokenizer):
    with pytest.raises(InputError, match=r"no column 'text'; there are: texts, label"):
        task().encode(rows(texts=["a"], label=[1]), tokenizer, 9, FITTED)
    with pytest.raises(InputError, match=r"there are: text, stars; set config.data.label to one"):
        task().fit(rows(text=["a"], stars=[1]))
    nested = rows(doc=[{"text": "a"}], label=[1])
    with pytest.raises(InputError, match="'doc' holds objects: write their values as columns"):
        task(data__text="doc.text").encode(nested, tokenizer, 9, FITTED)


def test_rows_without_labels_can_be_predicted(tokenizer):
    assert task().encode(rows(text=["a"]), tokenizer, 9, FITTED).fields == {}


def test_the_loss_is_a_sum_over_the_examples_there_are():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(0, 3, (6, 3)), rng.integers(0, 3, 6)
    weight = np.array([1, 1, 0, 1, 0, 1], np.float32)
    batch = {"label": jnp.asarray(label), "weight": jnp.asarray(weight)}
    out = {"logits": jnp.asarray(logits, jnp.float32)}
    total, count, extra = task().loss(out, batch)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(total, -(log_p[np.arange(6), label] * weight).sum(), rtol=1e-5)
    assert count == 4
    assert extra["accuracy"] == ((logits.argmax(axis=1) == label) * weight).sum()
    p = task().predict(out, batch)["probabilities"]
    np.testing.assert_allclose(p, np.exp(log_p), rtol=1e-5)


def test_two_classes_have_an_f1_and_an_auc_too():
    rng = np.random.default_rng(1)
    data = encoded([3] * 40)
    data.fields["label"][:] = rng.integers(0, 2, 40)
    p = rng.random((40, 1))
    scores = task().score({"probabilities": np.hstack([p, 1 - p])}, data)
    expected = sk.f1_score(data.fields["label"], p[:, 0] < 0.5)
    assert scores["f1"] == pytest.approx(expected) and 0.1 < expected < 0.9
    chance = 1 - p[:, 0]
    assert scores["auc"] == pytest.approx(sk.roc_auc_score(data.fields["label"], chance))
    assert scores["brier"] == pytest.approx(2 * sk.brier_score_loss(data.fields["label"], chance))
    third = np.hstack([p, 1 - p, 0 * p])
    data.fitted["names"] = ["a", "b", "c"]
    of_a = task(task__positive_label="a").score({"probabilities": third}, data)
    assert of_a["auc"] == pytest.approx(sk.roc_auc_score(data.fields["label"] == 0, p[:, 0]))
    assert "auc" not in task().score({"probabilities": third}, data)


def test_answers_are_joined_to_their_rows(tokenizer):
    named = task(task__label_names="bad,good")
    source = rows(text=["a b", "c d e f"], label=[1, 0])
    data = named.encode(source, tokenizer, 5, FITTED)
    p = np.array([[0.25, 0.75], [0.125, 0.875]])
    answers = named.answers({"probabilities": p}, data, source)
    assert answers[1] == {
        "text": "c d e f",
        "label": "bad",
        "prediction": "good",
        "probabilities": {"bad": 0.125, "good": 0.875},
        "truncated": True,
    }
    assert answers[0]["text"] == "a b" and not answers[0]["truncated"]
    assert named.sentence(answers[1]) == "good (88%; label bad): c d e f"


def test_a_task_that_is_not_one():
    assert isinstance(make_task(config()), Classification)
    with pytest.raises(InputError, match=r"'clasification'; accepted: .*did you mean class"):
        make_task(config(task__name="clasification"))
