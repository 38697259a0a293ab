"""Running the tree of a Go template on data (floor 1). Raises TemplateError in the words of Go's text/template."""

from collections.abc import Iterable
from typing import Any

from vllamad.dialects.go_templates.functions import FUNCTIONS, Context
from vllamad.dialects.go_templates.tree import (
    Action,
    Branch,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Literal,
    Nil,
    Node,
    Operand,
    Pipe,
    Statement,
    Text,
    Variable,
)
from vllamad.dialects.go_templates.values import Bounds, Struct, TemplateError, is_true, kind_of, show, sorted_items
from vllamad.dialects.go_values import as_dict, as_list

_CHARS_PER_STEP = 256
"""Text and lists that a function is given cost steps as well: it may read all of them."""


class _Nothing:
    """No value comes down the pipe, which is not the same as nil."""


_NOTHING = _Nothing()


def run(source: str, statements: tuple[Statement, ...], data: object, today: str, bounds: Bounds) -> str:
    """Return what the statements of ``source`` write."""
    execution = _Execution(source, data, Context(today, bounds))
    try:
        execution.walk(statements, data)
    except RecursionError as error:
        raise TemplateError("template: the data is nested too deep") from error
    return "".join(execution.written)


class _Execution:
    def __init__(self, source: str, root: object, context: Context) -> None:
        self._source = source
        self._context = context
        self._bounds = context.bounds
        self._variables: list[tuple[str, Any]] = [("$", root)]
        self.written: list[str] = []

    def walk(self, statements: tuple[Statement, ...], dot: object) -> str:
        """Run them; return "break" or "continue" if one of these cut the list short."""
        for statement in statements:
            self._bounds.step()
            match statement:
                case Text():
                    self.written.append(self._bounds.take(statement.text))
                case Action(pipe=pipe):
                    value = self._pipe(pipe, dot)
                    if not pipe.declared:
                        self._write(pipe, value)
                case Branch():
                    jump = self._branch(statement, dot)
                    if jump:
                        return jump
                case _:
                    return statement.word
        return ""

    def _write(self, node: Node, value: object) -> None:
        if isinstance(value, str):
            self.written.append(self._bounds.take(value))
        elif value is None:
            self.written.append(self._bounds.take("<no value>"))
        else:
            self.written.append(self._shown(node, value))

    def _branch(self, branch: Branch, dot: object) -> str:
        scope = len(self._variables)
        value = self._pipe(branch.pipe, dot)
        if branch.word == "range":
            jump = self._range(branch, value, dot)
        elif is_true(value):
            jump = self.walk(branch.body, value if branch.word == "with" else dot)
        else:
            jump = self.walk(branch.otherwise, dot)
        del self._variables[scope:]
        return jump

    def _range(self, branch: Branch, value: object, dot: object) -> str:
        pipe = branch.pipe
        scope = len(self._variables)
        is_empty = True
        for index, item in self._entries(branch, value):
            is_empty = False
            self._bounds.step()
            for place, (name, bound) in enumerate(zip(reversed(pipe.declared), (item, index), strict=False), 1):
                if pipe.is_assignment:
                    self._assign(pipe, name, bound)
                else:
                    self._variables[scope - place] = (name, bound)
            jump = self.walk(branch.body, item)
            del self._variables[scope:]
            if jump == "break":
                break
        return self.walk(branch.otherwise, dot) if is_empty else ""

    def _entries(self, branch: Branch, value: object) -> Iterable[tuple[object, object]]:
        """What there is to range over, as (index or key, item)."""
        items = as_list(value)
        if items is not None:
            return enumerate(items)
        mapping = as_dict(value)
        if mapping is not None:
            self._bounds.step(len(mapping))
            return sorted_items(mapping)
        if value is None:
            return ()
        shown = self._shown(branch.pipe, value)
        if isinstance(value, int) and not isinstance(value, bool):
            if len(branch.pipe.declared) > 1:
                raise self._error(branch.pipe, f"can't use {shown} to iterate over more than one variable")
            return ((None, number) for number in range(value))
        raise self._error(branch.pipe, f"range can't iterate over {shown}")

    def _pipe(self, pipe: Pipe, dot: object) -> object:
        value: object = _NOTHING
        for command in pipe.commands:
            value = self._command(command, dot, value)
        for name in pipe.declared:
            if pipe.is_assignment:
                self._assign(pipe, name, value)
            else:
                self._variables.append((name, value))
        return value

    def _command(self, command: Command, dot: object, final: object) -> object:
        first = command.operands[0]
        if isinstance(first, Function):
            return self._call(command, first.name, command.operands[1:], dot, final)
        if len(command.operands) > 1 or final is not _NOTHING:
            if isinstance(first, Field | Chain) or (isinstance(first, Variable) and first.names):
                raise self._error(first, f"{first.names[-1]} is not a method but has arguments")
            raise self._error(first, f"can't give argument to non-function {self._text(first)}")
        if isinstance(first, Nil):
            raise self._error(first, "nil is not a command")
        return self._operand(first, dot)

    def _operand(self, operand: Operand, dot: object) -> object:
        self._bounds.step()
        match operand:
            case Literal():
                return operand.value
            case Field():
                return self._fields(operand, dot, operand.names)
            case Variable():
                value = self._variable(operand)
                return value if value is None else self._fields(operand, value, operand.names)
            case Dot():
                return dot
            case Pipe():
                return self._pipe(operand, dot)
            case Function():
                return self._call(operand, operand.name, (), dot, _NOTHING)
            case Chain():
                value = self._operand(operand.operand, dot)
                return value if value is None else self._fields(operand, value, operand.names)
            case Nil():
                return None

    def _fields(self, node: Node, value: object, names: tuple[str, ...]) -> object:
        for name in names:
            if isinstance(value, Struct):
                if name not in value.fields:
                    raise self._error(node, f"can't evaluate field {name} in type {value.kind}")
                value = value.fields[name]
                continue
            mapping = as_dict(value)
            if mapping is None:
                if value is None:
                    raise self._error(node, f"nil pointer evaluating interface {{}}.{name}")
                raise self._error(node, f"can't evaluate field {name} in type {self._kind(node, value)}")
            value = mapping.get(name)
        return value

    def _call(self, node: Node, name: str, operands: tuple[Operand, ...], dot: object, final: object) -> object:
        count = len(operands) + (final is not _NOTHING)
        if name not in FUNCTIONS:
            return self._choose(node, name, operands, dot, final)
        function = FUNCTIONS[name]
        if count < function.least or (function.most is not None and count > function.most):
            place = node.operands[0] if isinstance(node, Command) else node
            least = "" if function.least == function.most else "at least "
            raise self._error(place, f"wrong number of args for {name}: want {least}{function.least} got {count}")
        values = [self._operand(operand, dot) for operand in operands]
        if final is not _NOTHING:
            values.append(final)
        self._bounds.step(1 + sum([_cost(value) for value in values]))
        try:
            return function.call(self._context, values)
        except ValueError as error:
            raise self._error(node, f"error calling {name}: {error}") from error

    def _choose(self, node: Node, name: str, operands: tuple[Operand, ...], dot: object, final: object) -> object:
        """``and`` and ``or``: the first operand that decides, or the last; what follows it is not evaluated."""
        if not operands and final is _NOTHING:
            raise self._error(node, f"wrong number of args for {name}: want at least 1 got 0")
        value = final
        for operand in operands:
            value = self._operand(operand, dot)
            if is_true(value) == (name == "or"):
                return value
        return value if final is _NOTHING else final

    def _variable(self, variable: Variable) -> object:
        for name, value in reversed(self._variables):
            if name == variable.name:
                return value
        raise self._error(variable, f"undefined variable: {variable.name}")

    def _assign(self, node: Node, name: str, value: object) -> None:
        for place in range(len(self._variables) - 1, -1, -1):
            if self._variables[place][0] == name:
                self._variables[place] = (name, value)
                return
        raise self._error(node, f"undefined variable: {name}")

    def _kind(self, node: Node, value: object) -> str:
        try:
            return kind_of(value)
        except ValueError as error:
            raise self._error(node, str(error)) from error

    def _shown(self, node: Node, value: object) -> str:
        try:
            return show(value, self._bounds)
        except ValueError as error:
            raise self._error(node, str(error)) from error

    def _text(self, node: Node) -> str:
        return self._source[node.start : node.end]

    def _error(self, node: Node, why: str) -> TemplateError:
        before = self._source[: node.at]
        column = len(before[before.rfind("\n") + 1 :].encode())
        where = f"{before.count(chr(10)) + 1}:{column}"
        return TemplateError(f'template: :{where}: executing "" at <{self._text(node)}>: {why}')


def _cost(value: object) -> int:
    return len(value) // _CHARS_PER_STEP if isinstance(value, str | list) else 0  # pyright: ignore[reportUnknownArgumentType]
