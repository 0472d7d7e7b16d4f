"""Embeddings that a forward makes itself, of token ids and of what stands between them:

    if (input_ids is None) ^ (inputs_embeds is not None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    …
    if inputs_embeds is None:
        inputs_embeds = self.embed_tokens(input_ids)
        inputs_embeds = self.embed_tokens_extend(input_ids, inputs_embeds, image_pixel_values, …)

Where images go, the ids say, which a graph can't read. But what follows is the same for a caller who gives `inputs_embeds`: so the
block runs before the graph, and nothing else reads what it was made of.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from ..facts import Ref
from .classes import Classes
from .prologue import assigned_before, is_barrier
from .segments import assign
from .trees import Tree, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Such a block, `target` the argument that it makes.

    Attributes:
        checks: The statements before it that raise where other than one of the arguments is given.
        block: The `if` statement.
        made_of: The arguments that nothing but these reads.
        parts: The attributes of `self` that it calls.
    """

    target: str
    checks: tuple[cst.If, ...]
    block: cst.If
    made_of: tuple[str, ...]
    parts: tuple[str, ...]


def find(tree: Tree) -> Embeddings | None:
    """The block of a forward, where it can run before the rest of it."""
    if " is None:" not in tree.text or "self." not in tree.text:
        return None
    declared = (*tree.method.params.params, *tree.method.params.kwonly_params)
    parameters = [each.name.value for each in declared if each.name.value != "self"]
    checks: list[cst.If] = []
    for statement in tree.method.body.body:
        target = _target(statement, parameters)
        if target is not None:
            assert isinstance(statement, cst.If)
            return _embeddings(tree, parameters, target, statement, checks)
        if isinstance(statement, cst.If) and _only_raises(statement):
            checks.append(statement)
        elif is_barrier(statement):
            return None
    return None


def recorded(classes: Classes, ref: Ref) -> tuple[str, ...]:
    """The names in the nearest `_can_record_outputs` of a class and its bases: the classes whose outputs it can record."""
    for owner in classes.mro(ref):
        node = classes.node(owner)
        for statement in node.body if node is not None else ():
            match statement:
                case ast.Assign(targets=[ast.Name(id="_can_record_outputs")], value=value):
                    return tuple(dict.fromkeys(each.id for each in ast.walk(value) if isinstance(each, ast.Name)))
    return ()


def _embeddings(
    tree: Tree, parameters: Sequence[str], target: str, block: cst.If, checks: Sequence[cst.If]
) -> Embeddings | None:
    inside = {node.value for node in walk(block.body) if isinstance(node, cst.Name)}
    read = [each for each in parameters if each in inside - {target}]
    of_these = [each for each in checks if _names(each) & {target, *read}]
    apart = {id(node) for part in (block, *of_these) for node in walk(part)}
    keywords = {id(each.keyword) for each in walk(tree.method) if isinstance(each, cst.Arg)}
    elsewhere = {
        node.value
        for node in walk(tree.method.body)
        if isinstance(node, cst.Name) and id(node) not in apart and id(node) not in keywords
    }
    made_of = tuple(each for each in read if each not in elsewhere)
    if not made_of or (inside | {target}) & assigned_before(tree.method, block):
        return None
    if any(_names(each) - {target, *made_of} or _raises(each, target) for each in of_these):
        return None
    parts = dict.fromkeys(
        node.func.attr.value
        for node in walk(block.body)
        if isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and isinstance(node.func.value, cst.Name)
        and node.func.value.value == "self"
    )
    return Embeddings(target=target, checks=tuple(of_these), block=block, made_of=made_of, parts=tuple(parts))


def _target(statement: cst.CSTNode, parameters: Sequence[str]) -> str | None:
    """`x` of `if x is None:`, where the body does nothing but assign `x`."""
    match statement:
        case cst.If(
            test=cst.Comparison(
                left=cst.Name(value=target),
                comparisons=[cst.ComparisonTarget(operator=cst.Is(), comparator=cst.Name(value="None"))],
            ),
            body=cst.IndentedBlock() as body,
            orelse=None,
        ) if target in parameters and _only_makes(body, target):
            return target
    return None


def _only_makes(statement: cst.CSTNode | None, target: str) -> bool:
    """Whether a statement, or each of a block and of its branches, assigns a name and does nothing else."""
    match statement:
        case None:
            return True
        case cst.IndentedBlock(body=body):
            return all(_only_makes(each, target) for each in body)
        case cst.If(body=body, orelse=orelse):
            return _only_makes(body, target) and _only_makes(orelse, target)
        case cst.Else(body=body):
            return _only_makes(body, target)
    return assign(statement)[0] == target


def _only_raises(statement: cst.CSTNode) -> bool:
    """`if …: raise …`, and nothing else."""
    match statement:
        case cst.If(body=cst.IndentedBlock(body=[cst.SimpleStatementLine(body=[cst.Raise()])]), orelse=None):
            return True
    return False


def _names(check: cst.If) -> set[str]:
    """What the test of a check reads."""
    return {node.value for node in walk(check.test) if isinstance(node, cst.Name)} - {"None"}


def _raises(check: cst.If, target: str) -> bool:
    """Whether a check raises for a caller who gives `target` alone, or can't be told to let it pass: it's made of more than
    `is None`, `not`, `and`, `or` and `^`."""
    test = ast.parse(cst.Module(body=()).code_for_node(check.test), mode="eval").body
    outcome = _outcome(test, target)
    return outcome is None or outcome


def _outcome(test: ast.expr, target: str) -> bool | None:
    """What a test says where `target` is given and nothing else; None where that isn't known."""
    match test:
        case ast.Compare(
            left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot() as how], comparators=[ast.Constant(value=None)]
        ):
            return (name != target) is isinstance(how, ast.Is)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            found = _outcome(operand, target)
            return None if found is None else not found
        case ast.BinOp(left=left, op=ast.BitXor(), right=right):
            sides = [_outcome(each, target) for each in (left, right)]
            return None if None in sides else sides[0] is not sides[1]
        case ast.BoolOp(op=op, values=values):
            all_ = [_outcome(each, target) for each in values]
            if None in all_:
                return None
            return all(all_) if isinstance(op, ast.And) else any(all_)
    return None
