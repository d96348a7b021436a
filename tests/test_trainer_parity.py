"""The comparison with the Hugging Face Trainer: whose answers are whose, and its table."""

import json
import subprocess

import numpy as np
import pytest
from conftest import reviews, write_bert

from bert_ft.data.rows import Rows
from experiments.parity import compare, hf_trainer
from experiments.parity.tasks import TASKS


def rows_of(count):
    made = reviews(count, seed=1)
    tokens = [row["text"].split() for row in made]
    columns = {"text": [row["text"] for row in made], "tokens": tokens}
    columns |= {"label": [str(row["label"]) for row in made]}
    columns |= {"tags": [[("B-X", "O")[len(w) % 2] for w in words] for words in tokens]}
    return Rows(columns, None, "made up")


@pytest.mark.parametrize("name", ["ATIS, intents", "ATIS, slots"])
def test_a_prediction_stands_where_its_row_stands(name, tmp_path, monkeypatch):
    """Grouped by length, the Trainer of transformers 5.24 would predict in another order."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    c, rows = TASKS[name].read_config(), rows_of(24)
    c.data.text = "tokens"
    names = ["O", "B-X"] if c.task.name == "tagging" else ["0", "1"]
    model = write_bert(tmp_path / "bert")
    about = json.loads((model / "config.json").read_text())
    about |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    (model / "config.json").write_text(json.dumps(about))
    assert hf_trainer.names_of(rows, c, model) == names
    trainer = hf_trainer.make_trainer(c, rows, 0, names, model, str(tmp_path))
    texts = hf_trainer.tokenized(trainer.processing_class, rows, c)
    logits = hf_trainer.logits_of(trainer, texts)
    assert len({len(ids) for ids in texts["input_ids"]}) > 4, "else nothing could be grouped"
    for i, example in enumerate(hf_trainer.examples(texts)):
        given = {k: torch.tensor([v]) for k, v in example.items()}
        with torch.no_grad():
            right = trainer.model.eval()(**given).logits[0].numpy()
        found = logits[i][: len(right)] if right.ndim == 2 else logits[i]
        np.testing.assert_allclose(found, right, atol=1e-5)


def test_both_systems_read_tags_and_ratings_in_the_same_way():
    for name, task in TASKS.items():
        c = task.read_config()
        if c.task.name == "tagging":
            assert c.task.decode == "argmax", name
        if c.task.name == "regression":
            assert c.task.label_scaling == "none", name
        assert not c.eval.keep_best, f"{name}: the Trainer's last step is scored"


def lines_of(scores, n=10):
    return [{"score": score, "n": n} for score in scores]


def test_a_line_of_the_table():
    runs = {"bert_ft": lines_of([0.5, 0.6]), "trainer": lines_of([0.9, 0.8])}
    assert compare.row("MRPC", runs).endswith("| 10 | 2 | 55.00 ± 7.07 | 85.00 ± 7.07 | "
                                              "-30.00 (-4.2 std) **below** |")  # fmt: skip
    same = {system: lines_of([0.5, 0.5]) for system in compare.SYSTEMS}
    assert compare.row("MRPC", same).endswith("| +0.00 |")
    with pytest.raises(AssertionError, match=r"MRPC: scored on \[9, 10\] rows"):
        compare.row("MRPC", same | {"trainer": lines_of([0.5, 0.5], n=9)})


def test_a_run_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def started(name, seed, workdir):
        if (name, seed) == ("MRPC", 1):
            raise subprocess.CalledProcessError(77, ["python"])
        for folder in ("checkpoints", "best", "predictions"):
            (workdir / folder).mkdir(parents=True)
        return {**compare.expected(name, "bert_ft", seed), "score": 0.5, "n": 10}

    monkeypatch.setattr(compare, "ours", started)
    monkeypatch.setattr(compare, "HERE", tmp_path)
    monkeypatch.setattr(compare, "their_versions", dict)
    monkeypatch.setattr(
        compare,
        "trainers",
        lambda name, seed: compare.expected(name, "trainer", seed) | {"score": 0.4, "n": 10},
    )
    args = ["compare", "--tasks", "MRPC", "STS-B", "--seeds", "0", "1"]
    args += [f"--results={tmp_path / 'results.jsonl'}", f"--workdirs={tmp_path / 'runs'}"]
    monkeypatch.setattr("sys.argv", args)
    with pytest.raises(SystemExit, match="failed: MRPC, bert_ft, seed 1$"):
        compare.main()
    assert "| STS-B | dev/pearson | 10 |" in (out := capsys.readouterr().out)
    assert "| MRPC |" not in out
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert [p.name for p in (tmp_path / "runs" / "MRPC" / "0").iterdir()] == ["predictions"]
    # What is there, of whatever versions, without a run.
    monkeypatch.setattr(compare, "our_versions", lambda: {"jax": "another"})
    monkeypatch.setattr(compare, "ours", pytest.fail)
    monkeypatch.setattr("sys.argv", [*args, "--show"])
    compare.main()
    out = capsys.readouterr().out
    assert "MRPC: no line of the table, for runs of bert_ft are missing" in out
    assert "| STS-B | dev/pearson | 10 | 2 | 50.00 ± 0.00 | 40.00 ± 0.00 | +10.00 |" in out
    monkeypatch.setattr("sys.argv", [*args, "--show", "--systems", "trainer"])
    compare.main()
    assert "| MRPC | test/f1 | 10 | 2 | 40.00 ± 0.00 |\n" in capsys.readouterr().out


def test_a_config_measured_for_its_docstring_is_not_run_again(tmp_path, monkeypatch):
    what = compare.expected("Banking77", "bert_ft", 1)
    rest = {"steps": 7, "params_sha256": "a", "git_commit": "b"}
    line = {"config": what["settings"], "seed": 1, "versions": what["versions"], **rest}
    line |= {"scores": {"test/accuracy": 0.5, "test/loss": 2.0}, "n": {"test/accuracy": 9}}
    scores, results = tmp_path / "scores.jsonl", tmp_path / "results.jsonl"
    scores.write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(compare, "SCORES", scores)
    found = compare.one("Banking77", "bert_ft", 1, results, tmp_path / "runs")
    assert found == {**what, "score": 0.5, "n": 9, "scores": line["scores"], **rest}
    assert not results.exists() and not (tmp_path / "runs").exists()
    other = compare.expected("Banking77", "bert_ft", 2)
    assert compare.from_scores(other, scores) is None
    assert compare.from_scores({**what, "system": "trainer"}, scores) is None
