"""config.methods.use -> the methods of a run, in its order."""

from __future__ import annotations

from ml_collections import ConfigDict

from bert_ft.method_checks import names
from bert_ft.methods.adalora import AdaLora
from bert_ft.methods.ema import Ema
from bert_ft.methods.fgm import Fgm
from bert_ft.methods.freezing import BitFit, Freeze, Unfreeze
from bert_ft.methods.lora import Lora
from bert_ft.methods.method import Method
from bert_ft.methods.modules import Houlsby, Pfeiffer, Prefix, Prompt
from bert_ft.methods.weights import Weights

WEIGHTS = (Lora, AdaLora, BitFit, Freeze, Unfreeze, Houlsby, Pfeiffer, Prefix, Prompt)
METHODS: dict[str, type[Method]] = {method.name: method for method in (*WEIGHTS, Fgm, Ema)}


def make_methods(config: ConfigDict) -> tuple[Method, ...]:
    return tuple(METHODS[name](config) for name in names(config))


def make_weights(config: ConfigDict) -> Weights:
    return Weights(make_methods(config), config.methods.also_train)
