"""What a run came to, and what a person can look at, when it has ended."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

from wrinklefree.engines.answer import answer_of_run
from wrinklefree.export.settings import I2_S_FILE

_WIDTH = 80
_STUDENT = Path("models/export")


def what_next(since: float) -> list[str]:
    """Lines about what was made after the time ``since`` (seconds of the epoch), here.

    Nothing of what stands from an earlier run; nothing at all where no result was made.
    """
    lines = []
    if _is_new(Path("results"), since):
        lines += [line for sentence in answer_of_run() for line in wrap(sentence, _WIDTH)]
        lines.append("results/: table.txt, samples.md, plots/; make report puts all into one page")
    if _is_new(_STUDENT, since) and (_STUDENT / "config.json").is_file():
        files = sorted(path.name for path in _STUDENT.glob("*.gguf") if path.name != I2_S_FILE)
        runs = f"; {', '.join(files)} for llama.cpp" if files else ""
        runs += f"; {I2_S_FILE} for bitnet.cpp" * (_STUDENT / I2_S_FILE).is_file()
        lines += wrap(f"{_STUDENT}/: the student for transformers{runs}", _WIDTH)
    if lines:
        lines.append("mlflow ui: every run with its settings, metrics and inputs")
    return lines


def _is_new(folder: Path, since: float) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and manifest.stat().st_mtime >= since
