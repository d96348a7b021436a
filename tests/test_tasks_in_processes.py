"""Tasks whose batch or score spans all examples, in two processes as in one."""

import json

import pytest
from conftest import read_jsonl, reviews, write_jsonl
from several import quick, start
from test_matching import faq

FLAGS = ("--config.train.steps=4", "--config.data.dev=", "--config.task.label_names=")
pytestmark = pytest.mark.long
TASKS = {
    # In-batch negatives are those of the global batch; answers are ranked among all.
    "matching": ("--config.task.name=matching", "--config.data.text_pair=answer"),
    # Parts of files of their own, mixed in a batch.
    "multi": ("--config.task.name=multi",),
}


@pytest.mark.parametrize("task", TASKS)
def test_as_in_one(task, world, cache, run_cli, tmp_path):
    make = faq if task == "matching" else lambda seed: reviews(40, seed)
    flags = [*FLAGS, *TASKS[task]]
    sets = {
        n: write_jsonl(tmp_path / f"{n}.jsonl", make(i)) for i, n in enumerate(("train", "test"))
    }
    flags += [f"--config.data.{name}=files:{path}" for name, path in sets.items()]
    if task == "multi":
        other = write_jsonl(tmp_path / "other.jsonl", make(7))
        own = {"data.train": f"files:{other}", "data.test": f"files:{other}"}
        parts = {"a": {}, "b": {**own, "task.name": "regression"}}
        flags.append(f"--config.task.parts={json.dumps(parts)}")
    one = run_cli(tmp_path / "one", *flags, devices=2).ok()
    with start(tmp_path / "two", world.config, cache, *flags, *quick(20), devices=1) as run:
        two = run.done()
    assert two.values("train/loss") == pytest.approx(one.values("train/loss"), rel=1e-4)
    for name, value in one.result["eval"].items():
        assert two.result["eval"][name]["mean"] == pytest.approx(value["mean"], rel=1e-3), name
    ours, theirs = (read_jsonl(r.workdir / "predictions/test.jsonl") for r in (two, one))
    assert len(ours) == len(theirs) > 0
