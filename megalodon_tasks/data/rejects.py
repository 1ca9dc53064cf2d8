"""Damaged items of a data set: left out, counted and named at the end, or refused at once."""

from collections.abc import Mapping
from pathlib import Path

#: How many damaged items are left out before it is the data that is damaged.
LIMIT = 100
_NAMED = 10


class Rejects:
    """What was left out, by name; an item that is met again counts once.

    ``strict`` refuses the first damaged item, else all are refused once there are more than ``limit``.
    """

    def __init__(self, *, strict: bool = False, limit: int = LIMIT) -> None:
        self.strict, self.limit = strict, limit
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, item: str | Path, reason: str) -> None:
        """Leave ``item`` out, named by path or place in a file, because of ``reason``.

        ``reason`` goes on after the name, as in ``is empty``.  Raises ``ValueError`` if the policy is to
        refuse instead.
        """
        self.reasons[str(item)] = reason
        if self.strict:
            raise ValueError(f"{item} {reason}; correct or remove it, or do without --strict")
        if len(self) > self.limit:
            lines = "\n".join(describe(self.reasons))
            raise ValueError(
                f"more than {self.limit} items are damaged, so nothing is used:\n{lines}"
            )


def describe(reasons: Mapping[str, str]) -> list[str]:
    """Lines that count what was left out (item -> reason) and name the first; none if nothing was."""
    if not reasons:
        return []
    named = [f"  {item} {reason}" for item, reason in list(reasons.items())[:_NAMED]]
    more = [f"  and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return [f"left out as damaged: {len(reasons)}", *named, *more]
