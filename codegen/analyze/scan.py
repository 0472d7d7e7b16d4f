"""One walk over a function: its hazards, and what it calls, each with the most that a hazard in there can be.

The statements; expressions are those of `codegen.analyze.expressions`. Names are followed in the order of the text, loops
once, and after an `if` a name is the most troublesome of what its branches made it.
"""

from __future__ import annotations

import ast

from ..facts import HazardKind, HazardLevel
from .conditions import ERROR, NOTE, cap_when, defaults, ends, lower, optional_arguments
from .expressions import Expressions, Scan
from .kinds import IS_TENSOR, Kind, annotated, element, join, many

HARMLESS = (Kind.PLAIN, Kind.UNKNOWN)


def scan(function: ast.FunctionDef, methods: frozenset[str] = frozenset()) -> Scan:
    """What one function does by itself. `methods` are the names of its class's methods."""
    walker = _Statements(optional_arguments(function), methods)
    walker.declare(function.args)
    walker.block(function.body)
    return Scan(
        hazards=tuple(dict.fromkeys(walker.hazards)),
        calls=tuple(dict.fromkeys(walker.calls)),
        handed_on=tuple(dict.fromkeys(walker.handed)),
        attends=bool(walker.interfaces),
    )


class _Statements(Expressions):
    def declare(self, arguments: ast.arguments) -> None:
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self.names[argument.arg] = annotated(argument.annotation)
        for argument, default in defaults(arguments):
            if isinstance(default, ast.Constant) and default.value is not None:
                self.names[argument.arg] = Kind.UNKNOWN  # `output_attentions: torch.Tensor = False`

    def block(self, body: list[ast.stmt]) -> None:
        outer = self.cap
        for statement in body:
            self.statement(statement)
            if isinstance(statement, ast.If) and ends(statement.body) and not statement.orelse:
                self.cap = lower(self.cap, cap_when(statement.test, False, self.optional))
        self.cap = outer

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                self._assign(targets, value)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                self.saw_interface = False
                found = self.eval(value) if value is not None else Kind.UNKNOWN
                self.bind(target, annotated(annotation) if found is Kind.UNKNOWN else found)
                if isinstance(target, ast.Name) and value is not None:
                    self._remember(target.id, value)
            case ast.AugAssign(target=target, value=value):
                read = self.names.get(target.id, Kind.UNKNOWN) if isinstance(target, ast.Name) else Kind.UNKNOWN
                self.bind(target, join((read, self.eval(value))))
            case ast.If():
                self._if(node)
            case ast.For(target=target, iter=iterated):
                self._modules(target, iterated)
                self.bind_each(target, self.iterate(iterated))
                self.conditionally(node.body, self.cap)
                self.block(node.orelse)
            case ast.While(test=test, body=body):
                self.test(test, "the loop goes on")
                self.conditionally(body, self.cap)
            case ast.Assert(test=test, msg=msg):
                self._assert(test, msg)
            case ast.Raise(exc=error):
                self.under(NOTE, lambda: self.eval(error) if error is not None else Kind.PLAIN)
            case ast.With(items=items, body=body):
                for item in items:
                    self.eval(item.context_expr)
                self.block(body)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=finalbody):
                self.block(body)
                for handler in handlers:
                    self.conditionally(handler.body, NOTE)
                self.block(orelse)
                self.block(finalbody)
            case ast.FunctionDef(args=arguments, body=body):
                self.declare(arguments)
                self.block(body)
            case ast.Return(value=value) | ast.Expr(value=value) if value is not None:
                self.eval(value)

    def _modules(self, target: ast.expr, iterated: ast.expr) -> None:
        """`for layer in self.layers`, in any dress: the loop's names stand for that attribute's modules."""
        lists = [each for each in ast.walk(iterated) if isinstance(each, ast.Attribute)]
        for each in lists:
            if isinstance(each.value, ast.Name) and each.value.id == "self":
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        self.modules[name.id] = each.attr

    def conditionally(self, body: list[ast.stmt], cap: HazardLevel) -> None:
        """A block that may not run."""
        outer, self.cap = self.cap, lower(self.cap, cap)
        self.depth += 1
        self.block(body)
        self.depth -= 1
        self.cap = outer

    def _assign(self, targets: list[ast.expr], value: ast.expr) -> None:
        if len(targets) == 1 and isinstance(targets[0], ast.Tuple) and isinstance(value, ast.Tuple):
            if len(targets[0].elts) == len(value.elts):
                kinds = [self.eval(each) for each in value.elts]
                for target, kind in zip(targets[0].elts, kinds, strict=True):
                    self.bind(target, kind)
                return
        self.saw_interface = False
        kind = self.eval(value)
        for target in targets:
            self.bind(target, kind)
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            self._remember(targets[0].id, value)

    def _remember(self, name: str, value: ast.expr) -> None:
        """What a name holds beyond its kind."""
        self.own.discard(name)
        if isinstance(value, ast.Attribute) and self.is_own(value) and value.attr.endswith("config"):
            self.own.add(name)
        if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And):
            # `skip = self.training and …`: a tensor in training only.
            cap = lower(*(cap_when(each, True, self.optional) for each in value.values))
            if cap is not ERROR:
                self.capped[name] = cap
        if self.saw_interface:
            self.interfaces.add(name)
            self.saw_interface = False

    def bind(self, target: ast.expr, kind: Kind) -> None:
        """An assignment to a target of any form."""
        match target:
            case ast.Name(id=name):
                if self.cap is ERROR:
                    self.capped.pop(name, None)
                elif self.names.get(name, Kind.UNKNOWN) in HARMLESS:
                    self.capped[name] = self.cap
                self.names[name] = kind
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for each in elements:
                    self.bind(each, element(kind))
            case ast.Starred(value=value):
                self.bind(value, many(kind))
            case ast.Attribute():
                self._write(target)
            case ast.Subscript(value=value, slice=index):
                # Storing through a mask is an `index_put`, which has no shape of its own.
                self.eval(value)
                self.eval(index)

    def _write(self, target: ast.Attribute) -> None:
        if self.is_own(target):
            self.writes(target, f"{ast.unparse(target)} = …")

    def bind_each(self, target: ast.expr, kinds: Kind | tuple[Kind, ...]) -> None:
        if isinstance(kinds, tuple):
            entries = target.elts if isinstance(target, ast.Tuple) else []
            for each, kind in zip(entries, kinds, strict=False):
                self.bind(each, kind)
        else:
            self.bind(target, kinds)

    def _if(self, node: ast.If) -> None:
        self.test(node.test, "the branch")
        before = dict(self.names)
        cap = cap_when(node.test, True, self.optional)
        raises = bool(node.body) and isinstance(node.body[-1], ast.Raise)
        self.conditionally(node.body, lower(cap, NOTE) if raises else cap)
        after, self.names = self.names, before
        self.conditionally(node.orelse, cap_when(node.test, False, self.optional))
        if not ends(node.body):
            if node.orelse and ends(node.orelse):
                self.names = after
            else:
                self.names = {
                    name: join((after.get(name, Kind.PLAIN), self.names.get(name, Kind.PLAIN)))
                    for name in {**after, **self.names}
                }

    def _assert(self, test: ast.expr, message: ast.expr | None) -> None:
        # Dynamo turns the assertion of a tensor with a constant message into an operator.
        kind = self.eval(test)
        if message is not None and not isinstance(message, ast.Constant):
            self.eval(message)
            if kind in IS_TENSOR:
                self.branch(test, "an assertion whose message is computed")
        elif kind in IS_TENSOR:
            text = f"`assert {ast.unparse(test)}` waits for the device"
            self.found(HazardKind.HOST_READ, test, text, NOTE)
