from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError as RuamelError

from wrinklefree.errors import UserError
from wrinklefree.schema.load import read_yaml
from wrinklefree.schema.yaml_text import (
    DEEPEST,
    LARGEST_FILE,
    is_special,
    parse,
)

PROJECT = Path(__file__).parents[2]
SHIPPED = [PROJECT / "params.yaml", PROJECT / "catalog.yaml", *(PROJECT / "params").glob("*.yaml")]
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{x: *a{n}}}\n" for n in range(400))


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, "a.yaml")
    message = str(caught.value)
    assert message.startswith("a.yaml: ") and message.isprintable() and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("written", "old", "new", "instead"),
    [
        ("0100", "the number 64", "the number 100", "64 or 100 or '0100'"),
        ("1:40", "the number 100", "text", "100 or '1:40'"),
        ("1:40.5", "the number 100.5", "text", "100.5 or '1:40.5'"),
        ("0b1", "the number 1", "text", "1 or '0b1'"),
        ("0o17", "text", "the number 15", "15 or '0o17'"),
        ("1_000", "the number 1000", "text", "1000 or '1_000'"),
        ("08", "text", "the number 8", "8 or '08'"),
        ("1e-4", "text", "the number 0.0001", "0.0001 or '1e-4'"),
        ("1e-5", "text", "the number 1.0e-05", "1.0e-05 or '1e-5'"),
        ("1.0e5", "text", "the number 100000.0", "100000.0 or '1.0e5'"),
        ("+.5", "text", "the number 0.5", "0.5 or '+.5'"),
        ("-_1", "text", "the number -1", "-1 or '-_1'"),
        ("-_", "text", "an error", "'-_'"),
        ("yes", "true", "text", "true or 'yes'"),
        ("off", "false", "text", "false or 'off'"),
        ("n", "false", "text", "false or 'n'"),
        ("2024-01-01", "a date", "text", "'2024-01-01'"),
        ("2024-15-01", "an error", "text", "'2024-15-01'"),
        ("=", "an error", "text", "'='"),
    ],
)
def test_what_versions_of_yaml_read_differently_is_refused(
    written: str, old: str, new: str, instead: str
):
    message = refusal(f"a:\n  - b: {written}\n")
    assert message == (
        f"a.yaml: line 2: a.0.b: '{written}' without quotes is {old} in YAML 1.1 (Snakemake) and"
        f" {new} in YAML 1.2 (DVC); write {instead}"
    )
    assert parse(f"a: '{written}'", "a.yaml") == {"a": written}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  no: 1", "line 2: a: 'no' without quotes is false in YAML 1.1"),
        ("on: 1", "line 1: 'on' without quotes is true in YAML 1.1"),
        ("1: a", "line 1: the key '1' is no text for YAML; put it in quotes"),
        ("true: a", "line 1: the key 'true' is no text"),
        ("~: a", "line 1: the key '~' is no text"),
        ("?\n: a", "line 1: the key '' is no text"),
        ("a: &a {b: 1}\nc: {<<: *a, b: 2}", "line 2: c: << merges mappings in YAML 1.1"),
        ("{[a]: 1}", "line 1: a list or mapping as key"),
        ("? {a: 1}\n: 1", "line 1: a list or mapping as key"),
        ("b: 1\na: 2\n'b': 3", "line 3: key 'b' appears twice"),
        ("a: &a [1]\n*a : 1", "line 2: an alias (*) as key"),
        ("%YAML 1.1\n---\na: 1", "line 1: a directive (%)"),
        ("a: !!int '3'", "line 1: a: the tag 'tag:yaml.org,2002:int'"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: a: the tag "),
        ("a: {b: &a [*a]}", "line 1: a.b.0: *a is part of what it stands for"),
        ("a: *b", "line 1, column 4: found undefined alias"),
        ("a:\n\tb: 1", "indented with spaces, not tabs"),
        ("a: 1\nb: x\0", r"line 2: the control character '\x00'"),
        ("a: \x1b[31m", r"line 1: the control character '\x1b'"),
        ('"\\e[31m": {c: yes}', r"line 1: '\x1b[31m'.c: 'yes' without quotes"),
        ('"\\e": 1\n"\\e": 1', r"key '\x1b' appears twice"),
        ("a: " + "9" * 5000, "line 1: a: a number of 5,000 characters"),
        ("a: 0" + "7" * 5000, "line 1: a: a number of 5,001 characters"),
        ("a: *" + "b" * 5000, "found undefined alias"),
        ('"' + "k" * 500 + '": yes', "'kkkk"),
        ("a: 1\n---\nb: 1", "expected a single document"),
    ],
)
def test_a_refusal_is_one_short_line_with_place_and_reason(text: str, expected: str):
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "line 6: f.0: more than 100,000 values, with aliases (*) written out"),
        ("a: " + "[" * 100_000, f"nested more than {DEEPEST} levels deep"),
        ("a: " + "{a: " * 10_000, f"nested more than {DEEPEST} levels deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(1000)), f"nested more than {DEEPEST} levels deep"),
        ("? " * 10_000, "a list or mapping as key"),
        (CHAIN, f"nested more than {DEEPEST} levels deep"),
        ("- " * 10_000, f"nested more than {DEEPEST} levels deep"),
    ],
    ids=["aliases", "lists", "mappings", "blocks", "keys", "chain", "items"],
)
def test_what_would_take_for_ever_is_refused_at_once(text: str, expected: str):
    started = time.process_time()
    assert expected in refusal(text)
    assert time.process_time() - started < 2


def test_anchors_in_moderate_use_are_read():
    text = "a: &a {x: &x [1, 2]}\nb: *a\nc: {x: *x, y1: &w z, y2: *w}\n"
    assert parse(text, "a.yaml") == yaml.safe_load(text)


def readings(text: str) -> list[Any]:
    """What the libraries of both engines make of a value without quotes."""
    try:
        return [load(f"- {text}\n")[0] for load in (yaml.safe_load, YAML(typ="safe").load)]
    except (yaml.YAMLError, RuamelError, ValueError):
        return [None, "an error"]


@given(st.text("0123456789abeEfnoxyYNTtrue_.:+-~=", max_size=8))
def test_both_engines_read_alike_what_is_accepted(text: str):
    try:
        accepted = parse(f"- {text}\n", "a.yaml")
    except UserError:
        return
    old, new = readings(text)
    assert repr(accepted[0]) == repr(old) == repr(new)
    assert is_special(text) or old == text or not isinstance(old, str)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_what_is_shipped_is_read(file: Path):
    assert read_yaml(file) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: é\n".encode("utf-16"), "line 1: the text is UTF-16 (byte 0xff); save the file as"),
        (b"a: 1\nb: caf\xe9\n", "line 2: the text is not UTF-8 (byte 0xe9); save the file as"),
        ("a: e\n".encode("utf-16-be"), r"line 1: the control character '\x00'"),
        (b"a: " + b"b" * LARGEST_FILE, "larger than 1 MiB, which no settings need"),
        (b"", "expected a mapping of settings (key: value), found nothing"),
        (b"- a\n", "expected a mapping of settings (key: value), found a list"),
    ],
    ids=["utf-16", "latin-1", "utf-16-be", "large", "empty", "list"],
)
def test_a_file_that_is_no_text_of_settings_is_refused(
    tmp_path: Path, content: bytes, expected: str
):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert expected in str(caught.value)


def test_a_file_in_utf_8_with_a_mark_of_byte_order_is_read(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_bytes("a: é\n".encode("utf-8-sig"))
    assert read_yaml(file) == {"a": "é"}


def test_a_folder_a_pipe_and_a_missing_file_are_told_apart(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (
        ("", "is a folder; give the path of a params file"),
        ("pipe", "is a device or pipe; give the path of a params file"),
        ("none", "no such file; give the path of a params file"),
        ("pipe/none", "can't be read: Not a directory"),
    ):
        with pytest.raises(UserError, match=expected):
            read_yaml(tmp_path / name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_that_another_user_may_not_read_is_named(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\n")
    file.chmod(0o600)
    code = (
        "import os, sys; from pathlib import Path; from wrinklefree.config.load import read_yaml\n"
        "os.chdir(Path(sys.argv[1]).parent); os.setuid(65534); read_yaml(Path('a.yaml'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env=os.environ | {"PYTHONPATH": str(PROJECT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.endswith("UserError: a.yaml: can't be read: Permission denied\n")
