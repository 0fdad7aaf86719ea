"""Owns the `calculate` tool of airline and retail: Python arithmetic on digits, as upstream evaluates it, results and error texts included.

Upstream calls `eval`, which a model can hang for hours with ``9**9**9``. Refuses exactly that: a power whose exact value would have more
than `MAX_POWER_BITS` bits fails at once, with the error that its conversion to a float gives upstream after the wait.
"""

import ast
import math
import warnings
from typing import Any

ALLOWED = "0123456789+-*/(). "
MAX_POWER_BITS = 10_000
"""Far above what a float can hold (2**1024), so only a quotient of two such powers is lost."""
POWER = "_power"


def calculate(expression: Any) -> str:
    """The value, rounded to two digits. Raises ValueError for other characters, else what Python's evaluation raises."""
    # A model may send anything. A string of allowed characters, not a set of them: that decides what other types fail with.
    if not all(character in ALLOWED for character in expression):
        raise ValueError("Invalid characters in expression")
    if not isinstance(expression, str):
        raise TypeError("eval() arg 1 must be a string, bytes or code object")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        value = _evaluate(expression)
    return str(round(float(value), 2))


def _evaluate(expression: str) -> Any:
    # `eval` skips leading blanks, `ast.parse` takes them for an indent; the name is the one that eval's error texts carry.
    tree = ast.parse(expression.lstrip(" "), filename="<string>", mode="eval")
    if any(isinstance(node, ast.Pow) for node in ast.walk(tree)):
        tree = ast.fix_missing_locations(_GuardedPowers().visit(tree))
    return eval(compile(tree, "<string>", "eval"), {"__builtins__": None, POWER: _power}, {})


class _GuardedPowers(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow):
            return node
        return ast.Call(func=ast.Name(POWER, ast.Load()), args=[node.left, node.right], keywords=[])


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent * math.log2(abs(base)) > MAX_POWER_BITS:
        raise OverflowError("int too large to convert to float")
    return base**exponent
