"""config.mesh.rules: what is read, and what is refused with the rule's number."""

import json

import pytest
from small import config

from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.mesh_rules import PRESETS, Rule, has, rules_of, user_rules

USABLE = {"data__train": "files:x.csv", "model__tokenizer": "vocab.txt"}


def test_rules_as_they_are_written():
    given = '[["/up/kernel$", [null, "tensor"]], ["embedding$", "fsdp"], ["x", [["data", "fsdp"]]]]'
    up, embedding, x = user_rules(given)
    assert up == Rule("/up/kernel$", (None, "tensor"))
    assert embedding == Rule("embedding$", (), ("fsdp",))
    assert x == Rule("x", (("data", "fsdp"),)) and x.wanted == ("data", "fsdp")
    assert rules_of("fsdp", given) == (up, embedding, x, *PRESETS["fsdp"])
    check(config(mesh__rules=given, **USABLE))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("fsdp", "is no JSON"),
        ('{"a": "fsdp"}', r"accepted: \[\[\"REGEX\", SPEC\], \.\.\.\]"),
        ('[["a"]]', r"rule 1 is \[\"a\"\]; accepted: \[\"REGEX\", SPEC\]; SPEC is"),
        ('[["a", []], ["(", []]]', "rule 2: '\\(' is no regular expression: missing \\)"),
        ('[["a", 3]]', "rule 1: 3; SPEC is"),
        ('[["a", [null, 1]]]', r"rule 1: \[null, 1\]; SPEC is"),
        ('[["a", "model"]]', "rule 1: axis \"model\"; accepted: 'data', 'fsdp', 'tensor', null"),
        ('[["a", [null, "trial"]]]', 'axis "trial"; accepted'),
        ('[["a", [["data", 1]]]]', "axis 1; accepted"),
        ('[["a", ["fsdp", ["data", "fsdp"]]]]', "names an axis twice"),
    ],
)
def test_what_is_no_rule_is_refused_before_anything_else(given, said):
    with pytest.raises(InputError, match=f"config.mesh.rules.*{said}"):
        check(config(mesh__rules=given, **USABLE))


def test_presets_are_known_by_the_axes_that_they_use():
    uses = {p: [a for a in ("fsdp", "tensor") if has(p, a)] for p in PRESETS}
    assert uses == {
        "replicate": [],
        "fsdp": ["fsdp"],
        "tensor": ["tensor"],
        "fsdp+tensor": ["fsdp", "tensor"],
    }
    with pytest.raises(InputError, match="mesh.preset is 'zero'; accepted: .*'fsdp.tensor'"):
        check(config(mesh__preset="zero", **USABLE))


def test_presets_can_be_written_as_rules():
    """So the language of the one is that of the other."""
    text = json.dumps([[r.pattern, list(r.spec)] for r in PRESETS["tensor"]])
    assert user_rules(text) == PRESETS["tensor"]
