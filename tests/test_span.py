"""Extractive answers: logits, loss, n-best and scores, and a run of the program from end to end."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import World, read_jsonl, write_bert
from safetensors.numpy import save_file
from small import SIZES, config, encoded, init
from test_parity import REFERENCE, TOLERANCE, given, joined_batch, padded_batch
from test_squad import official

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan, EvalPlan
from bert_ft.data.encode import encode
from bert_ft.data.sources import Rows, open_source
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.heads import MASKED, Model, SpanHead
from bert_ft.tasks.span import SpanAnswers
from bert_ft.tasks.span_candidates import best_null_threshold, gold_answers
from bert_ft.train.system import example_batch

SETTINGS = {
    "task__name": "span", "data__text": "question", "data__text_pair": "context",
    "data__label": "answers", "data__max_length": 40, "task__stride": 6, "task__max_question": 10,
    "task__max_answer": 5, "task__n_best": 4,
}  # fmt: skip


def task(**overrides):
    return SpanAnswers(config(**SETTINGS | overrides))


# Logits


def loaded(path):
    model = Model(hf.read_config(path), SpanHead)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    found, new = hf.load(path, shapes, "span")
    assert not new
    return model, hf.unflatten(found)


def check_logits(model, params, stored):
    ids, mask, types = given(stored)
    for layout in (padded_batch, joined_batch):
        batch = layout(ids, mask, types)
        batch["example_length"] = np.full(len(ids), ids.shape[1], np.int32)
        out = jax.jit(model.apply)({"params": params}, batch)
        for side, name in enumerate(("start", "end")):
            ours = np.asarray(out[name])[:, : ids.shape[1]]
            theirs = stored["logits"][..., side]
            assert np.abs(theirs).max() > 0.1
            np.testing.assert_allclose(ours[mask > 0], theirs[mask > 0], rtol=0, atol=TOLERANCE)


def test_the_stored_logits(tmp_path):
    stored = dict(np.load(REFERENCE / "span.npz"))
    weights = {k[7:]: v.astype(np.float32) for k, v in stored.items() if k.startswith("weight.")}
    sizes = {k[7:]: v.item() for k, v in stored.items() if k.startswith("config.")}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    check_logits(*loaded(tmp_path), stored)


def test_live_logits_of_a_saved_directory(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForQuestionAnswering

    sizes = BertConfig(
        vocab_size=41, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=18, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = BertForQuestionAnswering(sizes).eval()
    theirs.save_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    ids, types = rng.integers(0, 41, (5, 18)), rng.integers(0, 2, (5, 18))
    mask = (np.arange(18) < rng.integers(3, 19, 5)[:, None]).astype(np.int64)
    with torch.no_grad():
        out = theirs(torch.tensor(ids), torch.tensor(mask), torch.tensor(types))
    logits = np.stack([out.start_logits.numpy(), out.end_logits.numpy()], axis=-1)
    stored = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "logits": logits}
    check_logits(*loaded(tmp_path), stored)


# Loss and n-best


def random_windows(count=12, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 17, count)
    data = encoded(lengths, seed=seed)
    first = rng.integers(2, 4, count)
    answer = np.stack([rng.integers(0, lengths), rng.integers(0, lengths)], 1)
    fields = {"answer": answer, "context": np.stack([first, lengths - 1], 1)}
    fields = {k: v.astype(np.int32) for k, v in fields.items()}
    return dataclasses.replace(data, fields=fields, token_fields={})


@pytest.fixture(scope="module")
def small():
    model = Model(SIZES, SpanHead)
    return model, init(model)


def test_packed_and_padded_losses_and_gradients_agree(small):
    model, params = small
    found: dict[float, list] = {0.0: [], 0.3: []}
    for packed in (True, False):
        batch = BatchPlan(random_windows(), 12, 1, 40, packed=packed).batch(0)
        assert (len(batch["tokens"]) < 12) == packed

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def mean(params, rate, batch=batch):
            out = model.apply({"params": params}, batch, jax.random.key(3), rate)
            total, count, extra = task().loss(out, batch)
            return total / count, extra

        for rate in found:
            found[rate].append(mean(params, rate))
    for ((one, extra), gradient), ((two, extra2), gradient2) in found.values():
        np.testing.assert_allclose(one, two, rtol=0, atol=2e-6)
        assert extra == extra2
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), gradient, gradient2)
    assert abs(found[0.0][0][0][0] - found[0.3][0][0][0]) > 1e-3  # dropout was on


@pytest.fixture(scope="module")
def computed(small):
    """(data, which example each of the batch is, the batch, the model's outputs)."""
    model, params = small
    data = random_windows()
    plan = EvalPlan(data, len(data), 40)
    batch = plan.batch(0)
    out = jax.jit(model.apply)({"params": params}, batch)
    return data, plan.order[0], batch, {k: np.asarray(v) for k, v in out.items()}


def test_the_loss_is_over_the_tokens_of_the_example_only(computed):
    data, order, batch, out = computed
    by_hand = []
    for i, example in enumerate(order):
        length, answer = data.lengths[example, 0], data.fields["answer"][example]
        assert (out["start"][i, length:] == MASKED).all() and (out["start"][i, :length] > -50).all()
        both = 0.0
        for side, index in zip(("start", "end"), answer, strict=True):
            logits = out[side][i, :length].astype(np.float64)
            both += np.log(np.exp(logits).sum()) - logits[index]
        by_hand.append(both / 2)
    total, count, _ = task().loss({k: jnp.asarray(v) for k, v in out.items()}, batch)
    assert count == len(data)
    np.testing.assert_allclose(total, sum(by_hand), rtol=1e-6)
    predicted = task().predict({k: jnp.asarray(v) for k, v in out.items()}, batch)
    np.testing.assert_allclose(predicted["loss"], by_hand, rtol=1e-5)


@pytest.mark.parametrize(("n_best", "max_answer"), [(4, 5), (200, 3), (1, 1), (7, 100)])
def test_n_best_are_the_best_of_all_spans(computed, n_best, max_answer):
    data, order, batch, out = computed
    made = task(task__n_best=n_best, task__max_answer=max_answer).predict(
        {k: jnp.asarray(v) for k, v in out.items()}, batch
    )
    for i, example in enumerate(order):
        first, after = data.fields["context"][example]
        spans = {
            (a, b): float(out["start"][i, a] + out["end"][i, b])
            for a in range(first, after)
            for b in range(a, min(a + max_answer, after))
        }
        wanted = sorted(spans.values(), reverse=True)[:n_best]
        scores = np.asarray(made["score"][i])
        real = scores > MASKED / 2
        np.testing.assert_allclose(scores[real], wanted, rtol=1e-6)
        pairs = list(
            zip(made["start"][i][real].tolist(), made["end"][i][real].tolist(), strict=True)
        )
        assert len(set(pairs)) == len(pairs)
        np.testing.assert_allclose([spans[p] for p in pairs], wanted, rtol=1e-6)
        np.testing.assert_allclose(made["null"][i], out["start"][i, 0] + out["end"][i, 0])


# Answers, scores and what is refused


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_bert(tmp_path_factory.mktemp("bert")))


CONTEXTS = [
    "The Film — café 42 is a great film, once again. " + "It was dull; " * 6 + "great 7!",
    "x",
]
ROWS = {
    "id": ["one", "two", "three"],
    "question": ["is it great?", "what was it? " * 4, "x?"],
    "context": [CONTEXTS[0], CONTEXTS[0], CONTEXTS[1]],
    "answers": [
        [
            {"text": "great film", "start": 24},
            {"text": "great 7", "start": CONTEXTS[0].index("great 7")},
        ],
        [{"text": "dull", "start": CONTEXTS[0].index("dull")}],
        [],
    ],
}  # fmt: skip


class Fixed:
    """A source of these rows."""

    uri = "files:fixed.json"

    def __init__(self, columns):
        self.columns = columns

    def fingerprint(self):
        return json.dumps(self.columns)

    def read(self):
        return Rows(self.columns, None, "fixed.json")


def scored_windows(data, wanted):
    """Predictions in which row r's best span is the characters wanted[r], in every window that
    holds them, and the null's score is 0."""
    count = len(data)
    out = {
        "start": np.zeros((count, 2), np.int32),
        "end": np.zeros((count, 2), np.int32),
        "score": np.full((count, 2), MASKED, np.float32),
        "null": np.zeros(count, np.float32),
        "loss": np.ones(count, np.float32),
    }
    for w in range(count):
        places = np.asarray(data.aside["characters"][data.offsets[w] : data.offsets[w + 1]])
        start, end, score = wanted[data.row[w]]
        inside = range(*data.fields["context"][w])
        a = [i for i in inside if places[i, 0] == start]
        b = [i for i in inside if places[i, 1] == end]
        out["start"][w, 1] = out["end"][w, 1] = data.fields["context"][w][0]
        out["score"][w, 1] = -3.0
        if a and b:
            out["start"][w, 0], out["end"][w, 0], out["score"][w, 0] = a[0], b[0], score + w * 0.01
    return out


@pytest.fixture
def data(tokenizer, tmp_path):
    made = encode(Fixed(ROWS), task(), tokenizer, 40, tmp_path)
    again = encode(Fixed(ROWS), task(), tokenizer, 40, tmp_path)  # now from the cache
    for name in ("characters", "context", "context_of", "gold", "gold_offsets", "gold_of"):
        np.testing.assert_array_equal(made.aside[name], again.aside[name])
    return again


def test_windows_of_a_row_and_what_no_batch_holds(data):
    assert data.row.tolist() == sorted(data.row.tolist()) and len(data) > 4
    assert data.source_rows == 3 and data.fitted == {"unanswerable": True}
    assert [bool(data.truncated[data.row == r].any()) for r in range(3)] == [False, True, False]
    batch = EvalPlan(data, 2, 40).batch(0)
    assert set(batch) & set(data.aside) == {"context"} and batch["context"].shape == (2, 2)
    first = np.flatnonzero(data.row == 0)[0]
    a, b = data.fields["answer"][first]
    places = data.aside["characters"][data.offsets[first] :]
    assert CONTEXTS[0][places[a, 0] : places[b, 1]] == "great film"
    assert not data.fields["answer"][data.row == 2].any()


def test_an_answer_that_no_window_holds_is_counted(tokenizer, tmp_path):
    text = CONTEXTS[0][15:]
    columns = {k: list(v) for k, v in ROWS.items()} | {
        "answers": [[{"text": text, "start": 15}], ROWS["answers"][1], []]
    }
    made = encode(Fixed(columns), task(), tokenizer, 40, tmp_path)
    assert [bool(made.truncated[made.row == r].all()) for r in range(3)] == [True, True, False]
    assert not made.fields["answer"][made.row == 0].any()


def test_answers_are_the_exact_characters(data):
    wanted = [(24, 34, 5.0), (11, 18, 4.0), (0, 1, 3.0)]
    predicted, rows = scored_windows(data, wanted), Fixed(ROWS).read()
    found = task().answers(predicted, data, rows)
    assert [f["prediction"]["text"] for f in found] == ["great film", "café 42", "x"]
    for answer, row in zip(found, range(3), strict=True):
        assert (answer["id"], answer["context"]) == (ROWS["id"][row], ROWS["context"][row])
        assert answer["label"] == ROWS["answers"][row] and answer["truncated"] == (row == 1)
        assert sum(n["probability"] for n in answer["n_best"]) == pytest.approx(1, abs=1e-5)
        assert answer["n_best"][0] == answer["prediction"]
        assert "" in [n["text"] for n in answer["n_best"]] and len(answer["n_best"]) <= 5
        for n in answer["n_best"]:
            if n["text"]:
                assert n["text"] == answer["context"][n["start"] : n["end"]]
    # One span in several windows is one candidate, with the best of its scores.
    holding = np.flatnonzero((data.row == 1) & (predicted["score"][:, 0] > 0))
    assert [n["text"] for n in found[1]["n_best"]].count("café 42") == 1
    assert found[1]["prediction"]["score"] == pytest.approx(4 + 0.01 * holding[-1])
    assert json.loads(json.dumps(found)) == found
    assert "great film (" in task().sentence(found[0]) and "is it great?" in task().sentence(
        found[0]
    )


def test_places_outside_a_window_are_no_answers(data):
    """What fills up the n best of a window with fewer spans is any place of the batch's rows."""
    predicted = scored_windows(data, [(24, 34, 5.0), (11, 18, 4.0), (0, 1, 3.0)])
    wanted = task().answers(predicted, data, Fixed(ROWS).read())
    more = {"start": np.full((len(data), 2), 39), "end": np.full((len(data), 2), 43)}
    more |= {"score": np.full((len(data), 2), MASKED, np.float32)}
    longer = {k: np.concatenate([predicted[k], more[k]], axis=1) for k in more}
    assert task().answers({**predicted, **longer}, data, Fixed(ROWS).read()) == wanted


def test_the_null_threshold(data):
    predicted = scored_windows(data, [(24, 34, 5.0), (11, 18, 4.0), (0, 1, 3.0)])
    predicted["null"][data.row == 0] = 9.0
    predicted["null"][np.flatnonzero(data.row == 0)[-1]] = 6.0  # the lowest of the windows counts
    predicted["null"][data.row == 2] = 3.5 + 0.01 * len(data)

    def said(threshold):
        return [
            n[0].text for _, n in task(task__null_threshold=threshold).candidates(predicted, data)
        ]

    assert said(0.0) == ["", "café 42", ""]
    assert said(0.8) == ["", "café 42", "x"]
    assert said(1.5) == ["great film", "café 42", "x"]
    assert said(-9.0) == ["", "", ""]
    scores = task().score(predicted, data)
    assert scores["exact_match"] == pytest.approx(1 / 3) and scores["no_answer_f1"] == 1.0
    sizes = task().sizes(data, scores)
    assert (sizes["has_answer_f1"], sizes["no_answer_exact_match"]) == (2, 1)
    assert "f1" not in sizes  # which is over the rows
    answered = dataclasses.replace(data, fitted={"unanswerable": False})
    assert all(n[0].text for _, n in task().candidates(predicted, answered))


@pytest.mark.parametrize("seed", range(6))
def test_the_null_threshold_of_the_best_f1(seed):
    """Against all that a threshold can do, as the script of SQuAD 2.0 looks for it."""
    rng = np.random.default_rng(seed)
    apart = rng.integers(-3, 4, 12) + (0.25 if seed % 2 else 0.0)  # with equal ones
    said, silent = rng.random(12), rng.integers(0, 2, 12).astype(float)

    def mean(threshold):
        return np.where(apart > threshold, silent, said).mean()

    found = best_null_threshold(apart, said, silent)
    wanted = max(mean(t) for t in [*apart, apart.min() - 1])
    assert mean(found) == pytest.approx(wanted)
    assert best_null_threshold(apart, said, said) == 0.0, "nothing to choose"


def test_the_null_threshold_is_chosen_on_dev(data):
    dull = CONTEXTS[0].index("dull")
    predicted = scored_windows(data, [(24, 34, 5.0), (dull, dull + 4, 4.0), (0, 1, 3.0)])
    predicted["null"][data.row < 2] = 6.0  # all three are above the best answer's score
    predicted["null"][data.row == 2] = 8.0
    chosen = task().tune(predicted, data)
    scores = [
        task(task__null_threshold=t).score(predicted, data)["f1"] for t in np.arange(-9, 9, 0.05)
    ]
    tuned = dataclasses.replace(data, fitted={**data.fitted, **chosen})
    assert task().score(predicted, tuned)["f1"] == pytest.approx(max(scores))
    assert max(scores) > task().score(predicted, data)["f1"]
    assert task(task__choose_null=False).tune(predicted, data) == {}
    for asked in (-100.0, 0.0, 100.0):  # a later evaluation may ask for its own
        own = task(task__choose_null=False, task__null_threshold=asked)
        assert own.score(predicted, tuned) == own.score(predicted, data)
    answered = dataclasses.replace(data, fitted={"unanswerable": False})
    assert task().tune(predicted, answered) == {}


def test_scores_are_those_of_the_written_answers(data):
    predicted = scored_windows(data, [(24, 29, 5.0), (24, 34, 4.0), (0, 1, -3.0)])
    got = task().score(predicted, data)
    found = task().answers(predicted, data, Fixed(ROWS).read())
    exact, f1 = official(
        [f["prediction"]["text"] for f in found],
        [[g["text"] for g in f["label"]] for f in found],
        2,
    )
    assert (100 * got["exact_match"], 100 * got["f1"]) == pytest.approx((exact, f1))
    # 'great' shares one word of two with each of its golds; the second row is wrong, '' is right.
    assert got["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3) and got["loss"] == 1.0


def test_a_set_without_answers_is_predicted_but_not_scored(tokenizer, tmp_path):
    columns = {k: v for k, v in ROWS.items() if k != "answers"}
    made = task().encode(Fixed(columns).read(), tokenizer, 40, {"unanswerable": False})
    predicted = scored_windows(made, [(24, 34, 5.0), (11, 18, 4.0), (0, 1, 3.0)])
    found = task().answers(predicted, made, Fixed(columns).read())
    assert found[0]["prediction"]["text"] == "great film" and "label" not in found[0]
    with pytest.raises(InputError, match="no column 'answers'"):
        task().score(predicted, made)
    with pytest.raises(InputError, match="no column 'answers'"):  # as a set of a run, at once
        encode(Fixed(columns), task(), tokenizer, 40, tmp_path, {"unanswerable": False})


def test_a_blank_question_or_context_has_an_empty_answer(tokenizer):
    columns = {"question": ["what?", " ", "what?", ""], "context": ["a film", "a plot", "", "\n"]}
    rows = Rows(columns, None, "new.jsonl")
    made = task().encode_unlabelled(rows, tokenizer, 40, {"unanswerable": False})
    assert made.fields["context"][1:].tolist() == [[0, 0]] * 3
    predicted = scored_windows(made, [(2, 6, 5.0)] * 4)
    predicted["score"][1:] = MASKED
    found = task().answers(predicted, made, rows)
    assert [f["prediction"]["text"] for f in found] == ["film", "", "", ""]
    assert found[1]["prediction"]["start"] is None and found[1]["context"] == "a plot"
    assert task().sentence(found[2])


def test_blanks_are_no_answers(data):
    """As a token of RoBERTa's or XLM-R's can be, or begin with one."""
    predicted = scored_windows(data, [(24, 34, 5.0), (11, 18, 4.0), (0, 1, 3.0)])
    w = int(np.flatnonzero((data.row == 0) & (predicted["score"][:, 0] > 0))[0])
    characters = np.array(data.aside["characters"])
    characters[data.offsets[w] + predicted["start"][w, 0], 0] -= 1
    other = data.offsets[w] + predicted["start"][w, 1]
    characters[other] = 23, 24
    moved = dataclasses.replace(data, aside={**data.aside, "characters": characters})
    (_, listed), *_ = task().candidates(predicted, moved)
    assert (listed[0].text, listed[0].start, listed[0].end) == ("great film", 24, 34)
    assert not any(n.text.isspace() or n.text != n.text.strip() for n in listed)


def test_the_layouts_of_answers():
    wanted = [("a", 0), ("b c", 4)]
    lists = [{"text": "a", "answer_start": 0}, {"text": "b c", "start": 4}]
    assert (
        gold_answers(lists)
        == gold_answers({"text": ["a", "b c"], "answer_start": [0, 4]})
        == wanted
    )
    assert gold_answers([]) == gold_answers({"text": [], "answer_start": []}) == []
    assert gold_answers({"text": "a", "answer_start": 0}) == [("a", 0)]
    for wrong in (
        "a",
        [["a", 0]],
        [{"text": "a"}],
        [{"text": 3, "start": 0}],
        {"text": ["a"]},
        {"text": ["a"], "answer_start": 0},
        {"text": "a", "answer_start": [0]},
        {"text": "a"},
        None,
    ):
        with pytest.raises(ValueError):
            gold_answers(wrong)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (
            "answers",
            [{"text": "good film", "start": 24}],
            ["row 1", "question two", "'good film'", "24"],
        ),
        ("answers", [{"text": "dull", "start": 3}], ["question two", "'dull'", "character 3"]),
        ("answers", [{"text": "dull", "start": -1}], ["question two", "'dull'", "-1"]),
        ("answers", [{"text": " ", "start": 3}], ["question two", "not in its context"]),
        ("answers", "dull", ["question two", "'answers'", "start"]),
        ("context", " \n", ["question two", "'context'", "is empty"]),
        ("context", "\u0000\u0001", ["question two", "'context'", "no character"]),
        ("question", "", ["question two", "'question'", "is empty"]),
        ("question", 7, ["question two", "'question'", "7"]),
    ],
)
def test_rows_that_cannot_be_used(tokenizer, tmp_path, column, value, words):
    columns = {k: list(v) for k, v in ROWS.items()}
    columns[column][1] = value
    if column == "context":
        columns["answers"][1] = []
    with pytest.raises(InputError) as e:
        encode(Fixed(columns), task(), tokenizer, 40, tmp_path)
    assert all(word in str(e.value) for word in ["fixed.json", *words]), str(e.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data__text_pair": ""}, "data.text_pair"),
        ({"task__stride": 27}, "task.stride is 27; accepted: less than 27"),
        ({"task__stride": -1}, "task.stride"),
        ({"task__n_best": 0}, "task.n_best"),
        ({"task__max_answer": 0}, "task.max_answer"),
        ({"task__max_question": 0}, "task.max_question"),
    ],
)
def test_settings_that_cannot_work(overrides, words):
    check(config(**SETTINGS, data__train="files:x", model__pretrained="x"))
    with pytest.raises(InputError, match=words):
        check(config(**SETTINGS | overrides, data__train="files:x", model__pretrained="x"))


@pytest.mark.parametrize(("name", "pair"), [("tagging", ""), ("span", "context")])
def test_the_default_stride_goes_with_the_default_length(name, pair):
    check(config(task__name=name, data__text_pair=pair, data__train="x", model__pretrained="x"))


# The program


def write_squad(path: Path, count: int, seed: int) -> Path:
    """Questions whose answer is the one number of a text that has several sentences."""
    rng = np.random.default_rng(seed)
    paragraphs = []
    for i in range(count):
        words = [str(w) for w in rng.choice(["film", "plot", "music", "great", "dull"], 40)]
        place, number = int(rng.integers(40)), str(rng.integers(10))
        words[place] = number
        start = len(" ".join(words[:place])) + (place > 0)
        answers = [{"text": number, "answer_start": start}] * 2
        qas = [{"id": f"{seed}-{i}", "question": "number ?", "answers": answers}]
        paragraphs.append({"context": " ".join(words), "qas": qas})
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def test_a_run_trains_evaluates_and_predicts(run_here, world: World, tmp_path):
    train, test = write_squad(tmp_path / "a.json", 60, 1), write_squad(tmp_path / "b.json", 15, 2)
    made = tmp_path / "qa.py"
    made.write_text(
        world.config.read_text().replace(
            "    return c",
            f"""    c.task.name, c.task.label_names = "span", ""
    c.task.stride, c.task.max_question, c.task.max_answer, c.task.n_best = 6, 10, 3, 5
    c.data.text, c.data.text_pair, c.data.label = "question", "context", "answers"
    c.data.train = {f"files:{train}?format=squad"!r}
    c.data.dev = ""
    c.data.test = {f"files:{test}?format=squad"!r}
    c.train.steps = 40
    return c""",
        )
    )
    done = run_here(tmp_path / "run", config=made).ok()
    scores = {k: v["mean"] for k, v in done.result["eval"].items()}
    assert scores["test/exact_match"] > 0.9, scores
    assert all(v["n_examples"] == 15 for v in done.result["eval"].values())
    written = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    exact, f1 = official(
        [w["prediction"]["text"] for w in written],
        [[g["text"] for g in w["label"]] for w in written],
        1,
    )
    assert (exact, f1) == pytest.approx((100 * scores["test/exact_match"], 100 * scores["test/f1"]))
    rows = open_source(f"files:{test}?format=squad", cache_dir=tmp_path).read().columns
    given = [
        {"id": i, "question": q, "context": c}
        for i, q, c in zip(rows["id"], rows["question"], rows["context"], strict=True)
    ][::-1]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(g) + "\n" for g in given))
    run_here(done.workdir, "--mode=predict", f"--config.predict.input={asked}", config=made).ok()
    said = read_jsonl(done.workdir / "predictions" / "asked.jsonl")
    assert [s["id"] for s in said] == [g["id"] for g in given]
    assert [s["label"]["text"] for s in said] == [w["prediction"]["text"] for w in written][::-1]
    run_here(done.workdir, "--mode=eval", config=made).ok()
    again = {k: v["mean"] for k, v in done.result["eval"].items()}
    assert again == pytest.approx(scores)
