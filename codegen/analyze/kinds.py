"""What an expression of a forward is, as far as its text says: a tensor, a number read from one, or neither.

Light-weight on purpose. What isn't clear is UNKNOWN, and UNKNOWN is never reported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from enum import Enum


class Kind(Enum):
    """PLAIN: a Python value known to be none of the others. In the order in which a mixture is named, the last first."""

    PLAIN = 0
    UNKNOWN = 1
    READ = 2
    """A number, or nested lists of numbers, read from a tensor. In a full graph it is a symbol without a value."""
    TENSORS = 3
    MASK = 4
    """A tensor of booleans."""
    TENSOR = 5
    PICKED = 6
    """A tensor whose number of rows depends on values: as a batch it goes through attention."""
    RAGGEDS = 7
    RAGGED = 8
    """A tensor with a size that depends on values."""


IS_TENSOR = frozenset({Kind.TENSOR, Kind.MASK, Kind.PICKED, Kind.RAGGED})
HAS_UNKNOWN_SIZE = frozenset({Kind.PICKED, Kind.RAGGED})

CACHES = frozenset({"past_key_values", "cache_params", "past_key_value", "cache"})
"""The names that Transformers gave the argument by which a decoder keeps what it has seen, from release to release."""
CHANGING = frozenset({"append", "extend", "insert", "setdefault"})
"""Methods of lists and dicts that change them, and that nothing else has which a module keeps."""
READS = frozenset({"item", "tolist"})
COPIES = frozenset({"cpu", "numpy"})
DATA_SHAPES = frozenset({"nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"})
DATA_BOOLS = frozenset({"equal", "allclose", "is_nonzero"})
"""Give a Python bool."""
BY_SIZE = frozenset({"scaled_dot_product_attention", "pad_sequence"})
"""Functions of torch that branch on sizes."""
FACTORIES = frozenset({"arange", "zeros", "ones", "full", "empty", "rand", "randn", "linspace", "eye"})
SIZED = frozenset({"view", "reshape", "expand", "repeat", "narrow", "interpolate", "pad", "tile"})
COMPARISONS = frozenset(
    {"eq", "ne", "gt", "ge", "lt", "le", "isnan", "isinf", "isfinite", "isin", "bool", "greater"}
    | {"logical_and", "logical_or", "logical_not", "logical_xor"}
)
SPLITS = frozenset({"split", "split_with_sizes", "tensor_split"})
MANY = frozenset({"chunk", "unbind", "meshgrid", "topk", "sort", "broadcast_tensors", "aminmax"})
REDUCTIONS = frozenset({"sum", "max", "min", "mean", "any", "all", "prod", "argmax", "argmin"})
SHAPE_ONLY = frozenset(
    {"view", "reshape", "expand", "expand_as", "unsqueeze", "squeeze", "flatten", "transpose", "permute", "repeat"}
    | {"contiguous", "clone", "detach", "to", "roll", "flip", "T", "mT"}
)
"""Leave the values, so a mask stays one."""
MOVE_ROWS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "unsqueeze", "transpose", "permute", "cat", "stack", "T", "mT"}
)
"""May make another dimension of the first."""
KEEP_SIZE = frozenset(
    {"masked_scatter", "masked_fill", "scatter", "scatter_add", "index_copy", "index_add", "index_fill", "index_put"}
)
"""Leave the size, whatever they are given (with a `_` at the end as well)."""
BOOLEAN_READS = frozenset({"any", "all"})
OF_TENSORS = COMPARISONS | {
    *("abs", "argmax", "argmin", "clamp", "contiguous", "cumsum", "detach", "diff", "expand", "expand_as", "flatten"),
    *("masked_fill", "masked_scatter", "mean", "new_zeros", "new_ones", "permute", "prod", "softmax", "squeeze"),
    *("transpose", "unsqueeze", "view", "any", "all", "sum", "reshape", "long", "float", "half", "log_softmax"),
}
"""Methods that only tensors have, or that hardly anything else has in a forward: the receiver needn't be known."""
PLAIN_METHODS = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "is_contiguous", "data_ptr", "type"}
    | {"is_floating_point", "is_complex", "get_device", "storage_offset", "untyped_storage"}
)
PLAIN_TORCH = frozenset(
    {"finfo", "iinfo", "device", "Size", "is_tensor", "is_floating_point", "is_complex", "is_grad_enabled", "no_grad"}
    | {"is_autocast_enabled", "get_autocast_dtype", "get_default_dtype", "autocast", "set_grad_enabled", "dtype"}
    | {"enable_grad", "inference_mode", "manual_seed", "Generator", "promote_types", "get_autocast_gpu_dtype"}
)
PLAIN_MODULES = (
    *("torch.cuda.", "torch.backends.", "torch.jit.", "torch.compiler.", "torch.distributed.", "torch.version."),
    *("torch._dynamo.", "torch.autograd.", "torch.utils.", "torch.amp.", "torch.xpu."),
)
FUNCTIONAL = ("torch.", "F.", "nn.functional.")

_LISTS = {"tuple", "list", "Tuple", "List", "Sequence", "Iterable"}


def join(kinds: Iterable[Kind]) -> Kind:
    """What an operation on several values gives, or a name that had one of several values."""
    return max(kinds, key=lambda kind: kind.value, default=Kind.PLAIN)


def many(kind: Kind) -> Kind:
    """A list of values of a kind."""
    match kind:
        case Kind.TENSOR | Kind.MASK | Kind.TENSORS:
            return Kind.TENSORS
        case Kind.PICKED | Kind.RAGGED | Kind.RAGGEDS:
            return Kind.RAGGEDS
        case Kind.READ:
            return Kind.READ
        case Kind.PLAIN | Kind.UNKNOWN:
            return Kind.UNKNOWN


def element(kind: Kind) -> Kind:
    """One entry of a value of a kind."""
    match kind:
        case Kind.TENSORS:
            return Kind.TENSOR
        case Kind.RAGGEDS:
            return Kind.RAGGED
        case Kind.PLAIN:
            return Kind.UNKNOWN
        case Kind.TENSOR | Kind.MASK | Kind.PICKED | Kind.RAGGED | Kind.READ | Kind.UNKNOWN:
            return kind


def annotated(annotation: ast.expr | None) -> Kind:
    """What an annotation says: a tensor, several, or nothing certain. That None is allowed doesn't matter."""
    match annotation:
        case ast.Constant(value=str(text)):
            try:
                return annotated(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return Kind.UNKNOWN
        case ast.Attribute(attr=name) | ast.Name(id=name):
            if name == "BoolTensor":
                return Kind.MASK
            return Kind.TENSOR if name.endswith("Tensor") else Kind.UNKNOWN
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _either([left, right])
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return annotated(inner)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=elements)):
            return _either(elements)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _LISTS:
            elements = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            kinds = {annotated(each) for each in elements if not _is(each, ...)}
            return Kind.TENSORS if kinds and kinds <= IS_TENSOR else Kind.UNKNOWN
    return Kind.UNKNOWN


def _either(parts: list[ast.expr]) -> Kind:
    kinds = {annotated(part) for part in parts if not _is(part, None)}
    if len(kinds) == 1:
        return kinds.pop()
    return Kind.TENSOR if kinds and kinds <= IS_TENSOR else Kind.UNKNOWN


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def dotted(node: ast.expr) -> str:
    """`a.b.c` as text; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
