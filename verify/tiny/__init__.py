"""Tiny configs from the config classes themselves.

`fields` says what a field means by its name, `tree` reads a config and its sub-configs, `sizes` decides on sizes for the
whole tree at once, so that what was equal stays equal, `relations` keeps what a config's fields have to satisfy among
themselves, and `shrink` puts the new configs together.
"""

from .shrink import ATTEMPTS, CannotShrinkError, set_undeclared, tiny_config

__all__ = ["ATTEMPTS", "CannotShrinkError", "set_undeclared", "tiny_config"]
