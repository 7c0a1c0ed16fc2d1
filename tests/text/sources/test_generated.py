from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.settings import GeneratedSource
from wrinklefree.text.generators.mathematics import document
from wrinklefree.text.sources.bad_records import BadRecords
from wrinklefree.text.sources.generated import documents, is_of_held_out_level


def source(**settings: Any) -> GeneratedSource:
    fixed = {"kind": "generated", "domain": "d", "licence": "l", "generator": "mathematics"}
    return GeneratedSource(**{**fixed, "seed": 3, **settings})


def read(**settings: Any) -> list[Document]:
    found = list(documents(source(**settings), cache=Path(), bad=BadRecords()))
    assert len({document.id for document in found}) == settings["documents"]
    return found


def test_more_documents_extend_the_same_sequence_and_seed_changes_it() -> None:
    assert read(documents=7)[:5] == read(documents=5)
    texts = [{document.text for document in read(documents=5, seed=seed)} for seed in (3, 4)]
    assert texts[0].isdisjoint(texts[1])


def test_levels_are_those_of_the_settings_and_stand_in_the_id() -> None:
    levels = set()
    for index, found in enumerate(read(documents=60, levels=[2, 5])):
        generator, seed, level, number = found.id.split("/")
        assert (generator, seed, number) == ("mathematics", "3", str(index))
        levels.add(level)
        assert found.text == document(3, index, int(level.removeprefix("level")))
    assert levels == {"level2", "level5"}


def test_held_out_levels_come_at_their_interval_and_are_known_by_the_id() -> None:
    settings = {
        "documents": 90,
        "levels": [1],
        "held_out_levels": [4],
        "held_out_level_interval": 9,
    }
    held_out = [is_of_held_out_level(source(**settings), found) for found in read(**settings)]
    assert [index for index, is_held_out in enumerate(held_out) if is_held_out] == list(
        range(8, 90, 9)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [1, 1]}, "name each level once"),
        ({"levels": [0]}, "greater than or equal to 1"),
        ({"levels": [6]}, "less than or equal to 5"),
        ({"levels": []}, "at least 1"),
        ({"levels": [1, 2], "held_out_levels": [2, 4]}, "level 2 is in levels and in held_out"),
        ({"held_out_levels": [4]}, "which is none of the first 1;"),
        ({"held_out_levels": [4], "held_out_level_interval": 1}, "greater than or equal to 2"),
        ({"held_out_level_interval": 5}, "has a meaning with held_out_levels only"),
    ],
)
def test_levels_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(documents=1, **settings)
