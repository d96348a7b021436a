"""The real steps of a config, compiled for slices of TPUs without one: memory, collectives, bound.

WORKDIR/preflight.json holds an object a topology; bytes are those of a device:

    topology, devices, mesh, batch {examples, rows, row_length}, assumed [what was not the config's]
    trials, places      of the config, and of them in one step of the program: batch, operations and
                        bound are those of all that are at once
    effort              that XLA's compiler made, config.preflight.effort
    compiled, compile_s, eval_compile_s     of the training step and of the evaluation's
    bytes, eval_bytes {arguments, outputs, temporaries, others, total}      of both; others is what
                        lies there beside the program, and total counts an output that takes an
                        argument's place once
    hbm_bytes, fits [both], advice [what to change, or what would fit as well]
    collectives [{kind, axis, count, bytes, sent, over}]
    flops_per_step      of the whole batch, model operations
    bound {ms, mfu, examples_per_s, by, compute_ms, memory_ms, network_ms}     no measurement
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from bert_ft import trials
from bert_ft.command_line import quiet_libtpu
from bert_ft.data.encode import Encoded
from bert_ft.data.packing import shortest_row
from bert_ft.data.prompts import with_places
from bert_ft.errors import InputError
from bert_ft.method_checks import names, prompt_length
from bert_ft.models.attention import attend_on, require_kernel
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model
from bert_ft.tasks.registry import make_task
from bert_ft.train import optim
from bert_ft.train.advice import advice, table
from bert_ft.train.chips import CHIPS, Chip, slice_of
from bert_ft.train.collectives import collectives
from bert_ft.train.cost import bound, compiled, moved, step_flops
from bert_ft.train.finish import eval_plan, eval_programs
from bert_ft.train.group import Group, abstract_step, make_group, programs_of_trials
from bert_ft.train.loop import batch_plan, total_steps, train_programs
from bert_ft.train.record import write_json
from bert_ft.train.sharding import abstract, abstract_batch, check_sizes, held_bytes, make_mesh
from bert_ft.train.start import abstract_state
from bert_ft.train.step import Programs, TrainState
from bert_ft.train.system import System, assemble, compute_dtype, require_positions

# Devlin et al. 2019, 3; the vocabulary is bert-base-uncased's.
SIZES = {
    "base": EncoderConfig(),
    "large": EncoderConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
}
# XLA's options, by config.preflight.effort. How hard it looks for fast code is most of the time it
# takes, and bears on no collective and little on memory (experiments/preflight has both ways).
EFFORTS: dict[str, dict[str, Any]] = {
    "full": {},
    "quick": {"exec_time_optimization_effort": -1.0},
}


def preflight(config: ConfigDict, workdir: Path) -> list[dict[str, Any]]:
    """The report on each of config.preflight.topology, printed and written to WORKDIR. Raises
    InputError for a slice that is none, where libtpu is missing, and on the config's own faults."""
    named = [slice_of(t.strip()) for t in config.preflight.topology.split(",")]
    found = [topology_devices(kind, shape, config.preflight.slices) for kind, shape in named]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    settings, numbers = trials.settings(config), [0]
    base, others = config, 0
    if config.trials:
        programs = programs_of_trials(config, settings)
        numbers, others = max(programs, key=len), len(programs) - 1
        base = trials.program_config(config, settings[numbers[0]])
    system, assumed = system_for(base, found[0], say)
    if others:
        assumed.append(f"the program of {len(numbers)} trials; {others} more are not compiled")
    reports = []
    for (kind, shape), devices in zip(named, found, strict=True):
        say(f"preflight: compiling for {kind}:{shape}, {len(devices)} devices; may take minutes")
        here = on_devices(system, devices)
        report = {"topology": f"{kind}:{shape}", "slices": config.preflight.slices}
        group = make_group(here, config, settings, numbers) if config.trials else None
        with _no_cache():
            found_here = examine(here, CHIPS[kind], group=group)
        reports.append({**report, **found_here, "assumed": assumed})
        print(table(reports[-1]), flush=True)
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "preflight.json", reports)
    return reports


@contextmanager
def _no_cache() -> Iterator[None]:
    """compile_s is that of a compilation."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def topology_devices(kind: str, shape: str, slices: int = 1) -> list[Any]:
    """Devices to compile for, which compute nothing; one a chip. InputError where libtpu is not
    installed or knows no such slice."""
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise InputError(
            "--mode=preflight needs libtpu, which is not installed; pip install -e '.[tpu]' "
            "(a TPU is not needed)"
        )
    quiet_libtpu()  # for those who come not from the command line
    options = dict(CHIPS[kind].options) | ({"num_slices": slices} if slices > 1 else {})
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **options
        ).devices
    except (RuntimeError, ValueError) as e:
        first = str(e).strip().splitlines()[0]
        raise InputError(
            f"config.preflight.topology: libtpu makes no {kind}:{shape} x {slices}: {first}"
        ) from e


def system_for(
    config: ConfigDict, devices: Sequence[Any], say: Callable[[str], None]
) -> tuple[System, list[str]]:
    """The config's system on these devices, and what in it is not the config's own."""
    used = names(config)
    for refused, why in (
        ({"distil", "hints"}, "whose teacher has to run first"),
        ({"pseudo", "uda"} if config.preflight.model else set(), "whose texts are not made up"),
    ):
        if there := [name for name in used if name in refused]:
            raise InputError(
                f"config.methods.use is {config.methods.use!r}; accepted in --mode=preflight: no "
                f"{there[0]}, {why}"
            )
    if not config.preflight.model:
        system = assemble(config, say, devices=devices)
        if "train" not in system.sets:
            raise InputError("config.data.train is ''; give a data URI")
        return system, []
    encoder, length = SIZES[config.preflight.model], config.data.max_length
    mesh, task = make_mesh(config, devices), make_task(config)
    count = max(config.train.batch_size, config.eval.batch_size)  # of both a whole batch
    require_positions(config, encoder)
    prompt = prompt_length(config)
    fitted = {"labels": ["0", "1"], "names": ["0", "1"]}
    data = Encoded(
        tokens=np.zeros(count * length, np.int32),
        types=np.zeros(count * length, np.int8),
        offsets=np.arange(count + 1, dtype=np.int64) * length,
        row=np.arange(count, dtype=np.int64),
        truncated=np.zeros(count, bool),
        fields={"label": np.zeros(count, np.int32)},
        token_fields={},
        pieces=1,
        fitted=fitted,
        source_rows=count,
    )
    m = config.model
    attend = attend_on(m.attention, m.dropout_of_attention, mesh.devices.flat[0])
    model = Model(
        encoder, task.head(fitted), compute_dtype(config, mesh), m.remat, m.layer_loop, attend
    )
    data = with_places(data, prompt)
    row_length = config.data.row_length or shortest_row(length + prompt, "tpu")
    width = encoder.hidden_size // encoder.num_attention_heads
    require_kernel(attend, row_length, width, model.dtype)
    sets = {"train": data}
    system = System(config, mesh, task, None, model, encoder, sets, fitted, row_length, None)
    return system, [
        f"a new BERT-{config.preflight.model} in the place of config.model.*",
        f"made-up texts of {length} tokens each, with 2 labels, in the place of config.data.*",
    ]


def on_devices(system: System, devices: Sequence[Any]) -> System:
    """The same system on other devices."""
    mesh, encoder = make_mesh(system.config, devices), system.encoder
    if isinstance(encoder, EncoderConfig):
        preset = system.config.mesh.preset
        check_sizes(mesh, preset, encoder.num_attention_heads, encoder.intermediate_size)
    return dataclasses.replace(system, mesh=mesh)


def examine(
    system: System, chip: Chip, evaluation: bool = True, group: Group | None = None
) -> dict[str, Any]:
    """Compiles the training step of the most rows, of a wave of the `group` where there is one, and
    the evaluation's; all of a report but its topology."""
    config, mesh, accumulate = system.config, system.mesh, system.config.train.accumulate
    state: Any
    if group:
        programs, state, batch, one, beside = abstract_step(group)
        own = dataclasses.replace(state.state, frozen=beside[0])
    else:
        programs, state, batch = real_step(system)
        one, beside, own = batch, (), state
    in_step, others = 1, 0
    if group:  # the states of the other waves lie in memory, too
        in_step = len(group.waves[0])
        others = (len(group.waves) - 1) * held_bytes(state)
    rows, row_length = one["tokens"].shape[-2:]
    examples = in_step * config.train.batch_size
    devices, effort = list(mesh.devices.flat), config.preflight.effort
    options, params = EFFORTS[effort], system.abstract_params
    each = step_flops(system.model, system.task, params, one, accumulate, system.weights)
    flops = in_step * each
    report: dict[str, Any] = {
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "preset": config.mesh.preset,
        "effort": effort,
        "trials": len(group) if group else 1,
        "places": group.waves[-1].stop if group else 1,
        "in_step": in_step,
        "batch": {
            "examples": examples,
            "rows": in_step * rows * accumulate,
            "row_length": row_length,
        },
        "hbm_bytes": chip.hbm,
        "flops_per_step": flops,
        "collectives": [],
        "bound": None,
    }
    program, sizes, seconds = compiled(
        lambda: programs.compile(state, batch, options, beside), (state, batch, beside), others
    )
    fits = program is not None and sizes["total"] <= chip.hbm
    report |= {"compiled": program is not None, "compile_s": seconds, "bytes": sizes, "fits": fits}
    if program is None:
        return {**report, "advice": advice(config, report, own)}
    slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
    sent = collectives(program.as_text(), dict(mesh.shape), slices)
    report["collectives"] = [dataclasses.asdict(c) for c in sent]
    passed = moved(sizes, own.frozen, given_back=not group)
    report["bound"] = bound(chip, len(devices), flops, passed, sent, examples)
    if evaluation:
        others += held_bytes(own)
        if system.weights.plain and in_step == 1:  # the parameters themselves are its argument
            others -= held_bytes(own.params)
        program, sizes, seconds = _evaluation(system, options, others)
        report |= {"eval_compile_s": seconds, "eval_bytes": sizes}
        report["fits"] = fits and program is not None and sizes["total"] <= chip.hbm
    return {**report, "advice": advice(config, report, own)}


def real_step(system: System) -> tuple[Programs, TrainState, dict[str, Any]]:
    """The training step as the loop has it, and its arguments as shapes with shardings, with the
    most rows that a batch of the run has."""
    config = system.config
    steps = total_steps(config, system.sets["train"].of_an_epoch)
    plan = batch_plan(system, steps)
    step = plan.first_step_of(max(plan.counts))
    state = abstract_state(system, optim.make_optimizer(config, steps))
    made, shape = plan.batch(step, range(1)), plan.shape(step)
    batch = abstract_batch(made, shape, system.mesh, config.train.accumulate)
    return train_programs(system, steps, state), state, batch


def _evaluation(
    system: System, options: Mapping[str, Any], others: int
) -> tuple[Any, dict[str, Any], float]:
    """The evaluation's step, as `compiled` has it."""
    name = next((n for n in ("dev", "test") if n in system.sets), "train")
    plan = eval_plan(system, system.sets[name])
    batch = abstract_batch(plan.batch(0, range(1)), plan.shape, system.mesh)
    params, programs = formed(system), eval_programs(system)
    return compiled(lambda: programs.compile(params, batch, options), (params, batch), others)


def formed(system: System) -> Any:
    """The parameters that the model is given, as shapes with shardings."""
    weights, m = system.weights, system.config.mesh

    def made(model: Any) -> Any:
        trained, frozen = weights.begin(model, 0)
        return weights.form(frozen, trained, 0)

    shapes = jax.eval_shape(made, system.abstract_params)
    return abstract(shapes, system.mesh, m.preset, m.rules)
