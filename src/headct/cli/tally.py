"""What ingest said about its inputs, as a table; shown by every verb that ingests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headct.ingest.pipeline import Tally


def print_tally(tally: Tally) -> None:
    """Print a line per state and reason with what the reason means, and the sum of all inputs."""
    from rich.console import Console
    from rich.table import Table

    from headct.ingest.criteria import REASONS

    table = Table("state", box=None)
    table.add_column("reason", no_wrap=True)
    table.add_column("number", justify="right")
    table.add_column("meaning")
    for (status, reason), n in sorted(tally.reasons.items()):
        table.add_row(status, reason, str(n), REASONS[reason].meaning if reason else "")
    console = Console(highlight=False)
    console.print(table)
    known = f" ({tally.n_known} of them known from before)" if tally.n_known else ""
    console.print(f"{tally.n_seen} seen = {tally}{known}", soft_wrap=True)
