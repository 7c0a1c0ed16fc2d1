from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.evaluate.cost import Cost
from wrinklefree.evaluate.scores import (
    HeldOutScores,
    Kind,
    ModelScore,
    Score,
    ScoreSums,
    domain_score,
    loss_variance,
    overall_score,
)
from wrinklefree.evaluate.table import markdown_table, plain_table, row_of
from wrinklefree.evaluate.task_scores import TaskScore
from wrinklefree.stability.loss_variance import VarianceSplit


def _model(loss: float, domains: list[str], kind: Kind = "autoregressive") -> ModelScore:
    sums = ScoreSums([loss * 10, (loss + 0.5) * 10], [10, 10], [32, 32])
    scores = {domain: domain_score(HeldOutScores(sums, sums), domain) for domain in domains}
    weights = dict.fromkeys(domains, 1.0)
    variance = loss_variance(scores, weights)
    return ModelScore(kind, loss > 3.0, overall_score(scores, weights), scores, variance)


def test_the_table_of_a_small_run_reads_as_expected():
    models = {
        "base": _model(3.0, ["code", "web"]),
        "naive": _model(9.5, ["code", "web"]),
        "dlm": _model(5.0, ["code", "web"], "block_diffusion"),
        "mine": ModelScore(
            "autoregressive", True, Score(800.0, None, 0.0), {}, VarianceSplit(0, 0)
        ),
    }
    table, note = plain_table(models, {"naive": 0.0, "mine": -1.5}).split("\n\n")
    assert note.startswith("Held-out loss in nats per token, ±")
    assert table.splitlines() == [
        "model                     loss       ppl  bits/byte  recovered     code      web",
        "--------------------------------------------------------------------------------",
        "dense base       3.250 ± 0.177     25.79      1.465          –    3.250    3.250",
        "naive ternary    9.750 ± 0.177   1.7e+04      4.396      0.0 %    9.750    9.750",
        "diffusion      ≤ 5.250 ± 0.177  ≤ 190.57    ≤ 2.367          –  ≤ 5.250  ≤ 5.250",
        "mine                   800.000  overflow          –   -150.0 %        –        –",
    ]


def test_a_row_says_whose_it_is():
    names = ["base", "stage2", "distill_ar", "distill_dlm"]
    table, note = plain_table({name: _model(3.0, ["web"]) for name in names}, {}).split("\n\n")
    assert [row_of(line) for line in table.splitlines()] == ["", "", *names]
    assert not any(map(row_of, note.splitlines()))


def test_markdown_has_a_rule_of_one_cell_per_column_and_says_how_to_read_it():
    models = {"base": _model(3.0, ["code", "web"])}
    lines = markdown_table(models, {}).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 8
    assert set(lines[1]) == set("|-: ")
    assert "nats per token" in "\n".join(lines[3:])


def test_benchmarks_are_shown_with_their_solved_examples_and_what_stands_in_the_training_text():
    answers = {
        "base": {
            "sciq": TaskScore(1000, 5, 3, 0.25, 0.01),
            "lambada": TaskScore(90, 0, 0, 1, None),
        },
        "distill_ar": {"sciq": TaskScore(1000, 5, 3, 0.5, 0.01)},
    }
    model = {"base": _model(3.0, ["web"])}
    *_, table, note = plain_table(model, {}, answers).split("\n\n")
    assert "in training text: questions" in " ".join(note.split())
    assert table.splitlines() == [
        "model              lambada        sciq",
        "--------------------------------------",
        "dense base           100.0  25.0 ± 1.0",
        "distilled                –  50.0 ± 1.0",
        "solved examples          0           5",
        "in training text   0 of 90   3 of 1000",
        "without beginning  0 of 90   0 of 1000",
    ]
    assert "| in training text  | 0 of 90 |  3 of 1000 |" in markdown_table(model, {}, answers)
    many = {"base": {f"benchmark_{i}": TaskScore(1000, 5, 3, 0.25, 0.01) for i in range(9)}}
    for lines, width in ((markdown_table, 100), (plain_table, 80)):
        assert max(map(len, lines(model, {}, many).splitlines())) <= width


def test_a_table_of_what_models_cost_stands_below_and_says_that_energy_is_an_estimate():
    costs = {
        "base": Cost(28_311_552, 0, 106_168_320, 35_136, 0, 0, 134_479_872, 0),
        "distill_ar": Cost(28_311_552, 106_168_320, 0, 98_496, 210, 106_168_320, 28_311_552, 4_320),
    }
    *_, table, note = plain_table({"base": _model(3.0, ["web"])}, {}, costs=costs).split("\n\n")
    assert "an estimate" in note and "no measurement" in " ".join(note.split())
    assert table.splitlines() == [
        "cost                                dense base    distilled",
        "-----------------------------------------------------------",
        "parameters: embedding               28,311,552   28,311,552",
        "ternary                                      0  106,168,320",
        "dense matrices                     106,168,320            0",
        "norms, biases                           35,136       98,496",
        "bytes, with floats of 32 bits      538,060,032  140,183,112",
        "bytes, with floats of 16 bits      269,030,016   83,363,016",
        "a token: additions, int8 to int32            0  106,168,320",
        "multiply-adds, fp16                134,479,872   28,311,552",
        "multiplications by scales, fp16              0        4,320",
        "energy estimate, nJ                  201,719.8     53,088.9",
    ]
    lines = markdown_table({"base": _model(3.0, ["web"])}, {}, costs=costs).splitlines()
    (row,) = [line for line in lines if "energy estimate, nJ" in line]
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["201,719.8", "53,088.9"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True), min_size=1, max_size=12),
    st.floats(0.1, 800.0),
)
def test_tables_fit_their_widths_and_leave_no_domain_out(domains: list[str], loss: float):
    domains = sorted(set(domains))
    models = {
        name: _model(loss, domains, "block_diffusion") for name in ("base", "naive", "distill_dlm")
    }
    recovered: dict[str, float | None] = dict.fromkeys(models, -0.123)
    for table, width in ((markdown_table, 100), (plain_table, 80)):
        lines = table(models, recovered).splitlines()
        assert max(map(len, lines)) <= width
        headers = " ".join(line for line in lines if line.lstrip("| ").startswith("model"))
        assert all(domain[:23] in headers for domain in domains)
