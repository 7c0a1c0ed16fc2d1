"""The one exception that a user is meant to see."""

from __future__ import annotations

import sys


class UserError(ValueError):
    """A mistake in what the user gave: settings, files, names.

    The message says what is wrong, where, what was expected and what to do. Entry points print it
    without a traceback and exit with status 2; every other exception is a bug and shows one.
    """


_LONGEST_SHOWN = 80


def shown(value: object) -> str:
    """A user's value for a message: in Python's notation, so without control characters, and short.

    A file can hold a value of megabytes, an escape code or a number too long to print.
    """
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an int of thousands of digits
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[: _LONGEST_SHOWN // 2]} … {text[-_LONGEST_SHOWN // 4 :]}"
