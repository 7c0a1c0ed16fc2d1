"""``docs/settings.md`` and its JSON schema, generated from the models of the settings.

Both come from pydantic's JSON schema, in which the sentence on a setting is its docstring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from wrinklefree.config.parameters import Parameters

DOCUMENT = Path("docs/settings.md")
SCHEMA = Path("docs/settings.schema.json")
_BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": "≥",
    "exclusiveMaximum": "<",
    "maximum": "≤",
    "minLength": "length ≥",
    "maxLength": "length ≤",
    "minItems": "items ≥",
    "maxItems": "items ≤",
}
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
_END = "...\n"
"""With which PyYAML ends a document that is a single scalar."""
_LONGEST_TEXT = 1000
"""The bound of every text goes without saying."""
_WORTH_A_LINK = 5
"""A section that shares so many settings with another one refers to it."""
_HEAD = """\
# Settings

Every setting of `params.yaml`, from the code that checks it. Do not edit this page: the sentences
are docstrings in `src/wrinklefree/`, and `wrinklefree settings --write` writes it anew.
Editors complete and check `params.yaml` by [the same as a JSON schema](settings.schema.json).

- A setting that is not written has its default. To lay other values over `params.yaml`, write a
  preset (`params/`); `null` in it removes what stands below.
- An unknown setting, a wrong type or a value out of bounds is refused with its place and what was
  expected. `wrinklefree check` says whether all is valid.
- `dvc exp run -S stage2.steps=200` changes what `params.yaml` has; what it leaves to the default
  needs a plus: `-S +stage2.clipping.name=none`.

## Alternatives

`optimizer` has a block for each optimizer, and `name` says which one trains (`clipping` likewise):

```yaml
optimizer:
  name: adamw
  adamw: {lr: 0.0005}
  muon: {lr: 0.002}  # validated, of no effect
```

So one flag swaps it, `dvc exp run -S stage2.optimizer.name=adamw`, and every block has defaults
with which that is sensible. An edit of a block that is not chosen changes no result. Snakemake
reruns nothing after it. DVC compares the section of a stage as a whole, so it runs that stage
again; it ends with the same bytes, and nothing below it runs.
"""


def settings_schema() -> dict[str, Any]:
    """The JSON schema of ``params.yaml``."""
    return _without_titles(Parameters.model_json_schema())


def schema_text() -> str:
    """What stands in :data:`SCHEMA`."""
    return json.dumps(settings_schema(), indent=1, ensure_ascii=False) + "\n"


def document_text() -> str:
    """What stands in :data:`DOCUMENT`."""
    schema = settings_schema()
    definitions = schema.pop("$defs")
    parts = [_HEAD, _section("All sections", schema, _rows(schema, definitions), ())]
    shown: dict[str, dict[str, str]] = {}
    for name in _in_order(schema, definitions):
        rows = _rows(definitions[name], definitions)
        parts.append(_section(name, definitions[name], *_own(rows, shown)))
        shown[name] = rows
    return "\n".join(parts)


def _without_titles(value: Any, *, named: bool = False) -> Any:
    """``value`` without pydantic's titles; ``named``: its keys are names of settings."""
    if isinstance(value, dict):
        return {
            key: _without_titles(item, named=key in ("properties", "$defs") and not named)
            for key, item in value.items()
            if named or key != "title"
        }
    return [_without_titles(item) for item in value] if isinstance(value, list) else value


def _in_order(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Names of the definitions as a reader meets them: each behind the first that refers to it."""
    found: list[str] = []

    def visit(value: Any) -> None:
        for name in _references(value):
            if name not in found:
                found.append(name)
                visit(definitions[name])

    visit(schema)
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for key, item in value.items():
            if key != "discriminator":
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _rows(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, str]:
    """Lines of the table of a section, by setting."""
    rows: dict[str, str] = {}
    required = schema.get("required", ())
    for key, value in schema.get("properties", {}).items():
        default = "required" if key in required else _default(value, definitions)
        meaning = _in_a_cell(_description(value, definitions))
        rows[key] = f"| `{key}` | {_value(value)} | {default} | {meaning} |"
    return rows


def _own(
    rows: dict[str, str], shown: dict[str, dict[str, str]]
) -> tuple[dict[str, str], list[str]]:
    """The rows of a section that no earlier one has, and the sections that have the others.

    Such a section has no setting that this one lacks.
    """
    own, sections = dict(rows), []
    for name, others in shown.items():
        alike = [key for key in own if own[key] == others.get(key)]
        if others.keys() <= rows.keys() and len(alike) >= _WORTH_A_LINK:
            sections.append(name)
            own = {key: row for key, row in own.items() if key not in alike}
    return own, sections


def _section(name: str, schema: dict[str, Any], rows: dict[str, str], others: Sequence[str]) -> str:
    lines = [f"## {name}", "", _paragraphs(schema.get("description", "")), ""]
    if others:
        links = " and of ".join(f"[{other}](#{other.lower()})" for other in others)
        lines += [f"It has the settings of {links}, and these:", ""]
    if rows:
        lines += [
            "| setting | value | default | meaning |",
            "|---|---|---|---|",
            *rows.values(),
            "",
        ]
    return "\n".join(lines)


def _description(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a setting means; pydantic leaves it out where the section that it refers to says it."""
    described = schema
    if "description" not in schema and "$ref" in schema:
        described = definitions[schema["$ref"].rpartition("/")[2]]
    alone = "Tells this section from its alternatives." if "const" in schema else ""
    return described.get("description", alone)


def _value(schema: dict[str, Any]) -> str:
    """Type and bounds in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_value(part) for part in schema[key])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    bounds = [
        f"{sign} {_number(schema[key])}"
        for key, sign in _BOUNDS.items()
        if key in schema and not (key == "maxLength" and schema[key] > _LONGEST_TEXT)
    ]
    if "pattern" in schema:
        bounds.append(f"`{schema['pattern']}`")
    return ", ".join([_type(schema), *bounds]).replace("|", r"\|")


def _type(schema: dict[str, Any]) -> str:
    if schema["type"] == "array":
        return f"list of {_value(schema['items'])}"
    if schema["type"] == "object":
        values = schema.get("patternProperties", {}).values() or [schema["additionalProperties"]]
        value = next(iter(values))
        return "mapping" if value is True else f"mapping of names to {_value(value)}"
    kind: str = schema["type"]
    return _TYPES.get(kind, kind)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**9 else f"{value:.6g}"


def _default(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None:
        return "none"
    if "$ref" in schema and isinstance(value, dict):
        own = definitions[schema["$ref"].rpartition("/")[2]]["properties"]
        value = {key: item for key, item in value.items() if item != own[key].get("default")}
    if isinstance(value, str) and "\n" in value:
        return f"`{json.dumps(value)}`"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return f"`{text.removesuffix(_END).strip()}`"


def _paragraphs(text: str) -> str:
    return text.replace("``", "`").strip()


def _in_a_cell(text: str) -> str:
    paragraphs = _paragraphs(text).split("\n\n")
    return "<br>".join(" ".join(part.split()) for part in paragraphs).replace("|", r"\|")
