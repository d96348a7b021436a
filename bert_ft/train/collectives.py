"""What a compiled program sends between devices, read out of its optimised HLO text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
# Between slices: a transfer by the host, in the place of a collective of the type that it names.
_TRANSFER = re.compile(r'= (.*?) send\(.*_xla_megascale_transfer_type="(\w+)"')
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(calls|to_apply|body|condition|async_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"
)
_BITS = {"pred": 8, "token": 0}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one axis in a step (of several axes: 'data+fsdp').

    bytes: of the arrays as a device has them, whole: after a gather, before a scatter. sent: what a
    device must send at least, of n: 2 (n - 1) / n of an all-reduce's bytes, (n - 1) / n of the
    others' (Thakur, Rabenseifner & Gropp 2005, 4), all of a permutation's. over: 'ici', the network
    of a slice, or 'dcn' where the devices are of several slices.
    """

    kind: str
    axis: str
    count: int
    bytes: int
    sent: float
    over: str


@dataclasses.dataclass(frozen=True)
class Operation:
    """One collective of the text. shapes: (dtype, dims) of its arrays, whole; times: how often a
    step runs it; groups: partition numbers, (groups, devices of a group), of a permutation its
    pairs; None where they are written in a form unknown here."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    groups: np.ndarray | None
    op_name: str
    over: str = "ici"

    @property
    def bytes(self) -> int:
        return sum(_bits(dtype) * math.prod(dims) // 8 for dtype, dims in self.shapes)


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) if dtype in _BITS else int(re.sub(r"\D", "", dtype) or 0)  # type: ignore


def operations(text: str, devices: int) -> list[Operation]:
    """The collectives of an optimised program on so many devices, those in a loop with its trip
    count. Pieces of one that XLA interleaves with computation share a channel and are one."""
    lines = list(_lines(text))
    times = _times(lines)
    found: dict[tuple, Operation] = {}
    for i, (computation, line) in enumerate(lines):
        if match := _TRANSFER.search(line):
            array = tuple(_arrays(match[1])[:1])
            kind = match[2].lower().replace("_", "-")
            made = Operation(kind, array, times.get(computation, 1), None, "", "dcn")
            found[kind, "line", i] = made
            continue
        match = _OPERATION.search(line)
        if not match:
            continue
        shapes, kind, started = match.groups()
        groups = _groups(line, devices)
        arrays = _arrays(shapes)
        if started and kind != "all-reduce":  # operands, results and, of some, two counters
            arrays = [a for a in arrays if a != ("u32", ())]
            arrays = arrays[len(arrays) // 2 :]
        elif kind == "collective-permute" and len(arrays) > 1:
            arrays = arrays[1:2]
        size = 1 if groups is None else groups.shape[1]
        if kind == "reduce-scatter":
            arrays = [(d, (size, *s)) for d, s in arrays]
        if computation.startswith("all-reduce-scatter"):  # how a TPU's compiler writes it
            kind = "reduce-scatter"
        channel = re.search(r"channel_id=(\d+)", line)
        name = re.search(r'op_name="([^"]*)"', line)
        key = (kind, channel[1]) if channel else (kind, "line", i)
        made = Operation(
            kind, tuple(arrays), times.get(computation, 1), groups, name[1] if name else ""
        )
        if key not in found or found[key].times < made.times:
            found[key] = made
    return list(found.values())


def _arrays(shapes: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(d, tuple(map(int, s.split(",") if s else ()))) for d, s in _SHAPE.findall(shapes)]


def collectives(text: str, sizes: dict[str, int], slices: int = 1) -> list[Collective]:
    """By kind and mesh axis, the most bytes first. `sizes`: the mesh's axes; partition i is device
    i of the mesh, row by row. Of several slices, parts of the data axis, a partition's number is
    that within its slice."""
    devices = math.prod(sizes.values())
    total: dict[tuple, list[float]] = {}
    for op in operations(text, devices):
        n = 2 if op.groups is None else op.groups.shape[1]
        axis = _axes(op.groups, sizes)
        if op.over == "dcn":
            n, axis = slices, "data"
        if n < 2:
            continue
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(op.kind, (n - 1) / n)
        key = (op.kind, axis, op.over)
        sums = total.setdefault(key, [0, 0, 0.0])
        sums[0] += op.times
        sums[1] += op.times * op.bytes
        sums[2] += op.times * op.bytes * share
    made = [
        Collective(kind, axis, int(count), int(size), sent, over)
        for (kind, axis, over), (count, size, sent) in total.items()
    ]
    return sorted(made, key=lambda c: -c.bytes)


def _axes(groups: np.ndarray | None, sizes: dict[str, int]) -> str:
    """The mesh axes along which the members of a group differ; '?' where that is unknown."""
    if groups is None or groups.max() >= math.prod(sizes.values()):
        return "?"
    where = np.stack(np.unravel_index(groups, tuple(sizes.values())), axis=-1)
    differ = (where != where[:, :1]).any(axis=(0, 1))
    return "+".join(axis for axis, d in zip(sizes, differ, strict=True) if d)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of each instruction; the entry computation is ''."""
    computation = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            computation = "" if match[1] else match[2]
        elif " = " in line:
            yield computation, line


def _times(lines: list[tuple[str, str]]) -> dict[str, int]:
    """How often a step runs each computation; a loop's body as often as it turns."""
    of: dict[str, list[str]] = {}
    for computation, line in lines:
        of.setdefault(computation, []).append(line)
    called: dict[str, list[tuple[str, int]]] = {}
    for computation, line in lines:
        calls = dict(_CALLED.findall(line))
        turns = 1
        if match := _TRIPS.search(line):
            turns = int(match[1])
        elif "body" in calls:
            turns = _turns(of.get(calls["condition"], []), of.get(calls["body"], []))
        for how, name in calls.items():
            of_loop = how in ("body", "condition")
            called.setdefault(name, []).append((computation, turns if of_loop else 1))
        for names in _BRANCHES.findall(line):
            for name in re.findall(r"[\w.\-]+", names):
                called.setdefault(name, []).append((computation, 1))
    known = {"": 1}

    def times(name: str) -> int:
        if name not in known:
            known[name] = 0  # nothing calls itself
            known[name] = sum(times(by) * turns for by, turns in called.get(name, ()))
        return known[name]

    return {name: times(name) for name in {c for c, _ in lines}}


def _turns(condition: list[str], body: list[str]) -> int:
    """How often a loop turns that XLA says nothing of: `i < N` with i from 0, as loops over the
    blocks of a product and over micro-batches have it, by the step that the body adds to i. 1 where
    it isn't of that form."""
    text = "\n".join(condition)
    root = re.search(r"ROOT .* compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", text)
    if not root:
        return 1
    element = re.search(rf"%{re.escape(root[1])} = .*get-tuple-element\(.*\), index=(\d+)", text)
    last = _constant(root[2], text)
    if not element or last is None:
        return 1
    inside, step = "\n".join(body), 1
    if made := re.search(r"ROOT .* tuple\((.*?)\)(?:,|$)", inside, re.MULTILINE):
        name = re.findall(r"%([\w.\-]+)", made[1])[int(element[1])]
        added = re.search(rf"%{re.escape(name)} = .* add\(%[\w.\-]+, %([\w.\-]+)\)", inside)
        step = (_constant(added[1], inside) if added else None) or 1
    return -(-last // step)


def _constant(name: str, text: str) -> int | None:
    found = re.search(rf"%{re.escape(name)} = .* constant\((\d+)\)", text)
    return int(found[1]) if found else None


def _groups(line: str, devices: int) -> np.ndarray | None:
    """The groups of devices that talk to each other, in any of the forms in which XLA writes them:
    {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'}."""
    if match := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line):
        pairs = [tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)\}", match[1])]
        return np.asarray(pairs).reshape(-1, 2)
    if match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line):
        rows = [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", match[1])]
        if not rows:
            return np.arange(devices)[None]
        return np.asarray(rows) if len({len(r) for r in rows}) == 1 else None
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        order = _iota(match[3], match[4])
        return order.reshape(int(match[1]), int(match[2]))
    if match := _MESH.search(line):
        return _mesh_groups(*match.groups())
    return None


def _iota(sizes: str, order: str | None) -> np.ndarray:
    shape = [int(s) for s in sizes.split(",")]
    array = np.arange(math.prod(shape)).reshape(shape)
    return array.transpose([int(p) for p in order.split(",")]) if order else array


def _mesh_groups(axes: str, shape: str | None, order: str | None, over: str) -> np.ndarray:
    """Of a mesh with named axes, over some of them or over parts of them: 'a':(before)size."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values())) if shape is None else _iota(shape, order)
    parts = dict(re.findall(r"'([^']+)'(?::(\(\d+\)\d+))?", over))
    split: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        if parts.get(name):
            before, inner = (int(x) for x in re.findall(r"\d+", parts[name]))
            chosen.append(len(split) + 1)
            split += [before, inner, size // (before * inner)]
        else:
            chosen += [len(split)] if name in parts else []
            split.append(size)
    rest = [i for i in range(len(split)) if i not in chosen]
    ordered = ids.reshape(split).transpose(rest + chosen)
    return ordered.reshape(-1, math.prod(split[i] for i in chosen))
