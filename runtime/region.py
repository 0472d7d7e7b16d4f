# SPDX-License-Identifier: Apache-2.0
"""Regions: classes whose forward runs compiled, and what happens when it can't."""

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, Self

import torch

from .artifact import Call, Form
from .caches import make_contiguous, of_layer, own_index
from .causality import graph_only_masks
from .compiler import COMPILE_ERRORS, CompiledCore, has_cuda_graphs
from .contract import Contract, Violation
from .counting import record_fallback, tally
from .cuda_graphs import GraphedCore
from .expert_loops import ExpertLoop
from .generation import widen_mask
from .held_states import kinds
from .limits import Limits
from .memos import Made, Memos
from .positions import are_plain, made_by_looking, made_without_looking
from .preparing import prepare
from .prologue import run
from .reasons import BIDIRECTIONAL, one_line, pinned
from .recording import Recording, unrecorded
from .ruled_out import config_of, looks_both_ways, ruled_out
from .settings import CapturesOptions, Options
from .size_buffers import SizeReader, is_beyond_exact
from .state import Held, outline, put_back_buffers
from .truths import is_told, told
from .variants import MAX_RETRIES, MAX_VARIANTS, Variants, are_first_floats, likeness, own_variants
from .views import without_bases
from .weights import align_rows


class Role(Enum):
    """What a region is in its model. EITHER: each instance's config says it, by `is_decoder`."""

    DECODER = "decoder"
    ENCODER = "encoder"
    EITHER = "either"


class Compiled(CapturesOptions):
    """Mixin of classes that have a `region`: the state of one instance.

    A class has `region`, a class attribute; `core`, a plain method that takes keyword arguments; and a `forward` that
    asks `region.active(self)` and then calls `region(self, ...)` with the core's arguments by name.
    """

    region: "Region"
    core: Callable[..., Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls, *args, **kwargs)
        self.__dict__["_vgen_variants"] = Variants()
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
        inner: The parts of the module whose own prologue calls are made in the region's.
        graph_only: Branches of upstream's code, `folder/file.py:first-last` each, that compute in a graph what eager computes in
            another way. A graph that takes one is refused.
        truths: Arguments that the core only asks whether they hold anything. Those that don't are None.
        plain_positions: Masks that the core makes are of its `position_ids`, (batch, sequence) each, or of ranges, and of no
            other positions: see `positions.are_plain`.
        text_positions: Likewise, of `position_ids[0]` where these are (4, batch, sequence).
        per_instance: Each instance compiles for itself. Otherwise the instances of a class (layers) share what they
            compile, those with weights of other shapes apart.
        only_in_training: In eval mode it is a part of another region, and never compiled alone.
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
        inner: tuple[str, ...] = (),
        graph_only: tuple[str, ...] = (),
        truths: tuple[str, ...] = (),
        plain_positions: bool = False,
        text_positions: bool = False,
        per_instance: bool = True,
        only_in_training: bool = False,
    ) -> None:
        self.tag = tag
        self.role = role
        self.contract = contract
        self.on_request = role is Role.ENCODER and not text
        # A cache counts in ints that are no part of a variant.
        self._has_fixed_ints = self.on_request and not contract.has_sizes
        self.packed_attention = packed_attention
        self.rotary = rotary
        self.records_outputs = records_outputs
        self.inner = inner
        self.graph_only = graph_only
        self.truths = truths
        self.plain_positions = plain_positions
        self.text_positions = text_positions
        self.per_instance = per_instance
        self.only_in_training = only_in_training
        self._shared: dict[tuple[type, Options], Variants] = {}

    def tag_of(self, module: Any) -> str:
        """The compile tag of one instance."""
        if self.role is not Role.EITHER:
            return self.tag
        role = Role.DECODER if getattr(config_of(module), "is_decoder", False) else Role.ENCODER
        return f"{self.tag}.{role.value}"

    def active(self, module: Any) -> bool:
        """Whether a forward of this module is to run compiled. Where it isn't, upstream's forward must run.

        Not when the options have it off, and not in a trace of somebody else's. A reason that lies in the model or the
        surroundings is logged once and counted as a fallback.
        """
        if torch.compiler.is_compiling():
            # Dynamo traces this very line: logging or counting here would break its graph.
            return False
        if self.only_in_training and not module.training:
            return False
        options: Options = module.vgen_options
        if not options.compile or (self.on_request and not options.compile_mm_encoder):
            return False
        reason = ruled_out(module, is_packed=self.packed_attention, is_rotary=self.rotary)
        if reason is None:
            return True
        tally(self.tag_of(module)).calls += 1
        record_fallback(self.tag_of(module), reason)
        return False

    def prologue(self, module: Any, kwargs: dict[str, Any], **reads: Any) -> dict[str, Any]:
        """The core's arguments that `module.prologue` computes from values: see `prologue.run`."""
        own = own_variants(module)
        return run(own.prologues, module, self.contract, reads, kwargs, self.inner)

    def __call__(self, module: Any, **arguments: Any) -> Any:
        """Run the core of a module compiled, or uncompiled where that isn't possible.

        A call that the contract doesn't describe, or whose variant can't be compiled, runs uncompiled; the reason is
        logged once and counted. Errors of running compiled code propagate; where a check of upstream's may have failed, which
        says less in a graph, the error is the one that upstream raises.

        Args:
            module: An instance of `Compiled` for which `active` was true.
            **arguments: The core's arguments by name.
        """
        if not self.truths and not is_told():
            return self._sized(module, arguments)
        with told(arguments, self.truths):
            return self._sized(module, arguments)

    def _sized(self, module: Any, arguments: dict[str, Any]) -> Any:
        own = own_variants(module)
        if own.sizes is None:
            own.sizes = SizeReader(module)
        if own.sizes.is_empty:
            return self._call(module, arguments, ())
        if own.sizes.read():
            own.forms.forget_recent()
        try:
            return self._call(module, arguments, (own.sizes.numbers, is_beyond_exact(arguments)))
        finally:
            own.sizes.forget()

    def _call(self, module: Any, arguments: dict[str, Any], sizes: tuple[Hashable, ...]) -> Any:
        """`sizes` is what else a variant is told apart by."""
        tag = self.tag_of(module)
        count = tally(tag)
        count.calls += 1
        without_bases(arguments)
        if self.per_instance:
            make_contiguous(arguments)
            if self.role is not Role.ENCODER and module.vgen_options.cuda_graphs:
                widen_mask(arguments)
        own: Variants = module.__dict__["_vgen_variants"]
        given = arguments
        if not self.per_instance:
            if not own.is_layer_known:
                own.layer = own_index(module)
                own.is_layer_known = True
            if own.layer is not None:
                arguments = of_layer(given, own.layer)
        is_plain = self._are_plain(module, arguments)
        place = self._place(own, arguments, sizes, is_plain=is_plain)
        if place is not None:
            replayed = own.graphs.again(place, arguments)
            if replayed is not None:
                count.loaded += replayed.is_loaded
                return replayed.output
        form = own.forms.recall(module, arguments, is_plain=is_plain)
        if form is not None:
            count.loaded += 1
            return self._run(module, own, form, arguments, place)
        recording = self._make_ready(module, own, arguments)
        is_hooked = recording.is_hooked
        call = self._described(module, own, arguments, sizes, is_hooked=is_hooked, is_plain=is_plain)
        if isinstance(call, str):
            return self._uncompiled(module, given, call)
        form = own.forms.find(module, call, arguments)
        if form is not None:
            count.loaded += 1
            return self._run(module, own, form, arguments, place)
        alike = None if self.per_instance else likeness(module, recording, arguments)
        variant: Hashable = (call.variant, is_hooked, alike)
        if self.per_instance:
            has_fixed_floats = True
        else:
            has_fixed_floats = are_first_floats(self._variants(module), variant, module)
            variant = (variant, has_fixed_floats)
        core = self._core(module, call, variant, arguments, is_hooked=is_hooked, has_fixed_floats=has_fixed_floats)
        if isinstance(core, str):
            return self._uncompiled(module, given, core)
        return self._tried(module, core, variant, arguments, given, place)

    def _place(self, own: Variants, arguments: dict[str, Any], sizes: Hashable, *, is_plain: bool) -> Hashable:
        """Of a call that may be replayed, all that tells it apart from others, but for what the modules say."""
        if not own.graphs.recorded or own.limits is None or own.made is None:
            return None
        return own.graphs.place(arguments, (is_plain, sizes, own.limits.sides(arguments), own.made.variant()))

    def _make_ready(self, module: Any, own: Variants, arguments: dict[str, Any]) -> Recording:
        """Do what no graph can do by itself, at the first call and where models inside begin to record."""
        if own.recording is None:
            own.recording = Recording(module)
            own.made = Made(module) if own.made is None else own.made
            prepare(module)
        if self.records_outputs:
            own.recording.install(arguments)
        return own.recording

    def _described(
        self,
        module: Any,
        own: Variants,
        arguments: dict[str, Any],
        sizes: tuple[Hashable, ...],
        *,
        is_hooked: bool,
        is_plain: bool,
    ) -> Call | str:
        """What tells a call apart from others, or why it can't run compiled."""
        assert own.recording is not None
        assert own.made is not None
        recorded = own.recording.reason() if is_hooked else None
        if recorded is not None:
            return recorded
        is_bidirectional = (
            not self.on_request and arguments.get("attention_mask", module) is None and looks_both_ways(module)
        )
        if is_bidirectional and not is_plain:
            return BIDIRECTIONAL
        described = self.contract.variant(module, arguments)
        if isinstance(described, Violation):
            return described.reason
        variants = self._variants(module)
        if variants.limits is None:
            variants.limits = Limits(module, config_of(module))
            variants.graph_only = (*self.graph_only, *graph_only_masks(module))
        graph_only = variants.graph_only
        if is_plain:
            graph_only = (*graph_only, *made_by_looking(), *(made_without_looking() if is_bidirectional else ()))
            sizes = ("plain positions", is_bidirectional, *sizes)
        return Call(
            tag=self.tag_of(module),
            contract=self.contract,
            limits=variants.limits,
            variant=(described, variants.limits.sides(arguments), *sizes, *own.made.variant()),
            is_padded=self.on_request,
            has_fixed_ints=self._has_fixed_ints,
            graph_only=graph_only,
            is_plain=is_plain,
            is_shared=not self.per_instance,
            layer=own.layer,
        )

    def _core(
        self,
        module: Any,
        call: Call,
        variant: Hashable,
        arguments: dict[str, Any],
        *,
        is_hooked: bool,
        has_fixed_floats: bool,
    ) -> CompiledCore | str:
        """The core of a variant, made where this is its first call, or why there is none for the call."""
        variants = self._variants(module)
        failure = variants.failures.get(variant)
        if failure is not None:
            return failure
        core = variants.cores.get(variant)
        own: Variants = module.__dict__["_vgen_variants"]
        if core is None or not own.is_aligned:
            self._align(module, own)
        if core is None:
            if len(variants.cores) >= MAX_VARIANTS:
                return f"there are more than {MAX_VARIANTS} variants already"
            self.contract.mark_static(arguments, call.limits.fixed(arguments))
            made = self._compiled(module, call, is_hooked=is_hooked, has_fixed_floats=has_fixed_floats)
            core = variants.cores.setdefault(variant, made)
            tally(call.tag).variants += 1
        elif core.pinned and not core.is_for(arguments):
            return pinned(core)
        return core

    def _tried(
        self,
        module: Any,
        core: CompiledCore,
        variant: Hashable,
        arguments: dict[str, Any],
        given: dict[str, Any],
        place: Hashable,
    ) -> Any:
        """Run a core; where it can't be captured, run the call uncompiled. `given` is what that is given."""
        tag = self.tag_of(module)
        own: Variants = module.__dict__["_vgen_variants"]
        variants = self._variants(module)
        graphs = core.backend.graphs
        held = None if graphs else Held(module)
        states = own.states_of(module).now()
        failed: RuntimeError | None = None
        watched = not graphs and torch.is_inference_mode_enabled()
        buffers = dict(module.named_buffers()) if watched else {}
        try:
            result = self._run(module, variants, core, arguments, place)
        except COMPILE_ERRORS as error:
            reason = one_line(error)
        except RuntimeError as error:
            if not core.backend.has_checks or isinstance(error, torch.OutOfMemoryError):
                raise
            failed = error
        else:
            for name in put_back_buffers(module, buffers):
                variants.failures[variant] = f"its graph puts a tensor of inference mode in place of its buffer {name}"
            return result
        finally:
            if core.backend.graphs != graphs:
                tally(tag).compiles += 1
                dynamic = self.contract.dynamic(arguments)
                core.pin(dynamic)
                if core.is_for_other_states(kinds(states, arguments, dynamic)):
                    tally(tag).variants += 1
                    tally(tag).held += 1
        # Outside of the handler, so that an error of upstream's comes without Dynamo's as its context. If there is
        # one, it may be what stopped the compiler: the variant is remembered as impossible only if this succeeds.
        if failed is not None:
            module.core(**given)
            raise failed
        if held is not None:
            held.put_back()
        before = outline(module)
        result = module.core(**given)
        if own.retries[variant] < MAX_RETRIES and outline(module) != before:
            # The call changed the modules, which may be what stopped the compiler: the next one tries again.
            own.retries[variant] += 1
            own.look_again()
            reason = f"{reason}; the call changed its modules, so the next one is tried again"
        else:
            variants.failures[variant] = reason
        record_fallback(tag, reason)
        return result

    def _are_plain(self, module: Any, arguments: dict[str, Any]) -> bool:
        if not self.plain_positions and not self.text_positions:
            return False
        return are_plain(module, arguments, own=self.plain_positions, first_of_four=self.text_positions)

    def _align(self, module: Any, own: Variants) -> None:
        """Lay weights out as graphs like them: of every layer that shares a graph, or it would be for the first one alone."""
        if self.on_request and module.vgen_options.backend == "inductor" and not torch.is_grad_enabled():
            align_rows(module)
            own.is_aligned = True

    def _compiled(self, module: Any, call: Call, *, is_hooked: bool, has_fixed_floats: bool) -> CompiledCore:
        options: Options = module.vgen_options
        core = type(module).core
        return CompiledCore(
            unrecorded(core) if is_hooked else core,
            tag=call.tag,
            options=options,
            is_shared=not self.per_instance,
            is_padded=call.is_padded,
            has_fixed_ints=call.has_fixed_ints,
            has_fixed_floats=has_fixed_floats,
            graph_only=call.graph_only,
            is_plain=call.is_plain,
        )

    def _run(
        self,
        module: Any,
        variants: Variants,
        core: CompiledCore | Form,
        arguments: dict[str, Any],
        place: Hashable,
    ) -> Any:
        """Run a core, from its CUDA graphs where it has some."""
        runner = variants.runners.get(core)
        if runner is None:
            runner = variants.runners.setdefault(core, self._replayed(module, variants, core))
        own: Variants = module.__dict__["_vgen_variants"]
        if own.memos is None:
            own.memos = Memos(module)
        own.memos.forget()
        try:
            result = runner(module, arguments)
        finally:
            own.memos.forget()
        if place is not None and isinstance(runner, GraphedCore):
            own.graphs.remember(place, runner, arguments)
        return result

    def _replayed(
        self, module: Any, variants: Variants, core: CompiledCore | Form
    ) -> CompiledCore | Form | GraphedCore:
        options: Options = module.vgen_options
        if not options.cuda_graphs or not self.per_instance or torch.is_grad_enabled() or has_cuda_graphs(options):
            return core
        if any(isinstance(part, ExpertLoop) and part.reads_on_host for part in module.modules()):
            return core
        own: Variants = module.__dict__["_vgen_variants"]
        assert variants.limits is not None
        return GraphedCore(
            core,
            tag=self.tag_of(module),
            contract=self.contract,
            limits=variants.limits,
            is_packed=self.packed_attention,
            store=variants.graphs,
            held=own.states_of(module),
        )

    def _uncompiled(self, module: Any, arguments: dict[str, Any], reason: str) -> Any:
        record_fallback(self.tag_of(module), reason)
        return module.core(**arguments)

    def _variants(self, module: Any) -> Variants:
        if self.per_instance:
            own: Variants = module.__dict__["_vgen_variants"]
            return own
        place = (type(module), module.vgen_options)
        found = self._shared.get(place)
        return found if found is not None else self._shared.setdefault(place, Variants())

    def forget(self) -> None:
        """Let go of what the instances of a class share: the next call compiles anew."""
        self._shared.clear()
