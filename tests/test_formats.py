"""Each format: what it reads, what it refuses and in which words, and round trips."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_ft.data import formats
from bert_ft.data.columns import BadRows
from bert_ft.data.sources import open_source
from bert_ft.errors import InputError

SHARED = Path(os.environ.get("BERT_FT_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def read(path, policy="stop", **options):
    bad = BadRows(policy)
    return formats.read(path, path.name, options, bad), bad.skipped


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path, **options):
    """The one-line message with which reading is refused."""
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What each format reads.


def test_csv_lines_count_newlines_inside_quotes(tmp_path):
    path = written(tmp_path, "a.csv", 'text,label\r\n"two\r\nlines, ""quoted""",1\r\n\r\nx,0\r\n')
    table, _ = read(path)
    assert table.columns == {"text": ['two\r\nlines, "quoted"', "x"], "label": ["1", "0"]}
    assert table.lines == [2, 5]


def test_headerless_tsv_by_position_and_byte_order_mark(tmp_path):
    path = written(tmp_path, "a.tsv", b"\xef\xbb\xbf1\tone\n2\ttwo")
    assert read(path, columns="id,text")[0].columns == {"id": ["1", "2"], "text": ["one", "two"]}
    assert list(read(path, header="no")[0].columns) == ["column_0", "column_1"]
    renamed, _ = read(path, header="yes", columns="id,text")
    assert renamed.columns == {"id": ["2"], "text": ["two"]} and renamed.lines == [2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16"])
@pytest.mark.parametrize("bad", [b"", b"\xff,1\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_value(tmp_path, encoding, bad):
    start = b"" if encoding in ("utf-8-sig", "utf-16") else "\ufeff".encode(encoding)
    content = start + '"1",a\n0,b\n'.encode(encoding)
    path = written(tmp_path, "a.csv", content + bad * encoding.startswith("utf-8"))
    table, _ = read(path, "skip", encoding=encoding, columns="label,text")
    assert table.columns == {"label": ["1", "0"], "text": ["a", "b"]}


def test_quoting_none_keeps_quotes(tmp_path):
    path = written(tmp_path, "a.tsv", 'a\tb\n" open\tx"y"\n"both"\t\n')
    table, _ = read(path, quoting="none")
    assert table.columns == {"a": ['" open', '"both"'], "b": ['x"y"', ""]}


def test_blank_text_is_a_row(tmp_path):
    table, _ = read(written(tmp_path, "a.csv", 'text\n" "\n""\n'))
    assert table.columns["text"] == [" ", ""]


def test_jsonl_keeps_types_and_fills_absent_keys(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"a": 1, "b": [true]}\n\n{"a": "\\u2028x"}\n')
    table, _ = read(path)
    assert table.columns == {"a": [1, "\u2028x"], "b": [[True], None]}
    assert table.lines == [1, 3]


def test_conll(tmp_path):
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\n. . O\n"
    table, _ = read(written(tmp_path, "a.conll", text))
    assert table.columns == {
        "tokens": [["EU", "rejects"], ["."]],
        "tags": [["B-ORG", "O"], ["O"]],
    }
    assert table.lines == [3, 7]
    other, _ = read(tmp_path / "a.conll", tag_column="1", token_column="0")
    assert other.columns["tags"][0] == ["NNP", "VBZ"]


def test_conll_tabs_may_hold_blanks(tmp_path):
    table, _ = read(written(tmp_path, "a.conll", "New York\tB-LOC\n\u00a0\tO\n"))
    assert table.columns["tokens"] == [["New York", "\u00a0"]]


def test_conll_comments(tmp_path):
    text = "# id 1\n# text = a b\na X O\nb X B-Q\n\n# id 2\n# X O\n# Y O\n\n# end\n\nc X O\n# X O\n"
    table, _ = read(written(tmp_path, "a.conll", text))
    assert table.columns["tokens"] == [["a", "b"], ["#", "#"], ["c", "#"]]
    assert table.columns["tags"][0] == ["O", "B-Q"] and table.lines == [3, 7, 12]
    assert "a.conll:2: '# b c' has 3 columns, not 2" in refusal(
        written(tmp_path, "a.conll", "a O\n# b c\n")
    )
    table, _ = read(written(tmp_path, "a.conll", "# O\na O\n"))
    assert table.columns["tokens"] == [["#", "a"]]
    # A tag of such tokens alone, as of a part of speech, is known by those within a sentence.
    text = "# # B\n3 CD I\n\nfor IN O\n# # B\n2 CD I\n\n# id B\nb IN O\n"
    table, _ = read(written(tmp_path, "a.conll", text), tag_column="1")
    assert table.columns["tokens"] == [["#", "3"], ["for", "#", "2"], ["b"]]


def test_conll_without_tags(tmp_path):
    table, _ = read(written(tmp_path, "a.conll", "# new\nAda\ncame\n\n#\n"))
    assert table.columns == {"tokens": [["Ada", "came"], ["#"]]} and table.lines == [2, 5]
    rows = open_source(f"files:{tmp_path}/a.conll", cache_dir=tmp_path).read()
    with pytest.raises(InputError, match="no column 'tags'; there are: tokens"):
        rows.column("tags")


def test_parallel(tmp_path):
    for name, text in {"seq.in": "a b\nc\n", "seq.out": "O B-x\nO\n", "label": "i\nj#k\n"}.items():
        written(tmp_path, name, text)
    table, _ = read(tmp_path)
    assert table.columns == {
        "tokens": [["a", "b"], ["c"]],
        "tags": [["O", "B-x"], ["O"]],
        "label": ["i", "j#k"],
    }


def test_spans_of_both_layouts(tmp_path):
    cluener = {"text": "叶老桂在浙商银行", "label": {"name": {"叶老桂": [[0, 2]]}}}
    generic = {"id": 7, "text": "ab cd", "spans": [{"start": 3, "end": 5, "label": "X"}]}
    path = written(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in (cluener, generic)))
    table, _ = read(path, format="spans")
    assert table.columns["spans"] == [[(0, 3, "name")], [(3, 5, "X")]]
    assert table.columns["id"] == [None, 7]


def squad(*answers, **question):
    question = {"id": "q1", "question": "who?", "answers": list(answers), **question}
    paragraph = {"context": "Ada wrote it.", "qas": [question]}
    return json.dumps({"version": "2", "data": [{"title": "T", "paragraphs": [paragraph]}]})


def test_squad(tmp_path):
    path = written(tmp_path, "a.json", squad({"text": "Ada", "answer_start": 0}))
    table, _ = read(path, format="squad")
    assert table.columns == {
        "id": ["q1"],
        "title": ["T"],
        "question": ["who?"],
        "context": ["Ada wrote it."],
        "answers": [[{"text": "Ada", "start": 0}]],
        "is_impossible": [False],
    }
    path = written(tmp_path, "b.json", squad(is_impossible=True))
    table, _ = read(path, format="squad")
    assert table.columns["answers"] == [[]] and table.columns["is_impossible"] == [True]


def test_squad_answers_that_are_not_told_are_none(tmp_path):
    told = squad({"text": "Ada", "answer_start": 0})
    whole = json.loads(told)
    asked = whole["data"][0]["paragraphs"][0]["qas"]
    asked += [{"id": "q2", "question": "x"}, {"id": "q3", "question": "y", "answers": []}]
    asked += [{"id": "q4", "question": "z", "answers": [], "is_impossible": False}]
    table, _ = read(written(tmp_path, "a.json", json.dumps(whole)), format="squad")
    assert [a and len(a) for a in table.columns["answers"]] == [1, None, [], None]
    for one in asked:
        one.pop("answers", None)
    table, _ = read(written(tmp_path, "b.json", json.dumps(whole)), format="squad")
    assert "answers" not in table.columns and len(table) == 4


def test_squad_rows_have_the_lines_of_their_ids(tmp_path):
    """One bad question is one bad row, and the others are named by their lines."""
    whole = json.loads(squad(id=7))
    asked = whole["data"][0]["paragraphs"][0]["qas"]
    asked += [{"id": 'a"b', "question": "x"}, {"question": "y"}, {"id": "c", "question": None}]
    asked += ["z", {"id": 'a"b', "question": "x", "id ": "c"}]
    text = json.dumps(whole, indent=1)
    table, skipped = read(written(tmp_path, "a.json", text), "skip", format="squad")
    lines = [i for i, line in enumerate(text.split("\n"), 1) if line.lstrip().startswith('"id":')]
    assert table.columns["id"] == [7, 'a"b', 'a"b'] and len(skipped) == 3
    assert table.lines == [lines[0], lines[1], lines[3]]
    assert skipped[0].startswith(f"a.json:{lines[1]}: data[0].paragraphs[0].qas[2] has the")
    assert skipped[1].startswith(f"a.json:{lines[2]}: question 'c': \"question\"")
    assert skipped[2].startswith(f"a.json:{lines[2]}: data[0].paragraphs[0].qas[4] is 'z'")


def test_at_splits_at_the_last_one(tmp_path):
    path = written(tmp_path, "a.txt", "me@home rose to \xe5 @positive\n".encode("latin-1"))
    table, _ = read(path, format="at", encoding="latin-1")
    assert table.columns == {"text": ["me@home rose to \xe5 "], "label": ["positive"]}


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the [parquet] extra is not installed")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "n": [[1], []]}), tmp_path / "a.parquet")
    table, _ = read(tmp_path / "a.parquet")
    assert table.columns == {"text": ["a", "b"], "n": [[1], []]} and table.lines is None
    assert "not Parquet" in refusal(written(tmp_path, "b.parquet", "text\n"))
    path = tmp_path / "c.parquet"
    for kind, buffer, said in (
        (pa.string(), b"\xff\xfe", "column 'odd': 'utf-8' codec can't decode"),
        (pa.timestamp("s"), (10**12).to_bytes(8, "little"), "column 'odd': "),
    ):
        ends = [] if kind != pa.string() else [pa.py_buffer(b"\0\0\0\0\2\0\0\0")]
        odd = pa.Array.from_buffers(kind, 1, [None, *ends, pa.py_buffer(buffer)])
        pq.write_table(pa.table({"text": ["a"], "odd": odd}), path)
        assert said in refusal(path)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    assert "c.parquet: column 'text' appears twice" in refusal(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    message = refusal(written(tmp_path, "a.parquet", "x"))
    assert "pip install 'bert_ft[parquet]'" in message


# What is refused: (file name, content, options, what the message must hold).

BAD = {
    "empty": ("a.csv", "", {}, ["a.csv: the file is empty"]),
    "gzip": ("a.csv", gzip.compress(b"text\nx\n"), {}, ["a.csv: it is compressed by gzip"]),
    "header only": ("a.csv", "text,label\n", {}, ["a.csv: the file has a header and no rows"]),
    "an array": ("a.json", '[\n{"text": "a"}\n]\n', {}, ["a.json:1: a JSON array", "lines=True"]),
    "an array in a line": ("a.jsonl", '[{"text": "a"}]', {}, ["a.jsonl:1: a JSON array"]),
    "empty jsonl": ("a.jsonl", "\n\n", {}, ["a.jsonl: the file is empty"]),
    "open quote": (
        "a.csv",
        'text,label\nfine,1\n"a\nb","never closed\nx,1\ny,0\n',
        {},
        ["a.csv:4: the quote that opens on this line never closes", "quoting=none"],
    ),
    "stray quote": (
        "a.tsv",
        'text\tlabel\n"he" said\t1\n',
        {},
        ["a.tsv:2: text follows a closing quote", "quoting=none"],
    ),
    "joined rows": (
        "a.tsv",
        's\tl\n"hello\t1\nworld"\t0\nfine\t1\n',
        {},
        ["a.tsv:2: quotes join lines 2 to 3, 2 of which", "quoting=none", "quoting=standard"],
    ),
    "joined rows and a blank line": (
        "a.tsv",
        's\tl\n"hello\t1\na\t0\n\nb\nworld"\t0\nfine\t1\n',
        {},
        ["a.tsv:2: quotes join lines 2 to 6, 3 of which have all 2 columns"],
    ),
    "joined rows, ragged at their end": (
        "a.tsv",
        's\tl\n"hello\t1\na\t0\nb\t0\nworld"\nfine\t1\n',
        {},
        ["a.tsv:2: quotes join lines 2 to 5, 3 of which"],
    ),
    "stray quote of another line": (
        "a.csv",
        'text,label\n"hello,1\nhe said "hi",0\n',
        {},
        ["a.csv:2: the row goes on to line 3, where text follows a closing quote"],
    ),
    "utf-8": (
        "a.csv",
        b"text,label\nok,1\ncaf\xe9,0\n",
        {},
        ["a.csv:3: byte 0xe9 is not valid UTF-8", "encoding=latin-1"],
    ),
    "utf-8 after a byte-order mark": (
        "a.csv",
        b"\xef\xbb\xbftext\n\xff\n",
        {},
        ["a.csv:2: byte 0xff is not valid"],
    ),
    "utf-16": (
        "a.csv",
        "text,label\nok,1\n".encode("utf-16"),
        {},
        ["a.csv:1: it is UTF-16, not UTF-8; add encoding=utf-16"],
    ),
    "encoding": ("a.csv", "a\nb\n", {"encoding": "utf-7777"}, ["utf-7777 is unknown", "latin-1"]),
    **{
        f"encoding {codec}": (
            "a.csv",
            b"a\nb\xe9\n",
            {"encoding": codec},
            [f"a.csv: encoding={codec} makes no text", "accepted: utf-8 (default), latin-1"],
        )
        for codec in ("base64", "hex", "rot13", "zlib", "undefined")
    },
    "encoding punycode": (
        "a.csv",
        "a,b\nc,d\n",
        {"encoding": "punycode", "policy": "skip"},
        ["encoding=punycode makes no text of it; accepted: utf-8"],
    ),
    "encoding punycode by line": (
        "a.csv",
        b"a,b\n\xe9,d\n",
        {"encoding": "punycode", "policy": "skip"},
        ["encoding=punycode makes no text of it; accepted: utf-8"],
    ),
    "ragged": (
        "a.csv",
        "text,label\nok,1\nno label\n",
        {},
        ["a.csv:3: 1 columns where 2 are expected (text, label)"],
    ),
    "ragged under a header of two lines": (
        "a.csv",
        '"te\nxt",label\nx\n',
        {},
        ["a.csv:3: 1 columns where 2 are expected (te\\nxt, label)"],
    ),
    "twice": ("a.csv", "a,a\n1,2\n", {}, ["column 'a' appears twice"]),
    "not an object": ("a.jsonl", '{"a": 1}\n[1, 2]\n', {}, ["a.jsonl:2: a JSON list", "object"]),
    "not JSON": ("a.jsonl", '{"a": 1}\n{"a": \n', {}, ["a.jsonl:2: not JSON", "one object a line"]),
    "lone surrogate": ("a.jsonl", '{"a": "\\ud800"}\n', {}, ["a.jsonl:1: a lone surrogate"]),
    "conll column": (
        "a.conll",
        "EU B-ORG\nrejects\n",
        {},
        ["a.conll:2: 'rejects' has 1 columns, not 2"],
    ),
    "conll one column": (
        "a.conll",
        "EU\n",
        {"tag_column": "0"},
        ["a.conll:1: 'EU' is one column", "no tag_column="],
    ),
    "conll tag column": (
        "a.conll",
        "EU B-ORG\n",
        {"tag_column": "3"},
        ["a.conll:1: 2 columns", "tag_column=3", "accepted: -2 to 1"],
    ),
    "conll number": ("a.conll", "EU O\n", {"tag_column": "x"}, ["tag_column=x is not a whole"]),
    "span range": (
        "a.jsonl",
        '{"text": "ab", "spans": [{"start": 1, "end": 3, "label": "X"}]}',
        {"format": "spans"},
        ["a.jsonl:1: span 1-3 (X) is not in 0-2"],
    ),
    "span start": (
        "a.jsonl",
        '{"text": "abcd", "spans": [{"start": 1.7, "end": 3, "label": "X"}]}',
        {"format": "spans"},
        ["a.jsonl:1: a span begins or ends at 1.7, which is no whole number"],
    ),
    "span end": (
        "a.jsonl",
        '{"text": "abcd", "label": {"X": {"bcd": [[1, true]]}}}',
        {"format": "spans"},
        ["a.jsonl:1: a span begins or ends at True"],
    ),
    "span overlap": (
        "a.jsonl",
        '{"text": "abcd", "label": {"X": {"abc": [[0, 2]]}, "Y": {"cd": [[2, 3]]}}}',
        {"format": "spans"},
        ["a.jsonl:1: spans 0-3 (X) and 2-4 (Y) overlap"],
    ),
    "span mention": (
        "a.jsonl",
        '{"text": "abcd", "label": {"X": {"abc": [[1, 3]]}}}',
        {"format": "spans"},
        ["a.jsonl:1: [1, 3] is 'bcd', not 'abc'"],
    ),
    "no spans": ("a.jsonl", '{"text": "a"}', {"format": "spans"}, ['a.jsonl:1: no "spans"']),
    "spans": (
        "a.jsonl",
        '{"text": "a", "spans": null}',
        {"format": "spans"},
        ['a.jsonl:1: \'None\' in "spans"; accepted: a list of {"start"'],
    ),
    "span without end": (
        "a.jsonl",
        '{"text": "a", "spans": [{"start": 0, "label": "X"}]}',
        {"format": "spans"},
        ["a.jsonl:1: ", "'start': 0", 'accepted: a list of {"start"'],
    ),
    "span label": (
        "a.jsonl",
        '{"text": "a", "spans": [{"start": 0, "end": 1, "label": null}]}',
        {"format": "spans"},
        ["a.jsonl:1: the label of a span is None; accepted: a type"],
    ),
    "cluener label": (
        "a.jsonl",
        '{"text": "a", "label": {"X": {"a": [0, 0]}}}',
        {"format": "spans"},
        ['a.jsonl:1: "label" is', 'accepted: {"TYPE": {"mention": [[first, last]]}}'],
    ),
    "answer": (
        "a.json",
        squad({"text": "Bob", "answer_start": 0}),
        {"format": "squad"},
        ["a.json:1: question 'q1': answer 'Bob' is not at its start 0: there is 'Ada'"],
    ),
    "answer elsewhere": (
        "a.json",
        squad({"text": "Ada", "answer_start": 4}),
        {"format": "squad"},
        ["question 'q1': answer 'Ada' is not at its start 4: there is 'wro'"],
    ),
    "answer in a file of many lines": (
        "a.json",
        json.dumps(json.loads(squad({"text": "Bob", "answer_start": 0}, id="ü")), indent=1),
        {"format": "squad"},
        ["a.json:11: question 'ü': answer 'Bob'"],
    ),
    "squad surrogate": (
        "a.json",
        squad(question="who \ud800?"),
        {"format": "squad"},
        ["a.json:1: question 'q1': a lone surrogate"],
    ),
    "squad answer": (
        "a.json",
        squad({"text": "Ada"}),
        {"format": "squad"},
        ["a.json:1: question 'q1': answer \"{'text': 'Ada'}\"; accepted: {\"text\""],
    ),
    "squad answers": (
        "a.json",
        squad(answers=None),
        {"format": "squad"},
        ["a.json:1: question 'q1': \"answers\" is 'None'; accepted: a list"],
    ),
    "squad impossible": (
        "a.json",
        squad({"text": "Ada", "answer_start": 0}, is_impossible=True),
        {"format": "squad"},
        ['a.json:1: question \'q1\': "is_impossible" is true beside "answers"'],
    ),
    "squad question": (
        "a.json",
        squad(question=3),
        {"format": "squad"},
        ["a.json:1: question 'q1': \"question\" is '3'; accepted: a text"],
    ),
    "squad context": (
        "a.json",
        squad({"text": "Ada", "answer_start": 0}).replace('"Ada wrote it."', "null"),
        {"format": "squad"},
        ["a.json:1: question 'q1': \"context\" is 'None'; accepted: a text"],
    ),
    "squad id": (
        "a.json",
        squad(id=None),
        {"format": "squad"},
        ['a.json:1: data[0].paragraphs[0].qas[0] has the "id" None, not a string'],
    ),
    "squad paragraphs": (
        "a.json",
        '{"data": [{"paragraphs": [{"context": "x"}]}]}',
        {"format": "squad"},
        ['a.json:1: data[0].paragraphs[0] has no list "qas", as in the JSON layout of SQuAD'],
    ),
    "squad articles": (
        "a.json",
        '{"data": ["x"]}',
        {"format": "squad"},
        ["a.json:1: data[0] is 'x', not an object"],
    ),
    "squad layout": ("a.json", "{}", {"format": "squad"}, ['no "data" list']),
    "squad without format": ("a.json", "{\n", {}, ["a.json:1: not JSON", "format=squad"]),
    "at": ("a.txt", "fine @good\nno label\n", {"format": "at"}, ["a.txt:2: 'no label'", "@label"]),
    "suffix": ("a.xyz", "a\n", {}, ["suffix '.xyz'", "?format=", "jsonl, csv, tsv"]),
    "format": ("a.csv", "a\n", {"format": "jsnl"}, ["format=jsnl", "did you mean jsonl?"]),
    "option": ("a.csv", "a\n", {"tag_column": "1"}, ["tag_column=", "format csv, which knows"]),
    "choice": ("a.csv", "a\n", {"header": "maybe"}, ["header=maybe; accepted: yes or no"]),
    "delimiter": ("a.csv", "a\n", {"delimiter": "ab"}, ["delimiter='ab'; accepted: one"]),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, case):
    name, content, options, parts = BAD[case]
    message = refusal(written(tmp_path, name, content), **options)
    for part in parts:
        assert part in message


def test_missing_file(tmp_path):
    assert "gone.csv: no such file" in refusal(tmp_path / "gone.csv")


def test_parallel_files_that_disagree(tmp_path):
    written(tmp_path, "seq.in", "a b\nc\n")
    written(tmp_path, "seq.out", "O O\nO O\n")
    assert "a directory without label; accepted" in refusal(tmp_path)
    label = written(tmp_path, "label", "x\n")
    assert "seq.in 2, seq.out 2, label 1" in refusal(tmp_path)
    label.write_text("x\ny\n")
    assert "seq.out:2: 2 tags for the 1 tokens" in refusal(tmp_path)


# Under 'skip', the good rows stay and each bad one is listed.

SKIPPED = {
    "ragged": ("a.csv", "t,l\na,1\nb\nc,0\n", {}, "t", ["a", "c"], ["a.csv:3:"]),
    "utf-8": ("a.csv", b"t,l\na,1\n\xe9,1\nc,0\n", {}, "t", ["a", "c"], ["a.csv:3:"]),
    "open quote": ("a.csv", 't,l\na,1\n"b,1\nc,0\n', {}, "t", ["a", "c"], ["a.csv:3:"]),
    "stray quote": ("a.csv", 't,l\na,1\n"b"b,1\nc,0\n', {}, "t", ["a", "c"], ["a.csv:3:"]),
    "joined rows": (
        "a.tsv",
        't\tl\na\t1\n"x\t1\ny"\t0\n"b\nc"\t1\n',
        {},
        "t",
        ["a", 'y"', "b\nc"],
        ["a.tsv:3:"],
    ),
    "lines with tabs and blank ones in a value": (
        "a.tsv",
        't\tl\na\t1\n"b\n\n\tc\nd"\t1\n',
        {},
        "t",
        ["a", "b\n\n\tc\nd"],
        [],
    ),
    "rows behind a stray quote": (
        "a.csv",
        't,l\n"a,1\nb,1\nc,0\nhe said "hi",0\nd,1\n',
        {},
        "t",
        ["b", "c", 'he said "hi"', "d"],
        ["a.csv:2:"],
    ),
    "bytes in a value of two lines": (
        "a.csv",
        b't,l\n"caf\xe9 was bad,\nand the food, great",1\n"b\n\xe9",1\nc,0\n"d, e",1\n',
        {},
        "t",
        ["c", "d, e"],
        ["a.csv:2: byte 0xe9", "a.csv:5: byte 0xe9"],
    ),
    "bytes among joined rows": (
        "a.tsv",
        b't\tl\n"a\t1\nb\t1\n\xe9\t0\nc"\t0\n',
        {},
        "t",
        ["b", 'c"'],
        ["a.tsv:2:", "a.tsv:4: byte 0xe9"],
    ),
    "json": ("a.jsonl", '{"t": 1}\n{\n3\n{"t": 2}', {}, "t", [1, 2], ["a.jsonl:2:", "a.jsonl:3:"]),
    "conll": ("a.conll", "a O\n\nb O\nc\n\nd O\n", {}, "tokens", [["a"], ["d"]], ["a.conll:4:"]),
    "at": ("a.txt", "a@x\nb\nc@y\n", {"format": "at"}, "text", ["a", "c"], ["a.txt:2:"]),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_skipped_rows_are_listed(tmp_path, case):
    name, content, options, column, kept, places = SKIPPED[case]
    table, skipped = read(written(tmp_path, name, content), "skip", **options)
    assert table.columns[column] == kept
    assert len(skipped) == len(places)
    for message, place in zip(skipped, places, strict=True):
        assert message.startswith(place)


@pytest.mark.parametrize("quoting", ["none", "standard"])
@pytest.mark.parametrize("columns", [{}, {"columns": "a,b", "header": "yes"}])
def test_a_header_is_not_skipped(tmp_path, quoting, columns):
    path = written(tmp_path, "a.csv", b"t,\xe9\na,1\nb,0\n")
    with pytest.raises(InputError, match="^a.csv:1: byte 0xe9 .*; it is the header"):
        read(path, "skip", quoting=quoting, **columns)


def test_nothing_left_after_skipping(tmp_path):
    with pytest.raises(InputError, match="no rows.*1 were skipped, the first: a.jsonl:1"):
        read(written(tmp_path, "a.jsonl", "7\n"), "skip")


# Round trips. Surrogates are no text; csv.writer itself cannot write NUL everywhere.

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
nasty = st.one_of(texts, st.text('",\t\n\r\\ \u2028\x85\x1c\ufeffaé', max_size=8))
slow = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@slow
@given(rows=st.lists(st.tuples(nasty, nasty), min_size=1, max_size=6))
def test_jsonl_round_trip(tmp_path, rows):
    text = "\n".join(json.dumps({"a": a, "b": b}, ensure_ascii=False) for a, b in rows)
    table, _ = read(written(tmp_path, "a.jsonl", text))
    assert list(zip(table.columns["a"], table.columns["b"], strict=True)) == rows
    assert table.lines == list(range(1, len(rows) + 1))


@slow
@given(
    rows=st.lists(st.tuples(nasty, nasty), min_size=1, max_size=6),
    suffix=st.sampled_from(["csv", "tsv"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_csv_and_tsv_round_trip(tmp_path, rows, suffix, ending):
    buffer = io.StringIO(newline="")
    delimiter = {"csv": ",", "tsv": "\t"}[suffix]
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    lines = []
    writer.writerow(["a", "b"])
    for row in rows:
        lines.append(buffer.getvalue().count("\n") + 1)
        writer.writerow(row)
    table, _ = read(written(tmp_path, f"a.{suffix}", buffer.getvalue()), quoting="standard")
    assert list(zip(table.columns["a"], table.columns["b"], strict=True)) == rows
    assert table.lines == lines


@slow
@given(data=st.binary(max_size=60), name=st.sampled_from(["a.csv", "a.jsonl", "a.conll", "a.json"]))
def test_any_bytes_give_rows_or_one_line(tmp_path, data, name):
    options = {"format": "squad"} if name == "a.json" else {}
    for policy in ("stop", "skip"):
        try:
            table, _ = read(written(tmp_path, name, data), policy, **options)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert {len(values) for values in table.columns.values()} == {len(table)}


# The real sets of the table in shared/data/README.md: (URI, rows, rows known to be bad).

COLA = "quoting=none&columns=source,label,star,sentence"
RATINGS = "format=tsv&columns=user,item,rating,timestamp"
BAR = "format=csv&delimiter=|&quoting=none"
PHRASES = "format=at&encoding=latin-1"
REAL = [
    ("atis/train", 4478, 0),
    ("atis/valid", 500, 0),
    ("atis/test", 893, 0),
    ("banking77/train.csv", 10003, 0),
    ("banking77/test.csv", 3080, 0),
    ("consumer_complaints/train.csv", 10000, 0),
    ("consumer_complaints/test.csv", 3000, 0),
    ("covid_faq/faq_200327.tsv", 896, 0),
    ("covid_faq/faq_covidbert.csv", 213, 0),
    ("covid_faq/eval_question_similarity_en.csv", 488, 0),
    ("atec_zh/atec_nlp_sim_train.csv?format=tsv&columns=id,text,other,label", 39346, 0),
    ("chnsenticorp/train.tsv?quoting=none", 9600, 0),
    ("chnsenticorp/dev.tsv?quoting=none", 1200, 0),
    ("chnsenticorp/test.tsv?quoting=none", 1200, 0),
    ("cluener_zh/train.json?format=spans", 10748, 1),
    ("cluener_zh/test.json?format=spans", 1343, 0),
    ("conll2003_en/train.txt?format=conll", 14041, 0),
    ("conll2003_en/valid.txt?format=conll", 3250, 0),
    ("conll2003_en/test.txt?format=conll", 3453, 0),
    ("bioner_ncbi_disease/train.tsv?format=conll", 5424, 0),
    ("bioner_ncbi_disease/devel.tsv?format=conll", 923, 0),
    ("bioner_ncbi_disease/test.tsv?format=conll", 940, 0),
    (f"financial_phrasebank/Sentences_AllAgree.txt?{PHRASES}", 2264, 1),
    (f"financial_phrasebank/Sentences_75Agree.txt?{PHRASES}", 3453, 0),
    (f"financial_phrasebank/Sentences_66Agree.txt?{PHRASES}", 4217, 0),
    (f"financial_phrasebank/Sentences_50Agree.txt?{PHRASES}", 4846, 0),
    (f"movielens_100k/u.data?{RATINGS}", 100000, 0),
    (f"movielens_100k/ua.base?{RATINGS}", 90570, 0),
    (f"movielens_100k/ua.test?{RATINGS}", 9430, 0),
    (f"movielens_100k/u.item?{BAR}&header=no&encoding=latin-1", 1682, 0),
    (f"movielens_100k/u.user?{BAR}&columns=user,age,sex,occupation,zip", 943, 0),
    ("amazon_alexa_5class/amazon_alexa.tsv", 3150, 0),
    (f"glue_cola/train.tsv?{COLA}", 8551, 0),
    (f"glue_cola/dev.tsv?{COLA}", 1043, 0),
    ("glue_mrpc/train.tsv?quoting=none", 3667, 0),
    ("glue_mrpc/dev.tsv?quoting=none", 408, 0),
    ("glue_mrpc/msr_paraphrase_test.txt?format=tsv&quoting=none", 1725, 0),
    ("glue_rte/train.tsv?quoting=none", 2490, 0),
    ("glue_rte/dev.tsv?quoting=none", 277, 0),
    ("glue_stsb/train.tsv?quoting=none", 5749, 0),
    ("glue_stsb/dev.tsv?quoting=none", 1500, 0),
    ("squad11_dev/derived_dev-v1.1.json?format=squad", 10570, 0),
]


@pytest.mark.parametrize(("uri", "count", "bad"), REAL)
def test_real_sets(tmp_path, uri, count, bad):
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED}")
    rows = open_source(f"files:{SHARED}/{uri}", cache_dir=tmp_path, bad_rows="skip").read()
    assert len(rows.skipped) == bad, rows.skipped
    assert len(rows) == count - bad


def test_quirks_of_the_real_sets(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED}")

    def rows(uri):
        return open_source(f"files:{SHARED}/{uri}", cache_dir=tmp_path, bad_rows="skip").read()

    mrpc = rows("glue_mrpc/dev.tsv?quoting=none")
    assert mrpc.columns["Quality"][0] == "1"  # the name comes after a byte-order mark
    assert mrpc.columns["#2 String"][0].startswith('" The foodservice pie business')
    assert rows("atec_zh/atec_nlp_sim_train.csv?format=tsv&header=no").columns["column_0"][0] == "1"
    assert set(rows(f"glue_cola/train.tsv?{COLA}").columns["label"]) == {"0", "1"}
    phrases = rows(f"financial_phrasebank/Sentences_50Agree.txt?{PHRASES}")
    assert "Sepp+\xf1l+\xf1 's sales" in phrases.columns["text"][14]
    assert set(phrases.columns["label"]) == {"positive", "neutral", "negative"}
    spans = rows("cluener_zh/train.json?format=spans")
    assert "train.json:1507: spans 15-35 (book) and 16-20 (company) overlap" in spans.skipped[0]
    tags = {tag for row in rows("atis/train").columns["tags"] for tag in row}
    assert len(tags) == 120
    conll = rows("conll2003_en/train.txt?format=conll")
    first = " ".join(conll.columns["tokens"][0])
    assert first == "EU rejects German call to boycott British lamb ."
    assert conll.lines[0] == 3
