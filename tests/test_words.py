"""Words, their sub-words, and windows in which each word is scored once."""

import numpy as np
import pytest
from conftest import write_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.data.words import special_ids, split, windows


@pytest.mark.parametrize("alone", ["a file", "a directory"])
@pytest.mark.parametrize(
    ("capital", "said"),
    [(["##\u211d", "<S>"], ["angela", "fahrt"]), (["Angela"], ["Angela", "fahrt"])],
    ids=["uncased", "cased"],
)
def test_a_vocabulary_says_itself_whether_it_knows_capitals(tmp_path, alone, capital, said):
    """Not its path, nor transformers, which lower-cases where nothing is said."""
    folder = tmp_path / ("uncased_runs" if "Angela" in capital else "runs")
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *capital, "angela", "fahrt"]) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    made = load_tokenizer(folder / "vocab.txt" if alone == "a file" else folder)
    assert made.tokenize("Angela fahrt") == said
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(folder).tokenize("Angela fahrt")[0] != "angela"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_bert(tmp_path_factory.mktemp("bert")))


@st.composite
def sentences(draw):
    room = draw(st.integers(1, 20))
    sizes = draw(st.lists(st.integers(1, room), max_size=60))
    return sizes, room, draw(st.integers(0, room - 1))


@given(sentences())
@settings(deadline=None)
def test_every_word_is_owned_once_where_its_context_is_largest(case):
    sizes, room, stride = case
    made = windows(sizes, room, stride)
    assert [k for w in made for k in range(w.own_first, w.own_last)] == list(range(len(sizes)))
    assert made[0].first == 0 and made[-1].last == len(sizes)
    for w in made:
        assert w.first <= w.own_first <= w.own_last <= w.last
        assert sum(sizes[w.first : w.last]) <= room
    for a, b in zip(made, made[1:], strict=False):
        assert a.first < b.first <= a.last < b.last
        assert sum(sizes[b.first : a.last]) <= stride
    for w in made:
        for k in range(w.own_first, w.own_last):
            contexts = [
                min(sum(sizes[v.first : k]), sum(sizes[k + 1 : v.last]))
                for v in made
                if v.first <= k < v.last
            ]
            assert min(sum(sizes[w.first : k]), sum(sizes[k + 1 : w.last])) == max(contexts)


def test_windows_share_what_the_stride_says():
    made = windows([1] * 10, 6, 4)
    assert [(w.first, w.last) for w in made] == [(0, 6), (2, 8), (4, 10)]
    assert [(w.own_first, w.own_last) for w in made] == [(0, 4), (4, 6), (6, 10)]
    assert [(w.first, w.last) for w in windows([1] * 10, 5, 0)] == [(0, 5), (5, 10)]
    assert len(windows([], 5, 2)) == 1


def test_given_words(tokenizer):
    rows = [["The", "unfresh", "plot"], [], ["\u200b", "Is", "a b"]]
    first, empty, odd = split(tokenizer, rows)
    assert first.text == "The unfresh plot" and len(empty) == 0
    for words in (first, odd):
        texts = [words.text[a:b] for a, b in zip(words.begin, words.end, strict=True)]
        assert texts == rows[0 if words is first else 2]
    assert tokenizer.convert_ids_to_tokens(first.ids[1])[0] == "u" and len(first.ids[1]) > 2
    # Nothing is left of a zero-width space: it is scored all the same, as an unknown word.
    assert odd.ids[0] == [tokenizer.unk_token_id] and len(odd.ids) == 3
    whole = [t for word in first.ids for t in word]
    before, after = special_ids(tokenizer)
    assert [*before, *whole, *after] == tokenizer(first.text)["input_ids"]


def test_words_of_a_text(tokenizer):
    text = "  The film,was\u00e9 \u751f\u751f cafe\u0301!"
    (words,) = split(tokenizer, [text])
    texts = [text[a:b] for a, b in zip(words.begin, words.end, strict=True)]
    assert texts == ["The", "film", ",", "was\u00e9", "\u751f", "\u751f", "cafe\u0301", "!"]


def test_words_of_a_text_in_sentence_pieces():
    """XLM-R's, which knows blanks only: cut as BERT's, where sub-words allow it."""
    pieces = ["Merkel", ",", "\u2581Paris", ".", "\u6211", "\u5728", "\u5317\u4eac", "\u2581", "?!"]
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((p, -2.0) for p in pieces)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    text = " Merkel,  Paris. \u6211\u5728\u5317\u4eac?! "
    (words,) = split(tokenizer, [text])
    shown = [text[a:b] for a, b in zip(words.begin, words.end, strict=True)]
    assert shown == ["Merkel", ",", "Paris", ".", "\u6211", "\u5728", "\u5317\u4eac", "?!"]
    ids = [t for ids in words.ids for t in ids]
    blank = tokenizer.convert_tokens_to_ids("\u2581")
    assert [t for t in ids if t != blank] == [t for t in tokenizer(text)["input_ids"] if t != blank]


def test_blank_words_of_a_byte_level_tokenizer(tmp_path):
    from test_augment import byte_level

    for last in ("", " ", "plot ", "\u3000"):
        (words,) = split(byte_level(tmp_path), [["the", "film", last]])
        assert len(words) == 3 and words.begin == [0, 4, 9] and words.end[2] == 9 + len(last)
        assert all(words.ids)


def test_characters_as_words(tokenizer):
    text = "  DotA \u751f\u751f\u200b!"
    words, listed = split(tokenizer, [text, ["a", "film"]], characters=True)
    shown = [text[a:b] for a, b in zip(words.begin, words.end, strict=True)]
    assert "".join(shown) == "DotA\u751f\u751f\u200b!" and all(len(s) == 1 for s in shown)
    ids = {s: ids for s, ids in zip(shown, words.ids, strict=True)}
    assert ids["D"] == tokenizer("d", add_special_tokens=False)["input_ids"]
    assert ids["\u200b"] == [tokenizer.unk_token_id]
    assert len(listed) == 2 and listed.text == "a film"


def test_texts_and_lists_together(tokenizer):
    rows = ["the film", ["the", "film"], "", ["plot"]]
    a, b, none, c = split(tokenizer, rows)
    assert a.ids == b.ids and len(none) == 0 and len(c) == 1
    assert np.array_equal(a.begin, b.begin)
