"""Trials over the devices of two processes: the numbers of one."""

import json

import pytest
from several import quick, start

FLAGS = (
    *("--config.train.steps=4", "--config.eval.every_steps=2", "--config.model.dropout=0.1"),
    "--config.mesh.trial=2",
    f"--config.trials={json.dumps([{'seed': 1}, {'seed': 2, 'learning_rate': 1e-3}])}",
    *("--config.trial.ensembles=False", "--config.eval.report=False"),
)


def test_the_same_losses_as_one_process(world, cache, run_cli, tmp_path):
    one = run_cli(tmp_path / "one", *FLAGS, devices=2).ok()
    with start(tmp_path / "two", world.config, cache, *FLAGS, *quick(30), devices=1) as run:
        two = run.done(500)
    ours, theirs = (
        {(x["step"], x["name"], x["trial"]): x["value"] for x in run.metrics if "trial" in x}
        for run in (two, one)
    )
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-4), key
    for name, score in one.result["eval"].items():
        assert two.result["eval"][name]["per_trial"] == pytest.approx(score["per_trial"]), name
    assert two.result["best_trial"] == one.result["best_trial"]
