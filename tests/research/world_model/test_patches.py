from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wrinklefree.models.factorized import words_of
from wrinklefree.research.world_model.patches import PatchTokenizer
from wrinklefree.research.world_model.settings import PatchTokenizerSettings, VideoSettings
from wrinklefree.research.world_model.shapes import clips


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return next(clips(VideoSettings(clips=40, frames=4, size=16), "train", 1))


def fitted(frames: np.ndarray, **changes: Any) -> PatchTokenizer:
    return PatchTokenizer.fitted(PatchTokenizerSettings(**changes), frames)


def error(tokenizer: PatchTokenizer, frames: np.ndarray) -> float:
    back = tokenizer.decode(tokenizer.encode(frames), 16)
    assert back.shape == frames.shape and back.dtype == np.float32
    return float(np.sqrt(((back - frames) ** 2).mean()))


def test_frames_come_back_the_better_the_more_levels_there_are(frames: np.ndarray) -> None:
    errors = [
        error(fitted(frames, patch_size=2, levels=[[count] * 2, [count] * 2]), frames)
        for count in (2, 4, 16, 128)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 0.005
    assert error(fitted(frames), frames) < 0.08


def test_tokens_name_the_nearest_level_of_every_component(frames: np.ndarray) -> None:
    tokenizer = fitted(frames, patch_size=4, levels=[[5, 3], [4]])
    np.testing.assert_allclose(
        tokenizer.basis_CX @ tokenizer.basis_CX.T, np.eye(3), atol=1e-9, rtol=0
    )
    tokens = tokenizer.encode(frames).reshape(40, 4, 4, 4)
    words = words_of(torch.from_numpy(tokens), (15, 4)).numpy()
    generator = np.random.default_rng(0)
    for clip, frame, line, column in generator.integers(0, (40, 4, 4, 4), (200, 4)):
        patch = frames[clip, frame, 4 * line : 4 * line + 4, 4 * column : 4 * column + 4]
        values = tokenizer.basis_CX @ patch.reshape(-1)
        digits = [
            int(np.abs(levels - value).argmin())
            for levels, value in zip(tokenizer.levels, values, strict=True)
        ]
        assert words[clip, frame, line, column].tolist() == [3 * digits[0] + digits[1], digits[2]]


def test_black_comes_back_black_and_the_fit_is_repeatable(frames: np.ndarray) -> None:
    tokenizer, again = fitted(frames), fitted(frames)
    assert not tokenizer.decode(tokenizer.encode(np.zeros_like(frames)), 16).any()
    assert np.array_equal(tokenizer.encode(frames), again.encode(frames))


def test_components_are_those_of_most_variance(frames: np.ndarray) -> None:
    tokenizer = fitted(frames, levels=[[512] * 3])
    patches = frames.reshape(40, 4, 4, 4, 4, 4).swapaxes(3, 4).reshape(-1, 16)
    _, singular, _ = np.linalg.svd(patches, full_matrices=False)
    # What three components leave over is the rest of the singular values.
    least = np.sqrt((singular[3:] ** 2).sum() / patches.size)
    assert 0.8 * least < error(tokenizer, frames) < 1.1 * least  # less: values are clipped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, "levels has 0 components in 0 vocabularies"),
        ({"levels": [[8], []]}, "expected a component or more in each"),
        ({"levels": [[2] * 5], "patch_size": 2}, "at most the 4 pixels of a patch"),
        ({"levels": [[1]]}, "greater than or equal to 2"),
        ({"levels": [[1024] * 4]}, "more than 2147483648"),
    ],
)
def test_levels_that_make_no_tokens_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PatchTokenizerSettings(**changes)
