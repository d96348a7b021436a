"""RoBERTa's byte-level BPE through the tasks: pairs, words with their blanks, characters."""

import json

import jax
import numpy as np
import pytest
from conftest import GOOD, WORDS, reviews, write_jsonl
from small import config, init
from tokenizers import AddedToken, ByteLevelBPETokenizer

from bert_ft.data.rows import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.data.windows import find_span, make_windows
from bert_ft.data.words import split
from bert_ft.models import hf
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.tasks.classification import Classification
from bert_ft.tasks.masked import MaskedWords
from bert_ft.tasks.tagging import Tagging

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TEXT = "the film, was\u00e9 unfresh \u751f\u751f don't\u2014 stop!"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "add_prefix_space"])
def roberta(request, tmp_path_factory):
    """(tokenizer, directory) of a tiny RoBERTa whose tokenizer was trained on the reviews."""
    from functools import partial

    from transformers import RobertaTokenizerFast

    path = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [r["text"] for r in reviews(200, seed=9)], vocab_size=500, special_tokens=SPECIAL
    )
    bpe.save_model(str(path))
    mask = AddedToken("<mask>", lstrip=True)  # as RoBERTa has it: the blank before is a part of it
    RobertaTokenizerFast.from_pretrained(
        path, add_prefix_space=request.param, mask_token=mask
    ).save_pretrained(path)
    sizes = EncoderConfig(
        vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5,
        family="roberta", position_offset=2, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    params = jax.device_get(init(Model(sizes, partial(SequenceHead, 2))))
    hf.save(path, sizes, params, "sequence")
    return load_tokenizer(path), path


def rows_of(**columns):
    count = len(next(iter(columns.values())))
    return Rows({k: list(v) for k, v in columns.items()}, list(range(1, count + 1)), "set.csv")


def test_pairs(roberta):
    tokenizer, _ = roberta
    task = Classification(config(data__text="a", data__text_pair="b"))
    rows = rows_of(a=["the film is great", "dull"], b=["its acting", "x"], label=["0", "1"])
    data = task.encode(rows, tokenizer, 30, task.fit(rows))
    tokens = tokenizer.convert_ids_to_tokens(data.tokens[: data.offsets[1]])
    middle = tokens.index("</s>")
    assert tokens[0] == "<s>" and tokens[middle : middle + 2] == ["</s>"] * 2
    assert tokens[-1] == "</s>" and tokens.count("</s>") == 3
    assert not data.types.any()
    said = tokenizer(rows.columns["a"], rows.columns["b"])["input_ids"]
    assert np.split(data.tokens, data.offsets[1:-1])[0].tolist() == said[0]


def test_words_of_texts_and_of_lists(roberta):
    tokenizer, _ = roberta
    words = ["The", "unfresh", "plot,", "\u751f", "a b", "was"]
    given, text, odd = split(tokenizer, [words, " ".join(words), TEXT])
    assert [given.text[a:b] for a, b in zip(given.begin, given.end, strict=True)] == words
    joined = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert [t for ids in text.ids for t in ids] == joined
    if not tokenizer.add_prefix_space:  # a blank comes before each word but the first
        assert [t for ids in given.ids for t in ids] == joined
    spelt = [tokenizer.decode(ids).strip() for ids in given.ids]
    assert spelt == words
    shown = [odd.text[a:b] for a, b in zip(odd.begin, odd.end, strict=True)]
    assert "".join(shown) == TEXT.replace(" ", "") and not any(" " in s for s in shown)
    assert "film" in shown and "unfresh" in shown


def test_blanks_are_no_words(roberta):
    tokenizer, _ = roberta
    text = " the  film\n\n\nwas\u00a0 \u751f\u6d3b \n"
    words, none = split(tokenizer, [text, " \n\n  "])
    shown = [text[a:b] for a, b in zip(words.begin, words.end, strict=True)]
    assert shown == ["the", "film", "was", "\u751f", "\u6d3b"] and len(none) == 0


def test_tags_of_words_and_of_spans(roberta):
    tokenizer, _ = roberta
    task = Tagging(config(task__name="tagging", task__stride=2, data__label="spans"))
    text = rows_of(text=["the film, was unfresh!"], spans=[[(4, 8, "A"), (14, 21, "B")]])
    listed = rows_of(
        text=[["the", "film", ",", "was", "unfresh", "!"]],
        spans=[["O", "B-A", "O", "O", "B-B", "O"]],
    )
    fitted = task.fit(text)
    for rows in (text, listed):
        data = task.encode(rows, tokenizer, 40, fitted)
        words = data.fields["words"][0]
        labels = [fitted["labels"][t] for t in data.fields["tag"][0]]
        assert labels == ["O", "B-A", "O", "O", "B-B", "O"]
        for word, column in zip(listed.columns["text"][0], words, strict=True):
            token = tokenizer.decode([int(data.tokens[column])]).strip()
            assert word.startswith(token)  # the blank before a word can be its first sub-word
        tag = data.fields["tag"]
        predicted = {"tag": tag, "probability": np.ones(tag.shape)}
        (answer,) = task.answers(predicted, data, rows)
        assert [e["text"] for e in answer["prediction"]] == ["film", "unfresh"]
        assert answer["label"] == [
            {k: v for k, v in e.items() if k != "probability"} for e in answer["prediction"]
        ]


def test_answers_by_character(roberta):
    tokenizer, _ = roberta
    contexts = [TEXT + " the music was superb." + " and so on" * 12, " the plot"]
    w = make_windows(tokenizer, ["what was superb?", "what?"], contexts, 40, 12, 8)
    for answer in ("the music", "unfresh", "\u751f\u751f", "film"):
        start = contexts[0].index(answer)
        ends = np.asarray([start + len(answer), -1]), np.asarray([start, -1])
        found = find_span(w, ends[1], ends[0])
        windows = np.flatnonzero(found[:, 1])
        assert len(windows)
        for k in windows:
            first, last = found[k] + w.offsets[k]
            a, b = w.characters[first, 0], w.characters[last, 1]
            assert contexts[0][a:b] == answer
    at = int(w.offsets[0])
    tokens = tokenizer.convert_ids_to_tokens(w.tokens[at : at + w.context[0, 0]])
    assert tokens[0] == "<s>" and tokens[-2:] == ["</s>", "</s>"] and not w.types.any()


def test_masked_words_begin_with_their_blank(roberta):
    tokenizer, _ = roberta
    task = MaskedWords(config(task__name="masked"))
    data = task.encode(rows_of(text=["the film was unfresh, <mask>!"]), tokenizer, 40, {})
    words: dict[int, str] = {}
    for token, word in zip(data.tokens, data.token_fields["word"], strict=True):
        if word:
            words[int(word)] = words.get(int(word), "") + tokenizer.decode([int(token)])
    assert [w.strip() for w in words.values()] == ["the", "film", "was", "unfresh", ",", "!"]
    begin, end = (int(data.aside[f"blank_{side}"][0, 0]) for side in ("begin", "end"))
    assert "the film was unfresh, <mask>!"[begin:end] == "<mask>"


def test_a_run(roberta, run_here, tmp_path):
    rows = write_jsonl(tmp_path / "a.jsonl", reviews(40, seed=1))
    flags = [f"--config.data.{s}=files:{rows}" for s in ("train", "dev", "test")]
    flags += [f"--config.model.pretrained={roberta[1]}", "--config.train.steps=2"]
    done = run_here(tmp_path / "run", *flags, "--config.data.row_counts=1").ok()
    assert done.result["eval"]["test/accuracy"]["n_examples"] == 40
    assert "new: -" in done.err
    kept = json.loads((tmp_path / "run/model/config.json").read_text())
    assert kept["model_type"] == "roberta" and set(GOOD) <= set(WORDS)
