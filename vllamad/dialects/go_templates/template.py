"""Ollama's chat templates (floor 1): the part of Go's text/template that they are written in.

``parse`` reads a text, ``Template.render`` runs it on JSON values and structs. Both raise TemplateError, and nothing
else, whatever they are given; a rendering is bounded in time and memory. Not here: ``define``, ``template`` and
``block``, the functions ``call``, ``html``, ``js`` and ``urlquery``, methods, complex numbers.
"""

from dataclasses import dataclass
from typing import Any

from vllamad.dialects.go_templates.parser import parse_tree
from vllamad.dialects.go_templates.running import run
from vllamad.dialects.go_templates.tree import (
    Action,
    Branch,
    Chain,
    Command,
    Field,
    Operand,
    Pipe,
    Statement,
    Variable,
)
from vllamad.dialects.go_templates.values import Bounds, TemplateError


@dataclass(frozen=True, slots=True)
class Template:
    """A template that was read. ``fields`` are the names of all fields that occur in it."""

    source: str
    statements: tuple[Statement, ...]
    fields: frozenset[str]

    def uses(self, field: str) -> bool:
        """Say whether ``.field`` occurs anywhere, executed or not."""
        return field in self.fields

    def render(self, data: dict[str, Any], *, today: str, bounds: Bounds | None = None) -> str:
        """Run it. A name that ``data`` lacks is nil; one that a Struct in it lacks is an error. ``today`` is an ISO
        date; ``bounds`` lets several renderings share what they may cost."""
        return run(self.source, self.statements, data, today, bounds or Bounds())

    def cut_after(self, field: str) -> "Template":
        """Return the template without all that follows the first action that prints ``field``.

        In a block only the branch that prints it is cut, and nothing follows the block.
        """
        return Template(self.source, _cut(self.statements, field)[0], self.fields)

    def followed_by(self, field: str) -> "Template":
        """Return the template with an action that prints ``field`` at its end."""
        here = len(self.source)
        command = Command(here, here, here, (Field(here, here, here, (field,)),))
        action = Action(here, here, here, Pipe(here, here, here, (), False, (command,)))
        return Template(self.source, (*self.statements, action), self.fields | {field})


def parse(text: str) -> Template:
    """Read a template."""
    # A lone surrogate, which no client can send, would fail later in places that cannot say so.
    source = text.encode("utf-8", "replace").decode()
    try:
        statements = parse_tree(source)
    except RecursionError as error:
        raise TemplateError("template: nested too deep") from error
    fields: set[str] = set()
    _collect(statements, fields)
    return Template(source, statements, frozenset(fields))


def _collect(statements: tuple[Statement, ...], fields: set[str]) -> None:
    for statement in statements:
        if isinstance(statement, Action | Branch):
            fields |= _fields_of(statement.pipe)
        if isinstance(statement, Branch):
            _collect(statement.body, fields)
            _collect(statement.otherwise, fields)


def _fields_of(operand: Operand) -> set[str]:
    match operand:
        case Field() | Variable():
            return set(operand.names)
        case Chain():
            return _fields_of(operand.operand) | set(operand.names)
        case Pipe():
            inner = [_fields_of(each) for command in operand.commands for each in command.operands]
            return set[str]().union(*inner)
        case _:
            return set()


def _cut(statements: tuple[Statement, ...], field: str) -> tuple[tuple[Statement, ...], bool]:
    kept: list[Statement] = []
    for statement in statements:
        is_last = False
        if isinstance(statement, Action):
            is_last = field in _fields_of(statement.pipe)
        elif isinstance(statement, Branch):
            body, is_in_body = _cut(statement.body, field)
            otherwise, is_in_otherwise = _cut(statement.otherwise, field)
            is_last = is_in_body or is_in_otherwise
            if is_last:
                statement = Branch(
                    statement.at, statement.start, statement.end, statement.word, statement.pipe, body, otherwise
                )
        kept.append(statement)
        if is_last:
            return tuple(kept), True
    return tuple(kept), False
