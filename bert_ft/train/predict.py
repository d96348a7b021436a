"""--mode=predict: the rows of a file, labelled."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.data.encode import Encoded, encoder_to_predict
from bert_ft.data.prompts import with_places
from bert_ft.data.sources import Rows, Source, source_of
from bert_ft.errors import InputError
from bert_ft.method_checks import prefix_length, prompt_length
from bert_ft.train import adapters, optim, record
from bert_ft.train.barriers import agree
from bert_ft.train.finish import eval_programs, predict_set
from bert_ft.train.gather import chosen
from bert_ft.train.processes import tell
from bert_ft.train.start import fitted_for, trained_params
from bert_ft.train.system import System, assemble, in_rows_for


def predict(config: ConfigDict, workdir: Path) -> Path:
    """--mode=predict: a JSON line a row of config.predict.input, in its order; returns the file.
    A task with a method `lists(lines)` also writes those, to <name of the file>.ranked.jsonl. With
    config.predict.adapters a file an adapter, <name of the file>.<name of the adapter>.jsonl, whose
    lines name it; returns their directory."""
    of_all = workdir
    config, workdir = chosen(config, workdir, "predict.trial")
    fitted = fitted_for(config, workdir, tell)
    # What several trials say of one input has a place for each.
    at = of_all if config.predict.trial == "best" else workdir
    given = config.predict.input
    if given.startswith(("files:", "hf:", "tfds:", "pypi:")):
        raise InputError(
            f"config.predict.input is {given!r}; accepted: what stands after files: in a URI, such "
            "as new.jsonl"
        )
    source = source_of(config, f"files:{given}")
    out = _predict_path(config, at, source)
    agree("config.predict.input", {"content": source.fingerprint()})
    rows = source.read()
    for line in rows.skipped:
        tell(f"skipped {line}")
    system = assemble(config, tell, sets=(), model_dir=workdir / "model", fitted=fitted)
    # Labels, where the rows have any, play no part: they need not be those of the training set.
    labels = getattr(system.task, "labels", [config.data.label])
    columns = {k: v for k, v in rows.columns.items() if k not in labels}
    rows = dataclasses.replace(rows, columns=columns)
    # A task to which such rows are others than those of a set with labels says so.
    encode = encoder_to_predict(system.task)
    data = encode(rows, system.tokenizer, config.data.max_length, fitted)
    for line in data.skipped:  # of what the task itself has read
        tell(f"skipped {line}")
    if config.predict.adapters:
        for name, its, own, params, step in adapters.each(system, data, tell):
            at = adapters.beside(out, name)
            said = f"adapter {name}" + (f" of step {step:,}" if step is not None else "")
            _label(its, params, own, rows, at, said, {"adapter": name})
        return out.parent
    params, step = trained_params(system, workdir, optim.make_optimizer(config, 1), tell)
    _label(system, params, data, rows, out, f"step {step:,}", {})
    return out


def _label(
    system: System,
    params: Any,
    data: Encoded,
    rows: Rows,
    out: Path,
    by: str,
    more: Mapping[str, Any],
) -> None:
    """Writes what `params` answer to the rows, with what `more` says of each. `data`: the rows
    without the places of a prompt."""
    data = with_places(data, prompt_length(system.config))
    places = system.encoder.positions - prefix_length(system.config)
    if (longest := int(data.lengths.max())) > places:
        raise InputError(
            f"config.data.max_length: texts have {longest} tokens with their prompt, the model "
            f"{places} positions beside a prefix; accepted: less, by the prompt's length"
        )
    system = in_rows_for(system, data)
    answers = system.task.answers(
        predict_set(system, eval_programs(system), params, data), data, rows
    )
    lines = []
    for where, answer in zip(_places(rows), answers, strict=True):
        own = {**where, "label": answer.pop("prediction"), **more}
        if taken := own.keys() & answer.keys() - {"id"}:
            raise InputError(
                f"{rows.origin}: column {min(taken)!r} has a name under which what is said of each "
                "row is written; accepted: another name of the column"
                + ("" if "label" in taken else ", or rows with an 'id'")
            )
        lines.append({**where, "label": own["label"], **answer, **more})
    if jax.process_index() == 0:
        if out.exists():
            tell(f"{out}: earlier predictions are replaced")
        record.write_lines(out, lines)
        lists = getattr(system.task, "lists", None)  # what a task makes of the lines together
        if lists is not None:
            record.write_lines(_ranked(out), lists(lines))
        cut = sum(line["truncated"] for line in lines)
        print(f"{len(lines):,} rows labelled by {by}, {cut:,} truncated: {out}")


def _places(rows: Rows) -> list[dict[str, Any]]:
    """What each row's answer is joined to it by: its id, or else, where the file has lines, its
    line, by which rows that were left out are missed, and of several files its own."""
    places: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    for name, values in (("file", rows.paths), ("line", rows.lines)):
        for place, value in zip(places, values or (), strict=False):
            place[name] = value
    ids = zip(rows.ids(), places, strict=True)
    return [place if given is None else {"id": given} for given, place in ids]


def _predict_path(config: ConfigDict, workdir: Path, source: Source) -> Path:
    """Where the lines go; raises InputError where they would replace what must stay."""
    folder = workdir / "predictions"
    given = paths.at(source.uri.removeprefix("files:").partition("?")[0])
    stem = re.sub(r"[*?\[\]]+", "_", given.stem)  # of a glob, which a shell would expand again
    out = paths.at(config.predict.output or str(folder / f"{stem}.jsonl"))
    written = [adapters.beside(out, name) for name in adapters.names_of(config)] or [out]
    lists = [_ranked(at) for at in written]
    for taken, what in (
        *((path, "the input") for path in source.files),
        (folder / "test.jsonl", "the test set's, of the run"),
    ):
        if taken.resolve() in [at.resolve() for at in (*written, *lists)]:
            raise InputError(f"config.predict.output would be {taken}, {what}; give another file")
    for at in written:
        _require_free(at)
    return out


def _require_free(out: Path) -> None:
    """Raises InputError where something else than earlier predictions would be replaced."""
    with paths.reached(out):
        if not out.exists():
            return
        try:
            with out.open(encoding="utf-8") as file:
                line = file.readline()
            ours = not line or {"label", "truncated"} <= json.loads(line).keys()
        except (OSError, ValueError, AttributeError):  # a directory, a table, a list
            ours = False
    if not ours:
        raise InputError(
            f"config.predict.output would replace {out}, which holds no predictions; accepted: the "
            "name of a file that is not there, or of earlier predictions"
        )


def _ranked(out: Path) -> Path:
    return out.with_name(f"{out.stem}.ranked.jsonl")
