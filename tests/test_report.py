"""The report: self-contained, inert whatever the texts hold, and there whatever is missing."""

import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from bert_ft.errors import InputError
from bert_ft.evals import plots, spans
from bert_ft.evals.report import write_report

HOSTILE = (
    "<script>alert(1)</script>",
    "</p></li></ul><img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)><style>body{display:none}</style>",
    "<iframe src=http://example.com></iframe><a href='javascript:alert(4)'>&lt;x&amp;",
    "a lone \ud800 surrogate, a \u202e turned one, a \u2028 line end, a \x00",
)


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _run(workdir, names=("negative", "positive"), evals=(50, 100), trials=(None,), rows=60):
    rng = np.random.default_rng(0)
    records = [
        {"step": s, "name": name, "value": 1 / s, **({} if t is None else {"trial": t})}
        for t in trials
        for name, steps in (("train/loss", range(10, 101, 10)), ("dev/accuracy", evals))
        for s in steps
    ]
    _lines(workdir / "metrics.jsonl", records)
    predictions = []
    for i in range(rows):
        p = rng.dirichlet(np.ones(len(names)))
        probabilities = dict(zip(names, map(float, p), strict=True))
        answer = {"label": names[i % len(names)], "prediction": names[int(p.argmax())]}
        predictions.append({"text": f"text {i}", **answer, "probabilities": probabilities})
    _lines(workdir / "predictions" / "test.jsonl", predictions)
    score = {"mean": 0.829, "std": 0.003, "per_trial": [0.83] * len(trials), "n_examples": rows}
    result = {"eval": {"test/accuracy": score}, "speed": {"examples_per_s": 61.2}}
    (workdir / "result.json").write_text(json.dumps(result))
    config = {"task": {"name": "sentiment"}, "train": {"learning_rate": 5e-5, "epochs": 3}}
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


class _Tags(html.parser.HTMLParser):
    """Collects every tag and attribute, and sees that what opens also closes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _inert(path):
    text = path.read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert not tags.tags & {"script", "iframe", "img", "a", "link", "object", "embed", "base"}
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert not tags.attributes & {"src", "href", "style"}
    assert text.count("<style>") == 1 and "url(" not in text and "@import" not in text
    assert not re.search(r"NaN|\bnan\b", re.sub(r"<p>.*?</p>", "", text))
    return text


@pytest.mark.parametrize("classes", [2, 3, 15, 21, 77])
@pytest.mark.parametrize("evals", [(100,), (50, 100)])
def test_a_page_for_any_number_of_classes_and_evaluations(tmp_path, classes, evals):
    names = [f"class {i}" for i in range(classes)]
    text = _inert(write_report(_run(tmp_path, names, evals, rows=200)))
    for due in ("82.9 %", "Confusion", "Reliability", "ECE", "sentiment", "61.2"):
        assert due in text
    assert text.count("<li>") == 20
    for number in re.findall(r'(?:[xy]|width|height|cx|cy)="(-?[\d.]+)"', text):
        assert -1 <= float(number) <= 640


def test_training_batches_are_not_taken_for_a_set(tmp_path):
    workdir = _run(tmp_path)
    lines = [{"step": s, "name": "train/accuracy", "value": 0.5} for s in (1, 2)]
    with open(workdir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    text = write_report(workdir).read_text()
    assert "accuracy on training batches" in text and "dev accuracy" in text


def test_mistakes_are_sorted_by_confidence(tmp_path):
    text = write_report(_run(tmp_path)).read_text()
    sureness = [float(p) for p in re.findall(r"</span> ([\d.]+)% <span", text)]
    assert len(sureness) == 20 and sureness == sorted(sureness, reverse=True)


@pytest.mark.parametrize("where", ["text", "label", "metric", "config", "workdir"])
def test_hostile_text_is_inert(tmp_path, where):
    names = HOSTILE if where == "label" else ("negative", "positive")
    folder = "<img onerror=alert(1)>" if where == "workdir" else "run"
    workdir = _run(tmp_path / folder, names)
    if where == "text":
        path = workdir / "predictions" / "test.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        _lines(path, [{**r, "text": HOSTILE[i % 5] * (1 + i)} for i, r in enumerate(rows)])
    if where == "metric":
        records = [{"step": 1, "name": f"dev/{h}", "value": 0.5} for h in HOSTILE]
        _lines(workdir / "metrics.jsonl", records)
        scores = {f"test/{h}": {"mean": 0.5} for h in HOSTILE}
        (workdir / "result.json").write_text(json.dumps({"eval": scores}))
    if where == "config":
        config = {"model": {"pretrained": HOSTILE[1]}, "task": {"name": HOSTILE[0]}, HOSTILE[2]: 1}
        (workdir / "config.json").write_text(json.dumps(config))
    text = _inert(write_report(workdir, defaults={}))
    assert "&lt;" in text


def test_trials_show_their_spread(tmp_path):
    text = _inert(write_report(_run(tmp_path, trials=(0, 1, 2))))
    assert "± 0.3 %" in text and "3 trials" in text


def test_trials_have_a_table_boxes_and_ensembles(tmp_path):
    settings = [{"train.seed": s, "train.learning_rate": r} for r in (1e-5, 3e-5) for s in range(5)]
    dev = [0.70, 0.72, None, 0.71, 0.74, 0.80, 0.81, 0.85, 0.79, 0.5]
    trials = [{"settings": one, "collapsed": ""} for one in settings]
    trials[9]["collapsed"] = "predicts 'a' for all rows"
    result = {
        **{"metric": "accuracy", "best_trial": 7, "trials": trials},
        "eval": {"dev/accuracy": {"mean": 0.73, "std": 0.1, "per_trial": dev}},
        "ensembles": {"soup_greedy": {"members": [7, 5], "dev/accuracy": 0.86}},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    text = _inert(write_report(tmp_path))
    assert "collapsed: predicts" in text and "soup greedy" in text and ">0.8600<" in text
    row = '<td class="n">7</td><td class="n">2</td><td class="n">3e-05</td><td class="n">0.8500'
    assert row in text
    # A box for each rate and a dot a trial; no chart of seeds with one trial each would help.
    assert text.count('<rect class="area"') == 2
    assert text.count('<circle class="point"') == 9 + 9
    assert "1e-05: 0.74" in text


def test_close_settings_keep_their_points(tmp_path):
    rates = [0.12345671, 0.12345672, 0.3, 0.3]
    trials = [{"settings": {"model.dropout": r}, "collapsed": ""} for r in rates]
    dev = {"mean": 0.75, "std": 0.1, "per_trial": [0.6, 0.7, 0.8, 0.9]}
    result = {"metric": "accuracy", "trials": trials, "eval": {"dev/accuracy": dev}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    text = _inert(write_report(tmp_path))
    assert text.count('<circle class="point"') == 4
    assert "0.12345671: 0.6" in text and "0.12345672: 0.7" in text


def test_an_end_on_average_is_of_those_that_came_to_it(tmp_path):
    workdir = _run(tmp_path, trials=(0, 1, 2))
    lines = [{"step": 100, "name": "dev/accuracy", "value": v, "trial": k}
             for k, v in enumerate((0.4, 0.8, None))]  # fmt: skip
    _lines(workdir / "metrics.jsonl", lines)
    result = json.loads((workdir / "result.json").read_text()) | {"metric": "accuracy"}
    trials = [{"settings": {}, "collapsed": ""} for _ in range(3)]
    trials[2]["stopped"] = {"step": 50, "score": None, "why": "its loss is not finite"}
    for stops, caption in (
        (trials, "2 of 3 trials came to their end, with 60.0 % on average"),
        ([], "3 trials, not finite on average at the end"),
    ):
        whole = {**result, "trials": stops, "best_trial": None, "predictions_of": 1}
        (workdir / "result.json").write_text(json.dumps(whole))
        text = _inert(write_report(workdir))
        assert caption in text and "What follows is of trial 1." in text


def test_the_score_at_the_top_is_the_metric_of_the_run(tmp_path):
    scores = {
        f"{s}/{m}": {"mean": v}
        for s, v in (("dev", 0.1), ("test", 0.2))
        for m in ("accuracy", "f1")
    }
    for metric, first in (("f1", "test f1"), ("accuracy", "test accuracy")):
        (tmp_path / "result.json").write_text(json.dumps({"metric": metric, "eval": scores}))
        text = _inert(write_report(tmp_path))
        names = ["test f1", "test accuracy", "dev f1"]
        assert min(names, key=text.index) == first


def test_the_best_of_an_error_is_the_lowest(tmp_path):
    values = {"dev/rmse_cold_item": (0.9, 0.7, 0.8), "dev/ndcg": (0.4, 0.6, 0.5)}
    _lines(
        _run(tmp_path) / "metrics.jsonl",
        [
            {"step": step, "name": name, "value": value}
            for name, of_steps in values.items()
            for step, value in enumerate(of_steps)
        ],
    )
    text = write_report(tmp_path).read_text()
    assert "0.800 at step 2; best 0.700 at step 1" in text
    assert "0.500 at step 2; best 0.600 at step 1" in text


def test_regression_is_a_scatter(tmp_path):
    rows = [{"text": f"t{i}", "label": i / 10, "prediction": i / 9} for i in range(50)]
    _lines(tmp_path / "predictions" / "test.jsonl", rows)
    text = _inert(write_report(tmp_path))
    assert "Pearson 1.000" in text and text.count("<circle") == 50 and "Confusion" not in text
    assert text.index("t49") < text.index("t48") < text.index("t47")


def _answer(question, context, gold, said, sure):
    at = context.find(said) if said else None
    found = {"text": said, "start": at, "end": at and at + len(said), "probability": sure}
    label = [{"text": gold, "start": context.index(gold)}] if gold else []
    row = {"id": "7", "question": question, "context": context}
    return {**row, "label": label, "prediction": found, "n_best": [found], "truncated": False}


def test_answers_show_their_confidence_and_mistakes(tmp_path):
    context = "Ada Lovelace wrote the first program in 1843 in <b>London</b>."
    rows = [
        _answer("Who wrote it?", context, "Ada Lovelace", "Ada Lovelace", 0.9),
        _answer("Who was she?", context, "Ada Lovelace", "Ada", 0.8),
        _answer("When was it?", context, "1843", "London", 0.7),
        _answer("When else?", context, "", "1843", 0.95),
    ]
    _lines(tmp_path / "predictions" / "test.jsonl", rows)
    text = _inert(write_report(tmp_path))
    assert "1 of 4 exactly right" in text and "1 answers are right in part" in text
    assert "without a word in common (2)" in text
    assert text.index("When else?") < text.index("When was it?")  # the surer mistake first
    assert '<td>who</td><td class="n">2</td><td class="n">50.0%</td>' in text
    assert "(no answer)" in text and "&lt;b&gt;London" in text


def _entity(text, name, kind, sure=None):
    start = text.index(name)
    more = {} if sure is None else {"probability": sure}
    return {"start": start, "end": start + len(name), "type": kind, "text": name, **more}


def test_entities_show_their_types_and_what_kind_of_mistake(tmp_path):
    text = "Maria Silva of Acme Steel met John in Rome on Monday"
    gold = [("Maria Silva", "PER"), ("Acme Steel", "ORG"), ("Rome", "LOC"), ("John", "PER")]
    said = [("Maria Silva", "PER"), ("Acme", "ORG"), ("Rome", "ORG"), ("Monday", "LOC")]
    row = {
        "text": text,
        "label": [_entity(text, *e) for e in gold],
        "prediction": [_entity(text, *e, 0.9 - i / 10) for i, e in enumerate(said)],
    }
    _lines(tmp_path / "predictions" / "test.jsonl", [row])
    page = _inert(write_report(tmp_path))
    cell = '<td>{}</td><td class="n">{}</td>'
    for kind, count in {"bounds": 1, "type": 1, "spurious": 1, "missed": 1}.items():
        assert cell.format(kind, count) in page
    assert cell.format("PER", 2) + '<td class="n">100.0</td><td class="n">50.0</td>' in page
    assert "4 entities in 1 texts; F1 25.0%" in page
    assert page.index("Acme [ORG]") < page.index("Rome [ORG]") < page.index("Monday [LOC]")


@pytest.mark.parametrize("kept", [None, "result.json", "config.json", "metrics.jsonl"])
def test_what_is_missing_is_said(tmp_path, kept):
    workdir = _run(tmp_path)
    (workdir / "predictions" / "test.jsonl").unlink()
    for name in {"result.json", "config.json", "metrics.jsonl"} - {kept}:
        (workdir / name).unlink()
    text = _inert(write_report(workdir))
    assert "no predictions/test.jsonl" in text
    assert ("no metrics.jsonl" in text) == (kept != "metrics.jsonl")
    assert ("No result.json" in text) == (kept != "result.json")


def test_values_that_are_not_finite_leave_gaps(tmp_path):
    curves = {
        "train/loss": [1.0, None, 0.5, None],
        "dev/x": [1.0, None, 0.5, None],
        "dev/y": [None, None],
        "dev/once": [0.5],
    }
    _lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": step, "name": name, "value": value}
            for name, values in curves.items()
            for step, value in enumerate(values)
        ],
    )
    text = _inert(write_report(tmp_path))
    assert "no finite values" in text
    assert "dev y" in text and "dev once" not in text, "a single value is no curve"


def test_only_what_differs_from_the_defaults_is_shown(tmp_path):
    defaults = {"task": {"name": "sentiment"}, "train": {"learning_rate": 2e-5, "epochs": 3}}
    text = write_report(_run(tmp_path), defaults).read_text()
    assert "<td>train.learning_rate</td><td>5e-05</td><td>2e-05</td>" in text
    assert text.count("<td>train.epochs</td>") == 1  # in the fold only


def test_a_torn_last_record_is_forgiven_and_a_broken_file_is_named(tmp_path):
    workdir = _run(tmp_path)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "na')
    write_report(workdir)
    (workdir / "predictions" / "test.jsonl").write_text('{"text": "a"}\n{"te\n')
    with pytest.raises(InputError, match=r"test\.jsonl:2: "):
        write_report(workdir)
    (workdir / "result.json").write_text("[]")
    with pytest.raises(InputError, match=r"result\.json"):
        write_report(workdir)
    with pytest.raises(InputError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


def test_it_imports_no_plotting_library():
    code = (
        "import sys, bert_ft.evals.report as r; assert not {'matplotlib', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "low,high,labels",
    [
        (0.61, 0.83, ["0.60", "0.65", "0.70", "0.75", "0.80", "0.85"]),
        (0, 5e-5, ["0", "1e-5", "2e-5", "3e-5", "4e-5", "5e-5"]),
        (120000, 124000, ["1.2e5", "1.21e5", "1.22e5", "1.23e5", "1.24e5"]),
        (2e-5, 2.1e-5, ["2e-5", "2.02e-5", "2.04e-5", "2.06e-5", "2.08e-5", "2.1e-5"]),
        (3, 3, ["2.6", "2.8", "3.0", "3.2", "3.4"]),
    ],
)
def test_ticks_are_round_and_few(low, high, labels):
    assert plots.tick_labels(plots.ticks(low, high)) == labels


def test_ticks_however_close_have_labels_that_tell_them_apart():
    rng = np.random.default_rng(0)
    for power, apart in zip(rng.uniform(5, 15, 300), rng.uniform(-9.5, 1, 300), strict=True):
        low = 10.0**power
        labels = plots.tick_labels(plots.ticks(low, low * (1 + 10.0**apart)))
        assert len({*labels}) == len(labels)


def test_smoothing_starts_without_a_pull_to_zero():
    got = plots.smooth(np.array([2.0, 2.0, np.nan, 2.0]), half_life=3)
    np.testing.assert_allclose(got, 2.0)


def test_thinning_keeps_the_spikes():
    y = np.zeros(10_000)
    y[4321], y[7] = 9.0, -9.0
    x, thinned = plots.thin(np.arange(10_000), y)
    assert len(x) <= 400 and thinned.max() == 9.0 and thinned.min() == -9.0


def test_rows_without_any_label_are_no_entities():
    """But for those of tags."""
    empty = {"label": [], "prediction": []}
    assert not spans.are_entities([empty]) and not spans.are_entities([])
    assert spans.are_entities([{**empty, "tags": ["O"]}])
    assert spans.are_entities([empty, {"label": [{"type": "A"}], "prediction": []}])
