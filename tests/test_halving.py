"""Successive halving: who stops, who takes whose place, and that nothing else changes by it."""

import json
import math
import shutil

import pytest
from small import config

from bert_ft import trials
from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.train.gather import combined
from bert_ft.train.halving import LOST, Places, Stop

STEPS = "--config.train.steps=8"
COMMON = (STEPS, "--config.eval.every_steps=2", "--config.model.dropout=0.1")
TRIALS = {"seed": [1, 2], "learning_rate": [1e-5, 3e-3]}
SPACE = {"learning_rate": {"log": [1e-3, 5e-3]}, "seed": {"int": [5, 50]}}
HALVING = (
    "--config.trial.halving=2",
    f"--config.trials={json.dumps(TRIALS)}",
    f"--config.trial.space={json.dumps(SPACE)}",
    "--config.trial.samples=2",
    *("--config.checkpoint.every_steps=2", "--config.checkpoint.keep=9"),
    *("--config.eval.report=True", "--config.trial.ensembles=False"),
)


def places(count=4, more=0, steps=8, every=1, eta=2, metric="accuracy"):
    begun = [0] * count + [None] * more
    return Places([steps] * (count + more), every, eta, metric, list(range(count)), begun)


def test_rungs_are_at_powers_of_eta():
    p = places(count=1, steps=30, every=2, eta=3)
    for step in range(0, 31):
        p.judge(step, {0: 0.5})
    assert list(p.rungs) == [2, 6, 18] and not p.stopped


def test_the_best_go_on_and_the_first_of_two_that_tie():
    p = places(count=5)
    p.judge(1, {0: 0.5, 1: 0.9, 2: 0.5, 3: None, 4: 0.4})
    assert p.stopped.keys() == {2, 3, 4} and p.stopped[4] == Stop(1, 0.4, 5)
    p.judge(2, {0: 0.8, 1: 0.7})
    assert p.stopped.keys() == {1, 2, 3, 4}
    assert list(p.live(2)) == [True] + [False] * 4 and p.last() == 8


def test_lower_is_better_of_an_error():
    p = places(count=2, metric="rmse")
    p.judge(1, {0: 3.0, 1: 1.0})
    assert p.stopped.keys() == {0}


def test_those_that_wait_take_the_places_and_meet_the_scores_there():
    p = places(count=2, more=3, steps=4)
    p.judge(1, {0: 0.5, 1: 0.6})
    assert p.fill(1) == [(0, 0, 2)] and p.trial == [2, 1] and p.age(2, 3) == 2
    p.judge(2, {2: 0.55, 1: 0.1})
    assert p.rungs[1] == {0: 0.5, 1: 0.6, 2: 0.55} and p.stopped[2].among == 3
    assert 1 not in p.stopped  # alone at its rung
    assert p.fill(2) == [(0, 2, 3)]
    p.judge(3, {3: 0.7})
    assert 3 not in p.stopped and p.due(4) == [0, 1]
    assert p.fill(4) == [(1, 1, 4)]  # a trial that has ended leaves, too


def test_a_trial_that_is_lost_makes_room():
    p = places(count=2, more=1, eta=0)
    assert not p.free(3)
    p.stop(1, 3, None, why=LOST)
    assert not p.free(3) and list(p.live(3)) == [True, False, False]
    assert p.free(4) == [1] and p.fill(4) == [(1, 1, 2)]
    assert not p.free(4) and not p.waiting() and p.last() == 12


def test_a_record_is_all_there_is_to_know():
    p = places(count=3, more=1)
    p.judge(1, {0: 0.5, 1: None, 2: 0.7})
    p.fill(1)
    p.stop(2, 2, None, why=LOST)
    again = places(count=3, more=1)
    again.restore(json.loads(json.dumps(p.record())))
    assert again == p


def test_all_may_have_been_stopped():
    stop = {"metric": "accuracy", "step": 2, "score": 0.5, "among": 0}
    found = combined(config(), [{}, {}], [None, None], [stop, stop], ["", ""])
    assert found["best_trial"] is None and found["eval"] == {} and found["steps"] == 0
    assert [one["stopped"] for one in found["trials"]] == [stop, stop]


@pytest.fixture(scope="module")
def alone(run_cli, tmp_path_factory):
    """All four trials to their ends, with no halving."""
    flags = (*COMMON, f"--config.trials={json.dumps(TRIALS)}", "--config.trial.ensembles=False")
    return run_cli(tmp_path_factory.mktemp("halving") / "alone", *flags).ok()


@pytest.fixture(scope="module")
def halved(run_cli, tmp_path_factory):
    return run_cli(tmp_path_factory.mktemp("halving") / "halved", *COMMON, *HALVING).ok()


def test_a_survivor_is_bit_for_bit_the_trial_that_nobody_halved(alone, halved):
    stopped = [one["stopped"] for one in halved.result["trials"]]
    assert sum(map(bool, stopped)) >= 3 and not all(stopped[:4])
    for k in range(4):
        if not stopped[k]:
            expected = alone.result["trials"][k]["params_sha256"]
            assert halved.result["trials"][k]["params_sha256"] == expected


def test_halving_is_recorded(halved):
    result = halved.result
    for k, one in enumerate(result["trials"]):
        if one["stopped"]:
            own = halved.workdir / "trials" / str(k)
            stop = json.loads((own / "stopped.json").read_text())
            assert stop == one["stopped"] and stop["metric"] == "accuracy"
            lines = [json.loads(x) for x in (own / "metrics.jsonl").read_text().splitlines()]
            last = [x for x in lines if x["name"] == "dev/accuracy"][-1]
            assert (last["step"], last["value"]) == (stop["step"], stop["score"])
            assert max(x["step"] for x in lines) == stop["step"]
            assert not (own / "result.json").exists()
            assert result["eval"]["test/accuracy"]["per_trial"][k] is None
            assert (
                f"stopped at {stop['score']:.4f}, after {stop['step']} steps"
                in (halved.workdir / "report.html").read_text()
            )
    assert "trials were stopped early" in halved.err
    assert result["speed"]["compiles"] == len(result["speed"]["row_counts"])


def test_a_trial_that_took_a_place_is_the_one_alone(halved, run_here, tmp_path):
    """Its own batches from its own first step, and its own initial parameters."""
    drawn = [k for k in (4, 5) if not halved.result["trials"][k]["stopped"]]
    lines = [x for x in halved.metrics if x["name"] == "train/loss" and x["trial"] == 4]
    begun = min(x["step"] for x in lines) - 1
    assert begun > 0
    one = halved.result["trials"][4]["settings"]
    run = run_here(tmp_path / "one", *COMMON, f"--config.trials={json.dumps([one])}").ok()
    expected = {x["step"]: x["value"] for x in run.metrics if x["name"] == "train/loss"}
    for line in lines:
        assert line["value"] == pytest.approx(expected[line["step"] - begun], abs=1e-5)
    for k in drawn:
        assert halved.result["trials"][k]["steps"] == 8


def test_halving_goes_on_exactly(halved, run_here, tmp_path):
    """From a checkpoint behind the first rung, with the later ones still to come."""
    kept = 2
    shutil.copytree(halved.workdir, tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > kept:
            shutil.rmtree(path)
    shutil.rmtree(tmp_path / "cut" / "trials")
    again = run_here(tmp_path / "cut", *COMMON, *HALVING).ok()
    assert f"own checkpoint of step {kept}" in again.err
    before, after = halved.result, again.result
    assert after["trials"] == before["trials"] and after["eval"] == before["eval"]
    assert after["params_sha256"] == before["params_sha256"]


def test_another_number_of_evaluations_is_refused(halved, run_here, tmp_path):
    shutil.copytree(halved.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "trials")
    flags = (*COMMON, *HALVING)
    run_here(tmp_path / "run", *flags, "--config.eval.every_steps=3").refused(
        "eval.every_steps: 2 -> 3"
    )
    run_here(tmp_path / "run", *flags, "--config.trial.samples=3").refused(
        "config.trials has changed", "trial.samples=2"
    )
    run_here(halved.workdir, *flags, "--mode=predict", f"--config.predict.trial={_stopped(halved)}",
             "--config.predict.input=x.jsonl").refused("which was stopped after")  # fmt: skip


def _stopped(run):
    return next(k for k, one in enumerate(run.result["trials"]) if one["stopped"])


def test_draws_are_known_before_the_first_step():
    c = config(data__dev="x", eval__every_steps=1, trial__halving=2, trial__samples=50)
    c.trials, c.trial.space = json.dumps({"seed": [1]}), json.dumps(SPACE)
    found = trials.settings(c)
    assert len(found) == 51 and found == trials.settings(c)
    rates = [one["train.learning_rate"] for one in found[1:]]
    assert 1e-3 <= min(rates) < 2e-3 and 3e-3 < max(rates) <= 5e-3
    logs = [math.log(rate) for rate in rates]
    assert sum(logs) / 50 == pytest.approx((math.log(1e-3) + math.log(5e-3)) / 2, abs=0.2)
    c.train.seed = 1
    assert trials.settings(c)[1:] != found[1:]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"trial__halving": 1}, "trial.halving is 1; accepted: 2 or more"),
        ({"trials": ""}, "trial.halving is 2; accepted: nothing where config.trials is ''"),
        ({"data__dev": ""}, "trial.halving is 2; accepted: 0 where there is no data.dev"),
        ({"eval__every_steps": 0}, "trial.halving is 2; accepted: 0 where"),
        ({"trials": '[{"seed": 0}, {"data.dev": ""}]'}, "that is never scored on dev"),
        ({"trial__samples": 0}, "trial.samples is 0; accepted: both or neither"),
        ({"trial__halving": 0}, "trial.samples is 3; accepted: 0 where trial.halving is 0"),
        ({"trial__share_batches": True}, "trial.share_batches is True"),
        ({"trial__space": '{"dropout": {"uniform": [0, 1.5]}}'}, "(dropout 1.5): config.model."),
        ({"trial__space": '{"seed": {"int": [0, 1]}}'}, "trial.space holds hardly more"),
        ({"trial__space": '{"sed": {"int": [0, 1]}}'}, "config.trial.space: 'sed' is no key"),
    ],
)
def test_refused(change, words):
    c = config(
        **{"data__train": "x", "data__dev": "x", "eval__every_steps": 1, "trial__halving": 2},
        **{"trial__samples": 3, "model__tokenizer": "x", "trial__space": json.dumps(SPACE)},
    )
    c.trials = json.dumps({"seed": [0, 1]})
    with c.unlocked():
        for key, value in change.items():
            c.update_from_flattened_dict({key.replace("__", "."): value})
    with pytest.raises(InputError) as e:
        check(c)
    assert words in str(e.value)


def test_a_space_that_needs_another_program_is_refused(run_here, tmp_path):
    flags = [x for x in HALVING if "space" not in x]
    space = f"--config.trial.space={json.dumps({'train.batch_size': {'int': [4, 8]}})}"
    run_here(tmp_path / "run", *COMMON, *flags, space).refused(
        "config.trial.space: the trials and the draws need", "learning_rate"
    )


def test_stacked_trials_change_places_too(halved, run_here, tmp_path):
    wide = run_here(tmp_path / "wide", *COMMON, *HALVING, "--config.trial.width=2").ok()
    assert wide.err.count("begins at step") == 2
    stops = [[one["stopped"] for one in run.result["trials"]] for run in (wide, halved)]
    assert stops[0] == stops[1]
    ours, theirs = (
        {(x["step"], x["trial"]): x["value"] for x in run.metrics if x["name"] == "train/loss"}
        for run in (wide, halved)
    )
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-3), key
