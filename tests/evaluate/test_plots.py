from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from wrinklefree.evaluate import plots, ternary_plots
from wrinklefree.evaluate.canvas import MODEL_COLORS, save_svg
from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.scores import (
    HeldOutScores,
    ModelScore,
    ScoreSums,
    domain_score,
    loss_variance,
    overall_score,
)
from wrinklefree.evaluate.ternary import HISTOGRAM_EDGES, LayerTernary
from wrinklefree.quant.settings import Scale
from wrinklefree.quant.ternary import ternary_codes

STEPS = list(range(1, 41))
HISTORY = History(
    steps=STEPS,
    tokens=[step * 1000 for step in STEPS],
    metrics={
        "train/loss": [5.0 - step / 40 for step in STEPS],
        "train/lambda": [min(step / 20, 1.0) for step in STEPS],
        "train/learning_rate": [0.002 * min(step / 10, 1.0) for step in STEPS],
        "distill/cross_entropy_weighted": [5.0 - step / 40 for step in STEPS],
        "distill/logits_weighted": [0.4 - step / 200 for step in STEPS],
        "distill/hidden_weighted": [0.0] * 40,
        "ternary/flipped": [0.01 / step if step % 5 == 0 else math.nan for step in STEPS],
        "ternary/scale": [0.1 if step % 5 == 0 else math.nan for step in STEPS],
        "ternary/dead_rows": [0.0 if step % 5 == 0 else math.nan for step in STEPS],
        "ternary/zero": [0.31 if step % 5 == 0 else math.nan for step in STEPS],
        "train/grad_norm_raw": [1.0 + 5.0 * (step == 7) for step in STEPS],
        "train/grad_norm_clipped": [1.0] * 40,
        "train/zclip_ema_mean": [1.0] * 40,
        "train/grad_clipped": [float(step == 7) for step in STEPS],
        "train/loss/code": [4.000 - step / 40 for step in STEPS],
        "train/loss/prose": [4.001 - step / 40 for step in STEPS],
        "train/loss/zoo": [4.002 - step / 40 for step in STEPS],
        "train/share/code": [0.2 + 0.1 * (step % 3) for step in STEPS],
        "train/share/prose": [0.6 - 0.1 * (step % 3) for step in STEPS],
        "train/share/zoo": [0.2] * 40,
        "train/loss_variance": [0.5] * 40,
    },
)
BINS = tuple(max(0, 100 - int(40 * abs(edge))) for edge in HISTOGRAM_EDGES[:-1])
DENSE = History(STEPS, HISTORY.tokens, {"train/loss": [5.0] * 40})


def _models() -> dict[str, ModelScore]:
    def model(loss: float, diffusion: bool) -> ModelScore:
        sums = ScoreSums([loss * 9, loss * 11], [10, 10], [30, 30])
        domains = {
            name: domain_score(HeldOutScores(sums, sums), name) for name in ("code", "prose")
        }
        weights = {"code": 0.5, "prose": 0.5}
        kind = "block_diffusion" if diffusion else "autoregressive"
        return ModelScore(
            kind,
            loss > 3.0,
            overall_score(domains, weights),
            domains,
            loss_variance(domains, weights),
        )

    return {
        "base": model(3.0, False),
        "naive": model(9.25, False),
        "distill_dlm": model(4.5, True),
    }


def _layers() -> list[LayerTernary]:
    return [
        LayerTernary(f"model.layers.{depth}.mlp.{kind}", 10, 0.3, 0.4, 0.3, 0.1, BINS)
        for depth in range(3)
        for kind in ("gate_proj", "up_proj", "down_proj")
    ]


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "held_out_loss": lambda: plots.held_out_loss(_models()),
    "training_loss": lambda: plots.training_loss({"base": DENSE, "stage2": HISTORY}),
    "gradient_norms": lambda: plots.gradient_norms({"base": DENSE, "stage2": HISTORY}),
    "loss_variance": lambda: plots.loss_variance({"stage2": HISTORY}),
    "domain_loss": lambda: plots.domain_loss({"base": DENSE, "stage2": HISTORY}),
    "loss_terms": lambda: plots.loss_terms({"stage2": HISTORY, "distill_ar": HISTORY}),
    "ternary_shares": lambda: ternary_plots.ternary_shares(_layers(), "stage2"),
    "latent_weights": lambda: ternary_plots.latent_weights(_layers(), "stage2"),
    "ternary_scales": lambda: ternary_plots.ternary_scales(_layers(), "stage2"),
    "code_changes": lambda: ternary_plots.code_changes({"base": DENSE, "stage2": HISTORY}),
}


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_numbers_give_the_same_bytes_under_any_settings(name: str, tmp_path: Path):
    save_svg(DRAWINGS[name](), tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 23, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        save_svg(DRAWINGS[name](), tmp_path / "b.svg")
        assert matplotlib.rcParams["font.size"] == 23
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in first


@pytest.mark.parametrize("name", DRAWINGS)
def test_labels_lie_within_the_figure_and_apart_from_each_other(
    name: str, require_readable_labels: Callable[[Figure], None]
):
    require_readable_labels(DRAWINGS[name]())


def test_every_model_has_its_loss_written_in_every_panel_and_bounds_are_marked():
    texts = _texts(plots.held_out_loss(_models()))
    assert {"whole mixture", "code", "prose"} <= set(texts)
    assert texts.count("9.25") == texts.count("≤ 4.50") == 3
    assert "distilled diffusion" in texts


@pytest.mark.parametrize("name", ["base", "stage2", "distill_dlm"])
def test_a_model_has_one_colour_in_bars_and_curves(name: str):
    score = _models()["base" if name == "base" else "distill_dlm"]
    bar = plots.held_out_loss({name: score}).axes[0].patches[0]
    color = to_hex(bar.get_edgecolor())
    assert color == MODEL_COLORS[name].lower()
    for draw in (plots.training_loss, plots.gradient_norms, ternary_plots.code_changes):
        lines = draw({name: HISTORY}).axes[0].lines
        assert color in {to_hex(line.get_color()) for line in lines}


@pytest.mark.parametrize(("noise", "title"), [(2.0, "% from the shares"), (0.0, "all from the")])
def test_the_shares_of_domains_explain_no_more_than_all(noise: float, title: str):
    loss = [5.0 + noise * (step % 2) + 0.001 * step for step in STEPS]
    metrics = HISTORY.metrics | {"train/loss": loss, "train/loss/code": [1.0] * 40}
    history = replace(HISTORY, metrics=metrics)
    assert any(title in text for text in _texts(plots.loss_variance({"stage2": history})))


def test_clipped_steps_are_counted_and_a_stage_without_norms_is_drawn_empty():
    texts = _texts(DRAWINGS["gradient_norms"]())
    assert "steps clipped: 1 (2.5%)" in texts
    assert "steps clipped: 0 (0.0%)" in texts


def test_a_stage_without_lambda_is_said_to_be_not_quantized():
    texts = _texts(DRAWINGS["training_loss"]())
    assert [text for text in texts if "not quantized" in text] == ["not quantized, peak rate 0"]
    assert "peak rate 0.002" in texts


def test_terms_that_add_nothing_are_not_drawn_and_the_others_are_named():
    figure = DRAWINGS["loss_terms"]()
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert named == ["cross entropy", "logits"]
    assert [len(axes.lines) for axes in figure.axes] == [4, 4]


def test_a_run_whose_losses_are_of_one_term_says_so():
    assert "every loss is of one term" in _texts(plots.loss_terms({"base": DENSE}))


def test_weights_between_the_thresholds_are_drawn_apart_and_all_are_counted():
    axes = DRAWINGS["latent_weights"]().axes[0]
    bars = [(bar.get_x(), bar.get_height(), bar.get_facecolor()) for bar in axes.patches]  # type: ignore[attr-defined]
    assert sum(height for _, height, _ in bars) == pytest.approx(1.0)
    pale = bars[len(bars) // 2][2]
    assert [left for left, _, color in bars if color == pale] == [i / 8 for i in range(-4, 4)]


def test_only_trainings_that_measured_codes_are_drawn_and_none_is_said():
    assert "base" not in _texts(DRAWINGS["code_changes"]())
    assert any("telemetry_interval" in text for text in _texts(ternary_plots.code_changes({})))


def test_every_statistic_that_was_measured_has_a_line_of_panels_with_its_unit():
    texts = _texts(ternary_plots.code_changes({"stage2": HISTORY, "dlm": HISTORY}))
    for label in ("an update", "are 0", "no code but 0", "scale"):
        assert sum(label in text for text in texts) == 1
    assert not any("distance" in text for text in texts), "nothing measured it"


def test_shares_of_weights_have_ticks_and_every_scale_its_dot():
    axes = DRAWINGS["latent_weights"]().axes[0]
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert {"0%", "10%"} & {tick.get_text() for tick in axes.get_yticklabels()}
    lines = [line for axes in DRAWINGS["ternary_scales"]().axes for line in axes.lines]
    assert [np.asarray(line.get_ydata()).tolist() for line in lines] == [[0.1] * 3] * 3


def test_ternary_shares_of_a_layer_fill_the_bar():
    axes = ternary_plots.ternary_shares(_layers(), "stage2").axes[0]
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in axes.patches[-3:]}  # type: ignore[attr-defined]
    assert tops == {1.0}


@pytest.mark.parametrize("fit", ["absmean", "least_squares"])
def test_the_reference_line_is_the_share_of_zeros_of_gaussian_weights(fit: Scale):
    codes, _ = ternary_codes(torch.randn(1000, 1000), fit)
    found = (codes == 0).double().mean().item()
    layers = [replace(layer, fit=fit) for layer in _layers()]
    axes = ternary_plots.ternary_shares(layers, "stage2").axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([found] * 2, abs=3e-3)


@pytest.mark.parametrize("steps", [1, 2, 5000])
def test_runs_of_any_length_are_drawn(steps: int, tmp_path: Path):
    every = list(range(1, steps + 1))
    values = [3.0 + step % 7 for step in every]
    names = ("train/loss", "train/grad_norm_raw", "train/grad_norm_clipped", "train/loss/a")
    names += ("train/share/a", "train/loss_variance")
    history = History(every, [step * 10 for step in every], dict.fromkeys(names, values))
    for number, figure in enumerate(
        [
            plots.training_loss({"stage2": history}),
            plots.gradient_norms({"stage2": history}),
            plots.loss_variance({"stage2": history}),
            plots.domain_loss({"stage2": history}),
        ]
    ):
        save_svg(figure, tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size < 300_000
