# SPDX-License-Identifier: Apache-2.0
"""Regions: classes whose forward runs compiled, and what happens when it can't."""

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, Self

import torch

from .caches import make_contiguous
from .compiler import COMPILE_ERRORS, CompiledCore
from .contract import Contract, Violation
from .counting import record_fallback, tally
from .rope import rope_reason
from .settings import CapturesOptions, Options

# More variants than any use of a model needs: beyond them, an argument that should be dynamic isn't.
MAX_VARIANTS = 64


class Role(Enum):
    """What a region is in its model. EITHER: each instance's config says it, by `is_decoder`."""

    DECODER = "decoder"
    ENCODER = "encoder"
    EITHER = "either"


class _Variants:
    """What one instance compiled, by variant. A copy of the instance starts without: it compiles for itself."""

    def __init__(self) -> None:
        self.cores: dict[Hashable, CompiledCore] = {}
        self.failures: dict[Hashable, str] = {}
        # What is derived from the class and the config, once.
        self.output_flags: tuple[str, ...] | None = None
        self.rope: str | None = None
        self.is_rope_known = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class Compiled(CapturesOptions):
    """Mixin of classes that have a `region`: the state of one instance.

    A class has `region`, a class attribute; `core`, a plain method that takes keyword arguments; and a `forward` that
    asks `region.active(self)` and then calls `region(self, ...)` with the core's arguments by name.
    """

    region: "Region"
    core: Callable[..., Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        self.__dict__["_vgen_variants"] = _Variants()
        return self


class Region:
    """How instances of a class run compiled. A class attribute, without state of an instance.

    Args:
        tag: The compile tag, `model.role`: names the region in logs and counters. Where the role is the instance's, the
            model alone: the role is added for each instance.
        role: What the region is in its model.
        contract: What the core accepts.
        text: It encodes text. Encoders of images and audio need `compile_mm_encoder` of the options, others `compile`.
        packed_attention: The core calls `packed_attention`, so it compiles with sdpa and flash attention only.
        rotary: The core has rotary embeddings, which some configs rule out: see `rope_reason`.
        records_outputs: The core records hidden states or attentions by Transformers' hooks.
        per_instance: Each instance compiles for itself. Otherwise the instances of a class (layers) share what they
            compile.
    """

    def __init__(
        self,
        tag: str,
        *,
        role: Role,
        contract: Contract,
        text: bool = False,
        packed_attention: bool = False,
        rotary: bool = False,
        records_outputs: bool = False,
        per_instance: bool = True,
    ) -> None:
        self.tag = tag
        self.role = role
        self.contract = contract
        self.on_request = role is Role.ENCODER and not text
        self.packed_attention = packed_attention
        self.rotary = rotary
        self.records_outputs = records_outputs
        self.per_instance = per_instance
        self._shared: dict[tuple[type, Options], _Variants] = {}

    def tag_of(self, module: Any) -> str:
        """The compile tag of one instance."""
        if self.role is not Role.EITHER:
            return self.tag
        role = Role.DECODER if getattr(_config(module), "is_decoder", False) else Role.ENCODER
        return f"{self.tag}.{role.value}"

    def active(self, module: Any) -> bool:
        """Whether a forward of this module is to run compiled. Where it isn't, upstream's forward must run.

        Not when the options have it off, and not in a trace of somebody else's. A reason that lies in the model or the
        surroundings is logged once and counted as a fallback.
        """
        if torch.compiler.is_compiling():
            # Dynamo traces this very line: logging or counting here would break its graph.
            return False
        options: Options = module.vgen_options
        if not options.compile or (self.on_request and not options.compile_mm_encoder):
            return False
        reason = self._ruled_out(module)
        if reason is None:
            return True
        tally(self.tag_of(module)).calls += 1
        record_fallback(self.tag_of(module), reason)
        return False

    def __call__(self, module: Any, **arguments: Any) -> Any:
        """Run the core of a module compiled, or uncompiled where that isn't possible.

        A call that the contract doesn't describe, or whose variant can't be compiled, runs uncompiled; the reason is
        logged once and counted. Errors of running compiled code propagate.

        Args:
            module: An instance of `Compiled` for which `active` was true.
            **arguments: The core's arguments by name.
        """
        tag = self.tag_of(module)
        count = tally(tag)
        count.calls += 1
        if self.records_outputs and not module.__dict__.get("_output_capturing_hooks_installed"):
            _install_output_hooks(module, arguments)
        if self.per_instance:
            make_contiguous(arguments)
        variant = self.contract.variant(module, arguments)
        if isinstance(variant, Violation):
            return self._uncompiled(module, arguments, variant.reason)
        variants = self._variants(module)
        failure = variants.failures.get(variant)
        if failure is not None:
            return self._uncompiled(module, arguments, failure)
        core = variants.cores.get(variant)
        if core is None:
            if len(variants.cores) >= MAX_VARIANTS:
                return self._uncompiled(module, arguments, f"there are more than {MAX_VARIANTS} variants already")
            self.contract.mark_static(arguments)
            options: Options = module.vgen_options
            core = CompiledCore(
                type(module).core,
                tag=tag,
                options=options,
                is_shared=not self.per_instance,
                is_padded=self.on_request,
            )
            core = variants.cores.setdefault(variant, core)
            count.variants += 1
        graphs = core.backend.graphs
        try:
            return core(module, arguments)
        except COMPILE_ERRORS as error:
            failure = _one_line(error)
        finally:
            if core.backend.graphs != graphs:
                count.compiles += 1
        # Outside of the handler, so that an error of upstream's comes without Dynamo's as its context. If there is
        # one, it may be what stopped the compiler: the variant is remembered as impossible only if this succeeds.
        result = module.core(**arguments)
        variants.failures[variant] = failure
        record_fallback(tag, failure)
        return result

    def _uncompiled(self, module: Any, arguments: dict[str, Any], reason: str) -> Any:
        record_fallback(self.tag_of(module), reason)
        return module.core(**arguments)

    def _variants(self, module: Any) -> _Variants:
        if self.per_instance:
            own: _Variants = module.__dict__["_vgen_variants"]
            return own
        return self._shared.setdefault((type(module), module.vgen_options), _Variants())

    def _ruled_out(self, module: Any) -> str | None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return "it runs inside a torch.jit trace"
        if torch._C._len_torch_dispatch_stack():
            return "it runs inside a TorchDispatchMode"
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "it runs inside a torch.func transform"
        if self.packed_attention:
            implementation = getattr(_config(module), "_attn_implementation", None) or "eager"
            if implementation != "sdpa" and "flash" not in implementation:
                return f'attention implementation "{implementation}" attends segment by segment'
        if self.rotary:
            own: _Variants = module.__dict__["_vgen_variants"]
            if not own.is_rope_known:
                # Once: the rotary embeddings took their type from the config when they were constructed.
                own.rope = rope_reason(module.config)
                own.is_rope_known = True
            return own.rope
        return None


def _config(module: Any) -> Any:
    """The config of a region's module: a layer has none of its own, but its attention has."""
    config = getattr(module, "config", None)
    if config is not None:
        return config
    return next((each.config for each in module.modules() if getattr(each, "config", None) is not None), None)


def _install_output_hooks(module: Any, arguments: dict[str, Any]) -> None:
    """Install Transformers' recording hooks before a graph needs them: that takes a lock, which no graph can hold.

    `capture_outputs` (transformers/utils/output_capturing.py) looks at the same arguments and config attributes.
    """
    own: _Variants = module.__dict__["_vgen_variants"]
    if own.output_flags is None:
        records = getattr(module, "_can_record_outputs", None) or {}
        own.output_flags = tuple({f"output_{name}": None for name in (*records, "attentions")})
    config = module.config
    if any(arguments[flag] if flag in arguments else getattr(config, flag, False) for flag in own.output_flags):
        from transformers.utils.output_capturing import maybe_install_capturing_hooks

        maybe_install_capturing_hooks(module)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return f"it can't be compiled: {type(error).__name__}: {next(filter(None, lines), 'no message')}"
