"""The tree of a Go template (floor 1)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of the source: what an error points at (``at``) and what it shows (from ``start`` to ``end``)."""

    at: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Text(Node):
    text: str


@dataclass(frozen=True, slots=True)
class Literal(Node):
    value: str | int | float | bool


@dataclass(frozen=True, slots=True)
class Nil(Node):
    pass


@dataclass(frozen=True, slots=True)
class Dot(Node):
    pass


@dataclass(frozen=True, slots=True)
class Field(Node):
    """``.A.B``"""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable(Node):
    """``$x.A.B``"""

    name: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Function(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Chain(Node):
    """``(pipe).A.B``"""

    operand: "Operand"
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command(Node):
    operands: tuple["Operand", ...]


@dataclass(frozen=True, slots=True)
class Pipe(Node):
    declared: tuple[str, ...]
    is_assignment: bool
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Action(Node):
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch(Node):
    """``word`` is if, with or range."""

    word: str
    pipe: Pipe
    body: tuple["Statement", ...]
    otherwise: tuple["Statement", ...]


@dataclass(frozen=True, slots=True)
class Jump(Node):
    """``word`` is break or continue."""

    word: str


Operand = Literal | Nil | Dot | Field | Variable | Function | Chain | Pipe
Statement = Text | Action | Branch | Jump
