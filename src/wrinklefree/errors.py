"""The one exception that a user is meant to see."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: settings, files, names.

    The message says what is wrong, where, what was expected and what to do. Entry points print it
    without a traceback and exit with status 2; every other exception is a bug and shows one.
    """
