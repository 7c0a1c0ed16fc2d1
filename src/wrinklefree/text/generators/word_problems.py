"""Small stories with one number as the answer. The numbers of a story stand in the order of use."""

from __future__ import annotations

from wrinklefree.text.generators.draw import Draw, Problem

_NAMES = ("Ada", "Ben", "Chen", "Dana", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jamila")
_THINGS = ("apples", "pencils", "marbles", "stamps", "books", "tickets", "eggs", "stones")
_SHOPS = ("market", "bakery", "stationer's", "garden shop")


def shopping(draw: Draw) -> Problem:
    """Change from a purchase."""
    name, thing, shop = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_SHOPS)
    count, price = draw.scaled(2, 15), draw.scaled(2, 12)
    cost = count * price
    paid = cost + draw.integer(1, 60)
    question = draw.choice(
        (
            "{n} buys {c} {t} at {p} coins each at the {s} and pays with {m} coins."
            " How many coins does {n} get back?",
            "At the {s}, {n} takes {c} {t} that cost {p} coins each. {n} hands over {m} coins."
            " What is the change?",
        )
    ).format(n=name, c=count, t=thing, p=price, s=shop, m=paid)
    steps = f"The {thing} cost {count} * {price} = {cost} coins. {paid} - {cost} = {paid - cost}."
    return Problem("shopping", question, steps, f"{paid - cost} coins")


def giving(draw: Draw) -> Problem:
    """Gains and losses."""
    first, second = draw.distinct(_NAMES, 2)
    thing = draw.choice(_THINGS)
    start, found = draw.scaled(20, 200), draw.scaled(1, 80)
    given = draw.integer(1, start + found)
    question = draw.choice(
        (
            "{a} has {s} {t}, finds {f} more and gives {g} of them to {b}."
            " How many {t} does {a} have now?",
            "There were {s} {t} in {a}'s box. {a} put in {f} more, then {b} took out {g}."
            " How many {t} are left in the box?",
        )
    ).format(a=first, b=second, t=thing, s=start, f=found, g=given)
    total = start + found
    steps = f"{start} + {found} = {total}. {total} - {given} = {total - given}."
    return Problem("giving", question, steps, f"{total - given} {thing}")


def travel(draw: Draw) -> Problem:
    """Distance from speed and time."""
    vehicle = draw.choice(("train", "bus", "ship", "cyclist", "truck"))
    speed, hours = draw.scaled(8, 120), draw.integer(2, 9)
    second_speed, second_hours = draw.scaled(8, 120), draw.integer(2, 9)
    question = draw.choice(
        (
            "A {v} goes {a} km an hour for {b} hours and then {c} km an hour for {d} hours."
            " How far does it get?",
            "For the first part of its way a {v} keeps {a} km an hour during {b} hours, for the"
            " second part {c} km an hour during {d} hours. How long is the way?",
        )
    ).format(v=vehicle, a=speed, b=hours, c=second_speed, d=second_hours)
    first, second = speed * hours, second_speed * second_hours
    steps = (
        f"First part: {speed} * {hours} = {first} km. Second part:"
        f" {second_speed} * {second_hours} = {second} km. Together {first} + {second}"
        f" = {first + second} km."
    )
    return Problem("travel", question, steps, f"{first + second} km")


def sharing(draw: Draw) -> Problem:
    """Equal shares after something is set aside."""
    name, thing = draw.choice(_NAMES), draw.choice(_THINGS)
    friends, each, kept = draw.scaled(2, 12), draw.scaled(2, 25), draw.integer(1, 20)
    total = friends * each + kept
    question = draw.choice(
        (
            "{n} has {a} {t}, keeps {b} and shares the rest equally among {c} friends."
            " How many does each friend get?",
            "Of {a} {t}, {n} sets {b} aside. The others go to {c} children in equal parts."
            " How many does each child receive?",
        )
    ).format(n=name, a=total, t=thing, b=kept, c=friends)
    steps = (
        f"{total} - {kept} = {total - kept} {thing} are shared,"
        f" and {total - kept} / {friends} = {each}."
    )
    return Problem("sharing", question, steps, f"{each} {thing}")


def ages(draw: Draw) -> Problem:
    """Two ages from their sum and their difference."""
    older, younger = draw.distinct(_NAMES, 2)
    low, difference = draw.integer(2, 40), draw.scaled(1, 20)
    total = 2 * low + difference
    question = draw.choice(
        (
            "{a} and {b} are {s} years old together. {a} is {d} years older than {b}."
            " How old is {b}?",
            "The ages of {a} and {b} add up to {s}, and {a} is {d} years ahead of {b}."
            " What is the age of {b}?",
        )
    ).format(a=older, b=younger, s=total, d=difference)
    steps = (
        f"Twice the age of {younger} is {total} - {difference} = {2 * low}. {2 * low} / 2 = {low}."
    )
    return Problem("ages", question, steps, f"{low} years")


def rectangle(draw: Draw) -> Problem:
    """Area or perimeter."""
    place = draw.choice(("field", "garden", "room", "sheet of paper", "courtyard"))
    length, width = draw.scaled(2, 60), draw.scaled(2, 60)
    asked = draw.choice(("area", "perimeter"))
    question = f"A rectangular {place} is {length} units long and {width} units wide."
    question += draw.choice((f" What is its {asked}?", f" Find the {asked}."))
    if asked == "area":
        result, unit = length * width, "square units"
        steps = f"The area is length times width: {length} * {width} = {result}."
    else:
        result, unit = 2 * (length + width), "units"
        steps = f"The perimeter is twice the sum of the sides: 2 * ({length} + {width}) = {result}."
    return Problem("rectangle", question, steps, f"{result} {unit}")


def average(draw: Draw) -> Problem:
    """The mean of a few numbers that comes out whole."""
    count = draw.integer(3, 5)
    numbers = [draw.scaled(1, 60) for _ in range(count - 1)]
    last = draw.scaled(1, 60)
    last += -(sum(numbers) + last) % count
    numbers.append(last)
    listed = ", ".join(str(number) for number in numbers)
    question = draw.choice(
        ("What is the average of {}?", "Find the mean of the numbers {}.")
    ).format(listed)
    total = sum(numbers)
    added = " + ".join(str(number) for number in numbers)
    steps = (
        f"{added} = {total}. There are {count} numbers, and {total} / {count} = {total // count}."
    )
    return Problem("average", question, steps, str(total // count))
