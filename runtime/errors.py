# SPDX-License-Identifier: Apache-2.0
"""The errors that generated packages and the loader raise.

Every message is one paragraph: what is wrong, where, and what to do about it.
"""


class VgenRuntimeError(Exception):
    """Base of every error that vgen's runtime raises itself. Upstream's errors pass through unchanged."""


class OptionsError(VgenRuntimeError, ValueError):
    """An option has a value that the runtime doesn't know."""


class LockError(VgenRuntimeError, ImportError):
    """A generated package's `vgen.lock` is missing or can't be read."""


class UpstreamChangedError(VgenRuntimeError, ImportError):
    """The installed Transformers differs from the one that a generated package was built from."""


class EncoderNotFoundError(VgenRuntimeError, ValueError):
    """`compile_mm_encoder=True` was asked of a model that has no compiled encoder."""


class ModelNotBuiltError(VgenRuntimeError, ImportError):
    """No generated package has the class that a checkpoint needs."""


class ArchitectureError(VgenRuntimeError, ValueError):
    """A checkpoint's config doesn't say which Transformers class it is for."""


class ArtifactError(VgenRuntimeError):
    """An artifact is missing where one is required, or can't be read or loaded."""
