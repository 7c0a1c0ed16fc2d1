"""The weights of a mixture as a file of their own, which ``wrinklefree recipe`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wrinklefree.mixture.settings import Weights
from wrinklefree.schema.load import read_yaml, validate_section
from wrinklefree.schema.section import Section
from wrinklefree.schema.yaml_dump import dump_yaml
from wrinklefree.tracking.files import write_atomically


class DomainRecipe(Section):
    """A mixture of the domains of the present ``params.yaml``, as RegMix finds it."""

    description: str
    weights: Weights
    """By names of domains."""


def read_domain_recipe(path: Path) -> DomainRecipe:
    """A recipe of weights by domain.

    Raises
    ------
    UserError : the file is missing, or is no such recipe.
    """
    return validate_section(DomainRecipe, read_yaml(path), origin=str(path))


def write_domain_recipe(path: Path, weights: Mapping[str, float], description: str) -> None:
    """Write a recipe that ``wrinklefree recipe path`` takes; the same input gives the same bytes.

    Raises
    ------
    UserError : the weights are negative or do not sum to 1.
    """
    numbers = {domain: float(weight) for domain, weight in weights.items()}
    content = {"description": description, "weights": numbers}
    validate_section(DomainRecipe, content, origin=str(path))
    write_atomically(path, dump_yaml(content))
