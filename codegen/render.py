"""Plan → text: what each file of a generated package says, before it is formatted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import assert_never

import jinja2
import libcst as cst

from .analyze import size_buffers
from .analyze.trees import Trees
from .facts import ArgumentShape, ClassFact, Modality, ModelFacts, Pattern, Ref, Role, Span
from .plan import Carrier, Granularity, Plan, Region, Rewrite, Rule
from .rewrite.branchless_clamp import branchless_clamp
from .rewrite.carrier_init import CHILD_CLASS, MAKERS, carrier_method
from .rewrite.expert_loop import EXPERT_LOOP, expert_loop
from .rewrite.grouped_attention import GROUPED_ATTENTION, grouped_attention
from .rewrite.known_truth import HOLDS, known_truth
from .rewrite.late_message import late_message
from .rewrite.names import UPSTREAM, Names
from .rewrite.nested_recorder import nested_comment, nested_recorder
from .rewrite.packed_attention import PACKED_ATTENTION, packed_attention
from .rewrite.region_forward import WITHIN, passed_on, region_core, region_forward
from .rewrite.size_buffer import DIVIDE_UP, SIZE_BUFFERS, size_buffer
from .rewrite.size_division import DIVIDE, size_division
from .rewrite.size_loop import SIZE_LOOP, size_loop
from .rewrite.size_range import RANGE, size_range
from .rewrite.value_loop import LOOP, value_loop
from .source import Import, Source

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionText:
    tag: str
    role: str
    contract: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassText:
    """One generated class, as source text: what `modeling.py.j2` lays out."""

    name: str
    bases: tuple[str, ...]
    docstring: str | None
    region: RegionText | None
    size_buffers: tuple[str, ...]
    methods: tuple[str, ...]


def render(source: Source, facts: ModelFacts, plan: Plan, *, runtime: str) -> Mapping[str, str]:
    """Path in the package → text. `runtime` is the dotted or relative name of the runtime package."""
    writer = _Writer(source, facts, plan)
    classes = tuple(writer.write(ref) for ref in plan.order)
    module = f"modeling_{plan.model}"
    exported = tuple(sorted(entry.name for entry in plan.entries))
    # A copy has a place in the package; who built it knows the path of what it is a copy of.
    about = {
        "model": plan.model,
        "source_file": plan.file.removeprefix("."),
        "argument": f"…/{source.local.main}" if source.local is not None else plan.model,
        "whose": "the" if source.local is not None else "Transformers'",
    }
    modeling = _template("modeling.py.j2").render(
        **about,
        copyright=writer.file.copyright,
        imports=writer.import_lines(runtime),
        classes=classes,
        exported=exported,
    )
    package = _template("package.py.j2").render(**about, runtime=runtime, module=module, exported=exported)
    return {"__init__.py": package, f"{module}.py": modeling}


def templates_digest() -> str:
    """One digest over all templates: a change of any shows in the locks."""
    joined = hashlib.sha256()
    for path in sorted(TEMPLATES.glob("*.j2")):
        joined.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return joined.hexdigest()


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


class _Writer:
    """Writes the classes of one plan, and collects what they import."""

    def __init__(self, source: Source, facts: ModelFacts, plan: Plan) -> None:
        self.source = source
        self.facts = facts
        self.trees = Trees(source)
        self.file = source.file(plan.file)
        self.names = Names(self.file, frozenset(ref.name for ref in plan.order))
        self.regions = {region.ref: region for region in plan.regions}
        self.carriers = {carrier.ref: carrier for carrier in plan.carriers}
        self.rewrites: dict[Ref, list[Rewrite]] = {}
        for rewrite in plan.rewrites:
            self.rewrites.setdefault(rewrite.ref, []).append(rewrite)
        self.runtime: set[str] = set()

    def write(self, ref: Ref) -> ClassText:
        fact = self.facts.of(ref)
        region, carrier = self.regions.get(ref), self.carriers.get(ref)
        methods = []
        if carrier is not None:
            methods += self._carried(carrier)
        if region is not None:
            methods += self._region_methods(fact, region)
        own = self._own_rewrite(ref)
        entered = self._nested_recorder(ref)
        methods += (
            _code(self._function(fact, each)) for each in self.rewrites.get(ref, ()) if each not in (own, entered)
        )
        return ClassText(
            name=ref.name,
            bases=self._bases(fact, region, carrier),
            docstring=_docstring(fact, region),
            region=self._region(region) if region is not None else None,
            size_buffers=self._size_buffers(fact),
            methods=tuple(methods),
        )

    def import_lines(self, runtime: str) -> tuple[str, ...]:
        """One import statement a line; the formatter sorts and groups them."""
        names = self.names
        upstream = names.file.module.rpartition(".")
        lines = {f"from {upstream[0]} import {upstream[2]} as {UPSTREAM}"}
        lines |= {_import_line(imported) for imported in names.imports}
        lines |= {f"from {runtime} import {name}" for name in self.runtime}
        return tuple(sorted(lines))

    def _bases(self, fact: ClassFact, region: Region | None, carrier: Carrier | None) -> tuple[str, ...]:
        as_upstream = ("AsUpstream",) if fact.is_pretrained else ()
        compiled = ("Compiled",) if region is not None else ()
        upstream = self.names.reference(fact.ref)
        if any(rewrite.rule is Rule.EXPERT_LOOP for rewrite in self.rewrites.get(fact.ref, ())):
            compiled = (*compiled, EXPERT_LOOP)
        if self._size_buffers(fact):
            as_upstream = (*as_upstream, SIZE_BUFFERS)
        self.runtime.update((*as_upstream, *compiled))
        if carrier is None or carrier.base is None:
            return (*as_upstream, *compiled, upstream)
        # After the upstream class, whose `super()` then finds it; it has the mixin too, which has to follow it.
        compiled = compiled if carrier.base not in self.regions else ()
        return (*compiled, upstream, carrier.base.name, *as_upstream)

    def _size_buffers(self, fact: ClassFact) -> tuple[str, ...]:
        """The buffers that the class's rewritten methods read as numbers."""
        if not any(each.rule is Rule.SIZE_BUFFER for each in self.rewrites.get(fact.ref, ())):
            return ()
        assert fact.forward is not None
        assert fact.forward.sizes is not None
        return fact.forward.sizes.names

    def _carried(self, carrier: Carrier) -> list[str]:
        generated = set(self.regions) | set(self.carriers) | set(self.rewrites)
        dispatched = frozenset(
            child.callee for child in carrier.exchanged if not child.kind.by_config and child.target not in generated
        )
        methods = ([(carrier.init, "__init__")] if carrier.init is not None else []) + list(carrier.methods)
        found = []
        for owner, name in methods:
            code = _code(carrier_method(self.source, self.trees, self.names, owner, name, dispatched))
            self.runtime.update(maker for maker in (*MAKERS, CHILD_CLASS) if f"{maker}(" in code)
            found.append(code)
        return found

    def _region_methods(self, fact: ClassFact, region: Region) -> list[str]:
        assert fact.forward is not None
        arguments = (self.source, self.trees, self.names, fact.forward, region)
        rewritten = self._own_rewrite(fact.ref)
        nested = self._nested_recorder(fact.ref)
        within = nested_comment(nested) if nested is not None else ()
        forward = region_forward(*arguments, is_rewritten=rewritten is not None, within_recorder=within)
        self.runtime.update((WITHIN,) if nested is not None else ())
        if rewritten is not None:
            core = _code(self._function(fact, rewritten).with_changes(name=cst.Name("core")))
        else:
            core = _template("core.py.j2").render(asdict(region_core(*arguments)))
        texts = [_template("forward.py.j2").render(asdict(forward)), core]
        if forward.hoisted:
            texts.insert(1, _template("prologue.py.j2").render(asdict(forward)))
        return texts

    def _own_rewrite(self, ref: Ref) -> Rewrite | None:
        """What changes the forward of a region: its core is the changed one."""
        return next((each for each in self._of_forward(ref) if each.rule is not Rule.NESTED_RECORDER), None)

    def _nested_recorder(self, ref: Ref) -> Rewrite | None:
        """What says that the forward of a region records inside of another's."""
        return next((each for each in self._of_forward(ref) if each.rule is Rule.NESTED_RECORDER), None)

    def _of_forward(self, ref: Ref) -> Iterator[Rewrite]:
        return (each for each in self.rewrites.get(ref, ()) if ref in self.regions and each.method == "forward")

    def _function(self, fact: ClassFact, rewrite: Rewrite) -> cst.FunctionDef:
        self.names.imports.add(Import(module="torch", name=None, bound_as="torch"))
        if rewrite.rule is Rule.NESTED_RECORDER:
            self.runtime.add(WITHIN)
            recorder = next(each for each in fact.recorders if each.method == rewrite.method)
            return nested_recorder(self.source, self.trees, self.names, recorder, nested_comment(rewrite))
        assert fact.forward is not None
        passed = passed_on(fact.forward.parameters)
        comment: tuple[str, ...]
        match rewrite.rule:
            case Rule.PACKED_ATTENTION:
                self.runtime.add(PACKED_ATTENTION)
                place = f"{_file(rewrite.span)}:{rewrite.first_line}-{rewrite.last_line}"
                comment = (
                    f"vgen {rewrite.rule}: one operator for all segments, where upstream splits by lengths read on the",
                    f"host ({place}).",
                )
                owner = fact.forward.owner
                function = packed_attention(
                    self.source, self.trees, self.names, owner, rewrite.method, passed, comment
                )
            case Rule.GROUPED_ATTENTION:
                assert fact.forward.grouped is not None
                self.runtime.add(GROUPED_ATTENTION)
                branch = fact.forward.grouped.branch
                comment = (
                    f"vgen {rewrite.rule}: one new token attends as it does in eager, by a branch that upstream leaves",
                    f"out of graphs ({_file(branch)}:{branch.line}).",
                )
                function = grouped_attention(
                    self.source, self.trees, self.names, fact.forward.grouped, passed, comment
                )
            case Rule.BRANCHLESS_CLAMP:
                assert fact.forward.clamps is not None
                comment = (
                    f"vgen {rewrite.rule}: a choice, where upstream branches on values ({_file(rewrite.span)}:{rewrite.first_line}).",
                )
                function = branchless_clamp(self.source, self.trees, self.names, fact.forward.clamps, passed, comment)
            case Rule.VALUE_LOOP:
                assert fact.forward.loop is not None
                self.runtime.add(LOOP)
                place = f"{_file(rewrite.span)}:{rewrite.first_line}-{rewrite.last_line}"
                comment = (f"vgen {rewrite.rule}: one operator, where upstream loops over values ({place}).",)
                function = value_loop(self.source, self.trees, self.names, fact.forward.loop, comment)
            case Rule.SIZE_DIVISION:
                self.runtime.add(DIVIDE)
                division = next(each for each in fact.forward.divisions if each.method == rewrite.method)
                comment = (
                    f"vgen {rewrite.rule}: a number, where upstream makes a tensor ({_file(rewrite.span)}:{rewrite.first_line}).",
                )
                function = size_division(self.source, self.trees, self.names, division, comment)
            case Rule.EXPERT_LOOP:
                place = f"{_file(rewrite.span)}:{rewrite.first_line}-{rewrite.last_line}"
                comment = (
                    f"vgen {rewrite.rule}: one operator, where upstream loops over the experts that tokens were sent to",
                    f"({place}).",
                )
                function = expert_loop(self.source, self.trees, self.names, fact.ref, comment)
            case Rule.KNOWN_TRUTH:
                assert fact.forward.asked is not None
                self.runtime.add(HOLDS)
                comment = (
                    f"vgen {rewrite.rule}: the region asked, where upstream does ({_file(rewrite.span)}:{rewrite.first_line}).",
                )
                function = known_truth(self.source, self.trees, self.names, fact.forward.asked, comment)
            case Rule.SIZE_BUFFER:
                found = size_buffers.of_class(self.source, self.trees, fact.ref)
                assert found is not None, f"{fact.ref} lost its buffers between analysis and rewriting"
                reads = next(each for each in found.methods if each.tree.method.name.value == rewrite.method)
                self.runtime.update((DIVIDE_UP,) if reads.rounded else ())
                comment = (
                    f"vgen {rewrite.rule}: numbers, where upstream reads tensors ({_file(rewrite.span)}:{rewrite.first_line}).",
                )
                function = size_buffer(self.source, self.names, reads, comment)
            case Rule.SIZE_LOOP:
                self.runtime.add(SIZE_LOOP)
                comment = (
                    f"vgen {rewrite.rule}: one operator for all sizes, where upstream loops over one",
                    f"({', '.join(_lines(each) for each in fact.forward.looping)}).",
                )
                function = size_loop(self.source, self.trees, self.names, fact.ref, rewrite.method, comment)
            case Rule.LATE_MESSAGE:
                message = next(each for each in fact.forward.messages if each.method == rewrite.method)
                comment = (
                    f"vgen {rewrite.rule}: upstream makes text of sizes ({_file(message.span)}:{message.first_line}).",
                )
                function = late_message(self.source, self.trees, self.names, message, comment)
            case Rule.SIZE_RANGE:
                self.runtime.add(RANGE)
                made = next(each for each in fact.forward.ranges if each.method == rewrite.method)
                comment = (
                    f"vgen {rewrite.rule}: no list of as many numbers as a size says ({_file(made.span)}:{made.first_line}).",
                )
                function = size_range(self.source, self.trees, self.names, made, comment)
            case _:
                assert_never(rewrite.rule)
        return function

    def _region(self, region: Region) -> RegionText:
        self.runtime.update(("Contract", "Region", "Role"))
        contract = tuple(entry for shape in region.contract if (entry := self._contract_entry(shape)) is not None)
        flags = {
            "packed_attention": region.packed_attention,
            "rotary": region.rotary,
            "records_outputs": region.records_outputs,
        }
        if region.modality is Modality.TEXT and region.role is Role.ENCODER:
            flags["text"] = True
        parts = dict.fromkeys(f'"{call.within}"' for call in region.hoisted if call.within)
        inner = (f"inner=({', '.join(parts)},)",) if parts else ()
        branches = [f'"{_path(each.span)}:{each.first_line}-{each.last_line}"' for each in region.graph_only]
        graph_only = (f"graph_only=({', '.join(branches)},)",) if branches else ()
        names = [f'"{each}"' for each in region.truths]
        truths = (f"truths=({', '.join(names)},)",) if names else ()
        masks = region.masks
        plain = ("plain_positions=True",) if masks is not None and (masks.own or not masks.first_of_four) else ()
        text = ("text_positions=True",) if masks is not None and masks.first_of_four else ()
        block = ("per_instance=False",) if region.granularity is Granularity.BLOCK else ()
        training = ("only_in_training=True",) if region.only_in_training else ()
        return RegionText(
            tag=region.tag,
            role=region.role.name,
            contract=contract,
            flags=(
                *(f"{name}=True" for name, on in flags.items() if on),
                *inner,
                *graph_only,
                *truths,
                *plain,
                *text,
                *block,
                *training,
            ),
        )

    def _contract_entry(self, shape: ArgumentShape) -> str | None:
        if shape.is_python_int:
            self.runtime.add("size")
            return f"{shape.name}=size()"
        if shape.dims is None or shape.is_tuple:
            # What a contract doesn't name may change in every dimension.
            return None
        self.runtime.add("tensor")
        dims = ", ".join(f'"{dim}"' if isinstance(dim, str) else str(dim) for dim in shape.dims)
        return f"{shape.name}=tensor({dims})"


def _docstring(fact: ClassFact, region: Region | None) -> str | None:
    if region is None:
        return None
    kind = "Encoder or decoder" if region.role is Role.EITHER else region.role.capitalize()
    what = f"{kind} region" + (" in training" if region.only_in_training else "")
    what += " (each layer)" if region.granularity is Granularity.BLOCK else ""
    asked = region.role is Role.ENCODER and region.modality is not Modality.TEXT
    compiled = "" if region.only_in_training else "compiled "
    when = f", {compiled}if `compile_mm_encoder` is set" if asked else ""
    return f"{what}{when}. Upstream: {fact.span}."


def _path(span: Span) -> str:
    """Its file as it lies where it runs: a copy in a folder of the package."""
    return span.file.removeprefix(".")


def _lines(found: Pattern) -> str:
    return f"{_file(found.span)}:{found.first_line}-{found.last_line}"


def _file(span: Span) -> str:
    return span.file.rpartition("/")[2]


def _import_line(imported: Import) -> str:
    if imported.name is None:
        plain = imported.bound_as == imported.module.partition(".")[0] == imported.module
        return f"import {imported.module}" if plain else f"import {imported.module} as {imported.bound_as}"
    renamed = f" as {imported.bound_as}" if imported.bound_as != imported.name else ""
    return f"from {imported.module} import {imported.name}{renamed}"


def _code(function: cst.FunctionDef) -> str:
    return cst.Module(body=(function.with_changes(leading_lines=()),)).code.rstrip("\n")
