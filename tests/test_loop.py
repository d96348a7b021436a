"""What the loop holds itself to: compilations, meshes, a loss that is finite."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_jsonl, remove, reviews, write_jsonl
from sklearn.metrics import f1_score

from bert_ft import compare
from bert_ft.errors import InputError, Preempted
from bert_ft.train import finish, lock, loop, trial_results
from bert_ft.train.lock import locked
from bert_ft.train.processes import this_host
from bert_ft.train.step import CompileCount, Programs


def test_compilations_equal_row_counts(run_here, tmp_path):
    with CompileCount("train_step") as train, CompileCount("eval_step") as evaluation:
        flags = ("--config.eval.every_steps=5", "--config.data.row_counts=2")
        done = run_here(tmp_path / "run", *flags).ok()
    assert "optimizer moments" in (done.workdir / "log.txt").read_text(), "bytes a device"
    speed = done.result["speed"]
    assert speed["compiles"] == len(speed["row_counts"]) == train.count == 2
    assert evaluation.count == 2, "one for dev, in which there were four evaluations, one for test"


def test_a_compilation_too_many_fails_the_run(run_here, tmp_path, monkeypatch):
    def train_step(step):
        return step + 1

    class Careless(Programs):
        def __call__(self, state, batch):
            jax.jit(train_step)(state.step)
            return super().__call__(state, batch)

    monkeypatch.setattr(loop, "Programs", Careless)
    with pytest.raises(AssertionError, match="2 compilations of the train step, 1 row count"):
        run_here(tmp_path / "run")


def test_the_transfer_guard_stands_over_the_step(run_here, tmp_path, monkeypatch):
    class Careless(Programs):
        def __call__(self, state, batch):
            return super().__call__(state, batch | {"weight": np.ones(8, np.float32)})

    monkeypatch.setattr(loop, "Programs", Careless)
    with pytest.raises(Exception, match="transfer"):
        run_here(tmp_path / "run")


def test_the_best_loss_is_the_lowest(run_here, deep, tmp_path):
    """At a learning rate that spoils what it has learnt: the last loss is not the best one."""
    flags = ["--config.eval.every_steps=2", "--config.eval.keep_best=True"]
    flags += ["--config.eval.metric=loss", "--config.train.learning_rate=2e-2"]
    flags += [f"--config.model.pretrained={deep}"]
    done = run_here(tmp_path / "run", *flags).ok()
    losses = done.values("dev/loss")
    best = min(losses, key=losses.__getitem__)
    assert best != max(losses) and done.result["steps"] == best
    assert done.result["eval"]["dev/loss"]["mean"] == pytest.approx(losses[best], rel=1e-5)


def test_what_another_run_left_is_not_the_best(run_here, tmp_path):
    """Without its checkpoints nothing says whose `best/` is; the next run's must not be that."""
    flags = ["--config.eval.every_steps=2", "--config.train.steps=6", "--config.eval.report=False"]
    for name, more in (("best", ["--config.eval.keep_best=True"]), ("last", [])):
        workdir, seed = tmp_path / name, "--config.train.seed=1"
        # Of the other run each score on dev is better, and its steps are the same.
        run_here(workdir, *flags, *more, "--config.train.learning_rate=1e-3").ok()
        remove(workdir, "checkpoints")
        own = [*flags, *more, seed, "--config.train.learning_rate=1e-6"]
        again, alone = run_here(workdir, *own).ok(), run_here(tmp_path / f"{name}_alone", *own).ok()
        assert again.result["params_sha256"] == alone.result["params_sha256"]
        assert again.result["steps"] == alone.result["steps"]
        scored = run_here(workdir, *own, "--mode=eval").ok()
        assert scored.result["params_sha256"] == alone.result["params_sha256"]


def test_a_score_of_other_keys_than_the_trainings_says_so(run_here, tmp_path):
    """What the record says that it was scored with is what its scores are made of."""
    flags = ["--config.train.steps=2"]
    done = run_here(tmp_path / "run", *flags).ok()
    assert "scored_with" not in done.result
    other = "--config.task.positive_label=negative"
    learnt = ("--config.task.label_names=bad,good", "--config.train.steps=9")  # changes nothing
    again = run_here(tmp_path / "run", other, *learnt, "--mode=eval").ok()
    assert '-> "bad,good" (stays as trained)' in again.err
    assert again.result["scored_with"] == {"task.positive_label": "negative"}
    rows = read_jsonl(tmp_path / "run" / "predictions" / "test.jsonl")
    gold, said = ([row[side] for row in rows] for side in ("label", "prediction"))
    f1 = f1_score(gold, said, pos_label="negative", zero_division=0)
    assert again.result["eval"]["test/f1"]["mean"] == pytest.approx(f1)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "an evaluation with task.positive_label = negative" in page
    # A comparison goes by it, and not by the training's.
    own = run_here(tmp_path / "own", *flags).ok().workdir
    with pytest.raises(InputError, match="own: its f1 is of the label 'positive'.*'negative'"):
        compare.compare([tmp_path / "run"], [own], "f1")
    run_here(own, *flags, other, "--mode=eval").ok()
    found = compare.compare([tmp_path / "run"], [own], "f1", resamples=20)
    assert found["difference"] == 0 and found["a"] == pytest.approx(f1)
    assert compare.compare([tmp_path / "run"], [own], "auc", resamples=20)["difference"] == 0
    assert "scored_with" not in run_here(own, *flags, "--mode=eval").ok().result
    # Nor are predictions of an earlier evaluation shown as those of one without a test set.
    bare = run_here(own, *flags, "--config.data.test=", "--mode=eval").ok()
    assert bare.result["scored_with"] == {"data.test": ""}
    assert "predictions" not in bare.err.splitlines()[-1]
    assert "Confusion" in page and "Confusion" not in (own / "report.html").read_text()


def test_a_gradient_that_is_not_finite(run_here, tmp_path, monkeypatch):
    """The loss of its step is; the parameters after it are lost: neither saved nor scored."""

    class Spoiled(Programs):
        def __call__(self, state, batch):
            state, metrics = super().__call__(state, batch)
            with jax.transfer_guard("allow"):
                lost = jnp.where(state.step == 3, jnp.nan, metrics["gradient_norm"])
            return state, {**metrics, "gradient_norm": lost}

    monkeypatch.setattr(loop, "Programs", Spoiled)
    flags = ["--config.train.steps=3", "--config.checkpoint.every_steps=1"]
    done = run_here(tmp_path / "run", *flags)
    assert done.code == 77 and "gradient is not finite at step 3; rows" in done.err
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))[-1] == "2"


def test_one_training_at_a_time_in_a_workdir(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAITS_S", 1.0)
    flags = ["--config.train.steps=2", "--config.eval.report=False"]
    run_here(tmp_path / "run", *flags).ok()
    with locked(tmp_path / "run"):
        run_here(tmp_path / "run", *flags).refused(f"{this_host()} is training there")
        run_here(tmp_path / "run", *flags, "--mode=eval").ok()
    run_here(tmp_path / "run", *flags).ok()


def test_a_test_set_that_changes_meanwhile(run_here, world, tmp_path, monkeypatch):
    """Its texts are no longer those that were scored; the run is not lost by it."""
    path = tmp_path / "test.jsonl"
    path.write_text(world.test.read_text())

    def edited(*args):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
        return finish.tune(*args)

    monkeypatch.setattr(loop, "tune", edited)
    flags = ["--config.train.steps=2", f"--config.data.test=files:{path}"]
    done = run_here(tmp_path / "run", *flags).ok()
    assert "no predictions are written: config.data.test has changed" in done.err
    assert "test/accuracy" in done.result["eval"]
    assert not (tmp_path / "run" / "predictions" / "test.jsonl").exists()
    again = run_here(tmp_path / "run", *flags, "--mode=eval").ok()
    assert again.result["eval"]["test/accuracy"] == done.result["eval"]["test/accuracy"]
    assert len(read_jsonl(tmp_path / "run" / "predictions" / "test.jsonl")) == 45


def test_a_loss_that_is_not_finite(run_here, tmp_path):
    flags = ["--config.train.learning_rate=1e30", "--config.checkpoint.every_steps=1"]
    done = run_here(tmp_path / "run", *flags)
    assert done.code == 77, done.err
    last = done.err.strip().splitlines()[-1]
    match = re.fullmatch(
        r"error: loss is not finite at step (\d+); rows of its batch: (\[.*\]); "
        r"the last good checkpoint is kept",
        last,
    )
    assert match, last
    step, rows = int(match[1]), json.loads(match[2])
    assert len(set(rows)) == 8 and set(rows) <= set(range(160))
    assert "Traceback" not in done.err
    kept = sorted(int(p.name) for p in (done.workdir / "checkpoints").glob("[0-9]*"))
    assert kept and kept[-1] < step, (kept, step)
    [lost] = [m for m in done.metrics if m["step"] == step and m["name"] == "train/loss"]
    assert lost["value"] is None and lost["not_finite"] in ("nan", "inf")
    assert not (done.workdir / "result.json").exists()
    # The checkpoint that is kept can be read: the same run goes the same way again.
    again = run_here(tmp_path / "run", *flags)
    assert again.code == 77 and again.err.strip().splitlines()[-1] == last
    assert f"start: own checkpoint of step {kept[-1]}" in again.err


@pytest.fixture(scope="module")
def on_devices(run_cli, tmp_path_factory):
    """{name: run} of the same 20 steps on other meshes."""
    root = tmp_path_factory.mktemp("devices")
    plans = {
        "1": (1, []),
        "8": (8, []),
        "8 fsdp": (8, ["--config.mesh.preset=fsdp"]),
        "2x4 fsdp": (8, ["--config.mesh.preset=fsdp", "--config.mesh.fsdp=4"]),
    }

    def run(name):
        devices, flags = plans[name]
        words = ["--config.eval.every_steps=10", *flags]
        return run_cli(root / name.replace(" ", "-"), *words, devices=devices)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(plans, pool.map(run, plans), strict=True))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("8", "data 8, fsdp 1"), ("8 fsdp", "data 1, fsdp 8"), ("2x4 fsdp", "data 2, fsdp 4")],
)
def test_the_same_losses_on_any_mesh(on_devices, name, mesh):
    one, many = on_devices["1"].ok(), on_devices[name].ok()
    assert f"mesh: trial 1, {mesh}, tensor 1" in many.err
    assert many.result["devices"].startswith("8 x ")
    for metric in ("train/loss", "dev/loss"):
        a, b = one.values(metric), many.values(metric)
        assert list(a) == list(b) and len(a) in (20, 2)
        np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=0, atol=1e-4)
    assert many.result["eval"]["test/accuracy"]["n_examples"] == 45
    assert len(read_jsonl(many.workdir / "predictions" / "test.jsonl")) == 45
    answers = [read_jsonl(r.workdir / "predictions/test.jsonl") for r in (one, many)]
    # Every example has its own prediction, whichever device made it.
    for x, y in zip(*answers, strict=True):
        assert x["text"] == y["text"]
        assert x["probabilities"] == pytest.approx(y["probabilities"], abs=1e-4)


@pytest.mark.parametrize(
    "trials", [(), ('--config.trials={"seed": [1, 2]}',)], ids=["alone", "trials"]
)
def test_speed_outlives_a_stop_in_the_last_evaluation(run_here, tmp_path, monkeypatch, trials):
    """What is left to do then has no step that could be timed."""
    flags = ("--config.train.steps=4", "--config.data.dev=", "--config.eval.report=False", *trials)

    def stop(*_):
        raise Preempted("preempted in an evaluation")

    with monkeypatch.context() as patched:
        for module in (loop, trial_results):
            patched.setattr(module, "conclude", stop)
        assert run_here(tmp_path / "run", *flags).code == 75
    again = run_here(tmp_path / "run", *flags).ok()
    assert again.result["speed"]["step_ms_p50"] > 0 and again.result["speed"]["compiles"] > 0
    assert not list(tmp_path.rglob("speed.json"))


def test_other_runs_may_be_named_by_relative_paths(run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = "--config.train.steps=2"
    run_here(tmp_path / "a", short).ok()
    found = [
        run_here(tmp_path / to, short, f"--config.resume={named}").ok().result["params_sha256"]
        for to, named in (("b", "a"), ("c", tmp_path / "a"))
    ]
    assert found[0] == found[1]
    taught = ("--config.methods.use=distil", "--config.methods.distil.teacher=a")
    run_here(tmp_path / "d", short, *taught).ok()


def test_texts_that_train_has_too_are_counted(world, run_here, tmp_path):
    flags = ("--config.train.steps=1", f"--config.data.dev=files:{world.train}?limit=30")
    done = run_here(tmp_path / "run", *flags).ok()
    assert re.search("^dev: 30 examples .* 30 with a text that train has too$", done.err, re.M)


def test_answers_have_the_ids_of_their_rows(run_here, tmp_path):
    rows = [{**row, "id": i} for i, row in zip((7, "", None, "x"), reviews(4, seed=3), strict=True)]
    test = write_jsonl(tmp_path / "test.jsonl", rows)
    done = run_here(tmp_path / "run", "--config.train.steps=1", f"--config.data.test=files:{test}")
    answers = read_jsonl(done.ok().workdir / "predictions" / "test.jsonl")
    assert [a.get("id") for a in answers] == [7, None, None, "x"] and "id" not in answers[1]
