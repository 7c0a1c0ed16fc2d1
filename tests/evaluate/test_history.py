from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from wrinklefree.evaluate.history import curves_csv, read_history

GOOD = {"step": 1, "tokens": 10, "train/loss": 2.0, "train/loss/web": 1.0}


def _write(folder: Path, *lines: str) -> Path:
    (folder / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_metrics_are_aligned_with_steps_and_gaps_are_nan(tmp_path: Path):
    second = {"step": 3, "tokens": 25, "train/loss": None, "train/lambda": 0.5, "train/loss/b": 1}
    history = read_history(_write(tmp_path, json.dumps(GOOD), json.dumps(second)))
    assert (history.steps, history.tokens) == ([1, 3], [10, 25])
    assert history.series("train/loss")[0] == 2.0
    assert math.isnan(history.series("train/loss")[1])
    assert math.isnan(history.series("train/lambda")[0])
    assert all(map(math.isnan, history.series("never/reported")))
    assert history.domains() == ["b", "web"]
    assert history.reports("train/lambda")
    assert not history.reports("train/grad_norm")


def test_curves_have_a_line_per_step_that_reports_the_loss_and_a_column_per_metric(tmp_path: Path):
    gap = {"step": 2, "tokens": 20, "train/loss": None, "train/lambda": 0.25}
    last = {"step": 3, "tokens": 25, "train/loss": 1.5, "train/lambda": 0.5}
    lines = (json.dumps(record) for record in (GOOD, gap, last))
    text = curves_csv(read_history(_write(tmp_path, *lines)))
    assert text == "step,tokens,loss,lambda\n1,10,2.0,\n3,25,1.5,0.5\n"


def test_curves_of_a_long_training_are_thinned_and_keep_its_spike(tmp_path: Path):
    losses = [9.0 if step == 4321 else 1.0 / step for step in range(1, 9001)]
    records = [{"step": n, "tokens": n, "train/loss": loss} for n, loss in enumerate(losses, 1)]
    text = curves_csv(read_history(_write(tmp_path, *map(json.dumps, records))))
    lines = text.splitlines()
    assert len(lines) < 700
    assert "4321,4321,9.0" in lines and lines[-1].startswith("9000,")


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_gradient_norm_that_is_not_finite_is_a_gap_and_no_error(tmp_path: Path, value: str):
    line = json.dumps(GOOD)[:-1] + f', "train/grad_norm_raw": {value}}}'
    assert not read_history(_write(tmp_path, line)).reports("train/grad_norm_raw")
