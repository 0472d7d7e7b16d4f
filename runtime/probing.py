# SPDX-License-Identifier: Apache-2.0
"""What a function's results are like, found by running it on tensors without data: their sizes by those of its arguments, how they
lie in memory, and whether it does anything besides.

Where a function loops over a size, no size may stay a symbol while it runs. So it runs several times, each time with other numbers
in the place of the symbols.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import sympy  # type: ignore[import-untyped]  # it has no types
import torch
from torch._dynamo.convert_frame import compile_lock
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

# The first symbol's number in each run, and how far apart the others' are: sizes that are alike in all runs are one size.
# The third is more than what functions that go by chunks have in one, the last the least that a symbol can be.
_RUNS = ((11, 6), (29, 10), (139, 14), (2, 1))


class ProbeError(Exception):
    """A function that can't be an operator; the message says why."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that a function returns.

    Attributes:
        size: Each dimension is a number, or the size of an argument's: its place among the tensors, and the dimension.
        order: The dimensions as they lie in memory, the outermost first.
        dtype: Its name.
        uses: The places of the tensors whose gradients it has a part in.
    """

    size: tuple[int | tuple[int, int], ...]
    order: tuple[int, ...]
    dtype: str
    uses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What runs of a function found.

    Attributes:
        outputs: The tensors that it returns.
        structure: How they are put together: see `flat`.
        loops: Whether it takes more steps where sizes are larger.
        equal: What it takes for granted: symbols that are numbers, or are as others.
    """

    outputs: tuple[Output, ...]
    structure: str
    loops: bool
    equal: dict[sympy.Symbol, sympy.Expr]

    def guard(self, env: ShapeEnv) -> None:
        """Guard the graph that is being made by what is taken for granted, as it would be by tracing the function."""
        for symbol, other in self.equal.items():
            env.evaluate_expr(sympy.Eq(symbol, other))


def function_of(name: str) -> Callable[..., Any]:
    """What `module:function` or `module:Class.method` names now: upstream's code looks its functions up in each call too."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # whatever the name leads to


@contextmanager
def as_in_eager() -> Iterator[None]:
    """Code asks in vain here whether it is compiled. Torch 2.13 says so of all that runs while any thread compiles."""
    if not torch.compiler.is_compiling():
        yield
        return
    # The flag changes with the lock held only.
    with compile_lock:
        before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, False
        try:
            yield
        finally:
            torch.compiler._is_compiling_flag = before


def flat(value: Any, tensors: list[Any], constants: list[Any]) -> str:
    """The structure of a value, a letter for each part: a tensor is `t` and a constant `c`, and both are appended to the lists;
    None is `n`, tuples and lists stand in brackets of their kind, anything else is `?`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return "t"
    if value is None:
        return "n"
    if isinstance(value, bool | int | float | str | torch.dtype):
        constants.append(value)
        return "c"
    if type(value) is tuple:
        return "(" + "".join([flat(each, tensors, constants) for each in value]) + ")"
    if type(value) is list:
        return "[" + "".join([flat(each, tensors, constants) for each in value]) + "]"
    return "?"


def put_together(structure: str, tensors: Sequence[Any], constants: Sequence[Any]) -> Any:
    """The value that `flat` took apart."""
    stack: list[list[Any]] = [[]]
    tensor = constant = 0
    for letter in structure:
        if letter in "([":
            stack.append([])
        elif letter in ")]":
            done = stack.pop()
            stack[-1].append(tuple(done) if letter == ")" else done)
        elif letter == "t":
            stack[-1].append(tensors[tensor])
            tensor += 1
        elif letter == "c":
            stack[-1].append(constants[constant])
            constant += 1
        else:
            stack[-1].append(None)
    return stack[0][0]


def probe(function: Callable[[Sequence[torch.Tensor]], Any], tensors: Sequence[torch.Tensor]) -> Found:
    """What a function returns for tensors like these.

    Args:
        function: Of as many tensors.
        tensors: Those of a graph that is being made: their sizes may be symbols.

    Raises:
        ProbeError: It can't be an operator: it changes an argument, returns one or a part of one, draws random numbers, reads
            values, or the sizes of what it returns aren't sizes that it was given.
    """
    layouts = [(_expressions(each.shape), _expressions(each.stride())) for each in tensors]
    with _quiet():
        equal = _settled(function, tensors, layouts)
    sized = [_numbers(layouts, {**_distinct(layouts, *run), **equal}) for run in _RUNS]
    runs = [_run(function, tensors, sizes) for sizes in sized]
    if any(one.structure != other.structure or one.like != other.like for one, other in pairwise(runs)):
        raise ProbeError("it returns other kinds of tensors for other sizes")
    given = [[size for size, _ in sizes] for sizes in sized]
    outputs = tuple(
        Output(_size([run.sizes[place] for run in runs], given), *runs[0].like[place], uses)
        for place, uses in enumerate(_uses(function, tensors, sized[0]))
    )
    return Found(outputs, runs[0].structure, len({run.steps for run in runs}) > 1, equal)


@dataclass(frozen=True, slots=True)
class _Run:
    structure: str
    sizes: list[tuple[int, ...]]
    like: list[tuple[tuple[int, ...], str]]
    steps: int


# Sizes and strides of a tensor.
_Layout: TypeAlias = tuple[tuple[sympy.Expr, ...], tuple[sympy.Expr, ...]]
_Numbers: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def _settled(
    function: Callable[..., Any], tensors: Sequence[torch.Tensor], layouts: Sequence[_Layout]
) -> dict[sympy.Symbol, sympy.Expr]:
    """What a function takes for granted of sizes: that some are equal, or are numbers.

    Which sizes may be equal is seen at those at hand; those that need not be equal stay apart.

    Raises:
        ProbeError: The function can't run, whatever is equal.
    """
    apart = _distinct(layouts, *_RUNS[0])

    def fails(equal: dict[sympy.Symbol, sympy.Expr]) -> ProbeError | None:
        try:
            _run(function, tensors, _numbers(layouts, {**apart, **equal}))
        except ProbeError as error:
            return error
        return None

    problem = fails({})
    if problem is None:
        return {}
    equal = _alike(tensors)
    if not equal or fails(equal):
        raise problem
    for symbol in list(equal):
        fewer = {each: other for each, other in equal.items() if each != symbol}
        equal = equal if fails(fewer) else fewer
    return equal


def _alike(tensors: Sequence[torch.Tensor]) -> dict[sympy.Symbol, sympy.Expr]:
    """By symbol, a number or an earlier symbol with the same size at hand."""
    # Numbers, or symbols, of which types know nothing.
    sizes: list[Any] = [size for each in tensors for size in each.shape]
    found: dict[int, sympy.Expr] = {size: sympy.Integer(size) for size in sizes if isinstance(size, int)}
    equal: dict[sympy.Symbol, sympy.Expr] = {}
    for size in sizes:
        if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol) and size.node.has_hint():
            other = found.setdefault(size.node.hint, size.node.expr)
            if other != size.node.expr:
                equal[size.node.expr] = other
    return equal


def _expressions(sizes: Sequence[int | torch.SymInt]) -> tuple[sympy.Expr, ...]:
    return tuple(sympy.sympify(each.node.expr if isinstance(each, torch.SymInt) else each) for each in sizes)


def _distinct(layouts: Sequence[_Layout], first: int, step: int) -> dict[sympy.Symbol, sympy.Expr]:
    """Another number for each symbol."""
    symbols = {symbol for layout in layouts for part in layout for each in part for symbol in each.free_symbols}
    return {symbol: sympy.Integer(first + step * place) for place, symbol in enumerate(sorted(symbols, key=str))}


def _numbers(layouts: Sequence[_Layout], values: dict[sympy.Symbol, sympy.Expr]) -> list[_Numbers]:
    """Sizes and strides, with numbers in the place of symbols. A symbol may be that of another, which has a number."""

    def number(part: sympy.Expr) -> int:
        found = part.xreplace(values).xreplace(values)
        if not found.is_Integer:
            raise ProbeError(f"a size is {part}")
        return int(found)

    return [(tuple(map(number, size)), tuple(map(number, stride))) for size, stride in layouts]


class _Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in PyTorch
    """Counts operators, and lets none draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in PyTorch
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ProbeError(f"it draws random numbers by {func}")
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """What can't run is of no interest: PyTorch logs it as an error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def _without_data() -> Iterator[_Steps]:
    with unset_fake_temporarily(), FakeTensorMode(), _Steps() as steps:
        yield steps


def _run(function: Callable[..., Any], tensors: Sequence[torch.Tensor], layouts: Sequence[_Numbers]) -> _Run:
    with _without_data() as steps, torch.no_grad():
        given = _made(tensors, layouts)
        before = [each._version for each in given]
        steps.count = 0
        try:
            result = function(given)
        except ProbeError:
            raise
        except Exception as error:
            raise ProbeError(f"it can't run on tensors without data: {type(error).__name__}: {error}") from error
        count, outputs, constants = steps.count, list[Any](), list[Any]()
        structure = flat(result, outputs, constants)
        if constants or "?" in structure or not outputs:
            raise ProbeError("it returns something other than tensors")
        if [each._version for each in given] != before:
            raise ProbeError("it changes an argument")
        if {each.device for each in outputs} != {given[0].device}:
            raise ProbeError("what it returns is on another device")
        _require_apart(outputs, given)
        like = [(_order(each), str(each.dtype).removeprefix("torch.")) for each in outputs]
    return _Run(structure, [tuple(each.shape) for each in outputs], like, count)


def _made(tensors: Sequence[torch.Tensor], layouts: Sequence[_Numbers]) -> list[torch.Tensor]:
    return [
        torch.empty_strided(*layout, dtype=each.dtype, device=each.device)
        for each, layout in zip(tensors, layouts, strict=True)
    ]


def _require_apart(outputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> None:
    taken = {each.untyped_storage()._cdata for each in given}
    own = {each.untyped_storage()._cdata for each in outputs}
    if taken & own or len(own) < len(outputs):
        raise ProbeError("it returns an argument, or two parts of one tensor")


def _order(output: torch.Tensor) -> tuple[int, ...]:
    order = tuple(sorted(range(output.ndim), key=output.stride, reverse=True))
    # A dimension of one has any stride.
    order = tuple(range(output.ndim)) if output.is_contiguous() else order
    if not output.permute(order).is_contiguous():
        raise ProbeError("it returns a part of a tensor")
    return order


def _uses(
    function: Callable[..., Any], tensors: Sequence[torch.Tensor], layouts: Sequence[_Numbers]
) -> list[tuple[int, ...]]:
    """For each output, the places of the tensors whose gradients it has a part in."""
    places = [place for place, each in enumerate(tensors) if each.requires_grad and torch.is_grad_enabled()]
    with _without_data(), torch.enable_grad():
        given = _made(tensors, layouts)
        wanted = [given[place].requires_grad_() for place in places]
        outputs: list[torch.Tensor] = []
        try:
            flat(function(given), outputs, [])
        except RuntimeError as error:
            raise ProbeError(f"it has no gradients: {error}") from error
        # An operator's results all have gradients, but for whole numbers.
        if wanted and not all(each.requires_grad for each in outputs if each.is_floating_point()):
            raise ProbeError("some of what it returns has no gradient")
        return [_parts(each, wanted, places) for each in outputs]


def _parts(output: torch.Tensor, wanted: Sequence[torch.Tensor], places: Sequence[int]) -> tuple[int, ...]:
    if not wanted or not output.requires_grad:
        return ()
    grads: list[torch.Tensor | None] = list(
        torch.autograd.grad(output, wanted, torch.ones_like(output), retain_graph=True, allow_unused=True)
    )
    return tuple(place for place, grad in zip(places, grads, strict=True) if grad is not None)


def _size(
    found: Sequence[tuple[int, ...]], given: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[int | tuple[int, int], ...]:
    """The size of an output by those of the tensors. Each list has a member for each run."""
    if len({len(size) for size in found}) > 1:
        raise ProbeError("it returns other numbers of dimensions for other sizes")
    return tuple(_dim([size[dim] for size in found], given) for dim in range(len(found[0])))


def _dim(sizes: list[int], given: Sequence[Sequence[tuple[int, ...]]]) -> int | tuple[int, int]:
    if len(set(sizes)) == 1:
        return sizes[0]
    for place, size in enumerate(given[0]):
        for dim in range(len(size)):
            if [run[place][dim] for run in given] == sizes:
                return place, dim
    raise ProbeError("a size of what it returns is none that it was given")
