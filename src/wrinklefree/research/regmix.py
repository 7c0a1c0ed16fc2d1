"""The ``regmix`` stage: a regression over all small trainings, and the mixture that it proposes.

Data mixture as regression (arXiv 2407.01492). Shapes: N runs, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.columns import ABSENT, header, plain_rows
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.mixture.recipe import write_domain_recipe
from wrinklefree.models.folder import write_json
from wrinklefree.research.draw import draw_mixtures, rounded_weights
from wrinklefree.research.measure import shared_seed, target_shares
from wrinklefree.research.plots import mixture_weights, predicted_losses
from wrinklefree.research.proxies import Proxies, read_proxies
from wrinklefree.research.regression import DomainRegression
from wrinklefree.research.search import INTERVAL, Agreement, Best, agreement, find_best
from wrinklefree.research.settings import TARGET, DrawSettings, FitSettings
from wrinklefree.tracking.stage import Stage

RECIPE = "recipe.yaml"
TRUSTED_P_VALUE = 0.05
SCHEMA = 1


@dataclass(frozen=True)
class Regmix:
    """What the stage found out. Vectors over domains are in the order of ``proxies.present``."""

    proxies: Proxies
    settings: FitSettings
    target_D: np.ndarray
    predicted_ND: np.ndarray
    """Predictions for all runs, by the regression that was fitted on the first of them."""
    agreement: dict[str, Agreement]
    """On the held-out runs, of the target and of every domain."""
    best: Best
    recipe: dict[str, float]
    """The proposed weights, rounded."""
    predicted_present_D: np.ndarray
    predicted_recipe_D: np.ndarray

    @property
    def fitted(self) -> int:
        """How many of the runs the regression was fitted on; the others are held out."""
        return len(self.proxies.runs) - self.settings.held_out_runs

    @property
    def gain(self) -> float:
        """Predicted target loss of the present mixture less that of the recipe."""
        return float((self.predicted_present_D - self.predicted_recipe_D) @ self.target_D)

    @property
    def gain_interval(self) -> tuple[float, float]:
        """95 % of the bootstraps."""
        low, high = np.quantile(self.best.bootstrap_gains_Q, INTERVAL)
        return float(low), float(high)

    @property
    def weight_intervals(self) -> dict[str, tuple[float, float]]:
        """95 % of the bootstraps' own proposals, by domain."""
        lows, highs = np.quantile(self.best.bootstrap_weights_QD, INTERVAL, axis=0)
        return {
            name: (float(low), float(high))
            for name, low, high in zip(self.proxies.present, lows, highs, strict=True)
        }


def propose_mixture(stage: Stage) -> dict[str, Any]:
    """Fit, judge on held-out runs, and write the predicted best mixture into ``stage.folder``.

    Files
    -----
    ``regmix.json``: all that is in :class:`Regmix`, by name. ``recipe.yaml``: the proposed weights,
    for ``wrinklefree recipe``. ``table.txt``, ``table.html``, ``plots/*.svg``.
    """
    settings = stage.section("regmix.fit", FitSettings)
    draw = stage.section("regmix.draw", DrawSettings)
    folders = stage.collection("runs")
    runs = stage.settings["regmix"]["runs"]
    proxies = read_proxies({run: folders[str(run)] for run in runs})
    found = analyse(proxies, draw, settings, seed=stage.settings["seed"])
    write(stage.folder, found)
    stage.terminal.say((stage.folder / "table.txt").read_text(encoding="utf-8"))
    return {
        "runs": len(runs),
        "rank_correlation": found.agreement[TARGET].rank_correlation,
        "predicted_gain": found.gain,
        "recipe": found.recipe,
    }


def analyse(proxies: Proxies, draw: DrawSettings, settings: FitSettings, *, seed: int) -> Regmix:
    """The regression, its agreement with the held-out runs, and the best mixture.

    The last ``settings.held_out_runs`` of the runs are not fitted on, for the search neither: what
    is proposed comes from the very regression that was judged.
    """
    present = proxies.present
    shares = target_shares(settings.target, present)
    target_D, present_D = np.array(list(shares.values())), np.array(list(present.values()))
    fitted = len(proxies.runs) - settings.held_out_runs
    weights_ND, losses_ND = proxies.weights_ND[:fitted], proxies.losses_ND[:fitted]
    regression = DomainRegression(settings.regression, weights_ND, losses_ND)
    predicted_ND = regression.predict(proxies.weights_ND)
    candidates_CD = draw_mixtures(
        present, draw, shared_seed(seed, "regmix", "candidates"), settings.candidates
    )
    best = find_best(
        weights_ND, losses_ND, candidates_CD, present_D, target_D, settings,
        shared_seed(seed, "regmix", "bootstrap"),
    )  # fmt: skip
    recipe = rounded_weights(dict(zip(present, best.weights_D.tolist(), strict=True)))
    at_present_D, at_recipe_D = regression.predict(
        np.stack([present_D, np.array(list(recipe.values()))])
    )
    return Regmix(
        proxies=proxies,
        settings=settings,
        target_D=target_D,
        predicted_ND=predicted_ND,
        agreement=_agreements(proxies, predicted_ND, target_D, fitted),
        best=best,
        recipe=recipe,
        predicted_present_D=at_present_D,
        predicted_recipe_D=at_recipe_D,
    )


def _agreements(
    proxies: Proxies, predicted_ND: np.ndarray, target_D: np.ndarray, fitted: int
) -> dict[str, Agreement]:
    pairs = {TARGET: (predicted_ND @ target_D, proxies.losses_ND @ target_D)}
    for index, name in enumerate(proxies.present):
        pairs[name] = (predicted_ND[:, index], proxies.losses_ND[:, index])
    return {
        name: agreement(predicted_N[fitted:], measured_N[fitted:], measured_N[:fitted].mean())
        for name, (predicted_N, measured_N) in pairs.items()
    }


def write(folder: Path, found: Regmix) -> None:
    """All files of the artifact."""
    low, high = found.gain_interval
    description = (
        f"Predicted best of {found.settings.candidates} mixtures by RegMix"
        f" ({found.settings.regression}, {found.fitted} runs); predicted gain {found.gain:.4f}"
        f" nats per token over the present mixture, 95 % of bootstraps {low:.4f} to {high:.4f}."
    )
    write_domain_recipe(folder / RECIPE, found.recipe, description)
    write_json(folder / "regmix.json", _as_json(found))
    table = table_text(found)
    write_texts(folder, {"table.txt": table, "table.html": text_page("RegMix", table)})
    names = [TARGET, *found.proxies.present]
    measured = _with_target(found.proxies.losses_ND, found.target_D)
    predicted = _with_target(found.predicted_ND, found.target_D)
    save_svg(
        predicted_losses(names, measured, predicted, found.fitted),
        folder / "plots" / "predicted_losses.svg",
    )
    save_svg(
        mixture_weights(
            found.proxies.present, found.proxies.weights_ND, found.recipe, found.weight_intervals
        ),
        folder / "plots" / "mixture_weights.svg",
    )


def table_text(found: Regmix) -> str:
    """What the stage says on the terminal, at most 80 columns wide."""
    judged = [["", "rank corr.", "p", "error", "error of mean"]]
    for name, agreed in found.agreement.items():
        correlation, p = agreed.rank_correlation, agreed.p_value
        judged.append(
            [
                header(name),
                ABSENT if correlation is None else f"{correlation:.3f}",
                ABSENT if p is None else f"{p:.4f}",
                f"{agreed.error:.4f}",
                f"{agreed.error_of_mean:.4f}",
            ]
        )
    proposed = [["", "present", "proposed", "95 % of bootstraps", "predicted loss"]]
    losses = zip(found.predicted_present_D, found.predicted_recipe_D, strict=True)
    for (name, weight), (now, then) in zip(found.proxies.present.items(), losses, strict=True):
        low, high = found.weight_intervals[name]
        proposed.append(
            [
                header(name),
                f"{weight:.3f}",
                f"{found.recipe[name]:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{now:.3f} -> {then:.3f}",
            ]
        )
    low, high = found.gain_interval
    size = f"{found.proxies.parameters:,} parameters, {found.proxies.tokens:,} tokens each"
    return "\n".join(
        [
            f"RegMix: {found.settings.regression} fitted on {found.fitted} small trainings",
            f"({size})",
            "",
            f"On {found.settings.held_out_runs} runs that it was not fitted on:",
            *plain_rows(judged),
            "",
            *plain_rows(proposed),
            "",
            f"Predicted gain on the target: {found.gain:.4f} nats per token,",
            f"{low:.4f} to {high:.4f} in 95 % of bootstraps over the fitted runs.",
            _advice(found.agreement[TARGET]),
            "",
        ]
    )


def _advice(agreed: Agreement) -> str:
    if agreed.p_value is None or agreed.p_value > TRUSTED_P_VALUE:
        return (
            "Don't trust the proposal: the regression may order held-out mixtures by chance\n"
            f"(p above {TRUSTED_P_VALUE:g}). Add runs, or train them for longer."
        )
    return "The best of many predictions is flattering: let microanneal compare it."


def _with_target(values_ND: np.ndarray, target_D: np.ndarray) -> np.ndarray:
    return np.column_stack([values_ND @ target_D, values_ND])


def _as_json(found: Regmix) -> dict[str, Any]:
    names = list(found.proxies.present)

    def by_domain(values_D: np.ndarray) -> dict[str, float]:
        return dict(zip(names, values_D.tolist(), strict=True))

    runs = zip(
        found.proxies.runs,
        found.proxies.weights_ND,
        found.proxies.losses_ND,
        found.predicted_ND,
        strict=True,
    )
    return {
        "schema": SCHEMA,
        "regression": found.settings.regression,
        "target": by_domain(found.target_D),
        "present": found.proxies.present,
        "runs": [
            {
                "run": run,
                "held_out": index >= found.fitted,
                "weights": by_domain(weights_D),
                "measured": by_domain(measured_D),
                "predicted": by_domain(predicted_D),
            }
            for index, (run, weights_D, measured_D, predicted_D) in enumerate(runs)
        ],
        "agreement": {name: agreed.as_json() for name, agreed in found.agreement.items()},
        "recipe": found.recipe,
        "recipe_intervals": found.weight_intervals,
        "predicted_present": by_domain(found.predicted_present_D),
        "predicted_recipe": by_domain(found.predicted_recipe_D),
        "gain": found.gain,
        "gain_interval": found.gain_interval,
    }
