"""Encoding: the tokenizer's own ids, truncation counted, and a cache that knows what made it."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import write_bert
from hypothesis import given
from hypothesis import strategies as st
from small import config
from transformers import BertTokenizerFast

from bert_ft.data import encode as encoding
from bert_ft.data.encode import encode, tokenize
from bert_ft.data.sources import Rows
from bert_ft.data.tokenizer import load_tokenizer, tokenizer_hash
from bert_ft.errors import InputError
from bert_ft.tasks.classification import Classification

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the film was good bad ##ly ##ness a b c d".split()  # noqa: SIM905
TEXTS = ["the film was good", "bad", "the film was badly badness a b c d", "a b c d"]


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "uncased" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(WORDS) + "\n")
    return path


@pytest.fixture
def tokenizer(vocab):
    return load_tokenizer(vocab)


@dataclass
class Fixed:
    """A source of rows that counts how often it is read."""

    columns: dict
    mark: str = "one"
    skipped: tuple = ()
    reads: list = field(default_factory=list)
    uri: str = "files:fixed.csv"

    def fingerprint(self):
        return self.mark

    def read(self):
        self.reads.append(1)
        count = len(next(iter(self.columns.values())))
        return Rows(self.columns, list(range(2, count + 2)), "fixed.csv", self.skipped)


def source(**overrides):
    return Fixed({"text": TEXTS, "label": ["pos", "neg", "neg", "pos"]}, **overrides)


def quiet(_):
    pass


def made(src, tokenizer, cache, max_length=8, fitted=None, task=None, say=quiet):
    task = task or Classification(config())
    return encode(src, task, tokenizer, max_length, cache, fitted, say)


def test_ids_are_those_of_the_tokenizer_one_text_at_a_time(tokenizer):
    tokens, types, offsets, truncated = tokenize(tokenizer, TEXTS, None, 16)
    for i, text in enumerate(TEXTS):
        span = slice(offsets[i], offsets[i + 1])
        np.testing.assert_array_equal(tokens[span], tokenizer(text)["input_ids"])
        assert not types[span].any()
    assert not truncated.any() and offsets[-1] == len(tokens)
    assert (tokens.dtype, types.dtype, offsets.dtype) == (np.int32, np.int8, np.int64)


def test_truncation_keeps_the_special_tokens_and_is_told(tokenizer):
    tokens, _, offsets, truncated = tokenize(tokenizer, TEXTS, None, 6)
    lengths = np.diff(offsets)
    # 4 words fit exactly beside [CLS] and [SEP]; 10 pieces do not.
    np.testing.assert_array_equal(truncated, [False, False, True, False])
    np.testing.assert_array_equal(lengths, [6, 3, 6, 6])
    cut = tokens[offsets[2] : offsets[3]]
    assert [WORDS[t] for t in cut] == ["[CLS]", "the", "film", "was", "bad", "[SEP]"]


def test_pairs_have_two_types_and_the_longer_is_cut(tokenizer):
    tokens, types, offsets, truncated = tokenize(
        tokenizer, ["a b c d", "a"], ["the", "the film"], 6
    )
    first = slice(offsets[0], offsets[1])
    assert [WORDS[t] for t in tokens[first]] == ["[CLS]", "a", "b", "[SEP]", "the", "[SEP]"]
    np.testing.assert_array_equal(types[first], [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(truncated, [True, False])


def test_more_texts_than_a_block(tokenizer):
    texts = [TEXTS[i % 4] for i in range(5000)]
    tokens, _, offsets, _ = tokenize(tokenizer, texts, None, 16)
    assert len(offsets) == 5001
    one = tokenize(tokenizer, TEXTS, None, 16)[0]
    np.testing.assert_array_equal(tokens[: len(one)], one)
    np.testing.assert_array_equal(tokens, np.tile(one, 1250))


SAID = st.lists(st.lists(st.sampled_from([7, 3, 0]), max_size=3), min_size=1)


@given(SAID, SAID, st.sampled_from([1, 2]))
def test_examples_of_another_set_are_counted(one, other, pieces):
    def encoded(texts):
        sequences = [part for text in texts for part in [[2, *text, 4], [2, *text]][:pieces]]
        flat = np.concatenate(sequences).astype(np.int32)
        offsets = np.cumsum([0, *map(len, sequences)])
        n = len(texts)
        return encoding.Encoded(
            flat, flat, offsets, np.arange(n), np.zeros(n, bool), {}, {}, pieces, {}, n
        )

    assert encoding.shared(encoded(one), encoded(other)) == sum(text in other for text in one)


def test_no_texts_at_all(tokenizer):
    tokens, types, offsets, truncated = tokenize(tokenizer, [], None, 16)
    assert len(tokens) == len(types) == len(truncated) == 0 and offsets.tolist() == [0]


def test_the_hash_of_a_tokenizer_survives_its_use(tokenizer, vocab):
    """Each call sets truncation and padding in the tokenizer; a hash that held them would give a
    second start, which tokenizes nothing, another fingerprint, and refuse its checkpoint."""
    before = tokenizer_hash(tokenizer)
    tokenize(tokenizer, TEXTS, None, 6)
    tokenizer(TEXTS, padding="max_length", max_length=9, truncation=True)
    again = tokenizer_hash.__wrapped__(tokenizer)  # not what is kept of the first reading
    assert again == before == tokenizer_hash(load_tokenizer(vocab))
    other = vocab.parent / "other.txt"
    other.write_text("\n".join([*WORDS, "e"]) + "\n")
    assert tokenizer_hash(load_tokenizer(other)) != before


def test_a_second_start_has_the_same_fingerprints(tokenizer, vocab, tmp_path):
    def start(tokenizer):
        train = made(source(), tokenizer, tmp_path / "cache")
        dev = made(source(mark="dev"), tokenizer, tmp_path / "cache", fitted=train.fitted)
        return train.fingerprint, dev.fingerprint

    assert start(tokenizer) == start(load_tokenizer(vocab))


def test_the_second_time_nothing_is_read_and_arrays_are_mapped(tokenizer, tmp_path):
    first, src = made(source(), tokenizer, tmp_path), source()
    again = made(src, tokenizer, tmp_path)
    assert src.reads == []
    for name in ("tokens", "types", "offsets", "row", "truncated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert isinstance(getattr(again, name), np.memmap)
        assert getattr(first, name).dtype == getattr(again, name).dtype
    np.testing.assert_array_equal(again.fields["label"], [1, 0, 0, 1])
    assert dict(again.fitted) == {"labels": ["neg", "pos"], "names": ["neg", "pos"]}
    assert again.source_rows == len(again) == 4
    np.testing.assert_array_equal(again.lengths[:, 0], np.diff(again.offsets))


def test_whatever_makes_the_arrays_is_in_the_key(tokenizer, vocab, tmp_path):
    other = vocab.parent / "other.txt"
    other.write_text("\n".join([*WORDS, "e"]) + "\n")
    numbered = Fixed({"text": TEXTS, "label": [1, 0, 0, 1]}, mark="numbers")
    named = Classification(config(task__label_names="bad,good"))
    variants = [
        made(source(), tokenizer, tmp_path),
        made(source(mark="two"), tokenizer, tmp_path),
        made(source(), tokenizer, tmp_path, max_length=9),
        made(source(), load_tokenizer(other), tmp_path),
        made(numbered, tokenizer, tmp_path),
        made(numbered, tokenizer, tmp_path, task=named),
        made(source(), tokenizer, tmp_path, fitted={"labels": ["pos", "neg"], "names": ["p", "n"]}),
    ]
    assert len({v.fingerprint for v in variants}) == len(variants)
    assert len(list((tmp_path / "encoded").iterdir())) == len(variants)


def test_the_format_is_in_the_key(tokenizer, tmp_path, monkeypatch):
    first = made(source(), tokenizer, tmp_path)
    monkeypatch.setattr(encoding, "FORMAT", encoding.FORMAT + 1)
    assert made(source(), tokenizer, tmp_path).fingerprint != first.fingerprint


def test_nothing_half_written_is_left_or_used(tokenizer, tmp_path, monkeypatch):
    """A full disk in the middle of an entry: no entry, and the next start makes it."""
    save = np.save

    def full(path, array):
        if Path(path).name == "row.npy":
            raise OSError(28, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"data\.cache_dir: can't write .*No space left on device"):
        made(source(), tokenizer, tmp_path)
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "encoded").iterdir() if not p.name.startswith(".")]
    assert len(made(source(), tokenizer, tmp_path)) == 4


def test_another_process_may_have_been_first(tokenizer, tmp_path, monkeypatch):
    """Both wrote the entry; one rename wins and the other's scratch goes."""
    entry = made(source(), tokenizer, tmp_path)
    kept = next((tmp_path / "encoded").iterdir())
    moved = tmp_path / "moved"
    kept.rename(moved)
    store = encoding._store

    def late(what, path):
        shutil.copytree(moved, path)
        store(what, path)

    monkeypatch.setattr(encoding, "_store", late)
    again = made(source(), tokenizer, tmp_path)
    np.testing.assert_array_equal(again.tokens, entry.tokens)
    assert [p.name for p in (tmp_path / "encoded").iterdir()] == [kept.name]


@pytest.mark.parametrize("lost", ["about.json", "row.npy", "field.label.npy", "sizes.json", ""])
def test_an_entry_that_has_lost_a_file_is_made_again(tokenizer, tmp_path, lost):
    whole = made(source(), tokenizer, tmp_path)
    tokens, labels = whole.tokens.copy(), whole.fields["label"].copy()
    [entry] = (tmp_path / "encoded").iterdir()
    if lost:
        (entry / lost).unlink()
    else:
        (entry / "tokens.npy").write_bytes(b"")
    again = made(source(), tokenizer, tmp_path)
    np.testing.assert_array_equal(again.tokens, tokens)
    np.testing.assert_array_equal(again.fields["label"], labels)


def test_skipped_rows_are_said_and_kept(tokenizer, tmp_path):
    said = []
    skipped = ("fixed.csv:9: 3 fields, not 2",)
    out = made(source(skipped=skipped), tokenizer, tmp_path, say=said.append)
    assert "skipped 1 rows" in said[0] and "fixed.csv:9: 3 fields, not 2" in said[1]
    first, said = [*said], []
    again = made(source(), tokenizer, tmp_path, say=said.append)
    assert again.skipped == ["fixed.csv:9: 3 fields, not 2"] and said == first
    assert tuple(out.skipped) == skipped


def test_no_rows_are_refused(tokenizer, tmp_path):
    empty = Fixed({"text": [], "label": []})
    with pytest.raises(InputError, match=r"files:fixed\.csv: no rows"):
        made(empty, tokenizer, tmp_path)


def test_a_cache_that_can_not_be_written_is_the_users_fault(tokenizer, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(InputError, match=r"data\.cache_dir"):
        made(source(), tokenizer, blocked)


def test_a_full_disk_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    save = np.save

    def full(path, array):
        save(path, array)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"data\.cache_dir: can't write .*No space left"):
        made(source(), tokenizer, tmp_path / "cache")
    assert [*(tmp_path / "cache" / "encoded").iterdir()] == []


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    """transformers would make an empty one, to which every word is unknown."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match=r"no tokenizer there; expected: tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(InputError, match="no tokenizer there that can be loaded"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_a_word_for_the_unknown_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(w for w in WORDS if w != "[UNK]") + "\n")
    with pytest.raises(InputError, match=r"its vocabulary has no \[UNK\]"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_a_saved_tokenizer_comes_back(tokenizer, tmp_path):
    assert isinstance(tokenizer, BertTokenizerFast)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_hash(load_tokenizer(tmp_path / "saved")) == tokenizer_hash(tokenizer)


@pytest.mark.parametrize(
    "said", [{}, {"do_lower_case": False}, {"strip_accents": True}, {"never_split": ["[X]"]}]
)
@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer"])
def test_the_tokenizer_is_the_one_that_auto_chooses(name, said, tmp_path):
    from transformers import AutoTokenizer

    path = write_bert(tmp_path / "model")
    own = path / "tokenizer_config.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), **said, "tokenizer_class": name}))
    ours, autos = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    assert type(ours) is type(autos) and tokenizer_hash(ours) == tokenizer_hash(autos)
    text = "Déjà vu: The FILM, [X] its acting"
    assert ours(text)["input_ids"] == autos(text)["input_ids"]


def test_berts_tokenizer_comes_without_pytorch(tmp_path):
    pytest.importorskip("torch")
    path = write_bert(tmp_path / "model")
    code = (
        "import sys, pathlib; from bert_ft.data.tokenizer import load_tokenizer; "
        "load_tokenizer(pathlib.Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
