"""Keeping training stable, and noticing when it is not.

For training loops of one's own, ``from wrinklefree.stability import ZClip, LambdaWarmup``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wrinklefree.stability.lambda_warmup import LambdaWarmup
    from wrinklefree.stability.zclip import ZClip

__all__ = ["LambdaWarmup", "ZClip"]
_MODULES = {"LambdaWarmup": "lambda_warmup", "ZClip": "zclip"}


def __getattr__(name: str) -> object:
    """Import what is asked for only then: this room's settings are to load no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
