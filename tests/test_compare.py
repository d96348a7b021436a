"""Two runs compared: against scipy's bootstrap and permutation test, and on made workdirs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, write_jsonl

from bert_ft import compare
from bert_ft.errors import InputError
from bert_ft.evals.judge import judge
from bert_ft.evals.metrics import rmse
from bert_ft.evals.paired import Judged, difference
from bert_ft.tasks.sequence import shortest


def right_or_wrong(seed, count, share):
    hits = np.random.default_rng(seed).random((count, 1)) < share
    return Judged(hits.astype(float), lambda values: float(values.mean()))


def test_interval_and_p_are_scipys():
    a, b = right_or_wrong(0, 400, 0.70), right_or_wrong(1, 400, 0.77)
    found = difference([a], [b], resamples=4000)
    gaps = (b.values - a.values).ravel()
    assert found.gap == pytest.approx(gaps.mean())
    expected = scipy.stats.bootstrap(
        (gaps,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.006)
    p = scipy.stats.permutation_test(
        (a.values.ravel(), b.values.ravel()),
        lambda x, y: np.mean(y) - np.mean(x),
        permutation_type="samples",
        n_resamples=4000,
        rng=np.random.default_rng(5),
    ).pvalue
    assert found.p == pytest.approx(p, abs=0.02)


def test_systems_that_are_alike_are_rarely_called_different():
    """p <= 0.05 in about one of twenty pairs; 100 pairs leave 0 to 13 (99.9 %)."""
    low = 0
    for k in range(100):
        pair = [[right_or_wrong(2 * k + side, 120, 0.7)] for side in (0, 1)]
        low += difference(*pair, resamples=200).p <= 0.05
    assert 1 <= low <= 13


def test_seeds_widen_the_interval_where_they_differ():
    steady = [right_or_wrong(k, 500, 0.7) for k in range(3)]
    wild = [right_or_wrong(k, 500, share) for k, share in enumerate((0.5, 0.7, 0.9))]
    other = [right_or_wrong(k + 9, 500, 0.7) for k in range(3)]
    narrow, wide = (difference(other, runs, resamples=600) for runs in (steady, wild))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_no_paired_test_of_unequal_numbers_of_seeds():
    runs = [right_or_wrong(k, 50, 0.7) for k in range(3)]
    assert difference(runs[:1], runs[1:], resamples=50).p is None
    with pytest.raises(ValueError):
        difference([runs[0]], [right_or_wrong(0, 51, 0.7)])


CLASSES = [
    {"text": f"t{i}", "label": str(i % 2), "prediction": str(int(i % 3 == 0)),
     "probabilities": {"0": 0.5, "1": 0.5}}
    for i in range(30)
]  # fmt: skip
RATINGS = [{"text": "t", "label": i / 3, "prediction": i / 4 + (i % 5)} for i in range(30)]
SPAN = {"start": 0, "end": 1, "type": "X", "text": "a"}
ENTITIES = [
    {"text": "a b", "label": [SPAN], "prediction": [SPAN] if i % 2 else []} for i in range(6)
]
ANSWERS = [
    {"q": "?", "context": "a b", "label": [{"text": "a b", "start": 0}], "n_best": [],
     "prediction": {"text": "a" if i % 2 else "b a"}}
    for i in range(6)
]  # fmt: skip


def test_scores_of_each_kind_of_rows():
    from sklearn.metrics import brier_score_loss, f1_score, matthews_corrcoef, roc_auc_score

    gold, said = ([row[s] for row in CLASSES] for s in ("label", "prediction"))
    expected = {
        "accuracy": np.mean([g == p for g, p in zip(gold, said, strict=True)]),
        "f1": f1_score(gold, said, pos_label="1"),
        "f1_macro": f1_score(gold, said, average="macro"),
        "mcc": matthews_corrcoef(gold, said),
    }
    for name, value in expected.items():
        assert judge(CLASSES, name, "").whole == pytest.approx(value), name
    other = judge(CLASSES, "f1", "", positive="0").whole
    assert other == pytest.approx(f1_score(gold, said, pos_label="0")) != expected["f1"]
    sure = np.random.default_rng(0).random(30).round(6)
    given = [
        {**row, "probabilities": {"0": 1 - p, "1": p}} for row, p in zip(CLASSES, sure, strict=True)
    ]
    ones = [int(label) for label in gold]
    area = roc_auc_score(ones, sure)
    assert judge(given, "auc", "").whole == pytest.approx(area)
    assert judge(given, "auc", "", positive="0").whole == pytest.approx(area)
    assert judge(given, "brier", "").whole == pytest.approx(2 * brier_score_loss(ones, sure))
    strange = [*given, {**given[0], "label": "never seen"}]
    assert judge(strange, "brier", "").whole == judge(given, "brier", "").whole
    x, y = ([row[s] for row in RATINGS] for s in ("label", "prediction"))
    ranks = [{**row, "probabilities": {"0": 1.0}} for row in CLASSES]
    wrong = np.mean([row["label"] != row["prediction"] for row in CLASSES])
    assert judge(ranks, "mae", "").whole == pytest.approx(wrong)
    assert judge(RATINGS, "pearson", "").whole == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    assert judge(RATINGS, "spearman", "").whole == pytest.approx(scipy.stats.spearmanr(x, y)[0])
    prices = np.float32(325470.28) * (1 + np.arange(9, dtype=np.float32) / 7)
    sold = [{"text": "t", "label": shortest(p), "prediction": 3e5} for p in prices]
    error = rmse(prices, np.full(9, 3e5))
    assert judge(sold, "rmse", "").whole == pytest.approx(error, rel=1e-12)
    assert judge(ENTITIES, "f1", "").whole == pytest.approx(2 * 3 / (6 + 3))
    two = [{**row, "label": [*row["label"], {**SPAN, "type": "A/B"}]} for row in ENTITIES]
    assert judge(two, "f1/X", "").whole == pytest.approx(2 * 3 / (6 + 3))
    assert judge(two, "f1/A/B", "").whole == 0 < judge(two, "f1", "").whole < 2 * 3 / (6 + 3)
    told = [{k: {"x": v} if k != "text" else v for k, v in row.items()} for row in ENTITIES]
    assert judge(told, "x/f1/X", "").whole == pytest.approx(2 * 3 / (6 + 3))
    assert judge(ANSWERS, "f1", "").whole == pytest.approx(0.5)  # articles don't count
    parts = [
        {"text": "t", "label": {"x": r["label"]}, "prediction": {"x": r["prediction"]}}
        for r in CLASSES
    ]
    assert judge(parts, "x/accuracy", "").whole == pytest.approx(expected["accuracy"])
    for rows, metric in (
        *((CLASSES, "nll"), ([], "accuracy"), (parts, "y/accuracy"), (ENTITIES, "f1/Y")),
    ):
        with pytest.raises(InputError, match="no score"):
            judge(rows, metric, "f")
    for metric in ("mean", "y/accuracy"):
        with pytest.raises(InputError, match="accepted: x/accuracy, x/f1_macro, x/mcc"):
            judge(parts, metric, "f")


@pytest.mark.parametrize(("others", "f1"), [([], 0.5), ([""], 1.0)])
def test_answers_are_scored_as_squad_2_where_none_is_a_candidate(others, f1):
    """A right answer that is an article alone counts in SQuAD 2.0's script only, by which a run is
    scored whose training set has questions without an answer."""
    rows = [
        {
            "label": [{"text": text, "start": 0}],
            "prediction": {"text": text},
            "n_best": [{"text": text}, *({"text": other} for other in others)],
        }
        for text in ("A", "B")
    ]
    assert judge(rows, "f1", "").whole == f1


def workdir(path, hits, **result):
    rows = [
        {"text": f"t{i}", "label": "a", "prediction": "a" if hit else "b"}
        for i, hit in enumerate(hits)
    ]
    write_jsonl(path / "predictions" / "test.jsonl", rows)
    mean = {"test/accuracy": {"mean": float(np.mean(hits))}}
    (path / "result.json").write_text(json.dumps({"metric": "accuracy", "eval": mean, **result}))
    return path


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "b2"):
        (tmp_path / name / "predictions").mkdir(parents=True)
    weak, strong, also = (rng.random(300) < share for share in (0.6, 0.8, 0.8))
    return (
        workdir(tmp_path / "a", weak),
        workdir(tmp_path / "b", strong),
        workdir(tmp_path / "b2", also),
    )


def test_the_command(runs, tmp_path):
    a, b, also = runs
    command = [sys.executable, "-m", "bert_ft.compare", str(a), f"{b},{also}"]
    done = subprocess.run(
        [*command, f"--out={tmp_path}/c.json", "--resamples=300"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["n"] == 300 and found["seeds"] == [1, 2] and found["p"] is None
    assert 0.1 < found["low"] < found["difference"] < found["high"] < 0.4
    assert f"{b} and 1 more is better than {a}: test accuracy" in done.stdout
    assert "rarely bring" in done.stdout and "One seed on a side" in done.stdout


def test_a_run_of_trials_is_its_trials_that_ended(runs, tmp_path):
    a, *both = runs
    whole = tmp_path / "whole"
    for k, run in enumerate(both):
        (whole / "trials").mkdir(parents=True, exist_ok=True)
        (whole / "trials" / str(2 * k)).symlink_to(run)
    trials = [
        {"stopped": {"step": 3} if k == 1 else None, "steps": 3, "settings": {"train.seed": k}}
        for k in range(3)
    ]
    trials.append({"stopped": None, "steps": None, "settings": {"train.seed": 4}})  # lost
    (whole / "result.json").write_text(json.dumps({"trials": trials}))
    found = compare.compare([a], [whole], resamples=50)
    expected = compare.compare([a], both, resamples=50)
    assert found["seeds"] == [1, 2] and found["difference"] == expected["difference"]
    (whole / "result.json").write_text(json.dumps({"trials": trials[1:2]}))
    with pytest.raises(InputError, match="no trial went to its end"):
        compare.compare([a], [whole])
    trials[0]["settings"]["train.learning_rate"] = 1e-3
    (whole / "result.json").write_text(json.dumps({"trials": trials}))
    with pytest.raises(InputError, match="differ in more than their seeds; .*trials/0, comma"):
        compare.compare([a], [whole])


def test_a_small_difference_may_be_chance(runs):
    found = compare.compare(list(runs[1:2]), list(runs[2:]), resamples=300)
    assert found["p"] > 0.05 and "may well be chance" in found["sentence"]
    same = compare.compare(list(runs[1:2]), list(runs[1:2]), resamples=50)
    assert same["difference"] == 0 and same["p"] == 1 and "the same as" in same["sentence"]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda b: (b / "predictions" / "test.jsonl").unlink(), "is not there"),
        (lambda b: workdir(b, [True] * 7), "has 7 rows"),
        (lambda b: workdir(b, [True] * 300, eval={"test/accuracy": {"mean": 0.5}}), "says 0.5"),
        (
            lambda b: (b / "predictions" / "test.jsonl").write_text(
                (b / "predictions" / "test.jsonl").read_text().replace("t42", "T42", 1)
            ),
            "test.jsonl:43: another text or label",
        ),
    ],
)
def test_refused(runs, spoil, words, capsys):
    spoil(runs[1])
    assert compare.main([str(runs[0]), str(runs[1])]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_side_is_seeds_of_one_system(runs):
    a, *both = runs
    for k, (run, rate) in enumerate(zip(both, (1e-3, 1e-3), strict=True)):
        own = {"train.seed": k, "train.learning_rate": rate, "data.train": f"files:fold{k}.csv"}
        (run / "config.json").write_text(json.dumps(own))
    assert compare.compare([a], both, resamples=20)["seeds"] == [1, 2]
    (both[1] / "config.json").write_text(json.dumps({"train.seed": 1, "train.learning_rate": 2e-3}))
    with pytest.raises(InputError, match=r"b2: its train.learning_rate is 0.002, .*b 0.001"):
        compare.compare([a], both)
    assert compare.compare(both[:1], both[1:], resamples=20)["seeds"] == [1, 1]


def test_a_run_twice_is_refused(runs, capsys):
    assert compare.main([f"{runs[0]},{runs[0]}", str(runs[1])]) == 2
    assert "is twice on a side" in capsys.readouterr().err


def test_a_rank_is_the_number_that_a_regression_has(tmp_path):
    sides = []
    for name, of in (("ranks", str), ("numbers", float)):
        (tmp_path / name / "predictions").mkdir(parents=True)
        rows = [{"text": f"t{i}", "label": of(i % 3), "prediction": of(1)} for i in range(9)]
        write_jsonl(tmp_path / name / "predictions" / "test.jsonl", rows)
        (tmp_path / name / "result.json").write_text(json.dumps({"metric": "mae"}))
        sides.append([tmp_path / name])
    assert compare.compare(*sides, resamples=20)["a"] == pytest.approx(2 / 3)
    rows[4]["label"] = 2.0
    write_jsonl(tmp_path / "numbers" / "predictions" / "test.jsonl", rows)
    with pytest.raises(InputError, match="test.jsonl:5: another text or label"):
        compare.compare(*sides, resamples=20)


def test_numbers_that_can_t_be_written_are_said(runs, tmp_path, capsys):
    out = tmp_path / "a" / "result.json" / "x.json"
    assert compare.main([*map(str, runs[:2]), f"--out={out}", "--resamples=20"]) == 2
    said = capsys.readouterr()
    assert "is better than" in said.out and said.err.startswith(f"error: --out={out}: can't")
