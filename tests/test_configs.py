"""Every file in configs/, with every variant it names, builds, passes, shows its command."""

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from bert_ft import config, task_checks
from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.tasks import registry

FILES = sorted((ROOT / "configs").glob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(path: Path) -> list[str]:
    """Those that the refusal of an unknown one names: `... accepted: '', 'bert_base'`."""
    get_config = load(path).get_config
    if not inspect.signature(get_config).parameters:
        return [""]
    with pytest.raises(ValueError, match=f"{path.stem}.py has no variant 'nonsense'") as refusal:
        get_config("nonsense")
    return re.findall(r"'(\w*)'", str(refusal.value).partition("accepted:")[2])


def test_there_are_configs():
    assert ROOT / "configs" / "sentiment.py" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_config_builds_and_passes_its_check(path):
    names = variants(path)
    assert names[0] == ""
    for name in names:
        made = load(path).get_config(name) if name else load(path).get_config()
        check(made)
        chooses = made.eval.keep_best and not made.eval.every_steps
        assert not chooses, f"{name!r}: keep_best with one score on dev keeps the last step"
        assert config.flat(made) != config.flat(config.default())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_config_says_how_to_run_it(path):
    text = load(path).__doc__ or ""
    command = f"python -m bert_ft.main --config=configs/{path.name}"
    assert command in text and "--workdir=" in text
    for name in filter(None, variants(path)):
        assert re.search(rf"\b{name}\b", text + str(load(path).get_config.__doc__)), name
    known = config.flat(config.default())
    for key in re.findall(r"--config\.([\w.]+)", text):
        assert key in known, f"the docstring of {path.name} names --config.{key}, which is no key"


def test_the_hash_is_of_what_bears_on_the_result():
    base = config.default()
    for key, value in {"log.every_steps": 7, "mesh.data": 4, "predict.input": "x"}.items():
        other = config.default()
        other.update_from_flattened_dict({key: value})
        assert config.config_hash(other) == config.config_hash(base), key
    for key, value in {"train.seed": 1, "data.max_length": 64, "model.dropout": 0.0}.items():
        other = config.default()
        other.update_from_flattened_dict({key: value})
        assert config.config_hash(other) != config.config_hash(base), key


def test_the_tasks_that_are_checked_are_those_that_there_are():
    assert set(task_checks.TASKS) == set(registry.TASKS)


@pytest.mark.parametrize("task", sorted({*task_checks.TASKS} - {"classification"}))
def test_names_of_labels_are_classifications_alone(task):
    c = config.default()
    c.data.train, c.model.pretrained, c.task.name, c.task.label_names = "files:x", "y", task, "a,b"
    with pytest.raises(InputError, match=f"label_names is 'a,b'; accepted: '' where .* {task!r}"):
        check(c)
