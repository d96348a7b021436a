"""Where each parameter of BERT base and large lies under each preset, as text files, which a change
of the rules has to change, too. From shapes alone: no parameter is made, no device is needed.

python tests/test_golden.py writes them anew.
"""

import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from bert_ft import config
from bert_ft.mesh_rules import AXES, PRESETS
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.models.hf import flatten
from bert_ft.train import footprint, optim
from bert_ft.train.sharding import shardings
from bert_ft.train.step import TrainState
from bert_ft.train.system import example_batch

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "python tests/test_golden.py"
SIZES = {
    "base": EncoderConfig(),
    "large": EncoderConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
}
MESHES = {  # (data, fsdp, tensor) of 8 devices
    "replicate": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "tensor": (2, 1, 4),
    "fsdp+tensor": (2, 2, 2),
}


def state_of(size, preset):
    """(mesh, the state's shapes with their shardings)."""
    mesh = AbstractMesh((1, *MESHES[preset]), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    model = Model(SIZES[size], partial(SequenceHead, 2))
    params = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    moments = jax.eval_shape(optim.make_optimizer(config.default(), 10).init, params)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, moments)
    return mesh, jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings(state, mesh, preset),
    )


def text_of(size, preset):
    """A line a parameter: shape, spec, shape on a device; layers that lie alike in one line."""
    mesh, state = state_of(size, preset)
    rows = {}
    for path, leaf in flatten(state.params).items():
        one = re.sub(r"layer_\d+", "layer_*", path)
        spec = ", ".join(str(axis) for axis in leaf.sharding.spec)
        here = "x".join(map(str, leaf.sharding.shard_shape(leaf.shape)))
        row = (one, "x".join(map(str, leaf.shape)), f"({spec})", here)
        rows[row] = rows.get(row, 0) + 1
    sizes = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
    c = config.default()
    c.mesh.preset = preset
    lines = [f"BERT {size}, preset {preset}, mesh {sizes}"]
    lines += ["parameter, shape, what splits its axes, shape on a device, how many", ""]
    lines += [f"{p:<40} {a:<12} {s:<20} {b:<12} {n}" for (p, a, s, b), n in sorted(rows.items())]
    notes = list(footprint.unsplit(flatten(state.params), mesh, c))
    lines += ["", *footprint.table(state, mesh.size), *notes]
    return "\n".join(line.rstrip() for line in lines) + "\n"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", SIZES)
def test_the_shardings_are_those_of_the_golden_file(size, preset):
    path = GOLDEN / f"{size}.{preset}.txt"
    expected, found = path.read_text().splitlines(), text_of(size, preset).splitlines()
    changed = [f"-{line}" for line in expected if line not in found]
    changed += [f"+{line}" for line in found if line not in expected]
    assert found == expected, "\n".join(
        [f"other shardings than in {path.name}; if they are meant: {COMMAND}", *changed]
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_moments_lie_as_their_parameters_do(preset):
    _, state = state_of("base", preset)
    lie = {path: leaf.sharding for path, leaf in flatten(state.params).items()}
    adam = next(s for s in state.opt_state if hasattr(s, "mu"))
    for moments in (adam.mu, adam.nu):
        assert {path: leaf.sharding for path, leaf in flatten(moments).items()} == lie


def test_no_golden_file_is_left_over():
    expected = {f"{size}.{preset}.txt" for size in SIZES for preset in PRESETS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


def test_bytes_of_base_are_those_that_everyone_knows():
    """109,483,778 parameters of BertForSequenceClassification with 2 labels; 12 bytes each with
    both moments, and the two counters."""
    _, state = state_of("base", "fsdp")
    rows = footprint.device_bytes(state).values()
    assert sum(whole for whole, _ in rows) == 12 * 109_483_778 + 8
    matrices = sum(x.size for x in jax.tree.leaves(state.params) if x.ndim == 2)
    vectors = 109_483_778 - matrices
    assert sum(part for _, part in rows) == 12 * (matrices // 8 + vectors) + 8
    assert np.isclose(matrices / 109_483_778, 0.999, atol=1e-3)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for size in SIZES:
        for preset in PRESETS:
            (GOLDEN / f"{size}.{preset}.txt").write_text(text_of(size, preset))
    print(f"{len(SIZES) * len(PRESETS)} files in {GOLDEN}", file=sys.stderr)
