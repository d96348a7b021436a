"""What the instructions of a compiled program compute and move, from XLA's text of it."""

from __future__ import annotations

import dataclasses
import math
import re

import jax

LINE = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]")
READ_IN_PART = ("gather", "slice", "dynamic-slice")  # their first operand
WRITTEN_IN_PART = {"scatter": -1, "dynamic-update-slice": 1}  # which operand is written into it
CONTAINERS = ("while", "call", "conditional")  # of instructions with times of their own


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product: operand shapes, and which axes are summed over and which are batched."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    summed: tuple[tuple[int, ...], tuple[int, ...]]
    batched: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def flops(self) -> int:
        """A multiplication and an addition are two."""
        free = [n for i, n in enumerate(self.right) if i not in (*self.summed[1], *self.batched[1])]
        return 2 * math.prod(self.left) * math.prod(free)

    def __call__(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.dot_general(left, right, (self.summed, self.batched))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`op_name` is what it was in the model, '' where XLA does not say; `inside` are those that it
    fuses, the last of them the result, or itself."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    about: str
    inside: tuple[Instruction, ...] = ()

    @property
    def op_name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.about)
        return found[1] if found else ""

    def axes(self, name: str) -> tuple[int, ...]:
        found = re.search(rf"\b{name}={{([\d,]*)}}", self.about)
        return _ints(found[1]) if found else ()


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def dims(shape: str) -> tuple[int, ...]:
    """Of an array's shape, 'f32[96,384]{1,0}'."""
    found = ARRAY.match(shape)
    return _ints(found[3]) if found else ()


def size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    arrays = ARRAY.findall(shape)
    return sum(max(int(bits or 8) // 8, 1) * math.prod(_ints(n)) for _, bits, n in arrays)


class Hlo:
    """A program: its instructions by name."""

    def __init__(self, text: str):
        self.instructions: dict[str, Instruction] = {}
        computations: dict[str, list[Instruction]] = {}
        here: list[Instruction] = []
        for line in text.splitlines():
            if begun := re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                here = computations[begun[1]] = []
            elif found := LINE.match(line):
                _, name, shape, opcode, rest = found.groups()
                given, _, about = rest.partition(")")
                # A parameter's number stands where the others have operands.
                names = (given,) if opcode == "parameter" else re.findall(r"%([\w.\-]+)", given)
                here.append(Instruction(name, opcode, shape, tuple(names), about))
                self.instructions[name] = here[-1]
        for name, one in self.instructions.items():
            called = re.search(r"calls=%([\w.\-]+)", one.about)
            inside = computations[called[1]] if called and one.opcode == "fusion" else [one]
            self.instructions[name] = dataclasses.replace(one, inside=tuple(inside))

    def products(self, one: Instruction) -> list[Product]:
        """The matrix products in an instruction."""

        def product(dot: Instruction) -> Product:
            left, right = (dims(self.instructions[name].shape) for name in dot.operands[:2])

            def axes(kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
                return dot.axes(f"lhs_{kind}_dims"), dot.axes(f"rhs_{kind}_dims")

            return Product(left, right, axes("contracting"), axes("batch"))

        return [product(dot) for dot in one.inside if dot.opcode == "dot"]

    def moved(self, one: Instruction) -> int:
        """Bytes that an instruction reads and writes: its operands and its result, whole but for
        those of which it reads, or changes, a part."""
        result, fused = one.inside[-1], one.opcode == "fusion"
        numbers = {int(i.operands[0]): i.name for i in one.inside if i.opcode == "parameter"}
        which = WRITTEN_IN_PART.get(result.opcode)
        total = size(one.shape)
        if which is not None:  # the part is read as well
            total = 2 * size(self.instructions[result.operands[which]].shape)
        for number, operand in enumerate(one.operands):
            name = numbers[number] if fused else operand
            users = [i for i in one.inside if name in i.operands and i.opcode != "parameter"]
            if which is not None and name == result.operands[0]:
                continue
            if all(u.opcode in READ_IN_PART and u.operands[0] == name for u in users):
                total += sum(size(u.shape) for u in users)
            else:
                total += size(self.instructions[operand].shape)
        return total
