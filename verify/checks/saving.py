"""Checkpoints go from upstream's class to the generated one and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from .context import Context, NotApplicableError, by_upstream

_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def there_and_back(context: Context) -> str | None:
    """Upstream's checkpoint loads into the generated class, and what that saves is the same file and loads into upstream's.

    Raises:
        NotApplicableError: Upstream can't save its model or load it.
    """
    upstream, generated = context.pair.upstream, context.pair.generated
    with tempfile.TemporaryDirectory(prefix="vgen-verify-") as folder:
        theirs, again, ours = (Path(folder) / name for name in ("theirs", "again", "ours"))
        by_upstream(lambda model: model.save_pretrained(theirs), upstream)
        reloaded, wanted = by_upstream(
            lambda model: type(model).from_pretrained(theirs, output_loading_info=True), upstream
        )
        if not _equal(reloaded, upstream):
            raise NotApplicableError("upstream: its own checkpoint doesn't give its weights back")
        with context.pair.runtime.options(backend=generated.vgen_options.backend, compile_mm_encoder=False):
            loaded, info = context.cls.from_pretrained(theirs, output_loading_info=True)
        for problem in _PROBLEMS:
            if info[problem] != wanted[problem]:
                return f"from_pretrained has other {problem} than upstream: {list(info[problem])[:3]}"
        if not _equal(loaded, upstream):
            return "from_pretrained gives other weights than upstream"
        loaded.save_pretrained(ours)
        reloaded.save_pretrained(again)
        if (ours / "config.json").read_bytes() != (again / "config.json").read_bytes():
            return "save_pretrained writes another config than upstream"
        back, info = type(upstream).from_pretrained(ours, output_loading_info=True)
        for problem in _PROBLEMS:
            if info[problem] != wanted[problem]:
                return f"upstream's from_pretrained has {problem} with its checkpoint: {list(info[problem])[:3]}"
        if not _equal(back, upstream):
            return "upstream loads other weights from its checkpoint"
    return None


def _equal(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(
        torch.equal(ours[name].to(theirs[name]), theirs[name]) or bool((theirs[name] != theirs[name]).any())
        for name in ours
    )
