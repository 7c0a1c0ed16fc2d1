"""Equations and polynomials in one unknown."""

from __future__ import annotations

from collections.abc import Sequence

from wrinklefree.text.generators.draw import Draw, Problem

_VARIABLES = ("x", "y", "n", "t", "z")


def _term(coefficient: int, power: int, variable: str) -> str:
    """``3x^2`` without its sign; the coefficient 1 is not written."""
    if power == 0:
        return str(abs(coefficient))
    number = "" if abs(coefficient) == 1 else str(abs(coefficient))
    return f"{number}{variable}" if power == 1 else f"{number}{variable}^{power}"


def polynomial_text(coefficients: Sequence[int], variable: str) -> str:
    """The polynomial with ``coefficients`` from the highest power to the constant."""
    text = ""
    for index, coefficient in enumerate(coefficients):
        if coefficient == 0:
            continue
        term = _term(coefficient, len(coefficients) - 1 - index, variable)
        if text:
            text += f" {'-' if coefficient < 0 else '+'} {term}"
        else:
            text = f"-{term}" if coefficient < 0 else term
    return text or "0"


def _signed(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def _moved(number: int) -> str:
    return f"Subtract {number}" if number > 0 else f"Add {-number}"


def linear_equation(draw: Draw) -> Problem:
    """a x + b = c with a whole solution."""
    v = draw.choice(_VARIABLES)
    a, b = draw.scaled(2, 15) * draw.sign(), draw.scaled(1, 40) * draw.sign()
    solution = draw.integer(-20, 20)
    c = a * solution + b
    left = polynomial_text((a, b), v)
    question = draw.choice(
        ("Solve {} = {} for {}.", "Given {} = {}, what is {}?", "If {} = {}, find {}.")
    ).format(left, c, v)
    steps = (
        f"{_moved(b)} on both sides: {polynomial_text((a, 0), v)} = {c - b}."
        f" Divide by {a}: {v} = {solution}."
        f" Check: {a} * {_signed(solution)} + {_signed(b)} = {c}."
    )
    return Problem("linear_equation", question, steps, f"{v} = {solution}")


def equation_both_sides(draw: Draw) -> Problem:
    """a x + b = c x + d with a whole solution."""
    v = draw.choice(_VARIABLES)
    solution, c = draw.integer(-12, 12), draw.nonzero(9)
    a = c + draw.scaled(2, 9)
    b = draw.scaled(1, 30) * draw.sign()
    d = (a - c) * solution + b
    left, right = polynomial_text((a, b), v), polynomial_text((c, d), v)
    question = draw.choice(("Solve {} = {}.", "For which {2} is {0} = {1}?")).format(left, right, v)
    steps = (
        f"Bring the terms with {v} to the left: {a} - {_signed(c)} = {a - c}. Bring the numbers to"
        f" the right: {d} - {_signed(b)} = {d - b}. So {polynomial_text((a - c, 0), v)} = {d - b},"
        f" and dividing by {a - c} gives {v} = {solution}."
    )
    return Problem("equation_both_sides", question, steps, f"{v} = {solution}")


def quadratic_roots(draw: Draw) -> Problem:
    """A monic quadratic with whole roots, by factoring."""
    first, second = sorted(draw.scaled(0, 12) * draw.sign() for _ in range(2))
    equation = polynomial_text((1, -(first + second), first * second), "x")
    question = draw.choice(
        ("Find all roots of {} = 0.", "Solve the quadratic equation {} = 0.")
    ).format(equation)
    steps = (
        f"Two numbers with sum {first + second} and product {first * second} are {first} and"
        f" {second}: {first} + {_signed(second)} = {first + second} and"
        f" {first} * {_signed(second)} = {first * second}."
    )
    answer = f"x = {first}" if first == second else f"x = {first} or x = {second}"
    return Problem("quadratic_roots", question, steps, answer)


def evaluation(draw: Draw) -> Problem:
    """The value of a polynomial, by Horner's rule."""
    first, degree = draw.scaled(1, 9) * draw.sign(), draw.integer(1, 3)
    coefficients = [first, *(draw.integer(-9, 9) for _ in range(degree))]
    at = draw.integer(-6, 6)
    polynomial = polynomial_text(coefficients, "x")
    question = draw.choice(
        (
            "Let f(x) = {}. What is f({})?",
            "Evaluate p(x) = {} at x = {}.",
            "What value does g(x) = {} take at x = {}?",
        )
    ).format(polynomial, at)
    value, steps = coefficients[0], [f"Start with {coefficients[0]} and use Horner's rule."]
    for coefficient in coefficients[1:]:
        following = value * at + coefficient
        steps.append(f"{_signed(value)} * {_signed(at)} + {_signed(coefficient)} = {following}.")
        value = following
    return Problem("evaluation", question, " ".join(steps), str(value))


def derivative(draw: Draw) -> Problem:
    """The derivative of a polynomial, term by term."""
    first, degree = draw.scaled(1, 9) * draw.sign(), draw.integer(2, 5)
    coefficients = [first, *(draw.integer(-9, 9) for _ in range(degree))]
    question = draw.choice(
        (
            "Differentiate {} with respect to x.",
            "What is the derivative of {} with respect to x?",
            "Find f'(x) for f(x) = {}.",
        )
    ).format(polynomial_text(coefficients, "x"))
    steps, result = ["Multiply each coefficient by its power and lower the power by one."], []
    for index, coefficient in enumerate(coefficients[:-1]):
        power = degree - index
        result.append(coefficient * power)
        if coefficient:
            product = f"{power} * {_signed(coefficient)} = {coefficient * power}"
            steps.append(f"Power {power}: {product}.")
    steps.append("The constant has derivative 0.")
    return Problem("derivative", question, " ".join(steps), polynomial_text(result, "x"))
