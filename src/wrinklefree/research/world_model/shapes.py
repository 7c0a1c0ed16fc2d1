"""Videos of moving shapes, a function of the seed alone.

Shapes: N clips, F frames, P pixels of a frame's width and height, K shapes of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from wrinklefree.diffusion.corruption import keyed_generator
from wrinklefree.research.world_model.settings import VideoSettings

Split = Literal["train", "held_out"]
CLIPS_AT_ONCE = 256
"""Bounds memory and changes nothing else."""
_RADIUS = (0.12, 0.22)
"""Least and largest, of a frame's size."""
_BRIGHTNESS = (0.4, 1.0)
_KINDS = 3
"""Squares, discs and diamonds."""


def clips(settings: VideoSettings, split: Split, seed: int) -> Iterator[np.ndarray]:
    """All clips of a split, some at a time: float32 [N, F, P, P], black 0 and white 1.

    More clips begin with the same ones.
    """
    count = settings.clips if split == "train" else settings.held_out_clips
    generator = keyed_generator("shapes", seed, split)
    for start in range(0, count, CLIPS_AT_ONCE):
        rows = min(CLIPS_AT_ONCE, count - start)
        yield _drawn(settings, generator.random((rows, settings.shapes, 7)))


def _drawn(settings: VideoSettings, draws_NK7: np.ndarray) -> np.ndarray:
    kind_NK, radius_NK, brightness_NK = np.moveaxis(draws_NK7[..., :3], -1, 0)
    kind_NK = (kind_NK * _KINDS).astype(int)
    radius_NK = settings.size * np.interp(radius_NK, (0, 1), _RADIUS)
    brightness_NK = np.interp(brightness_NK, (0, 1), _BRIGHTNESS)
    place_NKF2 = positions(settings, radius_NK, draws_NK7[..., 3:5], draws_NK7[..., 5:7])
    pixel_P = np.arange(settings.size) + 0.5
    frames = np.zeros((len(draws_NK7), settings.frames, settings.size, settings.size), np.float32)
    for shape in range(settings.shapes):
        across, down = (
            np.abs(pixel_P - place_NKF2[:, shape, :, axis, None]).astype(np.float32)
            for axis in range(2)
        )
        across, down = across[:, :, None, :], down[:, :, :, None]
        distances = (np.maximum(across, down), np.hypot(across, down), across + down)
        kind, radius, brightness = (
            values_NK[:, shape, None, None, None]
            for values_NK in (kind_NK, radius_NK, brightness_NK)
        )
        # What a pixel's middle is inside of the edge, as a share: the edge moves by less than one.
        share = np.clip(radius - np.choose(kind, distances) + 0.5, 0, 1).astype(np.float32)
        frames += share * (brightness.astype(np.float32) - frames)
    return frames


def positions(
    settings: VideoSettings, radius_NK: np.ndarray, start_NK2: np.ndarray, speed_NK2: np.ndarray
) -> np.ndarray:
    """Middles of shapes in pixels, [N, K, F, 2]: along a line that is folded between the edges.

    Start and speed are shares of what is possible, between 0 and 1.
    """
    room_NK11 = settings.size - 2 * radius_NK[..., None, None]
    speed_NK12 = settings.most_speed * (2 * speed_NK2[:, :, None] - 1)
    frame_F1 = np.arange(settings.frames)[:, None]
    line_NKF2 = (start_NK2[:, :, None] * room_NK11 + frame_F1 * speed_NK12) % (2 * room_NK11)
    return radius_NK[..., None, None] + room_NK11 - np.abs(line_NKF2 - room_NK11)
