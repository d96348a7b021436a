"""Runs that train little of a model, from the command line: what is kept of them, how they go on,
what they export."""

import json
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import read_jsonl, remove, reviews, write_bert, write_jsonl
from safetensors.numpy import load_file
from test_peft import answers_behind

from experiments.methods import reading

FLAGS = (
    "--config.methods.use=lora,fgm,ema",
    "--config.methods.lora.rank=2",
    "--config.methods.lora.dora=True",
    "--config.methods.ema.decay=0.5",
    "--config.train.steps=6",
    "--config.checkpoint.every_steps=3",
    "--config.checkpoint.keep=9",
    "--config.model.dropout=0.1",
    "--config.eval.report=False",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_cli):
    """LoRA, FGM and EMA at once."""
    return run_cli(tmp_path_factory.mktemp("tuning") / "run", *FLAGS).ok()


def size(path):
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def test_only_what_is_trained_is_counted_and_kept(trained, world):
    counts, whole = trained.result["params"], load_file(world.model / "model.safetensors")
    base = sum(v.size for k, v in whole.items())
    lora = 2 * (2 * 32 + 32 * 2 + 32)
    head = 32 * 32 + 32 + 2 * 32 + 2
    assert counts["trainable"] == lora + head
    assert counts["total"] == base + 2 * 32 + 2 + lora
    # Its average alone; and what is trained, two moments, the average, each with its metadata.
    assert size(trained.workdir / "best") < 4 * base / 2
    values = trained.values("train/loss")
    assert len(values) == 6 and np.isfinite(list(values.values())).all()


def test_experiments_read_what_was_trained_and_ask_it(trained, world, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    whole = load_file(world.model / "model.safetensors")
    base = sum(v.size for k, v in whole.items() if "pooler" not in k)
    lora = 2 * (2 * 32 + 32 * 2 + 32)
    assert reading.encoder_sizes(trained.workdir) == (lora, base + lora)
    asked, _ = reading.attacked_texts(trained.workdir, 5)
    answers = reading.scorer(trained.workdir)(asked)
    assert answers.shape == (5, 2)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)


def test_goes_on_bit_for_bit_and_under_fsdp_to_rounding(trained, run_here, run_cli, tmp_path):
    for name in ("same", "fsdp"):
        shutil.copytree(trained.workdir, tmp_path / name)
        remove(tmp_path / name, "checkpoints/6", "best", "result.json")
    again = run_here(tmp_path / "same", *FLAGS).ok()
    assert "own checkpoint of step 3" in again.err
    assert again.result["params_sha256"] == trained.result["params_sha256"]
    wide = run_cli(tmp_path / "fsdp", *FLAGS, "--config.mesh.preset=fsdp", devices=8).ok()
    right = trained.values("train/loss")
    for step, loss in wide.values("train/loss").items():
        assert loss == pytest.approx(right[step], abs=1e-4)


def test_scored_predicted_and_exported_as_it_was_trained(trained, run_here, world, tmp_path):
    before = trained.result
    after = run_here(trained.workdir, "--mode=eval", *FLAGS).ok().result
    assert after["params_sha256"] == before["params_sha256"]
    assert after["eval"] == before["eval"]

    merged, alone = tmp_path / "merged", tmp_path / "alone"
    to = "--config.export.to"
    said = run_here(trained.workdir, "--mode=export", *FLAGS, f"{to}={merged}").ok().out
    assert "exported: BertForSequenceClassification of step 6" in said
    whole = load_file(merged / "model.safetensors")
    assert not [k for k in whole if "lora" in k]
    peft = (f"{to}={alone}", "--config.export.format=peft")
    said = run_here(trained.workdir, "--mode=export", *FLAGS, *peft).ok().out
    assert "exported: adapter of a BertForSequenceClassification" in said
    assert json.loads((alone / "adapter_config.json").read_text())["use_dora"] is True
    assert (alone / "adapter_model.safetensors").stat().st_size < 16_000

    rows = read_jsonl(world.test)[:6]
    given = write_jsonl(tmp_path / "rows.jsonl", rows)
    ask = ("--mode=predict", f"--config.predict.input={given}")
    run_here(trained.workdir, *ask, *FLAGS, f"--config.predict.output={tmp_path / 'a.jsonl'}").ok()
    places = f"--config.predict.adapters={trained.workdir},{alone}"
    run_here(
        trained.workdir, *ask, *FLAGS, places, f"--config.predict.output={tmp_path / 'b.jsonl'}"
    ).ok()
    one = read_jsonl(tmp_path / "a.jsonl")
    for name in ("run", "alone"):
        lines = read_jsonl(tmp_path / f"b.{name}.jsonl")
        assert [line["adapter"] for line in lines] == [name] * 6
        for ours, right in zip(lines, one, strict=True):
            assert ours["id"] == right["id"] and ours["label"] == right["label"]
            p, q = (list(x["probabilities"].values()) for x in (ours, right))
            np.testing.assert_allclose(p, q, atol=1e-5)


def test_starts_from_an_adapter_and_from_a_run(trained, run_here, tmp_path):
    """Of the same base and the same labels, or without its head."""
    alone = tmp_path / "alone"
    peft = (f"--config.export.to={alone}", "--config.export.format=peft")
    run_here(trained.workdir, "--mode=export", *FLAGS, *peft).ok()
    few = (*FLAGS, "--config.train.steps=1")
    begun = run_here(tmp_path / "begun", *few, f"--config.model.adapter={alone}").ok()
    assert f"start: adapter {alone}, a lora; new: -" in begun.err
    wrong = run_here(
        tmp_path / "wrong", *few, f"--config.model.adapter={alone}", "--config.methods.lora.rank=3"
    )
    wrong.refused("--config.methods.lora.rank=2")
    few = (*few, f"--config.model.adapter={alone}")
    other = f"--config.model.pretrained={write_bert(tmp_path / 'other', layers=1, seed=1)}"
    run_here(tmp_path / "wrong", *few, other).refused(str(alone), "beside another base")
    swapped = (*few, "--config.task.label_names=positive,negative")
    run_here(tmp_path / "wrong", *swapped).refused(
        f"config.model.adapter: {alone}: its names: ['negative', 'positive']", "model.head=new"
    )
    anew = run_here(tmp_path / "anew", *swapped, "--config.model.head=new").ok()
    assert f"start: adapter {alone}, a lora; new: top/classifier/bias, top/class" in anew.err


def test_an_adapter_of_less_than_the_head_has_the_rest_of_its_base(run_here, tmp_path):
    """As peft's own of a classifier, which leaves the pooler to the base."""
    few = ("--config.methods.use=lora", "--config.train.steps=2", "--config.data.dev=")
    less, out = (*few, "--config.methods.also_train=^top/classifier"), tmp_path / "out"
    done = run_here(tmp_path / "run", *less).ok()
    to = ("--mode=export", f"--config.export.to={out}", "--config.export.format=peft")
    run_here(done.workdir, *less, *to).ok()
    given = write_jsonl(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in reviews(6, 4)])
    ask = (*few, "--mode=predict", f"--config.predict.input={given}")
    run_here(done.workdir, *less, *ask[len(few) :]).ok()
    (out / "export.json").rename(tmp_path / "export.json")  # now it is as peft's own
    said = run_here(done.workdir, *ask, f"--config.predict.adapters={out}").ok().err
    assert "does not say what its outputs mean" in said
    own, its = (
        [
            list(line["probabilities"].values())
            for line in read_jsonl(done.workdir / "predictions" / name)
        ]
        for name in ("rows.jsonl", "rows.out.jsonl")
    )
    np.testing.assert_allclose(its, own, atol=1e-6)


def test_an_adapter_that_no_base_can_stand_below_is_not_written(run_here, deep, tmp_path):
    few = ("--config.methods.use=lora", "--config.train.steps=1", "--config.data.dev=")
    to = ("--mode=export", "--config.export.format=peft", f"--config.export.to={tmp_path / 'out'}")
    frozen = (*few, "--config.methods.also_train=")
    run_here(tmp_path / "frozen", *frozen).ok()
    run_here(tmp_path / "frozen", *frozen, *to).refused(
        "top/classifier/bias, top/classifier/kernel would be neither in the base", "also_train"
    )
    upper = (*few, f"--config.model.pretrained={deep}", "--config.model.layers_from=1")
    run_here(tmp_path / "upper", *upper).ok()
    run_here(tmp_path / "upper", *upper, *to).refused("alone, with all of its layers")
    assert not (tmp_path / "out").exists()


MODULES = ("--config.methods.use=houlsby,pfeiffer,prefix", "--config.train.steps=3",
           "--config.data.test=", "--config.eval.report=False", "--config.data.row_counts=1",
           "--config.model.dropout=0.1")  # fmt: skip


def test_adapters_and_a_prefix_under_fsdp_are_those_of_one_device(run_here, run_cli, tmp_path):
    one = run_here(tmp_path / "one", *MODULES).ok()
    fsdp = (*MODULES, "--config.mesh.preset=fsdp", "--config.mesh.fsdp=8")
    wide = run_cli(tmp_path / "wide", *fsdp, devices=8).ok()
    assert wide.result["params"] == one.result["params"]
    right = one.values("train/loss")
    assert len(right) == 3 and max(right.values()) - min(right.values()) > 1e-3
    for step, loss in wide.values("train/loss").items():
        assert loss == pytest.approx(right[step], abs=1e-4)


STATEFUL = (
    "--config.methods.use=unfreeze,adalora,noise_scale",
    '--config.methods.unfreeze.schedule=[["layer_0/", 2]]',
    *("--config.methods.adalora.begin=1", "--config.methods.adalora.end=3"),
    *("--config.train.accumulate=2", "--config.train.steps=4", "--config.data.row_counts=1"),
    *("--config.checkpoint.every_steps=2", "--config.checkpoint.keep=9"),
    "--config.eval.report=False",
)


def test_methods_with_a_memory_go_on_bit_for_bit_and_peft_reads_the_triplets(run_here, tmp_path):
    """Scores of triplets, steps, averages of noise: all of it is in the checkpoint."""
    done = run_here(tmp_path / "run", *STATEFUL).ok()
    noise = done.values("train/noise_scale")
    remove(tmp_path / "run", "checkpoints/4", "best", "result.json")
    again = run_here(tmp_path / "run", *STATEFUL).ok()
    assert "own checkpoint of step 2" in again.err
    assert again.result["params_sha256"] == done.result["params_sha256"]
    assert again.values("train/noise_scale") == noise and len(noise) == 4
    assert again.result["eval"] == done.result["eval"]

    to = tmp_path / "out"
    peft = (f"--config.export.to={to}", "--config.export.format=peft")
    said = run_here(tmp_path / "run", "--mode=export", *STATEFUL, *peft).ok().out
    written = load_file(to / "adapter_model.safetensors")
    kept = [np.count_nonzero(v) for k, v in written.items() if k.endswith("lora_E")]
    assert len(kept) == 2 and sum(kept) == 2 * 8 < 2 * 12
    if find_spec("torch") and find_spec("peft"):
        assert float(re.search(r"peft (\S+)\n", said)[1]) < 1e-4


def test_a_budget_that_epochs_do_not_reach(run_here, tmp_path):
    flags = ("--config.train.steps=0", "--config.train.epochs=1.0", "--config.data.dev=",
             "--config.data.test=", "--config.methods.use=adalora")  # fmt: skip
    run_here(tmp_path / "run", *flags).refused(
        "config.methods.adalora.end is 300; accepted: 20, the steps of the run, or less"
    )


def test_what_cannot_be_merged_says_so_and_peft_reads_it(run_here, world, tmp_path):
    few = ("--config.train.steps=2", "--config.data.dev=")
    use = "--config.methods.use=prefix"
    done = run_here(tmp_path / "run", *few, use).ok()
    out = tmp_path / "out"
    to = f"--config.export.to={out}"
    run_here(done.workdir, "--mode=export", use, *few, to).refused(
        "'prefix'", "can't be merged", "config.export.format=peft"
    )
    run_here(done.workdir, "--mode=export", use, *few, to, "--config.export.format=peft").ok()
    tops = json.loads((out / "adapter_config.json").read_text())["modules_to_save"]
    assert sorted(tops) == ["classifier", "pooler"]

    torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import BertForSequenceClassification, BertTokenizerFast

    below = BertForSequenceClassification.from_pretrained(world.model, attn_implementation="eager")
    theirs = library.PeftModel.from_pretrained(below, out).eval()
    lines = read_jsonl(done.workdir / "predictions" / "test.jsonl")
    texts = [row["text"] for row in read_jsonl(world.test)]
    given = BertTokenizerFast.from_pretrained(out)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        right = torch.log_softmax(answers_behind(theirs, given), dim=-1).numpy()
    ours = np.log([[*line["probabilities"].values()] for line in lines])
    np.testing.assert_allclose(ours, right, atol=1e-4, rtol=0)
