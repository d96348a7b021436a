"""gs:// paths, against a storage server on this machine (gcs_server.py)."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, command, environment, read_jsonl, reviews

from bert_ft import compare, config, paths
from bert_ft.checks import check
from bert_ft.data.sources import open_source
from bert_ft.errors import InputError

NEEDED = ("gcsfs", "gcp_storage_emulator")
needs_server = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)),
    reason="gcsfs or gcp-storage-emulator is not installed: pip install -e '.[test]'",
)


@pytest.fixture(scope="module")
def bucket():
    """gs://bucket on a server of this module's own."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "gcs_server.py")], stdout=subprocess.PIPE, text=True
    ) as server:
        url = server.stdout.readline().strip()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", url)  # gcsfs
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
            patch.setenv("GOOGLE_CLOUD_PROJECT", "test")
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks another service
            yield paths.at("gs://bucket")
        server.kill()


def test_local_paths_are_pathlibs(tmp_path):
    assert type(paths.at(str(tmp_path))) is type(tmp_path)
    assert paths.at("~/x") == Path.home() / "x" and paths.absolute("x") == Path.cwd() / "x"
    assert paths.local(tmp_path) is tmp_path
    with paths.written(tmp_path / "new") as into:
        assert into == tmp_path / "new" and into.is_dir()
    paths.write_whole(tmp_path / "a" / "b.txt", "lone \ud800")
    assert (tmp_path / "a" / "b.txt").read_text() == "lone ?"
    assert [p.name for p in paths.files_below(tmp_path)] == ["b.txt"]


@pytest.mark.parametrize("text", ["s3://bucket/x", "gcs://bucket/x", "gs://", "gs://Bucket/x"])
def test_what_is_no_path_of_ours(text):
    with pytest.raises(InputError, match="gs://"):
        paths.at(text)


def test_the_home_of_nobody():
    with pytest.raises(
        InputError, match="^~nobody12345/x.csv: no home directory ~nobody12345; acc"
    ):
        paths.at("~nobody12345/x.csv")


def test_an_entry_of_a_shared_cache_is_open_to_others(tmp_path):
    entry, before = tmp_path / "cache" / "entry", os.umask(0o022)
    try:
        with paths.new_entry(entry) as scratch:
            (scratch / "a").write_text("x")
    finally:
        os.umask(before)
    assert entry.stat().st_mode & 0o777 == 0o755 and (entry / "a").read_text() == "x"
    assert os.listdir(tmp_path / "cache") == ["entry"]


def test_without_gcsfs_the_extra_is_named(monkeypatch, run_here):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gcsfs" else found(name)
    )
    run_here("gs://bucket/run").refused("gs://bucket/run", "pip install 'bert_ft[gcs]'")


def test_the_cache_of_arrays_stays_local():
    c = config.default()
    c.data.train, c.model.tokenizer, c.data.cache_dir = "files:x", "x", "gs://bucket/cache"
    with pytest.raises(InputError, match="config.data.cache_dir.*memory-mapped"):
        check(c)


@needs_server
def test_files_there_and_back(bucket, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("one")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    paths.copy_below(tmp_path, bucket / "folder")
    assert [str(p) for p in paths.files_below(bucket / "folder")] == [
        "gs://bucket/folder/b.bin",
        "gs://bucket/folder/deep/a.txt",
    ]
    copy = paths.local(bucket / "folder")
    assert copy.name == "folder" and (copy / "deep" / "a.txt").read_text() == "one"
    assert paths.local(bucket / "folder" / "b.bin").read_bytes() == bytes(range(256))
    paths.write_whole(bucket / "folder" / "c.txt", "lone \ud800")
    assert (bucket / "folder" / "c.txt").read_text() == "lone ?"
    with paths.written(bucket / "made") as into:
        (into / "x.txt").write_text("x")
        assert not (bucket / "made").exists()
    assert (bucket / "made" / "x.txt").read_text() == "x"


@needs_server
def test_a_twin_goes_on_where_the_last_one_ended(bucket):
    for expected in ("1", "12"):
        twin = paths.Twin(bucket / "twin", ("log", "folder"))
        for path in (twin.local / "log", twin.local / "folder" / "x"):
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(expected[-1])
        (twin.local / "other").write_text("stays")
        twin.send()
        assert (bucket / "twin" / "log").read_text() == expected
        assert (bucket / "twin" / "folder" / "x").read_text() == expected
        twin.close()
    assert not twin.local.exists() and not (bucket / "twin" / "other").exists()


@needs_server
def test_a_bucket_that_is_not_there(run_here, bucket):
    line = run_here("gs://nosuch/run").refused("--workdir=gs://nosuch/run: not found")
    assert len(line) < 300
    run_here("gs://bucket/empty", "--mode=eval").refused("gs://bucket/empty", "no trained model")


@needs_server
def test_data(bucket, tmp_path):
    rows = reviews(12, seed=5)
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (bucket / "data" / "a.jsonl").write_text(lines)
    (bucket / "data" / "b.csv").write_text("id,text\n1,x\n")
    (bucket / "data" / "more.csv").write_text("text,stars\nx,5\n")
    (tmp_path / "a.jsonl").write_text(lines)

    def opened(uri):
        return open_source(uri, cache_dir=tmp_path)

    there, here = opened("files:gs://bucket/data/a.jsonl"), opened(f"files:{tmp_path}/a.jsonl")
    assert there.read().columns == here.read().columns
    assert there.fingerprint() == here.fingerprint(), "the bytes count, not where they are"
    assert len(opened("files:gs://bucket/data/*.jsonl?limit=7").read()) == 7
    joined = opened("files:gs://bucket/data/b.csv?join=gs://bucket/data/more.csv;on=text")
    assert joined.read().columns == {"id": ["1"], "text": ["x"], "stars": ["5"]}
    with pytest.raises(InputError, match="no such file; did you mean gs://bucket/data/b.csv"):
        opened("files:gs://bucket/data/bb.csv")
    with pytest.raises(InputError, match="write files:gs://bucket/data/b.csv"):
        opened("gs://bucket/data/b.csv")
    with pytest.raises(InputError, match="read from a local disk; copy it"):
        opened("tfds:mine:train?data_dir=gs://bucket/tfds").fingerprint()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"text": ["x", "y"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    (bucket / "data" / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes())
    (bucket / "data" / "none.parquet").write_bytes(b"")
    assert opened("files:gs://bucket/data/t.parquet").read().columns == {"text": ["x", "y"]}
    with pytest.raises(InputError, match="none.parquet: the file is empty"):
        opened("files:gs://bucket/data/none.parquet").read()


@needs_server
def test_a_run_that_is_killed_and_goes_on(bucket, world, cache, run_here, tmp_path):
    """Everything in gs:// but the cache of arrays, and the same as everything on this disk."""
    for file in (world.train, world.dev, world.test):
        (bucket / "world" / file.name).write_bytes(file.read_bytes())
    paths.copy_below(world.model, bucket / "world" / "model")
    given = [
        *(f"--config.data.{name}=files:gs://bucket/world/{name}.csv" for name in ("train", "dev")),
        "--config.data.test=files:gs://bucket/world/test.jsonl",
        "--config.model.pretrained=gs://bucket/world/model",
    ]
    flags = ["--config.checkpoint.every_steps=4", "--config.log.tensorboard=True"]
    words = [*given, *flags, "--config.compile.cache_dir=gs://bucket/xla"]
    with subprocess.Popen(
        command(world.config, "gs://bucket/run", *words, "--config.train.steps=20"),
        env=environment(cache),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 300
        while not (bucket / "run/checkpoints/8/commit_success.txt").exists():
            assert time.monotonic() < end and process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    assert any("train_step" in p.name for p in paths.files_below(bucket / "xla"))
    done = run_here("gs://bucket/run", *given, *flags).ok()
    assert "start: own checkpoint of step" in done.err
    assert "results: gs://bucket/run/report.html" in done.err.splitlines()[-1]
    here = run_here(tmp_path / "run").ok()
    run = bucket / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["params_sha256"] == here.result["params_sha256"]
    assert result["eval"] == here.result["eval"]
    steps = [line["step"] for line in lines_of(run / "metrics.jsonl", "train/loss")]
    assert steps == list(range(1, 21)), "what the killed run wrote after its checkpoint is gone"
    log = (run / "log.txt").read_text()
    assert "own checkpoint" in log and log.rstrip().endswith(done.err.splitlines()[-1])
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert "<svg" in (run / "report.html").read_text()
    assert not [p for p in paths.files_below(run) if "tmp" in str(p) or p.name.startswith(".")]

    (bucket / "new.jsonl").write_text('{"text": "the film is great.", "id": "a"}\n')
    question = ["--config.predict.input=gs://bucket/new.jsonl"]
    run_here("gs://bucket/run", "--mode=predict", *question).ok()
    [answer] = read_lines(run / "predictions" / "new.jsonl")
    out = tmp_path / "answers.jsonl"
    run_here(tmp_path / "run", "--mode=predict", *question, f"--config.predict.output={out}").ok()
    assert [answer] == read_jsonl(out)
    run_here(
        "gs://bucket/run",
        "--mode=predict",
        *question,
        "--config.predict.output=gs://bucket/new.jsonl",
    ).refused("the input")
    for _ in range(2):  # the second one replaces the first
        done = run_here("gs://bucket/run", "--mode=export", "--config.export.to=gs://bucket/hf")
        assert "exported: BertForSequenceClassification" in done.ok().out
    assert {p.name for p in paths.files_below(bucket / "hf")} >= {"export.json", "config.json"}
    run_here("gs://bucket/run", "--mode=export", "--config.export.to=gs://bucket/world").refused(
        "gs://bucket/world is not empty"
    )
    assert compare.main(["gs://bucket/run", str(tmp_path / "run"), "--resamples=10"]) == 0
    flags = [*given, "--config.resume=gs://bucket/run", "--config.train.steps=2"]
    done = run_here(tmp_path / "resumed", *flags).ok()
    assert "start: parameters of gs://bucket/run, step 20" in done.err


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(path, name):
    return [line for line in read_lines(path) if line["name"] == name]


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"--workdir=.*/run: is a file; give a directory"):
        paths.require_writable(tmp_path / "run", "--workdir")
    assert (tmp_path / "run").read_text() == ""
