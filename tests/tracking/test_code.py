from __future__ import annotations

from pathlib import Path

import pytest

from wrinklefree.tracking.code import code_digest, code_files
from wrinklefree.tracking.dvc_code import with_current_code

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
    (project / name).write_text(FILES[name] + "# edited\n")
    after = code_digest(project / "script.py", project / "src")
    assert (before != after) == (name in IMPORTED)


def test_dvc_depends_on_the_modules_that_the_stages_import():
    text = (PROJECT / "dvc.yaml").read_text()
    assert with_current_code(PROJECT / "dvc.yaml") == text, "run `wrinklefree code --write`"


def test_the_kernels_are_no_dependency_of_the_data_stages():
    for stage in ("fetch", "tokenize", "mixture"):
        script = PROJECT / "workflow" / "scripts" / f"{stage}.py"
        for file in code_files(script, PROJECT / "src"):
            assert "kernels" not in file.parts and "optim" not in file.parts, file
