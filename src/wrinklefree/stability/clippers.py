"""The registry of clippers."""

from __future__ import annotations

from collections.abc import Callable

from wrinklefree.stability.adagc import AdaGC
from wrinklefree.stability.clip import Clipper
from wrinklefree.stability.fixed import FixedClip
from wrinklefree.stability.settings import ClippingSettings
from wrinklefree.stability.zclip import ZClip

CLIPPERS: dict[str, Callable[..., Clipper]] = {
    "zclip": ZClip,
    "adagc": AdaGC,
    "fixed": FixedClip,
    "none": FixedClip,
}


def build_clipper(settings: ClippingSettings) -> Clipper:
    """The clipper that ``settings`` chooses, at the start of a training."""
    return CLIPPERS[settings.name](**settings.chosen)
