"""``teachers``: dense models beside the base."""

from __future__ import annotations

from wrinklefree.downloads.settings import BroughtSource
from wrinklefree.schema.section import Section


class TeacherSettings(Section):
    """A dense model that can teach beside the base, or in its place; it may be larger."""

    source: BroughtSource
    """Where the model comes from. Its tokenizer must be the base's, unless its student has
    ``universal: true``."""
