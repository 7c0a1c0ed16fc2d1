"""Lets the tests of this folder import ``ahead_of_time``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
