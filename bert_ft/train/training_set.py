"""What the training set has that the others have not: few shots, versions, quotas, texts without
labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft.config import cache_dir
from bert_ft.data.augment import Augmented, augmented
from bert_ft.data.encode import Encoded, encode
from bert_ft.data.epochs import OVERSAMPLING, Epochs
from bert_ft.data.rows import Readable
from bert_ft.data.shots import FewShots
from bert_ft.data.sources import source_of
from bert_ft.data.unlabelled import TextsOf, joined
from bert_ft.data_checks import WITH_CLASSES
from bert_ft.method_checks import names, unlabelled_places
from bert_ft.models import hf
from bert_ft.parts import carrier
from bert_ft.tasks.multi import MultiTask
from bert_ft.tasks.multilabel import MultiLabel
from bert_ft.train.proposals import Proposer


def few(config: ConfigDict, source: Readable) -> Readable:
    """The rows that there are to learn from."""
    d, name = config.data, config.task.name
    if not d.shots:
        return source
    if name == MultiLabel.name:
        several = MultiLabel(config).label_sets, config.task.label_delimiter
        return FewShots(source, d.shots, d.shots_seed, d.label, *several)
    return FewShots(source, d.shots, d.shots_seed, d.label if name in WITH_CLASSES else "")


def training_rows(config: ConfigDict, source: Readable) -> Readable:
    """Those, in all their versions."""
    source = few(config, source)
    if "uda" in names(config):
        return source
    own = carrier(config)
    tags = own.data.label if own.task.name == "tagging" else ""
    return _versions(own, source, tags) or source


def _versions(config: ConfigDict, source: Readable, tags: str) -> Augmented | None:
    found = augmented(config, source, tags)
    if found is None:
        return None
    if any(kind == "masked" for kind, _ in found.kinds):
        uri = config.data.augment_model
        model = Proposer(hf.directory(uri, cache_dir(config)), config.data.max_length, uri)
        found = dataclasses.replace(found, propose=model, model=model.digest())
    return found


def with_order(config: ConfigDict, data: Encoded, source: Readable) -> Encoded:
    """A set of `training_rows`: its versions laid out in epochs, its classes given their quotas."""
    versions = source.versions if isinstance(source, Augmented) else 1
    power = OVERSAMPLING[config.data.oversample]
    if versions == 1 and power == 1:
        return data
    count = data.source_rows // versions
    version, row = np.divmod(np.asarray(data.row), count)
    blocks = tuple(int(n) for n in np.bincount(version, minlength=versions))
    classes: Any = None if power == 1 else np.asarray(data.fields["label"])
    order = Epochs(blocks, classes, power)
    return dataclasses.replace(data, row=row, source_rows=count, order=order)


def with_unlabelled(
    config: ConfigDict, task: Any, data: Encoded, tokenizer: Any, say: Callable[[str], None]
) -> Encoded:
    """A set of `with_order`, and the rows of data.unlabelled, where there are some, with their
    versions where a method compares them. Several data sets, merged, read the same texts, and so
    the encoder of the first reads them for all."""
    uri, cache, own = config.data.unlabelled, cache_dir(config), carrier(config)
    if not uri:
        return data
    source = source_of(own, uri)
    versions = _versions(own, source, "") if "uda" in names(config) else None
    length, known, order = config.data.max_length, data.fitted, None
    micro, free = unlabelled_places(config)
    if isinstance(task, MultiTask):
        order = task.mixture(data, (micro - free) * config.train.accumulate)
        reader = TextsOf(task.groups[0], tuple(task.labels))
        known = {part: known[part] for part in task.groups[0].parts}
    else:
        reader = TextsOf(task, (task.label,))
    texts = [
        encode(one, reader, tokenizer, length, cache, known, say)
        for one in (source, versions)
        if one is not None
    ]
    say(f"unlabelled: {len(texts[0]):,} texts of {uri}")
    return joined(data, texts, micro, free, order)
