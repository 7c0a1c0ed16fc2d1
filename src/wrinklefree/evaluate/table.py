"""The comparison of all models as Markdown and as plain text. Imports no torch.

Where the columns of all domains would make the table too wide, they follow in further tables with
the models as rows again.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

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
from wrinklefree.evaluate.task_scores import TaskScore, task_columns

MARKDOWN_WIDTH = 100

_NOTE = """\
Held-out loss in nats per token, ± its standard error over documents; the mean over domains is
weighted as the mixture is. ppl = exp(loss); bits/byte: per UTF-8 byte of text. A value after ≤ is a
bound: the NELBO of a diffusion model. recovered: how much of the damage of naive ternarization was
undone, 0 % as naive ternary, 100 % as the dense base.
"""


_TASKS_NOTE = """\
Right answers in per cent, ± standard error over questions; of several choices the likeliest by its
length is taken, or the likeliest where all are equal but for their context. Of LAMBADA: whether
greedy decoding gives the last word.
"""

Answers = Mapping[str, dict[str, TaskScore]]
NONE: Answers = {}


def markdown_table(
    models: dict[str, ModelScore], recovered: dict[str, float | None], answers: Answers = NONE
) -> str:
    """The comparison as Markdown, at most 100 columns wide, with a note on how to read it.

    Parameters
    ----------
    models : scores by name of the model, in the order of the rows.
    recovered : :func:`wrinklefree.evaluate.scores.recovered_share` of the models that have one.
    answers : to benchmarks, by name of the model.
    """
    tables = _tables(models, recovered, markdown, MARKDOWN_WIDTH)
    text = "\n\n".join(tables) + "\n\n" + _NOTE
    if tasks := _task_tables(answers, markdown, MARKDOWN_WIDTH):
        text += "\n" + "\n\n".join(tasks) + "\n\n" + _TASKS_NOTE
    return text


def plain_table(
    models: dict[str, ModelScore], recovered: dict[str, float | None], answers: Answers = NONE
) -> str:
    """The same for a terminal, at most 80 columns wide."""
    tables = [*_tables(models, recovered, plain, TERMINAL_WIDTH), fill(_NOTE, TERMINAL_WIDTH)]
    if tasks := _task_tables(answers, plain, TERMINAL_WIDTH):
        tables += [*tasks, fill(_TASKS_NOTE, TERMINAL_WIDTH)]
    return "\n\n".join(tables) + "\n"


def _task_tables(answers: Answers, layout: Layout, width: int) -> list[str]:
    names = ["model", *(LABELS.get(name, name) for name in answers)]
    return fitted(names, task_columns(answers), layout, width)


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
