from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from wrinklefree.evaluate import plots
from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.scores import (
    HeldOutScores,
    ModelScore,
    ScoreSums,
    domain_score,
    loss_variance,
    overall_score,
)
from wrinklefree.evaluate.ternary import LayerTernary

STEPS = list(range(1, 41))
HISTORY = History(
    steps=STEPS,
    tokens=[step * 1000 for step in STEPS],
    metrics={
        "train/loss": [5.0 - step / 40 for step in STEPS],
        "train/lambda": [min(step / 20, 1.0) for step in STEPS],
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
        LayerTernary(f"model.layers.{depth}.mlp.{kind}", 10, 0.3, 0.4, 0.3, 0.1)
        for depth in range(3)
        for kind in ("gate_proj", "up_proj", "down_proj")
    ]


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "held_out_loss": lambda: plots.held_out_loss(_models()),
    "training_loss": lambda: plots.training_loss({"base": DENSE, "stage2": HISTORY}),
    "gradient_norms": lambda: plots.gradient_norms({"base": DENSE, "stage2": HISTORY}),
    "loss_variance": lambda: plots.loss_variance({"stage2": HISTORY}),
    "domain_loss": lambda: plots.domain_loss(HISTORY, "stage2"),
    "ternary_shares": lambda: plots.ternary_shares(_layers(), "stage2"),
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


def test_clipped_steps_are_counted_and_a_stage_without_norms_is_drawn_empty():
    texts = _texts(DRAWINGS["gradient_norms"]())
    assert "steps clipped: 1 (2.5%)" in texts
    assert "steps clipped: 0 (0.0%)" in texts


def test_a_stage_without_lambda_is_said_to_be_not_quantized():
    assert _texts(DRAWINGS["training_loss"]()).count("not quantized") == 1


def test_ternary_shares_of_a_layer_fill_the_bar():
    axes = plots.ternary_shares(_layers(), "stage2").axes[0]
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in axes.patches[-3:]}  # type: ignore[attr-defined]
    assert tops == {1.0}


def test_the_reference_line_is_the_share_of_zeros_of_gaussian_weights():
    assert pytest.approx(0.3101, abs=1e-4) == plots.GAUSSIAN_ZERO_SHARE


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
            plots.domain_loss(history, "stage2"),
        ]
    ):
        save_svg(figure, tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size < 300_000
