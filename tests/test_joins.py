"""join= and flags=: every row gets its one partner's columns, or the run stops and says where."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.data.sources import open_source
from bert_ft.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "movielens_100k"


@pytest.fixture
def files(tmp_path):
    """Ratings of films 1 to 3 in a TSV, and the films in Latin-1 with bars."""
    (tmp_path / "r.tsv").write_text("u\t2\t5\nu\t1\t3\nv\t2\t1\n")
    (tmp_path / "films.txt").write_bytes(
        '1|Amélie|1|0\n2|Shiloh "x"|1|1\n3|Q|0|0\n'.encode("latin-1")
    )
    return tmp_path


def uri(folder, more="", on="film"):
    film = (
        f"join={folder}/films.txt;on={on};format=csv;delimiter=|;encoding=latin-1;quoting=none;"
        "columns=film,title,Drama,War"
    )
    return f"files:{folder}/r.tsv?columns=user,film,rating&{film}{more}"


def read(text, tmp_path, **more):
    return open_source(text, cache_dir=tmp_path, **more).read()


def test_columns_of_the_partner(files):
    rows = read(uri(files), files)
    assert list(rows.columns) == ["user", "film", "rating", "title", "Drama", "War"]
    assert rows.columns["title"] == ['Shiloh "x"', "Amélie", 'Shiloh "x"']
    assert rows.columns["rating"] == ["5", "3", "1"] and rows.where(2) == f"{files}/r.tsv:3"
    # Rows are chosen by columns that were joined, and flags are read before that.
    chosen = read(uri(files, "&flags=kinds:Drama,War&where=kinds==Drama"), files)
    assert chosen.columns["film"] == ["1"] and chosen.columns["Drama"] == ["1"]
    both = read(uri(files, "&flags=kinds:Drama,War"), files).columns["kinds"]
    assert both == ["Drama, War", "Drama", "Drama, War"]


def test_rows_without_a_key_or_a_flag_can_be_left_out(tmp_path):
    """As the messages on them say, so before the columns are joined and the flags are read."""
    (tmp_path / "r.jsonl").write_text(
        '{"text": "a", "user": 1}\n{"text": "b", "user": null}\n{"text": "c", "user": 2}\n'
    )
    (tmp_path / "u.jsonl").write_text(
        '{"user": 1, "old": null}\n{"user": null}\n{"user": null}\n{"user": 2, "old": 1}\n'
    )
    text = f"files:{tmp_path}/r.jsonl?flags=is:old&join={tmp_path}/u.jsonl;on=user"
    for column, kept in (("user", ["a", "c"]), ("old", ["c"])):
        with pytest.raises(
            InputError, match=f"no value in column '{column}'.*where={column}!=null"
        ):
            read(text, tmp_path)
        text += f"&where={column}!=null"
        if column == "user":
            rows = read(text.replace("flags=is:old&", ""), tmp_path)
        else:
            rows = read(text, tmp_path)
            assert rows.columns["is"] == ["old"]
        assert rows.columns["text"] == kept
    assert len(read(f"{text}&where=is==old", tmp_path)) == 1
    with pytest.raises(InputError, match="no column 'was'; there are: text, user, old, is"):
        read(f"{text}&where=was==old", tmp_path)


def test_two_joins_and_another_name_for_the_key(files):
    (files / "people.jsonl").write_text('{"name": "u", "age": 3}\n{"name": "v", "age": 4}\n')
    rows = read(uri(files, f"&join={files}/people.jsonl;on=user:name"), files)
    assert rows.columns["age"] == [3, 3, 4] and "name" not in rows.columns


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.permutations(range(10)))
def test_a_join_is_a_look_up(tmp_path_factory, keys, order):
    folder = tmp_path_factory.mktemp("look_up")
    write_csv(folder / "a.csv", [{"key": k, "n": i} for i, k in enumerate(keys)])
    write_csv(folder / "b.csv", [{"key": k, "square": k * k} for k in order])
    rows = read(f"files:{folder}/a.csv?join={folder}/b.csv;on=key", folder)
    assert rows.columns["square"] == [str(k * k) for k in keys]
    assert rows.columns["n"] == [str(i) for i in range(len(keys))]


def test_a_key_that_the_file_lacks(files):
    with (files / "r.tsv").open("a") as file:
        file.write("v\t9\t2\nv\t3\t2\n")
    with pytest.raises(InputError, match=r"r.tsv:4: film '9' is not in column 'film' of .*films"):
        read(uri(files), files)
    rows = read(uri(files), files, bad_rows="skip")
    assert rows.columns["film"] == ["2", "1", "2", "3"] and rows.lines == [1, 2, 3, 5]
    [skipped] = rows.skipped
    assert "r.tsv:4: film '9'" in skipped
    (files / "r.tsv").write_text("u\t8\t5\n")
    with pytest.raises(InputError, match="r.tsv: no film is in"):
        read(uri(files), files, bad_rows="skip")


def test_a_key_that_the_file_has_twice(files):
    with (files / "films.txt").open("a") as file:
        file.write("2|again|0|0\n")
    with pytest.raises(InputError, match=r"films.txt:4: film '2' appears again \(first in line 2"):
        read(uri(files), files)
    rows = read(uri(files), files, bad_rows="skip")
    assert rows.columns["title"][0] == 'Shiloh "x"' and "films.txt:4" in rows.skipped[0]


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("on=film", "on=item", "no column 'item' to join on; there are: film, title"),
        ("on=film", "on=movie:film", "no column 'movie'; there are: user, film, rating"),
        (";on=film", "", "accepted: join=FILE;on=COLUMN"),
        ("on=film", "on=film;on=film", "'on' is given twice"),
        ("delimiter=", "delimitter=", "did you mean delimiter=?"),
        ("films.txt", "film.txt", "no such file; did you mean"),
        ("film,title", "film,rating", "column 'rating' is in .*r.tsv as well"),
        ("format=csv", "format=cvs", "format=cvs is unknown"),
        ("&join=", "&flags=kinds:film,rating&join=", "r.tsv:1: film is '2'; accepted: 0 or 1"),
        ("&join=", "&flags=title:Drama&join=", "there is a column 'title' already"),
        ("&join=", "&flags=kinds:Comedy&join=", "no column 'Comedy'"),
        ("&join=", "&flags=kinds&join=", "accepted: flags=NAME:COLUMN,COLUMN"),
    ],
)
def test_what_is_refused(files, old, new, words):
    text = uri(files)
    assert old in text
    with pytest.raises(InputError, match=words.replace("?", r"\?")) as refusal:
        read(text.replace(old, new, 1), files)
    assert "\n" not in str(refusal.value)


def test_files_without_rows(files):
    (files / "films.txt").write_text("")
    with pytest.raises(InputError, match="films.txt: the file is empty"):
        read(uri(files), files)
    (files / "films.txt").write_text("1|only three|1\n")
    with pytest.raises(InputError, match=r"films.txt:1: 3 columns where 4 are expected"):
        read(uri(files), files)


def test_the_fingerprint_is_of_the_joined_bytes_too(files, tmp_path_factory):
    def fingerprint(text):
        return open_source(text, cache_dir=files).fingerprint()

    first = fingerprint(uri(files))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("r.tsv", "films.txt"):
        (elsewhere / name).write_bytes((files / name).read_bytes())
    assert fingerprint(uri(elsewhere)) == first
    assert fingerprint(uri(files, "&flags=kinds:War")) != first
    assert fingerprint(uri(files).replace("title,Drama", "title,Comedy")) != first
    (files / "films.txt").write_bytes((files / "films.txt").read_bytes().replace(b"Q", b"R"))
    assert fingerprint(uri(files)) != first


def test_without_joins_a_fingerprint_is_what_it_was(tmp_path, monkeypatch):
    """Data that were encoded before there were joins (version 1) differ in the version alone."""
    write_csv(tmp_path / "a.csv", [{"text": "a", "label": 1}])
    source = open_source(f"files:{tmp_path}/a.csv?limit=1", cache_dir=tmp_path)
    now = source.fingerprint()
    monkeypatch.setattr("bert_ft.data.sources.ROWS_VERSION", 1)
    assert source.fingerprint()[:32] == "482326ffb4888100b728b1c4266c0146"
    assert now != source.fingerprint()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: real ratings are not here")
def test_movielens():
    sys.path.insert(0, str(ROOT / "configs"))
    try:
        from recommend import RATINGS
    finally:
        sys.path.pop(0)
    text = RATINGS.replace("../shared/data/movielens_100k", str(SHARED))
    counts = {"u.data": 100_000, "ua.base": 90_570, "ua.test": 9_430}
    for name, count in counts.items():
        rows = read(f"files:{SHARED}/{name}?{text}", SHARED)
        assert len(rows) == count
        assert all(len(v) == count and None not in v for v in rows.columns.values())
        if name == "u.data":
            seen = {c: rows.columns[c][0] for c in rows.columns if c not in ("video", "url")}
            assert (seen["user"], seen["item"], seen["rating"]) == ("196", "242", "3")
            assert (seen["title"], seen["genres"]) == ("Kolya (1996)", "Comedy")
            assert (seen["age"], seen["gender"], seen["occupation"]) == ("49", "M", "writer")
            assert len(set(rows.columns["user"])) == 943 and len(set(rows.columns["item"])) == 1682
