"""Of a program compiled for chips that aren't there: what to change, and the report in words."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft.train.sharding import held_bytes
from bert_ft.train.step import TrainState

USABLE = 0.95  # of the memory, in what is advised: the rest is for what XLA arranges otherwise


def advice(config: ConfigDict, report: dict[str, Any], state: TrainState) -> list[str]:
    """What to change where a step does not fit, and what else would fit. Estimates: the bytes of
    the `state` (shapes with shardings) are known, and the rest is taken to grow with the rows of a
    device."""
    limit = USABLE * report["hbm_bytes"]
    sizes, examples = report["bytes"], report["batch"]["examples"]
    fits = report["compiled"] and sizes["total"] <= report["hbm_bytes"]
    if fits and not report["fits"]:
        return _of_evaluation(config, report, limit)
    if report["places"] > 1:
        return _of_trials(report, limit)
    fixed, whole = held_bytes((state, state.params)), _bytes((state, state.params))
    if report["devices"] > 1 and config.mesh.preset == "replicate" and fixed > limit / 2:
        return [
            f"parameters, moments and gradient take {_size(fixed)} of each chip's "
            f"{_size(report['hbm_bytes'])}: --config.mesh.preset=fsdp splits them over "
            f"{report['devices']} chips"
        ]
    times = config.train.accumulate  # of a batch that much is in memory at a time
    power = _power(limit, fixed, sizes["total"], examples // times)
    if not power:
        return ["no batch fits: more chips, or --config.mesh.preset=fsdp or tensor"]
    if not fits:
        parts = next(
            d for d in range(1, examples + 1) if examples % d == 0 and examples <= d * power
        )
        return [
            f"--config.train.batch_size={power * times} fits by estimate; or keep {examples} with "
            f"--config.train.accumulate={parts}"
        ]
    if sizes["total"] <= fixed:  # the gradient is never whole, and tells nothing of the rows
        return []
    power *= times
    lines = [f"batches of up to about {power:,} examples fit by estimate"]
    if report["bound"]["by"] != "compute" and power > examples:
        lines.append(
            f"the bound is the {report['bound']['by']}'s: a larger batch uses the chips better"
        )
    if config.mesh.preset != "replicate" and whole < limit / 2:
        lines.append("the whole state fits on a chip: --config.mesh.preset=replicate sends less")
    return lines


def _bytes(tree: Any) -> int:
    """Of whole arrays, however they are split."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _power(limit: float, fixed: int, total: int, examples: int) -> int:
    """The most examples, a power of two, that fit beside what is `fixed` if `examples` make a
    `total`; 0 for none."""
    most = int((limit - fixed) / max(total - fixed, 1) * examples)
    return 2 ** int(np.log2(most)) if most >= 1 else 0


def _of_evaluation(config: ConfigDict, report: dict[str, Any], limit: float) -> list[str]:
    sizes = report["eval_bytes"]
    fixed, examples = sizes["arguments"] + sizes["others"], config.eval.batch_size
    power = _power(limit, fixed, sizes["total"], examples)
    if power:
        line = f"--config.eval.batch_size={power} does by estimate"
    elif report["places"] > 1:
        line = "fewer trials at once, by --config.trial.at_once, or more chips"
    else:
        line = "more chips, or --config.mesh.preset=fsdp or tensor"
    return [f"the evaluation does not fit beside what is trained: {line}"]


def _of_trials(report: dict[str, Any], limit: float) -> list[str]:
    axis = report["mesh"]["trial"]
    each = report["places"] // axis  # on a device
    most = int(limit / (report["bytes"]["total"] / each))
    if most < 1:
        return ["no trial fits: a smaller batch, or more chips a trial by --config.mesh.trial"]
    if not report["fits"]:
        return [f"--config.trial.at_once={most * axis} fits by estimate; the others then wait"]
    return [f"up to about {most:,} trials at once on a chip fit by estimate"]


def _size(count: float | None) -> str:
    if count is None:
        return "?"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _of_places(report: dict[str, Any]) -> list[str]:
    places, in_step = report["places"], report["in_step"]
    if report["trials"] == 1:
        return []
    line = f"  trials       {report['trials']}, "
    line += f"{places} of them at a time, " if places < report["trials"] else ""
    line += f"{in_step} of them in a step"
    waves = places // in_step
    return [f"{line}; the others in {waves - 1} steps more" if waves > 1 else line]


def _of_evaluating(report: dict[str, Any]) -> list[str]:
    sizes = report.get("eval_bytes")
    if sizes is None:
        return []
    word = "" if sizes["total"] <= report["hbm_bytes"] else ": DOES NOT FIT"
    return [f"  evaluating   a chip holds {_size(sizes['total'])}, the state with it{word}"]


def table(report: dict[str, Any]) -> str:
    """A report as lines for the terminal."""
    sizes, made = report["bytes"], report["batch"]
    mesh = ", ".join(f"{a} {n}" for a, n in report["mesh"].items() if n > 1) or "one device"
    fits = report["compiled"] and sizes["total"] <= report["hbm_bytes"]
    word = "fits" if fits else "DOES NOT FIT"
    slices = f" x {report['slices']} slices" if report["slices"] > 1 else ""
    lines = [
        f"{report['topology']}{slices}: {report['devices']} chips; mesh {mesh}; preset "
        f"{report['preset']}",
        *(f"  assumed      {line}" for line in report["assumed"]),
        *_of_places(report),
        f"  batch        {made['examples']:,} examples in {made['rows']:,} rows of "
        f"{made['row_length']} tokens",
        f"  compiled in  {report['compile_s']:.0f} s"
        + (
            f", evaluation in {report['eval_compile_s']:.0f} s"
            if "eval_compile_s" in report
            else ""
        ),
        f"  a chip holds {_size(sizes['total'])} of {_size(report['hbm_bytes'])}: {word} "
        f"(arguments {_size(sizes['arguments'])}, outputs {_size(sizes['outputs'])}, temporaries "
        f"{_size(sizes['temporaries'])})",
        *_of_evaluating(report),
        f"  a step       {report['flops_per_step']:.3g} operations",
    ]
    for c in report["collectives"]:
        axis = c["axis"] if c["over"] == "ici" else f"{c['axis']}, between slices"
        lines.append(f"  {c['kind']:18} over {axis}: {c['count']} of {_size(c['bytes'])} together")
    if b := report["bound"]:
        lines.append(
            f"  bound, not a measurement: {b['ms']:.3g} ms a step at least, by {b['by']} (compute "
            f"{b['compute_ms']:.3g}, memory {b['memory_ms']:.3g}, network {b['network_ms']:.3g} "
            f"ms); at most {b['examples_per_s']:,.0f} examples/s, MFU {b['mfu']:.0%}"
        )
    lines += [f"  advice       {line}" for line in report["advice"]]
    return "\n".join(lines)
