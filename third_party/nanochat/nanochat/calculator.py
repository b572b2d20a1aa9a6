"""The tool that a model may call: a calculator that parses, and never runs anything."""

import ast
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 1000
"""Longer expressions have no answer: reading them is what costs, not computing them."""

_ARITHMETIC = re.compile(r"[0-9*+\-/.() ]+")
_COUNTING = re.compile(r"""[A-Za-z0-9'"()._ ]+""")

_DENIED = (
    *("__", "import", "exec", "eval", "compile", "open", "file", "input", "raw_input"),
    *("globals", "locals", "vars", "dir", "getattr", "setattr", "delattr", "hasattr"),
)
"""Harmless here, but the reference gives no answer to them; and a model is graded on its answers."""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def use_calculator(expr: str) -> int | float | None:
    """The value of an expression, or None where there is none.

    Two kinds have one: arithmetic in digits, + - * / // and parentheses (no powers), and counting,
    `"strawberry".count("r")`. Commas are taken out first: they separate thousands.

    Example:
        >>> use_calculator("1,000 + 2"), use_calculator("12/60"), use_calculator("2**3")
        (1002, 0.2, None)
    """
    expr = expr.replace(",", "").strip(" ")
    if not expr or len(expr) > MAX_CHARACTERS:
        return None
    try:
        if _ARITHMETIC.fullmatch(expr):
            return None if "**" in expr else _number(ast.parse(expr, mode="eval").body)
        if _COUNTING.fullmatch(expr) and not any(word in expr.lower() for word in _DENIED):
            return _count(ast.parse(expr, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return None


def _number(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_number(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_number(left), _number(right))
    raise ValueError("not arithmetic")


def _count(node: ast.expr) -> int:
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as part)],
            keywords=[],
        ):
            return text.count(part)
    raise ValueError("not counting")
