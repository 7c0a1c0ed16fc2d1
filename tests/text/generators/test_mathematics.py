"""Answers are worked out again from the question's words alone, by other methods."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from fractions import Fraction

import pytest

from wrinklefree.text.generators import arithmetic
from wrinklefree.text.generators.draw import LEVELS, Draw, Problem
from wrinklefree.text.generators.mathematics import (
    KINDS,
    document,
    level_of,
    problems,
)

EQUATION = re.compile(
    r"(?<![\w^])([-(]*\d[\d\s+\-*/()]*?)\s=\s(-?\d[\d\s+\-*/()]*\d|-?\d)(?![\w^])"
)
PLAIN = re.compile(r"[\d\s+\-*/()]+")


def value(expression: str) -> Fraction:
    """Exact value of digits, + - * / and brackets."""
    assert PLAIN.fullmatch(expression), expression
    return eval(re.sub(r"(\d+)", r"Fraction(\1)", expression), {"Fraction": Fraction})


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"(?<![\w)])-?\d+", text)]


def expression(question: str) -> str:
    return max(re.findall(r"[(\d][\d\s+\-*/()]*[\d)]", question), key=len)


def polynomial(text: str, at: Fraction) -> Fraction:
    total = Fraction(0)
    for sign, digits, variable, power in re.findall(
        r"([+-]?) ?(\d*)([a-z]?)(?:\^(\d+))?(?= |$)", text.strip()
    ):
        if not digits and not variable:
            continue
        coefficient = int(digits or 1) * (-1 if sign == "-" else 1)
        total += coefficient * at ** (int(power or 1) if variable else 0)
    return total


POLYNOMIAL = re.compile(r"-?(?:\d*[a-z](?:\^\d+)?|\d+)(?: [+-] (?:\d*[a-z](?:\^\d+)?|\d+))*")


def polynomials(question: str) -> list[str]:
    found = [m.group() for m in POLYNOMIAL.finditer(question) if re.search(r"\d", m.group())]
    return [p for p in found if not re.fullmatch(r"[a-z]+", p)]


def check_value(question: str, answer: str) -> None:
    assert value(expression(question)) == value(answer)


def check_equation(question: str, answer: str) -> None:
    sides = re.search(r"([-\w^+ ]+) = ([-\w^+ ]+?)(?: for |[.,?]|$)", question)
    assert sides
    left = re.sub(r"^.*\b(?:Solve|Given|If|roots of|equation|is) ", "", sides.group(1))
    right = sides.group(2)
    roots = [Fraction(number) for number in numbers(answer)]
    for root in roots:
        assert polynomial(left, root) == polynomial(right, root)
    if "^2" in left and len(roots) == 1:  # a double root: the derivative vanishes as well
        step = Fraction(1, 7)
        rise = polynomial(left, roots[0] + step) - polynomial(left, roots[0] - step)
        assert rise == 0


def check_derivative(question: str, answer: str) -> None:
    text = max(polynomials(question.replace("f(x)", "").replace("f'(x)", "")), key=len)
    for at in map(Fraction, (-3, 0, 1, 2)):
        # Richardson's five-point formula is exact up to the fourth power, six points for the fifth.
        h = Fraction(1)
        f = [polynomial(text, at + k * h) for k in range(-3, 4)]
        slope = (f[6] - f[0]) / 60 - 3 * (f[5] - f[1]) / 20 + 3 * (f[4] - f[2]) / 4
        assert polynomial(answer, at) == slope


def check_evaluation(question: str, answer: str) -> None:
    text = re.search(r"\(x\) = (.+?)(?:\. | at | take )", question)
    at = re.search(r"(?:x = |f\()(-?\d+)", question)
    assert text and at
    assert polynomial(text.group(1), Fraction(at.group(1))) == int(answer)


def by_numbers(solve: Callable[..., object]) -> Callable[[str, str], None]:
    def check(question: str, answer: str) -> None:
        result = solve(*numbers(question))
        assert numbers(answer) == (list(result) if isinstance(result, tuple) else [result])

    return check


def check_comparison(question: str, answer: str) -> None:
    left, right = (Fraction(text) for text in re.findall(r"\d+/\d+", question))
    assert answer == "they are equal" if left == right else Fraction(answer) == max(left, right)


def check_factors(question: str, answer: str) -> None:
    factors = numbers(answer)
    assert math.prod(factors) == numbers(question)[0]
    assert all(all(p % q for q in range(2, p)) for p in factors)


def check_remainder(question: str, answer: str) -> None:
    a, b, modulus = numbers(question)
    assert (a * b if "*" in question else a + b) % modulus == int(answer)


def check_rectangle(question: str, answer: str) -> None:
    a, b = numbers(question)
    assert numbers(answer) == [a * b if "area" in question else a + b + a + b]


def check_travel(question: str, answer: str) -> None:
    a, b, c, d = numbers(question)
    assert numbers(answer) == [sum([a] * b) + sum([c] * d)]


def check_binary(question: str, answer: str) -> None:
    assert int(answer, 2) == numbers(question)[0]


def check_percentage(question: str, answer: str) -> None:
    percent, whole = numbers(question)
    assert Fraction(percent, 100) * whole == int(answer)


CHECKS: dict[str, Callable[[str, str], None]] = {
    "addition": check_value,
    "subtraction": check_value,
    "multiplication": check_value,
    "brackets": check_value,
    "fraction_sum": check_value,
    "fraction_product": check_value,
    "division": by_numbers(lambda a, b: divmod(a, b)),
    "percentage": check_percentage,
    "comparison": check_comparison,
    "greatest_common_divisor": by_numbers(math.gcd),
    "least_common_multiple": by_numbers(math.lcm),
    "remainder_of_sum": check_remainder,
    "power_remainder": by_numbers(lambda a, b, m: pow(a, b, m)),
    "prime_factors": check_factors,
    "binary": check_binary,
    "arithmetic_sequence": by_numbers(lambda *n: n[0] + (n[3] - n[0]) // 3 * (n[4] - 1)),
    "geometric_sequence": by_numbers(lambda *n: (n[3] ** 2 // n[2], n[3] ** 3 // n[2] ** 2)),
    "linear_equation": check_equation,
    "equation_both_sides": check_equation,
    "quadratic_roots": check_equation,
    "evaluation": check_evaluation,
    "derivative": check_derivative,
    "shopping": by_numbers(lambda count, price, paid: paid - sum([price] * count)),
    "giving": by_numbers(lambda start, found, given: start + found - given),
    "travel": check_travel,
    "sharing": by_numbers(lambda total, kept, friends: (total - kept) // friends),
    "ages": by_numbers(lambda total, difference: (total - difference) // 2),
    "rectangle": check_rectangle,
    "average": by_numbers(lambda *n: statistics.mean(n)),
}


DOCUMENT_7_3 = (
    "Q: Find the remainder of 769 + 736 on division by 4.\n"
    "Working: 769 leaves 1 and 736 leaves 0 on division by 4. 1 + 0 = 1, and 1 = 0 * 4 + 1.\n"
    "A: 1\n"
    "\n"
    "Q: Find the value of (14 - 17) * 14 - 17.\n"
    "Working: The bracket comes first: 14 - 17 = -3. Then the product: (-3) * 14 = -42."
    " Last, -42 - 17 = -59.\n"
    "A: -59"
)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@each_kind
def test_answer_follows_from_the_question(kind: Callable[[Draw], Problem]) -> None:
    wordings = set()
    for index in range(250):
        problem = kind(Draw("test", kind.__name__, index, level=index % 5 + 1))
        assert problem.kind == kind.__name__
        CHECKS[problem.kind](problem.question, problem.answer)
        wordings.add(re.sub(r"\d+", "0", problem.question))
    assert len(wordings) > 1


@each_kind
def test_every_equation_of_the_steps_holds(kind: Callable[[Draw], Problem]) -> None:
    checked = 0
    for index in range(200):
        problem = kind(Draw("steps", index, level=index % 5 + 1))
        for left, right in EQUATION.findall(problem.steps):
            if left.count("(") == left.count(")"):
                assert value(left) == value(right), problem.steps
                checked += 1
    assert checked >= 200


@each_kind
def test_no_question_is_of_two_levels_and_numbers_grow(kind: Callable[[Draw], Problem]) -> None:
    level_of_question: dict[str, int] = {}
    sizes = []
    for level in LEVELS:
        found = [kind(Draw("level", index, level=level)) for index in range(200)]
        for problem in found:
            assert level_of_question.setdefault(problem.question, level) == level
        sizes.append(statistics.mean(max(map(abs, numbers(p.question))) for p in found))
    assert sizes == sorted(sizes)
    assert sizes[4] > 1.5 * sizes[2]


def test_scaled_ranges_are_thirds_then_one_width_and_two() -> None:
    found = [{Draw(index, level=level).scaled(10, 18) for index in range(400)} for level in LEVELS]
    ends = (10, 13, 16, 19, 28, 46)
    assert found == [set(range(ends[level - 1], ends[level])) for level in LEVELS]


def test_document_is_a_function_of_seed_index_and_level() -> None:
    assert document(1, 2, 4) == document(1, 2, 4)
    keys = [(seed, index, level) for seed in range(3) for index in range(30) for level in LEVELS]
    assert len({document(*key) for key in keys}) > 440
    # Written down once: data made elsewhere and later has to be the same.
    assert document(7, 3, 3) == DOCUMENT_7_3


def test_document_shows_all_of_its_problems_with_answers_last() -> None:
    drills = 0
    for index in range(200):
        parts = document(11, index, 1).split("\n\n")
        lengths = set()
        for part, problem in zip(parts, problems(11, index, 1), strict=True):
            question, *steps, answer = part.split("\n")
            assert question.split(": ", 1)[1] == problem.question
            assert [line.split(": ", 1)[1] for line in steps] in ([], [problem.steps])
            assert answer.split(": ", 1)[1] == problem.answer
            lengths.add(len(steps))
        assert len(lengths) == 1
        drills += lengths == {0}
    assert 30 < drills < 70


def test_documents_have_one_to_six_problems_of_different_kinds() -> None:
    counts = [0] * 7
    for index in range(600):
        kinds = [problem.kind for problem in problems(3, index, 2)]
        assert len(set(kinds)) == len(kinds)
        counts[len(kinds)] += 1
    assert counts[0] == 0
    assert min(counts[1:]) > 60


def test_levels_are_equally_frequent_and_held_out_ones_take_their_interval() -> None:
    train_only = [level_of(7, index, [3, 1], [], 10) for index in range(1000)]
    assert train_only == [level_of(7, index, [1, 3], [], 10) for index in range(1000)]
    assert set(train_only) == {1, 3}
    assert 440 < train_only.count(1) < 560
    mixed = [level_of(7, index, [3, 1], [5, 4], 10) for index in range(1000)]
    held_out = [index for index, level in enumerate(mixed) if level > 3]
    assert held_out == list(range(9, 1000, 10))
    assert {mixed[index] for index in held_out} == {4, 5}
    assert all(a == b for a, b in zip(train_only, mixed, strict=True) if b < 4)


def test_columns_of_an_addition_carry_over() -> None:
    carried = 0
    for index in range(300):
        problem = arithmetic.addition(Draw("columns", index, level=index % 5 + 1))
        totals = re.findall(r"(\d) \+ (\d)( \+ 1)? = (\d+)", problem.steps.split(" So ")[0])
        before = 0
        for x, y, plus, total in totals:
            assert (int(x) + int(y) + before, bool(plus)) == (int(total), before == 1)
            before = int(total) // 10
            carried += before
        digits = "".join(total[-1] for *_, total in reversed(totals))
        assert problem.answer == ("1" if before else "") + digits
    assert carried > 100
