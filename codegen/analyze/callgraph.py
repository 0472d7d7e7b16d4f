"""Which functions a forward reaches: its class's methods, those of its children, and functions of Transformers' modules.

The forwards of children aren't followed here: each class answers for its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..facts import HazardLevel, Ref
from ..files import COPY
from ..memo import remembered
from .classes import Classes
from .conditions import ERROR, lower
from .expressions import Called, Scan
from .kinds import dotted
from .scan import scan

LEFT_OUT = (
    # Every decoder calls these, with the default sdpa attention and grouped_mm experts, and 176 of 183 were captured whole in
    # one graph; what was found in the other seven stands in their own files.
    "transformers.masking_utils",
    "transformers.integrations",
    "transformers.cache_utils",
    "transformers.modeling_utils",
    # Reached with flash attention only, whose kernels are operators of their own: both encoders that were compiled with an
    # interface of that name were captured whole.
    "transformers.modeling_flash_attention_utils",
    # Import tests, loggers, deprecations, and `torch_compilable_check`, which is made for tracing: calls of each under Dynamo
    # were captured. `utils.generic` has helpers of forwards, and is followed.
    "transformers.utils",
    # Nothing in here runs within a base model's forward: losses belong to heads, which stay out of the regions.
    "transformers.loss",
    "transformers.generation",
    "transformers.activations",
)
FOLLOWED = ("transformers.utils.generic",)

Function = ast.FunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A function in reach: `owner` is its class, or itself, `cap` the most that a hazard in it can be, `line` the hoisted line
    of the forward by which it is reached."""

    owner: Ref
    function: Function
    cap: HazardLevel
    line: int | None


class CallGraph:
    """The functions that the classes of one source reach, each walked once."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.memo: dict[object, Any] = {}

    @remembered
    def scan(self, owner: Ref, function: Function) -> Scan:
        node = self.classes.node(owner) if self.classes.source.definition(owner).is_class else None
        body = node.body if node is not None else ()
        return scan(function, frozenset(each.name for each in body if isinstance(each, ast.FunctionDef)))

    @remembered
    def reach(self, ref: Ref, hoisted: frozenset[int]) -> tuple[Reached, ...]:
        """Every function that the forward of `ref` reaches, the forward itself first; what one of the `hoisted` lines of the
        forward reaches is told apart by that line, and the most serious way there counts for all others."""
        forward = self.classes.method(ref, "forward")
        if forward is None:
            return ()
        best: dict[tuple[Ref, str, int | None], HazardLevel] = {}
        pending = [Reached(owner=forward[0], function=forward[1], cap=ERROR, line=None)]
        found: dict[tuple[Ref, str, int | None], Reached] = {}
        while pending:
            here = pending.pop(0)
            key = (here.owner, here.function.name, here.line)
            if key in best and best[key].rank >= here.cap.rank:
                continue
            best[key] = here.cap
            found[key] = here
            for call in self.scan(here.owner, here.function).calls:
                target = self._target(ref, here, call)
                if target is None:
                    continue
                line = here.line
                if here.function is forward[1] and call.line in hoisted:
                    line = call.line
                pending.append(Reached(owner=target[0], function=target[1], cap=lower(here.cap, call.cap), line=line))
        return tuple(found.values())

    def _target(self, ref: Ref, here: Reached, call: Called) -> tuple[Ref, Function] | None:
        """The definition that a call leads to, where that is certain."""
        match call.path:
            case ("self", name):
                return self.classes.method(ref, name) if name != "forward" else None
            case ("self", child, name):
                made = self.children(ref).get(child, ())
                return self.classes.method(made[0], name) if len(made) == 1 and name != "forward" else None
            case ("super", name):
                return self._above(ref, here.owner, name)
            case (name,):
                return self.function(here.owner.file, name)
        return None

    def _above(self, ref: Ref, owner: Ref, name: str) -> tuple[Ref, Function] | None:
        mro = self.classes.mro(ref)
        for base in mro[mro.index(owner) + 1 :] if owner in mro else ():
            node = self.classes.node(base)
            for statement in node.body if node is not None else ():
                if isinstance(statement, ast.FunctionDef) and statement.name == name:
                    return base, statement
        return None

    def function(self, file: str, name: str) -> tuple[Ref, Function] | None:
        """The function that a name of a file leads to, where it is looked into."""
        source = self.classes.source
        here = source.file(file)
        imported = here.imports.get(name)
        if imported is not None and name not in here.definitions and _is_left_out(imported.module):
            return None  # Before the file is looked for: some are large.
        found = source.resolve(name, here)
        node = source.definition(found).node if found is not None else None
        return (found, node) if found is not None and isinstance(node, ast.FunctionDef) else None

    @remembered
    def attends(self, ref: Ref, child: str) -> bool:
        """Whether a child made under that attribute calls an attention interface, itself or further down."""
        pending, seen = list(self.children(ref).get(child, ())), set[Ref]()
        while pending:
            here = pending.pop()
            if here in seen:
                continue
            seen.add(here)
            forward = self.classes.method(here, "forward")
            if forward is not None and self.scan(*forward).attends:
                return True
            pending += [each for made in self.children(here).values() for each in made]
        return False

    @remembered
    def children(self, ref: Ref) -> dict[str, tuple[Ref, ...]]:
        """Attribute → classes, for children that `__init__` makes by naming the class, in lists too."""
        found = self.classes.method(ref, "__init__")
        made: dict[str, tuple[Ref, ...]] = {}
        for node in ast.walk(found[1]) if found is not None else ():
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)], value=value):
                    assert found is not None
                    made[attribute] = tuple(self._made(found[0].file, value))
                case ast.Call(func=ast.Attribute(value=ast.Attribute(attr=attribute), attr="append")):
                    assert found is not None
                    made[attribute] = (*made.get(attribute, ()), *self._made(found[0].file, node))
        return made

    def _made(self, file: str, value: ast.expr) -> Iterator[Ref]:
        for node in ast.walk(value):
            match node:
                case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(value=ast.Name(id=name))):
                    target = self.classes.resolve_class(file, name)
                    if target is not None and self.classes.node(target) is not None:
                        yield target


@remembered
def call_graph(classes: Classes) -> CallGraph:
    """The one of a source's classes."""
    return CallGraph(classes)


def _is_left_out(module: str) -> bool:
    if module in FOLLOWED:
        return False
    return not module.startswith(("transformers", COPY)) or any(
        module == left or module.startswith(f"{left}.") for left in LEFT_OUT
    )


RENAMING = frozenset({"deprecate_kwarg"})
"""Decorators that only take an argument under a former name too: where a forward is written anew, they come along."""


def decorators(node: ast.ClassDef | ast.FunctionDef) -> tuple[str, ...]:
    """The last names of the decorators."""
    found = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
    return tuple(dotted(each).rpartition(".")[2] for each in found)
