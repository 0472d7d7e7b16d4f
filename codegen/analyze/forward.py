"""A forward as it is declared: parameters with annotations and defaults, decorators, what it returns."""

from __future__ import annotations

import ast

from ..facts import Parameter, ParameterKind
from ..source import SourceFile


def parameters(file: SourceFile, node: ast.FunctionDef) -> tuple[Parameter, ...]:
    """Every parameter but `self`, in the order of the signature."""
    declared = node.args

    def parameter(arg: ast.arg, kind: ParameterKind, default: ast.expr | None = None) -> Parameter:
        return Parameter(
            name=arg.arg,
            kind=kind,
            annotation=file.segment(arg.annotation) if arg.annotation is not None else None,
            default=file.segment(default) if default is not None else None,
        )

    positional = [*declared.posonlyargs, *declared.args]
    defaults = [None] * (len(positional) - len(declared.defaults)) + declared.defaults
    kinds = [ParameterKind.POSITIONAL_ONLY] * len(declared.posonlyargs) + [ParameterKind.POSITIONAL] * len(
        declared.args
    )
    found = [parameter(*each) for each in zip(positional, kinds, defaults, strict=True)]
    if declared.vararg is not None:
        found.append(parameter(declared.vararg, ParameterKind.VAR_POSITIONAL))
    for arg, default in zip(declared.kwonlyargs, declared.kw_defaults, strict=True):
        found.append(parameter(arg, ParameterKind.KEYWORD_ONLY, default))
    if declared.kwarg is not None:
        found.append(parameter(declared.kwarg, ParameterKind.VAR_KEYWORD))
    return tuple(found[1:])


def decorators(file: SourceFile, node: ast.FunctionDef) -> tuple[str, ...]:
    return tuple(file.segment(decorator) for decorator in node.decorator_list)


def returns(file: SourceFile, node: ast.FunctionDef) -> str | None:
    return file.segment(node.returns) if node.returns is not None else None
