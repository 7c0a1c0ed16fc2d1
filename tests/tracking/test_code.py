from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest
import yaml

from wrinklefree.engines.dvc_code import PIPELINES, with_current_code
from wrinklefree.tracking.code import (
    _imported_modules,
    code_digest,
    code_parts,
    compiled_text,
    folders_digest,
    imported_files,
)

PROJECT = Path(__file__).parents[2]

FILES = {
    "script.py": "import json\nfrom wrinklefree.a.one import f\n",
    "src/wrinklefree/__init__.py": "",
    "src/wrinklefree/a/__init__.py": "",
    "src/wrinklefree/a/one.py": "def f():\n    from wrinklefree.b import two\n",
    "src/wrinklefree/b/__init__.py": "import wrinklefree.c\n",
    "src/wrinklefree/b/two.py": "import os\n",
    "src/wrinklefree/b/unused.py": "B = 1\n",
    "src/wrinklefree/c.py": "from wrinklefree.a import one\nimport wrinklefree.e.f.one\n",
    "src/wrinklefree/d.py": "UNUSED = 1\n",
    "src/wrinklefree/e/__init__.py": '"""Only words."""\n',
    "src/wrinklefree/e/f/one.py": "F = 1\n",
    "src/wrinklefree/e/g/unused.py": "G = 1\n",
}
OTHERS = ["src/wrinklefree/d.py", "src/wrinklefree/e/g/unused.py"]
"""Neither imported nor in a folder of what is."""
PARTS = ["script.py", *(f"src/wrinklefree/{part}" for part in ("a", "b", "c.py", "e/f"))]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def test_a_stage_depends_on_the_folders_of_what_it_imports(project: Path):
    """Through packages, functions and circles; not on a folder above that holds only words."""
    found = code_parts(project / "script.py", project / "src")
    assert [part.relative_to(project).as_posix() for part in found] == PARTS


@pytest.mark.parametrize("name", sorted(FILES))
def test_engines_watch_these_folders_and_a_stage_the_modules_that_it_imports(
    project: Path, name: str
):
    def digests() -> tuple[str, str]:
        script, source = project / "script.py", project / "src"
        return folders_digest(script, source), code_digest(script, source)

    before = digests()
    (project / name).write_text(FILES[name] + "edited = 1\n")
    folders, modules = (one != other for one, other in zip(before, digests(), strict=True))
    assert folders == (name not in OTHERS)
    assert modules == (name not in [*OTHERS, "src/wrinklefree/b/unused.py"])


def test_a_folder_stands_for_the_folders_in_it(project: Path):
    (project / "src/wrinklefree/e/__init__.py").write_text("E = 1\n")
    found = code_parts(project / "script.py", project / "src")
    assert [part.relative_to(project).as_posix() for part in found] == [
        *PARTS[:-1],
        "src/wrinklefree/e",
    ]


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
def test_what_a_stage_imports_lies_in_the_folders_that_dvc_knows(path: Path):
    stages = yaml.safe_load((PROJECT / path).read_text())["stages"]
    for stage in (stage.get("do", stage) for stage in stages.values()):
        folders = [PROJECT / dep for dep in stage["deps"] if dep.startswith("src/")]
        for script in (PROJECT / dep for dep in stage["deps"] if dep.startswith("workflow/")):
            for file in imported_files(script, PROJECT / "src"):
                known = file == script or not {file, *file.parents}.isdisjoint(folders)
                assert known or not compiled_text(file.read_bytes()), (script.stem, file)


@pytest.mark.parametrize("path", PIPELINES, ids=str)
def test_dvc_knows_the_folders_that_snakemake_knows(path: Path):
    text = (PROJECT / path).read_text()
    assert with_current_code(PROJECT / path, PROJECT) == text, "run `wrinklefree code --write`"


TRAINING = {"kernels", "quant", "models", "optim", "stability", "diffusion", "distill", "train"}


@pytest.mark.parametrize("stage", ["fetch", "clean", "tokenizer", "tokenize", "mixture"])
def test_data_stages_depend_on_no_code_of_training_and_on_no_settings_of_it(stage: str):
    script = PROJECT / "workflow" / "scripts" / f"{stage}.py"
    folders = {part.name for part in code_parts(script, PROJECT / "src")}
    assert folders.isdisjoint(TRAINING | {"config", "evaluate", "export", "research"})


@pytest.mark.parametrize("stage", ["subln", "stage2", "dlm", "distill", "evaluate", "export"])
def test_stages_of_a_model_depend_on_no_code_that_reads_or_cleans_text(stage: str):
    script = PROJECT / "workflow" / "scripts" / f"{stage}.py"
    folders = {
        part.relative_to(PROJECT / "src").as_posix()
        for part in code_parts(script, PROJECT / "src")
        if part != script
    }
    assert not [folder for folder in folders if "/text" in folder or "/config" in folder]


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
        code_digest(project / "script.py", project / "src")


def test_imports_point_one_way():
    """The layers of CONTRIBUTING.md: from a room's own and those below, and in no circle."""
    layers = [
        {"errors"},
        {"schema", "kernels", "tracking"},
        {"downloads", "quant", "text"},
        {"tokens", "tasks", "mixture", "models", "optim", "stability", "diffusion", "distill"},
        {"train", "evaluate", "export"},
        {"research"},
        {"config", "engines", "plan", "cli"},
    ]
    rank = {name: index for index, layer in enumerate(layers) for name in layer}
    source = PROJECT / "src" / "wrinklefree"
    rooms: dict[str, set[str]] = {}
    for file in sorted(source.rglob("*.py")):
        own = file.relative_to(source).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in parsed_imports(file):
            used = [*name.split("."), ""][1]
            if used in rank and used != own:
                assert rank[used] <= rank[own], f"{file} imports {name}"
                rooms.setdefault(own, set()).add(used)
    assert set(graphlib.TopologicalSorter(rooms).static_order()) == set(rank)
