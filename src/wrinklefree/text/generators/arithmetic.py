"""Whole numbers, fractions and percentages."""

from __future__ import annotations

from fractions import Fraction
from math import gcd

from wrinklefree.text.generators.draw import Draw, Problem

_ASK = (
    "What is {}?",
    "Calculate {}.",
    "Work out {}.",
    "Find the value of {}.",
    "Compute {} by hand.",
    "Evaluate {}.",
)
_PLACES = (
    *("ones", "tens", "hundreds"),
    *("thousands", "ten thousands", "hundred thousands"),
    *("millions", "ten millions", "hundred millions"),
)


def _ask(draw: Draw, expression: str) -> str:
    return draw.choice(_ASK).format(expression)


def addition(draw: Draw) -> Problem:
    """Column by column, with carries."""
    a, b = draw.digits(), draw.digits()
    steps, carry, left, right, place = [], 0, a, b, 0
    while left or right:
        x, y, before = left % 10, right % 10, carry
        total = x + y + before
        carry = total // 10
        plus = f" + {before}" if before else ""
        note = f", write {total % 10} and carry 1" if carry else ""
        steps.append(f"{_PLACES[place].capitalize()}: {x} + {y}{plus} = {total}{note}.")
        left, right, place = left // 10, right // 10, place + 1
    if carry:
        steps.append("Write the last carry in front.")
    steps.append(f"So {a} + {b} = {a + b}.")
    return Problem("addition", _ask(draw, f"{a} + {b}"), " ".join(steps), str(a + b))


def subtraction(draw: Draw) -> Problem:
    """By way of a round number."""
    a, b = draw.digits(), draw.digits()
    question = _ask(draw, f"{a} - {b}")
    larger, smaller = max(a, b), min(a, b)
    unit = 10 ** (len(str(smaller)) - 1)
    rounded = smaller // unit * unit
    rest = smaller - rounded
    steps = [f"{larger} - {rounded} = {larger - rounded}."]
    if rest:
        steps.append(f"{larger - rounded} - {rest} = {larger - smaller}.")
    if a < b:
        steps.insert(0, f"{b} is larger than {a}, so the result is negative.")
        steps.append(f"Changing the sign gives {a} - {b} = {a - b}.")
    return Problem("subtraction", question, " ".join(steps), str(a - b))


def multiplication(draw: Draw) -> Problem:
    """One factor is split into its digits' values."""
    a, b = draw.scaled(2, 999), draw.scaled(2, 99)
    parts = [int(d) * 10**i for i, d in enumerate(reversed(str(b))) if d != "0"][::-1]
    steps = [f"{a} * {part} = {a * part}." for part in parts]
    if len(parts) > 1:
        split = " + ".join(str(part) for part in parts)
        total = " + ".join(str(a * part) for part in parts)
        steps = [f"Split {b} = {split}.", *steps, f"Add up: {total} = {a * b}."]
    return Problem("multiplication", _ask(draw, f"{a} * {b}"), " ".join(steps), str(a * b))


def division(draw: Draw) -> Problem:
    """Quotient and remainder."""
    divisor, quotient = draw.scaled(2, 40), draw.scaled(1, 200)
    remainder = draw.integer(0, divisor - 1)
    number = divisor * quotient + remainder
    question = draw.choice(
        (
            "Divide {} by {}. What are the quotient and the remainder?",
            "What is the quotient, and what the remainder, when {} is divided by {}?",
            "{} objects are packed in boxes of {}. How many boxes are full, and how many objects"
            " are left over?",
        )
    ).format(number, divisor)
    steps = (
        f"{divisor} * {quotient} = {divisor * quotient}, and"
        f" {number} - {divisor * quotient} = {remainder}, which is less than {divisor}."
    )
    return Problem("division", question, steps, f"{quotient}, remainder {remainder}")


def brackets(draw: Draw) -> Problem:
    """Order of operations."""
    a, b, c, d = (draw.scaled(2, 20) for _ in range(4))
    first, second = draw.choice("+-"), draw.choice("+-")
    inside = a + b if first == "+" else a - b
    product = inside * c
    result = product + d if second == "+" else product - d
    shown = f"({inside})" if inside < 0 else str(inside)
    steps = (
        f"The bracket comes first: {a} {first} {b} = {inside}. Then the product:"
        f" {shown} * {c} = {product}. Last, {product} {second} {d} = {result}."
    )
    expression = f"({a} {first} {b}) * {c} {second} {d}"
    return Problem("brackets", _ask(draw, expression), steps, str(result))


def fraction_sum(draw: Draw) -> Problem:
    """Sum or difference of two fractions over the common denominator."""
    a, c = draw.scaled(1, 12), draw.scaled(1, 12)
    b, d = draw.integer(2, 12), draw.integer(2, 12)
    sign = draw.choice("+-")
    common = b * d // gcd(b, d)
    left, right = a * common // b, c * common // d
    top = left + right if sign == "+" else left - right
    result = Fraction(top, common)
    steps = (
        f"The common denominator is {common}: {a}/{b} = {left}/{common} and"
        f" {c}/{d} = {right}/{common}. Then {left} {sign} {right} = {top}, which gives"
        f" {top}/{common}."
    )
    if str(result) != f"{top}/{common}":
        steps += f" In lowest terms, {top}/{common} = {result}."
    return Problem("fraction_sum", _ask(draw, f"{a}/{b} {sign} {c}/{d}"), steps, str(result))


def fraction_product(draw: Draw) -> Problem:
    """Product or quotient of two fractions."""
    a, c = draw.scaled(1, 15), draw.scaled(1, 15)
    b, d = draw.integer(2, 15), draw.integer(2, 15)
    if draw.choice((True, False)):
        question = _ask(draw, f"({a}/{b}) * ({c}/{d})")
        top, bottom = a * c, b * d
        steps = f"Numerators: {a} * {c} = {top}. Denominators: {b} * {d} = {bottom}."
    else:
        question = _ask(draw, f"({a}/{b}) / ({c}/{d})")
        top, bottom = a * d, b * c
        steps = (
            f"Dividing by {c}/{d} is multiplying by {d}/{c}. Numerators: {a} * {d} = {top}."
            f" Denominators: {b} * {c} = {bottom}."
        )
    result = Fraction(top, bottom)
    steps += f" In lowest terms, {top}/{bottom} = {result}."
    return Problem("fraction_product", question, steps, str(result))


def percentage(draw: Draw) -> Problem:
    """A percentage of a whole number that comes out whole."""
    percent = 5 * draw.integer(1, 30)
    whole = 20 * draw.scaled(1, 100)
    part = percent * whole // 100
    question = draw.choice(("What is {} % of {}?", "Find {} percent of {}.", "Take {} % of {}."))
    steps = f"1 % of {whole} is {whole} / 100 = {Fraction(whole, 100)}."
    steps += f" {percent} * {whole} / 100 = {part}."
    return Problem("percentage", question.format(percent, whole), steps, str(part))


def comparison(draw: Draw) -> Problem:
    """Which of two fractions is larger."""
    b, d = draw.scaled(2, 20), draw.scaled(2, 20)
    a, c = draw.integer(1, 2 * b), draw.integer(1, 2 * d)
    question = draw.choice(
        ("Which is larger, {} or {}?", "Compare {} with {}: which of the two is larger?")
    ).format(f"{a}/{b}", f"{c}/{d}")
    left, right = a * d, c * b
    steps = f"Cross-multiply: {a} * {d} = {left} and {c} * {b} = {right}."
    if left == right:
        return Problem("comparison", question, f"{steps} The products agree.", "they are equal")
    larger = f"{a}/{b}" if left > right else f"{c}/{d}"
    steps += f" {max(left, right)} is the larger product."
    return Problem("comparison", question, steps, larger)
