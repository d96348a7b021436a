"""Masked words: pieces of texts, loss and scores by the formula, and runs of the program."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import WORDS, read_jsonl, remove, reviews, write_bert, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SIZES, config, init

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan, EvalPlan
from bert_ft.data.encode import encode
from bert_ft.data.rows import Rows
from bert_ft.data.sources import open_source
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.heads import MaskedHead, Model
from bert_ft.tasks.masked import LONGEST_WORD, MaskedWords
from bert_ft.train.step import loss_and_gradient


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tokenizer, directory) of a tiny BERT."""
    path = write_bert(tmp_path_factory.mktemp("bert"))
    return load_tokenizer(path), path


def task(**overrides):
    return MaskedWords(config(task__name="masked", data__label="", **overrides))


def rows_of(*texts):
    return Rows({"text": list(texts)}, list(range(1, len(texts) + 1)), "set.jsonl")


def model_for(tokenizer):
    sizes = dataclasses.replace(SIZES, vocab_size=len(tokenizer) + 3)
    model = Model(sizes, MaskedHead)
    return model, init(model)


def some(made, count=24, max_length=40, **overrides):
    t = task(**overrides)
    rows = rows_of(*(r["text"] for r in reviews(count, seed=4)))
    return t, t.encode(rows, made[0], max_length, {})


# -- texts


ODD = [
    "unfresh",
    "zzzzzzzzzzzz",
    "q" * 40,
    "\u751f",
    "[MASK]",
    "[SEP]",
    "caf\u00e9",
    "\u200b",
    "x-y",
]
texts = st.lists(st.lists(st.sampled_from([*WORDS, *ODD]), max_size=30), min_size=1, max_size=4)


@given(texts, st.integers(4, 24), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_pieces_hold_every_token_once_and_no_word_twice(made, given_words, room, whole, as_list):
    tokenizer, _ = made
    given_texts = [" ".join(words) for words in given_words]
    rows = rows_of(*(given_words if as_list else given_texts))
    data = task(task__whole_words=whole).encode(rows, tokenizer, room + 2, {})
    pieces = [data.tokens[a:b] for a, b in zip(data.offsets, data.offsets[1:], strict=False)]
    numbers = np.split(data.token_fields["word"], data.offsets[1:-1])
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert all(p[0] == cls and p[-1] == sep and len(p) <= room + 2 for p in pieces)
    assert (np.diff(data.row) >= 0).all() and set(data.row) == set(range(len(rows)))
    for i, text in enumerate(given_texts):
        mine = [t for p, r in zip(pieces, data.row, strict=True) if r == i for t in p[1:-1]]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not as_list:  # a word of a list of which nothing is left becomes [UNK]
            assert mine == ids
    for piece, word in zip(pieces, numbers, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(piece)
        assert not word[np.isin(piece, tokenizer.all_special_ids)].any()
        for k in range(1, 1 if as_list else len(piece)):  # a word of a list can be any
            inner = tokens[k].startswith("##") and word[k] > 0
            if whole and inner and word[k] == word[k - 1]:
                continue
            assert word[k] == 0 or word[k] != word[k - 1], (tokens, word)
        sizes = np.bincount(word)[1:]
        assert not len(sizes) or sizes.max() <= (min(LONGEST_WORD, room) if whole else 1)


def test_words_stay_whole(made):
    tokenizer, _ = made
    data = task().encode(rows_of("the unfresh film " + "q" * 12), tokenizer, 40, {})
    tokens, word = tokenizer.convert_ids_to_tokens(data.tokens), data.token_fields["word"]
    assert tokens[2:6] == ["u", "##n", "##f", "##r"]
    assert word[:2].tolist() == [0, 1] and len(set(word[2 : tokens.index("film")])) == 1
    assert len(set(word[-13:-1])) == 12, "twelve sub-words are no word"
    alone = task(task__whole_words=False).encode(rows_of("the unfresh film"), tokenizer, 40, {})
    assert alone.token_fields["word"][1:-1].tolist() == list(range(1, len(alone.tokens) - 1))


def test_masks_of_a_text_by_character(made):
    text = "the [MASK] is  good, [MASK]!" + " was" * 30 + " [MASK]"
    data = task().encode(rows_of("a", text), made[0], 24, {})
    blank, aside = data.fields["blank"], data.aside
    found = [
        (int(data.row[e]), text[aside["blank_begin"][e, k] : aside["blank_end"][e, k]])
        for e, k in np.argwhere(blank >= 0)
    ]
    assert found == [(1, "[MASK]")] * 3
    places = [data.tokens[data.offsets[e] + blank[e, k]] for e, k in np.argwhere(blank >= 0)]
    assert set(places) == {made[0].mask_token_id}
    assert aside["blank_begin"][blank >= 0].tolist() == [4, 21, len(text) - 6]


def test_a_tokenizer_without_a_mask(made):
    tokenizer = type("T", (), {"mask_token_id": None})()
    with pytest.raises(InputError, match="no mask token"):
        task().encode(rows_of("a"), tokenizer, 24, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task__mask_rate", 0.0), ("task__mask_rate", 1.0), ("task__mask_random", 0.95),
        ("task__mask_kept", -0.1), ("data__text_pair", "b"), ("model__kind", "lstm"),
    ],
)  # fmt: skip
def test_knobs_that_can_not_be(key, value):
    c = config(task__name="masked", model__tokenizer="x", data__train="files:x", **{key: value})
    with pytest.raises(InputError, match=key.replace("__", ".")):
        check(c)


# -- loss, gradient, scores


def by_hand(model, params, batch):
    """(nll, right) of each hidden token, by example and word, from the logits of all places."""
    rows, length = batch["tokens"].shape
    everywhere = np.tile(np.arange(length), (rows, 1)).astype(np.int32)
    out = model.apply({"params": params}, {**batch, "masked_slots": everywhere})["logits"]
    log_p = np.asarray(jax.nn.log_softmax(out))
    found = {}
    for r, m in np.argwhere(batch["masked_token"] >= 0):
        at, token = log_p[r, batch["masked_slots"][r, m]], batch["masked_token"][r, m]
        where = int(batch["masked_of"][r, m]), int(batch["masked_word"][r, m])
        found.setdefault(where, []).append((-at[token], at.argmax() == token))
    return found


def scored(t, data, model, params, size, packed):
    plan, out = EvalPlan(data, size, 64, packed, draw=t.draw), {}
    step = jax.jit(lambda p, b: t.predict(model.apply({"params": p}, b), b))
    for k in range(plan.steps):
        for name, value in step(params, plan.batch(k)).items():
            value, real = np.asarray(value), plan.order[k] >= 0
            out.setdefault(name, np.zeros((len(data), *value.shape[1:]), value.dtype))
            out[name][plan.order[k][real]] = value[real]
    return out


def test_loss_and_scores_are_those_of_all_logits(made):
    t, data = some(made)
    model, params = model_for(made[0])
    # Weights that guess some words: the table's own rows at the output, hardly anything else.
    batch = BatchPlan(data, 24, 1, 64, draw=t.draw).batch(0)
    found = by_hand(model, params, batch)
    flat = [x for word in found.values() for x in word]
    total, count, extra = jax.jit(
        lambda p, b: t.loss(model.apply({"params": p}, b), b)
    )(params, batch)  # fmt: skip
    assert count == len(flat) > 30
    np.testing.assert_allclose(total, sum(n for n, _ in flat), rtol=1e-5)
    assert extra["accuracy"] == sum(r for _, r in flat)

    predicted = scored(t, data, model, params, 24, True)
    plan = EvalPlan(data, 24, 64, draw=t.draw)
    found = by_hand(model, params, plan.batch(0))
    flat = [x for word in found.values() for x in word]
    scores = t.score(predicted, data)
    assert scores["masked_tokens"] == len(flat) and scores["masked_words"] == len(found)
    assert scores["perplexity"] == pytest.approx(np.exp(np.mean([n for n, _ in flat])), rel=1e-4)
    right = [all(r for _, r in word) for word in found.values()]
    assert scores["accuracy"] == pytest.approx(np.mean(right))
    assert scores["token_accuracy"] == pytest.approx(np.mean([r for _, r in flat]))
    nothing = t.score({k: np.zeros_like(v) for k, v in predicted.items()}, data)
    assert all(np.isnan(nothing[k]) for k in ("perplexity", "loss", "accuracy", "token_accuracy"))


def test_a_word_is_right_by_all_of_its_tokens():
    t, logits = task(), np.zeros((1, 4, 6), np.float32)
    logits[0, [0, 1, 2], [3, 4, 5]] = 9.0
    batch = {
        "ordinal": np.ones(2, np.int32),
        "masked_token": np.asarray([[3, 4, 2, -1]]),
        "masked_of": np.asarray([[0, 1, 1, 2]]),
        "masked_word": np.asarray([[1, 1, 1, 0]]),
    }
    out = t.predict({"logits": jnp.asarray(logits)}, {k: jnp.asarray(v) for k, v in batch.items()})
    got = {k: np.asarray(v).tolist() for k, v in out.items() if k != "nll"}
    assert got == {"tokens": [1, 2], "right": [1, 1], "words": [1, 1], "words_right": [1, 0]}


def test_packed_and_padded_are_one(made):
    """Loss and gradient, with dropout too, and scores in batches of any size."""
    t, data = some(made)
    model, params = model_for(made[0])
    step = partial(loss_and_gradient, model, t, rng=jax.random.key(1), rate=0.1, accumulate=1)
    packed, padded = (
        jax.jit(lambda p, b: step(params=p, batch=b))(
            params, BatchPlan(data, 24, 2, 64, seed=3, packed=packed, draw=t.draw).batch(1)
        )
        for packed in (True, False)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), packed, padded
    )
    scores = [
        t.score(scored(t, data, model, params, size, packed), data)
        for size, packed in ((24, True), (24, False), (7, True))
    ]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], rel=1e-5)


def test_the_gradient_is_torchs_also_of_the_tied_table(made, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import BertForMaskedLM

    t, data = some(made, count=6)
    model, params = model_for(made[0])
    hf.save(tmp_path, model.config, jax.device_get(params), "masked")
    theirs = BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch = BatchPlan(data, 6, 1, 40, packed=False, draw=t.draw).batch(0)
    labels = np.full(batch["tokens"].shape, -100)
    for r, m in np.argwhere(batch["masked_token"] >= 0):
        labels[r, batch["masked_slots"][r, m]] = batch["masked_token"][r, m]
    out = theirs(
        input_ids=torch.tensor(batch["tokens"]).long(),
        attention_mask=torch.tensor(batch["segments"] > 0),
        labels=torch.tensor(labels),
    )
    out.loss.backward()
    step = partial(loss_and_gradient, model, t, rng=None, rate=0.0, accumulate=1)
    metrics, gradient = jax.jit(lambda p, b: step(params=p, batch=b))(params, batch)
    np.testing.assert_allclose(metrics["loss"], out.loss.item(), rtol=1e-5)
    word = theirs.bert.embeddings.word_embeddings.weight
    assert word is theirs.cls.predictions.decoder.weight
    np.testing.assert_allclose(
        gradient["encoder"]["word"]["embedding"], word.grad, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        gradient["top"]["bias"], theirs.cls.predictions.bias.grad, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        gradient["top"]["transform"]["kernel"].T,
        theirs.cls.predictions.transform.dense.weight.grad, rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_a_batch_with_nothing_to_hide_has_no_loss(made):
    t = task()
    data = t.encode(rows_of("", ""), made[0], 24, {})
    model, params = model_for(made[0])
    batch = BatchPlan(data, 2, 1, 32, draw=t.draw).batch(0)
    total, count, _ = t.loss(model.apply({"params": params}, batch), batch)
    assert total / count == 0


# -- the cache, the program

FLAGS = ("--config.task.name=masked", "--config.data.label=", "--config.task.label_names=")
SMALL = ("--config.data.row_counts=1", "--config.train.batch_size=16")


def test_a_set_comes_back_from_the_cache_as_it_was(made, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "the [MASK] film"}, {"text": "the plot"}])
    source = open_source(f"files:{path}", cache_dir=tmp_path)
    first, again = (
        encode(source, task(), made[0], 24, tmp_path / "c", None, lambda _: None) for _ in "ab"
    )
    assert first.fitted == again.fitted and first.fitted["mask_id"] == made[0].mask_token_id
    np.testing.assert_array_equal(first.token_fields["word"], again.token_fields["word"])
    np.testing.assert_array_equal(first.fields["blank"], again.fields["blank"])


def test_plain_text_without_labels(made, tmp_path):
    (tmp_path / "notes.txt").write_text('the "film, was\n\ndull, to me\n')
    uri = f"files:{tmp_path}/notes.txt?format=tsv&quoting=none&header=no&columns=text"
    data = encode(
        open_source(uri, cache_dir=tmp_path), task(), made[0], 24, tmp_path / "c", None, print
    )
    assert data.row.tolist() == [0, 1] and not data.fields


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_cli):
    workdir = tmp_path_factory.mktemp("masked") / "run"
    done = run_cli(
        workdir, *FLAGS, *SMALL, "--config.train.steps=30", "--config.train.learning_rate=0.01",
        "--config.checkpoint.every_steps=15", "--config.checkpoint.keep=9",
    )  # fmt: skip
    return done.ok()


def test_a_run_learns_and_says_that_its_head_is_new(trained):
    losses = trained.values("train/loss")
    first, last = ([losses[s] for s in steps] for steps in (range(1, 5), range(27, 31)))
    assert np.mean(last) < 0.8 * np.mean(first)
    assert "it has none for this task; a new one is made" in trained.err
    result = trained.result["eval"]
    loss = result["test/loss"]["mean"]
    assert result["test/perplexity"]["mean"] == pytest.approx(np.exp(loss))
    answers = read_jsonl(trained.workdir / "predictions/test.jsonl")
    hidden = sum(a["masked_tokens"] for a in answers)
    assert hidden == result["test/masked_tokens"]["mean"] and not any(
        a["prediction"] for a in answers
    )
    mean = sum(a["loss"] * a["masked_tokens"] for a in answers if a["loss"]) / hidden
    assert mean == pytest.approx(loss, rel=1e-4)
    assert (trained.workdir / "report.html").is_file()


def test_a_run_that_goes_on_is_the_undisturbed_one(trained, run_here, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained.workdir, workdir)
    remove(workdir, "checkpoints/30", "best", "result.json")
    done = run_here(
        workdir, *FLAGS, *SMALL, "--config.train.steps=30", "--config.train.learning_rate=0.01",
        "--config.checkpoint.every_steps=15", "--config.checkpoint.keep=9",
    ).ok()  # fmt: skip
    assert "own checkpoint of step 15" in done.err
    assert done.result["params_sha256"] == trained.result["params_sha256"]


def test_eight_devices_learn_what_one_does(trained, run_cli, tmp_path):
    done = run_cli(
        tmp_path / "run", *FLAGS, *SMALL, "--config.train.steps=6", "--config.data.dev=",
        "--config.train.learning_rate=0.01", "--config.mesh.preset=fsdp", devices=8,
    ).ok()  # fmt: skip
    one, eight = (d.values("train/loss") for d in (trained, done))
    gap = max(abs(one[s] - eight[s]) for s in range(1, 7))
    assert gap < 1e-4, gap
    both = [d.result["eval"]["test/masked_tokens"]["mean"] for d in (trained, done)]
    assert both[0] == both[1]


@pytest.fixture
def exported(trained, run_here):
    to = trained.workdir.parent / "out"
    if not to.exists():
        flags = ["--mode=export", f"--config.export.to={to}", "--config.export.rows=16"]
        done = run_here(trained.workdir, *FLAGS, *SMALL, *flags).ok()
        assert "BertForMaskedLM of step 30" in done.out
    return to


LONG = "the film was great, " * 20
ASKED = [
    {"id": "b", "text": "The film is  [MASK], and the [MASK] was dull."},
    {"id": "a", "text": "no mask here"},
    {"id": 7, "text": LONG + "the music was [MASK] to me."},
    {"id": "", "text": ""},
]


def test_masks_are_filled_in_as_transformers_does(trained, exported, run_here, tmp_path):
    given_rows = write_jsonl(tmp_path / "asked.jsonl", ASKED)
    run_here(
        trained.workdir, *FLAGS, *SMALL, "--mode=predict", f"--config.predict.input={given_rows}"
    ).ok()
    lines = read_jsonl(trained.workdir / "predictions/asked.jsonl")
    assert [line.get("id") for line in lines] == ["b", "a", 7, None]
    assert lines[3]["line"] == 4  # a blank id is none
    assert [len(line["label"]) for line in lines] == [2, 0, 1, 0]
    for row, line in zip(ASKED, lines, strict=True):
        assert line["text"] == row["text"] and line["truncated"] is False
        for mask in line["label"]:
            assert row["text"][mask["start"] : mask["end"]] == "[MASK]"
            p = [w["probability"] for w in mask["words"]]
            assert len(p) == 5 and p == sorted(p, reverse=True) and 0 < sum(p) <= 1.00001
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer(ASKED[0]["text"], return_tensors="pt")
    with torch.no_grad():
        p = torch.softmax(model(**inputs).logits[0], dim=1)
    at = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    for mask, k in zip(lines[0]["label"], at, strict=True):
        best = p[k].topk(5)
        words = [tokenizer.decode([i]).strip() for i in best.indices.tolist()]
        assert [w["word"] for w in mask["words"]] == words
        np.testing.assert_allclose(
            [w["probability"] for w in mask["words"]], best.values, atol=1e-5
        )


def test_what_was_learnt_is_handed_over(trained, exported, run_here, world, tmp_path):
    """To a classifier, whose encoder begins as the one that was trained, its pooler as that of the
    checkpoint; and to masked words again, head included. A workdir is no such directory, and it is
    said what to do."""
    about = json.loads((exported / "config.json").read_text())
    assert about["architectures"] == ["BertForMaskedLM"]
    start = [f"--config.model.pretrained={exported}", "--config.train.steps=1", *SMALL]
    start += ["--config.data.dev=", "--config.data.test="]
    done = run_here(tmp_path / "a", *start).ok()
    assert "new: top/classifier/bias, top/classifier/kernel\n" in done.err
    theirs, ours = hf.pooler(world.model), hf.pooler(exported)
    np.testing.assert_array_equal(ours["pooler.dense.weight"], theirs["pooler.dense.weight"])
    again = run_here(tmp_path / "b", *start, *FLAGS).ok()
    assert "new: -" in again.err
    first = again.values("train/loss")[1]
    assert first < trained.values("train/loss")[1] - 0.5
    wrong = f"--config.model.pretrained={trained.workdir}"
    run_here(tmp_path / "c", wrong).refused("the workdir of a run", "--mode=export")
