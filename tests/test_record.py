"""What is written as JSON lines can be read by any reader of JSON."""

import datetime
import json

import numpy as np
import pytest

from bert_ft.train.record import write_lines


def strictly(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_json_has_no_form_for(tmp_path):
    out = tmp_path / "out.jsonl"
    row = {
        "id": np.int64(3),
        "text": "déjà vu",
        "price": float("nan"),
        "nested": {"scores": (0.5, np.float32("inf")), "of": ["a", -np.inf, None, True]},
        "when": datetime.date(2024, 5, 17),
    }
    write_lines(out, [row, {"id": 4}])
    first, second = out.read_text("utf-8").splitlines()
    assert "déjà vu" in first
    assert strictly(first) == {
        "id": 3,
        "text": "déjà vu",
        "price": None,
        "nested": {"scores": [0.5, None], "of": ["a", None, None, True]},
        "when": "2024-05-17",
    }
    assert strictly(second) == {"id": 4}
