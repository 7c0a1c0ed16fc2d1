from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.config.sources import PackageSource
from wrinklefree.data.sources.package import documents, json_documents
from wrinklefree.errors import UserError
from wrinklefree.tracking.files import sha256_of_file


def source(sha256: str, **settings: Any) -> PackageSource:
    defaults = {"include": ["demo/**"], "format": "text"}
    fixed = {"kind": "package", "domain": "d", "licence": "l", "package": "demo-text"}
    return PackageSource(**{**fixed, "version": "1.0", "sha256": sha256, **defaults, **settings})


def test_a_text_member_is_a_document_in_the_order_of_paths(make_wheel, tmp_path: Path) -> None:
    members = {
        "demo/b.txt": "ü".encode(),
        "demo/a/c.txt": b"c",
        "demo/a.bin": b"\xff",
        "x.txt": b"",
    }
    _, sha256 = make_wheel(members)
    found = list(documents(source(sha256, exclude=["**/*.bin"]), cache=tmp_path))
    assert found == [("demo/a/c.txt", "c"), ("demo/b.txt", "ü")]


def test_members_outside_of_the_folder_are_read_and_never_written(
    make_wheel, tmp_path: Path
) -> None:
    _, sha256 = make_wheel({"../../evil.txt": b"e"})
    cache = tmp_path / "deep" / "cache"
    assert list(documents(source(sha256, include=["**"], exclude=["demo_text*/**"]), cache=cache))
    assert not list(tmp_path.rglob("evil.txt"))


def test_tags_are_stripped_on_request_only(make_wheel, tmp_path: Path) -> None:
    _, sha256 = make_wheel({"demo/a.html": b"<p>a &amp; b</p>"})
    texts = [
        next(documents(source(sha256, strip_tags=strip), cache=tmp_path)).text
        for strip in (False, True)
    ]
    assert texts == ["<p>a &amp; b</p>", "a & b"]


def test_collection_of_records_gives_a_document_per_entry() -> None:
    value = {
        "A/B": {"title": "t", "extract": "one"},
        "m~n": {"extract": "two", "more": {"extract": "three"}},
        "none": {"title": "no text"},
    }
    assert list(json_documents("f.json", value, ["extract"])) == [
        ("f.json#/A~1B", "one"),
        ("f.json#/m~0n", "two\n\nmore\nthree"),
        ("f.json#/none", ""),
    ]
    assert [d.id for d in json_documents("f.json", list(value.values()), ["extract"])] == [
        "f.json#/0",
        "f.json#/1",
        "f.json#/2",
    ]


def test_nested_sections_give_one_document_with_headings() -> None:
    value = {
        "Geography": {
            "Location": {"text": "north"},
            "Area": {"total ": {"text": "9", "note": "unread"}, "land": {"text": " 8 "}},
            "Empty": {"text": " "},
        },
        "People": [{"Name": {"text": "x"}}],
    }
    (document,) = json_documents("f.json", value, ["text"])
    expected = "Geography\nLocation\nnorth\n\nArea\ntotal\n9\n\nland\n8\n\nPeople\nName\nx"
    assert document == ("f.json", expected)


def test_json_members_are_read_through_fields(make_wheel, tmp_path: Path) -> None:
    data = json.dumps({"k": {"text": "a<br>b", "other": "no"}}).encode()
    _, sha256 = make_wheel({"demo/x.json": data})
    settings = source(sha256, format="json", fields=["text"], strip_tags=True)
    assert list(documents(settings, cache=tmp_path)) == [("demo/x.json#/k", "a\nb")]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (b"\xff\xfe", {}, "demo/x .*not UTF-8"),
        (b"{", {"format": "json", "fields": ["text"]}, "demo/x .*not JSON"),
        (b"x", {"include": ["nothing/*"]}, "no file .* matches include"),
    ],
)
def test_unreadable_member_names_itself(
    make_wheel, tmp_path: Path, data: bytes, settings: dict[str, Any], message: str
) -> None:
    _, sha256 = make_wheel({"demo/x": data})
    with pytest.raises(UserError, match=message):
        list(documents(source(sha256, **settings), cache=tmp_path))


def test_broken_zip_is_a_clear_error(make_wheel, tmp_path: Path) -> None:
    path, _ = make_wheel({"demo/a.txt": b"some text " * 1000})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("demo/a.txt").header_offset
    data = bytearray(path.read_bytes())
    data[start + 50] ^= 0xFF  # inside the member: its checksum no longer fits
    for broken in (bytes(data), path.read_bytes()[:200]):
        sha256 = _cached(path, broken, tmp_path)
        with pytest.raises(UserError, match="not a readable wheel"):
            list(documents(source(sha256), cache=tmp_path))


def _cached(path: Path, data: bytes, cache: Path) -> str:
    path.write_bytes(data)
    sha256 = sha256_of_file(path)
    (cache / sha256).mkdir()
    path.rename(cache / sha256 / path.name)
    path.parent.mkdir(exist_ok=True)
    return sha256
