# SPDX-License-Identifier: Apache-2.0
"""Functions with other globals."""

import types
from collections.abc import Callable
from typing import Any


def with_globals(function: Any, scope: dict[str, Any]) -> Callable[..., Any]:
    """The same function, which looks up global names in a scope of its own. The function itself stays as it is.

    Args:
        function: One that is written in Python.
        scope: All that it refers to, by name.
    """
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
