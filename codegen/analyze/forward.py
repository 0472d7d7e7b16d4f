"""A forward as it is declared: parameters with annotations and defaults, decorators, what it returns."""

from __future__ import annotations

import libcst as cst

from ..facts import Parameter, ParameterKind
from .trees import Tree


def parameters(tree: Tree) -> tuple[Parameter, ...]:
    """Every parameter but `self`, in the order of the signature."""
    declared = tree.method.params

    def parameter(param: cst.Param, kind: ParameterKind) -> Parameter:
        return Parameter(
            name=param.name.value,
            kind=kind,
            annotation=tree.code(param.annotation.annotation) if param.annotation else None,
            default=tree.code(param.default) if param.default else None,
        )

    found = [parameter(param, ParameterKind.POSITIONAL_ONLY) for param in declared.posonly_params]
    found += [parameter(param, ParameterKind.POSITIONAL) for param in declared.params]
    if isinstance(declared.star_arg, cst.Param):
        found.append(parameter(declared.star_arg, ParameterKind.VAR_POSITIONAL))
    found += [parameter(param, ParameterKind.KEYWORD_ONLY) for param in declared.kwonly_params]
    if declared.star_kwarg is not None:
        found.append(parameter(declared.star_kwarg, ParameterKind.VAR_KEYWORD))
    return tuple(found[1:])


def decorators(tree: Tree) -> tuple[str, ...]:
    return tuple(tree.code(decorator.decorator) for decorator in tree.method.decorators)


def returns(tree: Tree) -> str | None:
    returned = tree.method.returns
    return tree.code(returned.annotation) if returned else None
