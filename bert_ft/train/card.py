"""What stands beside an exported model: its card, and the files of sentence-transformers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from bert_ft.config import FREE, flat
from bert_ft.models import families
from bert_ft.models.hf import flatten, label_names
from bert_ft.models.stored_heads import OWN
from bert_ft.train.system import System

_PIPELINES = {
    "sequence": "text-classification",
    "token": "token-classification",
    "span": "question-answering",
    "masked": "fill-mask",
    "choice": "multiple-choice",
    "embedding": "sentence-similarity",
}
_LOADED = """```python
from transformers import AutoTokenizer, {architecture}

tokenizer = AutoTokenizer.from_pretrained("{directory}")
model = {architecture}.from_pretrained({given})
```"""


def thresholds(system: System) -> dict[str, float]:
    """{label: the probability from which it is predicted}, of a task of several labels."""
    if getattr(system.task, "problem_type", "") != "multi_label_classification":
        return {}
    labels = system.fitted["labels"]
    chosen = system.fitted.get("thresholds", [0.5] * len(labels))
    return dict(zip(labels, chosen, strict=True))


def null_threshold(system: System) -> float | None:
    """By how much 'no answer' must exceed the best answer, as chosen on dev or configured; None
    where every question has an answer, and for other tasks."""
    if not system.fitted.get("unanswerable"):
        return None
    return system.task.threshold(system.fitted)


def model_card(
    system: System,
    kind: str,
    about: Mapping[str, Any],
    result: Mapping[str, Any],
    usual: ConfigDict,
) -> str:
    """README.md: how to load it, its scores with their n, how it was trained and compared. `about`
    is export.json's object; `result` that of result.json, {} where it is of other parameters;
    `usual` the default config, from which overrides are told."""
    config, defaults = about["config"], flat(usual)
    architecture = families.architecture(system.encoder.family, kind)
    changed = {
        k: v for k, v in config.items() if v != defaults[k] and not k.startswith((*FREE, "data."))
    }
    data = {k: config[f"data.{k}"] for k in ("train", "dev", "test") if config[f"data.{k}"]}
    settings = {
        k: v
        for k, v in config.items()
        if k.startswith("data.") and k.split(".")[1] not in data and v != defaults[k]
    }
    compared = about["compared"]
    gaps = ", ".join(f"{who} {gap:.1e}" for who, gap in compared["largest_difference"].items())
    versions = ", ".join(f"{package} {v}" for package, v in about["versions"].items() if v)
    name = Path(config["export.to"]).name
    of_all = " of the run, all its parts" if config["export.part"] else ""
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {_PIPELINES[kind]}",
        "tags: [bert_ft]",
        "---",
        "",
        f"# {architecture}: {config['task.name']}",
        "",
        f"Fine-tuned with bert_ft from {_code(config['model.pretrained'] or 'scratch')}; "
        f"texts are cut at {config['data.max_length']} tokens.",
        "",
        _LOADED.format(
            architecture=architecture, directory=name, given=f'"{name}"{_outputs(system, about)}'
        ),
        "",
        "## Scores",
        "",
        *_score_lines(result),
        "",
        *_threshold_lines(thresholds(system)),
        *_reading_lines(system, about["unit"]),
        "## Training",
        "",
        f"{about['step']:,} steps, seed {config['train.seed']}.",
        "",
        "| data | |",
        "|---|---|",
        *(f"| {name} | {_code(uri)} |" for name, uri in data.items()),
        "",
        "Settings that are not the defaults:",
        "",
        *(f"- `{k}={_shown(v)}`" for k, v in sorted({**changed, **settings}.items())),
        "",
        f"Code: commit {about['git_commit'] or 'unknown'}. Versions: {versions}.",
        "",
        "## The same outputs",
        "",
        "Before this directory was put in place it was read back and its outputs compared with "
        f"the trained model's on {compared['rows']} rows of `{compared['of']}`. Largest absolute "
        f"difference: {gaps}.",
        "",
        f"SHA-256 of the parameters{of_all}: `{about['params_sha256']}`",
        "",
    ]
    return "\n".join(lines)


def _outputs(system: System, about: Mapping[str, Any]) -> str:
    """What from_pretrained is told of an adapter's outputs, for its base has others."""
    bias = flatten(system.abstract_params).get("top/classifier/bias")
    if "base_sha256" not in about or bias is None:
        return ""
    labels = next(iter(label_names(system.fitted)), [])
    named = f", id2label={dict(enumerate(labels))}" if labels else ""
    return f", num_labels={bias.shape[0]}{named}"


def _score_lines(result: Mapping[str, Any]) -> list[str]:
    if not result.get("eval"):
        return ["None is recorded of these parameters."]
    rows = []
    for name, score in result["eval"].items():
        spread = f" ± {score['std']:.4f}" if len(score["per_trial"]) > 1 else ""
        rows.append(f"| {name} | {_number(score['mean'])}{spread} | {score['n_examples']:,} |")
    table = ["| set/metric | value | n |", "|---|---|---|", *rows]
    other = result.get("scored_with", {})  # than it was trained with, which the card tells below
    told = ", ".join(f"{k} = {_code(str(v))}" for k, v in other.items())
    return [*table, "", f"They are of an evaluation with {told}."] if told else table


def _threshold_lines(of_labels: Mapping[str, float]) -> list[str]:
    """How its labels are chosen, those whose sigmoid reaches its threshold."""
    if not of_labels:
        return []
    rows = [f"| {_code(label)} | {threshold:.4f} |" for label, threshold in of_labels.items()]
    said = "A label is predicted where its sigmoid is its threshold or more:"
    return ["## Thresholds", "", said, "", "| label | threshold |", "|---|---|", *rows, ""]


_READ = {
    "viterbi": "the likeliest ones that make a legal sequence of {scheme}",
    "crf": "those of a linear-chain CRF over the logits, of scheme {scheme}, whose scores are the "
    "tensors `crf.*`, for which transformers has no place",
}


def _reading_lines(system: System, unit: Mapping[str, float]) -> list[str]:
    """How the scores' answers are read from the outputs, where that is not the largest one."""
    said, threshold = "", null_threshold(system)
    if unit != {"mean": OWN.mean, "scale": OWN.scale}:
        said = f"A label is the output times {unit['scale']!r}, and {unit['mean']!r} more."
    if threshold is not None:
        said = (
            "A question has no answer where the score of [CLS] exceeds the best answer's by more "
            f"than {threshold:.4f}."
        )
    how, scheme = _READ.get(getattr(system.task, "decode", "")), system.fitted.get("scheme")
    if how and (scheme, system.task.decode) != ("plain", "viterbi"):  # of which any path is legal
        how = how.format(scheme=scheme)
        said = f"The tags scored above are {how}; each word's largest logit may be another one's."
    return ["## How outputs are read", "", said, ""] if said else []


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


def _shown(value: Any) -> str:
    return shlex.quote(value) if isinstance(value, str) else str(value)


def write_sentence_transformer(path: Path, system: System) -> None:
    """The files by which sentence-transformers knows how vectors are pooled and normalised."""
    pooling = system.model.head(system.encoder, jnp.float32).pooling
    package = "sentence_transformers.models."
    modules = [
        {"idx": i, "name": str(i), "path": at, "type": package + kind}
        for i, (at, kind) in enumerate(
            (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        )
    ]
    pooled = {
        "word_embedding_dimension": system.encoder.hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    length = {"max_seq_length": system.config.data.max_length}
    for name in ("1_Pooling", "2_Normalize"):
        (path / name).mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooled, indent=1))
    (path / "modules.json").write_text(json.dumps(modules, indent=1))
    (path / "sentence_bert_config.json").write_text(json.dumps(length, indent=1))
