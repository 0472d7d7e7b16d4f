"""One model's package, from the cache where it was built from the same before. The build itself is imported when needed."""

from __future__ import annotations

from .cache import cache_of
from .package import Failure, Options, Package, runtime_files
from .source import Source


def generate(model: str, source: Source, options: Options = Options()) -> Package:  # noqa: B008 (it is frozen)
    """As `codegen.build.generate`.

    Raises:
        VgenError: The source can't be read, or has nothing to compile.
    """
    if source.local is not None:
        # Its files are few, and where each lies is no part of a key.
        from . import build

        return build.generate(model, source, options)
    cache = cache_of(source)
    key = cache.key(model, options) if cache is not None else None
    found = cache.load(key, runtime_files(options)) if cache is not None and key is not None else None
    if isinstance(found, Failure):
        raise found.error()
    if found is not None:
        return found
    from . import build

    fresh = source.fresh()
    package = build.generate(model, fresh, options)
    if cache is not None:
        cache.keep(model, options, fresh.read, package)
    return package
