"""TPU chips: what their maker publishes of them, and the slices that are offered.

Peak, memory and its bandwidth are the figures "per chip" of the page named by each chip. The pages
give the interconnect in two ways, both directions together ("bidirectional bandwidth per chip") or
as "all-reduce bandwidth per Pod"; divided by 2, or by the Pod's chips, they agree for v5e and v6e,
and that is what `ici` is: bytes a second that a chip can send, over all of its links. Between
slices (`dcn`) it is the data-centre network's share of a chip; v4's page gives none.
Memory is what libtpu (0.0.42) leaves of it to programs, as it says where one does not fit: on v4,
v5e and v6e 0.25 to 1.25 GiB less than the page's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from bert_ft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: bfloat16 operations a second; hbm: bytes for programs; hbm_rate, ici, dcn: bytes a
    second."""

    flops: float
    hbm: int
    hbm_rate: float
    ici: float
    dcn: float
    source: str
    cores: int = 1  # that the name of a slice counts: v4-32 has 16 chips
    options: tuple[tuple[str, Any], ...] = ()  # of libtpu, for one device a chip


CHIPS = {
    "v4": Chip(
        *(275e12, int(30.75 * 2**30), 1200e9, 1.1e15 / 4096, 0.0),
        "https://cloud.google.com/tpu/docs/v4",
        cores=2,
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        *(197e12, int(15.75 * 2**30), 819e9, 400e9 / 2, 6.4e12 / 8 / 256),
        "https://cloud.google.com/tpu/docs/v5e",
    ),
    "v5p": Chip(
        *(459e12, int(95.74 * 2**30), 2765e9, 1200e9 / 2, 50e9 / 8),
        "https://cloud.google.com/tpu/docs/v5p",
        cores=2,
    ),
    "v6e": Chip(
        *(918e12, int(31.25 * 2**30), 1640e9, 800e9 / 2, 25.6e12 / 8 / 256),
        "https://cloud.google.com/tpu/docs/v6e",
    ),
}
_ALIASES = {"v5litepod": "v5e"}  # as gcloud names it
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # deeper slices are made of cubes of 4x4x4
_MOST = {"v4": 4096, "v5p": 6144}  # chips of the largest slice


def slice_of(text: str) -> tuple[str, str]:
    """'v5e:4x8', or the name of a slice such as 'v5e-32' or 'v5litepod-32', -> ('v5e', '4x8').
    Raises InputError for a slice that isn't offered, or is none."""
    kind, by_shape, rest = text.partition(":")
    if not by_shape:
        kind, _, rest = text.partition("-")
    kind = _ALIASES.get(kind, kind)
    shape = rest if by_shape else _shape_of(kind, rest)
    if kind in CHIPS and _offered(kind, shape):
        return kind, shape
    raise InputError(
        f"config.preflight.topology: {text!r} is no slice; accepted: v5e or v6e with "
        f"{', '.join(_FLAT)}; v4 or v5p with {', '.join(_SMALL)}, or multiples of 4 up to "
        f"{_MOST['v4']:,} and {_MOST['v5p']:,} chips; as v5e:2x4, v4:2x2x4, v5e-8 or v5litepod-8"
    )


def _offered(kind: str, shape: str) -> bool:
    if kind not in _MOST:
        return shape in _FLAT
    parts = shape.split("x")
    if shape in _SMALL:
        return True
    if len(parts) != 3 or not all(p.isdigit() and int(p) and int(p) % 4 == 0 for p in parts):
        return False
    sizes = [int(p) for p in parts]
    return sizes == sorted(sizes) and math.prod(sizes) <= _MOST[kind]


def _shape_of(kind: str, count: str) -> str:
    """The shape of as many chips, where the slice's name settles it; else ''."""
    shapes = (*_SMALL, "4x4x4") if kind in _MOST else _FLAT
    for shape in shapes:
        chips = math.prod(int(p) for p in shape.split("x"))
        if kind in CHIPS and str(chips * CHIPS[kind].cores) == count:
            return shape
    return ""
