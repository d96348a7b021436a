"""What experiments/methods makes of runs: those that fail, what is attacked, drawn and said."""

import argparse
import json

import pytest
from conftest import write_csv
from small import config

from bert_ft.config import flat
from experiments import runs
from experiments.attempts import Attempts
from experiments.methods import adversarial, distilling, learning_curves, reading, tuning
from experiments.methods.curve_chart import curve_chart
from experiments.parity.tasks import Task
from experiments.scores import measure


def test_one_that_fails_does_not_end_the_others(capsys):
    attempts = Attempts()
    attempts.end()
    assert attempts.of("a", lambda: 3) == 3
    assert attempts.of("b", lambda: 1 / 0) is None
    assert attempts.of("c", lambda: 4) == 4
    assert "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="failed: b"):
        attempts.end()


def test_attacked_texts_are_spread_over_a_set_that_is_sorted_by_label(tmp_path):
    rows = [{"text": f"text {i}", "label": i // 50} for i in range(100)]
    c = config(data__test=f"files:{write_csv(tmp_path / 'test.csv', rows)}")
    (tmp_path / "model").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(flat(c)))
    about = {"fitted": {"labels": ["0", "1"]}}
    (tmp_path / "model" / "task.json").write_text(json.dumps(about))
    texts, labels = reading.attacked_texts(tmp_path, 8)
    assert labels == [0] * 4 + [1] * 4 and texts[:2] == ["text 0", "text 12"]
    assert len(set(reading.attacked_texts(tmp_path, 200)[0])) == 100


def test_a_method_with_other_knobs():
    flags = adversarial.task_of("pgd:epsilon=3,step=1.5", ["--config.train.epochs=1"]).command[1:]
    own = [f"--config.methods.{x}" for x in ("use=pgd", "pgd.epsilon=3", "pgd.step=1.5")]
    assert flags == [*own, "--config.train.epochs=1"]
    assert adversarial.task_of("plain", []).command[1:] == ["--config.methods.use="]
    usual = f"pgd:epsilon={config().methods.pgd.epsilon}"
    cases = ("pgd", usual, "pgd:epsilon=3", "misspelt")
    some = [adversarial.what(adversarial.task_of(case, []), 0, 200, 3) for case in cases]
    assert some[0] == some[1] and some[2] not in some[:2] and some[3] not in some[:3]


def test_students_of_other_layers_are_other_runs(monkeypatch):
    before = distilling.of("2 layers", "alone")
    config_file = distilling.STUDENTS["2 layers"][0]
    changed = {
        **distilling.STUDENTS,
        "2 layers": (config_file, ("--config.model.layers_from=0,5",)),
    }
    monkeypatch.setattr(distilling, "STUDENTS", changed)
    assert distilling.of("2 layers", "alone") != before


def test_curves_are_of_the_lines_that_were_asked_for(tmp_path, monkeypatch):
    """Lines of other flags or versions, of which the file is full, are not among them."""

    def run(workdir, flags):
        if "--config.methods.use=uda" in flags:
            raise RuntimeError("it fails")
        return {"accuracy": 0.5, "n": 7, "git_commit": "c"}

    monkeypatch.setattr(learning_curves, "train", run)
    monkeypatch.setattr(learning_curves, "first_rows", lambda path, seed: None)
    results = tmp_path / "lines.jsonl"
    old = {"method": "plain", "size": 16, "seed": 0, "flags": [], "versions": {}, "accuracy": 0.1}
    results.write_text(json.dumps(old) + "\n")
    args = argparse.Namespace(
        sizes=[16, 32], seeds=[0, 1], methods=["random", "uda", "plain"], by="margin", steps=5,
        results=results, work=tmp_path, show=False,
    )  # fmt: skip
    monkeypatch.setattr(learning_curves, "grown", lambda *_: 1 / 0)
    monkeypatch.setattr(learning_curves, "run", lambda *_: None)
    attempts = Attempts()
    curves = learning_curves.curves_of(learning_curves.collected(args, attempts))
    assert curves == {"plain": {16: [50.0] * 2, 32: [50.0] * 2}, "random": {16: [50.0] * 2}}
    uda = [f"uda, {size} rows, seed {seed}" for seed in (0, 1) for size in (16, 32)]
    assert sorted(attempts.failed) == sorted([*uda, "random, seed 0", "random, seed 1"])
    # What is there, of whatever versions; what failed is not tried again.
    monkeypatch.setattr(learning_curves, "versions", lambda: {"jax": "another"})
    args.show, attempts = True, Attempts()
    assert learning_curves.curves_of(learning_curves.collected(args, attempts)) == curves
    assert not attempts.failed


def test_every_curve_has_a_colour_of_its_own():
    methods = [*learning_curves.METHODS, *learning_curves.GROWING]
    drawn = curve_chart("title", {m: {16: [50.0, 51.0], 32: [60.0]} for m in methods})
    colours = {part.split('"')[0] for part in drawn.split('class="line" stroke="')[1:]}
    assert len(colours) == len(methods)


def test_a_table_of_what_is_trained():
    params = {"total": 1000, "trainable": 110, "encoder": 900, "trained_in_encoder": 9}
    rest = {"n": 7, "rate": 1e-4, "checkpoint_bytes": 2e6, "reported_bytes": 1e6, "params": params}
    lines = [{**rest, "score": 0.5, "seed": k, "step_ms_p50": ms} for k, ms in ((0, 40), (1, None))]
    said = tuning.table("reviews", {"all": lines, "LoRA, r = 8": [{**lines[0], "step_ms_p50": 30}]})
    assert "| all | 0.0001 | 50.00 ± 0.00 | 1.00 | 11.00 | 40 | 1.00 | 2.0 | 1.0 |" in said
    assert "| 1.00 | 11.00 | 30 | 0.75 |" in said


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 1e-4), ("rmse", 2e-4)])
def test_scores_are_of_the_rate_that_is_best_on_dev(metric, best, monkeypatch):
    """By the config's own metric, whichever way it is better; a rate without a score is last."""
    dev = {1e-4: 0.7, 2e-4: 0.6, 3e-4: None}

    def one(name, rate, seed, args):
        scores = {f"dev/{metric}": dev[rate], "test/accuracy": rate, "test/nll": None}
        scores["test/kind/mae"] = 1.25
        line = {"rate": rate, "steps": 3, "metric": metric, "scores": scores, "seed": seed}
        return {**line, "n": {"test/accuracy": 9, "test/kind/mae": 9}}

    monkeypatch.setattr(measure, "one", one)
    args = argparse.Namespace(seeds=[0, 1, 2], rates=[3e-4, 1e-4, 2e-4])
    runs = measure.runs_of("x.py", args, Attempts())
    assert [(r["rate"], r["seed"]) for r in runs] == [(best, 0), (best, 1), (best, 2)]
    table, first = measure.table({"x.py": runs}), f"| x.py | {best:g} | 3 |"
    assert f"{first} test/accuracy | 9 | {100 * best:.2f} ± 0.00 % |" in table
    assert f"{first} test/kind/mae | 9 | 1.250 ± 0.000 |" in table


def test_a_workdir_of_another_run_is_not_taken(tmp_path):
    task = Task("configs/lstm.py", "test/accuracy")
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "result.json").write_text('{"steps": 3}')
    config = task.read_config()
    config.train.seed = 1
    (workdir / "config.json").write_text(json.dumps(flat(config)))
    assert runs.result_of(task, 1, workdir) == {"steps": 3}
    with pytest.raises(RuntimeError, match="holds another run"):
        runs.result_of(task, 2, workdir)


def test_one_rate_alone_is_the_best():
    def tried(rate, seed):
        return {"rate": rate, "seed": seed}

    assert [line["seed"] for line in runs.by_best_rate(tried, [0.1], [0, 1], lambda _: 1 / 0)] == [
        0,
        1,
    ]
