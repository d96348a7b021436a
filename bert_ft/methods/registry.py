"""config.methods.use -> the methods of a run, in its order."""

from __future__ import annotations

from ml_collections import ConfigDict

from bert_ft.method_checks import names
from bert_ft.methods.adalora import AdaLora
from bert_ft.methods.contrastive import Contrastive
from bert_ft.methods.distil import Distil
from bert_ft.methods.ema import Ema
from bert_ft.methods.fgm import Fgm
from bert_ft.methods.focal import Focal
from bert_ft.methods.freelb import FreeLb
from bert_ft.methods.freezing import BitFit, Freeze, Unfreeze
from bert_ft.methods.hints import Hints
from bert_ft.methods.lora import Lora
from bert_ft.methods.method import Method
from bert_ft.methods.mixup import Mixup
from bert_ft.methods.modules import Houlsby, Pfeiffer, Prefix, Prompt
from bert_ft.methods.noise_scale import NoiseScale
from bert_ft.methods.pgd import Pgd
from bert_ft.methods.pseudo import Pseudo
from bert_ft.methods.rates import LayerDecay, Rates
from bert_ft.methods.rdrop import RDrop
from bert_ft.methods.sam import Sam
from bert_ft.methods.smart import Smart
from bert_ft.methods.swa import Swa
from bert_ft.methods.uda import Uda
from bert_ft.methods.weights import Weights

ALL: tuple[type[Method], ...] = (
    *(Lora, AdaLora, BitFit, Freeze, Unfreeze, Houlsby, Pfeiffer, Prefix, Prompt),
    *(Fgm, Pgd, FreeLb, Smart, RDrop, Focal, Contrastive, Mixup, Distil, Hints, Pseudo, Uda),
    *(Ema, Swa, LayerDecay, Rates, Sam, NoiseScale),
)
METHODS = {method.name: method for method in ALL}


def make_methods(config: ConfigDict) -> tuple[Method, ...]:
    return tuple(METHODS[name](config) for name in names(config))


def make_weights(config: ConfigDict) -> Weights:
    return Weights(make_methods(config), config.methods.also_train)
