"""config.resume between runs that train other parts of a model."""

import types

import numpy as np
import pytest
from conftest import read_jsonl, remove, reviews, write_jsonl

from bert_ft.models.hf import flatten, unflatten
from bert_ft.train.start import _in_own_unit

SHORT = ("--config.data.dev=", "--config.data.row_counts=1")


def answers(done):
    return [row["probabilities"]["positive"] for row in read_jsonl(
        done.workdir / "predictions" / "test.jsonl")]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "then"), [("lora", "lora"), ("lora", ""), ("", "bitfit"), ("pfeiffer", "pfeiffer")]
)
def test_a_run_begins_with_what_the_other_has_learnt(first, then, run_here, tmp_path):
    """At a rate of next to nothing it answers alike; then its own checkpoint finds it again."""
    use = f"--config.methods.use={first}"
    one = run_here(tmp_path / "one", *SHORT, use, "--config.train.steps=8").ok()
    flags = [*SHORT, f"--config.methods.use={then}", f"--config.resume={tmp_path / 'one'}"]
    flags += ["--config.train.steps=2", "--config.train.learning_rate=1e-12"]
    if first == "pfeiffer":
        # Modules between layers are no part of a plain model.
        run_here(tmp_path / "two", *flags).refused("pfeiffer", "config.resume")
        return
    two = run_here(tmp_path / "two", *flags).ok()
    assert f"parameters of {tmp_path / 'one'}, step 8" in two.err
    np.testing.assert_allclose(answers(two), answers(one), atol=2e-5)
    assert np.ptp(answers(one)) > 0.02
    if then:
        assert two.result["params"]["trainable"] < two.result["params"]["total"]
    # At a rate that moves something, and from its own checkpoint.
    flags = [*flags, "--config.train.learning_rate=1e-3", "--config.checkpoint.every_steps=1"]
    three = run_here(tmp_path / "three", *flags).ok()
    remove(tmp_path / "three", "checkpoints/2", "best", "result.json")
    again = run_here(tmp_path / "three", *flags).ok()
    assert "own checkpoint of step 1" in again.err
    assert again.result["params_sha256"] == three.result["params_sha256"]


def test_other_labels_are_no_start(run_here, world, tmp_path):
    """As many, but of another meaning: the head's columns would be others'."""
    run_here(tmp_path / "one", *SHORT, "--config.train.steps=1").ok()
    rows = [{**row, "label": ("good", "bad")[int(row["label"])]} for row in reviews(12, 5)]
    sets = [f"--config.data.{name}=files:{write_jsonl(tmp_path / 'a.jsonl', rows)}"
            for name in ("train", "test")]  # fmt: skip
    flags = [*SHORT, *sets, "--config.task.label_names=", f"--config.resume={tmp_path / 'one'}"]
    run_here(tmp_path / "two", *flags).refused("config.resume", "has other labels than this run")


@pytest.mark.parametrize(("parts", "top"), [([""], ""), (["kind", "stars"], "stars/")])
def test_a_rating_goes_on_in_the_unit_of_its_own_rows(parts, top):
    """label = output * scale + mean: what the parameters answer is the same label as before."""
    task = types.SimpleNamespace(**({"parts": dict.fromkeys(parts)} if top else {}))

    def fitted(mean, scale):
        own = {"mean": mean, "scale": scale}
        return {"kind": {"labels": ["a"]}, "stars": own} if top else own

    system = types.SimpleNamespace(task=task, fitted=fitted(3.0, 0.5))
    kernel, bias, x = np.array([[0.3], [-2.0]]), np.array([0.7]), np.array([[1.0, 4.0]])
    of_rating = {f"top/{top}classifier/kernel": kernel, f"top/{top}classifier/bias": bias}
    other = {"encoder/layer_0/output/kernel": kernel, "top/kind/classifier/bias": bias}
    made = flatten(_in_own_unit(system, unflatten({**of_rating, **other}), fitted(2.5, 2.0)))
    before = (x @ kernel + bias) * 2.0 + 2.5
    after = x @ made[f"top/{top}classifier/kernel"] + made[f"top/{top}classifier/bias"]
    np.testing.assert_allclose(after * 0.5 + 3.0, before, rtol=1e-12)
    assert all(made[path] is array for path, array in other.items())
