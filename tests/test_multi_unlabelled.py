"""Several tasks at once with mixup, and with texts without labels, which every part reads."""

import json

import jax
import numpy as np
import pytest
import small
from conftest import remove, write_jsonl
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from test_multi import clauses, close, files, flags, gradient, multi  # noqa: F401
from test_multi_losses import TWO, WEIGHTS, loss_of, of, said, two  # noqa: F401

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.data.mixing import Mixture
from bert_ft.data.unlabelled import joined
from bert_ft.errors import InputError
from bert_ft.methods.mixup import STREAM
from bert_ft.methods.registry import make_methods
from bert_ft.parts import part_configs

FREE = 4  # of 12 examples, the last


def drawn(alpha, count=12):
    """(pairs, share) of mixup for the key that `gradient` gives."""
    of_pairs, of_share = jax.random.split(jax.random.fold_in(jax.random.key(3), STREAM))
    share = jax.random.beta(of_share, alpha, alpha, dtype=np.float32)
    return np.asarray(jax.random.permutation(of_pairs, count)), float(share)


def test_mixup_is_of_each_part(two):  # noqa: F811
    """Of examples that do not count for a part, as in another data set, the labels do not."""
    task, model, params, data = two
    batch = dict(BatchPlan(data, 12, 4, 32, seed=1, at_most=1).batch(0))
    known = {"intent": np.repeat([1.0, 0.0], [7, 5]), "good": np.repeat([0.0, 1.0], [4, 8])}
    batch |= {f"{part}/weight": np.asarray(w, np.float32) for part, w in known.items()}
    pairs, share = drawn(0.8)
    wanted = 0.0
    for part, (_, pooled, labels) in said(two, batch).items():
        mixed = share * pooled + (1 - share) * pooled[pairs]
        top = params["top"][part]["classifier"]
        log_p = log_softmax(mixed @ top["kernel"] + top["bias"], axis=1)
        w, each = known[part], np.arange(12)
        own = w * -log_p[each, labels]
        other = w[pairs] * -log_p[each, labels[pairs]]
        mass = share * w + (1 - share) * w[pairs]
        wanted += WEIGHTS[part] * (share * own + (1 - share) * other).sum() / mass.sum()
    metrics = loss_of(two, batch, of("mixup", mixup={"alpha": 0.8}))
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)
    off = make_methods(of("mixup", mixup={"alpha": 0.0}))
    close(
        gradient(task, model, params, batch, methods=off)[1],
        gradient(task, model, params, batch)[1],
        1e-6,
    )


def semi(data, versions=False, **more):
    """Batches of 8 labelled examples and FREE others: the same texts, with `versions` in pairs."""
    count = len(data)
    sets = [data, data] if versions else [data]
    whole = joined(data, sets, 12, FREE)
    assert len(whole) == (3 if versions else 2) * count
    return BatchPlan(whole, 12, 4, 32, seed=1, mixture=whole.order, at_most=1, **more)


def test_pseudo_labels_are_of_each_part(two):  # noqa: F811
    batch = dict(semi(two[3]).batch(0)) | {"step": np.int32(3)}
    wanted = 0.0
    for part, (logits, _, labels) in said(two, batch).items():
        cross = -log_softmax(logits[:-FREE], axis=1)[np.arange(8), labels[:-FREE]].mean()
        p = softmax(logits[-FREE:], axis=1).max(axis=1)
        wanted += WEIGHTS[part] * (cross + 0.5 * np.mean(-np.log(p) * (p >= 0.52)))
    config = of("pseudo", pseudo={"threshold": 0.52, "weight": 0.5, "begin": 0, "end": 1})
    config.train.batch_size = 12
    metrics = loss_of(two, batch, config)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)
    assert 0 <= metrics["intent/pseudo_share"] <= 1 and metrics["good/pseudo_loss"] >= 0


def test_consistency_is_of_each_part(two):  # noqa: F811
    batch = dict(semi(two[3], versions=True).batch(0))
    wanted = 0.0
    for part, (logits, _, labels) in said(two, batch).items():
        cross = -log_softmax(logits[:-FREE], axis=1)[np.arange(8), labels[:-FREE]].mean()
        p = softmax(logits[-FREE::2] / 0.4, axis=1)
        far = entropy(p, softmax(logits[-FREE + 1 :: 2], axis=1), axis=1)
        wanted += WEIGHTS[part] * (cross + 0.7 * np.mean(far))
    config = of("uda", uda={"threshold": 0.0, "weight": 0.7, "temperature": 0.4})
    config.train.batch_size, config.data.unlabelled_share = 12, FREE / 12
    np.testing.assert_allclose(loss_of(two, batch, config)["loss"], wanted, rtol=1e-4)


APART = {
    "intent": {"data.label": "intent"},
    "good": {"data.label": "good", "data.train": "files:OTHER"},
}


def test_texts_of_two_data_sets_in_a_run_that_goes_on_exactly(
    files, flags, run_here, tmp_path  # noqa: F811
):  # fmt: skip
    """Whatever the mixing, each batch has its share of texts; each text is read once for all."""
    texts = [{"tokens": row["tokens"], "intent": "?"} for row in clauses(30, 9)]
    pool = write_jsonl(tmp_path / "pool.jsonl", texts)
    parts = json.dumps(APART).replace("OTHER", str(files["other"]))
    words = [
        *flags,
        *(f"--config.task.parts={parts}", "--config.task.mixing=turns"),
        *("--config.train.steps=4", "--config.train.accumulate=2", "--config.data.test="),
        *("--config.checkpoint.every_steps=1", "--config.checkpoint.keep=9"),
        *("--config.data.dev=", "--config.eval.report=False"),
        f"--config.data.unlabelled=files:{pool}",
        *("--config.methods.use=pseudo,uda", "--config.data.augment=swap:0.5"),
        *("--config.methods.pseudo.threshold=0.4", "--config.methods.uda.threshold=0.4"),
        "--config.data.augment_share=1.0",
    ]
    done = run_here(tmp_path / "run", *words).ok()
    assert "unlabelled: 30 texts of files:" in done.err
    for step in (1, 2, 3, 4):  # a turn each: the other part has no labelled example in the batch
        shares = [done.values(f"train/{part}/pseudo_share")[step] for part in APART]
        assert min(shares) == 0 or max(shares) <= 1
    remove(tmp_path / "run", "checkpoints/3", "checkpoints/4", "best", "result.json")
    again = run_here(tmp_path / "run", *words).ok()
    assert "own checkpoint of step 2" in again.err
    assert again.result["params_sha256"] == done.result["params_sha256"]


def test_labelled_examples_keep_the_order_of_their_mixture(two):  # noqa: F811
    order = Mixture((60, 36), "turns", 1.0, 16)
    whole = joined(two[3], [two[3]], 12, FREE, order)
    assert whole.of_an_epoch == 96 * 12 / (12 - FREE)  # of both parts, not a mean of the two
    stream = whole.order.stream(0, 0, 12 * 8).reshape(8, 12)
    np.testing.assert_array_equal(stream[:, :-FREE].reshape(-1), order.stream(0, 0, 64))
    first = stream[:, :-FREE].reshape(4, 16)
    assert [bool((row < 60).all()) for row in first] == [True, False, True, False]


OTHER_TEXT = {"data.text": "other", "data.train": "files:y"}


@pytest.mark.parametrize(
    ("use", "more", "words"),
    [
        ("mixup", {"task__weighting": "gradnorm"}, "no mixup where task.weighting is"),
        ("pseudo", {"task__weighting": "gradnorm"}, "no pseudo where task.weighting is"),
        (
            "pseudo",
            {"task__parts": json.dumps({**TWO, "good": OTHER_TEXT})},
            "'good': data.text, text_pair is .*all parts read the texts of data.unlabelled",
        ),
        (
            "pseudo",
            {"task__parts": json.dumps({**TWO, "good": {"task.name": "regression"}})},
            "'good': .*no pseudo where task.name is 'regression'",
        ),
    ],
)  # fmt: skip
def test_refused(use, more, words):
    given = {"task__name": "multi", "data__text": "tokens", "task__parts": json.dumps(TWO), **more}
    c = small.config(**given, methods__use=use)
    c.data.train, c.model.pretrained = "files:x", "y"
    c.data.unlabelled = "files:z" if use == "pseudo" else ""
    with pytest.raises(InputError, match=words):
        check(c)


def test_a_part_has_no_name_of_a_score():
    """Its scores, `loss/accuracy`, would be the better the lower they are."""
    with pytest.raises(InputError, match="'loss' is no name of a part; .* no name of a score"):
        part_configs(small.config(task__name="multi", task__parts='{"loss": {}, "b": {}}'))


@pytest.mark.parametrize("name", ["log_variance", "task_weight", "names"])
def test_a_part_has_no_name_that_is_taken(name):
    with pytest.raises(
        InputError, match=f"{name!r} is no name of a part; .* and not labels, names"
    ):
        part_configs(small.config(task__name="multi", task__parts=json.dumps({name: {}, "b": {}})))
