"""Tiny configs from the config classes themselves.

`fields` says what a field means by its name, `tree` reads a config and its sub-configs, `sizes` decides on sizes for the
whole tree at once, so that what was equal stays equal, `values` and `depths` on what a field and a stack of layers become,
`relations` keeps what a config's fields have to satisfy among themselves, `shrink` puts the new configs together, and `told`
adds what a model missed.
"""

from .shrink import ATTEMPTS, CannotShrinkError, tiny_config
from .told import set_missed

__all__ = ["ATTEMPTS", "CannotShrinkError", "set_missed", "tiny_config"]
