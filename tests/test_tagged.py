"""Rows -> gold tags: what is accepted, and the file and line of what is not."""

from pathlib import Path

import pytest
from conftest import write_bert, write_jsonl

from bert_ft.data.sources import open_source
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.data.words import split
from bert_ft.errors import InputError
from bert_ft.tasks import tagged


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_bert(tmp_path_factory.mktemp("bert")))


def rows_of(tmp_path, *rows):
    return open_source(
        f"files:{write_jsonl(tmp_path / 'a.jsonl', rows)}", cache_dir=tmp_path
    ).read()


def read(rows, tokenizer, fitted=None, widen=False, scheme="auto"):
    fitted = fitted or tagged.fit(rows, "text", "label", scheme)
    given = tagged.inputs(rows, "text")
    words = split(tokenizer, given)
    return fitted, tagged.tags(rows, "label", given, words, fitted, widen)


def text(value, *spans):
    return {"text": value, "label": [{"start": a, "end": b, "label": t} for a, b, t in spans]}


def test_tags_and_spans(tmp_path, tokenizer):
    rows = rows_of(
        tmp_path,
        {"text": ["the", "new", "film"], "label": ["O", "B-A", "I-A"]},
        text("the film, was dull.", (0, 8, "A"), (10, 13, "B")),
        {"text": [], "label": []},
        text("no entity"),
    )
    fitted, tags = read(rows, tokenizer)
    assert fitted["labels"] == ["O", "B-A", "B-B", "I-A", "I-B"] and fitted["scheme"] == "IOB2"
    assert tags == [
        ["O", "B-A", "I-A"],
        ["B-A", "I-A", "O", "B-B", "O", "O"],
        [],
        ["O", "O"],
    ]


def test_iob1_is_read_as_iob2(tmp_path, tokenizer):
    rows = rows_of(tmp_path, {"text": ["a", "b", "c"], "label": ["I-A", "B-A", "O"]})
    fitted, tags = read(rows, tokenizer)
    assert fitted["read_as"] == "IOB1" and fitted["scheme"] == "IOB2"
    assert tags == [["B-A", "B-A", "O"]]


def test_tags_that_differ_by_blanks_only(tmp_path, tokenizer):
    good = rows_of(tmp_path, {"text": ["Ada", "came"], "label": ["B-PER", "O"]}, text("a b"))
    odd = {"text": ["Bob", "ran"], "label": ["B-PER ", "O"]}
    said = "'label'(, with training's)?: 'B-PER' and 'B-PER ' differ by blanks only; accepted: one"
    with pytest.raises(InputError, match=rf"a.jsonl: column {said} spelling of each tag"):
        rows = rows_of(tmp_path, {"text": ["Ada"], "label": ["B-PER"]}, odd)
        tagged.fit(rows, "text", "label", "auto")
    fitted, _ = read(good, tokenizer)
    for row in (odd, text("Ada came", (0, 3, "PER "))):
        with pytest.raises(InputError, match=said):
            read(rows_of(tmp_path, row), tokenizer, fitted)


def test_a_tag_of_conll_columns_is_named_by_its_own_line(tmp_path, tokenizer):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- O\n\na B-A\nb I-A\n\nc O\nd B-A\ne I-B\n")
    rows = open_source(f"files:{path}", cache_dir=tmp_path).read()
    with pytest.raises(InputError, match=r"a\.conll:8: tag 'I-B' follows 'B-A'"):
        tagged.fit(rows, "tokens", "tags", "auto")
    assert rows.take([1]).where_word(0, 2) == f"{path}:8"
    assert str(tagged.unseen(rows, 0, 1, "I-A", ["O"])).startswith(f"{path}:4: tag 'I-A' is not")


def test_a_tag_of_another_scheme_than_was_read(tmp_path, tokenizer):
    """B E S is BIOES as well as BMES: a dev set's first M says which was taken."""
    train = rows_of(tmp_path, {"text": ["a", "b", "c"], "label": ["B-A", "E-A", "S-A"]})
    fitted, _ = read(train, tokenizer)
    dev = rows_of(tmp_path, {"text": ["a", "b", "c"], "label": ["B-A", "M-A", "E-A"]})
    said = "'M-A' is none of BIOES's.*; BIOES is what the training rows' tags were read as; .*set "
    with pytest.raises(InputError, match=said + r"task\.scheme to BMES"):
        read(dev, tokenizer, fitted)
    fitted, _ = read(train, tokenizer, scheme="BMES")
    assert read(dev, tokenizer, fitted)[1] == [["B-A", "M-A", "E-A"]]


def test_a_span_that_cuts_a_word_can_be_widened(tmp_path, tokenizer):
    rows = rows_of(tmp_path, text("the films", (4, 8, "A")))
    assert read(rows, tokenizer, widen=True)[1] == [["O", "B-A"]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, ["1 tags for 2 words"]),
        ({"text": ["a"], "label": [3]}, ["[3]", "list of tags"]),
        ({"text": ["a"], "label": "O"}, ["'O'", "list of tags"]),
        ({"text": 3, "label": ["O"]}, ["3", "a list of words"]),
        ({"text": ["a", 3], "label": ["O", "O"]}, ["a list of words"]),
        ({"text": ["a"], "label": ["I-A"]}, ["word 1", "'I-A' begins the sentence"]),
        ({"text": "the film", "label": "A"}, ["'A'", "list of spans"]),
        ({"text": "the film", "label": [{"start": 0, "label": "A"}]}, ["list of spans"]),
        (text("the film", (4, 9, "A")), ["span 4-9 (A)", "0-8"]),
        (text("the film", (4, 4, "A")), ["span 4-4 (A)"]),
        (text("the film", (-1, 3, "A")), ["span -1-3 (A)"]),
        (text("the film", (0, 5, "A"), (4, 8, "B")), ["span 4-8 (B)", "overlaps"]),
        (text("the film", (4, 7, "A")), ["span 4-7 (A)", "cuts the word 'film'", "widen"]),
        (text("the  film", (3, 5, "A")), ["span 3-5 (A)", "holds no word"]),
    ],
)
def test_refused_with_file_and_line(tmp_path, tokenizer, row, words):
    good = {"text": ["a", "b", "c"], "label": ["O", "B-A", "I-A"]}
    rows = rows_of(tmp_path, good, text("the film", (0, 3, "A")), row)
    with pytest.raises(InputError) as error:
        read(rows, tokenizer)
    message = str(error.value)
    assert "a.jsonl:3" in message and "\n" not in message
    assert all(w in message for w in words), message


def test_spans_of_characters(tmp_path, tokenizer):
    """Where characters are the words, spans may begin and end anywhere."""
    rows = rows_of(tmp_path, text("the films", (4, 6, "A"), (6, 9, "A")))
    fitted, given = tagged.fit(rows, "text", "label", "auto"), tagged.inputs(rows, "text")
    words = split(tokenizer, given, characters=True)
    tags = tagged.tags(rows, "label", given, words, fitted, False)
    assert tags == [["O", "O", "O", "B-A", "I-A", "B-A", "I-A", "I-A"]]


def test_every_span_of_cluener_can_be_tagged_by_characters(tmp_path):
    shared = Path(__file__).parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip(f"the real data are not at {shared}")
    tokenizer = load_tokenizer(shared / "vocabs" / "bert-base-chinese-vocab.txt")
    for name, count in (("train", 10_747), ("test", 1_343)):
        uri = f"files:{shared}/cluener_zh/{name}.json?format=spans&bad_rows=skip"
        rows = open_source(uri, cache_dir=tmp_path).read()
        assert len(rows) == count  # one of train has a span within another: the file's own fault
        given = tagged.inputs(rows, "text")
        fitted = tagged.fit(rows, "text", "spans", "auto")
        words = split(tokenizer, given, characters=True)
        tags = tagged.tags(rows, "spans", given, words, fitted, False)
        assert sum(t.startswith("B-") for row in tags for t in row) == sum(
            map(len, rows.columns["spans"])
        )


def test_two_spans_on_one_word(tmp_path, tokenizer):
    rows = rows_of(tmp_path, text("the films", (4, 6, "A"), (6, 9, "A")))
    with pytest.raises(InputError, match="shares a word"):
        read(rows, tokenizer, widen=True)


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES"])
def test_a_scheme_that_is_asked_for(tmp_path, tokenizer, scheme):
    rows = rows_of(tmp_path, {"text": ["a", "b"], "label": ["B-A", "E-A"]})
    if scheme == "BIOES":
        assert read(rows, tokenizer, scheme=scheme)[0]["scheme"] == "BIOES"
        return
    with pytest.raises(InputError, match=r"a\.jsonl:1.*'E-A' is none of IOB2's"):
        read(rows, tokenizer, scheme=scheme)


def test_one_tag_only(tmp_path, tokenizer):
    with pytest.raises(InputError, match="'O' only"):
        read(rows_of(tmp_path, {"text": ["a", "b"], "label": ["O", "O"]}), tokenizer)
