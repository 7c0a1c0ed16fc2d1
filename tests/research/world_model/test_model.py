from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from wrinklefree.models.factorized import FactorizedHead
from wrinklefree.models.transforms import ternary
from wrinklefree.research.world_model import model as module
from wrinklefree.research.world_model.model import build, predicted
from wrinklefree.research.world_model.settings import WorldModelSettings
from wrinklefree.stability.initial_loss import check_initial_loss

LENGTH, CONTEXT, MASK = 12, 4, 24  # three frames of four tokens


@pytest.fixture
def settings() -> WorldModelSettings:
    training = {"optimizer": {"name": "adamw"}, "schedule": {"warmup_steps": 0}}
    return WorldModelSettings.model_validate(
        {
            "video": {"frames": 3, "size": 8},
            "tokenizer": {"levels": [[2], [3], [2, 2]]},
            "model": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "layers": 2,
                "heads": 2,
                "key_value_heads": 1,
            },
            "context_frames": 1,
            "training": {
                "steps": 1,
                "batch_size": 1,
                "lambda_warmup": {"warmup_steps": 0},
                **training,
            },
        }
    )


@pytest.fixture
def loud(settings: WorldModelSettings) -> Any:
    """A model that is surer of some answers than of others."""
    model = build(settings, seed=1).double().eval()
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.5)
    return model


def decoded(model: Any, tokens: torch.Tensor, passes: int) -> torch.Tensor:
    return predicted(model, tokens, context=CONTEXT, mask_token_id=MASK, passes=passes)


def all_logits(model: Any, row: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        return model(row[None], attention_mask=mask, position_ids=torch.arange(LENGTH)[None])[0][0]


def slowly(model: Any, row: torch.Tensor, passes: int) -> list[int]:
    """One clip, one token after the other."""
    row, head = row.clone(), model.get_output_embeddings()
    row[CONTEXT:] = MASK
    for number in range(1, passes + 1):
        token, sure = head.likeliest(all_logits(model, row))
        masked = sorted((p for p in range(LENGTH) if row[p] == MASK), key=lambda p: -sure[p])
        left = 0
        if number < passes:
            left = math.ceil(math.cos(math.pi / 2 * number / passes) * (LENGTH - CONTEXT))
        for place in masked[: len(masked) - left]:
            row[place] = token[place]
    return row.tolist()


@pytest.mark.parametrize("passes", [1, 2, 5, 30])
def test_the_surest_tokens_are_kept_first_and_the_given_ones_stay(loud: Any, passes: int) -> None:
    tokens = torch.randint(MASK, (6, LENGTH))
    found = decoded(loud, tokens, passes)
    assert found.tolist() == [slowly(loud, row, passes) for row in tokens]
    assert torch.equal(found[:, :CONTEXT], tokens[:, :CONTEXT])
    assert (found < MASK).all()
    hidden = tokens.clone()
    hidden[:, CONTEXT:] = 0
    assert torch.equal(decoded(loud, hidden, passes), found)  # nothing was copied


def test_passes_change_what_is_predicted(loud: Any) -> None:
    tokens = torch.randint(MASK, (20, LENGTH))
    assert not torch.equal(decoded(loud, tokens, 1), decoded(loud, tokens, 4))


def test_what_is_left_masked_follows_the_cosine(loud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, run = [], module.hidden_states

    def watched(model: Any, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        counts.append((tokens == MASK).sum(1).tolist())
        return run(model, tokens, *rest)

    monkeypatch.setattr(module, "hidden_states", watched)
    decoded(loud, torch.randint(MASK, (2, LENGTH)), 4)
    # 8 cos(pi k / 8): 8, 7.4, 5.7, 3.1
    assert counts == [[8, 8], [8, 8], [6, 6], [4, 4]]


def test_places_in_the_frame_are_told_apart_and_frames_are_not(
    settings: WorldModelSettings,
) -> None:
    vectors = build(settings, seed=1).get_input_embeddings()(torch.full((1, LENGTH), 5))[0]
    assert torch.equal(vectors[:4], vectors[4:8])
    assert len({tuple(vector.tolist()) for vector in vectors}) == 4


def test_the_model_is_a_function_of_settings_and_seed(
    settings: WorldModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.random.get_rng_state()
    states = [build(settings, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before) and not seeded
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
    other = "model.embed_tokens.places.weight"
    assert not torch.equal(states[0][other], states[2][other])


@pytest.mark.parametrize("is_ternary", [False, True])
def test_an_untrained_model_guesses(settings: WorldModelSettings, is_ternary: bool) -> None:
    model = build(settings, seed=1)
    if is_ternary:
        ternary(settings.quantizer).apply(model)
    head = model.get_output_embeddings()
    assert isinstance(head, FactorizedHead)
    rows = torch.randint(MASK, (200, LENGTH))
    losses = [head.word_losses(all_logits(model, row), row).sum(-1).mean() for row in rows[:20]]
    check_initial_loss(torch.stack(losses).mean().item(), MASK)
