from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from wrinklefree.downloads import local_files
from wrinklefree.downloads.local_files import digest_of_files, files_of_folder, find_files
from wrinklefree.errors import UserError


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def digest(*patterns: str) -> str:
    return digest_of_files(find_files(list(patterns)))


def test_glob_without_files_is_an_error_even_beside_one_that_has_some(here: Path) -> None:
    write(here / "a.txt")
    (here / "b.txt").mkdir()
    with pytest.raises(UserError, match=r"no file matches 'b\*\.txt'"):
        find_files(["a.txt", "b*.txt"])


def test_a_file_is_found_once_however_it_is_named(here: Path) -> None:
    write(here / "x" / "a.txt", here / "x[1].txt")
    patterns = ["**/*.txt", "x/a.txt", "./x/../x/a.txt", str(here / "x" / "*"), "x[1].txt"]
    assert list(find_files(patterns)) == ["x/a.txt", "x[1].txt"]


def test_a_file_that_links_give_many_paths_is_found_by_the_shortest(here: Path) -> None:
    write(here / "x" / "b.txt")
    (here / "x" / "loop").symlink_to(".")
    (here / "x" / "longer.txt").symlink_to("b.txt")
    assert list(find_files(["**/*.txt"])) == ["x/b.txt"]


def test_link_to_nothing_is_an_error_and_not_passed_over(here: Path) -> None:
    write(here / "a.txt")
    (here / "b.txt").symlink_to("absent")
    with pytest.raises(UserError, match=r"b\.txt is a link to nothing; remove it or narrow"):
        find_files(["*.txt"])


def test_pipe_is_an_error_and_not_passed_over(here: Path) -> None:
    write(here / "a.txt")
    os.mkfifo(here / "b.txt")
    with pytest.raises(UserError, match=r"b\.txt is neither a file nor a folder"):
        find_files(["*.txt"])


def test_name_that_no_file_can_have_is_no_match(here: Path) -> None:
    with pytest.raises(UserError, match="no file matches"):
        find_files(["a" * 300])


def test_files_elsewhere_are_named_from_the_folder_that_holds_them_all(
    here: Path, tmp_path: Path
) -> None:
    write(here / "own.txt", *(tmp_path / "far" / name for name in ("a/1.txt", "b/1.txt")))
    names = ["a/1.txt", "b/1.txt", "own.txt"]
    assert list(find_files(["own.txt", f"{tmp_path}/far/**/*.txt"])) == names
    assert list(find_files(["own.txt", "../far/*/1.txt"])) == names
    # As a shell would have resolved the glob.
    one_by_one = [f"{tmp_path}/far/a/1.txt", f"{tmp_path}/far/b/1.txt"]
    assert list(find_files(["own.txt", *one_by_one])) == names


def test_two_files_of_one_name_are_an_error(here: Path, tmp_path: Path) -> None:
    write(here / "a.txt", tmp_path / "far" / "a.txt")
    with pytest.raises(UserError, match=r"would both be called a\.txt"):
        find_files(["a.txt", "../far/a.txt"])


def test_digest_is_that_of_the_lines_of_sha256sum(here: Path) -> None:
    write(here / "b.txt", here / "a" / "c.txt")
    lines = [
        f"{hashlib.sha256(n.encode()).hexdigest()}  {p}"
        for n, p in (("c.txt", "a/c.txt"), ("b.txt", "b.txt"))
    ]
    expected = hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()
    assert digest("**/*.txt") == digest("b.txt", "a/*.txt") == expected


def test_digest_changes_with_content_name_and_number_of_files(here: Path) -> None:
    write(here / "a.txt")
    seen = {digest("*")}
    for change in (
        lambda: (here / "a.txt").write_text("other"),
        lambda: (here / "a.txt").rename(here / "c.txt"),
        lambda: write(here / "b.txt"),
    ):
        change()
        assert digest("*") not in seen
        seen.add(digest("*"))


def test_digest_does_not_depend_on_where_the_data_lies(here: Path, tmp_path: Path) -> None:
    for folder in ("one", "two/deep"):
        write(tmp_path / folder / "a" / "1.txt", tmp_path / folder / "2.txt")
    assert digest(f"{tmp_path}/one/**/*.txt") == digest(f"{tmp_path}/two/deep/**/*.txt")


def test_files_of_a_folder_are_named_from_it_and_hidden_ones_left_out(here: Path) -> None:
    write(here / "m" / "b.txt", here / "m" / "a" / "c.txt")
    write(here / "m" / ".cache" / "d.txt", here / "m" / ".e", here / "f.txt")
    assert list(files_of_folder(here / "m")) == ["a/c.txt", "b.txt"]
    assert list(files_of_folder(Path("m"))) == ["a/c.txt", "b.txt"]
    (here / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no files"):
        files_of_folder(here / "empty")


def test_unreadable_file_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "a.txt")

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(local_files, "sha256_of_file", refuse)
    with pytest.raises(UserError, match=r"a\.txt can't be read: Permission denied"):
        digest("*")
