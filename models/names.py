"""One-line errors for unknown names, with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def known_name(kind: str, given: str, allowed: Iterable[str]) -> str:
    """`given` itself if it is one of `allowed`.

    Raises:
        ValueError: in one line: what was given, the nearest allowed name if one is near, and all allowed names.
    """
    names = tuple(allowed)
    if given in names:
        return given
    by_folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(str(given).casefold(), by_folded, n=1)
    hint = f"; did you mean {by_folded[near[0]]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {given!r}{hint} (allowed: {', '.join(names)})")
