"""Runs of several trials, by the command: each as if alone, resumed exactly, recorded together."""

import json
import shutil

import numpy as np
import pytest
from conftest import read_jsonl, remove, reviews, write_jsonl

from bert_ft.train.gather import collapsed
from bert_ft.train.record import write_lines

STEPS = "--config.train.steps=6"
TRIALS = {"seed": [1, 2], "learning_rate": [1e-3, 3e-3]}


def of(given):
    return f"--config.trials={json.dumps(given)}"


def losses(run, k):
    """{step: loss} of a trial, by its own steps."""
    lines = read_jsonl(run.workdir / f"trials/{k}/metrics.jsonl")
    return {line["step"]: line["value"] for line in lines if line["name"] == "train/loss"}


@pytest.fixture(scope="module")
def done(run_cli, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trials") / "run"
    flags = (STEPS, of(TRIALS), "--config.model.dropout=0.1", "--config.eval.every_steps=3",
             "--config.checkpoint.every_steps=3", "--config.checkpoint.keep=9",
             "--config.data.row_counts=2")  # fmt: skip
    return run_cli(workdir, *flags).ok(), flags


def test_all_trials_are_recorded_together(done):
    run, _ = done
    result = run.result
    assert result["seeds"] == [1, 1, 2, 2] and len(result["trials"]) == 4
    assert result["trials"][3]["settings"] == {"train.seed": 2, "train.learning_rate": 3e-3}
    assert len({t["params_sha256"] for t in result["trials"]}) == 4
    for name, score in result["eval"].items():
        assert len(score["per_trial"]) == 4
        assert score["mean"] == pytest.approx(np.mean(score["per_trial"])), name
        assert score["std"] == pytest.approx(np.std(score["per_trial"], ddof=1)), name
    best = result["best_trial"]
    dev = result["eval"]["dev/accuracy"]["per_trial"]
    assert dev[best] == max(dev)
    losses = [line for line in run.metrics if line["name"] == "train/loss"]
    assert [(x["step"], x["trial"]) for x in losses] == [
        (s, t) for s in range(1, 7) for t in range(4)
    ]
    assert "4 trials" in (run.workdir / "report.html").read_text()
    for k in range(4):
        own = json.loads((run.workdir / "trials" / str(k) / "result.json").read_text())
        assert own["params_sha256"] == result["trials"][k]["params_sha256"]
        assert (
            own["eval"]["test/accuracy"]["mean"]
            == (result["eval"]["test/accuracy"]["per_trial"][k])
        )
        lines = read_jsonl(run.workdir / "trials" / str(k) / "metrics.jsonl")
        mine = [x["value"] for x in lines if x["name"] == "train/loss"]
        assert mine == [x["value"] for x in losses if x["trial"] == k]


def test_one_program_trains_all(done):
    speed = done[0].result["speed"]
    assert speed["compiles"] == len(speed["row_counts"])
    own = [json.loads((done[0].workdir / f"trials/{k}/result.json").read_text()) for k in range(4)]
    for rate in ("examples_per_s", "tokens_per_s"):
        assert speed[rate] == pytest.approx(sum(of["speed"][rate] for of in own))


def test_a_trial_is_bit_for_bit_the_one_alone(done, run_here, tmp_path):
    run, flags = done
    alone = run_here(tmp_path / "one", *flags, of([{"seed": 2, "learning_rate": 1e-3}])).ok()
    assert alone.result["trials"][0]["params_sha256"] == run.result["trials"][2]["params_sha256"]


def test_a_trial_is_a_run_of_its_own(done, run_here, tmp_path):
    """The plain program, whose numbers are constants: the same losses but for rounding."""
    run, flags = done
    plain = run_here(
        tmp_path / "plain", *flags, of("")[:-2], "--config.train.seed=2",
        "--config.train.learning_rate=0.003",
    ).ok()  # fmt: skip
    mine = {x["step"]: x["value"] for x in run.metrics
            if x["name"] == "train/loss" and x["trial"] == 3}  # fmt: skip
    for step, value in plain.values("train/loss").items():
        assert mine[step] == pytest.approx(value, abs=1e-4)


def test_trials_go_on_exactly(done, run_here, tmp_path):
    run, flags = done
    shutil.copytree(run.workdir, tmp_path / "cut")
    remove(tmp_path / "cut", "checkpoints/6", "trials", "result.json")
    for missing in ((), ("config.json",)):  # then by what the checkpoint says
        remove(tmp_path / "cut", *missing)
        shared = run_here(tmp_path / "cut", *flags, "--config.trial.share_batches=True")
        shared.refused("trial.share_batches: false -> true")
    again = run_here(tmp_path / "cut", *flags).ok()
    assert "own checkpoint of step 3, 4 trials" in again.err
    assert again.result["params_sha256"] == run.result["params_sha256"]
    run_here(tmp_path / "cut", *flags, of({"seed": [1, 2]})).refused("config.trials has changed")


def test_a_changed_config_is_refused_once_all_is_done(done, run_here):
    run, flags = done
    run_here(run.workdir, *flags, "--config.train.weight_decay=0.5").refused(
        "config or data changed", "train.weight_decay: 0.01 -> 0.5"
    )
    alone = [flag for flag in flags if "trials" not in flag]
    for mode in ("train", "eval"):
        run_here(run.workdir, *alone, f"--mode={mode}").refused("is of a run of config.trials")


def test_a_lost_trial_ends_and_counts_for_nothing(run_here, tmp_path):
    """Its place goes to one that waits, and a start from the checkpoint behind that knows it."""
    given = of([{"seed": 1}, {"seed": 2, "learning_rate": 1e30}, {"seed": 3}])
    flags = (STEPS, given, "--config.trial.at_once=2", "--config.checkpoint.every_steps=1",
             "--config.checkpoint.keep=99", "--config.trial.ensembles=False")  # fmt: skip
    run = run_here(tmp_path / "run", *flags).ok()
    stop = run.result["trials"][1]["stopped"]
    assert stop["why"] == "its loss is not finite" and 0 < stop["step"] < 6
    assert "counts for nothing: its loss is not finite after" in run.err
    for name, score in run.result["eval"].items():
        assert score["per_trial"][1] is None, name
        assert score["mean"] == pytest.approx(np.mean(score["per_trial"][::2]))
    assert run.result["best_trial"] in (0, 2)
    begun = int(run.err.split("begins at step ")[1].split()[0])
    assert begun < 6, "the trial that waited could have begun before the others' evaluation"
    for path in (run.workdir / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > begun + 1:
            shutil.rmtree(path)
    shutil.rmtree(run.workdir / "trials")
    (run.workdir / "result.json").unlink()
    again = run_here(run.workdir, *flags).ok()
    assert f"own checkpoint of step {begun + 1}, 2 trials" in again.err
    assert again.result["trials"] == run.result["trials"]
    assert again.result["eval"] == run.result["eval"]


def test_a_lost_program_leaves_the_others_be(run_here, tmp_path):
    lost = {"seed": 2, "learning_rate": 1e30, "train.schedule": "linear"}
    flags = (STEPS, "--config.eval.report=False")
    run = run_here(tmp_path / "one", *flags, of([lost, {"seed": 1}])).ok()
    assert "group 0: loss is not finite at step" in run.err
    assert run.result["eval"]["test/accuracy"]["per_trial"][0] is None
    assert run.result["best_trial"] == 1
    log = (run.workdir / "log.txt").read_text().splitlines()
    assert log[-1] == run.err.splitlines()[-1] and log[-1].startswith("results: ")
    asked = [f"--config.predict.input={write_jsonl(tmp_path / 'in.jsonl', reviews(3, 5))}"]
    asked += ["--mode=predict", "--config.predict.trial=0"]
    done = run_here(tmp_path / "one", *flags, of([lost, {"seed": 1}]), *asked)
    done.refused("predict.trial", "its loss not finite")
    again = run_here(tmp_path / "one", *flags, of([lost, {"seed": 1}]), "--mode=eval").ok()
    assert again.result["eval"] == run.result["eval"]
    none = run_here(tmp_path / "none", *flags, of([lost]))
    assert none.code == 77 and "loss is not finite" in none.err


def test_what_trials_are_worth_together_is_done_again_where_it_is_missing(done, run_here, tmp_path):
    run, flags = done
    shutil.copytree(run.workdir, tmp_path / "cut")
    for later in ("trials/together.json", "result.json"):
        (tmp_path / "cut" / later).unlink()
    again = run_here(tmp_path / "cut", *flags).ok()
    assert again.result["ensembles"] == run.result["ensembles"] != {}


def test_trials_that_wait_are_the_same_once_they_begin(done, run_here, tmp_path):
    run, flags = done
    more = ("--config.trial.at_once=3", "--config.log.every_steps=4")
    few = run_here(tmp_path / "few", *flags, *more).ok()
    assert "trials: 4, 3 at a time" in few.err
    assert "begins at step 6 in the place of 0" in few.err and "not finite" not in few.err
    assert few.result["ensembles"] == run.result["ensembles"]
    assert few.result["speed"]["examples_per_s"] is None  # of no step in which all were
    for k in range(4):
        assert few.result["trials"][k]["params_sha256"] == run.result["trials"][k]["params_sha256"]
        here, there = (
            {
                (line["step"], line["name"]): line["value"]
                for line in read_jsonl(w / f"trials/{k}/metrics.jsonl")
                if "_per_s" not in line["name"]
            }
            for w in (few.workdir, run.workdir)
        )
        kept = [at for at in there if at[0] in (4, 6) or at[1].startswith("dev/")]
        assert here == {at: there[at] for at in kept}  # each 4th of its own steps, and its last


def test_trials_that_wait_without_dev_and_go_on_exactly(done, run_here, tmp_path):
    run, flags = done
    flags = (*flags, "--config.data.dev=", "--config.trial.at_once=2")
    few = run_here(tmp_path / "few", *flags).ok()
    before = few.result
    for one, other in zip(before["trials"], run.result["trials"], strict=True):
        assert one["params_sha256"] == other["params_sha256"]
    (few.workdir / "result.json").unlink()
    for later in ("checkpoints/12", "trials/2", "trials/3"):
        shutil.rmtree(few.workdir / later)
    run_here(few.workdir, *flags, "--config.trial.at_once=4").refused("trial.at_once: 2 -> 4")
    again = run_here(few.workdir, *flags).ok()
    assert "own checkpoint of step 9, 2 trials" in again.err
    assert again.result["params_sha256"] == before["params_sha256"]


def test_a_wave_of_stacked_trials_gives_all_its_places_away(done, run_here, tmp_path):
    run, flags = done
    more = ("--config.trial.at_once=2", "--config.trial.width=2")
    wide = run_here(tmp_path / "wide", *flags, *more).ok()
    assert wide.err.count("begins at step 6") == 2
    for k in range(4):
        assert losses(wide, k) == pytest.approx(losses(run, k), abs=1e-3)


def test_a_number_that_fills_no_wave_is_said(run_here, tmp_path):
    few = ("--config.train.steps=1", "--config.trial.ensembles=False", "--config.eval.report=False")
    run = run_here(tmp_path / "run", *few, of({"seed": [0, 1, 2, 3, 4]}), "--config.trial.width=4")
    said = "1 computed at a time, 5 times a step; with --config.trial.at_once=4 4 at a time"
    assert said in run.ok().err


def test_stacked_trials_learn_the_same(done, run_here, tmp_path):
    run, flags = done
    wide = run_here(tmp_path / "wide", *flags, "--config.trial.width=4").ok()
    for a, b in zip(run.metrics, wide.metrics, strict=True):
        assert (a["step"], a["name"], a.get("trial")) == (b["step"], b["name"], b.get("trial"))
        if a["name"].endswith("loss"):
            assert a["value"] == pytest.approx(b["value"], abs=1e-3)


def test_shared_batches_are_those_of_the_commands_seed(done, run_here, tmp_path):
    """Those of seed 1, which the first two trials have; a device reads them once for all four."""
    run, flags = done
    more = ("--config.trial.share_batches=True", "--config.train.seed=1", "--config.trial.width=4")
    shared = run_here(tmp_path / "shared", *flags, *more).ok()
    for k in range(2):
        assert losses(shared, k) == pytest.approx(losses(run, k), abs=1e-3)
    for k in range(2, 4):
        assert losses(shared, k) != pytest.approx(losses(run, k), abs=1e-3)


def test_trials_over_a_mesh_go_on_exactly(done, run_cli, tmp_path):
    """Two at a time on two halves of four devices, each with its parameters split over fsdp; the
    others take their places. The losses are those of one device."""
    run, flags = done
    over = ("--config.mesh.trial=2", "--config.mesh.fsdp=2", "--config.mesh.preset=fsdp",
            "--config.trial.at_once=2")  # fmt: skip
    meshed = run_cli(tmp_path / "run", *flags, *over, devices=4).ok()
    assert meshed.err.count("begins at step 6") == 2
    for k in range(4):
        assert losses(meshed, k) == pytest.approx(losses(run, k), abs=1e-3)
    before = meshed.result
    (meshed.workdir / "result.json").unlink()
    for later in ("checkpoints/12", "trials/2", "trials/3"):
        shutil.rmtree(meshed.workdir / later)
    run_cli(meshed.workdir, *flags, over[-1]).refused("trial.width * mesh.trial: 2 -> 1")
    again = run_cli(meshed.workdir, *flags, *over, devices=4)
    assert again.code == 0, again.err
    assert "own checkpoint of step 9, 2 trials" in again.err
    assert again.result["params_sha256"] == before["params_sha256"]


def test_what_cannot_share_a_program_has_its_own(run_here, tmp_path):
    listed = [{"seed": 0}, {"data.max_length": 4}, {"seed": 1, "steps": 4}]
    listed.append({"seed": 1, "data.max_length": 4})
    run = run_here(tmp_path / "run", STEPS, of(listed)).ok()
    assert "4 in 2 programs" in run.err
    assert [t["steps"] for t in run.result["trials"]] == [6, 6, 4, 6]
    together = run.result["ensembles"]
    assert together["soup_uniform_0"]["members"] == [0, 2]
    assert together["soup_uniform_1"]["members"] == [1, 3]
    assert together.keys() >= {"mean_prediction_0", "mean_prediction_1"}
    for name, cut in (
        ("0", False),
        ("soup_uniform_0", False),
        ("1", True),
        ("soup_uniform_1", True),
    ):
        (tmp_path / "in.jsonl").write_text(
            json.dumps({"text": "a great film of long words"}) + "\n"
        )
        out = tmp_path / f"{name}.jsonl"
        run_here(
            run.workdir, STEPS, "--mode=predict", f"--config.predict.input={tmp_path / 'in.jsonl'}",
            f"--config.predict.output={out}", f"--config.predict.trial={name}",
        ).ok()  # fmt: skip
        assert read_jsonl(out)[0]["truncated"] is cut, "not by the config of its trial"
    steps: dict[int, int] = {}
    for line in run.metrics:
        if line["name"] == "train/loss":
            steps[line["trial"]] = max(line["step"], steps.get(line["trial"], 0))
    assert steps == {0: 6, 1: 6, 2: 4, 3: 6}


@pytest.mark.parametrize(
    ("right", "fell", "why"), [(70, 0.0, "has not fallen"), (70, 0.1, ""), (72, 0.0, "")]
)
def test_a_trial_that_has_learnt_nothing_is_named(tmp_path, right, fell, why):
    # Of 120 rows of two labels 60 are right by chance; two standard errors are sqrt(120) = 10.95.
    said = [
        {"text": "a\x85b\u2028", "prediction": "ab"[i % 2], "label": "ab"[(i % 2) ^ (i >= right)]}
        for i in range(120)
    ]
    write_lines(tmp_path / "predictions" / "test.jsonl", said)
    losses = [0.7 - fell * (step > 50) for step in range(1, 101)]
    write_lines(tmp_path / "metrics.jsonl", (
        {"step": i, "name": "train/loss", "value": v} for i, v in enumerate(losses)))  # fmt: skip
    assert why in collapsed(tmp_path) and bool(why) == bool(collapsed(tmp_path))


def test_predict_and_export_choose_a_trial(done, run_here, tmp_path):
    run, flags = done
    rows = [{"text": "a great film"}, {"text": "an awful plot"}]
    given = tmp_path / "in.jsonl"
    given.write_text("".join(json.dumps(r) + "\n" for r in rows))
    answers = {}
    for which in ("best", "0", "1", "2", "3"):
        out = tmp_path / f"{which}.jsonl"
        run_here(
            run.workdir, *flags, "--mode=predict", f"--config.predict.input={given}",
            f"--config.predict.output={out}", f"--config.predict.trial={which}",
        ).ok()  # fmt: skip
        answers[which] = out.read_text()
    assert answers["best"] == answers[str(run.result["best_trial"])]
    assert len(set(answers.values())) == 4
    run_here(
        run.workdir, *flags, "--mode=predict", f"--config.predict.input={given}",
        "--config.predict.trial=7",
    ).refused("config.predict.trial is '7'; accepted: 'best', 'soup_uniform'")  # fmt: skip


def test_eval_scores_all_trials_again(done, run_here):
    run, flags = done
    before = run.result
    again = run_here(run.workdir, *flags, "--mode=eval").ok().result
    assert again["eval"] == before["eval"] and again["best_trial"] == before["best_trial"]
    assert again["ensembles"] == before["ensembles"]
    fewer = [flag for flag in flags if "data.test" not in flag] + ["--config.data.test="]
    without = run_here(run.workdir, *fewer, "--mode=eval").ok().result["ensembles"]
    assert without.keys() == before["ensembles"].keys()
    assert not any(name.startswith("test/") for of in without.values() for name in of)
    run_here(run.workdir, *flags, "--mode=eval").ok()
    run_here(run.workdir, *flags, "--mode=eval", of({"seed": [1]})).refused("has changed")


def test_the_ensembles_are_runs_too(done, run_here, tmp_path):
    run, flags = done
    together = run.result["ensembles"]
    assert together.keys() == {"mean_prediction", "soup_uniform", "soup_greedy"}
    assert together["soup_uniform"]["members"] == [0, 1, 2, 3]
    # As of any run: others resume it, or learn from it, by its config.
    own = json.loads((run.workdir / "trials/soup_uniform/config.json").read_text())
    assert own["methods.use"] == "" and own["trials"] == ""
    assert run.result["best_trial"] in together["soup_greedy"]["members"]
    dev = "dev/accuracy"
    assert together["soup_greedy"][dev] >= max(run.result["eval"][dev]["per_trial"])
    out = tmp_path / "soup.jsonl"
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "a great film"}) + "\n")
    run_here(
        run.workdir, *flags, "--mode=predict", f"--config.predict.input={tmp_path / 'in.jsonl'}",
        f"--config.predict.output={out}", "--config.predict.trial=soup_greedy",
    ).ok()  # fmt: skip
    assert len(read_jsonl(out)) == 1


@pytest.mark.parametrize(
    "given, words",
    [
        ({"warmup": [0.1, 2.0]}, "trial 1 (warmup 2): config.train.warmup is 2.0"),
        ({"seed": []}, "'seed' is []"),
        ({"lr": [1e-5]}, "'lr' is no key"),
    ],
)
def test_refused(run_here, tmp_path, given, words):
    run_here(tmp_path / "run", of(given)).refused(words)


def test_trials_start_from_the_run_that_is_named(done, run_here, tmp_path):
    run, _ = done
    given = run.workdir / "trials" / "0"
    after = run_here(
        tmp_path / "run", "--config.train.steps=1", of([{"seed": 7}]), f"--config.resume={given}",
        "--config.train.learning_rate=0.0", "--config.model.dropout=0.1",
    ).ok()  # fmt: skip
    assert f"start: parameters of {given}, step 6" in after.err
    assert after.result["trials"][0]["params_sha256"] == run.result["trials"][0]["params_sha256"]


def test_trials_that_do_not_fill_the_mesh_are_refused_before_data_is_read(run_here, tmp_path):
    flags = ("--config.mesh.trial=3", "--config.data.train=files:nowhere.csv")
    run_here(tmp_path / "run", *flags, of({"seed": [1, 2, 3, 4]})).refused(
        "config.mesh.trial is 3 for 4 trials at once; accepted: a divisor"
    )
    run_here(tmp_path / "run", *flags).refused("config.mesh.trial is 3; accepted: 1 where")
