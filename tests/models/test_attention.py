from __future__ import annotations

import torch

from wrinklefree.models.attention import causal_document_mask


def test_a_token_sees_the_past_of_its_document_and_always_itself() -> None:
    ids = torch.randint(-1, 3, (5, 63)).sort(dim=1).values.roll(7, dims=1)
    mask = causal_document_mask(ids)
    assert mask.dtype == torch.bool
    assert mask.shape == (5, 1, 63, 63)
    for row in range(5):
        for query in range(63):
            for key in range(63):
                expected = key <= query and ids[row, key] == ids[row, query]
                assert mask[row, 0, query, key].item() == bool(expected)
    assert mask.diagonal(dim1=2, dim2=3).all()
