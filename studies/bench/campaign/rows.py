"""What a part of the campaign found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Row:
    """One kind of attack.

    Parameters
    ----------
    name : str
        What was attacked, and how.
    tried : int
        How often.
    wrong : Counter
        What went wrong -> how often; empty is good.
    notes : str
        What else is worth a look: the slowest, the largest.
    """

    name: str
    tried: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    notes: str = ""


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | tried | went wrong | |", "|---|--:|---|---|"]
    for row in rows:
        wrong = ", ".join(f"{count} {kind}" for kind, count in row.wrong.most_common()) or "0"
        lines.append(f"| {row.name} | {row.tried:,} | {wrong} | {row.notes} |")
    return "\n".join(lines)
