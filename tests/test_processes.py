"""Several processes: the numbers of one, each example once, and one that writes."""

import json
import re
from pathlib import Path

import jax
import pytest
from conftest import Done, read_jsonl, write_jsonl
from jax._src import cloud_tpu_init
from jax._src.clusters import cloud_tpu_cluster
from several import quick, start

from bert_ft.command_line import place
from bert_ft.errors import InputError
from bert_ft.train import processes

STEPS = 8
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.train.epochs=1",
    "--config.eval.every_steps=4",
    "--config.eval.keep_best=True",
    "--config.model.dropout=0.1",
    "--config.train.learning_rate=1e-3",
)
OBSERVED = (str(Path(__file__).with_name("observed.py")),)


def observed(root: Path, name: str, world, cache, count: int, devices: int):
    """(the run, what each of its processes has seen)."""
    seen = root / f"{name}-seen"
    seen.mkdir()
    with start(
        root / name, world.config, cache, *FLAGS, *quick(20), count=count, devices=devices,
        program=OBSERVED, extra={"OBSERVED_OUT": str(seen)},
    ) as run:  # fmt: skip
        done = run.done(300)
    return done, [json.loads((seen / f"{i}.json").read_text()) for i in range(count)]


@pytest.fixture(scope="module")
def runs(world, cache, run_cli, tmp_path_factory):
    """{(processes, devices of each): (run, seen)}."""
    root = tmp_path_factory.mktemp("processes")
    made = {(1, 1): (run_cli(root / "one", *FLAGS, devices=1).ok(), [])}
    for count, devices in ((1, 4), (2, 2), (4, 2)):
        name = f"{count}x{devices}"
        made[count, devices] = observed(root, name, world, cache, count, devices)
    return made


def losses(run: Done) -> list[float]:
    return [run.values("train/loss")[step] for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("many", [(2, 2), (4, 2)])
def test_the_same_losses_as_one_process(runs, many):
    for one in ((1, 1), (1, 4)):
        assert losses(runs[many][0]) == pytest.approx(losses(runs[one][0]), rel=1e-4), one


@pytest.mark.parametrize("many", [(2, 2), (4, 2)])
def test_every_example_is_scored_once(runs, many):
    one, several = runs[1, 4][0], runs[many][0]
    for name, value in one.result["eval"].items():
        assert several.result["eval"][name]["n_examples"] == value["n_examples"]
        assert several.result["eval"][name]["mean"] == pytest.approx(value["mean"], abs=2e-4)
    ours, theirs = (read_jsonl(r.workdir / "predictions/test.jsonl") for r in (several, one))
    assert [line["text"] for line in ours] == [line["text"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-3)


@pytest.mark.parametrize("many", [(2, 2), (4, 2)])
def test_each_reads_the_tokens_of_its_own_rows(runs, many):
    """All read, in turn, what one process reads alone: the tokens of every batch once."""
    alone = runs[1, 4][1][0]["tokens"]
    each = [seen["tokens"] for seen in runs[many][1]]
    if many == (2, 2):  # eight devices have other row counts: fewer programs to make batches for
        assert sum(each) == alone
    assert sum(each) <= alone and all(0 < n < alone for n in each), each


@pytest.mark.parametrize("many", [(2, 2), (4, 2)])
def test_only_process_0_writes(runs, many):
    """Checkpoints apart, of which each process writes the shards that it alone has."""
    zero, *others = [
        {w for w in seen["writes"] if w.split("/")[0] not in ("checkpoints", "best")}
        for seen in runs[many][1]
    ]
    named = {re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", w) for w in zero}
    assert {"result.json.tmp", "metrics.jsonl", "config.json.tmp"} <= named
    assert others == [set()] * len(others)


def test_goodput_sums_to_one(runs):
    for run, _ in runs.values():
        shares = run.result["goodput"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert all(0 <= share <= 1 for share in shares.values())
        assert shares["steps"] > 0 and shares["compilation"] > 0 and shares["evaluation"] > 0


def test_predict_in_two_processes_and_export_in_one(runs, world, cache, tmp_path):
    done = runs[2, 2][0]
    rows = write_jsonl(tmp_path / "new.jsonl", [{"text": f"the film is {w}"} for w in "abcde"])
    flags = ("--mode=predict", f"--config.predict.input={rows}", *FLAGS)
    out = tmp_path / "labels.jsonl"
    with start(done.workdir, world.config, cache, *flags, *quick(20),
               f"--config.predict.output={out}") as run:  # fmt: skip
        run.done(120)
    assert [line["text"] for line in read_jsonl(out)] == [f"the film is {w}" for w in "abcde"]
    flags = ("--mode=export", f"--config.export.to={tmp_path / 'hf'}", *FLAGS, *quick(20))
    with start(done.workdir, world.config, cache, *flags) as run:
        assert run.codes(60) == [2, 2]
        assert "error: --mode=export works in one process, not 2" in run.err(0)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("h:1", None, None), "--num_processes and --process_id missing"),
        ((None, 2, 0), "--coordinator missing"),
        (("h", 2, 0), "--coordinator=h; accepted: HOST:PORT"),
        (("h:1", 2, 2), "--process_id=2 with --num_processes=2; accepted: 0 to 1"),
        (("h:1", 0, 0), "--num_processes=0; accepted: 1 or more"),
    ],
)
def test_flags_that_do_not_fit_together(flags, words):
    with pytest.raises(InputError) as refused:
        place(*flags)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_flags_that_fit():
    assert place(None, None, None) is None
    found = place("[::1]:8476", 3, 2)
    assert found is not None and (found.processes, found.process) == (3, 2)


def test_a_run_alone_joins_nobody(run_here, tmp_path):
    """On a machine that is part of no TPU slice, without the flags."""
    assert run_here(tmp_path / "run", "--config.train.steps=1").ok()
    assert not jax.distributed.is_initialized()


GCE = {"agent-worker-number": "0", "tpu-env": "ZONE: 'z'"}
ONE, TWO = "t1v-n-0", "t1v-n-0,t1v-n-1"


@pytest.mark.parametrize(
    ("environment", "metadata", "several"),
    [
        ({}, GCE | {"worker-network-endpoints": ONE}, False),
        ({}, GCE | {"worker-network-endpoints": TWO}, True),
        (
            {},
            GCE | {"worker-network-endpoints": ONE, "tpu-env": "MEGASCALE_NUM_SLICES: '2'"},
            True,
        ),
        ({"TPU_PROCESS_ADDRESSES": "local"}, None, False),  # Kaggle
        ({"TPU_WORKER_HOSTNAMES": ONE}, None, False),
        ({"TPU_WORKER_HOSTNAMES": TWO}, None, True),
        ({"TPU_WORKER_HOSTNAMES": ONE, "MEGASCALE_NUM_SLICES": "2"}, None, True),
        ({}, None, False),
    ],
)
def test_one_machine_with_tpus_meets_nobody(monkeypatch, environment, metadata, several):
    """None for `metadata`: a machine without the server, which is not asked then."""
    for module in (cloud_tpu_init, cloud_tpu_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setitem(jax.config.values, "jax_platforms", None)
    slices = ("MEGASCALE_NUM_SLICES", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    for name in (*slices, "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    if metadata is None:
        environment = {"TPU_SKIP_MDS_QUERY": "1"} | environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    assert processes._in_a_tpu_slice() is several


def test_a_workdir_that_cannot_be_written(world, cache, tmp_path):
    """All leave with the same line, and none waits for another."""
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    flags = (*FLAGS, *quick(20), f"--workdir={workdir}")
    with start(tmp_path / "run", world.config, cache, *flags) as run:
        assert run.codes(120) == [2, 2], run.err(0)
    for i in (0, 1):
        last = run.err(i).strip().splitlines()[-1]
        assert last.startswith(f"error: --workdir={workdir}: "), run.err(i)
        assert last.endswith("give a directory that can be written")
        assert "Traceback" not in run.err(i)
