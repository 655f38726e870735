"""Try to break autonuq: kills, damaged files, full disks, lost storages, wrong clocks, crowds; and count what broke.

    python studies/bench/campaign --minutes 60 --seed 0
    python studies/bench/campaign --minutes 5 --part mutations --only npz

Each part gets its share of the time and makes rows: what was tried how often, and what went wrong, by kind. Nothing may
go wrong: the command ends with 1 where anything did. The same seed tries the same things, as many as the time lets.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from rows import Row, as_table

PARTS: dict[str, float] = {
    "mutations": 0.4,
    "layers": 0.15,
    "kills": 0.2,
    "disks": 0.1,
    "storages": 0.05,
    "clocks": 0.05,
    "crowds": 0.05,
}
"""Part -> its share of the time; each is a module here with `run(seconds, seed, folder, only) -> list of Row`."""


def main() -> int:
    """Run the parts that are asked for, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, action="append", help="may be repeated; default: all")
    parser.add_argument("--only", help="of a part: the rows whose name contains this")
    parser.add_argument("--keep", type=Path, help="folder for what went wrong; default: a new one")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="campaign-"))
    shares = {part: PARTS[part] for part in args.part or PARTS}
    rows: list[Row] = []
    for part, share in shares.items():
        seconds = args.minutes * 60 * share / sum(shares.values())
        rows += importlib.import_module(part).run(seconds, args.seed, folder / part, args.only or "")
    print(as_table(rows))
    if any(row.wrong for row in rows):
        print(f"what went wrong is in {folder}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
