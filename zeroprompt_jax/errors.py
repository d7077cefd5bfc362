"""Errors a user can cause: one sentence naming the thing, its value and the nearest right one."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input from outside. The command line prints its sentence and exits with code 2, without a traceback."""


def sentence(error: UserError) -> str:
    """What an error says, without the lines that gin appends to one that passes through what it has configured."""
    return str(error).split("\n  In call to configurable")[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the known name closest to `name`, or an empty string when none is close."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name nobody registered: names the kind, the value and the nearest right value."""
    known = list(known)
    hint = nearest(name, known)
    if not hint:
        shown = ", ".join(sorted(known)[:8])
        hint = f" Known: {shown}{', …' if len(known) > 8 else ''}." if known else f" No {kind} is registered."
    return UserError(f"Unknown {kind} '{name}'.{hint}")


def check_range(settings: object, names: str, least: float = 1, *, above: float | None = None, below: float | None = None):
    """Raises UserError for the first of a dataclass' named fields (separated by spaces) that has a number below `least` or,
    where `above` is given, not above that; or not below `below`. None passes, and sequences item by item."""
    words = f"at least {least}" if above is None else f"above {above}"
    words += "" if below is None else f" and below {below}"
    for name in names.split():
        value = getattr(settings, name)
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if number is None:
                continue
            low = number >= least if above is None else number > above
            if not (low and (below is None or number < below)):
                raise UserError(f"{type(settings).__name__}.{name} is {value}; it must be {words}.")


class Stopped(Exception):
    """Something outside stopped the run, and the same command goes on from what it has saved. The command line prints the
    sentence and exits with code 75 (EX_TEMPFAIL: try again)."""


class PeerLost(Stopped):
    """Another process of the run is gone."""
