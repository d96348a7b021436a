"""Augmented rows: labels survive, draws depend on (seed, version, row) alone, faults are told."""

import dataclasses
import functools
import json
import re
import sys

import jax
import numpy as np
import pytest
from conftest import vocabulary, write_bert, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SIZES, config, init

from bert_ft.checks import check
from bert_ft.data import augment, noise
from bert_ft.data.augment import Augmented
from bert_ft.data.encode import encode
from bert_ft.data.pieces import as_text, cut_list, cut_text
from bert_ft.data.rows import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.data.word_lists import paraphrased, read_listed
from bert_ft.errors import InputError
from bert_ft.models.heads import MaskedHead, Model
from bert_ft.models.hf import save
from bert_ft.tasks import schemes
from bert_ft.tasks.classification import Classification
from bert_ft.tasks.multilabel import MultiLabel
from bert_ft.train.proposals import Proposer, begun_words
from bert_ft.train.training_set import training_rows

KNOWN = {"film": ["movie", "picture"], "great": ["superb"], "paris": ["lutetia"]}
KINDS = [*noise.PLAIN, *noise.WITH_WORDS]
TEXTS = [f"The film number {i} was great, and the actors of Paris were fine." for i in range(40)]


class Given:
    """A source of rows at hand."""

    uri = "files:given"

    def __init__(self, **columns):
        self.columns = columns

    def fingerprint(self):
        return json.dumps(self.columns)

    def read(self):
        return Rows({name: list(values) for name, values in self.columns.items()}, None, self.uri)


def versions(source, kinds=(("swap", 0.3),), count=2, share=1.0, seed=0, texts=("text",), **more):
    return Augmented(source, tuple(kinds), count, share, seed, texts, **more)


def noisy(pieces, kind, strength, seed):
    draws = np.random.default_rng(seed)
    if kind in noise.PLAIN:
        return noise.PLAIN[kind](pieces, strength, draws)
    return noise.WITH_WORDS[kind](pieces, strength, draws, KNOWN)


@st.composite
def tagged_words(draw):
    """(words, tags, scheme) with entities that may touch each other."""
    scheme = draw(st.sampled_from(["IOB2", "IOB1", "BIOES", "BMES", "BILOU", "plain"]))
    tags, before = [], ""
    for kind, length in draw(
        st.lists(
            st.tuples(st.sampled_from(["O", "Y", "X", "X"]), st.integers(1, 3)),
            min_size=1,
            max_size=7,
        )
    ):
        if kind == "O":
            tags += ["O"] * length
        elif scheme == "plain":
            tags += [kind] * length
        elif scheme == "IOB1":
            tags += [("B-" if before == kind else "I-") + kind] + [f"I-{kind}"] * (length - 1)
        elif scheme == "IOB2":
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
        else:
            single, inner, last = {"BIOES": "SIE", "BMES": "SME", "BILOU": "UIL"}[scheme]
            tags += (
                [f"{single}-{kind}"]
                if length == 1
                else [f"B-{kind}", *[f"{inner}-{kind}"] * (length - 2), f"{last}-{kind}"]
            )
        before = kind
    words = draw(
        st.lists(
            st.sampled_from(["film", "great", "Paris", "ab", ",", "."]),
            min_size=len(tags),
            max_size=len(tags),
        )
    )
    return words, tags, scheme


def spelt(words, tags, scheme):
    if scheme == "IOB1":
        tags, scheme = schemes.iob1_to_iob2(tags), "IOB2"
    return [(kind, words[a:b]) for kind, a, b in schemes.entities(tags, scheme)]


@settings(max_examples=200, deadline=None)
@given(tagged_words(), st.sampled_from(KINDS), st.floats(0.05, 1), st.integers(0, 99))
def test_entities_of_tagged_words_survive_and_tags_stay_legal(row, kind, strength, seed):
    words, tags, scheme = row
    assert schemes.fault(tags, scheme) is None
    out = noisy(cut_list(words, tags), kind, strength, seed)
    after, tagged = [p.text for p in out], [p.tag for p in out]
    assert len(out) > 0 and all(after)
    assert schemes.fault(tagged, scheme) is None
    assert spelt(after, tagged, scheme) == spelt(words, tags, scheme)


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab  ,,-\u6211", min_size=1, max_size=20),
    st.lists(st.integers(0, 20), max_size=6),
    st.sampled_from(KINDS),
    st.floats(0.05, 1),
    st.integers(0, 99),
)
def test_spans_of_a_text_survive_with_their_own_characters(text, borders, kind, strength, seed):
    at = sorted(set(min(b, len(text)) for b in borders))
    spans = [{"start": a, "end": b, "label": "X"} for a, b in zip(at[::2], at[1::2], strict=False)]
    assert as_text(cut_text(text, spans)) == (text, spans)
    after, moved = as_text(noisy(cut_text(text, spans), kind, strength, seed))
    assert [after[s["start"] : s["end"]] for s in moved] == [
        text[s["start"] : s["end"]] for s in spans
    ]

    def leans(whole, span):
        """What a tokenizer could take for the same word as the span."""
        near = whole[: span["start"]][-1:], whole[span["end"] :][:1]
        return [c.strip() for c in near]

    for was, now in zip(spans, moved, strict=True):
        assert leans(after, now) == leans(text, was)


@pytest.mark.parametrize("tags", [["X", "O", "O", "X", "O"], ["I-X", "O", "O", "I-X", "O"]])
def test_what_parts_two_entities_stays(tags):
    out = noisy(cut_list(["w", "film", "great", "w", "film"], tags), "delete", 1.0, 0)
    assert [(p.text, p.tag) for p in out] == [("w", tags[0]), ("great", "O"), ("w", tags[3])]
    touching = noisy(cut_list(["w", "w", "film"], [*tags[::3], "O"]), "insert", 1.0, 0)
    assert [p.fixed for p in touching] == [True, True, *[False] * (len(touching) - 2)]


def test_an_entity_that_ends_in_a_symbol_keeps_its_blank():
    pieces = cut_text("the Acme™ .net framework", [[4, 9, "X"]])
    for seed in range(20):
        text, spans = as_text(noisy(pieces, "punctuation", 1.0, seed))
        assert text[spans[0][0] : spans[0][1]] == "Acme™" and "™n" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cafe\u0301s, nai\u0308ve", ["cafe\u0301s", ",", "nai\u0308ve"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया", "।"]),
        ("می\u200cخواهم خوب", ["می\u200cخواهم", "خوب"]),
        ("สวัสดีครับ", ["สวัสดีครับ"]),
        ("3.5kg, 1,000 at 10:30.", ["3.5kg", ",", "1,000", "at", "10:30", "."]),
        ("v2.0-1.5 a.b,c 3.", ["v2.0-1.5", "a", ".", "b", ",", "c", "3", "."]),
        ("iPhone我用_x don't", ["iPhone", "我", "用", "_x", "don't"]),
    ],
)
def test_words_are_whole(text, words):
    pieces = cut_text(text)
    assert [p.text for p in pieces] == words and as_text(pieces)[0] == text


@pytest.mark.parametrize(
    ("text", "kind", "joined"),
    [("see a.b,c", "punctuation", "ab|bc"), ("iPhone我Android ok", "delete", "iPhoneAndroid"),
     ("नमस्ते,नमस्ते ok", "punctuation", "नमस्तेन")],
)  # fmt: skip
def test_what_stood_apart_does_not_become_one_word(text, kind, joined):
    seen = {as_text(noisy(cut_text(text), kind, 0.5, seed))[0] for seed in range(60)}
    assert len(seen) > 5 and not any(re.search(joined, one) for one in seen)
    chinese = {as_text(noisy(cut_text("我很爱你"), "delete", 0.5, seed))[0] for seed in range(9)}
    assert not any(" " in one for one in chinese)


def test_words_are_swapped_on_their_side_of_an_entity():
    words = ["a", "b", "Paris", "c", "d", "Rome", "e"]
    tags = ["O", "O", "B-X", "O", "O", "B-X", "O"]
    seen = {
        tuple(p.text for p in noisy(cut_list(words, tags), "swap", 0.5, seed)) for seed in range(40)
    }
    assert len(seen) == 4
    assert {frozenset(s[:2]) for s in seen} == {frozenset("ab")} and {s[6] for s in seen} == {"e"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_a_text_in_more_than_one_way(kind):
    pieces = cut_text(TEXTS[0])
    assert as_text(pieces)[0] == TEXTS[0]
    changed = {as_text(noisy(pieces, kind, 0.4, seed))[0] for seed in range(10)}
    assert len(changed - {TEXTS[0]}) >= 2


def test_eda_counts_and_typing():
    pieces = cut_text("film " * 20)
    assert [p.text for p in noisy(pieces, "synonyms", 0.1, 0)].count("film") == 18
    assert len(noisy(pieces, "insert", 0.1, 0)) == len(pieces) + 2
    assert len(noisy(pieces, "delete", 1.0, 0)) == 1 + 1  # the last word, and the blank at the end
    assert noise.NEAR["g"] == "fhtyvb" and noise.NEAR["q"] == "wa"
    assert noise.like("movie", "Film") == "Movie" and noise.like("movie", "FILM") == "MOVIE"


def test_a_row_depends_on_seed_version_and_row_alone():
    whole = versions(Given(text=TEXTS)).read().columns["text"]
    part = versions(Given(text=TEXTS[:7])).read().columns["text"]
    assert part == whole[:7] + whole[40:47]
    assert whole[:40] != whole[40:] and whole[40:] != TEXTS
    assert versions(Given(text=TEXTS), seed=1).read().columns["text"] != whole
    assert versions(Given(text=TEXTS)).read().columns["text"] == whole
    more = versions(Given(text=TEXTS), count=3).read().columns["text"]
    assert more[:80] == whole


def test_the_share_of_rows_and_both_texts_of_a_pair():
    source = Given(text=TEXTS, other=TEXTS, label=list(range(40)))
    rows = versions(source, count=10, share=0.3, texts=("text", "other")).read()
    changed = [
        [t != TEXTS[i % 40] for i, t in enumerate(rows.columns[c])] for c in ("text", "other")
    ]
    assert rows.columns["label"] == list(range(40)) * 10
    assert 0.2 < np.mean(changed[0]) < 0.4
    assert np.mean(np.equal(*changed)) > 0.95, "a swap of a word with its like changes nothing"
    assert rows.columns["text"] != rows.columns["other"]


def test_nothing_to_change_leaves_the_source_as_it_is():
    source = Given(text=TEXTS)
    for off in ({}, {"data__augment": "swap:0,typos:0"}, {"data__augment_share": 0.0}):
        c = config(**({"data__augment": "swap:0.1"} | off if "data__augment_share" in off else off))
        check_ok(c)
        assert training_rows(c, source) is source
    assert training_rows(config(data__augment="swap:0.1"), source) is not source


def check_ok(c):
    with c.unlocked():
        c.data.train, c.model.pretrained = "files:x", "y"
    check(c)


def refused(*words, **overrides):
    with pytest.raises(InputError) as e:
        check_ok(config(**overrides))
    assert all(word in str(e.value) for word in words), e.value


def test_what_can_not_work_is_refused_before_anything():
    refused("'swop:1'", "KIND:STRENGTH", data__augment="swop:1")
    refused("'swap:2'", "from 0 to 1", data__augment="typos:0.1, swap:2")
    refused("data.augment_words", "synonyms", data__augment="synonyms:0.1")
    refused("data.augment_model", data__augment="masked:0.1")
    refused("typos:0.2,paraphrase:1.0'; accepted", "paraphrase before typos",
            data__augment="typos:0.2,paraphrase:1.0")  # fmt: skip
    refused("data.augment_words", "none of", data__augment_words="words.tsv")
    for task in ("span", "matching", "cross_encoder", "masked", "recommend"):
        refused("data.augment", task, "classification", data__augment="swap:1", task__name=task)
    refused("paraphrase", "tagging", data__augment="paraphrase:1", task__name="tagging",
            data__augment_paraphrases="x.tsv")  # fmt: skip
    of_parts = {"task__name": "multi", "data__augment": "swap:1"}
    tags = {"task.name": "tagging", "data.label": "tags", "task.stride": 8}
    for other, why in (
        ({**tags, "data.label": "chunks"}, "two columns of tags"),
        ({"data.train": "files:z"}, "rows of their own"),
        ({"task.name": "span", "task.stride": 8}, "where task.name is 'span'"),
    ):
        refused("data.augment", why, task__parts=json.dumps({"a": tags, "b": other}), **of_parts)
    refused("data.augment_share", data__augment_share=1.5)
    refused("data.augment_epochs", data__augment_epochs=0)
    refused("data.shots", data__shots=-1)
    refused("data.shots", "multi", data__shots=4, task__name="multi")
    refused("data.oversample", "balanced", data__oversample="all")
    refused("data.oversample", "tagging", data__oversample="sqrt", task__name="tagging")


def test_shots_of_several_labels_lack_none_of_them():
    """A row is one of each of its labels; dev has any label of the training rows."""
    labels = ["a"] * 30 + ["a;b"] * 3 + ["c; a"] * 4 + [""] + ["d"] * 5
    source = Given(text=[f"t{i}" for i in range(len(labels))], label=labels)
    c = config(task__name="multilabel", task__label_delimiter=";", data__shots=3)
    task = MultiLabel(c)
    few = [training_rows(config_with(c, shots), source).read() for shots in (2, 3)]
    for rows, least in zip(few, (2, 3), strict=True):
        sets = task.label_sets(rows)
        assert task.fit(rows)["labels"] == ["a", "b", "c", "d"]
        assert all(sum(k in s for s in sets) >= least for k in "abcd") and set() in sets
        assert len(rows) <= 4 * least + 1
    assert set(few[0].columns["text"]) < set(few[1].columns["text"])
    with pytest.raises(InputError, match="data.shots is 4; accepted: at most 3: .*'b' has 3 rows"):
        training_rows(config_with(c, 4), source).read()
    other = config_with(c, 3)
    other.task.label_delimiter = ","
    prints = {training_rows(one, source).fingerprint() for one in (c, other)}
    assert len(prints) == 2


def config_with(c, shots):
    c = c.copy_and_resolve_references()
    c.data.shots = shots
    return c


def test_labels_are_counted_by_row_whatever_the_versions(tmp_path):
    source = Given(text=["a", "b", "a"], label=["x", "y", "x"])
    task = Classification(config(task__class_weights="effective", task__class_beta=0.5))
    tokenizer = load_tokenizer(write_bert(tmp_path / "model"))
    weights = [
        encode(versions(source, count=n), task, tokenizer, 8, tmp_path).fitted["weights"]
        for n in (1, 3)
    ]
    assert weights[0] == weights[1] != [1, 1]


def test_tags_move_with_their_words_and_rows_at_fault_are_the_tasks_to_refuse():
    words, tags = ["we", "saw", "Paris", "today"], ["O", "O", "B-X", "O"]
    source = Given(text=[words] * 20 + [words], label=[tags] * 20 + [tags[:1]])
    rows = versions(source, [("delete", 0.5), ("punctuation", 0.3)], tags="label").read()
    for text, label in zip(rows.columns["text"], rows.columns["label"], strict=True):
        if len(text) == len(label):
            assert [(w, t) for w, t in zip(text, label, strict=True) if t != "O"] == [
                ("Paris", "B-X")
            ]
    assert rows.columns["text"][20] == words and rows.columns["label"][20] == tags[:1]
    # Rows that are drawn may have nothing to change, so long as another row has.
    some = Given(text=[["Rome"], ["Paris"], ["we", "saw"]], label=[["X"], ["X"], ["O", "O"]])
    for seed in range(8):
        versions(some, [("swap", 0.5)], tags="label", seed=seed, share=0.5, count=1).read()
    nothing = Given(text=[["a", "b"]] * 3, label=[["X", "Y"]] * 3)
    with pytest.raises(InputError, match="tagged other than 'O'"):
        versions(nothing, tags="label").read()


def test_word_lists(tmp_path):
    tabs = tmp_path / "words.tsv"
    tabs.write_text("Film\tmovie\tpicture\n\nfilm\tfilm\tflick\n")
    assert read_listed("k", str(tabs), "word", "synonyms") == {
        "Film": ["movie", "picture"],
        "film": ["flick"],
    }
    found = versions(Given(text=["film"]), [("synonyms", 1.0)], 40, words=str(tabs)).read()
    assert {*found.columns["text"]} == {"movie", "picture", "flick"}
    lines = write_jsonl(tmp_path / "w.jsonl", [{"word": " film ", "synonyms": ["movie"]}])
    assert read_listed("k", str(lines), "word", "synonyms") == {"film": ["movie"]}
    tabs.write_text("film\tmovie\n", "utf-8-sig")
    assert read_listed("k", str(tabs), "word", "synonyms") == {"film": ["movie"]}
    tabs.write_text("film\tmovie\nalone\n")
    with pytest.raises(InputError, match=r"words.tsv:2: 'alone'; accepted: word, a tab, synonyms"):
        read_listed("k", str(tabs), "word", "synonyms")
    with pytest.raises(InputError, match="config.data.augment_words: .*nowhere"):
        read_listed("data.augment_words", str(tmp_path / "nowhere"), "word", "synonyms")


def test_paraphrases_of_a_function_or_a_file(tmp_path, monkeypatch):
    (tmp_path / "spoken.py").write_text(
        "def again(texts):\n"
        "    return [[t + ' indeed', ' '] if 'film' in t else [''] for t in texts]\n"
        "def wrong(texts):\n    return texts[:1]\n"
        "def broken(texts):\n    return texts.more\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = Given(text=["a film", "a day"])
    how = {"paraphrases": "spoken:again"}
    found = versions(source, [("paraphrase", 1.0)], **how)
    assert found.read().columns["text"] == ["a film indeed", "a day"] * 2
    before = found.fingerprint()
    (tmp_path / "spoken.py").write_text("def again(texts):\n    return [[] for t in texts]\n")
    assert found.fingerprint() != before
    key = "data.augment_paraphrases"
    for wrong, said in (
        ("spoken:wrong", "gives"),
        ("spoken:broken", "raised AttributeError for 2 texts, .* line 6"),
        ("spoken:none", "none"),
        ("no.such:f", "such"),
    ):
        with pytest.raises(InputError, match=said) as e:
            paraphrased(key, wrong, ["a", "b"])
        assert key in str(e.value)
    sys.modules.pop("spoken")
    file = tmp_path / "p.tsv"
    file.write_text("a day\tone day\n")
    found = versions(source, [("paraphrase", 1.0)], paraphrases=str(file))
    assert found.read().columns["text"] == ["a film", "one day"] * 2
    file = write_jsonl(tmp_path / "p.jsonl", [{"text": " a day\n", "paraphrases": ["", "one day"]}])
    source = Given(text=["a film", " a day\n"])
    found = versions(source, [("paraphrase", 1.0)], 1, paraphrases=str(file))
    assert found.read().columns["text"] == ["a film", "one day"]


def test_lists_in_which_nothing_is_found_are_refused(tmp_path):
    """Of any share: whether one is refused does not hang on what is drawn."""
    source = Given(text=["a film", "a Day"])
    words, texts = tmp_path / "words.tsv", tmp_path / "texts.tsv"
    words.write_text("movie\tpicture\n")
    texts.write_text("A film\tone film\n")
    for kind in ("synonyms", "insert"):
        with pytest.raises(InputError, match="augment_words: .* has no word of files:given; acc"):
            versions(source, [(kind, 1.0)], share=0.01, words=str(words)).read()
    with pytest.raises(InputError, match="augment_paraphrases: .* has no text of files:given; ac"):
        versions(source, [("paraphrase", 1.0)], share=0.01, paraphrases=str(texts)).read()
    words.write_text("day\tmorning\n")
    texts.write_text("a Day\tone day\n")
    versions(source, [("synonyms", 1.0)], share=0.01, words=str(words)).read()
    versions(source, [("paraphrase", 1.0)], share=0.01, paraphrases=str(texts)).read()


def test_a_masked_word_model_proposes(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = write_bert(tmp_path / "model")
    with pytest.raises(InputError, match="no masked-word head"):
        Proposer(path, 32, "given")([cut_text("the film was great")], [[1]])
    tensors = load_file(path / "model.safetensors")
    words, width = vocabulary(), 32
    bias = np.zeros(len(words), np.float32)
    bias[[words.index(w) for w in ("movie", "plot", "##ing", ".", "[SEP]")]] = [90, 90, 91, 91, 91]
    tensors |= {
        "cls.predictions.transform.dense.weight": np.eye(width, dtype=np.float32),
        "cls.predictions.transform.dense.bias": np.zeros(width, np.float32),
        "cls.predictions.transform.LayerNorm.weight": np.ones(width, np.float32) / 100,
        "cls.predictions.transform.LayerNorm.bias": np.zeros(width, np.float32),
        "cls.predictions.bias": bias,
    }
    tensors = {k if k.startswith("cls") else f"bert.{k}": v for k, v in tensors.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(about | {"architectures": ["BertForMaskedLM"]}))
    propose = Proposer(path, 32, "given")
    long = " ".join(["the film was great ."] * 20)  # more than one window of the model
    found = propose([cut_text("The film was great"), cut_text(long)], [[1], [0, 41, 99]])
    assert [len(lists) for lists in found] == [1, 3]
    for lists in found:
        for one in lists:
            assert {w for w, p in one if p > 1e-3} == {"movie", "plot"}


def byte_level(path):
    """A tokenizer as RoBERTa has it, of a directory."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = ["the film was great, a (film) plot, filming (films)"] * 9
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=special)
    bpe.save_model(str(path))
    mask = AddedToken("<mask>", lstrip=True)
    RobertaTokenizerFast.from_pretrained(path, mask_token=mask).save_pretrained(path)
    return load_tokenizer(path)


def sentence_pieces(path):
    """As XLM-R has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["\u2581a", "\u2581film", "film", "\u2581plot", "ing", "\u2581", "a", "\u2581."]
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((p, -2.0) for p in pieces)], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize(
    ("made", "words", "rest"),
    [
        (byte_level, ["\u0120film", "\u0120plot"], ["film", "\u0120", ",", "</s>"]),
        (sentence_pieces, ["\u2581film", "\u2581plot"], ["film", "ing", "\u2581", "\u2581."]),
        (
            lambda path: load_tokenizer(write_bert(path / "m")),
            ["film", "plot"],
            ["##ing", ".", "[SEP]"],
        ),
    ],
)
def test_tokens_that_begin_a_word_in_every_family(made, words, rest, tmp_path):
    tokenizer = made(tmp_path)
    tokens = tokenizer.convert_tokens_to_ids([*words, *rest])
    assert tokenizer.unk_token_id not in tokens and len(set(tokens)) == len(tokens)
    assert [*begun_words(tokenizer, tokens).items()] == [
        *zip(tokens, ["film", "plot"], strict=False)
    ]


def test_a_roberta_proposes_words(tmp_path):
    tokenizer = byte_level(tmp_path)
    sizes = dataclasses.replace(
        SIZES, vocab_size=len(tokenizer), num_hidden_layers=1, type_vocab_size=1, family="roberta",
        position_offset=2, pad_token_id=1, max_position_embeddings=42,
    )  # fmt: skip
    params = jax.device_get(init(Model(sizes, functools.partial(MaskedHead))))
    likely = tokenizer.convert_tokens_to_ids(["\u0120plot", "film", "\u0120great"])
    params["top"]["bias"] = np.zeros(len(tokenizer), np.float32)
    params["top"]["bias"][likely] = [900, 901, 900]
    save(tmp_path, sizes, params, "masked")
    found = Proposer(tmp_path, 32, "given")([cut_text("the film was great")], [[1]])
    assert {word for word, p in found[0][0] if p > 1e-3} == {"plot", "great"}


def test_proposals_are_drawn_by_their_probability_and_never_the_word_itself():
    def propose(texts, places):
        assert all(len(own) == 1 for own in places)
        return [[[("Film", 0.9), ("movie", 0.08), ("plot", 0.02)]] for _ in texts]

    source = Given(text=["Film film"] * 60)
    texts = versions(source, [("masked", 0.3)], propose=propose).read().columns["text"]
    assert set(texts) == {"Film movie", "Movie film", "Film plot", "Plot film"}
    assert 0.7 < np.mean(["ovie" in t for t in texts]) < 0.9
    short = versions(Given(text=["?"]), [("masked", 0.3)], propose=lambda *_: []).read()
    assert short.columns["text"] == ["?"] * 2


def test_a_killed_run_with_versions_and_quotas_goes_on_as_if_nothing_had_been(
    world, cache, run_here, tmp_path
):
    from test_resume import start

    flags = (
        *("--config.train.steps=40", "--config.checkpoint.every_steps=5"),
        *("--config.data.augment=swap:0.2,delete:0.2", "--config.data.augment_share=0.7"),
        *("--config.data.oversample=balanced", "--config.data.shots=40"),
        *("--config.model.dropout=0.1", "--config.data.row_counts=1", "--config.data.test="),
    )
    whole = run_here(tmp_path / "whole", *flags).ok()
    assert "240 examples of 80 rows" in (whole.workdir / "log.txt").read_text()
    with start(tmp_path / "killed", world, cache, flags) as run:
        assert run.until(lambda: run.last_step() >= 13)
    resumed = run_here(tmp_path / "killed", *flags).ok()
    assert "own checkpoint of step" in resumed.err + resumed.out
    assert resumed.result["params_sha256"] == whole.result["params_sha256"]
    assert max(resumed.values("train/loss")) == 40


def test_the_settings_are_in_the_fingerprint():
    base = versions(Given(text=TEXTS))
    others = [
        versions(Given(text=TEXTS[1:])),
        versions(Given(text=TEXTS), seed=1),
        versions(Given(text=TEXTS), share=0.5),
        versions(Given(text=TEXTS), count=3),
        versions(Given(text=TEXTS), [("swap", 0.2)]),
        versions(Given(text=TEXTS), texts=("other",)),
        versions(Given(text=TEXTS), model="m"),
    ]
    prints = {one.fingerprint() for one in (base, *others)}
    assert len(prints) == len(others) + 1
    assert augment.steps(" swap:0.1 ,typos:1") == [("swap", 0.1), ("typos", 1.0)]
