"""Windows over contexts: every token of each is in one, characters are exact, answers are found."""

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from bert_ft.data.texts import pack_texts, text_at
from bert_ft.data.windows import _take_marks, cut_question, find_span, make_windows, window_room
from bert_ft.errors import InputError

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
WORDS += ["who", "the", "cat", "##cat", ".", ","]
QUESTIONS = ["who", "who the cat", "the cat the cat the cat who"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return BertTokenizerFast(vocab=str(path), do_lower_case=True)


def whole(tokenizer, text):
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return out["input_ids"], [tuple(o) for o in out["offset_mapping"]]


CONTEXT = st.text("abcz éÉ.,  ß中", min_size=1, max_size=60).filter(lambda t: t.strip())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(QUESTIONS), CONTEXT), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(13, 40),
)
def test_windows_cover_each_context(tokenizer, rows, stride, max_length):
    questions, contexts = zip(*rows, strict=True)
    w = make_windows(tokenizer, questions, contexts, max_length, 5, stride)
    assert w.row.tolist() == sorted(w.row.tolist()) and set(w.row) == set(range(len(rows)))
    for row, (question, context) in enumerate(rows):
        ids, places = whole(tokenizer, context)
        asked = whole(tokenizer, cut_question(tokenizer, question, 5))[0]
        assert len(asked) <= 5
        seen, mine = [], np.flatnonzero(w.row == row)
        for i in mine:
            at = slice(w.offsets[i], w.offsets[i + 1])
            tokens, (first, last) = w.tokens[at].tolist(), w.context[i]
            assert len(tokens) <= max_length and last == len(tokens) - 1
            assert tokens[:first] == [2, *asked, 3] and tokens[-1] == 3
            assert w.types[at].tolist() == [0] * first + [1] * (last - first + 1)
            assert not w.characters[at][:first].any() and not w.characters[at][last:].any()
            shared = stride if len(seen) else 0
            begin = len(seen) - shared
            assert tokens[first:last] == ids[begin : begin + last - first]
            inside = w.characters[at][first:last]
            assert [tuple(c) for c in inside.tolist()] == places[begin : begin + last - first]
            assert last - first > shared  # every window adds something
            seen = seen[:begin] + tokens[first:last]
        assert seen == ids
        assert w.cut[mine].all() == w.cut[mine].any() == (len(whole(tokenizer, question)[0]) > 5)


@settings(max_examples=60, deadline=None)
@given(CONTEXT, st.data())
def test_answers_are_found_in_each_window_that_holds_them(tokenizer, context, data):
    ids, places = whole(tokenizer, context)
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    w = make_windows(tokenizer, ["who"], [context], 12, 5, 3)
    found = find_span(w, np.asarray([start]), np.asarray([end]))
    wanted = [i for i, (a, b) in enumerate(places) if b > start and a < end]
    begin = 0
    for i, (first, last) in enumerate(w.context):
        held = bool(wanted) and begin <= wanted[0] and wanted[-1] < begin + last - first
        a, b = found[i]
        if held and context[start:end].strip() == context[start:end]:
            assert (a - first + begin, b - first + begin) == (wanted[0], wanted[-1])
        elif not held:
            assert (a, b) == (0, 0)
        begin += last - first - 3


@pytest.mark.parametrize("rest", ["", " the cat" * 9])
@pytest.mark.parametrize("answer", ["cafe\u0301", "x\ufe0f", "the\u0301\u0302", "\u0301e"])
def test_an_answer_has_the_marks_that_the_normaliser_drops(tokenizer, answer, rest):
    context = f"the {answer} today{rest}"
    w = make_windows(tokenizer, ["who"], [context], 13, 5, 3)
    start, end = 4, 4 + len(answer)
    found = find_span(w, np.asarray([start]), np.asarray([end]))
    first, last = found[0] + w.offsets[0]
    a, b = w.characters[first, 0], w.characters[last, 1]
    assert found[0].all() and context[a:b] == answer.lstrip("\u0301")
    # A token of its own keeps a mark: a cased vocabulary knows it.
    places = [np.asarray([[0, 1], [1, 2]], np.int32)]
    _take_marks("e\u0301\u0302", places)
    assert places[0].tolist() == [[0, 1], [1, 3]]


def test_no_answer_points_to_the_first_token(tokenizer):
    w = make_windows(tokenizer, ["who"], ["the cat"], 12, 5, 3)
    assert find_span(w, np.asarray([-1]), np.asarray([-1])).tolist() == [[0, 0]]
    assert find_span(w, np.asarray([4]), np.asarray([7])).tolist() == [[4, 4]]


def test_windows_that_would_not_advance(tokenizer):
    assert window_room(tokenizer, 12, 5, 3) == 4
    left = copy.deepcopy(tokenizer)
    left.truncation_side = "left"
    with pytest.raises(InputError, match="truncation_side is 'left'; accepted: 'right'"):
        window_room(left, 12, 5, 3)
    for stride in (4, 5, 100):
        with pytest.raises(InputError, match=f"task.stride is {stride}; accepted: less than 4"):
            make_windows(tokenizer, ["who"], ["the cat"], 12, 5, stride)


def test_a_question_is_cut_even_within_a_word(tokenizer):
    for question in ("xyzxyzxyz", "catcatcat", "who " * 9, "xyz cat xyz"):
        cut = cut_question(tokenizer, question, 4)
        assert question.startswith(cut) and 0 < len(whole(tokenizer, cut)[0]) <= 4


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_come_back(texts):
    packed, offsets = pack_texts(texts)
    assert [text_at(packed, offsets, i) for i in range(len(texts))] == texts


def test_real_answers_come_back_through_their_tokens():
    shared = Path(__file__).parents[2] / "shared/data"
    if not (shared / "squad11_dev").is_dir() or not (shared / "vocabs").is_dir():
        pytest.skip(f"{shared}/squad11_dev and vocabs are not there")
    from bert_ft.data.sources import open_source
    from bert_ft.data.tokenizer import load_tokenizer

    vocab = next(p for p in sorted((shared / "vocabs").rglob("*uncased*")) if p.is_file())
    uri = f"files:{shared}/squad11_dev/derived_dev-v1.1.json?format=squad&where=title==Force"
    columns = open_source(uri, cache_dir=Path("unused")).read().columns
    golds = [a[0] for a in columns["answers"]]
    start = np.asarray([g["start"] for g in golds])
    end = start + [len(g["text"]) for g in golds]
    w = make_windows(load_tokenizer(vocab), columns["question"], columns["context"], 160, 40, 60)
    found, held = find_span(w, start, end), set()
    for i in np.flatnonzero(found[:, 0]):
        row = int(w.row[i])
        a = w.characters[w.offsets[i] + found[i, 0], 0]
        b = w.characters[w.offsets[i] + found[i, 1], 1]
        held.add(row)
        assert (
            golds[row]["text"] in columns["context"][row][a:b]
            and b - a < end[row] - start[row] + 20
        )
    assert len(held) == len(golds) > 100 and len(w.row) > len(golds)
