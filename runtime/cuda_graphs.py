# SPDX-License-Identifier: Apache-2.0
"""Replays compiled cores from CUDA graphs: a call launches one graph instead of some hundred kernels.

What is compiled stays what it is. A call whose shapes were seen before is recorded, and replayed from then on: its arguments
are copied into the buffers that were recorded with, and its outputs are copied out, so that no caller's tensor is overwritten
later. Packed encoders replay few padded sizes: see `packing`. Everything else runs the compiled core.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from .artifact import Form
from .compiler import CompiledCore
from .contract import Contract
from .counting import tally
from .describe import mode
from .graph_buffers import (
    Buffers,
    NotReplayableError,
    buffers_for,
    describe_argument,
    give_back,
    note,
    padded,
    restored,
    restored_or_none,
)
from .graph_fingerprint import GraphFingerprint
from .held_states import HeldStates
from .limits import Limits
from .packing import Bucket, bucket_for

logger = logging.getLogger("vgen.runtime")

# The part of a GPU's memory that one region's graphs may take; the least recently used make room.
MEMORY_SHARE = 1 / 16
# Shapes that were seen once, whose second call is recorded.
MAX_PENDING = 16
MAX_REFUSED = 1024
# Calls that are replayed without being described, by all that can be different in them.
MAX_FAMILIAR = 64
# What is written into the padding to see that nothing depends on it.
POISON = 3.0


class Graph(Protocol):
    """A recorded forward."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Records what a function does on a device. `CudaRecorder` is the one; tests have another, without a GPU."""

    def usable(self, tensor: torch.Tensor) -> bool:
        """Whether forwards on this tensor's device can be recorded now."""

    def record(self, run: Callable[[], Any]) -> tuple[Graph, Any, int]:
        """The graph, what `run` returned (overwritten by each replay), and the bytes that both hold."""

    def budget(self) -> int:
        """Bytes that a region's graphs may hold together."""

    def enter(self) -> None:
        """Before buffers are written: wait for the last replay, if it was on another stream."""

    def leave(self) -> None:
        """After outputs were read."""

    def wait(self) -> None:
        """Until all replays are through, before a graph is freed."""


class CudaRecorder:
    """Records on the current CUDA device. One to a region's instance: it remembers on which stream it last replayed."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._event: torch.cuda.Event | None = None

    def usable(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.is_cuda
            and tensor.device.index == torch.cuda.current_device()
            and not torch.cuda.is_current_stream_capturing()
        )

    def record(self, run: Callable[[], Any]) -> tuple[Graph, Any, int]:
        # `torch.cuda.graph` does this too; before it, what others gave back would count as room for this graph.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on: only what this one does is recorded.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = run()
        return graph, out, max(torch.cuda.memory_reserved() - before, 0)

    def budget(self) -> int:
        return int(MEMORY_SHARE * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def enter(self) -> None:
        stream = torch.cuda.current_stream()
        if self._event is not None and stream != self._stream:
            stream.wait_event(self._event)
        self._stream = stream

    def leave(self) -> None:
        if self._event is None:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        assert self._stream is not None
        self._event.record(self._stream)

    def wait(self) -> None:
        torch.cuda.synchronize()


@dataclass(slots=True, kw_only=True)
class _Recorded:
    graph: Graph
    buffers: Buffers
    output: Any
    bytes: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave, and whether it was recorded of an artifact."""

    output: Any
    is_loaded: bool


class GraphStore:
    """The graphs of one instance of a region, of all its variants. A copy of the instance starts without."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder: Recorder = CudaRecorder() if recorder is None else recorder
        self.recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self.pending: OrderedDict[Hashable, Buffers | None] = OrderedDict()
        # Keys of calls that return what can't be copied out of a graph.
        self.refused: set[Hashable] = set()
        self.fingerprint: GraphFingerprint | None = None
        # By `place`, the core and the key of what replayed a call.
        self._familiar: OrderedDict[Hashable, tuple[GraphedCore, Hashable]] = OrderedDict()
        # Whether padding is used, and whether it was seen to change nothing.
        self.is_padding = True
        self.is_padding_verified = False
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def clear(self) -> None:
        """Forget all graphs, and what was seen."""
        if self.recorded:
            self.recorder.wait()
        self.recorded.clear()
        self.pending.clear()
        self._familiar.clear()
        self.fingerprint = None

    def place(self, arguments: Mapping[str, Any], more: Hashable) -> Hashable:
        """All in which two calls can differ that aren't replayed in the same way; None for one that can't be replayed.

        Args:
            arguments: The core's arguments by name.
            more: What else tells variants apart, but for what their arguments and the modules say.
        """
        tensor = _first_tensor(arguments)
        if tensor is None or torch.is_grad_enabled() or not self.recorder.usable(tensor):
            return None
        device = tensor.device
        try:
            described = tuple((name, describe_argument(value, device)) for name, value in arguments.items())
        except NotReplayableError:
            return None
        return mode(), device, more, described

    def again(self, place: Hashable, arguments: dict[str, Any]) -> Replayed | None:
        """Replay what replayed a call of this place before; None where there is no such, or the modules have changed."""
        with self.lock:
            core, key = self._familiar.get(place, (None, None))
            recorded = self.recorded.get(key)
            if core is None or recorded is None or self.fingerprint is None or not self.fingerprint.holds():
                return None
            self._familiar.move_to_end(place)
            self.recorded.move_to_end(key)
            return Replayed(core.replay(recorded, arguments), core.is_loaded)

    def remember(self, place: Hashable, core: "GraphedCore", arguments: Mapping[str, Any]) -> None:
        """Note which core served a call of this place, if it has a recording for it."""
        key = core.key(arguments)
        if key in self.recorded:
            self._familiar[place] = core, key
            if len(self._familiar) > MAX_FAMILIAR:
                self._familiar.popitem(last=False)

    def add(self, key: Hashable, recorded: _Recorded) -> None:
        self.recorded[key] = recorded
        budget = self.recorder.budget()
        while len(self.recorded) > 1 and sum(each.bytes for each in self.recorded.values()) > budget:
            self.recorder.wait()
            self.recorded.popitem(last=False)


class GraphedCore:
    """A compiled core that is replayed where that gives the same.

    Args:
        core: What runs where nothing is recorded.
        tag: The region's compile tag.
        contract: The region's contract.
        limits: The limits of its module.
        is_packed: Whether tokens meet in packed attention only, so that padding is exact.
        store: Where the graphs are.
        held: The states of its module. A replay would set none, so calls that do aren't recorded.
    """

    def __init__(
        self,
        core: CompiledCore | Form,
        *,
        tag: str,
        contract: Contract,
        limits: Limits,
        is_packed: bool,
        store: GraphStore,
        held: HeldStates,
    ) -> None:
        self._core = core
        self._tag = tag
        self._contract = contract
        self._limits = limits
        self._is_packed = is_packed
        self._store = store
        self._held = held
        # Why this variant can't be recorded.
        self._reason: str | None = None
        self.is_loaded = isinstance(core, Form)

    def __call__(self, module: Any, arguments: dict[str, Any]) -> Any:
        store = self._store
        tensor = _first_tensor(arguments)
        if self._reason is not None or tensor is None or torch.is_grad_enabled() or not store.recorder.usable(tensor):
            return self._core(module, arguments)
        bucket = self._bucket(arguments)
        key = self._key(arguments, bucket)
        if key is None:
            return self._core(module, arguments)
        if bucket is not None and not store.is_padding_verified and bucket.padding(arguments):
            return self._verify(module, arguments, bucket)
        with store.lock:
            recorded = store.recorded.get(key)
            if recorded is not None:
                assert store.fingerprint is not None
                if store.fingerprint.holds():
                    store.recorded.move_to_end(key)
                    return self.replay(recorded, arguments)
                store.clear()
            if key in store.refused:
                return self._core(module, arguments)
            if key not in store.pending:
                return self._first(key, module, arguments, bucket)
            return self._record(key, module, arguments, bucket)

    def _first(self, key: Hashable, module: Any, arguments: dict[str, Any], bucket: Bucket | None) -> Any:
        """The first call of these shapes: on the buffers of a later recording, so that nothing is compiled in it."""
        store = self._store
        buffers = None
        if bucket is None:
            buffers = Buffers(arguments=buffers_for(arguments), bucket=None, kept={})
            buffers.fill(arguments)
            # It may compile for them.
            self._contract.mark_static(buffers.arguments, self._limits.fixed(buffers.arguments))
        taken = buffers.arguments if buffers is not None else arguments
        noted = note(buffers.arguments) if buffers is not None else None
        states = self._held.now()
        result = self._core(module, taken)
        is_written = give_back(noted, taken, arguments) or not self._held.are(states)
        try:
            # Copied, since it may be a view of a buffer.
            own = restored(result, taken, arguments, None)
        except NotReplayableError:
            # A prefill that returns a growing cache, for one.
            self._refuse(key)
            return result
        if is_written:
            self._refuse(key)
            return own
        store.pending[key] = buffers
        if len(store.pending) > MAX_PENDING:
            store.pending.popitem(last=False)
        return own

    def _refuse(self, key: Hashable) -> None:
        if len(self._store.refused) >= MAX_REFUSED:
            self._store.refused.clear()
        self._store.refused.add(key)

    def _verify(self, module: Any, arguments: dict[str, Any], bucket: Bucket) -> Any:
        """The core's result. On the way, see that no bit of a padded one depends on what the padding holds: a core may
        mix tokens outside of attention, in a mean over all of them for example."""
        result = self._core(module, arguments)
        outputs = []
        for value in (0.0, POISON):
            buffers = padded(arguments, bucket, value)
            outputs.append(restored_or_none(self._core(module, buffers.arguments), arguments, bucket))
        self._store.is_padding = _is_same(outputs[0], outputs[1]) and _is_alike(outputs[0], result)
        self._store.is_padding_verified = True
        if not self._store.is_padding:
            logger.info("%s: padding changes the result, so graphs are of exact sizes", self._tag)
        return result

    def _record(self, key: Hashable, module: Any, arguments: dict[str, Any], bucket: Bucket | None) -> Any:
        store = self._store
        buffers = store.pending.pop(key)
        fingerprint = GraphFingerprint(module)
        if not fingerprint.is_plain:
            return self._core(module, arguments)
        if store.fingerprint is not None and not store.fingerprint.holds():
            store.clear()
        result: Any = None
        if bucket is not None:
            # The padded forward runs once as it is, so that nothing is compiled or set up while it is recorded.
            result = self._core(module, arguments)
            buffers = padded(arguments, bucket)
            self._core(module, buffers.arguments)
        assert buffers is not None
        buffers.fill(arguments)
        taken = buffers.arguments
        states = self._held.now()
        try:
            graph, output, size = store.recorder.record(lambda: self._core(module, taken))
            restored(output, taken, arguments, bucket)
            if not self._held.are(states):
                raise NotReplayableError("it sets states of its modules")
        except (RuntimeError, NotReplayableError) as error:
            # What was recorded didn't run, so nothing happened yet.
            self._held.put_back(states)
            self._reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            logger.info("%s runs without CUDA graphs: %s", self._tag, self._reason)
            return self._core(module, arguments) if result is None else result
        recorded = _Recorded(graph=graph, buffers=buffers, output=output, bytes=size)
        if store.fingerprint is None:
            store.fingerprint = fingerprint
        store.add(key, recorded)
        tally(self._tag).recordings += 1
        return self.replay(recorded, arguments) if result is None else result

    def replay(self, recorded: _Recorded, arguments: dict[str, Any]) -> Any:
        """Replay what was recorded for calls of these arguments' shapes. The store has to be locked."""
        recorder = self._store.recorder
        recorder.enter()
        recorded.buffers.fill(arguments)
        recorded.graph.replay()
        result = restored(recorded.output, recorded.buffers.arguments, arguments, recorded.buffers.bucket)
        recorder.leave()
        tally(self._tag).replays += 1
        return result

    def key(self, arguments: Mapping[str, Any]) -> Hashable:
        """What the recording for a call is found by; None where there can be none."""
        return self._key(arguments, self._bucket(arguments))

    def _bucket(self, arguments: Mapping[str, Any]) -> Bucket | None:
        # Padded calls run more than once, which states would tell.
        is_padding = self._is_packed and self._store.is_padding and self._held.is_empty
        return bucket_for(self._contract, arguments) if is_padding else None

    def _key(self, arguments: Mapping[str, Any], bucket: Bucket | None) -> Hashable:
        """The core, and what the graphs of two calls can differ in; None where an argument can't be copied into a buffer."""
        tensor = _first_tensor(arguments)
        assert tensor is not None
        parts: list[Hashable] = []
        try:
            for name, value in arguments.items():
                if bucket is not None and name in bucket.rows:
                    parts.append((name, value.shape[1:], value.dtype, value.is_inference()))
                elif bucket is None or name not in bucket.padded:
                    parts.append((name, describe_argument(value, tensor.device)))
        except NotReplayableError:
            return None
        return self._core, bucket.signature if bucket is not None else None, tuple(parts)


def _first_tensor(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    return next((value for value in arguments.values() if isinstance(value, torch.Tensor)), None)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two outputs have the same tensors, to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(each, other[key]) for key, each in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is not None and bool(one == other)


def _is_alike(one: Any, other: Any) -> bool:
    """Whether two outputs have tensors of the same shapes in the same places."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_alike(each, other[key]) for key, each in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_is_alike, one, other))
    return type(one) is type(other)
