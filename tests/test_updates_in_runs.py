"""Averages in whole runs: what is scored, kept and resumed; the same in trials."""

import importlib.util
import json

import numpy as np
import pytest
from conftest import remove

from bert_ft.models.hf import flatten
from bert_ft.train import optim
from bert_ft.train.start import abstract_state, checkpoints, saved_part
from bert_ft.train.step import Programs
from bert_ft.train.system import assemble

STEPS = 4
FLAGS = (f"--config.train.steps={STEPS}", "--config.data.row_counts=1",
         "--config.eval.report=False", "--config.trial.ensembles=False")  # fmt: skip
EACH = ("--config.checkpoint.every_steps=1", "--config.checkpoint.keep=9")
METHODS = {
    "ema": ("--config.methods.use=ema", "--config.methods.ema.decay=0.5"),
    "swa": ("--config.methods.use=swa", "--config.methods.swa.start=0.5"),
}


def held(world, workdir, method, cache, monkeypatch):
    """(the parameters after each step, what is kept of the run), flat."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    spec = importlib.util.spec_from_file_location("tiny", world.config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.methods.use = method
    system = assemble(c, lambda _: None)
    like = abstract_state(system, optim.make_optimizer(c, STEPS))
    with checkpoints(c, workdir, lambda _: None, read_only=True) as saved:
        states = [saved.restore(saved_part(like), {}, step=s)[0] for s in range(1, STEPS + 1)]
        best = saved.restore_best(like.params, {})[0]
    return [flatten(s.params) for s in states], flatten(best)


@pytest.fixture
def after(world, run_here, cache, tmp_path, monkeypatch):
    def run(method):
        done = run_here(tmp_path / "run", *FLAGS, *EACH, *METHODS[method]).ok()
        return done, *held(world, tmp_path / "run", method, cache, monkeypatch)

    return run


def require_close(best, expected, last, tolerance):
    apart = 0.0
    for path, value in best.items():
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=tolerance, err_msg=path)
        apart = max(apart, float(np.abs(value - last[path]).max()))
    assert apart > 1e-3, "the last step's parameters were kept"


@pytest.mark.long
def test_the_equal_average_is_kept(after):
    _, params, best = after("swa")
    expected = {k: np.mean([p[k] for p in params[1:]], axis=0) for k in best}
    require_close(best, expected, params[-1], 1e-6)


def test_the_average_is_kept_and_goes_on_exactly(after, run_here, tmp_path):
    done, params, best = after("ema")
    expected = dict(params[0])
    for t, theta in enumerate(params[1:], 1):
        d = min(0.5, (1 + t) / (10 + t))
        expected = {k: d * expected[k] + (1 - d) * theta[k] for k in best}
    # No checkpoint has a_0: of the first step, at most 3e-3, a tenth is missing here, and of that
    # remains the product of the later d_t, 2/11 x 3/12 x 4/13.
    require_close(best, expected, params[-1], 3e-4 * 2 / 11 / 4 * 4 / 13 + 1e-6)
    remove(tmp_path / "run", "checkpoints/3", "checkpoints/4", "best", "result.json")
    again = run_here(tmp_path / "run", *FLAGS, *EACH, *METHODS["ema"]).ok()
    assert "own checkpoint of step 2" in again.err
    assert again.result["params_sha256"] == done.result["params_sha256"]
    assert again.result["eval"] == done.result["eval"]


LISTED = [{"seed": 1}, {"seed": 2, "learning_rate": 1e-3}]
OF_TRIALS = (*FLAGS, "--config.methods.use=lora,layer_decay,ema", "--config.train.steps=2",
             "--config.data.dev=", "--config.data.test=")  # fmt: skip


def test_a_trial_with_rates_and_an_average_is_the_run_alone(run_here, deep, tmp_path):
    """Bit for bit, with frozen weights beside what is trained, which no step may give away."""
    flags = (*OF_TRIALS, f"--config.model.pretrained={deep}")
    both = run_here(tmp_path / "both", *flags, f"--config.trials={json.dumps(LISTED)}").ok()
    alone = f"--config.trials={json.dumps(LISTED[1:])}"
    one = run_here(tmp_path / "one", *flags, alone).ok()
    digests = [t["params_sha256"] for t in both.result["trials"]]
    assert digests[1] == one.result["trials"][0]["params_sha256"] != digests[0]
    assert "learning rate x 0.64, 0.00192 at the peak: encoder/layer_0" in both.err


@pytest.mark.long
def test_stacked_trials_have_what_is_frozen_once(run_here, tmp_path, monkeypatch):
    trials = f"--config.trials={json.dumps(LISTED)}"
    both = run_here(tmp_path / "both", *OF_TRIALS, trials).ok()
    seen, call = [], Programs.__call__

    def spied(self, state, batch, *beside):
        if beside:
            seen.append([{k: v.shape for k, v in flatten(t).items()}
                         for t in (state.state.params, *beside)])  # fmt: skip
        return call(self, state, batch, *beside)

    monkeypatch.setattr(Programs, "__call__", spied)
    wide = run_here(tmp_path / "wide", *OF_TRIALS, trials, "--config.trial.width=2").ok()
    trained, frozen = seen[0]
    assert all(shape[0] == 2 for shape in trained.values())
    assert frozen["encoder/layer_0/up/kernel"] == (32, 64)
    losses = [
        [m["value"] for m in run.metrics if m["name"] == "train/loss"] for run in (both, wide)
    ]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)
