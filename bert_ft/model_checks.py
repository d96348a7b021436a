"""What config.model must satisfy beside its values' ranges; part of checks.py."""

from __future__ import annotations

from ml_collections import ConfigDict

from bert_ft.method_checks import names
from bert_ft.task_checks import require


def check_model(c: ConfigDict, mode: str) -> None:
    """Raises InputError on what does not go together."""
    require(
        c.model.kind == "bert" or not c.model.pretrained,
        "model.pretrained",
        c.model.pretrained,
        "'' where model.kind is 'lstm', which starts from scratch (its tokenizer: model.tokenizer)",
    )
    usual_of = {"remat": "none", "layer_loop": "loop", "attention": "auto"}
    for key, usual_value in usual_of.items():
        require(
            c.model.kind == "bert" or c.model[key] == usual_value,
            f"model.{key}",
            c.model[key],
            f"{usual_value!r} where model.kind is 'lstm'",
        )
    require(
        not c.model.positions or bool(c.model.pretrained),
        "model.positions",
        c.model.positions,
        "0 where model.pretrained is '': a fresh model has model.max_positions",
    )
    fused = c.model.attention in ("cudnn", "splash")
    require(
        not (
            fused
            and mode in ("train", "preflight")
            and c.model.dropout
            and c.model.dropout_of_attention
        ),
        "model.attention",
        c.model.attention,
        "'auto' or 'plain' where probabilities are dropped: set model.dropout_of_attention=False",
    )
    require(
        not (fused and "prefix" in names(c)),
        "model.attention",
        c.model.attention,
        "'auto' or 'plain' with prefix, whose keys belong to every segment",
    )
    require(
        not (c.model.attention == "cudnn" and c.trials and c.trial.width != 1),
        "model.attention",
        c.model.attention,
        "'auto' or 'plain' where trials are stacked, or trial.width=1",
    )
    layers = c.model.layers_from
    require(
        not layers
        or bool(c.model.pretrained)
        and all(part.strip().isdecimal() for part in layers.split(",")),
        "model.layers_from",
        layers,
        "numbers of layers of model.pretrained from 0, comma-separated, or ''",
    )
