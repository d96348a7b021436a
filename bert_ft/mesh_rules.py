"""How parameters lie on a mesh: ordered rules, presets of them, and the user's own.

A rule is a regex that is searched for in a parameter's path, and what becomes of the parameter's
axes; the first one that matches counts. What a rule can't split, because the size of the mesh's
axis does not divide it, stays whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

from bert_ft.errors import InputError

AXES = ("trial", "data", "fsdp", "tensor")
SPLITS = ("data", "fsdp", "tensor")  # axes that a rule may put parameters on
Entry = str | tuple[str, ...] | None


def axes_of(entry: Entry) -> tuple[str, ...]:
    """The mesh axes that split one axis of a parameter."""
    return (entry,) if isinstance(entry, str) else entry or ()


@dataclasses.dataclass(frozen=True)
class Rule:
    """`spec`: for each of the parameter's first axes the mesh axis that splits it, several, or
    None. `largest`: mesh axes that are put afterwards, in turn, each on the largest axis that is
    still whole and that it divides."""

    pattern: str
    spec: tuple[Entry, ...] = ()
    largest: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The mesh axes that it splits parameters over."""
        return (*(axis for entry in self.spec for axis in axes_of(entry)), *self.largest)


def _megatron(*then: str) -> tuple[Rule, ...]:
    """Columns of the first matrix and rows of the second, so that attention and the feed-forward
    block each need one sum over `tensor` forward and one backward (Shoeybi et al. 2019, 3). The
    word table by rows only: hidden states that XLA finds split by features, as a look-up in a table
    split by columns leaves them, came out wrong on a mesh of data x fsdp x tensor (jax 0.10.2)."""
    return (
        Rule(r"attention/(query|key|value)/kernel$", (None, "tensor"), then),
        Rule(r"attention/(query|key|value)/bias$", ("tensor",)),
        Rule(r"attention/output/kernel$", ("tensor",), then),
        Rule(r"/up/kernel$", (None, "tensor"), then),
        Rule(r"/up/bias$", ("tensor",)),
        Rule(r"/down/kernel$", ("tensor",), then),
        Rule(r"encoder/word/embedding$", ("tensor",), then),
    )


# Biases and LayerNorm are too small to be worth the messages; an LSTM's `recurrent` is a kernel.
_FSDP = Rule(r"/(kernel|recurrent|embedding)$", (), ("fsdp",))
_WHOLE = Rule(r".*")
PRESETS: dict[str, tuple[Rule, ...]] = {
    "replicate": (_WHOLE,),
    "fsdp": (_FSDP, _WHOLE),
    "tensor": (*_megatron(), _WHOLE),
    "fsdp+tensor": (*_megatron("fsdp"), _FSDP, _WHOLE),
}
SHAPE = '[["REGEX", SPEC], ...]'
SPEC = (
    "SPEC is a list with null, an axis or a list of axes for each axis of the parameter, or one "
    "axis, for the largest that it divides"
)


def has(preset: str, axis: str) -> bool:
    """Whether a preset puts parameters on an axis of the mesh."""
    return any(axis in rule.wanted for rule in PRESETS[preset])


@functools.cache
def rules_of(preset: str, given: str = "") -> tuple[Rule, ...]:
    """The user's rules, then the preset's. `given` is JSON of SHAPE; `["/up/kernel$", [null,
    "tensor"]]`, `["embedding$", "fsdp"]`, `["bias$", []]`. Raises InputError on what is not."""
    return (*user_rules(given), *PRESETS[preset])


def user_rules(given: str) -> tuple[Rule, ...]:
    """config.mesh.rules, read."""
    if not given:
        return ()
    try:
        pairs = json.loads(given)
    except ValueError as e:
        raise InputError(f"config.mesh.rules is no JSON ({e}); accepted: {SHAPE}") from None
    if not isinstance(pairs, list):
        raise InputError(f"config.mesh.rules is {given!r}; accepted: {SHAPE}")
    return tuple(_rule(f"config.mesh.rules, rule {i}", p) for i, p in enumerate(pairs, 1))


def _rule(where: str, pair: Any) -> Rule:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
        raise InputError(f'{where} is {json.dumps(pair)}; accepted: ["REGEX", SPEC]; {SPEC}')
    pattern, spec = pair
    try:
        re.compile(pattern)
    except re.error as e:
        raise InputError(f"{where}: {pattern!r} is no regular expression: {e}") from None
    if isinstance(spec, str):
        rule = Rule(pattern, (), (spec,))
    elif isinstance(spec, list) and all(e is None or isinstance(e, str | list) for e in spec):
        rule = Rule(pattern, tuple(tuple(e) if isinstance(e, list) else e for e in spec))
    else:
        raise InputError(f"{where}: {json.dumps(spec)}; {SPEC}")
    for axis in rule.wanted:
        if axis not in SPLITS:
            accepted = ", ".join(map(repr, SPLITS))
            raise InputError(f"{where}: axis {json.dumps(axis)}; accepted: {accepted}, null")
    if len(set(rule.wanted)) < len(rule.wanted):
        raise InputError(f"{where}: {json.dumps(spec)} names an axis twice; accepted: once each")
    return rule
