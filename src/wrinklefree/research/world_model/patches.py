"""Frames as tokens: finite scalar quantization (FSQ, arXiv 2309.15505) behind a linear encoder.

FSQ learns an encoder and rounds its few outputs to evenly spaced levels. Here the encoder is in
closed form, the principal components of patches, and so are its levels, which are where the values
are (Lloyd's algorithm in one dimension). The code of a patch is the tuple of its levels.

Shapes: N clips, F frames, P pixels of a frame's width and height, T tokens of a clip, M patches,
X pixels of a patch, C components.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from wrinklefree.research.world_model.settings import PatchTokenizerSettings

_ROUNDS = 50
"""Of Lloyd's algorithm, far beyond where it stands still."""


@dataclass(frozen=True)
class PatchTokenizer:
    """Turns clips into tokens and back. A token's components are its digits, the first largest."""

    settings: PatchTokenizerSettings
    basis_CX: np.ndarray
    """Orthonormal rows."""
    levels: list[np.ndarray]
    """Of each component, growing."""

    @classmethod
    def fitted(cls, settings: PatchTokenizerSettings, frames: np.ndarray) -> PatchTokenizer:
        """The tokenizer whose squared error on ``frames`` is least, component by component."""
        patches_MX = _patches(frames, settings.patch_size)
        counts = list(chain.from_iterable(settings.levels))
        # Around 0 and not around the mean: a black patch is 0 in all components.
        _, basis_XX = np.linalg.eigh(patches_MX.T @ patches_MX)
        basis_CX = basis_XX.T[::-1][: len(counts)]
        largest_C = np.abs(basis_CX).argmax(1)[:, None]
        basis_CX = basis_CX * np.sign(np.take_along_axis(basis_CX, largest_C, 1))
        values_CM = basis_CX @ patches_MX.T
        return cls(settings, basis_CX, list(map(_levels, values_CM, counts)))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """float32 [N, F, P, P] to int64 [N, T], frame by frame, line by line."""
        values_CM = self.basis_CX @ _patches(frames, self.settings.patch_size).T
        token_M = np.zeros(values_CM.shape[1], dtype=np.int64)
        for levels, values_M in zip(self.levels, values_CM, strict=True):
            token_M = token_M * len(levels) + np.searchsorted(_between(levels), values_M)
        return token_M.reshape(len(frames), -1)

    def decode(self, tokens_NT: np.ndarray, size: int) -> np.ndarray:
        """int64 [N, T] to float32 [N, F, P, P], of ``size`` pixels; values within 0 to 1."""
        digits = np.unravel_index(tokens_NT.reshape(-1), [len(levels) for levels in self.levels])
        values_CM = [levels[digit_M] for levels, digit_M in zip(self.levels, digits, strict=True)]
        patch = self.settings.patch_size
        patches = (np.stack(values_CM, 1) @ self.basis_CX).clip(0, 1).astype(np.float32)
        side = size // patch
        grid = patches.reshape(len(tokens_NT), -1, side, side, patch, patch)
        return grid.swapaxes(3, 4).reshape(len(tokens_NT), -1, size, size)


def _patches(frames: np.ndarray, patch: int) -> np.ndarray:
    """float64 [M, X]."""
    clips, count, size, _ = frames.shape
    grid = frames.reshape(clips, count, size // patch, patch, size // patch, patch)
    return grid.swapaxes(3, 4).reshape(-1, patch * patch).astype(np.float64)


def _between(levels: np.ndarray) -> np.ndarray:
    """Where the nearest level changes."""
    return (levels[1:] + levels[:-1]) / 2


def _levels(values_M: np.ndarray, count: int) -> np.ndarray:
    """Growing levels, float64 [count], for values that are often 0, which is one of them."""
    other = np.sort(values_M[np.abs(values_M) > 1e-6])
    levels = np.quantile(other, (np.arange(count) + 0.5) / count)
    zero = np.abs(levels).argmin()
    for _ in range(_ROUNDS):
        levels[zero] = 0.0
        parts = np.split(other, np.searchsorted(other, _between(levels)))
        levels = np.array(
            [part.mean() if len(part) else level for part, level in zip(parts, levels, strict=True)]
        )
    levels[zero] = 0.0
    return levels
