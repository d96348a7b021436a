"""Tagging end to end: windows, decoding, the chain's training, parity, and the program itself."""

import itertools
import json
from functools import partial

import jax
import numpy as np
import pytest
import small
from conftest import BAD, GOOD, SUBJECTS, VERBS, read_jsonl, write_bert, write_jsonl
from test_parity import close, joined_batch, padded_batch

from bert_ft.data.batches import BatchPlan, EvalPlan
from bert_ft.data.encode import encode
from bert_ft.data.sources import open_source
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.evals.metrics import accuracy
from bert_ft.models import hf
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, TokenHead
from bert_ft.tasks import schemes
from bert_ft.tasks.tagging import Tagging
from bert_ft.train.system import example_batch


def opinions(count, seed, clauses=3):
    """Rows of words: subjects of two words are TOPICs, adjectives GOOD or BAD."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        tokens, tags = [], []
        for _ in range(int(rng.integers(1, clauses + 1))):
            kind = ("BAD", "GOOD")[int(rng.integers(2))]
            subject = str(rng.choice(SUBJECTS)).split()
            adjective = str(rng.choice(GOOD if kind == "GOOD" else BAD))
            tokens += [*subject, str(rng.choice(VERBS)), adjective, ","]
            tags += ["B-TOPIC", *["I-TOPIC"] * (len(subject) - 1), "O", f"B-{kind}", "O"]
        rows.append({"id": i, "tokens": tokens, "tags": tags})
    return rows


def config(**more):
    chosen = {"task__name": "tagging", "task__stride": 6, "data__text": "tokens"}
    return small.config(**{**chosen, "data__label": "tags", **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tokenizer, directory) of a tiny BERT."""
    path = tmp_path_factory.mktemp("bert")
    return load_tokenizer(write_bert(path)), path


def encoded(made, tmp_path, rows, max_length=24, fitted=None, task=None):
    path = write_jsonl(tmp_path / f"rows{len(list(tmp_path.iterdir()))}.jsonl", rows)
    source = open_source(f"files:{path}", cache_dir=tmp_path)
    task = task or Tagging(config())
    data = encode(source, task, made[0], max_length, tmp_path / "cache", fitted, lambda _: None)
    return data, source.read()


def model_for(task, data, vocab):
    sizes = EncoderConfig(**{**vars(small.SIZES), "vocab_size": vocab})
    model = Model(sizes, task.head(data.fitted))
    return model, small.init(model)


def predicted(task, model, params, data, packed=True):
    plan, out = EvalPlan(data, 8, 48, packed), {}
    step = jax.jit(lambda p, b: task.predict(model.apply({"params": p}, b), b))
    for k in range(plan.steps):
        for name, value in step(params, plan.batch(k)).items():
            value, real = np.asarray(value), plan.order[k] >= 0
            out.setdefault(name, np.zeros((len(data), *value.shape[1:]), value.dtype))
            out[name][plan.order[k][real]] = value[real]
    return out


def as_if(tags_of, data):
    """Predictions that say tags_of(gold numbers)."""
    tag = tags_of(np.asarray(data.fields["tag"]))
    return {"tag": tag, "probability": np.ones(tag.shape), "nll": np.zeros(len(data))}


def test_every_word_of_long_sentences_is_scored_once(made, tmp_path):
    rows = [*opinions(20, 0, clauses=9), {"id": 20, "tokens": [], "tags": []}]
    data, source = encoded(made, tmp_path, rows)
    words = sum(len(r["tokens"]) for r in rows)
    assert len(data) > data.source_rows + 10 and data.lengths.max() <= 24
    scores = Tagging(config()).score(as_if(lambda tag: tag, data), data)
    assert scores["words"] == words and scores["f1"] == scores["accuracy"] == 1.0
    answers = Tagging(config()).answers(as_if(lambda tag: tag, data), data, source)
    assert [a["tags"] for a in answers] == [r["tags"] for r in rows]
    assert [a["label"] for a in answers] == [
        [{k: v for k, v in s.items() if k != "probability"} for s in a["prediction"]]
        for a in answers
    ]
    for answer, row in zip(answers, rows, strict=True):
        assert answer["text"] == " ".join(row["tokens"]) and not answer["truncated"]
        assert [answer["text"][a:b] for a, b in answer["words"]] == row["tokens"]
        assert all(answer["text"][s["start"] : s["end"]] == s["text"] for s in answer["label"])


def test_types_whose_score_is_told(made, tmp_path):
    """Those of the data, if few, whatever is predicted; of many the one that is asked for."""
    rows = [{"tokens": ["it"], "tags": [f"B-T{i}"]} for i in range(40)]
    data, _ = encoded(made, tmp_path, rows)
    few, _ = encoded(made, tmp_path, rows[:20], fitted=data.fitted)
    other = as_if(lambda tag: (tag + 21) % len(data.fitted["labels"]), few)
    told = [k for k in Tagging(config()).score(other, few) if k.startswith("f1/")]
    assert len(told) == 20
    for asked, expected in (("", []), ("f1/T3", ["f1/T3"]), ("f1/T", [])):
        scores = Tagging(config(eval__metric=asked)).score(as_if(lambda tag: tag, data), data)
        assert [k for k in scores if k.startswith("f1/")] == expected


def test_a_set_without_words_has_no_accuracy(made, tmp_path):
    fitted = encoded(made, tmp_path, opinions(3, 0))[0].fitted
    data, _ = encoded(made, tmp_path, [{"tokens": [], "tags": []}], fitted=fitted)
    scores = Tagging(config()).score(as_if(lambda tag: tag, data), data)
    assert np.isnan(scores["accuracy"]) and np.isnan(scores["loss"]) and scores["words"] == 0


def test_a_word_that_is_not_scored_is_noticed(made, tmp_path):
    data, _ = encoded(made, tmp_path, opinions(3, 0, clauses=9))
    owned = np.array(data.fields["owned"])
    owned[1, np.flatnonzero(owned[1])[0]] = 0
    data.fields["owned"] = owned
    with pytest.raises(AssertionError, match="not scored once"):
        Tagging(config()).score(as_if(lambda tag: tag, data), data)


def test_a_word_longer_than_a_window(made, tmp_path):
    rows = [*opinions(3, 0), {"id": 3, "tokens": ["x" * 40, "film"], "tags": ["O", "B-TOPIC"]}]
    data, source = encoded(made, tmp_path, rows)
    answers = Tagging(config()).answers(as_if(lambda tag: tag, data), data, source)
    assert [a["truncated"] for a in answers] == [False] * 3 + [True]
    assert answers[3]["tags"] == ["O", "B-TOPIC"]


def test_first_sub_words_carry_the_labels(made, tmp_path):
    tokenizer, _ = made
    rows = [{"tokens": ["the", "unfresh", "plot"], "tags": ["O", "B-BAD", "B-TOPIC"]}]
    data, _ = encoded(made, tmp_path, rows)
    pieces = tokenizer.convert_ids_to_tokens(data.tokens.tolist())
    assert [pieces[c] for c in data.fields["words"][0]] == ["the", "u", "plot"]
    names = [data.fitted["labels"][t] for t in data.fields["tag"][0]]
    assert names == ["O", "B-BAD", "B-TOPIC"]


def test_tags_that_training_lacks(made, tmp_path):
    train, _ = encoded(made, tmp_path, opinions(6, 0))
    tokens, tags = ["the", "film", "was"], ["B-NEW", "B-TOPIC", "O"]
    rows = [{"tokens": tokens, "tags": tags}]
    data, source = encoded(made, tmp_path, rows, fitted=train.fitted)
    assert data.fitted["unseen"] == ["B-NEW"] and train.fitted["unseen"] == []
    seen = as_if(lambda tag: np.where(tag < 4, tag, 0), data)
    scores = Tagging(config()).score(seen, data)
    assert scores["unseen"] == 1 and scores["recall"] == 0.5 and scores["precision"] == 1.0
    assert Tagging(config()).answers(seen, data, source)[0]["label"][0]["type"] == "NEW"
    with pytest.raises(
        InputError, match=r"rows\d\.jsonl:1: word 1 of .*: tag 'B-NEW' is not among"
    ):
        task = Tagging(config(task__unseen_tags="stop"))
        encoded(made, tmp_path, rows[:], fitted=train.fitted, task=task)


@pytest.mark.parametrize("decode", ["viterbi", "crf"])
def test_packing_and_batching_change_nothing(made, tmp_path, decode):
    """Predictions and the loss of packed windows are those of each window in a row of its own."""
    task = Tagging(config(task__decode=decode))
    data, _ = encoded(made, tmp_path, opinions(12, 0, clauses=6), task=task)
    model, params = model_for(task, data, len(made[0]))
    packed, alone = (predicted(task, model, params, data, p) for p in (True, False))
    here = np.asarray(data.fields["words"]) >= 0
    np.testing.assert_array_equal(packed["tag"][here], alone["tag"][here])
    for name in ("probability", "nll"):
        a, b = packed[name], alone[name]
        np.testing.assert_allclose(*(x[here] if x.ndim == 2 else x for x in (a, b)), atol=1e-4)
    owned = np.asarray(data.fields["owned"]).sum()

    def both(part):
        return jax.numpy.stack(task.loss(model.apply({"params": params}, part), part)[:2])

    totals = []
    for parts in (1, 2):
        plan = BatchPlan(data, len(data) // 2 * 2, 1, 48, accumulate=parts)
        batch, sums = plan.batch(0), np.zeros(2)
        for k in range(parts):
            part = {n: v[k] for n, v in batch.items()} if parts > 1 else batch
            sums += np.asarray(jax.jit(both)(part))
        totals.append(sums)
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-5)
    if len(data) % 2 == 0:
        assert totals[0][1] == owned
        assert totals[0][0] == pytest.approx(packed["nll"].sum(), rel=1e-4)


def test_decoding(made, tmp_path):
    """Viterbi's paths are legal where argmax's are not, and agree where those are legal."""
    rows = opinions(30, 1)
    fitted, answers = None, {}
    for decode in ("argmax", "viterbi"):
        task = Tagging(config(task__decode=decode))
        data, source = encoded(made, tmp_path, rows, max_length=40, task=task)
        model, params = model_for(task, data, len(made[0]))
        said = predicted(task, model, params, data)
        answers[decode] = [a["tags"] for a in task.answers(said, data, source)]
        fitted = data.fitted
    broken = [schemes.fault(tags, fitted["scheme"]) is not None for tags in answers["argmax"]]
    assert any(broken) and not all(broken), "the case shows nothing"
    for wrong, a, v in zip(broken, answers["argmax"], answers["viterbi"], strict=True):
        assert schemes.fault(v, "IOB2") is None
        assert (a != v) == wrong


def test_a_batch_of_empty_sentences_has_no_loss(made, tmp_path):
    for decode in ("viterbi", "crf"):
        task = Tagging(config(task__decode=decode))
        rows = [*opinions(2, 0), *[{"tokens": [], "tags": []}] * 2]
        data, _ = encoded(made, tmp_path, rows, task=task)
        model, params = model_for(task, data, len(made[0]))
        batch = EvalPlan(data, 4, 48).batch(0)
        batch["weight"] = np.where(batch["owned"].sum(axis=1) > 0, 0, 1).astype(np.float32)

        def loss(p, model=model, task=task, batch=batch):
            total, count, _ = task.loss(model.apply({"params": p}, batch), batch)
            return total / count

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        assert value == 0 and all(np.all(g == 0) for g in jax.tree.leaves(gradient))


def test_logits_equal_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForTokenClassification

    sizes = BertConfig(
        vocab_size=53, hidden_size=30, num_hidden_layers=3, num_attention_heads=5,
        intermediate_size=44, max_position_embeddings=20, type_vocab_size=2, num_labels=5,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = BertForTokenClassification(sizes).eval()
    with torch.no_grad():  # their initial bias is 0, which could be left out unnoticed
        theirs.classifier.bias.normal_()
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    shape = (5, 20)
    ids, types = rng.integers(0, 53, shape), rng.integers(0, 2, shape)
    mask = (rng.random(shape) > 0.3).astype(np.int64)
    mask[:, 0] = 1
    with torch.no_grad():
        expected = theirs(*(torch.tensor(x) for x in (ids, mask, types))).logits.numpy()
    model = Model(hf.read_config(tmp_path), partial(TokenHead, 5, 0.0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    found, new = hf.load(tmp_path, shapes, "token")
    assert new == []
    params, real = {"params": hf.unflatten(found)}, mask > 0
    ours = np.asarray(jax.jit(model.apply)(params, padded_batch(ids, mask, types))["logits"])
    close(ours[real], expected[real])
    batch = joined_batch(ids, mask, types)
    flat = np.asarray(jax.jit(model.apply)(params, batch)["logits"]).reshape(-1, 5)
    joined = np.stack([flat[s : s + shape[1]] for s in batch["example_start"]])
    close(joined[real], expected[real])


def test_the_chain_is_new_in_a_checkpoint_without_one(made):
    model = Model(hf.read_config(made[1]), partial(TokenHead, 3, 100.0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    _, new = hf.load(made[1], shapes)
    assert {"top/crf_start", "top/crf_steps", "top/crf_end"} < set(new)


def test_the_rate_of_the_chain_leaves_its_gradient_as_large_as_it_is(made, tmp_path):
    """The chain starts from zeros, so its scores, hence their gradient, are those of any rate; a
    clip of the global norm must not see crf_rate times as much."""
    rows = opinions(8, 3)
    found = {}
    for rate in (1.0, 100.0):
        task = Tagging(config(task__decode="crf", task__crf_rate=rate))
        data, _ = encoded(made, tmp_path, rows, task=task)
        model, params = model_for(task, data, len(made[0]))
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: x * 0 if "crf_" in str(path) else x, params
        )
        batch = EvalPlan(data, 8, 24).batch(0)
        loss = lambda p, model=model, task=task, batch=batch: task.loss(  # noqa: E731
            model.apply({"params": p}, batch), batch
        )[0]
        found[rate] = hf.flatten(jax.grad(loss)(params))
    chain = [name for name in found[1.0] if "crf_" in name]
    assert len(chain) == 3
    for name in chain:
        assert np.abs(found[1.0][name]).max() > 1e-3
        np.testing.assert_allclose(found[100.0][name], found[1.0][name], rtol=1e-6)


@pytest.mark.parametrize("decode", ["viterbi", "crf"])
def test_beliefs_hold_the_gradient_of_the_loss(made, tmp_path, decode):
    """Of the last layer's weights, were the likeliest labels right: that of the loss itself."""
    task = Tagging(config(task__decode=decode))
    data, _ = encoded(made, tmp_path, opinions(8, 0, clauses=2), task=task)
    assert len(data) == data.source_rows, "one window each"
    model, params = model_for(task, data, len(made[0]))
    chain = {k: v for k, v in params["top"].items() if k.startswith("crf_")}
    noise = np.random.default_rng(0)
    params["top"] |= {k: noise.normal(0, 0.1, v.shape) for k, v in chain.items()}
    plan = EvalPlan(data, 8, 48)
    batch = plan.batch(0)

    def believed(params):
        return task.beliefs(model.apply({"params": params}, batch), batch)

    found = jax.jit(believed)(params)
    right = {**batch, "tag": np.argmax(found["probabilities"], axis=2).astype(np.int32)}
    slopes = jax.grad(lambda p: task.loss(model.apply({"params": p}, right), right)[0])(params)
    own = np.asarray(batch["weight"])[:, None, None] * np.asarray(found["gradient"])
    theirs = np.asarray(slopes["top"]["classifier"]["kernel"])
    np.testing.assert_allclose(own.sum(axis=0).T, theirs, atol=1e-5)
    assert np.abs(theirs).max() > 0.1


@pytest.fixture(scope="module")
def tagging_config(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("tagging")
    write_jsonl(root / "train.jsonl", opinions(120, 1))
    write_jsonl(root / "dev.jsonl", opinions(30, 2))
    write_jsonl(root / "test.jsonl", [*opinions(30, 3, clauses=8), {"tokens": [], "tags": []}])
    text = world.config.read_text()
    for name in ("train", "dev", "test"):
        text = text.replace(f"c.data.{name} = ", f"c.data.{name} = 'files:{root}/{name}.jsonl'  # ")
    more = (
        "c.task.name, c.task.stride = 'tagging', 8",
        "c.task.label_names = ''",
        "c.data.text, c.data.label = 'tokens', 'tags'",
        "return c",
    )
    (root / "config.py").write_text(text.replace("return c\n", "\n    ".join(more) + "\n"))
    return root / "config.py"


@pytest.mark.parametrize("decode", ["viterbi", "crf"])
def test_the_program_trains_evaluates_and_predicts(run_here, tmp_path, tagging_config, decode):
    words = [f"--config.task.decode={decode}", "--config.train.steps=60"]
    done = run_here(tmp_path / "run", *words, config=tagging_config).ok()
    tests = read_jsonl(tagging_config.parent / "test.jsonl")
    scores = {k: v["mean"] for k, v in done.result["eval"].items()}
    assert scores["test/words"] == sum(len(r["tokens"]) for r in tests)
    assert scores["test/f1"] > 0.8, scores
    assert done.result["eval"]["test/f1"]["n_examples"] == len(tests)
    answers = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    assert len(answers) == len(tests) and answers[-1]["prediction"] == []
    flat = [[t for a, r in zip(answers, tests, strict=True) for t in pick(a, r)] for pick in (
        lambda a, r: a["tags"], lambda a, r: r["tags"])]  # fmt: skip
    right = accuracy(np.array(flat[0]), np.array(flat[1]))
    assert scores["test/accuracy"] == pytest.approx(right)
    steps = {tuple(p) for a in answers for p in itertools.pairwise(a["tags"])}
    assert ("O", "I-TOPIC") not in steps

    again = run_here(done.workdir, *words, "--mode=eval", config=tagging_config).ok()
    assert {k: v["mean"] for k, v in again.result["eval"].items()} == pytest.approx(scores)

    rows = [{"id": "p", "text": "The film is superb, this movie was dull."}, {"id": 2, "text": ""}]
    given = write_jsonl(tmp_path / "new.jsonl", rows)
    words += ["--mode=predict", f"--config.predict.input={given}", "--config.data.text=text"]
    run_here(done.workdir, *words, config=tagging_config).ok()
    first, empty = read_jsonl(done.workdir / "predictions" / "new.jsonl")
    assert first["id"] == "p" and empty == {"id": 2, "label": [], "text": "", "words": [],
                                            "tags": [], "truncated": False}  # fmt: skip
    assert first["text"] == rows[0]["text"] and len(first["tags"]) == len(first["words"]) == 10
    for span in first["label"]:
        assert first["text"][span["start"] : span["end"]] == span["text"]
    assert {"superb", "dull"} <= {s["text"] for s in first["label"]}, json.dumps(first)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.task.decode=beam", ["task.decode", "'beam'", "'crf'"]),
        ("--config.task.scheme=BIO", ["task.scheme", "'BIO'", "'IOB2'"]),
        ("--config.task.stride=30", ["task.stride is 30", "less than 30", "32"]),
        ("--config.task.stride=-1", ["task.stride is -1"]),
        ("--config.task.crf_rate=0.0", ["task.crf_rate"]),
        ("--config.task.unseen_tags=skip", ["task.unseen_tags", "'skip'", "'stop'"]),
        ("--config.data.text_pair=intent", ["data.text_pair is 'intent'", "'' for tagging"]),
        ("--config.task.cut_spans=skip", ["task.cut_spans", "'widen'"]),
        ("--config.task.scheme=BIOES", ["train.jsonl:1", "of the row that begins there", "BIOES"]),
        ("--config.data.text=words", ["no column 'words'", "tokens"]),
    ],
)
def test_refused(run_here, tmp_path, tagging_config, flag, words):
    run_here(tmp_path / "run", flag, config=tagging_config).refused(*words)


def test_trials_know_what_their_labels_allow(run_here, tmp_path, tagging_config):
    """Each decodes by the scheme, and scores of types that only one of them finds are its own."""
    trials = json.dumps({"seed": [0, 1], "learning_rate": [3e-3, 1e-6]})
    flags = [f"--config.trials={trials}", "--config.train.steps=12", "--config.eval.every_steps=6"]
    done = run_here(tmp_path / "run", *flags, config=tagging_config).ok()
    scores = done.result["eval"]["test/f1"]["per_trial"]
    assert len(scores) == 4 and scores[0] > scores[1]
    rows = read_jsonl(done.workdir / "trials" / "0" / "predictions" / "test.jsonl")
    steps = {tuple(pair) for row in rows for pair in itertools.pairwise(row["tags"])}
    assert ("O", "I-TOPIC") not in steps
