from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tokenizer(
    save_tokenizer: Callable[[Path, list[str]], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, ["<|endoftext|>"])
    return folder
