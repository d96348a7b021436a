"""Everything a run is made of, assembled from its config: data, tokenizer, task, model, mesh."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import cache_dir
from bert_ft.data.encode import Encoded, encode, shared
from bert_ft.data.packing import shortest_row
from bert_ft.data.prompts import with_places
from bert_ft.data.rows import Readable
from bert_ft.data.sources import source_of
from bert_ft.data.tokenizer import KeptTokenizer, tokenizer_hash
from bert_ft.errors import InputError
from bert_ft.method_checks import prefix_length, prompt_length
from bert_ft.methods.registry import make_weights
from bert_ft.methods.weights import Weights
from bert_ft.models import families, hf
from bert_ft.models.attention import attend_on, require_kernel
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model
from bert_ft.models.lstm import lstm_config
from bert_ft.models.shallow import chosen_layers
from bert_ft.tasks.registry import make_task
from bert_ft.train.barriers import agree
from bert_ft.train.meaning import renamed
from bert_ft.train.sharding import abstract, check_sizes, make_mesh, row_shards, shardings
from bert_ft.train.training_set import training_rows, with_order, with_unlabelled

SETS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class System:
    """`sets` has those of train, dev and test that the config names."""

    config: ConfigDict
    mesh: Mesh
    task: Any
    tokenizer: Any
    model: Model
    encoder: Any  # an EncoderConfig or LstmConfig
    sets: Mapping[str, Encoded]
    fitted: Mapping[str, Any]
    row_length: int
    pretrained: Path | None

    @functools.cached_property
    def abstract_params(self) -> Any:
        """The parameters' tree of shapes, with their shardings on the mesh."""
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), example_batch())["params"]
        m = self.config.mesh
        return abstract(shapes, self.mesh, m.preset, m.rules)

    @functools.cached_property
    def weights(self) -> Weights:
        return make_weights(self.config)

    @functools.cached_property
    def form(self) -> Callable:
        """(frozen, trained, step) -> the parameters that the model is given, on the mesh."""

        def made(model: Any) -> Any:
            trained, frozen = self.weights.begin(model, 0)
            return self.weights.form(frozen, trained, 0)

        shapes = jax.eval_shape(made, self.abstract_params)
        m = self.config.mesh
        places = shardings(shapes, self.mesh, m.preset, m.rules)
        return jax.jit(self.weights.form, out_shardings=places)

    @property
    def data_fingerprint(self) -> str:
        prints = {name: data.fingerprint for name, data in sorted(self.sets.items())}
        return hashlib.sha256(json.dumps(prints).encode()).hexdigest()[:16]

    @property
    def shards(self) -> int:
        return row_shards(self.mesh)


def example_batch() -> dict[str, jax.Array]:
    """The smallest batch of the right types, to shape a model with."""
    row, one = jnp.zeros((1, 4), jnp.int32), jnp.zeros(1, jnp.int32)
    names = ("tokens", "types", "positions", "segments", "slots")
    by_example = ("example_slot", "example_start", "example_length", "ordinal")
    return {**dict.fromkeys(names, row), **dict.fromkeys(by_example, one)}


def compute_dtype(config: ConfigDict, mesh: Mesh) -> jnp.dtype:
    name = config.train.dtype
    if name == "auto":
        name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def _encoder(config: ConfigDict, pretrained: Path | None, tokenizer: Any) -> Any:
    """The sizes of the encoder, which also make it (`.encoder(dtype)`)."""
    if config.model.kind == "lstm":
        return lstm_config(config, len(tokenizer))
    m = config.model
    if pretrained:
        sizes = hf.read_config(pretrained)
        if not m.positions:
            return sizes
        rows = m.positions + sizes.position_offset
        return dataclasses.replace(sizes, max_position_embeddings=rows)
    return EncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=m.hidden_size,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        intermediate_size=m.intermediate_size,
        max_position_embeddings=m.max_positions,
    )


def require_positions(config: ConfigDict, encoder: Any) -> None:
    """Raises InputError where texts of data.max_length, with what a method adds to each, would need
    more positions than the encoder has."""
    taken = prompt_length(config) + prefix_length(config)
    if config.data.max_length > encoder.positions - taken:
        raise InputError(
            f"config.data.max_length is {config.data.max_length}; accepted: up to the model's "
            f"{encoder.positions} positions" + (f", less {taken} of a method" if taken else "")
        )


def assemble(
    config: ConfigDict,
    say: Callable[[str], None],
    *,
    sets: tuple[str, ...] = SETS,
    model_dir: Path | None = None,
    fitted: Mapping[str, Any] | None = None,
    devices: Sequence[Any] = (),
) -> System:
    """The system of a config. With `model_dir` and `fitted` (from a finished run's workdir) only
    the named sets are read. `devices` are those that JAX finds if none are given. Raises InputError
    on whatever can't work."""
    mesh, task, cache = make_mesh(config, devices), make_task(config), cache_dir(config)
    pretrained = paths.local(model_dir) if model_dir else None
    if not model_dir and config.model.pretrained:
        pretrained = hf.directory(config.model.pretrained, cache)
    if config.model.tokenizer and not model_dir:
        tokenizer_path = hf.tokenizer_path(config.model.tokenizer, cache)
    else:
        assert pretrained is not None
        tokenizer_path = pretrained
    tokenizer = KeptTokenizer(tokenizer_path, cache)
    encoder = _encoder(config, pretrained, tokenizer)
    if config.model.layers_from and not model_dir:
        layers = chosen_layers(config.model.layers_from, encoder.num_hidden_layers)
        encoder = dataclasses.replace(encoder, num_hidden_layers=len(layers))
    if len(tokenizer) > encoder.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's table {encoder.vocab_size}; "
            "set config.model.tokenizer to the checkpoint's own"
        )
    require_positions(config, encoder)
    if isinstance(encoder, EncoderConfig):
        check_sizes(
            mesh, config.mesh.preset, encoder.num_attention_heads, encoder.intermediate_size
        )
    made: dict[str, Encoded] = {}
    for name in sets:
        data = _read_set(config, task, name, tokenizer, fitted, say)
        if data is None:
            continue
        blank = int((data.lengths <= 2).any(axis=1).sum())  # a first and a last token alone
        made[name] = with_places(data, prompt_length(config))
        fitted = fitted or data.fitted
        _tell(name, made, blank, say)
    assert fitted is not None
    if "train" in made and (said := renamed(fitted)):
        say(f"labels: {said}, by config.task.label_names")
    longest = max((int(d.lengths.max()) for d in made.values()), default=0)
    longest = longest or config.data.max_length + prompt_length(config)
    dtype = compute_dtype(config, mesh)
    m = config.model
    device = mesh.devices.flat[0]
    attend = attend_on(m.attention, m.dropout_of_attention, device)
    model = Model(encoder, task.head(fitted), dtype, m.remat, m.layer_loop, attend)
    row_length = config.data.row_length or shortest_row(longest, device.platform)
    if isinstance(encoder, EncoderConfig):
        width = encoder.hidden_size // encoder.num_attention_heads
        require_kernel(attend, row_length, width, dtype)
    system = System(
        config, mesh, task, tokenizer, model, encoder, made, fitted, row_length, pretrained
    )
    agree("data", {"fingerprint": system.data_fingerprint})
    return system


def in_rows_for(system: System, data: Encoded) -> System:
    """The system with rows as short as this set lets them be, where the config doesn't say."""
    platform = system.mesh.devices.flat[0].platform
    length = system.config.data.row_length or shortest_row(int(data.lengths.max()), platform)
    return dataclasses.replace(system, row_length=length)


def texts_of(task: Any) -> list[str]:
    """The column of the text of each group, as `uris` has them; '' is the config's."""
    return [group.texts()[0] for group in getattr(task, "groups", ())] or [""]


def uris(config: ConfigDict, task: Any, name: str) -> list[str]:
    """Where the rows of a set are: one URI, or one for each group of a task that has several."""
    groups = getattr(task, "groups", None)
    return [group.uris[name] for group in groups] if groups else [config.data[name]]


def _read_set(
    config: ConfigDict,
    task: Any,
    name: str,
    tokenizer: Any,
    fitted: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> Encoded | None:
    """A set of the config, encoded; None where it names none."""
    made: list[Encoded | None] = []
    parts = getattr(task, "groups", [task])
    for part, uri, text in zip(parts, uris(config, task, name), texts_of(task), strict=True):
        if not uri:
            made.append(None)
            continue
        source: Readable = source_of(config, uri, text=text)
        source = training_rows(config, source) if name == "train" else source
        known = fitted
        if known is not None and hasattr(task, "groups"):
            known = {p: known[p] for p in part.parts}
        length, cache = config.data.max_length, cache_dir(config)
        data = encode(source, part, tokenizer, length, cache, known, say)
        if name == "train":
            data = with_order(config, data, source)
        made.append(data)
    if all(data is None for data in made):
        return None
    whole = task.merge(made) if hasattr(task, "groups") else made[0]
    assert whole is not None
    return with_unlabelled(config, task, whole, tokenizer, say) if name == "train" else whole


def rows_of(system: System, name: str) -> Any:
    """The rows of a set; of a task with several groups a list, an entry a group. Raises InputError
    where they are no longer those that were encoded."""
    c = system.config
    where = zip(uris(c, system.task, name), texts_of(system.task), strict=True)
    sources = [source_of(c, uri, text=text) if uri else None for uri, text in where]
    now = ",".join(source.fingerprint() for source in sources if source)
    if now != system.sets[name].read_from:
        raise InputError(
            f"config.data.{name} has changed since it was read, so the predictions are of other "
            "rows; score it again with --mode=eval"
        )
    read = [source.read() if source else None for source in sources]
    return read if hasattr(system.task, "groups") else read[0]


def _tell(name: str, made: Mapping[str, Encoded], blank: int, say: Callable[[str], None]) -> None:
    data = made[name]
    tokens, cut = int(data.offsets[-1]), int(data.truncated.sum())
    train = made.get("train") if name != "train" and jax.process_index() == 0 else None  # 0 speaks
    known = shared(data, train) if train else 0
    say(
        f"{name}: {len(data):,} examples of {data.source_rows:,} rows, {tokens:,} tokens "
        f"({tokens / len(data):.1f} each, at most {int(data.lengths.sum(axis=1).max())}), "
        f"{cut:,} truncated"
        + (f", {blank:,} without any text" if blank else "")
        + (f", {known:,} with a text that train has too" if known else "")
        + (f", {len(data.skipped):,} bad rows skipped" if data.skipped else "")
    )


def save_model_files(system: System, workdir: Path) -> None:
    """WORKDIR/model: what prediction needs beside the parameters (sizes, tokenizer, labels)."""
    sizes = (
        families.config_json(system.encoder)
        if isinstance(system.encoder, EncoderConfig)
        else {"model_type": system.config.model.kind, **dataclasses.asdict(system.encoder)}
    )
    about = {
        "fitted": dict(system.fitted),
        "data": system.data_fingerprint,
        "tokenizer": tokenizer_hash(system.tokenizer),
    }
    with paths.written(workdir / "model") as into:
        system.tokenizer.save_pretrained(into)
        (into / "config.json").write_text(json.dumps(sizes, indent=1))
        (into / "task.json").write_text(json.dumps(about, indent=1))


def load_fitted(workdir: Path) -> Mapping[str, Any]:
    """What training learnt from the data (label names); raises InputError where no run was made."""
    path, below = workdir / "model" / "task.json", workdir / "trials"
    with paths.reached(workdir):
        if path.is_file():
            return json.loads(path.read_text())["fitted"]
        what = f"no trained model there ({path} is missing); run with --mode=train first"
        if below.is_dir():
            what = f"a run of trials has no model of its own; accepted: one of them, as {below}/0"
    raise InputError(f"{workdir}: {what}")


def trained_on(workdir: Path) -> str:
    """Fingerprint of the data sets that a run was trained with, all of them."""
    return json.loads((workdir / "model" / "task.json").read_text())["data"]
