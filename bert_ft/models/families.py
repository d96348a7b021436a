"""What Hugging Face calls the parts of BERT and of the encoders that share its shape.

One `Family` an encoder, one table a head. A head class in models/heads.py names its row here by its
attribute `kind`; a head without one has no Hugging Face form: it starts new and can't be exported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bert_ft.models.bert import EncoderConfig

# (path in params, name in the file); {} is a layer's number. What ends in '/' stands for all leaves
# below it. A leading '.' marks a tensor of the base model, which a model with a head keeps under
# the family's prefix: '.embeddings.…' is 'bert.embeddings.…' there, 'embeddings.…' in a BertModel.
Table = tuple[tuple[str, str], ...]

# What follows the family's stem in the name of the architecture: BertForMaskedLM.
ARCHITECTURES = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "masked": "ForMaskedLM",
    "choice": "ForMultipleChoice",
    "embedding": "Model",
}

# Other architectures whose head of that kind is the same one, beside heads for other tasks.
_ALSO = {"masked": ("ForPreTraining",)}

_EMBEDDINGS: Table = (
    ("encoder/word/embedding", ".embeddings.word_embeddings.weight"),
    ("encoder/position/embedding", ".embeddings.position_embeddings.weight"),
    ("encoder/type/embedding", ".embeddings.token_type_embeddings.weight"),
    ("encoder/norm/", ".embeddings.LayerNorm."),
)
_BERT: Table = (
    *_EMBEDDINGS,
    ("encoder/project/", ".embeddings_project."),
    ("encoder/layer_{}/attention/query/", ".encoder.layer.{}.attention.self.query."),
    ("encoder/layer_{}/attention/key/", ".encoder.layer.{}.attention.self.key."),
    ("encoder/layer_{}/attention/value/", ".encoder.layer.{}.attention.self.value."),
    ("encoder/layer_{}/attention/output/", ".encoder.layer.{}.attention.output.dense."),
    ("encoder/layer_{}/attention/norm/", ".encoder.layer.{}.attention.output.LayerNorm."),
    ("encoder/layer_{}/up/", ".encoder.layer.{}.intermediate.dense."),
    ("encoder/layer_{}/down/", ".encoder.layer.{}.output.dense."),
    ("encoder/layer_{}/norm/", ".encoder.layer.{}.output.LayerNorm."),
)
_DISTILBERT: Table = (
    *_EMBEDDINGS,
    ("encoder/layer_{}/attention/query/", ".transformer.layer.{}.attention.q_lin."),
    ("encoder/layer_{}/attention/key/", ".transformer.layer.{}.attention.k_lin."),
    ("encoder/layer_{}/attention/value/", ".transformer.layer.{}.attention.v_lin."),
    ("encoder/layer_{}/attention/output/", ".transformer.layer.{}.attention.out_lin."),
    ("encoder/layer_{}/attention/norm/", ".transformer.layer.{}.sa_layer_norm."),
    ("encoder/layer_{}/up/", ".transformer.layer.{}.ffn.lin1."),
    ("encoder/layer_{}/down/", ".transformer.layer.{}.ffn.lin2."),
    ("encoder/layer_{}/norm/", ".transformer.layer.{}.output_layer_norm."),
)


def _two(hidden: str, out: str) -> Table:
    """The two layers of a sequence head."""
    return (("top/pooler/", hidden), ("top/classifier/", out))


def _masked(dense: str, norm: str, bias: str) -> Table:
    """The head of masked words; its last matrix is the word table itself."""
    return (("top/transform/", dense), ("top/norm/", norm), ("top/bias", bias))


_ONE = {
    "token": (
        ("top/classifier/", "classifier."),
        ("top/crf_start", "crf.start"),  # no name of theirs: they read the logits and leave these
        ("top/crf_steps", "crf.steps"),
        ("top/crf_end", "crf.end"),
    ),
    "span": (("top/qa_outputs/", "qa_outputs."),),
    "embedding": (),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """`stem` begins its architectures' names. `keys`: config.json's name for a field of
    EncoderConfig where it is not the field's own, None where it has none. `fixed`: fields that are
    always so."""

    stem: str
    prefix: str
    encoder: Table
    heads: Mapping[str, Table]
    keys: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Fields of EncoderConfig that config.json has under no name, in any family.
INTERNAL: Mapping[str, None] = dict.fromkeys(
    ("family", "position_offset", "head_activation", "pooler", "embedding_size")
)
_LM_HEAD = _masked("lm_head.dense.", "lm_head.layer_norm.", "lm_head.bias")
_ROBERTA_HEADS = {
    **_ONE,
    "sequence": _two("classifier.dense.", "classifier.out_proj."),
    "choice": _two(".pooler.dense.", "classifier."),
    "masked": _LM_HEAD,
}

FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        "Bert",
        "bert",
        _BERT,
        {
            **_ONE,
            "sequence": _two(".pooler.dense.", "classifier."),
            "choice": _two(".pooler.dense.", "classifier."),
            "masked": _masked(
                "cls.predictions.transform.dense.",
                "cls.predictions.transform.LayerNorm.",
                "cls.predictions.bias",
            ),
        },
    ),
    "roberta": Family("Roberta", "roberta", _BERT, _ROBERTA_HEADS),
    "xlm-roberta": Family("XLMRoberta", "roberta", _BERT, _ROBERTA_HEADS),
    "distilbert": Family(
        "DistilBert",
        "distilbert",
        _DISTILBERT,
        {
            **_ONE,
            "sequence": _two("pre_classifier.", "classifier."),
            "choice": _two("pre_classifier.", "classifier."),
            "masked": _masked("vocab_transform.", "vocab_layer_norm.", "vocab_projector.bias"),
        },
        keys={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "type_vocab_size": None,
            "layer_norm_eps": None,
        },
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12, "head_activation": "relu"},
    ),
    "electra": Family(
        "Electra",
        "electra",
        _BERT,
        {
            **_ONE,
            "sequence": _two("classifier.dense.", "classifier.out_proj."),
            "choice": _two("sequence_summary.summary.", "classifier."),
            "masked": _masked(
                "generator_predictions.dense.",
                "generator_predictions.LayerNorm.",
                "generator_lm_head.bias",
            ),
        },
        keys={"embedding_size": "embedding_size"},
        fixed={"head_activation": "gelu"},
    ),
}
# Sizes that config.json must have; every other field has a default.
_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)
_PADDED_POSITIONS = ("roberta", "xlm-roberta")  # their positions begin after the padding's own id

# How ELECTRA's head of a choice sums a text up unless its config.json says otherwise.
_SUMMARY = {"summary_type": "first", "summary_activation": "gelu", "summary_use_proj": True}

LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"}
# What a checkpoint may hold beyond its encoder: buffers, poolers, and the heads of other tasks.
IGNORED = re.compile(
    r"embeddings\.(position|token_type)_ids$|pooler\.|cls\.|lm_head\.|classifier\.|qa_outputs\.|"
    r"pre_classifier\.|vocab_(transform|layer_norm|projector)\.|sequence_summary\.|"
    r"crf\.|generator_(predictions|lm_head)\.|discriminator_predictions\."
)


def name(path: str, family: str, kind: str) -> str | None:
    """'encoder/layer_3/up/kernel' -> '.encoder.layer.3.intermediate.dense.weight' in BERT; None for
    a head's parameter that has no name there. Raises KeyError for an encoder's."""
    about = FAMILIES[family]
    layer = re.search(r"layer_(\d+)", path)
    number = layer.group(1) if layer else ""
    for ours, theirs in (*about.encoder, *about.heads.get(kind, ())):
        ours, theirs = ours.replace("{}", number), theirs.replace("{}", number)
        if path == ours:
            return theirs
        if ours.endswith("/") and path.startswith(ours):
            return theirs + LEAVES[path[len(ours) :]]
    if path.startswith("top/"):
        return None
    raise KeyError(path)


def architecture(family: str, kind: str) -> str:
    """('roberta', 'token') -> 'RobertaForTokenClassification'."""
    return FAMILIES[family].stem + ARCHITECTURES[kind]


def misfit(raw: Mapping[str, Any], kind: str) -> str:
    """Why the head of the checkpoint that a config.json is of can't be one of this kind; '' where
    it can."""
    made_for, stem = raw.get("architectures") or [""], FAMILIES[raw["model_type"]].stem
    made_for = made_for if isinstance(made_for, str) else made_for[0]
    if not made_for or not kind:
        return ""
    if made_for not in [stem + end for end in (ARCHITECTURES[kind], *_ALSO.get(kind, ()))]:
        return f"its {made_for} head is for another task"
    if kind == "masked" and raw.get("tie_word_embeddings") is False:
        return f"its {made_for} head has a word table of its own"
    if kind == "choice" and raw["model_type"] == "electra":
        for key, usual in _SUMMARY.items():
            if raw.get(key, usual) != usual:
                return f"its {made_for} head has {key} {raw[key]!r}, not {usual!r}"
    return ""


def key_of(family: str, field: str) -> str | None:
    """What config.json calls a field of EncoderConfig, None where it has no place for it."""
    keys = {**INTERNAL, **FAMILIES[family].keys}
    return keys.get(field, field)


def encoder_config(raw: Mapping[str, Any]) -> EncoderConfig:
    """The encoder of a config.json. Raises ValueError for one that is not of BERT's shape."""
    family: Any = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"model_type is {family!r}; accepted: {', '.join(map(repr, FAMILIES))}")
    fields: dict[str, Any] = {"family": family}
    for field in dataclasses.fields(EncoderConfig):
        key = key_of(family, field.name)
        if key is not None and raw.get(key) is not None:
            fields[field.name] = raw[key]
            usual: Any = field.default
            if field.name in _SIZES:
                if type(raw[key]) is not int or raw[key] < 1:
                    raise ValueError(f"{key} is {raw[key]!r}; accepted: a whole number from 1 on")
            elif type(usual) in (int, float) and not (
                type(raw[key]) in (int, type(usual)) and raw[key] >= 0
            ):
                raise ValueError(f"{key} is {raw[key]!r}; accepted: a number from 0 on")
        elif field.name in _SIZES:
            raise ValueError(f"no {key}, which a model_type of {family!r} needs")
    if fields["hidden_size"] % fields["num_attention_heads"]:
        heads, width = (key_of(family, f) for f in ("num_attention_heads", "hidden_size"))
        raise ValueError(
            f"{heads} is {fields['num_attention_heads']}; accepted: a divisor of {width}, "
            f"{fields['hidden_size']}"
        )
    if raw.get("is_decoder"):
        raise ValueError("is_decoder is true; accepted: false, an encoder that reads both ways")
    fields |= FAMILIES[family].fixed
    if family in _PADDED_POSITIONS:
        fields["pad_token_id"] = fields.get("pad_token_id", 1)
        fields["position_offset"] = fields["pad_token_id"] + 1
    act, place = fields.get("hidden_act", "gelu"), raw.get("position_embedding_type", "absolute")
    if act != "gelu" or place != "absolute":
        raise ValueError(
            f"hidden_act {act!r}, position_embedding_type {place!r}; accepted: 'gelu', 'absolute'"
        )
    return EncoderConfig(**fields)


def config_json(
    config: EncoderConfig,
    kind: str = "",
    labels: Sequence[str] = (),
    outputs: int = 0,
    problem: str = "",
) -> dict[str, Any]:
    """What config.json says of an encoder, and of its head of this kind: the names of its labels,
    or the number of its outputs where they have none; its problem_type, by which transformers'
    pipelines choose softmax, sigmoid or neither."""
    out: dict[str, Any] = {"model_type": config.family}
    if kind:
        out["architectures"] = [architecture(config.family, kind)]
    for field in dataclasses.fields(EncoderConfig):
        key = key_of(config.family, field.name)
        if key is not None:
            out[key] = getattr(config, field.name)
    if "embedding_size" in out:
        out["embedding_size"] = config.embedding_size or config.hidden_size
    names = list(labels) if len(labels) == outputs else [f"LABEL_{i}" for i in range(outputs)]
    if names:
        out["id2label"] = {str(i): name for i, name in enumerate(names)}
        out["label2id"] = {name: i for i, name in enumerate(names)}
    if problem:
        out["problem_type"] = problem
    return out
