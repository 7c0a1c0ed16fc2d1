from __future__ import annotations

import shutil
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from wrinklefree.config.catalog import (
    Catalog,
    domain_preset,
    make_preset,
    read_catalog,
    read_domain_recipe,
    recipe_preset,
    write_preset,
)
from wrinklefree.config.catalog_text import describe, list_catalog
from wrinklefree.config.load import validate
from wrinklefree.config.presets import lay_into
from wrinklefree.errors import UserError
from wrinklefree.mixture.recipe import write_domain_recipe
from wrinklefree.schema.load import overlay, read_yaml, validate_section
from wrinklefree.text.documents.settings import HubSource

PROJECT = Path(__file__).parents[2]
PARAMETERS = read_yaml(PROJECT / "params.yaml")
CATALOG = read_catalog(PROJECT / "catalog.yaml")
RECIPES = sorted(CATALOG.recipes)
COMMIT = "0123456789abcdef" * 2 + "01234567"

SMALL: dict[str, Any] = {
    "datasets": {
        "news": {
            "description": "d",
            "dataset": "owner/news",
            "domain": "web",
            "licence": "l",
            "revision": COMMIT,
            "evidence": "e",
        },
        "proofs": {
            "description": "d",
            "dataset": "owner/proofs",
            "domain": "maths",
            "licence": "l",
            "revision": None,
            "evidence": "e",
        },
        "gone": {
            "description": "d",
            "dataset": "owner/gone",
            "domain": "other",
            "licence": "l",
            "obstacle": "not there",
            "evidence": "e",
        },
    },
    "recipes": {"both": {"description": "d", "weights": {"news": 0.75, "proofs": 0.25}}},
}


def small() -> Catalog:
    return validate_section(Catalog, SMALL, "catalog.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "catalog.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_catalog_has_the_corpora_that_it_promises():
    assert {entry.dataset for entry in CATALOG.datasets.values()} >= {
        "mlfoundations/dclm-baseline-1.0",
        "HuggingFaceTB/dclm-edu",
        "LLM360/MegaMath",
        "HuggingFaceFW/fineweb",
        "HuggingFaceFW/fineweb-edu",
        "HuggingFaceFW/fineweb-2",
        "openbmb/Ultra-FineWeb",
        "tiiuae/falcon-refinedweb",
        "nvidia/Nemotron-CC-v2",
        "cerebras/SlimPajama-627B",
        "open-web-math/open-web-math",
        "bigcode/starcoderdata",
        "codeparrot/codeparrot-clean",
        "codeparrot/github-code-clean",
    }
    # Of this one no commit is known in full; a recipe asks for it.
    unpinned = [name for name, entry in CATALOG.datasets.items() if entry.revision is None]
    assert unpinned == ["nemotron_cc_hq"]


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        ("current", {"web": 0.40, "other": 0.30, "maths": 0.15, "code": 0.15}),
        ("proposed", {"web": 0.40, "maths": 0.25, "maths_code": 0.15, "code": 0.20}),
        (
            "mixed_pretrain",
            {"web": 0.25, "educational": 0.35, "code": 0.10, "maths": 0.15, "other": 0.15},
        ),
    ],
)
def test_a_recipe_replaces_all_sources_and_weights(recipe: str, weights: dict[str, float]):
    changes = recipe_preset(CATALOG, recipe, PARAMETERS, max_tokens=1_000_000)
    parameters = validate(overlay(PARAMETERS, changes))
    assert parameters.mixture.weights == weights
    assert set(parameters.sources) == set(CATALOG.recipes[recipe].weights)
    for name, source in parameters.sources.items():
        entry = CATALOG.datasets[name]
        assert isinstance(source, HubSource)
        for field in ("dataset", "subset", "folder", "split", "revision", "text_field", "licence"):
            assert getattr(source, field) == getattr(entry, field), (name, field)
        assert source.cleaning == entry.cleaning
        assert source.max_tokens == round(1_000_000 * weights[source.domain])


@pytest.mark.parametrize("before", RECIPES)
@pytest.mark.parametrize("after", RECIPES)
def test_a_recipe_laid_over_another_leaves_nothing_of_it(before: str, after: str):
    first = overlay(PARAMETERS, recipe_preset(CATALOG, before, PARAMETERS, max_tokens=1000))
    second = overlay(first, recipe_preset(CATALOG, after, first))
    assert second == overlay(PARAMETERS, recipe_preset(CATALOG, after, PARAMETERS))


def test_a_source_of_the_same_name_loses_its_old_settings():
    catalog = small()
    parameters = {"sources": {"news": {"kind": "files", "paths": ["a.txt"], "domain": "web"}}}
    changes = recipe_preset(catalog, "both", parameters, revisions={"proofs": COMMIT})
    assert overlay(parameters, changes)["sources"]["news"] == {
        "kind": "hub",
        "domain": "web",
        "licence": "l",
        "dataset": "owner/news",
        "split": "train",
        "revision": COMMIT,
        "text_field": "text",
    }


def test_weights_of_research_targets_stay_only_where_the_domains_do():
    parameters = {
        "microanneal": {
            "arms": {"present": {"weights": {"web": 0.5, "maths": 0.5}}, "candidate": {}},
            "verdict": {"confidence": 0.9, "target": {"web": 1.0, "speeches": 1.0}},
        }
    }
    changes = recipe_preset(small(), "both", parameters, revisions={"proofs": COMMIT})
    assert overlay(parameters, changes)["microanneal"] == {
        "arms": {"present": {"weights": {"web": 0.5, "maths": 0.5}}, "candidate": {}},
        "verdict": {"confidence": 0.9},
    }
    assert "regmix" not in changes


@pytest.mark.parametrize(
    "path",
    [
        "regmix.fit.target",
        "microanneal.arms.present.weights",
        "microanneal.arms.candidate.weights",
        "microanneal.verdict.target",
    ],
)
def test_foreign_weights_are_removed_wherever_research_has_some(path: str):
    *parents, last = path.split(".")
    parameters: dict[str, Any] = {last: {"web": 0.5, "speeches": 0.5}, "beside": 1}
    for key in reversed(parents):
        parameters = {key: parameters}
    changes = recipe_preset(small(), "both", parameters, revisions={"proofs": COMMIT})
    left: Any = overlay(parameters, changes)
    for key in parents:
        left = left[key]
    assert left == {"beside": 1}


def test_code_and_other_languages_are_not_cleaned_as_english():
    for name, entry in CATALOG.datasets.items():
        language = entry.cleaning.model_dump(exclude_unset=True) if entry.cleaning else {}
        english = entry.domain in ("web", "educational", "other")
        assert (language.get("language") == {"enabled": False}) != english, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_written_preset_lays_into_params_and_reads_alike_everywhere(recipe: str, project: Path):
    path = make_preset(recipe, Path("params.yaml"), None, {}, 10**9)
    assert path == Path("params") / f"{recipe}.yaml"
    changes = recipe_preset(CATALOG, recipe, PARAMETERS, max_tokens=10**9)
    assert read_yaml(path) == changes
    assert YAML(typ="safe").load(path) == changes
    (project / "laid.yaml").write_text(lay_into(Path("params.yaml"), path))
    assert read_yaml(project / "laid.yaml") == overlay(PARAMETERS, changes)


def test_the_full_size_preset_is_the_recipe_mixed_pretrain():
    preset = read_yaml(PROJECT / "params" / "qwen3_4b.yaml")
    changes = recipe_preset(CATALOG, "mixed_pretrain", PARAMETERS, max_tokens=12_000_000_000)
    assert preset["sources"] == changes["sources"]
    assert preset["mixture"]["weights"] == changes["mixture"]["weights"]


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.integers(min_value=1, max_value=20)
)
def test_max_tokens_are_shared_by_weight_and_none_is_lost(counts: list[int], exponent: int):
    total = 10**6 * len(counts) * 10**exponent
    names = [f"d{number}" for number in range(len(counts))]
    entry = SMALL["datasets"]["news"]
    weights = {name: count / sum(counts) for name, count in zip(names, counts, strict=True)}
    catalog = validate_section(
        Catalog,
        {
            "datasets": {name: entry | {"domain": name} for name in names},
            "recipes": {"all": {"description": "d", "weights": weights}},
        },
        "catalog.yaml",
    )
    sources = recipe_preset(catalog, "all", {}, max_tokens=total)["sources"]
    assert sum(source["max_tokens"] for source in sources.values()) == total
    for name, count in zip(names, counts, strict=True):
        exact = Fraction(total * count, sum(counts))
        slack = 1 + total * Fraction(1, 10**14)  # weights are floats
        assert abs(sources[name]["max_tokens"] - exact) <= slack


def test_rounded_weights_lose_no_token():
    content = deepcopy(SMALL)
    content["datasets"]["gone"].pop("obstacle")
    thirds = dict.fromkeys(("news", "proofs", "gone"), 0.3333333)
    content["recipes"]["both"]["weights"] = thirds
    catalog = validate_section(Catalog, content, "catalog.yaml")
    revisions = {"proofs": COMMIT, "gone": COMMIT}
    changes = recipe_preset(catalog, "both", {}, revisions=revisions, max_tokens=10**9)
    assert sum(source["max_tokens"] for source in changes["sources"].values()) == 10**9


def test_too_few_tokens_for_a_share_are_refused():
    with pytest.raises(UserError, match="--max-tokens 1 leaves proofs without a token"):
        recipe_preset(small(), "both", {}, revisions={"proofs": COMMIT}, max_tokens=1)


def test_a_data_set_without_a_commit_asks_for_one_and_says_where_it_stands():
    with pytest.raises(UserError) as caught:
        recipe_preset(small(), "both", {})
    message = str(caught.value)
    assert "one commit of proofs (owner/proofs), and the catalog pins none" in message
    assert "git ls-remote https://huggingface.co/datasets/owner/proofs" in message
    assert "--revision proofs=COMMIT" in message


def test_a_given_revision_is_read_in_place_of_the_pinned_one():
    other = COMMIT[::-1]
    changes = recipe_preset(small(), "both", {}, revisions={"proofs": COMMIT, "news": other})
    assert changes["sources"]["proofs"]["revision"] == COMMIT
    assert changes["sources"]["news"]["revision"] == other


@pytest.mark.parametrize(
    ("revisions", "message"),
    [
        ({"proofs": "main"}, "--revision proofs=main is no commit; choose one of https"),
        ({"proofs": COMMIT[:7]}, "--revision proofs=0123456 is no commit; choose one of https"),
        ({"prose": COMMIT}, "names prose, which recipe both does not use; it uses news, proofs"),
    ],
)
def test_a_revision_that_pins_nothing_is_refused(revisions: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        recipe_preset(small(), "both", {}, revisions=revisions)


def test_a_revision_that_looks_like_a_number_stays_text(tmp_path: Path):
    for revision in ("1" * 20 + "e" + "1" * 19, "0" * 40):
        path = tmp_path / f"{revision}.yaml"
        changes = recipe_preset(small(), "both", {}, revisions={"proofs": revision})
        write_preset(path, changes, "both")
        assert read_yaml(path)["sources"]["proofs"]["revision"] == revision
        assert YAML(typ="safe").load(path)["sources"]["proofs"]["revision"] == revision


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("recipes.both.weights", {"news": 0.5}, "weights sum to 0.5, expected 1"),
        ("recipes.both.weights", {"newz": 1.0}, "data set newz, which the catalog lacks; it has"),
        ("recipes.both.weights", {"news": 1.0, "proofs": 0.0}, "proofs has weight 0; leave it out"),
        ("recipes.both.weights", {"gone": 1.0}, "uses gone, which cannot be streamed: not there"),
        ("datasets.proofs.domain", "web", "news and proofs are both of domain web"),
        ("datasets.news.revision", "main", "datasets.news.revision"),
        ("datasets.news.revision", COMMIT[:7], "datasets.news.revision"),
        ("datasets.news.dataset", "news", "datasets.news.dataset"),
        ("datasets.news.columns", "text", "datasets.news.columns: unknown setting"),
    ],
)
def test_a_mistake_in_the_catalog_is_named(place: str, value: Any, message: str):
    content = deepcopy(SMALL)
    *parents, last = place.split(".")
    target = content
    for key in parents:
        target = target[key]
    target[last] = value
    with pytest.raises(UserError, match=message):
        validate_section(Catalog, content, "catalog.yaml")


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(UserError, match=r"no recipe bth; recipes of the catalog: both\."):
        recipe_preset(small(), "bth", {})


DOMAINS = sorted(PARAMETERS["mixture"]["weights"])


def test_weights_by_domain_change_weights_and_nothing_else(tmp_path: Path):
    path = tmp_path / "found.yaml"
    weights = dict.fromkeys(DOMAINS, 0.0) | {DOMAINS[0]: 0.125, DOMAINS[1]: 0.875}
    write_domain_recipe(path, weights, "of RegMix, 64 runs")
    recipe = read_domain_recipe(path)
    assert (recipe.weights, recipe.description) == (weights, "of RegMix, 64 runs")
    laid = overlay(PARAMETERS, domain_preset(recipe, PARAMETERS))
    assert validate(laid).mixture.weights == weights
    assert {k: v for k, v in laid.items() if k != "mixture"} == {
        k: v for k, v in PARAMETERS.items() if k != "mixture"
    }
    assert laid["mixture"] == PARAMETERS["mixture"] | {"weights": weights}


@settings(max_examples=25)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6).filter(any))
def test_any_weights_survive_being_written(tmp_path_factory: Any, counts: list[int]):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    weights = {f"d{number}": count / sum(counts) for number, count in enumerate(counts)}
    write_domain_recipe(path, weights, "d")
    assert read_domain_recipe(path).weights == weights
    assert dict(YAML(typ="safe").load(path)["weights"]) == weights
    before = path.read_bytes()
    write_domain_recipe(path, weights, "d")
    assert path.read_bytes() == before


def test_weights_that_are_no_mixture_are_not_written(tmp_path: Path):
    with pytest.raises(UserError, match="weights sum to 0.9, expected 1"):
        write_domain_recipe(tmp_path / "a.yaml", {"web": 0.9}, "d")
    assert not (tmp_path / "a.yaml").exists()


def test_weights_of_a_domain_that_no_source_has_write_no_preset(project: Path):
    write_domain_recipe(Path("recipes/lost.yaml"), {"moon": 1.0}, "d")
    with pytest.raises(UserError, match="mixture.weights names moon, but no source has that"):
        make_preset("recipes/lost.yaml", Path("params.yaml"), None, {}, None)
    assert not Path("params").exists()


def test_options_for_sources_are_refused_where_only_weights_change(project: Path):
    write_domain_recipe(Path("recipes/even.yaml"), dict.fromkeys(DOMAINS, 1 / len(DOMAINS)), "d")
    assert make_preset("recipes/even.yaml", Path("params.yaml"), None, {}, None).name == "even.yaml"
    for revisions, max_tokens in (({"news": COMMIT}, None), ({}, 5)):
        with pytest.raises(UserError, match="are for recipes of the catalog"):
            make_preset("recipes/even.yaml", Path("params.yaml"), None, revisions, max_tokens)


def test_a_preset_that_somebody_wrote_is_not_overwritten(project: Path):
    output = Path("params/mine.yaml")
    output.parent.mkdir()
    output.write_text("stage2: {steps: 5}\n")
    with pytest.raises(UserError, match=r"params/mine.yaml exists and was not written by"):
        make_preset("current", Path("params.yaml"), output, {}, None)
    assert output.read_text() == "stage2: {steps: 5}\n"
    output.unlink()
    for _ in range(2):
        make_preset("current", Path("params.yaml"), output, {}, None)
    assert "fineweb" in read_yaml(output)["sources"]


def test_lists_and_descriptions_fit_a_terminal_and_name_everything():
    listing = list_catalog(CATALOG)
    texts = [listing, *(describe(CATALOG, n) for n in [*CATALOG.datasets, *CATALOG.recipes])]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 80
    for name, entry in CATALOG.datasets.items():
        (row,) = [line for line in listing.splitlines() if line.startswith(f"{name} ")]
        assert (entry.revision or "-")[:7] in row
        assert row.endswith("!") == (entry.obstacle is not None)
        assert entry.dataset in describe(CATALOG, name)
        assert (entry.revision or "none pinned") in describe(CATALOG, name)
    for name, recipe in CATALOG.recipes.items():
        assert f"\n{name}: " in listing
        assert all(dataset in describe(CATALOG, name) for dataset in recipe.weights)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="the catalog has no newz; it has news, proofs, gone, both"):
        describe(small(), "newz")
