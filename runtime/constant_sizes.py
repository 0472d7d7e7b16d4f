# SPDX-License-Identifier: Apache-2.0
"""Which sizes of its inputs a graph holds for alone, though they were to be dynamic."""

from collections.abc import Iterator
from typing import Any

import sympy  # type: ignore[import-untyped]  # it has no stubs
import torch
from torch.fx import GraphModule


def constant_sizes(graph: GraphModule) -> dict[str, dict[int, int]]:
    """The sizes of inputs that the graph holds for alone, by Dynamo's name of the input and by dimension."""
    found: dict[str, dict[int, int]] = {}
    for node in graph.graph.find_nodes(op="placeholder"):
        source = getattr(node.meta.get("grapharg"), "source", None)
        value = node.meta.get("example_value")
        if source is None or not isinstance(value, torch.Tensor):
            continue
        name = source.name if isinstance(source.name, str) else source.name()
        sizes = {dim: _only_size(size) for dim, size in enumerate(value.shape)}
        found[name] = {dim: size for dim, size in sizes.items() if size is not None}
    return found


def _only_size(size: Any) -> int | None:
    if type(size) is int:
        return size
    environment, expression = size.node.shape_env, size.node.expr
    # Guards may leave one size, a bound from below and one from above: so do those of a loop that ran as often.
    bounds = environment.bound_sympy(expression)
    if bounds.lower == bounds.upper:
        return int(bounds.lower)
    if isinstance(expression, sympy.Symbol) and _is_narrow(environment, expression):
        return int(_seen(environment)[expression])
    return None


def _is_narrow(environment: Any, symbol: sympy.Symbol) -> bool:
    """Whether guards rule out every other size that is tried: so do those of a recursion that halves it, whether the rest is
    odd or even at each step.

    Guards with other sizes in them say nothing here: these change together.
    """
    guards = [guard.expr for guard in environment.guards if guard.expr.free_symbols == {symbol}]
    size = _seen(environment).get(symbol)
    if not guards or size is None:
        return False
    return all(any(_fails(guard, symbol, other) for guard in guards) for other in _tried(int(size)))


def _seen(environment: Any) -> Any:
    """The sizes that a graph was made with: PyTorch has given their table another name."""
    return environment.backed_var_to_val if hasattr(environment, "backed_var_to_val") else environment.var_to_val


def _tried(size: int) -> Iterator[sympy.Integer]:
    """Sizes above one and multiples of it: what is divided by a patch's or a window's size stays divisible. And those below the
    half of it: it may be the largest that a table has room for."""
    above = (*range(size + 1, size + 18), *range(2 * size, 4 * size + 1, size), 4 * size + 1)
    below = range(size // 2, max(size // 2 - 18, 1), -1)
    for each in (*above, *below):
        yield sympy.Integer(each)


def _fails(guard: sympy.Basic, symbol: sympy.Symbol, size: sympy.Integer) -> bool:
    try:
        return bool(guard.xreplace({symbol: size}) == sympy.false)
    except (TypeError, ValueError, ArithmeticError):
        # An expression that can't be evaluated at that size doesn't rule it out.
        return False
