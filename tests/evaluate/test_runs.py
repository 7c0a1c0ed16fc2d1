from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.errors import UserError
from wrinklefree.evaluate.runs import compare_runs
from wrinklefree.tracking.artifact import Origin, writing_artifact


def write(folder: Path, settings: dict[str, Any], facts: dict[str, Any], shares: Any = None):
    with writing_artifact(folder, Origin("stage", {}, settings)) as (made, found):
        found.update(facts)
        if shares is not None:
            (made / "evaluation.json").write_text(json.dumps({"tasks": shares}))


def a_run(
    folder: Path,
    loss: float,
    seed: int,
    rate: float = 0.1,
    cost: float | None = None,
    shares: Any = None,
    rows: int = 48,
) -> Path:
    write(folder / "models/stage2", {"seed": seed, "optimizer": {"lr": rate}}, {})
    write(folder / "results", {}, {"loss": {"distill_ar": loss, "base": 3.0}}, shares)
    if cost is not None:
        measure = {"control": {"measure": {"rows_per_domain": rows}}}
        write(folder / "research/control", measure, {"distill_ar": {"mean": cost}})
    return folder


def acc(share: float, by_length: float | None = None) -> dict[str, float | None]:
    return {"acc": share, "acc_norm": by_length}


def row(table: str, name: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def test_mean_deviation_and_extremes_are_those_of_the_runs(tmp_path: Path):
    runs = [a_run(tmp_path / str(seed), 3.0 + seed, seed) for seed in (1, 2, 6)]
    table = compare_runs(runs)
    assert row(table, "distilled  ") == ["3", "6.000", "2.646", "4.000", "9.000"]
    assert row(table, "dense base") == ["3", "3.000", "0.000", "3.000", "3.000"]
    assert "cost" not in table
    assert table.endswith("The runs have other seeds and are alike in all other settings.")


def test_the_cost_is_of_the_runs_that_measured_it(tmp_path: Path):
    runs = [a_run(tmp_path / "a", 3.0, 1, cost=0.08), a_run(tmp_path / "b", 3.0, 2)]
    cost = row(compare_runs(runs), "cost of ternary weights, distilled")
    assert cost == ["1", "0.080", "–", "0.080", "0.080"]


def test_right_answers_are_those_of_the_runs_with_tasks_and_differ_within_a_run(tmp_path: Path):
    one = {"base": {"sciq": acc(0.1, 0.8)}, "distill_ar": {"sciq": acc(0.2, 0.7)}}
    other = {"base": {"sciq": acc(0.3, 0.6)}, "distill_ar": {"sciq": acc(0.4, 0.3)}}
    other["distill_ar"]["lambada"] = acc(0.5)
    runs = [a_run(tmp_path / "0", 3.5, 1), a_run(tmp_path / "1", 3.1, 2, shares={})]
    runs += [a_run(tmp_path / str(i), 3.1, i, shares=of) for i, of in ((3, one), (4, other))]
    table = compare_runs(runs)
    assert row(table, "sciq, dense base") == ["2", "0.700", "0.141", "0.600", "0.800"]
    assert row(table, "sciq, distilled  ") == ["2", "0.500", "0.283", "0.300", "0.700"]
    assert row(table, "sciq, distilled - dense base") == [
        *("2", "-0.200", "0.141", "-0.300", "-0.100")
    ]
    assert row(table, "lambada, distilled  ") == ["1", "0.500", "–", "0.500", "0.500"]
    assert "lambada, dense" not in table and "lambada, distilled -" not in table
    assert row(table, "distilled - dense base") == ["4", "0.200", "0.200", "0.100", "0.500"]
    assert max(map(len, table.splitlines())) <= 80
    assert "right answers" not in compare_runs(runs[:2])


def test_settings_that_are_apart_are_named_and_seeds_are_not(tmp_path: Path):
    runs = [a_run(tmp_path / "a", 3.0, 1), a_run(tmp_path / "b", 3.0, 2, rate=0.2)]
    said = compare_runs(runs).split("apart in")[1]
    assert said.split() == ["models/stage2:", "optimizer.lr"]


def test_controls_that_were_measured_otherwise_are_named(tmp_path: Path):
    runs = [a_run(tmp_path / str(rows), 3.0, 1, cost=0.1, rows=rows) for rows in (48, 4)]
    runs.append(a_run(tmp_path / "without", 3.0, 1))
    said = compare_runs(runs).split("apart in")[1]
    assert said.split() == ["research/control:", "control.measure.rows_per_domain"]
    assert compare_runs([runs[0], runs[2]]).endswith("are alike, seeds too.")


def test_runs_that_are_no_repetitions_are_said_to_be_alike(tmp_path: Path):
    runs = [a_run(tmp_path / name, 3.0, 1) for name in "ab"]
    assert compare_runs(runs).endswith("All settings of the runs are alike, seeds too.")


def test_one_run_the_same_run_twice_and_one_without_results_are_refused(tmp_path: Path):
    run = a_run(tmp_path / "a", 3.0, 1)
    for given in ([run], [run, tmp_path / "b/../a"]):
        with pytest.raises(UserError, match="two folders or more"):
            compare_runs(given)
    with pytest.raises(UserError, match=r"results.*run the stage"):
        compare_runs([run, tmp_path])
