from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wrinklefree.research.world_model.settings import VideoSettings
from wrinklefree.research.world_model.shapes import CLIPS_AT_ONCE, clips, positions

SMALL: dict[str, Any] = {"clips": 20, "held_out_clips": 5, "frames": 6, "size": 16}


def drawn(split: Any = "train", seed: int = 1, **changes: Any) -> np.ndarray:
    return np.concatenate(list(clips(VideoSettings(**(SMALL | changes)), split, seed)))


def test_clips_follow_from_the_seed_and_more_of_them_begin_alike() -> None:
    first = drawn()
    assert first.shape == (20, 6, 16, 16) and first.dtype == np.float32
    assert np.array_equal(drawn(), first)
    many = drawn(clips=CLIPS_AT_ONCE + 3)
    assert len(many) == CLIPS_AT_ONCE + 3
    assert np.array_equal(many[:20], first)
    assert not np.array_equal(drawn(seed=2), first)
    assert not np.array_equal(drawn("held_out"), first[:5])


@pytest.mark.parametrize(
    "change",
    [{"clips": 21}, {"frames": 7}, {"size": 24}, {"shapes": 1}, {"most_speed": 1.0}],
    ids=str,
)
def test_every_setting_changes_the_clips(change: dict[str, Any]) -> None:
    assert not np.array_equal(drawn(**change), drawn())
    assert drawn("held_out", held_out_clips=6).shape[0] == 6


def test_shapes_are_bright_on_black_and_as_large_as_they_should_be() -> None:
    frames = drawn(shapes=1, most_speed=0.0, clips=200, size=64)
    assert frames.min() == 0.0
    assert np.all((frames.max((1, 2, 3)) >= 0.4) & (frames.max((1, 2, 3)) <= 1.0))
    assert np.array_equal(frames[:, 0], frames[:, -1])
    area = frames[:, 0].sum((1, 2)) / frames[:, 0].max((1, 2)) / 64**2
    # From the smallest diamond, 2 r^2, to the largest square, 4 r^2.
    assert area.min() > 2 * 0.12**2 * 0.97 and area.max() < 4 * 0.22**2 * 1.03
    assert area.max() / area.min() > 3


def test_shapes_move_evenly_and_bounce_off_the_edges() -> None:
    settings = VideoSettings(frames=60, size=20, shapes=2, most_speed=1.5)
    generator = np.random.default_rng(0)
    radius, start = generator.uniform(2, 4, (3, 2)), generator.random((3, 2, 2))
    speed = generator.random((3, 2, 2))
    found = positions(settings, radius, start, speed)
    low, high = radius[..., None], 20 - radius[..., None]
    # The first half of a folded line leads there, the second half back.
    place = low + (high - low) * (1 - np.abs(start - 1))
    velocity = 1.5 * (2 * speed - 1)
    for frame in range(60):
        np.testing.assert_allclose(found[:, :, frame], place, atol=1e-9)
        place = place + velocity
        beyond = (place < low) | (place > high)
        place = np.where(place < low, 2 * low - place, place)
        place = np.where(place > high, 2 * high - place, place)
        velocity = np.where(beyond, -velocity, velocity)
