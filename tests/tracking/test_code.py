from __future__ import annotations

import ast
from pathlib import Path

import pytest

from wrinklefree.engines.dvc_code import PIPELINES, with_current_code
from wrinklefree.tracking.code import _imported_modules, code_digest, code_files

PROJECT = Path(__file__).parents[2]

FILES = {
    "script.py": "import json\nfrom wrinklefree.a.one import f\n",
    "src/wrinklefree/__init__.py": "",
    "src/wrinklefree/a/__init__.py": "",
    "src/wrinklefree/a/one.py": "def f():\n    from wrinklefree.b import two\n",
    "src/wrinklefree/b/__init__.py": "import wrinklefree.c\n",
    "src/wrinklefree/b/two.py": "import os\n",
    "src/wrinklefree/b/unused.py": "",
    "src/wrinklefree/c.py": "from wrinklefree.a import one\n",
    "src/wrinklefree/d.py": "",
}
IMPORTED = sorted(set(FILES) - {"src/wrinklefree/b/unused.py", "src/wrinklefree/d.py"})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def test_imports_are_followed_through_packages_functions_and_circles(project: Path):
    found = code_files(project / "script.py", project / "src")
    assert [file.relative_to(project).as_posix() for file in found] == IMPORTED


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_digest_changes_with_an_edit_of_an_imported_file_and_of_no_other(
    project: Path, name: str
):
    before = code_digest(project / "script.py", project / "src")
    (project / name).write_text(FILES[name] + "edited = 1\n")
    after = code_digest(project / "script.py", project / "src")
    assert (before != after) == (name in IMPORTED)


CODE = """
import os

def f(a: int) -> str:
    return f"{a}" "text"

class C:
    x: int = 1
"""
SAME_CODE = '''
"""What the module does."""
import os  # a comment

# Another.
def f(a: int,) -> str:
    """What it does."""
    return (f'{a}'
            "te" "xt")


class C:
    """What it is."""

    x: int = 1
    """What x is."""
'''


def test_comments_docstrings_and_layout_are_no_code_and_names_are(project: Path):
    file = project / "src/wrinklefree/c.py"
    digests = []
    for text in (CODE, SAME_CODE, CODE.replace("(a:", "(b:").replace("{a}", "{b}")):
        file.write_text(text)
        digests.append(code_digest(project / "script.py", project / "src"))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("place", ["aaa", "zzz"])
def test_the_digest_does_not_depend_on_where_the_script_lies(project: Path, place: str):
    script = project / place / "script.py"
    script.parent.mkdir()
    script.write_text(FILES["script.py"])
    source = project / "src"
    assert code_digest(script, source) == code_digest(project / "script.py", source)


@pytest.mark.parametrize("path", PIPELINES, ids=str)
def test_dvc_depends_on_the_modules_that_the_stages_import(path: Path):
    text = (PROJECT / path).read_text()
    assert with_current_code(PROJECT / path, PROJECT) == text, "run `wrinklefree code --write`"


def test_the_kernels_are_no_dependency_of_the_data_stages():
    for stage in ("fetch", "tokenize", "mixture"):
        script = PROJECT / "workflow" / "scripts" / f"{stage}.py"
        for file in code_files(script, PROJECT / "src"):
            assert "kernels" not in file.parts and "optim" not in file.parts, file


def parsed_imports(file: Path) -> set[str]:
    """The slow way: what the parser says is imported from the package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "wrinklefree"}


@pytest.mark.parametrize("folder", ["src", "workflow", "tests"])
def test_no_import_that_the_parser_sees_is_missed(folder: str):
    for file in sorted((PROJECT / folder).rglob("*.py")):
        assert parsed_imports(file) <= _imported_modules(file.read_bytes()), file


def test_a_relative_import_is_refused(project: Path):
    (project / "src/wrinklefree/a/one.py").write_text("from . import other\n")
    with pytest.raises(AssertionError, match="by the absolute name"):
        code_files(project / "script.py", project / "src")


def test_imports_point_one_way():
    """The layers of CONTRIBUTING.md: a module imports from its own layer and those below."""
    layers = [
        {"errors"},
        {"config", "kernels", "quant", "tracking"},
        {"models", "optim", "stability", "data", "diffusion", "distill"},
        {"train", "evaluate", "export"},
        {"research"},
        {"cli"},
    ]
    rank = {name: index for index, layer in enumerate(layers) for name in layer}
    source = PROJECT / "src" / "wrinklefree"
    for file in sorted(source.rglob("*.py")):
        own = file.relative_to(source).parts[0].removesuffix(".py")
        for name in parsed_imports(file):
            used = [*name.split("."), ""][1]
            if own in rank and used in rank:
                assert rank[used] <= rank[own], f"{file} imports {name}"
