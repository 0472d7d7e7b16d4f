"""Branches on whether an argument holds anything, deep inside a region that was given it:

    if moe_mm_token_type_ids is not None and moe_mm_token_type_ids.any():
        vision_mask = moe_mm_token_type_ids.bool()
        …

A graph can't ask. But where nothing else reads the argument on its way down, zeros are as good as None: so the region's caller
is asked, and a graph for an argument that isn't None knows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import libcst as cst

from ..facts import Child, Ref
from ..memo import remembered
from .classes import Classes
from .composition import children
from .trees import Tree, Trees, walk


def find(tree: Tree) -> dict[str, cst.Call]:
    """The `.any()` of each parameter that a method reads in such branches only. There is one branch for each."""
    if ".any():" not in tree.text:
        return {}
    declared = tree.method.params
    parameters = {each.name.value for each in (*declared.params, *declared.kwonly_params)}
    found: dict[str, cst.Call] = {}
    for node in walk(tree.method.body):
        if isinstance(node, cst.If) and (asked := _asked(node)) is not None:
            own, call = asked
            if own in parameters and _count(tree.method.body, own) == _count(node.test, own) + _count(node.body, own):
                found[own] = call
    return found


def _asked(branch: cst.If) -> tuple[str, cst.Call] | None:
    """`x` and `x.any()` of the test `x is not None and x.any()`."""
    match branch.test:
        case cst.BooleanOperation(
            left=cst.Comparison(
                left=cst.Name(value=first),
                comparisons=[cst.ComparisonTarget(operator=cst.IsNot(), comparator=cst.Name(value="None"))],
            ),
            operator=cst.And(),
            right=cst.Call(
                func=cst.Attribute(value=cst.Name(value=second), attr=cst.Name(value="any")), args=[]
            ) as asked,
        ) if first == second:
            return first, asked
    return None


def _count(node: cst.CSTNode, wanted: str) -> int:
    """How often a name is read or bound. A keyword of a call is neither."""
    keywords = {id(each.keyword) for each in walk(node) if isinstance(each, cst.Arg)}
    return sum(isinstance(each, cst.Name) and each.value == wanted and id(each) not in keywords for each in walk(node))


@remembered
def truths(classes: Classes, trees: Trees, ref: Ref) -> tuple[str, ...]:
    """The parameters of a class's forward that such branches ask for, and that nothing else reads."""
    found = classes.method(ref, "forward")
    if found is None or ".any():" not in classes.source.file(found[0].file).text:
        return ()
    arguments = (*found[1].args.args, *found[1].args.kwonlyargs)
    return tuple(each.arg for each in arguments if each.arg != "self" and _is_truth(classes, trees, ref, each.arg))


@remembered
def _is_truth(classes: Classes, trees: Trees, ref: Ref, wanted: str) -> bool:
    """Whether a forward reads a parameter in such a branch only, or hands it on, under its name, to modules that do."""
    found = classes.method(ref, "forward")
    assert found is not None
    owner, node = found
    if not any(wanted == each.arg for each in (*node.args.args, *node.args.kwonlyargs)):
        return False
    if wanted in find(trees.method(owner, "forward")):
        return True
    calls = [each for statement in node.body for each in ast.walk(statement) if isinstance(each, ast.Call)]
    handed = [call for call in calls for value in _values(call) if _is_name(value, wanted)]
    named = [each for statement in node.body for each in ast.walk(statement) if _is_name(each, wanted)]
    if not handed or len(named) != len(handed) or "locals()" in ast.unparse(node):
        return False
    return all(_is_handed_on(classes, trees, ref, node, call, wanted) for call in handed)


def _values(call: ast.Call) -> Iterator[ast.expr]:
    yield from call.args
    yield from (each.value for each in call.keywords)


def _is_name(node: ast.AST, wanted: str) -> bool:
    return isinstance(node, ast.Name) and node.id == wanted


def _is_handed_on(
    classes: Classes, trees: Trees, ref: Ref, node: ast.FunctionDef, call: ast.Call, wanted: str
) -> bool:
    """Whether all modules that a call may be of take the argument for such a parameter."""
    called = list(_called(children(classes, trees, ref), node, call.func))
    if not called or any(child.target is None for child in called):
        return False
    taking = [child.target for child in called if child.target and _parameter(classes, child.target, call, wanted)]
    # A module that takes no such argument can't be what is called, unless it takes whatever comes.
    others = [child.target for child in called if child.target and child.target not in taking]
    return (
        bool(taking)
        and all(_is_truth(classes, trees, each, wanted) for each in taking)
        and not any(_takes_any(classes, each) for each in others)
    )


def _called(made: tuple[Child, ...], node: ast.FunctionDef, function: ast.expr) -> Iterator[Child]:
    """The children that `self.part(…)` calls, or `layer(…)` in a loop over `self.layers`."""
    match function:
        case ast.Attribute(value=ast.Name(id="self"), attr=part):
            yield from (child for child in made if child.attribute == part)
        case ast.Name(id=layer):
            loops = [each for each in ast.walk(node) if isinstance(each, ast.For)]
            bound = [each for each in loops if any(_is_name(part, layer) for part in ast.walk(each.target))]
            names = [each for each in ast.walk(node) if isinstance(each, ast.Name) and each.id == layer]
            stored = [each for each in names if isinstance(each.ctx, ast.Store)]
            if len(stored) == len(bound) == 1:
                parts = {each.attr for each in ast.walk(bound[0].iter) if isinstance(each, ast.Attribute)}
                yield from (child for child in made if child.attribute in parts)


def _parameter(classes: Classes, target: Ref, call: ast.Call, wanted: str) -> bool:
    """Whether a module's forward has a parameter of that name for the argument of that name."""
    found = classes.method(target, "forward")
    if found is None or any(isinstance(each, ast.Starred) for each in call.args):
        return False
    arguments = found[1].args
    names = [each.arg for each in arguments.args[1:]]
    keywords = [each.arg for each in call.keywords if _is_name(each.value, wanted)]
    places = [place for place, each in enumerate(call.args) if _is_name(each, wanted)]
    given = [*keywords, *(names[place] if place < len(names) else None for place in places)]
    return given == [wanted] and wanted in (*names, *(each.arg for each in arguments.kwonlyargs))


def _takes_any(classes: Classes, target: Ref) -> bool:
    found = classes.method(target, "forward")
    return found is None or found[1].args.vararg is not None or found[1].args.kwarg is not None
