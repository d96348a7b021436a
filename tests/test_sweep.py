"""A sweep: groups of trials, told and asked for, stopped early, gone on exactly; its record."""

import importlib.util
import json
import sys

import pytest
from conftest import Done, command

from bert_ft.errors import InputError

pytest.importorskip("optuna")

SPACE = {"learning_rate": {"log": [1e-5, 1e-2]}, "dropout": {"uniform": [0, 0.2]},
         "clip_norm": {"choice": [0.5, 1.0]}}  # fmt: skip
FLAGS = (
    *("--config.train.steps=4", "--config.eval.every_steps=2", "--config.checkpoint.every_steps=2"),
    *("--config.trial.ensembles=False", "--config.eval.report=False", "--config.data.test="),
    *("--trials=4", "--group=2"),
)


@pytest.fixture
def run_sweep(world, cache, monkeypatch, capfd):
    """The program, within this process."""
    from absl import flags
    from absl.testing import flagsaver
    from jax.experimental.compilation_cache import compilation_cache

    from bert_ft import sweep

    def run(workdir, *words, space=SPACE):
        given = [f"--space={json.dumps(space)}"] if space else []
        argv = [*command(world.config, workdir, *FLAGS, *words, *given)[2:]]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        compilation_cache.reset_cache()
        before = flagsaver.save_flag_values()
        capfd.readouterr()
        try:
            code = sweep.main(argv)
        finally:
            flagsaver.restore_flag_values(before, flags.FLAGS)
        out, err = capfd.readouterr()
        return Done(code, out, err, workdir)

    return run


def found(run):
    return json.loads((run.workdir / "search.json").read_text())


def test_a_sweep_cut_twice_finds_what_an_undisturbed_one_finds(run_sweep, tmp_path, monkeypatch):
    from bert_ft.train.trial_training import Training

    whole = run_sweep(tmp_path / "whole").ok()
    result = found(whole)
    assert [one["state"] for one in result["trials"]] == ["complete"] * 4
    settings = [one["settings"] for one in result["trials"]]
    assert len({one["train.learning_rate"] for one in settings}) == 4
    for one in settings:
        assert 1e-5 <= one["train.learning_rate"] <= 1e-2 and 0 <= one["model.dropout"] <= 0.2
    for number, one in enumerate(result["trials"]):
        group = whole.workdir / "groups" / str(number // 2)
        scores = json.loads((group / "result.json").read_text())["eval"]["dev/accuracy"]
        assert one["value"] == scores["per_trial"][number % 2]
    assert result["best"]["value"] == max(one["value"] for one in result["trials"])
    last = whole.out.strip().splitlines()[-1]
    assert last == result["command"] and last.startswith("python -m bert_ft.main --config=")
    rate = result["best"]["settings"]["train.learning_rate"]
    assert f"--config.train.learning_rate={rate}" in last and "--config.train.steps=4" in last
    assert "--trials=" not in last and f"--workdir={whole.workdir / 'best'}" in last
    page = (whole.workdir / "search.html").read_text()
    for name in ("best so far", "learning rate", "dropout", "clip norm"):
        assert f'aria-label="{name}"' in page
    assert page.count("<circle") == 4 * 4 and "<script" not in page

    run_sweep(tmp_path / "cut", "--trials=2").ok()  # a kill between groups
    real = Training.step

    def step(self, number, batches):
        if number == 3:
            raise KeyboardInterrupt
        real(self, number, batches)

    monkeypatch.setattr(Training, "step", step)
    assert run_sweep(tmp_path / "cut").code == 130
    assert [one["state"] for one in found(whole)["trials"]] == ["complete"] * 4
    monkeypatch.setattr(Training, "step", real)
    cut = run_sweep(tmp_path / "cut").ok()
    assert "own checkpoint of step 2, 2 trials" in cut.err and "group 0:" not in cut.err
    assert found(cut)["trials"] == result["trials"] and found(cut)["best"] == result["best"]

    same = run_sweep(tmp_path / "cut").ok()  # all is done: it says so again
    assert same.out == cut.out and "group" not in same.err
    other = {**SPACE, "dropout": {"uniform": [0, 0.1]}}
    run_sweep(tmp_path / "cut", space=other).refused("was begun otherwise: --space: ", "0.2", "0.1")
    run_sweep(tmp_path / "cut", "--sampler=random").refused('--sampler: "tpe" -> "random"')
    run_sweep(tmp_path / "cut", "--config.train.weight_decay=0.5").refused("train.weight_decay: ")


def test_a_damaged_search_is_said(tmp_path):
    from bert_ft.search import Search
    from bert_ft.space import parsed

    about = {"--sampler": "tpe", "--pruner": "none", "--group": 1, "--sampler_seed": 0}
    (tmp_path / "search.db").write_bytes(b"no database" * 400)
    with pytest.raises(InputError, match=r"search\.db can't be read or written: .*not a database"):
        Search(tmp_path, parsed(json.dumps(SPACE), "--space"), {**about, "metric": "f1"})


def test_a_trial_that_falls_behind_is_stopped(tmp_path):
    """Six that ended, whose scores rise; then one that is worse than their median, and one not."""
    from bert_ft.search import Search
    from bert_ft.space import parsed

    space = parsed(json.dumps(SPACE), "--space")
    about = {"--sampler": "cmaes", "--pruner": "median", "--group": 8, "--sampler_seed": 0}
    about["metric"] = "f1"
    search = Search(tmp_path, space, about)
    assert search.ask(0) == Search(tmp_path, space, about).ask(0)  # as after a kill
    prune = search.prune([[n] for n in range(8)])
    for n in range(6):
        assert not prune(n, 2, n / 10)
        search.tell(n, n / 10, None)
    assert prune(6, 2, 0.1) and not prune(7, 2, 0.4)
    assert not prune(7, 4, 0.5)
    again = Search(tmp_path, space, about).prune([[n] for n in range(8)])
    assert again(6, 2, 0.1) and not again(7, 2, 0.4)
    search.tell(6, None, {"step": 2, "score": 0.1})
    search.tell(7, None, None)
    states = [(one["state"], one["value"], one["step"]) for one in search.trials()[5:]]
    assert states == [("complete", 0.5, None), ("stopped", 0.1, 2), ("no score", None, None)]
    assert search.is_done(0) and not search.is_done(1) and search.best()["number"] == 5
    assert len(search.ask(1)) == 8


@pytest.mark.parametrize(
    "words, space, said",
    [
        ((), None, "--space is missing"),
        ((), {"learning_rat": {"log": [1, 2]}}, "--space: 'learning_rat' is no key"),
        ((), {"dropout": {"uniform": [0.3, 0.3]}}, "which holds nothing"),
        ((), {"dropout": {"uniform": [0, 1.5]}}, "--space (dropout 1.5): config.model.dropout is"),
        (("--sampler=grid",), SPACE, "--sampler=grid; accepted: 'tpe' or 'cmaes' or 'random'"),
        (("--pruner=best",), SPACE, "--pruner=best; accepted: 'median' or 'none'"),
        (("--trials=5",), SPACE, "--trials=5 with --group=2; accepted: 1 or more each, and whole"),
        (("--trials=0",), SPACE, "--trials=0"),
        (("--mode=eval",), SPACE, "a sweep trains, in one process"),
        (("--config.data.dev=",), SPACE, "config.data.dev is ''"),
        (('--config.trials={"seed": [1]}',), SPACE, "config.trials or trial.samples is given"),
        (
            ("--config.mesh.trial=4",),
            SPACE,
            "config.mesh.trial is 4; accepted: a divisor of 2, the",
        ),
        (("--config.trial.at_once=3", "--config.mesh.trial=2"), SPACE, "config.trial.at_once is 3"),
        (("--config.train.accumulate=3",), SPACE, "error: config.train.accumulate is 3; accepted"),
    ],
)
def test_refused(run_sweep, tmp_path, words, space, said):
    run_sweep(tmp_path / "run", *words, space=space).refused(said)
    assert not (tmp_path / "run").exists()


def test_trials_over_a_mesh_and_some_at_a_time(run_sweep, tmp_path, monkeypatch):
    """The keys are taken; the command that is said at the end trains one trial without them."""
    from absl.testing import flagsaver

    from bert_ft import command_line, main, sweep

    begun = []
    monkeypatch.setattr(sweep, "sweep", lambda *given: begun.append(given) or 0)
    words = ["--config.mesh.trial=4", "--config.trial.at_once=4", "--config.trial.halving=2"]
    run_sweep(tmp_path / "run", "--trials=8", "--group=8", *words).ok()
    config, _, _, _, given = begun[0]
    assert config.mesh.trial == config.trial.at_once == 4 and not config.trials
    argv = given.split()[2:]
    assert argv[0] == "bert_ft.main"
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
        best, _ = command_line.parse(argv, main.CONFIG, main.WORKDIR, main.MODE)
    assert (best.mesh.trial, best.trial.at_once, best.trial.halving) == (1, 0, 0)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--workdir runs/a --config=a.py", "--config=a.py"),
        ("--space {} --config a.py --config.a -1", "--config a.py --config.a -1"),
        ("--config=a.py --noconfig.eval.report --trials 4", "--config=a.py --noconfig.eval.report"),
        ("-config=a.py -noconfig.eval.report", "-config=a.py -noconfig.eval.report"),
    ],
)
def test_the_command_keeps_the_configs_own_words(tmp_path, words, kept):
    from small import config

    from bert_ft.sweep import _given

    given = _given(["sweep.py", *words.split()], config(), tmp_path)
    assert given == f"python -m bert_ft.main {kept} --workdir={tmp_path / 'best'}"


@pytest.mark.parametrize(
    ("rates", "heads", "at_once", "axis", "data"),
    [
        ([1e-5, 1e-4, 1e-3, 1e-2], "", 0, 4, 2),
        ([1e-5, 1e-4, 1e-3], "", 0, 1, -1),
        ([1e-5, 1e-4], "new", 0, 2, -1),
        ([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "", 4, 4, 2),
    ],
)
def test_a_group_that_does_not_fill_the_mesh(rates, heads, at_once, axis, data):
    """Some of its trials were not to be trained, or it needs several programs."""
    from small import config

    from bert_ft.sweep import _fill_mesh

    c = config(mesh__trial=4, mesh__data=2, trial__at_once=at_once)
    wanted = [{"train.learning_rate": rate} for rate in rates]
    wanted += [{**one, "model.head": heads} for one in wanted if heads]
    _fill_mesh(c, wanted)
    assert (c.mesh.trial, c.mesh.data) == (axis, data)


def test_without_optuna_the_extra_is_named(run_sweep, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "cmaes" else real(name, *a)
    )
    run_sweep(tmp_path / "run").refused("needs cmaes, which is not installed", "bert_ft[sweep]")


def test_a_sweep_whose_groups_are_halved(run_sweep, tmp_path):
    flags = ["--config.trial.halving=2", "--config.train.steps=8", "--pruner=none", "--group=4"]
    done = run_sweep(tmp_path / "run", *flags).ok()
    result = found(done)
    states = [one["state"] for one in result["trials"]]
    assert sorted(states) == ["complete", "stopped", "stopped", "stopped"], states
    (best,) = (one for one in result["trials"] if one["state"] == "complete")
    assert result["best"]["number"] == best["number"]
