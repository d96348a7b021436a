"""What transformers' pipelines say of a directory of ours: our probabilities and ratings."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import reviews, write_bert
from small import config, init

from bert_ft.data.batches import EvalPlan
from bert_ft.data.sources import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.models import hf
from bert_ft.models.heads import Model
from bert_ft.models.stored_heads import scale_of
from bert_ft.tasks.registry import make_task
from bert_ft.train import agreement, card

FITTED = {
    "classification": {"labels": ["bad", "good", "so so"], "names": ["bad", "good", "so so"]},
    "multilabel": {"labels": ["long", "loud", "sad"], "thresholds": [0.25, 0.5, 0.75]},
    "regression": {"mean": 3.2, "scale": 1.7},
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("pipelines") / "bert")


def made(name, bert):
    """What of a System the comparison and the card read, its parameters, and rows."""
    task, fitted = make_task(config(task__name=name)), FITTED[name]
    encoder = dataclasses.replace(hf.read_config(bert), initializer_range=0.2)
    tokenizer = load_tokenizer(bert)
    model = Model(encoder, task.head(fitted))
    about = SimpleNamespace(data=SimpleNamespace(max_length=40))
    system = SimpleNamespace(
        **{"task": task, "fitted": fitted, "encoder": encoder, "tokenizer": tokenizer},
        **{"model": model, "config": about, "row_length": 40},
    )
    params = jax.device_get(init(model))
    rows = Rows({"text": [r["text"] for r in reviews(9, seed=3)]}, None, "made up")
    return system, params, rows


def written(name, bert, path):
    system, params, rows = made(name, bert)
    labels, scale = (
        next(iter(hf.label_names(system.fitted)), []),
        scale_of(system.task, FITTED[name]),
    )
    hf.save(path, system.encoder, params, "sequence", labels, system.task.problem_type, None, scale)
    system.tokenizer.save_pretrained(path)
    return system, params, rows


@pytest.mark.parametrize("name", FITTED)
def test_a_pipeline_says_what_we_say(name, bert, tmp_path):
    pytest.importorskip("torch")
    import transformers

    system, params, rows = written(name, bert, tmp_path)
    largest = agreement.compare(system, params, params, rows, tmp_path)
    assert set(largest) == {"bert_ft", "transformers"}
    data = system.task.encode(rows, system.tokenizer, 40, system.fitted)
    plan = EvalPlan(data, len(data), 40, packed=False)
    with jax.default_matmul_precision("highest"):
        outputs = agreement._outputs(system.model, params, plan.batch(0))
    back = np.argsort(plan.order[0])  # the plan's order is by length
    predicted = {k: np.asarray(v)[back] for k, v in system.task.predict(outputs, {}).items()}
    answers = system.task.answers(predicted, data, rows)
    said = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None)(
        rows.columns["text"]
    )
    for answer, labels in zip(answers, said, strict=True):
        found = {one["label"]: one["score"] for one in labels}
        ours = answer.get("probabilities", {"LABEL_0": answer["prediction"]})
        assert found == pytest.approx(ours, abs=1e-4)
    first = [one[0]["score"] for one in said]
    assert np.ptp(first) > 0.1, "else all rows would be alike"


def test_a_rating_that_is_not_in_the_labels_unit_is_seen(bert, tmp_path):
    system, params, rows = written("regression", bert, tmp_path)
    hf.save(tmp_path, system.encoder, params, "sequence")
    with pytest.raises(AssertionError, match="logits as bert_ft reads"):
        agreement.compare(system, params, params, rows, tmp_path)


def test_the_card_has_the_thresholds(bert):
    system, *_ = made("multilabel", bert)
    assert card.thresholds(system) == {"long": 0.25, "loud": 0.5, "sad": 0.75}
    assert "| `sad` | 0.7500 |" in card._threshold_lines(card.thresholds(system))
    system.fitted = {"labels": ["long"]}
    assert card.thresholds(system) == {"long": 0.5}
    assert card._threshold_lines(card.thresholds(made("regression", bert)[0])) == []


def test_the_card_says_how_answers_are_read():
    def of(fitted, **task):
        threshold = fitted.get("null_threshold", 0.0)
        task = SimpleNamespace(**task, threshold=lambda _: threshold)
        system = SimpleNamespace(task=task, fitted=fitted)
        return card._reading_lines(system, {"mean": 0.0, "scale": 1.0})

    assert of({}) == of({"scheme": "IOB2"}, decode="argmax") == []
    assert of({"scheme": "plain"}, decode="viterbi") == of({}) == []
    assert "a legal sequence of BIOES" in of({"scheme": "BIOES"}, decode="viterbi")[2]
    assert "tensors `crf.*`" in of({"scheme": "IOB2"}, decode="crf")[2]
    some = {"unanswerable": True}
    assert "more than 0.0000" in of(some)[2]
    assert "more than -1.2500" in of({**some, "null_threshold": -1.25})[2]
