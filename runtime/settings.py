# SPDX-License-Identifier: Apache-2.0
"""How generated models run: captured when a model is constructed, and fixed for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Self, TypedDict, Unpack

import torch
from torch.fx import GraphModule

from .errors import OptionsError

# What `torch.compile` takes: a registered name, or a callable from a graph and its example inputs to a callable.
Backend = str | Callable[[GraphModule, list[torch.Tensor]], Callable[..., Any]]

# Known without importing Dynamo, which takes a second.
_COMMON_BACKENDS = ("inductor", "eager", "aot_eager")


def _require_backend(name: str) -> None:
    if name in _COMMON_BACKENDS:
        return
    known = torch._dynamo.list_backends(None)
    if name not in known:
        raise OptionsError(
            f"There is no torch.compile backend {name!r}: this PyTorch has {', '.join(sorted(known))}. "
            f"Pass one of these, or a callable."
        )


def _require_mode(mode: str, backend: Backend) -> None:
    if backend != "inductor":
        raise OptionsError(f'The option mode={mode!r} is Inductor\'s: leave it out, or pass backend="inductor".')
    import torch._inductor

    known = torch._inductor.list_mode_options()
    if mode not in known:
        raise OptionsError(f"There is no Inductor mode {mode!r}: this PyTorch has {', '.join(sorted(known))}.")


class OptionChanges(TypedDict, total=False):
    """The keyword arguments of `options`: the fields of `Options`."""

    compile: bool
    compile_mm_encoder: bool
    backend: Backend
    mode: str | None
    cuda_graphs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a generated model runs.

    Attributes:
        compile: Compile decoders. Off, everything runs upstream's forward.
        compile_mm_encoder: Also compile the encoders of multimodal models.
        backend: A name that `torch._dynamo.list_backends(None)` lists, or a callable.
        mode: An Inductor mode that `torch._inductor.list_mode_options()` lists; only with `backend="inductor"`.
        cuda_graphs: On CUDA, outside of training, replay what is compiled from CUDA graphs: for each size that comes
            again, and for padded sizes of small packed images.

    Raises:
        OptionsError: A value that isn't one of these.
    """

    compile: bool = True
    compile_mm_encoder: bool = False
    backend: Backend = "inductor"
    mode: str | None = None
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("compile", "compile_mm_encoder", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise OptionsError(f"The option {name} is True or False, not {getattr(self, name)!r}.")
        if isinstance(self.backend, str):
            _require_backend(self.backend)
        elif not callable(self.backend):
            raise OptionsError(f"The option backend is a backend's name or a callable, not {self.backend!r}.")
        if self.mode is not None:
            _require_mode(self.mode, self.backend)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copied model shares the backend: copying a callable would make a backend of its own.
        return self


_current: ContextVar[Options] = ContextVar("vgen_options", default=Options())  # noqa: B039 (it is frozen)


def current_options() -> Options:
    """The options that a generated model constructed now would capture."""
    return _current.get()


@contextmanager
def options(**changes: Unpack[OptionChanges]) -> Iterator[Options]:
    """Construct generated models with other options.

        with options(compile_mm_encoder=True):
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path)

    Options are captured at construction, so a model keeps them after the block. Blocks nest.

    Raises:
        OptionsError: An unknown option, or a value that isn't allowed.
    """
    unknown = sorted(set(changes) - OptionChanges.__annotations__.keys())
    if unknown:
        known = ", ".join(OptionChanges.__annotations__)
        raise OptionsError(f"There is no option {', '.join(unknown)}: the options are {known}.")
    token = _current.set(replace(current_options(), **changes))
    try:
        yield current_options()
    finally:
        _current.reset(token)


class CapturesOptions:
    """Mixin that captures the options of the moment at construction.

    In `__new__`, because a generated `__init__` runs in place of upstream's and skips those of the mixins. Copying and
    unpickling come through here as well, and then put back the state of the original.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        new = super().__new__
        self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        # Not by assignment: `nn.Module.__init__`, which sets up assignment, hasn't run.
        self.__dict__["_vgen_options"] = current_options()
        return self

    @property
    def vgen_options(self) -> Options:
        """The options that this module was constructed with."""
        captured = self.__dict__["_vgen_options"]
        assert isinstance(captured, Options)
        return captured
