"""Errors that a user can mend: one sentence that says what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class DetkitError(Exception):
    """A mistake in what the user passed: a file, a name, a value; the command line prints it and exits with code 2.

    The message is one sentence: what, where (file, line or key), expected, got, remedy.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'a' or 'b'?" for the options closest to a mistyped name, or an empty string."""
    options = list(options)
    close = get_close_matches(name, options, n=3, cutoff=0.5)
    close = close or [option for option in options if name and (name in option or option in name)][:3]
    return f"; did you mean {' or '.join(repr(option) for option in close)}?" if close else ""
