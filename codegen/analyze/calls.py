"""What a call gives, and the hazards in calling it: functions of torch, methods of tensors, Python's own functions."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod

from ..facts import HazardKind, HazardLevel
from .conditions import ERROR, NOTE, WARNING
from .kinds import (
    BOOLEAN_READS,
    BY_SIZE,
    CHANGING,
    COMPARISONS,
    COPIES,
    DATA_BOOLS,
    DATA_SHAPES,
    FACTORIES,
    FUNCTIONAL,
    HAS_UNKNOWN_SIZE,
    IS_TENSOR,
    KEEP_SIZE,
    MANY,
    MOVE_ROWS,
    OF_TENSORS,
    PLAIN_METHODS,
    PLAIN_MODULES,
    PLAIN_TORCH,
    READS,
    REDUCTIONS,
    SHAPE_ONLY,
    SIZED,
    SPLITS,
    Kind,
    dotted,
    join,
    many,
)

HOST_MODULES = {"np", "numpy", "math", "os", "itertools", "functools", "copy", "random", "re"}
NOT_TENSORS = {"get", "items", "keys", "update", "pop", "values"}
LOG_LEVELS = {
    "debug",
    "info",
    "warning",
    "warning_once",
    "info_once",
    "warning_advice",
    "error",
    "exception",
    "critical",
}


class CallRules(ABC):
    """The part of `Expressions` that is about calls."""

    methods: frozenset[str]
    """Of the class, as opposed to modules it has."""
    names: dict[str, Kind]
    interfaces: set[str]
    """Names that hold an attention interface."""
    modules: dict[str, str]
    """Names of loop variables over a list of modules, and the attribute that holds the list."""
    own: set[str]
    """Names that hold what the module keeps: its config."""
    depth: int

    @abstractmethod
    def eval(self, node: ast.expr) -> Kind: ...

    @abstractmethod
    def found(self, kind: HazardKind, node: ast.expr, message: str, level: HazardLevel) -> None: ...

    @abstractmethod
    def called(self, path: tuple[str, ...], node: ast.expr, cap: HazardLevel = ERROR) -> None: ...

    @abstractmethod
    def handed_on(self, child: str, node: ast.expr) -> None: ...

    @abstractmethod
    def branch(self, node: ast.expr, what: str) -> None: ...

    def call(self, node: ast.Call) -> Kind:
        """The kind of a call's result."""
        kinds = [self.eval(argument) for argument in node.args]
        keywords = {keyword.arg or "**": self.eval(keyword.value) for keyword in node.keywords}
        name = dotted(node.func)
        if name.startswith(FUNCTIONAL):
            return self._torch(name, node, kinds, keywords)
        if name.partition(".")[0] in HOST_MODULES and "." in name:
            return Kind.READ if Kind.READ in kinds else Kind.UNKNOWN
        match node.func:
            case ast.Name(id=function):
                return self._function(function, node, kinds, keywords)
            case ast.Attribute(value=ast.Name(id="self"), attr="register_buffer" | "register_parameter"):
                self.writes(node, f"{ast.unparse(node.func)}(…)")
                return Kind.PLAIN
            case ast.Attribute(value=ast.Name(id="self"), attr=method):
                first = (kinds or [*keywords.values(), Kind.UNKNOWN])[0]
                if method not in self.methods and first in HAS_UNKNOWN_SIZE:
                    if first is Kind.RAGGED:
                        self.handed_on(method, node)
                    return first  # Modules leave the rows of their first argument as they are.
                self.called(("self", method), node, _passed_in(node))
                return Kind.UNKNOWN
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self")), attr=method) if method in CHANGING:
                self.writes(node, f"{ast.unparse(node.func)}(…)")
                return Kind.UNKNOWN
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=child), attr=method):
                self.called(("self", child, method), node)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=method):
                self.called(("super", method), node)
                return Kind.UNKNOWN
            case ast.Attribute(value=ast.Name(id="logger" | "logging"), attr=method) if method in LOG_LEVELS:
                self._logs(node, "logs")
                return Kind.PLAIN
            case ast.Attribute(value=ast.Name(id="warnings"), attr="warn"):
                self._logs(node, "warns")
                return Kind.PLAIN
        if isinstance(node.func, ast.Attribute):
            return self._method(node.func, node, kinds, keywords)
        self.eval(node.func)
        return Kind.UNKNOWN

    def is_own(self, node: ast.expr) -> bool:
        """Whether it is the module or something that it keeps: `self`, `self.config`, or a name for one of these."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and (node.id == "self" or node.id in self.own)

    def writes(self, node: ast.expr, text: str) -> None:
        message = f"`{text}` changes the module while it runs: whatever reads it recompiles"
        self.found(HazardKind.STATE_WRITE, node, message, WARNING)

    def _logs(self, node: ast.Call, what: str) -> None:
        # Every level breaks a graph, `warning_once` too; but hardly any is reached on each call.
        level = ERROR if self.depth == 0 else WARNING
        self.found(HazardKind.LOGGING, node, f"`{ast.unparse(node.func)}(…)` {what} inside the forward", level)

    def _function(self, name: str, node: ast.Call, kinds: list[Kind], keywords: dict[str, Kind]) -> Kind:
        given = join(kinds)
        match name:
            case "int" | "float" | "bool" if given in IS_TENSOR:
                if name == "bool":
                    self.branch(node, "a Python value")
                else:
                    self._reads(node)
                return Kind.READ
            case "int" | "float" | "bool" | "abs" | "round":
                return given
            case "range":
                if given in IS_TENSOR | {Kind.READ}:
                    message = f"the loop over `{ast.unparse(node)}` runs as often as the values of a tensor say"
                    self.found(HazardKind.DATA_LOOP, node, message, ERROR)
                return Kind.PLAIN
            case "len":
                return Kind.READ if given in HAS_UNKNOWN_SIZE else Kind.PLAIN
            case "max" | "min" | "sum":
                return {Kind.TENSORS: Kind.TENSOR, Kind.RAGGEDS: Kind.RAGGED}.get(given, given)
            case "any" | "all":
                if given in IS_TENSOR | {Kind.TENSORS, Kind.RAGGEDS}:
                    self.branch(node, "the result")
                return Kind.READ if given is Kind.READ else Kind.PLAIN
            case "set" | "sorted":
                if given is Kind.READ:
                    self.branch(node, "the result")
                return given
            case "list" | "tuple":
                return many(given) if given in IS_TENSOR else given
            case "isinstance" | "hasattr" | "type" | "getattr" | "callable" | "issubclass" | "str" | "id":
                return Kind.PLAIN if name != "getattr" else Kind.UNKNOWN
            case "setattr" if node.args and self.is_own(node.args[0]):
                self.writes(node, ast.unparse(node))
                return Kind.PLAIN
            case "print":
                self._logs(node, "prints")
                return Kind.PLAIN
        if name in self.interfaces:
            self._hands_over(name, node, [*kinds, *keywords.values()])
        elif name in self.modules:
            if kinds[:1] == [Kind.RAGGED]:
                self.handed_on(self.modules[name], node)
                return Kind.RAGGED
        elif name not in self.names:
            self.called((name,), node, _passed_in(node))
        return Kind.UNKNOWN

    def _hands_over(self, name: str, node: ast.expr, kinds: list[Kind]) -> None:
        if {Kind.RAGGED, Kind.RAGGEDS} & set(kinds):
            message = f"`{name}` gets tensors of sizes read from a tensor, and branches on sizes"
            self.found(HazardKind.DATA_BRANCH, node, message, ERROR)

    def _reads(self, node: ast.Call, level: HazardLevel = WARNING) -> None:
        text = ast.unparse(node)
        self.found(HazardKind.HOST_READ, node, f"`{text}` reads a tensor's values on the host", level)

    def _shape(self, node: ast.Call, level: HazardLevel = WARNING) -> None:
        message = f"`{ast.unparse(node)}` has a shape that depends on values"
        self.found(HazardKind.DATA_SHAPE, node, message, level)

    def _torch(self, path: str, node: ast.Call, kinds: list[Kind], keywords: dict[str, Kind]) -> Kind:
        name = path.rpartition(".")[2]
        if path.startswith(PLAIN_MODULES):
            return Kind.PLAIN
        if name in PLAIN_TORCH or (name in PLAIN_METHODS and not HAS_UNKNOWN_SIZE & set(kinds)):
            return Kind.PLAIN
        if name[:1].isupper():
            return Kind.UNKNOWN
        receiver = kinds[0] if kinds else keywords.get("input", Kind.UNKNOWN)
        if name in BY_SIZE:
            self._hands_over(path, node, kinds)
        if name in FACTORIES:
            given = join([*kinds, *(kind for key, kind in keywords.items() if key in ("size", "end", "start"))])
            if given in IS_TENSOR and name != "full":
                self._reads(node)
            sized = given in IS_TENSOR | {Kind.READ}
            return Kind.RAGGED if sized else _of_dtype(node, Kind.TENSOR)
        return self._operation(name, node, receiver, kinds[1:], kinds, keywords)

    def _method(self, func: ast.Attribute, node: ast.Call, kinds: list[Kind], keywords: dict[str, Kind]) -> Kind:
        name, kind = func.attr, self.eval(func.value)
        no_arguments = not node.args and not node.keywords
        if name in READS and no_arguments and kind not in (Kind.PLAIN, Kind.READ):
            # The list of a tensor of unknown length has an unknown length: nothing can be made of that. And of a truth value
            # nothing is made but a branch, here or in what it's passed to.
            breaks = (name == "tolist" and kind in HAS_UNKNOWN_SIZE) or _is_truth(func.value)
            self._reads(node, ERROR if breaks else WARNING)
            return Kind.READ
        if name in COPIES and no_arguments and kind in IS_TENSOR | {Kind.UNKNOWN}:
            self.found(HazardKind.HOST_READ, node, f"`{ast.unparse(node)}` copies a tensor to the host", NOTE)
            return kind
        if name in ("append", "extend", "insert") and isinstance(func.value, ast.Name):
            added = join(kinds)
            self.names[func.value.id] = join((kind, many(added) if added is not Kind.PLAIN else added))
            return Kind.PLAIN
        if kind is Kind.READ:
            return Kind.READ
        if kind in (Kind.PLAIN, Kind.TENSORS, Kind.RAGGEDS):
            return Kind.UNKNOWN
        if name in NOT_TENSORS or name.startswith("get_"):
            return Kind.UNKNOWN  # Annotated as a tensor, and none.
        if kind in IS_TENSOR and name in PLAIN_METHODS:
            sized = kind in HAS_UNKNOWN_SIZE and (name == "numel" or (name == "size" and _is_zero(node.args)))
            return Kind.READ if sized else Kind.PLAIN
        if kind in IS_TENSOR or name in OF_TENSORS | DATA_SHAPES | {"repeat_interleave"} or Kind.READ in kinds:
            return self._operation(name, node, kind, kinds, kinds, keywords)
        return Kind.UNKNOWN

    def _operation(
        self, name: str, node: ast.Call, kind: Kind, rest: list[Kind], kinds: list[Kind], keywords: dict[str, Kind]
    ) -> Kind:
        """A function of torch on its first argument, or the method of the same name. `rest` are the other arguments."""
        given = {*kinds, kind, *keywords.values()}
        is_ragged = bool({Kind.RAGGED, Kind.RAGGEDS} & given) or (Kind.PICKED in given and name in MOVE_ROWS)
        if name in DATA_SHAPES or (name == "where" and len(node.args) == 1 and not node.keywords):
            self._shape(node)
            return Kind.RAGGEDS if name == "where" or _is_tuple(node) else Kind.RAGGED
        if name == "repeat_interleave":
            repeats = keywords.get("repeats", rest[0] if rest else Kind.PLAIN)
            if repeats in IS_TENSOR and "output_size" not in keywords:
                self._shape(node)
            return Kind.RAGGED if repeats in IS_TENSOR | {Kind.READ} or is_ragged else Kind.TENSOR
        if name == "one_hot" and not rest and "num_classes" not in keywords:
            self._shape(node, ERROR)
            return Kind.RAGGED
        if name.removesuffix("_") in KEEP_SIZE:
            return kind
        if name in DATA_BOOLS:
            self.branch(node, "a Python value")
            return Kind.PLAIN
        if name in SPLITS:
            return Kind.RAGGEDS if is_ragged or Kind.READ in given else Kind.TENSORS
        if name in MANY or (name in ("max", "min") and _has_dim(node, rest, keywords)):
            return Kind.RAGGEDS if is_ragged else Kind.TENSORS
        if name in SIZED and Kind.READ in {*rest, *keywords.values()}:
            return Kind.RAGGED
        if is_ragged and name not in REDUCTIONS:
            return Kind.RAGGED
        if Kind.PICKED in given and name not in REDUCTIONS:
            return Kind.PICKED
        if name in COMPARISONS or (name in SHAPE_ONLY and kind is Kind.MASK):
            return _of_dtype(node, Kind.MASK)
        return _of_dtype(node, Kind.TENSOR)


def _is_truth(node: ast.expr) -> bool:
    """Whether an expression is `x.any()`, `torch.all(x)` or the like."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in BOOLEAN_READS


def _has_dim(node: ast.Call, rest: list[Kind], keywords: dict[str, Kind]) -> bool:
    return "dim" in keywords or bool(rest and rest[0] not in IS_TENSOR)


def _is_tuple(node: ast.Call) -> bool:
    """Whether `nonzero` is asked for a tuple."""
    return any(k.arg == "as_tuple" and isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords)


def _is_zero(arguments: list[ast.expr]) -> bool:
    match arguments:
        case [ast.Constant(value=0)]:
            return True
    return False


def _of_dtype(node: ast.Call, kind: Kind) -> Kind:
    """A mask where the call names `torch.bool`, a tensor of other values where it names another type."""
    given = [keyword.value for keyword in node.keywords if keyword.arg == "dtype"]
    given += [argument for argument in node.args if isinstance(argument, ast.Attribute)]
    types = [name.removeprefix("torch.") for each in given if (name := dotted(each)).startswith("torch.")]
    if not types:
        return kind
    return Kind.MASK if types[0] == "bool" else Kind.TENSOR


def _passed_in(node: ast.Call) -> HazardLevel:
    """A helper handed `kwargs={"key": value}` computes only where that value is None."""
    for keyword in node.keywords:
        if keyword.arg == "kwargs" and isinstance(keyword.value, ast.Dict):
            return NOTE
    return ERROR
