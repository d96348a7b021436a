"""A run's parameters are read by the rates that it was trained with, or not at all."""

import json

import pytest
from small import config

from bert_ft.config import flat
from bert_ft.errors import InputError
from bert_ft.train.refuse import require_same_rates

SLOTS = {"task.name": "tagging", "task.decode": "crf"}


def multi(rate):
    parts = {"intent": {}, "slots": {**SLOTS, "task.crf_rate": rate}}
    return {"task__name": "multi", "task__parts": json.dumps(parts)}


@pytest.mark.parametrize(
    ("run", "change", "words"),
    [
        (
            {"task__name": "tagging", "task__decode": "crf"},
            {"task__crf_rate": 50.0},
            r"config\.task\.crf_rate is 50; accepted: 100, by which",
        ),
        (
            {"task__name": "recommend"},
            {"task__table_rate": 10.0},
            r"config\.task\.table_rate is 10; accepted: 100, by which",
        ),
        (multi(100.0), multi(20.0), r"parts: 'slots': task\.crf_rate is 20; accepted: 100, by"),
    ],
)
def test_another_rate_than_the_runs_is_refused(run, change, words, tmp_path):
    require_same_rates(config(**change), tmp_path)  # no run there, which others say
    (tmp_path / "config.json").write_text(json.dumps(flat(config(**run))))
    require_same_rates(config(**run), tmp_path)
    with pytest.raises(InputError, match=words) as error:
        require_same_rates(config(**{**run, **change}), tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_rate_that_nothing_is_read_by_may_differ(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(flat(config(task__name="tagging"))))
    require_same_rates(config(task__name="tagging", task__crf_rate=50.0), tmp_path)
