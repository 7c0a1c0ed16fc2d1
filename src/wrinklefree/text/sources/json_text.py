"""JSON as sources read it: nothing of a record is lost without a word."""

from __future__ import annotations

import json
from typing import Any

from wrinklefree.text.sources.bad_records import BadRecords

BAD = object()
"""What :func:`json_value` gives for a record that was reported."""


def json_value(data: bytes, where: str, bad: BadRecords) -> Any:
    """The value that ``data`` is; ``BAD`` if it is no UTF-8 or no JSON, which is reported.

    An object that has a key twice is no JSON: Python would silently take the last.
    """
    advice = "correct it, leave the file out"
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unambiguous)
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        bad.report("not UTF-8", f"{where}: not UTF-8 ({place}); {advice}")
    except (ValueError, RecursionError) as error:
        bad.report("not JSON", f"{where}: not JSON ({error}); {advice}")
    return BAD


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} comes twice in one object")
    return content
