"""School mathematics: questions with short worked solutions, correct by construction."""

from __future__ import annotations

from collections.abc import Callable

from wrinklefree.data.generators import algebra, arithmetic, number_theory, word_problems
from wrinklefree.data.generators.draw import Draw, Problem

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


def problems(seed: int, index: int) -> list[Problem]:
    """The one to three problems of document ``index``, of different kinds."""
    draw = Draw("mathematics", seed, index)
    return [kind(draw) for kind in draw.distinct(KINDS, draw.integer(1, 3))]


def document(seed: int, index: int) -> str:
    """The text of document ``index``: a pure function of its arguments, mostly 150-700 bytes."""
    question, steps, answer = Draw("labels", seed, index).choice(_LABELS)
    return "\n\n".join(
        f"{question}: {problem.question}\n{steps}: {problem.steps}\n{answer}: {problem.answer}"
        for problem in problems(seed, index)
    )
