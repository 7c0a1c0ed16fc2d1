"""Divisors, remainders, bases and sequences."""

from __future__ import annotations

from math import gcd

from wrinklefree.text.generators.draw import Draw, Problem


def _sharing_a_divisor(draw: Draw, high: int, largest_divisor: int) -> tuple[int, int]:
    """Two numbers up to about ``high`` with a common divisor up to ``largest_divisor``."""
    a = draw.scaled(4, high)
    divisor = draw.choice([d for d in range(1, min(a, largest_divisor) + 1) if a % d == 0])
    return a, divisor * (draw.scaled(4, high) // divisor + 1)


def greatest_common_divisor(draw: Draw) -> Problem:
    """Euclid's algorithm."""
    a, b = _sharing_a_divisor(draw, 1200, 30)
    question = draw.choice(
        (
            "What is the greatest common divisor of {} and {}?",
            "Find gcd({}, {}).",
            "What is the largest number that divides both {} and {}?",
        )
    ).format(a, b)
    steps, x, y = [], max(a, b), min(a, b)
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}.")
        x, y = y, x % y
    steps.append(f"The last divisor is {x}.")
    return Problem("greatest_common_divisor", question, " ".join(steps), str(x))


def least_common_multiple(draw: Draw) -> Problem:
    """Through the greatest common divisor."""
    a, b = _sharing_a_divisor(draw, 150, 12)
    question = draw.choice(
        (
            "What is the least common multiple of {} and {}?",
            "Find lcm({}, {}).",
            "Two lamps flash every {} and every {} seconds. They flash together now."
            " After how many seconds do they flash together again?",
        )
    ).format(a, b)
    divisor = gcd(a, b)
    result = a * b // divisor
    steps = f"gcd({a}, {b}) is {divisor}. {a} * {b} = {a * b}, and {a * b} / {divisor} = {result}."
    return Problem("least_common_multiple", question, steps, str(result))


def remainder_of_sum(draw: Draw) -> Problem:
    """Reduce first, then combine."""
    a, b, modulus = draw.scaled(10, 999), draw.scaled(10, 999), draw.integer(3, 20)
    sign = draw.choice("+*")
    question = draw.choice(
        ("What is ({0} {2} {1}) mod {3}?", "Find the remainder of {0} {2} {1} on division by {3}.")
    ).format(a, b, sign, modulus)
    x, y = a % modulus, b % modulus
    combined = x + y if sign == "+" else x * y
    result = combined % modulus
    steps = (
        f"{a} leaves {x} and {b} leaves {y} on division by {modulus}. {x} {sign} {y} = {combined},"
        f" and {combined} = {combined // modulus} * {modulus} + {result}."
    )
    return Problem("remainder_of_sum", question, steps, str(result))


def power_remainder(draw: Draw) -> Problem:
    """A power modulo a small number, one factor at a time."""
    base, exponent, modulus = draw.integer(2, 12), draw.integer(3, 7), draw.scaled(3, 15)
    question = draw.choice(
        (
            "What is {} to the power {}, modulo {}?",
            "What remainder does {}^{} leave on division by {}?",
        )
    ).format(base, exponent, modulus)
    value = base % modulus
    steps = [f"{base} leaves {value} on division by {modulus}."]
    for power in range(2, exponent + 1):
        product = value * base
        steps.append(
            f"Power {power}: {value} * {base} = {product}, which leaves {product % modulus}."
        )
        value = product % modulus
    return Problem("power_remainder", question, " ".join(steps), str(value))


def prime_factors(draw: Draw) -> Problem:
    """Trial division."""
    number = draw.scaled(4, 999)
    question = draw.choice(
        ("Write {} as a product of primes.", "What is the prime factorization of {}?")
    ).format(number)
    steps, factors, left, candidate = [], [], number, 2
    while candidate * candidate <= left:
        if left % candidate == 0:
            steps.append(f"{left} / {candidate} = {left // candidate}.")
            factors.append(candidate)
            left //= candidate
        else:
            candidate += 1
    steps.append(f"{left} is prime.")
    answer = " * ".join(str(factor) for factor in [*factors, left])
    return Problem("prime_factors", question, " ".join(steps), answer)


def binary(draw: Draw) -> Problem:
    """A decimal number in base 2."""
    number = draw.scaled(3, 255)
    question = draw.choice(
        ("Write {} in binary.", "What is the decimal number {} in base 2?")
    ).format(number)
    steps, left = [], number
    while left:
        steps.append(f"{left} = 2 * {left // 2} + {left % 2}.")
        left //= 2
    steps.append("Read the remainders from the last to the first.")
    return Problem("binary", question, " ".join(steps), f"{number:b}")


def arithmetic_sequence(draw: Draw) -> Problem:
    """A later term of a sequence with constant difference."""
    first, difference = draw.integer(-20, 50), draw.nonzero(15)
    position = draw.scaled(6, 30)
    terms = [first + difference * i for i in range(4)]
    question = draw.choice(
        (
            "A sequence begins {} and goes on in the same way. What is term number {}?",
            "The first terms of an arithmetic sequence are {}. Find term number {}.",
        )
    ).format(", ".join(str(term) for term in terms), position)
    result = first + difference * (position - 1)
    shown = f"({difference})" if difference < 0 else str(difference)
    steps = (
        f"Each term is the one before plus {difference}. There are {position} - 1 = {position - 1}"
        f" steps from the first term, so the term is {first} + {position - 1} * {shown} = {result}."
    )
    return Problem("arithmetic_sequence", question, steps, str(result))


def geometric_sequence(draw: Draw) -> Problem:
    """The next two terms of a sequence with constant ratio."""
    first, ratio = draw.scaled(1, 9), draw.integer(2, 5)
    terms = [first * ratio**i for i in range(6)]
    question = draw.choice(
        (
            "What are the next two terms of the sequence {}?",
            "Continue the sequence {} by two terms.",
        )
    ).format(", ".join(str(term) for term in terms[:4]))
    steps = (
        f"{terms[1]} / {terms[0]} = {ratio}, and every term is {ratio} times the one before."
        f" {terms[3]} * {ratio} = {terms[4]}. {terms[4]} * {ratio} = {terms[5]}."
    )
    return Problem("geometric_sequence", question, steps, f"{terms[4]}, {terms[5]}")
