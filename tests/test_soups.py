"""Soups of trials that train factors of weights: of the weights, since a product of means is not
the mean of the products."""

import json

import numpy as np
import pytest
from conftest import read_jsonl
from safetensors.numpy import load_file

FLAGS = (
    *('--config.trials={"seed": [1, 2]}', "--config.train.steps=6", "--config.data.row_counts=1"),
    *("--config.train.learning_rate=0.02", "--config.eval.report=False"),
)


def exported(run_here, done, flags, name, to):
    run_here(
        done.workdir, *flags, "--mode=export", f"--config.export.to={to}",
        f"--config.export.trial={name}",
    ).ok()  # fmt: skip
    return load_file(to / "model.safetensors")


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_weights_are_averaged(run_here, deep, tmp_path, method):
    use = (f"--config.methods.use={method}", "--config.methods.lora.targets=^encoder/",
           "--config.methods.adalora.targets=^encoder/", "--config.methods.adalora.begin=1",
           "--config.methods.adalora.end=4", "--config.methods.lora.dora=True",
           f"--config.model.pretrained={deep}")  # fmt: skip
    done = run_here(tmp_path / "run", *FLAGS, *use).ok()
    first, second, soup = (
        exported(run_here, done, (*FLAGS, *use), name, tmp_path / name)
        for name in ("0", "1", "soup_uniform")
    )
    moved = 0
    for name, found in soup.items():
        expected = (first[name] + second[name]) / 2
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
        moved += not np.allclose(first[name], second[name], atol=1e-3)
    assert moved > 10  # else any mean would do
    own = json.loads((done.workdir / "trials/soup_uniform/config.json").read_text())
    assert own["methods.use"] == ""
    before = done.result["ensembles"]
    again = run_here(done.workdir, *FLAGS, *use, "--mode=eval").ok().result["ensembles"]
    assert again == before and again["soup_uniform"]["dev/accuracy"] is not None


def test_a_soup_answers(run_here, tmp_path):
    use = ("--config.methods.use=lora", "--config.methods.lora.targets=^encoder/")
    done = run_here(tmp_path / "run", *FLAGS, *use).ok()
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "a great film"}) + "\n")
    run_here(
        done.workdir, *FLAGS, *use, "--mode=predict",
        f"--config.predict.input={tmp_path / 'in.jsonl'}", "--config.predict.trial=soup_greedy",
        f"--config.predict.output={tmp_path / 'out.jsonl'}",
    ).ok()  # fmt: skip
    assert read_jsonl(tmp_path / "out.jsonl")[0]["label"] in ("negative", "positive")


def test_what_cannot_be_merged_has_no_mean_beside_lora(run_here, tmp_path):
    use = ("--config.methods.use=lora,pfeiffer", "--config.methods.lora.targets=^encoder/")
    found = run_here(tmp_path / "run", *FLAGS, *use).ok().result["ensembles"]
    assert found.keys() == {"mean_prediction"}
