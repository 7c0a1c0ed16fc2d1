"""YAML of which every reader makes the same: what that excludes is refused by name and line.

Snakemake reads YAML 1.1 with PyYAML and DVC reads YAML 1.2 with ruamel, so a plain ``0100`` is 64
for the one and 100 for the other. What is alike for both, and bounded, is a small language: plain
scalars that all versions read alike, text as keys, no tags, no merge keys, no directives, anchors
in moderate use.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.resolver import implicit_resolvers

from wrinklefree.errors import UserError, shown

LARGEST_FILE = 1 << 20
"""In bytes. A source with thousands of paths is a tenth of it."""
DEEPEST = 40
MOST_NODES = 100_000
"""Values after every alias has been replaced by what it stands for."""
LONGEST_NUMBER = 40

_ALIKE = re.compile(
    r"""~|null|Null|NULL|true|True|TRUE|false|False|FALSE
    |[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+
    |[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)|""",
    re.VERBOSE,
)
"""The plain scalars that are no text and that YAML 1.1, YAML 1.2 and both libraries read alike."""
_MERGE = "<<"
_YES_NO = {"y": True, "Y": True, "n": False, "N": False}
"""YAML 1.1 calls these booleans; PyYAML leaves them as text, other readers don't."""
_LONGEST_REASON = 200
_LONGEST_PATH = 12
_TABS = " (YAML is indented with spaces, not tabs)"
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """The text of a file of settings.

    Raises
    ------
    UserError : the file is absent, can't be read, is too large or is not in UTF-8.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            what = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
            raise UserError(f"{path}: is {what}; give the path of a params file or preset")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give the path of a params file or preset, or go to the folder"
            " of the project"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise UserError(
            f"{path}: larger than {LARGEST_FILE >> 20} MiB, which no settings need; is it the"
            " right file?"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if content.startswith(_BYTE_ORDER_MARKS) else "not UTF-8"
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: the text is {encoding} (byte 0x{content[error.start]:02x});"
            " save the file as UTF-8"
        ) from None


def parse(text: str, origin: str) -> Any:
    """What a text in YAML says, in plain types.

    Raises
    ------
    UserError : it is no YAML, or YAML that readers take differently; names line and key.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _Refused as refused:
        raise UserError(f"{origin}: {refused}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: not valid YAML: {_explain(error, text)}") from None


def is_special(text: str) -> bool:
    """Whether some reader would take this for something else than text, without quotes."""
    first = text[:1]
    return any(
        first in starts and pattern.match(text) for _, _, pattern, starts in implicit_resolvers
    ) or any(
        pattern.match(text) for _, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(first, [])
    )


class _Refused(Exception):
    """Why a text is refused, with line and key."""


class _Loader(yaml.SafeLoader):
    """Composes with checks of every node; no node needs a second look."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._path: list[str] = []
        self._nodes = 0
        self._deepest = 0
        self._sizes: dict[str, tuple[int, int]] = {}
        """Nodes and levels below every anchor, aliases counted as what they stand for."""

    def compose_document(self) -> yaml.Node | None:
        event = self.peek_event()
        if event.version or event.tags:
            raise self._refused(event, "a directive (%): remove the line")
        return super().compose_document()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if parent is not None:
            # A key is composed without an index, its value with the key's node.
            self._path.append(_step(index))
        event = self.peek_event()
        nodes, outer, depth = self._nodes, self._deepest, len(self._path)
        inside, height = (1, 0) if event.anchor is None else self._stands_for(event)
        self._nodes += inside
        self._deepest = depth + height
        self._check_bounds(event)
        self._check(event, is_key=_is_key(parent, index))
        node = super().compose_node(parent, index)
        if event.anchor is not None:
            self._sizes[event.anchor] = (self._nodes - nodes, self._deepest - depth)
        self._deepest = max(outer, self._deepest)
        if parent is not None:
            self._path.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise self._refused(key, f"key {shown(key.value)} appears twice")
            seen.add(key.value)
        return node

    def _stands_for(self, event: Any) -> tuple[int, int]:
        """Nodes and levels of what an alias stands for; of a node with an anchor, itself."""
        if not isinstance(event, yaml.AliasEvent):
            return 1, 0
        if event.anchor in self.anchors and event.anchor not in self._sizes:
            raise self._refused(event, f"*{shown_key(event.anchor)} is part of what it stands for")
        return self._sizes.get(event.anchor, (1, 0))

    def _check_bounds(self, event: Any) -> None:
        if self._nodes > MOST_NODES:
            raise self._refused(
                event, f"more than {MOST_NODES:,} values, with aliases (*) written out"
            )
        if self._deepest > DEEPEST:
            raise self._refused(event, f"nested more than {DEEPEST} levels deep")

    def _check(self, event: Any, *, is_key: bool) -> None:
        if isinstance(event, yaml.AliasEvent):
            if is_key:
                raise self._refused(event, "an alias (*) as key; expected a name")
            return
        if event.tag is not None:
            raise self._refused(event, f"the tag {shown(event.tag)}: settings have none, remove it")
        if not isinstance(event, yaml.ScalarEvent):
            if is_key:
                raise self._refused(event, "a list or mapping as key; expected a name")
            return
        special = event.style is None and is_special(event.value)
        if special and len(event.value) > LONGEST_NUMBER:
            raise self._refused(event, f"a number of {len(event.value):,} characters")
        if special and not _ALIKE.fullmatch(event.value):
            raise self._refused(event, _dispute(event.value, is_key=is_key))
        if special and is_key:
            raise self._refused(
                event,
                f"the key {shown(event.value)} is no text for YAML; put it in quotes if it is"
                " a name",
            )

    def _refused(self, at: Any, why: str) -> _Refused:
        path = ".".join(step for step in self._path[:_LONGEST_PATH] if step)
        return _Refused(f"line {at.start_mark.line + 1}: {path + ': ' if path else ''}{why}")


def _is_key(parent: yaml.Node | None, index: Any) -> bool:
    return isinstance(parent, yaml.MappingNode) and index is None


def _step(index: Any) -> str:
    if isinstance(index, yaml.ScalarNode):
        return shown_key(index.value)
    return "" if index is None else str(index)


def shown_key(key: Any) -> str:
    """A key in a dotted path: names as they are, what else there is in quotes, shortened."""
    text = str(key)
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) else shown(text)


def _dispute(text: str, *, is_key: bool) -> str:
    """Who reads a plain scalar as what, and what to write instead."""
    if text == _MERGE:
        return (
            "<< merges mappings in YAML 1.1 and not in 1.2; write the settings out, or as *name"
            " where all of them are meant"
        )
    old, new = _read(yaml.safe_load, text), _read(YAML(typ="safe").load, text)
    if text in _YES_NO:
        old = _YES_NO[text]
    if _same(old, new):
        new = text  # in the core schema of YAML 1.2; ruamel follows 1.1 here
    quoted = shown(text)
    values = [value for value in (old, new) if isinstance(value, bool | int | float)]
    meant = [] if is_key else map(_written, values)
    choice = " or ".join(dict.fromkeys([*meant, quoted]))
    return (
        f"{quoted} without quotes is {_named(old)} in YAML 1.1 (Snakemake) and {_named(new)} in"
        f" YAML 1.2 (DVC); write {choice}"
    )


class _Unreadable:
    """What a reader fails at."""


def _read(load: Any, text: str) -> Any:
    try:
        return load(f"[{text}]")[0]
    except (ValueError, OverflowError, LookupError, yaml.YAMLError):
        return _Unreadable()
    except Exception as error:  # ruamel's own errors share no base with those of PyYAML
        if type(error).__module__.startswith("ruamel."):
            return _Unreadable()
        raise


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (isinstance(one, _Unreadable) or one == other)


def _written(value: bool | int | float) -> str:
    return yaml.safe_dump(value).split("\n")[0]


def _named(value: Any) -> str:
    if isinstance(value, _Unreadable):
        return "an error"
    if isinstance(value, bool):
        return _written(value)
    if isinstance(value, int | float):
        return f"the number {_written(value)}"
    return "text" if isinstance(value, str) else "a date"


def _explain(error: yaml.YAMLError, text: str) -> str:
    """Where and why, without the quotation of the file in an error of PyYAML."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: the control character {chr(error.character)!r}; remove it"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = " ".join(part for part in (error.context, error.problem) if part)[:_LONGEST_REASON]
        tab = mark and "\t" in text[mark.index : mark.index + 1]
        return f"{where}{reason}{_TABS if tab else ''}"
    return shown(str(error))
