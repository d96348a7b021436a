"""Why a checkpoint is refused: it was written with another config, data set or architecture."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import FREE, default, flat
from bert_ft.errors import InputError
from bert_ft.method_checks import names
from bert_ft.parts import part_configs
from bert_ft.train.checksum import describe

SHOWN = 4  # leaves named in a message before "and n more"
# Keys that bear on what a trained model answers, however it was trained …
OF_ANSWERS = ("task.", "model.", "methods.", "data.text", "data.max_length", "data.candidates")
# … or on its scores of dev and test …
OF_SCORES = (*OF_ANSWERS, "data.dev", "data.test", "data.label")
# … but for those of these that bear on training alone.
OF_TRAINING = (
    *("model.dropout", "model.remat", "model.layer_loop", "model.head", "model.adapter"),
    *("task.label_smoothing", "task.class_", "task.weight", "task.alpha", "task.asymmetry"),
    *("task.mixing", "task.negatives", "task.symmetric", "task.temperature", "task.worse"),
    *("task.pairs", "task.id_dropout"),
)
LEARNT = ("task.label_names", "task.label_scaling")


def check_meta(
    where: object, stored: Mapping[str, Any], now: Mapping[str, Any], ignore: tuple[str, ...]
) -> None:
    now = json.loads(json.dumps(dict(now)))
    old, new = (dict(_settings(meta)) for meta in ({k: stored.get(k) for k in now}, now))
    # A key that is new since then has the default it always had.
    old |= {k: v for k, v in flat(default()).items() if k in new and k not in old}
    changed = [said for key, said in _changes(old, new) if not key.startswith(ignore)]
    if changed:
        raise InputError(
            f"the config or data changed since {where}: {'; '.join(changed)}; "
            f"use another --workdir, or undo the change"
        )


def otherwise(config: ConfigDict, workdir: Path) -> str:
    """A line that says in what the config would have a run answer otherwise than it was trained
    to, such as in a flag that was left out; '' where in nothing."""
    changed = [
        said + (" (stays as trained)" if _is_learnt(key, config) else "")
        for key, said in _unlike(config, workdir, OF_ANSWERS)
    ]
    if not changed:
        return ""
    return f"note: the config is not the one of {workdir / 'config.json'}: {few(changed, '; ')}"


def scored_with(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """{key: value} of what bears on the scores of dev and test, where it is not the run's own."""
    now, changed = flat(config), [key for key, _ in _unlike(config, workdir, OF_SCORES)]
    return {key: now.get(key) for key in changed if not _is_learnt(key, config)}


def _is_learnt(key: str, config: ConfigDict) -> bool:
    """Whether training alone reads a key, and what it made of it stays."""
    chosen = ("task.null_threshold",) if config.task.choose_null else ()
    return key in (*LEARNT, *chosen)


def _unlike(config: ConfigDict, workdir: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """_changes from a run's own config, of keys that begin as `keys` and bear on its answers."""
    path = workdir / "config.json"
    if not path.is_file():
        return
    # A key that is new since then has the default it always had.
    old = {**flat(default()), **json.loads(path.read_text())}
    used = {"use", *names(config), *old["methods.use"].split(",")}
    for key, said in _changes(old, flat(config)):
        off = key.startswith("methods.") and key.split(".")[1] not in used
        if key.startswith(keys) and not key.startswith((*FREE, *OF_TRAINING)) and not off:
            yield key, said


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, 'key: old -> new') of each that differs."""
    for key in sorted(old.keys() | new.keys()):
        if (key in old, old.get(key)) != (key in new, new.get(key)):
            was, now = (json.dumps(s[key]) if key in s else "absent" for s in (old, new))
            yield key, f"{key}: {was} -> {now}"


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


def require_same_rates(config: ConfigDict, workdir: Path) -> None:
    """Raises InputError where the config has another rate than the run by which that run's
    parameters are to be read: of a chain (heads.TokenHead), of tables (fusion.FusionHead)."""
    path = workdir / "config.json"
    if not path.is_file():
        return
    its, old = config.copy_and_resolve_references(), json.loads(path.read_text())
    keys = [k for k in flat(config) if k.startswith("task.") and k in old]
    its.update_from_flattened_dict({k: old[k] for k in keys})
    theirs = dict(_rates(its))
    for key, ours in _rates(config):
        if key in theirs and theirs[key] != ours:
            raise InputError(
                f"config.{key} is {ours:g}; accepted: {theirs[key]:g}, by which the parameters of "
                f"{workdir} are to be read"
            )


def _rates(config: ConfigDict) -> Iterator[tuple[str, float]]:
    several = config.task.name == "multi"
    for part, own in (part_configs(config) if several else {"": config}).items():
        where, t = (f"task.parts: {part!r}: " if several else ""), own.task
        if t.name == "tagging" and t.decode == "crf":
            yield f"{where}task.crf_rate", t.crf_rate
        elif t.name == "recommend":
            yield f"{where}task.table_rate", t.table_rate
