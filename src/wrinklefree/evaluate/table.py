"""The comparison of all models as Markdown and as plain text. Imports no torch.

Where the columns of all domains would make the table too wide, they follow in further tables with
the models as rows again.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from wrinklefree.evaluate.columns import (
    ABSENT,
    TERMINAL_WIDTH,
    Column,
    Layout,
    fits,
    fitted,
    header,
    markdown,
    plain,
)
from wrinklefree.evaluate.scores import LABELS, ModelScore
from wrinklefree.evaluate.task_scores import TASK_ROWS, TaskScore, task_columns

if TYPE_CHECKING:
    from wrinklefree.evaluate.cost import Cost

MARKDOWN_WIDTH = 100

_NOTE = """\
Held-out loss in nats per token, ± its standard error over documents; the mean over domains is
weighted as the mixture is. ppl = exp(loss); bits/byte: per UTF-8 byte of text. A value after ≤ is a
bound: the NELBO of a diffusion model. recovered: how much of the damage of naive ternarization was
undone, 0 % as naive ternary, 100 % as the dense base.
"""


_TASKS_NOTE = """\
Right answers in per cent, ± standard error over questions; of several choices the likeliest by its
length in characters is taken; in BoolQ and WinoGrande, as in lm-eval, the likeliest. Of LAMBADA:
whether greedy decoding gives the last word. solved examples: how many stand before each question.
in training text: questions of which 70 % of the 8-grams stand there, so that models may know them.
without beginning: questions longer than the model's positions, of which it reads the end, as in
lm-eval.
"""

_COST_ROWS = (
    "parameters: embedding",
    "ternary",
    "dense matrices",
    "norms, biases",
    "bytes, with floats of 32 bits",
    "bytes, with floats of 16 bits",
    "a token: additions, int8 to int32",
    "multiply-adds, fp16",
    "multiplications by scales, fp16",
    "energy estimate, nJ",
)
_COST_NOTE = """\
Bytes: four ternary weights in one, as exported, and a float for every other. A token: the products
with weights, the head's among them. energy: an estimate of this arithmetic alone at 45 nm, and no
measurement: 1.5 pJ a multiply-add, 0.1 an addition, 1.1 a multiplication (Horowitz, ISSCC 2014).
Reading weights from memory is not in it, and costs more.
"""

Answers = Mapping[str, dict[str, TaskScore]]
Costs = Mapping[str, "Cost"]
NONE: Mapping[str, Any] = {}


def markdown_table(
    models: dict[str, ModelScore],
    recovered: dict[str, float | None],
    answers: Answers = NONE,
    costs: Costs = NONE,
) -> str:
    """The comparison as Markdown, at most 100 columns wide, with a note on how to read it.

    Parameters
    ----------
    models : scores by name of the model, in the order of the rows.
    recovered : :func:`wrinklefree.evaluate.scores.recovered_share` of the models that have one.
    answers : to benchmarks, by name of the model.
    costs : of the models whose cost is shown.
    """
    tables = _tables(models, recovered, markdown, MARKDOWN_WIDTH)
    text = "\n\n".join(tables) + "\n\n" + _NOTE
    if tasks := _task_tables(answers, markdown, MARKDOWN_WIDTH):
        text += "\n" + "\n\n".join(tasks) + "\n\n" + _TASKS_NOTE
    if costs:
        text += "\n" + _cost_table(costs, markdown) + "\n\n" + _COST_NOTE
    return text


def plain_table(
    models: dict[str, ModelScore],
    recovered: dict[str, float | None],
    answers: Answers = NONE,
    costs: Costs = NONE,
) -> str:
    """The same for a terminal, at most 80 columns wide."""
    tables = [*_tables(models, recovered, plain, TERMINAL_WIDTH), fill(_NOTE, TERMINAL_WIDTH)]
    if tasks := _task_tables(answers, plain, TERMINAL_WIDTH):
        tables += [*tasks, fill(_TASKS_NOTE, TERMINAL_WIDTH)]
    if costs:
        tables += [_cost_table(costs, plain), fill(_COST_NOTE, TERMINAL_WIDTH)]
    return "\n\n".join(tables) + "\n"


def row_of(line: str) -> str:
    """The name of the model whose row of a plain table this is; empty if it is none's."""
    return next((name for name, label in LABELS.items() if line.startswith(f"{label}  ")), "")


def _task_tables(answers: Answers, layout: Layout, width: int) -> list[str]:
    names = ["model", *(LABELS.get(name, name) for name in answers), *TASK_ROWS]
    return fitted(names, task_columns(answers), layout, width)


def _cost_table(costs: Costs, layout: Layout) -> str:
    """A column per model, for there are few."""
    columns = [["cost", *_COST_ROWS]]
    for name, cost in costs.items():
        numbers = (
            *(cost.embedding, cost.ternary, cost.matrices, cost.norms),
            *(cost.bytes_with(4), cost.bytes_with(2)),
            *(cost.additions, cost.multiply_adds, cost.scalings),
        )
        cells = [*(f"{number:,}" for number in numbers), f"{cost.picojoules / 1e3:,.1f}"]
        columns.append([LABELS.get(name, name), *cells])
    return "\n".join(layout(columns))


def _tables(
    models: dict[str, ModelScore],
    recovered: dict[str, float | None],
    layout: Layout,
    width: int,
) -> list[str]:
    names = ["model", *(LABELS.get(name, name) for name in models)]
    overall, domains = _overall_columns(models, recovered), _domain_columns(models)
    if fits([names, *overall, *domains], layout, width):
        return ["\n".join(layout([names, *overall, *domains]))]
    return ["\n".join(layout([names, *overall])), *fitted(names, domains, layout, width)]


def _overall_columns(
    models: dict[str, ModelScore], recovered: dict[str, float | None]
) -> list[Column]:
    loss, perplexity = ["loss"], ["ppl"]
    bits, recovery = ["bits/byte"], ["recovered"]
    for name, model in models.items():
        bound = _bound(model)
        error = model.overall.loss_standard_error
        spread = f" ± {error:.3f}" if error is not None else ""
        loss.append(f"{bound}{model.overall.loss:.3f}{spread}")
        perplexity.append(bound + _perplexity(model.overall.perplexity))
        bits_per_byte = model.overall.bits_per_byte
        bits.append(ABSENT if bits_per_byte is None else f"{bound}{bits_per_byte:.3f}")
        share = recovered.get(name)
        recovery.append(ABSENT if share is None else f"{100 * share:.1f} %")
    return [loss, perplexity, bits, recovery]


def _domain_columns(models: dict[str, ModelScore]) -> list[Column]:
    domains = list(dict.fromkeys(name for model in models.values() for name in model.domains))
    columns = []
    for domain in domains:
        scores = [(model, model.domains.get(domain)) for model in models.values()]
        columns.append(
            [
                header(domain),
                *(
                    ABSENT if found is None else f"{_bound(model)}{found.score.loss:.3f}"
                    for model, found in scores
                ),
            ]
        )
    return columns


def _bound(model: ModelScore) -> str:
    return "≤ " if model.kind == "block_diffusion" else ""


def _perplexity(value: float | None) -> str:
    if value is None:
        return "overflow"
    return f"{value:.2f}" if value < 10_000 else f"{value:.1e}"
