"""--mode=predict: a line for each row, in order, with what evaluation says of the same text."""

import json

import pytest
from conftest import World, read_jsonl, reviews, write_csv, write_jsonl

from bert_ft.data.rows import Rows
from bert_ft.train.predict import _places

ODD = {
    "empty": "",
    "blank": " \n\t ",
    "long": "a wonderful film, " * 50,
    "unicode": "ein großartiger Film — 素晴らしい \u2028 🎬\u0000",
    "unknown": "☃",
    "quotes": 'she said "no", twice',
    "bad": "the plot is awful.",
    "good": "the film is wonderful, every scene feels brilliant.",
}


@pytest.fixture(scope="module")
def trained(run_cli, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("predict") / "run"
    return run_cli(workdir, "--config.train.steps=60").ok()


@pytest.fixture
def predict(trained, run_here, tmp_path):
    def run(rows, *flags: str, name: str = "rows.jsonl"):
        path = tmp_path / name
        (write_csv if name.endswith(".csv") else write_jsonl)(path, rows)
        out = tmp_path / "out.jsonl"
        words = [f"--config.predict.input={path}", f"--config.predict.output={out}"]
        done = run_here(trained.workdir, "--mode=predict", *words, *flags).ok()
        assert str(out) in done.out and f"{len(rows):,} rows" in done.out
        return read_jsonl(out)

    return run


def test_a_line_a_row_in_order(predict):
    rows = [{"id": name, "text": text} for name, text in ODD.items()]
    answers = predict(rows)
    assert [a["id"] for a in answers] == list(ODD)
    assert [a["text"] for a in answers] == list(ODD.values())
    for answer in answers:
        assert set(answer) == {"id", "text", "label", "probabilities", "truncated"}
        probabilities = answer["probabilities"]
        assert set(probabilities) == {"negative", "positive"}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == max(probabilities, key=probabilities.get)
        assert answer["truncated"] is (answer["id"] == "long")
    by_id = {a["id"]: a for a in answers}
    assert by_id["bad"]["label"] == "negative" and by_id["good"]["label"] == "positive"


def test_the_same_probabilities_as_evaluation(predict, trained, world: World):
    answers = predict(read_jsonl(world.test))
    evaluated = read_jsonl(trained.workdir / "predictions" / "test.jsonl")
    assert len(answers) == len(evaluated) == 45
    for answer, other in zip(answers, evaluated, strict=True):
        assert answer["text"] == other["text"] and answer["label"] == other["prediction"]
        # The rows are packed alike but not in the same company; six decimals are written.
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=3e-6)


def test_each_row_stands_alone(predict):
    """Order, company and length of the others make no difference, nor does a label of the row."""
    rows = reviews(40, seed=7)
    answers = predict(rows)
    shuffled = predict([{**row, "label": "any"} for row in rows[::-1]])[::-1]
    for one, other in zip(answers, shuffled, strict=True):
        assert one["id"] == other["id"] and one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=3e-6)
    [alone] = predict(rows[3:4])
    assert alone["probabilities"] == pytest.approx(answers[3]["probabilities"], abs=3e-6)


def test_csv_in_and_ids_of_any_type(predict):
    answers = predict([{"id": 7, "text": "great, really great"}], name="rows.csv")
    assert [a["id"] for a in answers] == ["7"]  # a CSV has strings only
    assert [a["id"] for a in predict([{"id": 7, "text": "a"}, {"id": [1], "text": "b"}])] == [
        7,
        [1],
    ]
    missing = predict([{"id": 7, "text": "a"}, {"id": float("nan"), "text": "b"}])
    assert [(a.get("id"), a.get("line")) for a in missing] == [(7, None), (None, 2)]
    [alone] = predict([{"text": "a"}])
    assert "id" not in alone and alone["line"] == 1


def test_the_default_output_is_in_the_workdir(trained, run_here, tmp_path):
    path = write_csv(tmp_path / "new.csv", reviews(3, seed=8))
    run_here(trained.workdir, "--mode=predict", f"--config.predict.input={path}").ok()
    assert len(read_jsonl(trained.workdir / "predictions" / "new.jsonl")) == 3
    again = run_here(trained.workdir, "--mode=predict", f"--config.predict.input={path}").ok()
    assert "new.jsonl: earlier predictions are replaced" in again.err + again.out
    done = run_here(trained.workdir, "--mode=predict", f"--config.predict.input=files:{path}")
    done.refused("config.predict.input is 'files:", "what stands after files:")
    # A test set of the same name must not replace the predictions that the report shows.
    path = write_jsonl(tmp_path / "test.jsonl", reviews(3, seed=8))
    done = run_here(trained.workdir, "--mode=predict", f"--config.predict.input={path}")
    done.refused("predict.output", "predictions/test.jsonl")
    assert len(read_jsonl(trained.workdir / "predictions" / "test.jsonl")) == 45


def test_the_input_is_never_replaced(trained, run_here, tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", reviews(3, seed=8))
    before = path.read_bytes()
    for given, out in (
        (f"{path}?limit=1", path),
        (f"{tmp_path}/i*.jsonl", path),
        (f"{path}?limit=1", tmp_path / "other" / ".." / "in.jsonl"),
    ):
        words = [f"--config.predict.input={given}", f"--config.predict.output={out}"]
        run_here(trained.workdir, "--mode=predict", *words).refused("in.jsonl, the input; give")
    assert path.read_bytes() == before


@pytest.mark.parametrize("taken", ["reviews.tsv", "rows.jsonl", "list.json", "folder"])
def test_only_predictions_are_replaced(taken, trained, run_here, tmp_path):
    given, out = write_jsonl(tmp_path / "in.jsonl", reviews(3, seed=8)), tmp_path / taken
    written = {"rows.jsonl": '{"text": "a", "label": 1}\n', "list.json": "[1]\n"}
    if taken == "folder":
        out.mkdir()
    else:
        out.write_text(written.get(taken, "text\tlabel\n"))
    words = [f"--config.predict.input={given}", f"--config.predict.output={out}"]
    run_here(trained.workdir, "--mode=predict", *words).refused("predict.output", str(out))
    if taken == "rows.jsonl":
        assert out.read_text() == written[taken]
        out.unlink()
        for _ in range(2):
            run_here(trained.workdir, "--mode=predict", *words).ok()
        assert len(read_jsonl(out)) == 3


def test_a_flag_that_was_left_out_is_noted(trained, run_here, tmp_path):
    path = write_csv(tmp_path / "new.csv", reviews(3, seed=8))
    flags = ["--mode=predict", f"--config.predict.input={path}", "--config.log.progress=False"]
    assert "note:" not in run_here(trained.workdir, *flags).ok().err
    done = run_here(trained.workdir, *flags, "--config.data.max_length=9").ok()
    assert "config.json: data.max_length: " in done.err and "-> 9\n" in done.err
    done = run_here(trained.workdir, *flags, "--config.data.text=body")  # also where it then fails
    done.refused("no column 'body'")
    assert "config.json: data.text: " in done.err


def test_rows_that_cannot_be_read_may_be_skipped(trained, run_here, tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"id": 1, "text": "good"}\nnot json\n{"id": 3, "text": "bad"}\n')
    words = ["--mode=predict", f"--config.predict.input={path}"]
    run_here(trained.workdir, *words).refused("some.jsonl:2")
    done = run_here(trained.workdir, *words, "--config.data.bad_rows=skip").ok()
    assert "some.jsonl:2" in done.err
    answers = read_jsonl(trained.workdir / "predictions" / "some.jsonl")
    assert [a["id"] for a in answers] == [1, 3] and "line" not in answers[0]


def test_rows_without_an_id_are_named_by_file_and_line():
    """So an answer is joined to its row where others were skipped."""
    columns = {"text": ["a", "b"]}
    assert _places(Rows(columns, [1, 3], "x.jsonl")) == [{"line": 1}, {"line": 3}]
    assert _places(Rows(columns, [4, 1], "*", paths=["x.csv", "y.csv"])) == [
        {"file": "x.csv", "line": 4},
        {"file": "y.csv", "line": 1},
    ]
    assert _places(Rows(columns, None, "x.parquet")) == [{}, {}]
    for blank in (None, float("nan"), "", " "):
        ids = {**columns, "id": [7, blank]}
        assert _places(Rows(ids, [1, 3], "x")) == [{"id": 7}, {"line": 3}]


def test_a_text_has_no_name_of_a_place(trained, run_here, tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"line": "good"}, {"line": "bad"}])
    words = [f"--config.predict.input={path}", "--config.data.text=line"]
    done = run_here(trained.workdir, "--mode=predict", *words)
    done.refused("column 'line' has a name under which", "another name of the column, or rows")
    write_jsonl(path, [{"id": i, "line": "good"} for i in range(2)])
    run_here(trained.workdir, "--mode=predict", *words).ok()


def test_a_file_of_a_glob_has_a_name_that_no_shell_expands(trained, run_here, tmp_path):
    for i in range(2):
        write_jsonl(tmp_path / f"part{i}.jsonl", reviews(2, seed=i))
    words = [f"--config.predict.input={tmp_path}/part[0-9]*.jsonl"]
    run_here(trained.workdir, "--mode=predict", *words).ok()
    assert len(read_jsonl(trained.workdir / "predictions" / "part_0-9_.jsonl")) == 4


def test_eval_mode_scores_the_same_and_removes_nothing(trained, run_here):
    before, metrics = trained.result, trained.metrics
    done = run_here(trained.workdir, "--mode=eval").ok()
    assert json.dumps(done.result["eval"]) == json.dumps(before["eval"])
    for key in ("params_sha256", "speed", "steps", "data", "params"):
        assert done.result[key] == before[key], key

    def names(lines):
        return {(line["step"], line["name"]) for line in lines}

    assert names(done.metrics) == names(metrics) and len(done.metrics) == len(metrics)
    assert "test (n = 45): accuracy" in done.err
