"""Both engines over texts instead of folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cleaner import Cleaner


@pytest.fixture
def clean(tmp_path: Path) -> Cleaner:
    """Call it with texts and settings; see ``Cleaner``."""
    return Cleaner(tmp_path)
