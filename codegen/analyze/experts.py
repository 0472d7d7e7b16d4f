"""A forward that loops over the experts which tokens were sent to, and adds what each gives to the rows of its tokens:

    final_hidden_states = torch.zeros_like(hidden_states)
    expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
    for expert_idx in expert_hit:
        top_k_pos, token_idx = torch.where(expert_mask[expert_idx])
        …
        final_hidden_states.index_add_(0, token_idx, current_hidden_states)
    return final_hidden_states

How often the loop turns, and for how many tokens, depends on values: no graph can hold it. One operator can, since what is returned
has the size of hidden states.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..facts import Ref
from .callgraph import decorators
from .classes import Classes, has_models
from .hazards import EXPERTS, reachable
from .trees import Trees

CHOICE = "get_correct_experts_implementation"
"""The method by which a model has its own say in what runs in the place of a decorated forward. Transformers' own never lets the
decorated one run, unless a user asks for it."""

ADD = "index_add_"
PURE = frozenset(
    {
        "chunk",
        "clamp",
        "float",
        "greater",
        "int",
        "item",
        "linear",
        "matmul",
        "no_grad",
        "nonzero",
        "numel",
        "one_hot",
        "permute",
        "reshape",
        "sigmoid",
        "squeeze",
        "sum",
        "to",
        "view",
        "where",
        "zeros_like",
    }
)
"""The last names of what such a forward may call, besides modules and methods of its own: nothing of it changes a tensor or is
random."""
RANDOM = ("bernoulli", "dropout", "multinomial", "normal_", "rand", "uniform_")
"""In the names of functions that are random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Such a forward.

    Attributes:
        parameters: All but `self`; hidden states first.
        rank: How many dimensions hidden states have where what is returned has the same size; None for any number.
        is_even: Every turn of the loop reads the same parameters.
        is_chosen: The class is decorated: Transformers chooses what runs.
        first_line: Of the statement that finds the experts.
        last_line: Of the loop.
    """

    parameters: tuple[str, ...]
    rank: int | None
    is_even: bool
    is_chosen: bool
    first_line: int
    last_line: int


def find(classes: Classes, trees: Trees, ref: Ref) -> Experts | None:
    """What the forward in the body of a class is, if it is such a one and may run."""
    node, found = classes.node(ref), classes.method(ref, "forward")
    if node is None or found is None or found[0] != ref or not has_models(ref.file):
        return None
    file, decorated = classes.source.file(ref.file), decorators(node)
    if file.is_copy or ADD not in file.text or found[1].decorator_list:
        return None
    if decorated and (decorated != (EXPERTS,) or f"def {CHOICE}(" not in file.text):
        return None
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    below = (classes.node(each) for each in reachable(classes, trees, ref) if each != ref)
    if any(_is_impure(each) for each in below if each is not None):
        return None
    return _experts(found[1], methods, is_chosen=bool(decorated))


def _experts(forward: ast.FunctionDef, methods: dict[str, ast.FunctionDef], *, is_chosen: bool) -> Experts | None:
    given = forward.args
    loops = [each for each in ast.walk(forward) if isinstance(each, ast.For | ast.While | ast.comprehension)]
    if len(given.args) < 3 or given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg or len(loops) != 1:
        return None
    loop, parameters = loops[0], tuple(each.arg for each in given.args[1:])
    if not isinstance(loop, ast.For) or loop not in forward.body or not isinstance(loop.iter, ast.Name):
        return None
    hits = [node for node, target, value in _assigned(forward) if target == loop.iter.id]
    sums = {name for each in ast.walk(loop) if (name := _owner(each)) and _called(each) == ADD}
    if len(hits) != 1 or _called(hits[0].value) != "nonzero" or len(sums) != 1:
        return None
    total = sums.pop()
    rank = _rank(forward, parameters[0], total)
    if rank is None or not _is_pure(forward, methods, total):
        return None
    return Experts(
        parameters=parameters,
        rank=rank or None,
        is_even=_is_even(loop),
        is_chosen=is_chosen,
        first_line=hits[0].lineno,
        last_line=loop.end_lineno or loop.lineno,
    )


def _assigned(root: ast.AST) -> Iterator[tuple[ast.Assign, str, ast.expr]]:
    """Every `name = value`, in the order of the text."""
    found = [
        (node, node.targets[0].id, node.value)
        for node in ast.walk(root)
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    ]
    return iter(sorted(found, key=lambda each: each[0].lineno))


def _called(value: ast.AST) -> str:
    """The last name of what is called."""
    match value:
        case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)):
            return called
    return ""


def _owner(value: ast.AST) -> str:
    """The name whose method is called."""
    match value:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner))):
            return owner
    return ""


def _rank(forward: ast.FunctionDef, hidden: str, total: str) -> int | None:
    """The number of dimensions that hidden states must have for what is returned to have their size and dtype; 0 for any, None
    where it isn't known to have them.

    It is the sum, which starts as zeros like hidden states. Where these were made flat before, by `reshape(-1, size)`, the sum is
    given its shape by `view(batch_size, -1, size)`; where it starts in another dtype, what is returned is cast.
    """
    given = list(_assigned(forward))
    starts = [value for _, target, value in given if target == total and _called(value) == "zeros_like"]
    shapes = [(target, value) for _, target, value in given if target in (hidden, total) and value not in starts]
    if len(starts) != 1 or not _is_like(starts[0], hidden):
        return None
    returned = [each.value for each in ast.walk(forward) if isinstance(each, ast.Return)]
    kinds = {name for _, name, value in given if ast.unparse(value) == f"{hidden}.dtype"}
    casts = None if _has_dtype(starts[0], hidden) else kinds
    if not returned or not all(_is_sum(each, total, casts) for each in returned):
        return None
    if not shapes:
        return 0
    batches = {name for _, name, value in given if ast.unparse(value) == f"{hidden}.shape[0]"}
    return 3 if len(returned) == 1 and _is_put_back(shapes, hidden, total, batches) else None


def _is_like(zeros: ast.expr, hidden: str) -> bool:
    match zeros:
        case ast.Call(args=[ast.Name(id=like)], keywords=keywords):
            return like == hidden and {each.arg for each in keywords} <= {"dtype", "device"}
    return False


def _has_dtype(zeros: ast.expr, hidden: str) -> bool:
    assert isinstance(zeros, ast.Call)
    return all(each.arg != "dtype" or ast.unparse(each.value) == f"{hidden}.dtype" for each in zeros.keywords)


def _is_sum(returned: ast.expr | None, total: str, casts: set[str] | None) -> bool:
    """Whether it is the sum; cast to one of these dtypes, where it has to be."""
    match returned:
        case ast.Name(id=name):
            return name == total and casts is None
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="to"), args=[ast.Name(id=kind)], keywords=[]):
            return name == total and casts is not None and kind in casts
    return False


def _is_put_back(shapes: Sequence[tuple[str, ast.expr]], hidden: str, total: str, batches: set[str]) -> bool:
    """Whether these assignments make hidden states flat, and then give the sum the shape that they had."""
    match shapes:
        case [
            (flat, ast.Call(func=ast.Attribute(value=ast.Name(id=first)), args=[rows, width])),
            (full, ast.Call(func=ast.Attribute(value=ast.Name(id=second)), args=[ast.Name(id=batch), length, again])),
        ]:
            named = flat == first == hidden and full == second == total and batch in batches
            calls = {_called(value) for _, value in shapes} <= {"reshape", "view"}
            sizes = ast.unparse(rows) == ast.unparse(length) == "-1" and ast.unparse(width) == ast.unparse(again)
            return named and calls and sizes
    return False


def _is_pure(function: ast.FunctionDef, methods: dict[str, ast.FunctionDef], total: str) -> bool:
    """Whether all that it changes is the sum, and all that it reads are its arguments and the module's own attributes."""
    fresh = {target for _, target, value in _assigned(function) if isinstance(value, ast.BinOp)}
    fresh -= {target for _, target, value in _assigned(function) if not _is_fresh(value, target)}
    for node in (each for statement in function.body for each in ast.walk(statement)):
        match node:
            case ast.Call():
                if not _is_known(node, methods, total):
                    return False
            case ast.Attribute(value=ast.Name(id="self"), attr="config") | ast.Attribute(ctx=ast.Store()):
                return False
            case ast.Subscript(ctx=ast.Store()) | ast.Delete() | ast.Global() | ast.Nonlocal():
                return False
            case ast.FunctionDef() | ast.Lambda() | ast.Try() | ast.NamedExpr() | ast.Yield():
                return False
            case ast.AugAssign(target=target):
                if not isinstance(target, ast.Name) or target.id not in fresh:
                    return False
    return True


def _is_fresh(value: ast.expr, target: str) -> bool:
    """Whether it is a tensor of its own where the name's tensor is."""
    match value:
        case ast.BinOp():
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self")), args=[ast.Name(id=given)], keywords=[]):
            return given == target
    return False


def _is_known(call: ast.Call, methods: dict[str, ast.FunctionDef], total: str) -> bool:
    match call.func:
        case ast.Attribute(value=ast.Name(id="self"), attr=own):
            return own not in methods or (own != "forward" and _is_pure(methods[own], {}, ""))
        case ast.Subscript(value=ast.Name(id="self") | ast.Attribute(value=ast.Name(id="self"))):
            return True
    called = _called(call)
    return called in PURE or (called == ADD and _owner(call) == total)


def _is_even(loop: ast.For) -> bool:
    """Whether every turn that isn't left out reads the same attributes."""
    for node in ast.walk(loop):
        match node:
            case ast.If(body=[ast.Continue()], orelse=[]):
                continue
            case ast.If() | ast.IfExp():
                if any(_is_own(each) for each in ast.walk(node)):
                    return False
            case ast.Subscript(value=ast.Name(id="self")) | ast.Call(func=ast.Subscript()):
                return False
    return True


def _is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _is_impure(node: ast.ClassDef) -> bool:
    """Whether a module inside draws random numbers by a function, or changes itself or something else in place.

    Dropout by a module of its own is asked for where it runs.
    """
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or method.name == "__init__":
            continue
        for each in ast.walk(method):
            called = "" if isinstance(each, ast.Call) and _is_own(each.func) else _called(each)
            changes = isinstance(each, ast.Attribute | ast.Subscript) and isinstance(each.ctx, ast.Store)
            if changes or called.endswith("_") or any(word in called for word in RANDOM):
                return True
    return False
