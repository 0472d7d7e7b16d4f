"""Plan → text: what each file of a generated package says, before it is formatted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import jinja2
import libcst as cst

from .analyze.trees import Trees
from .facts import ArgumentShape, ClassFact, Modality, ModelFacts, Ref, Role
from .plan import Carrier, Granularity, Plan, Region, Rewrite
from .rewrite.carrier_init import CHILD_FROM_CONFIG, carrier_init
from .rewrite.names import UPSTREAM, Names
from .rewrite.packed_attention import PACKED_ATTENTION, packed_attention
from .rewrite.region_forward import passed_on, region_core, region_forward
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
    methods: tuple[str, ...]


def render(source: Source, facts: ModelFacts, plan: Plan, *, runtime: str) -> Mapping[str, str]:
    """Path in the package → text. `runtime` is the dotted or relative name of the runtime package."""
    writer = _Writer(source, facts, plan)
    classes = tuple(writer.write(ref) for ref in plan.order)
    module = f"modeling_{plan.model}"
    exported = tuple(sorted(entry.name for entry in plan.entries))
    modeling = _template("modeling.py.j2").render(
        copyright=writer.file.copyright,
        source_file=plan.file,
        model=plan.model,
        imports=writer.import_lines(runtime),
        classes=classes,
        exported=exported,
    )
    package = _template("package.py.j2").render(model=plan.model, runtime=runtime, module=module, exported=exported)
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
        self.rewrites = {rewrite.ref: rewrite for rewrite in plan.rewrites}
        self.runtime: set[str] = set()

    def write(self, ref: Ref) -> ClassText:
        fact = self.facts.of(ref)
        region, carrier, rewrite = self.regions.get(ref), self.carriers.get(ref), self.rewrites.get(ref)
        methods = []
        if carrier is not None:
            methods.append(self._init(carrier))
        if region is not None:
            methods += self._region_methods(fact, region)
        if rewrite is not None:
            methods.append(self._rewritten(fact, rewrite))
        return ClassText(
            name=ref.name,
            bases=self._bases(fact, region, carrier),
            docstring=_docstring(fact, region),
            region=self._region(region) if region is not None else None,
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
        self.runtime.update((*as_upstream, *compiled))
        if carrier is None or carrier.base is None:
            return (*as_upstream, *compiled, upstream)
        # After the upstream class, whose `super()` then finds it; it has the mixin too, which has to follow it.
        compiled = compiled if carrier.base not in self.regions else ()
        return (*compiled, upstream, carrier.base.name, *as_upstream)

    def _init(self, carrier: Carrier) -> str:
        function = carrier_init(self.source, self.trees, self.names, carrier.init)
        code = _code(function)
        if f"{CHILD_FROM_CONFIG}(" in code:
            self.runtime.add(CHILD_FROM_CONFIG)
        return code

    def _region_methods(self, fact: ClassFact, region: Region) -> list[str]:
        assert fact.forward is not None
        arguments = (self.source, self.trees, self.names, fact.forward, region)
        forward, core = region_forward(*arguments), region_core(*arguments)
        return [_template("forward.py.j2").render(asdict(forward)), _template("core.py.j2").render(asdict(core))]

    def _rewritten(self, fact: ClassFact, rewrite: Rewrite) -> str:
        assert fact.forward is not None
        self.runtime.add(PACKED_ATTENTION)
        self.names.imports.add(Import(module="torch", name=None, bound_as="torch"))
        file = rewrite.span.file.rpartition("/")[2]
        function = packed_attention(
            self.source,
            self.trees,
            self.names,
            fact.forward.owner,
            rewrite.method,
            passed_on(fact.forward.parameters),
            (
                f"vgen {rewrite.rule}: one operator for all segments, where upstream splits by lengths read on the",
                f"host ({file}:{rewrite.first_line}-{rewrite.last_line}).",
            ),
        )
        return _code(function)

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
        block = ("per_instance=False",) if region.granularity is Granularity.BLOCK else ()
        return RegionText(
            tag=region.tag,
            role=region.role.name,
            contract=contract,
            flags=(*(f"{name}=True" for name, on in flags.items() if on), *block),
        )

    def _contract_entry(self, shape: ArgumentShape) -> str | None:
        if shape.is_python_int:
            self.runtime.add("size")
            return f"{shape.name}=size()"
        if shape.dims is None:
            return None
        self.runtime.add("tensor")
        dims = ", ".join(f'"{dim}"' if isinstance(dim, str) else str(dim) for dim in shape.dims)
        return f"{shape.name}=tensor({dims})"


def _docstring(fact: ClassFact, region: Region | None) -> str | None:
    if region is None:
        return None
    kind = "Encoder or decoder" if region.role is Role.EITHER else region.role.capitalize()
    what = f"{kind} region" + (" (each layer)" if region.granularity is Granularity.BLOCK else "")
    asked = region.role is Role.ENCODER and region.modality is not Modality.TEXT
    when = ", compiled if `compile_mm_encoder` is set" if asked else ""
    return f"{what}{when}. Upstream: {fact.span}."


def _import_line(imported: Import) -> str:
    if imported.name is None:
        plain = imported.bound_as == imported.module.partition(".")[0] == imported.module
        return f"import {imported.module}" if plain else f"import {imported.module} as {imported.bound_as}"
    renamed = f" as {imported.bound_as}" if imported.bound_as != imported.name else ""
    return f"from {imported.module} import {imported.name}{renamed}"


def _code(function: cst.FunctionDef) -> str:
    return cst.Module(body=(function.with_changes(leading_lines=()),)).code.rstrip("\n")
