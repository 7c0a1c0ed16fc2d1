"""School mathematics: questions with short worked solutions, correct by construction."""

from __future__ import annotations

from collections.abc import Callable

from wrinklefree.text.generators import (
    algebra,
    arithmetic,
    number_theory,
    word_problems,
)
from wrinklefree.text.generators.draw import Draw, Problem

KINDS: tuple[Callable[[Draw], Problem], ...] = (
    arithmetic.addition,
    arithmetic.subtraction,
    arithmetic.multiplication,
    arithmetic.division,
    arithmetic.brackets,
    arithmetic.fraction_sum,
    arithmetic.fraction_product,
    arithmetic.percentage,
    arithmetic.comparison,
    number_theory.greatest_common_divisor,
    number_theory.least_common_multiple,
    number_theory.remainder_of_sum,
    number_theory.power_remainder,
    number_theory.prime_factors,
    number_theory.binary,
    number_theory.arithmetic_sequence,
    number_theory.geometric_sequence,
    algebra.linear_equation,
    algebra.equation_both_sides,
    algebra.quadratic_roots,
    algebra.evaluation,
    algebra.derivative,
    word_problems.shopping,
    word_problems.giving,
    word_problems.travel,
    word_problems.sharing,
    word_problems.ages,
    word_problems.rectangle,
    word_problems.average,
)
_LABELS = (
    ("Question", "Solution", "Answer"),
    ("Q", "Working", "A"),
    ("Problem", "Steps", "Result"),
)
_DRILL_INTERVAL = 4
"""One document in this many has no steps: answers only, as in a drill."""


def problems(seed: int, index: int, level: int) -> list[Problem]:
    """The one to six problems of document ``index``, of different kinds and one level."""
    draw = Draw("mathematics", seed, index, level=level)
    return [kind(draw) for kind in draw.distinct(KINDS, draw.integer(1, 6))]


def document(seed: int, index: int, level: int = 2) -> str:
    """The text of document ``index``: a pure function of its arguments, mostly 100-1200 bytes.

    Lengths are spread so that such documents fill rows of a few hundred tokens without gaps.
    """
    draw = Draw("labels", seed, index)
    question, steps, answer = draw.choice(_LABELS)
    drill = draw.integer(1, _DRILL_INTERVAL) == 1
    return "\n\n".join(
        f"{question}: {problem.question}\n"
        + ("" if drill else f"{steps}: {problem.steps}\n")
        + f"{answer}: {problem.answer}"
        for problem in problems(seed, index, level)
    )


def level_of(seed: int, index: int, levels: list[int], held_out: list[int], interval: int) -> int:
    """The level of document ``index``: one of ``levels``, equally often.

    With levels ``held_out``, every ``interval``-th document is of one of those instead.
    """
    if held_out and index % interval == interval - 1:
        levels = held_out
    return Draw("level", seed, index).choice(sorted(levels))
