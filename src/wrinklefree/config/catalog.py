"""``catalog.yaml``: data sets of the hub, named mixtures of them, and presets made from those."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from wrinklefree.config.load import validate
from wrinklefree.errors import UserError
from wrinklefree.mixture.recipe import DomainRecipe, read_domain_recipe
from wrinklefree.mixture.settings import Weights
from wrinklefree.schema.load import overlay, read_yaml, validate_section
from wrinklefree.schema.section import COMMIT, Commit, Name, PositiveFloat, Section
from wrinklefree.schema.yaml_dump import dump_yaml
from wrinklefree.text.documents.settings import CleaningSteps
from wrinklefree.tracking.files import write_atomically

CATALOG = Path("catalog.yaml")
_HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
_OF_A_SOURCE = (
    "domain",
    "licence",
    "dataset",
    "subset",
    "folder",
    "split",
    "revision",
    "text_field",
)
_WEIGHTS_ELSEWHERE = (
    "regmix.fit.target",
    "microanneal.arms.present.weights",
    "microanneal.arms.candidate.weights",
    "microanneal.verdict.target",
)
_WRITTEN = "# Written by wrinklefree recipe"


class Size(Section):
    """How much text a data set has, as its authors count."""

    gigatokens: PositiveFloat | None = None
    gigabytes: PositiveFloat | None = None
    source: str
    """Where the figures stand."""


class DataSet(Section):
    """A data set of the hub: what a source of kind ``hub`` needs, and what a reader wants to know.

    ``dataset`` to ``text_field`` and ``domain`` to ``cleaning`` mean what they mean in a source.
    """

    description: str
    dataset: Annotated[str, Field(pattern=_HUB_ID)]
    subset: str | None = None
    folder: str | None = None
    split: str = "train"
    revision: Commit | None = None
    """A commit; null where none is known for certain, and then the user has to give one."""
    text_field: str = "text"
    domain: Name
    licence: str
    cleaning: CleaningSteps | None = None
    """Where the usual steps would spoil it: code is no English and repeats its lines."""
    gated: bool = False
    """Whether the hub asks for a login and for consent to its terms."""
    size: Size | None = None
    evidence: str
    """What the entry rests on, and what is not known."""
    obstacle: str | None = None
    """Why it cannot be streamed by its name, and what to use instead."""


class Recipe(Section):
    """A mixture of data sets of the catalog, each a domain of its own."""

    description: str
    weights: Weights
    """By names of data sets."""


class Catalog(Section):
    """The whole of ``catalog.yaml``."""

    datasets: dict[Name, DataSet]
    recipes: dict[Name, Recipe]

    @model_validator(mode="after")
    def _recipes_can_be_streamed(self) -> Catalog:
        for name, recipe in self.recipes.items():
            domains: dict[str, str] = {}
            for dataset, weight in recipe.weights.items():
                self._check_part(name, dataset, weight)
                domain = self.datasets[dataset].domain
                if domain in domains:
                    raise ValueError(
                        f"recipe {name}: {domains[domain]} and {dataset} are both of domain"
                        f" {domain}, which has one weight; give one of them another domain"
                    )
                domains[domain] = dataset
        return self

    def _check_part(self, recipe: str, dataset: str, weight: float) -> None:
        if dataset not in self.datasets:
            raise ValueError(
                f"recipe {recipe} names the data set {dataset}, which the catalog lacks;"
                f" it has {', '.join(sorted(self.datasets))}"
            )
        if obstacle := self.datasets[dataset].obstacle:
            raise ValueError(
                f"recipe {recipe} uses {dataset}, which cannot be streamed:"
                f" {' '.join(obstacle.split())}"
            )
        if weight == 0:
            raise ValueError(f"recipe {recipe}: {dataset} has weight 0; leave it out")


def read_catalog(path: Path = CATALOG) -> Catalog:
    """The catalog of the project.

    Raises
    ------
    UserError : the file is missing or wrong; names the entry and what was expected.
    """
    return validate_section(Catalog, read_yaml(path), origin=str(path))


def recipe_preset(
    catalog: Catalog,
    name: str,
    parameters: Mapping[str, Any],
    *,
    revisions: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """The overlay that turns ``parameters`` into a run on recipe ``name``: sources and weights.

    Weights of the research targets that name other domains than the recipe's are removed, so that
    these targets fall back on the mixture's.

    Parameters
    ----------
    parameters : the present ``params.yaml``; its sources and weights are removed by null entries.
    revisions : commits by data set, in place of those of the catalog.
    max_tokens : tokens to read in all, divided among the sources by weight.

    Raises
    ------
    UserError : no such recipe, a data set without a commit, ``revisions`` of other data sets.
    """
    if name not in catalog.recipes:
        raise UserError(
            f"no recipe {name}; recipes of the catalog: {', '.join(sorted(catalog.recipes))}."
            " For a file, give its path with .yaml"
        )
    shares = catalog.recipes[name].weights
    revisions = dict(revisions or {})
    if strangers := sorted(set(revisions) - set(shares)):
        raise UserError(
            f"--revision names {', '.join(strangers)}, which recipe {name} does not use;"
            f" it uses {', '.join(shares)}"
        )
    sources = {dataset: hub_source(catalog, dataset, revisions.get(dataset)) for dataset in shares}
    if max_tokens is not None:
        for dataset, budget in _divide(max_tokens, shares).items():
            sources[dataset]["max_tokens"] = budget
    weights = {catalog.datasets[dataset].domain: weight for dataset, weight in shares.items()}
    changes = _replacing(parameters, sources=sources, weights=weights)
    for path in _WEIGHTS_ELSEWHERE:
        _remove_foreign_weights(changes, parameters, path.split("."), set(weights))
    return changes


def hub_source(catalog: Catalog, name: str, revision: str | None = None) -> dict[str, Any]:
    """The settings of a source of kind ``hub`` that reads data set ``name``.

    Raises
    ------
    UserError : there is no commit to read, or ``revision`` is none.
    """
    entry = catalog.datasets[name]
    commit = revision or entry.revision
    if commit is None or not re.fullmatch(COMMIT, commit):
        wrong = f"--revision {name}={commit} is no commit" if commit else "the catalog pins none"
        raise UserError(
            f"a run reads one commit of {name} ({entry.dataset}), and {wrong}; choose one of"
            f" https://huggingface.co/datasets/{entry.dataset}/commits/main, or of"
            f" `git ls-remote https://huggingface.co/datasets/{entry.dataset}`, and give its 40"
            f" digits with --revision {name}=COMMIT"
        )
    settings: dict[str, Any] = {"kind": "hub"}
    for field in _OF_A_SOURCE:
        value = commit if field == "revision" else getattr(entry, field)
        if value is not None:
            settings[field] = value
    if entry.cleaning is not None:
        settings["cleaning"] = entry.cleaning.model_dump(exclude_unset=True)
    return settings


def domain_preset(recipe: DomainRecipe, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The overlay that lays a recipe's weights over those of ``parameters``; sources stay."""
    return _replacing(parameters, weights=dict(recipe.weights))


def write_preset(path: Path, changes: dict[str, Any], command: str) -> None:
    """Write an overlay as a preset file, with the command that made it in its first line.

    Raises
    ------
    UserError : there is another file in its place, which this command did not write.
    """
    if path.exists() and not _is_ours(path):
        raise UserError(
            f"{path} exists and was not written by wrinklefree recipe; give another --output"
        )
    write_atomically(path, f"{_WRITTEN}: {command}\n\n{dump_yaml(changes)}")


def _is_ours(path: Path) -> bool:
    """Whether ``write_preset`` wrote what stands there."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_WRITTEN)) == _WRITTEN.encode()


def make_preset(
    recipe: str,
    params: Path,
    output: Path | None,
    revisions: Mapping[str, str],
    max_tokens: int | None,
) -> Path:
    """Write the preset of a recipe, given its name or the path of a file; returns where it is.

    Raises
    ------
    UserError : what was asked is not possible, or the settings would not be valid with it.
    """
    parameters = read_yaml(params)
    if recipe.endswith((".yaml", ".yml")):
        if revisions or max_tokens:
            raise UserError(
                f"{recipe} has weights by domain and changes no source;"
                " --revision and --max-tokens are for recipes of the catalog"
            )
        changes = domain_preset(read_domain_recipe(Path(recipe)), parameters)
    else:
        changes = recipe_preset(
            read_catalog(), recipe, parameters, revisions=revisions, max_tokens=max_tokens
        )
    validate(overlay(parameters, changes), origin=f"{params} with recipe {recipe}")
    path = output or Path("params") / f"{Path(recipe).stem}.yaml"
    options = [f"--revision {name}={commit}" for name, commit in sorted(revisions.items())]
    options += [f"--max-tokens {max_tokens}"] if max_tokens else []
    write_preset(path, changes, " ".join([recipe, *options]))
    return path


def _divide(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """``total`` in whole parts by weight, none of them 0; the parts sum to it."""
    parts: dict[str, int] = {}
    start, cumulative = 0, 0.0
    for name, weight in weights.items():
        cumulative += weight
        last = len(parts) == len(weights) - 1
        end = total if last else round(total * cumulative)
        if end <= start:
            raise UserError(f"--max-tokens {total} leaves {name} without a token; ask for more")
        parts[name], start = end - start, end
    return parts


def _replacing(
    parameters: Mapping[str, Any],
    *,
    weights: dict[str, float],
    sources: dict[str, Any] | None = None,
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if sources is not None:
        changes["sources"] = _removing(parameters.get("sources"), sources)
    present = parameters.get("mixture")
    present = present.get("weights") if isinstance(present, dict) else None
    changes["mixture"] = {"weights": _removing(present, weights)}
    return changes


def _remove_foreign_weights(
    changes: dict[str, Any], parameters: Any, path: Sequence[str], domains: set[str]
) -> None:
    for key in path:
        parameters = parameters.get(key) if isinstance(parameters, dict) else None
    if isinstance(parameters, dict) and set(parameters) != domains:
        *parents, last = path
        for key in parents:
            changes = changes.setdefault(key, {})
        changes[last] = None


def _removing(present: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """An overlay under which ``present`` becomes exactly ``wanted``: what else it has is nulled."""
    if not isinstance(present, dict):
        return wanted
    removed: dict[str, Any] = {key: None for key in present if key not in wanted}
    kept = {
        key: _removing(present.get(key), value) if isinstance(value, dict) else value
        for key, value in wanted.items()
    }
    return removed | kept
