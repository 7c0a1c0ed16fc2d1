"""The catalog as text for a terminal of 80 columns."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from wrinklefree.config.catalog import Catalog, Recipe, Size
from wrinklefree.errors import UserError

_WIDTH = 80
_ROW = "{:<24} {:<12} {:>7} {:>7}  {:<20} {}"
_LEGEND = """\
size in tokens, or in bytes where only those are known; pinned: the commit
g: gated, it wants a login and consent; !: cannot be streamed, see catalog show"""


def list_catalog(catalog: Catalog) -> str:
    """A table of the data sets, and the recipes with their weights."""
    lines = [_ROW.format("data set", "domain", "size", "pinned", "licence", "").rstrip()]
    for name, entry in catalog.datasets.items():
        marks = "g" * entry.gated + "!" * (entry.obstacle is not None)
        licence = textwrap.shorten(entry.licence, 20, placeholder="…")
        commit = (entry.revision or "-")[:7]
        row = _ROW.format(name, entry.domain, _amount(entry.size), commit, licence, marks)
        lines.append(row.rstrip())
    lines += [_LEGEND, "", "recipes"]
    for name, recipe in catalog.recipes.items():
        lines.append(textwrap.fill(f"{name}: {_shares(recipe)}", _WIDTH, subsequent_indent="  "))
    return "\n".join(lines)


def describe(catalog: Catalog, name: str) -> str:
    """Everything that the catalog says of a data set or recipe.

    Raises
    ------
    UserError : there is neither of that name.
    """
    if name in catalog.datasets:
        entry = catalog.datasets[name]
        facts = entry.model_dump(exclude_none=True) | {"gated": "yes" if entry.gated else "no"}
        if entry.cleaning is not None:
            facts["cleaning"] = json.dumps(entry.cleaning.model_dump(exclude_unset=True))
        facts.setdefault("revision", "none pinned; a recipe asks for --revision")
        if entry.size is not None:
            unit = " tokens" if entry.size.gigatokens else ""
            facts["size"] = f"{_amount(entry.size)}{unit} ({entry.size.source})"
        facts["page"] = f"https://huggingface.co/datasets/{entry.dataset}"
        return "\n".join(_fact(key, value) for key, value in facts.items())
    if name in catalog.recipes:
        recipe = catalog.recipes[name]
        lines = [_fact("description", recipe.description)]
        for dataset, weight in recipe.weights.items():
            entry = catalog.datasets[dataset]
            lines.append(f"{weight:>6.1%}  {entry.domain:<12} {dataset:<24} {entry.dataset}")
        return "\n".join(lines)
    raise unknown(catalog, name)


def unknown(catalog: Catalog, name: str) -> UserError:
    """The error of a name that is neither."""
    known = ", ".join([*catalog.datasets, *catalog.recipes])
    return UserError(f"the catalog has no {name}; it has {known}")


def _fact(key: str, value: Any) -> str:
    text = " ".join(str(value).split())
    return textwrap.fill(
        f"{key + ':':<13}{text}",
        _WIDTH,
        subsequent_indent=" " * 13,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shares(recipe: Recipe) -> str:
    return ", ".join(f"{name} {weight * 100:g} %" for name, weight in recipe.weights.items())


def _amount(size: Size | None) -> str:
    if size is None:
        return "-"
    amount, unit = (size.gigatokens, "") if size.gigatokens else (size.gigabytes, "B")
    if amount is None:
        return "-"
    return f"{amount / 1000:.3g} T{unit}" if amount >= 1000 else f"{amount:.4g} G{unit}"
