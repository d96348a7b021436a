"""Configs of GLUE, of ratings and of the baseline: every variant is valid, and reads its files."""

import importlib.util
from pathlib import Path

import pytest
from conftest import ROOT

from bert_ft import config
from bert_ft.checks import check
from bert_ft.data.sources import open_source
from bert_ft.errors import InputError
from bert_ft.tasks.registry import make_task

SHARED = Path(__file__).parents[2] / "shared" / "data"
# Rows of train, dev and test, as shared/data/README.md and the files' own authors count them.
FILES = {
    "cola": (8551, 1043, 0),
    "mrpc": (3667, 408, 1725),
    "rte": (2490, 277, 0),
    "stsb": (5749, 1500, 0),
}


def get_config(name: str, variant: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


VARIANTS = [
    *(("glue", v) for v in ("", "cola", "mrpc", "rte", "stsb", "sst2", "mnli", "qnli", "qqp")),
    *(("glue", f"{v}=DIR") for v in ("cola", "mnli", "qqp")),
    *(("lstm", v) for v in ("", "mean")),
    *(("rating", v) for v in ("", "regression", "classes", "ordinal=FILE.tsv")),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_is_valid(name, variant):
    c = get_config(name, variant)
    check(c)
    task = make_task(c)
    assert all(task.columns())


def test_mnli_is_tested_on_other_genres():
    assert get_config("glue", "mnli").data.test == "tfds:glue/mnli:validation_mismatched"
    assert "DIR/dev_mismatched.tsv?" in get_config("glue", "mnli=DIR").data.test


@pytest.mark.parametrize("name", FILES)
def test_files_of_glue(name, tmp_path):
    directory = SHARED / f"glue_{name}"
    if not directory.is_dir():
        pytest.skip("shared/data, the real data sets, is absent")
    c = get_config("glue", f"{name}={directory}")
    task = make_task(c)
    fitted = None
    for split, count in zip(("train", "dev", "test"), FILES[name], strict=True):
        if not count:
            assert not c.data[split]
            continue
        rows = open_source(c.data[split], cache_dir=tmp_path).read()
        assert len(rows) == count
        fitted = fitted or task.fit(rows)
        assert len(task.targets(rows, fitted)["label"]) == count
        for column in filter(None, (c.data.text, c.data.text_pair)):
            assert all(task.texts(rows, column))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task.class_weights": "1,x"}, "task.class_weights is '1,x'.*'balanced'"),
        ({"task.class_weights": "1,-1"}, "task.class_weights is '1,-1'"),
        ({"task.label_smoothing": 1.0}, "task.label_smoothing is 1.0.*less than 1"),
        ({"task.name": "ordinal", "task.label_smoothing": 0.1}, "label_smoothing.*'ordinal'"),
        ({"task.range": "1,5"}, "task.range.*'classification'.*regression, ordinal"),
        ({"task.name": "ordinal", "task.range": "5,1"}, "task.range is '5,1'.*LOW,HIGH"),
        ({"task.name": "ordinal", "task.range": "1,2,3"}, "task.range is '1,2,3'"),
        ({"task.label_scaling": "unit"}, "task.label_scaling is 'unit'.*'standard' or 'none'"),
        ({"task.label_delimiter": ""}, "task.label_delimiter"),
        ({"model.kind": "gru"}, "model.kind is 'gru'.*'bert' or 'lstm'"),
        ({"model.kind": "lstm", "model.pretrained": "hf:x"}, "model.pretrained is 'hf:x'.*lstm"),
    ],
)
def test_settings_that_cannot_work(changes, words):
    c = config.default()
    c.data.train, c.model.tokenizer = "files:x.csv", "vocab.txt"
    c.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        check(c)
