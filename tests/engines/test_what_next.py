from __future__ import annotations

import time
from pathlib import Path

from wrinklefree.engines.what_next import what_next


def test_only_what_this_run_made_is_named_with_the_files_that_are_there(here: Path):
    started = time.time() - 1
    assert what_next(started) == []
    for name in ("results", "models/export"):
        (here / name).mkdir(parents=True)
        (here / name / "manifest.json").touch()
    for name in ("config.json", "model-TQ2_0.gguf"):
        (here / "models/export" / name).touch()
    results, student, runs = what_next(started)
    assert results.startswith("results/: table.txt")
    assert student.endswith("the student for transformers; model-TQ2_0.gguf for llama.cpp")
    assert runs.startswith("mlflow ui")
    assert what_next(time.time() + 1) == []
    (here / "models/export/model-I2_S.gguf").touch()
    assert " ".join(what_next(started)[1:3]).endswith("llama.cpp; model-I2_S.gguf for bitnet.cpp")
    assert max(map(len, (results, student, runs))) <= 80
    (here / "models/export/config.json").unlink()
    assert len(what_next(started)) == 2, "where nothing was exported there is no student"
