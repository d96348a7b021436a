"""Why a checkpoint is refused: it was written with another config, data set or architecture."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bert_ft.errors import InputError
from bert_ft.train.checksum import describe

SHOWN = 4  # leaves named in a message before "and n more"


def check_meta(
    where: object, stored: Mapping[str, Any], now: Mapping[str, Any], ignore: tuple[str, ...]
) -> None:
    now = json.loads(json.dumps(dict(now)))
    old = dict(_settings({key: stored.get(key) for key in now}))
    new = dict(_settings(now))
    changed = [
        f"{key}: {json.dumps(old[key]) if key in old else 'absent'} -> "
        f"{json.dumps(new[key]) if key in new else 'absent'}"
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(ignore) and (key in old, old.get(key)) != (key in new, new.get(key))
    ]
    if changed:
        raise InputError(
            f"the config or data changed since {where}: {'; '.join(changed)}; "
            f"use another --workdir, or undo the change"
        )


def _settings(meta: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of `meta` one level down: `{"config": {"a.b": 1}, "data": "x"}` -> a.b, data."""
    for key, value in meta.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield key, value


def check_leaves(where: object, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = []
    # The shallowest first: the parameters before the optimizer's moments of them.
    for path in sorted(stored.keys() | now.keys(), key=lambda path: (path.count("."), path)):
        old = stored[path][0] if path in stored else "absent"
        new = describe(now[path]) if path in now else "absent"
        if old != new:
            changed.append(f"{path}: {old} -> {new}")
    if changed:
        raise InputError(
            f"{where} is of another architecture: {few(changed, '; ')}; "
            f"use another --workdir, or the config it was written with"
        )


def few(items: list[str], separator: str) -> str:
    rest = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return separator.join(items[:SHOWN] + rest)
