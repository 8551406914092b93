"""`headct store`: look at a store, check it, take scans out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.store.store import Store

StorePath = Annotated[Path, typer.Argument(help="The store folder.")]
Scans = Annotated[
    list[str] | None, typer.Option("--scan", help="Only the scan of this id; repeatable.")
]

commands = typer.Typer(
    help="Check, describe, show and export a store.", no_args_is_help=True, rich_markup_mode="rich"
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(commands, name="store")


@commands.command("verify")
def verify(store: StorePath) -> None:
    """Read every scan and compare it with its checksum; exit code 1 where something is wrong.

    \b
    Example: headct store verify store
    """  # noqa: D301
    from headct.progress import track
    from headct.store.store import open_store
    from headct.store.verify import verify_index, verify_scans

    opened = open_store(store)
    answers = list(track(verify_scans(opened), "verify", total=len(opened)))
    problems = [*verify_index(opened), *(problem for problem in answers if problem is not None)]
    for problem in problems:
        print(f"{problem.scan_id or 'store'}: {problem.message}")
    print(f"{len(opened)} scans, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@commands.command("rebuild")
def rebuild(store: StorePath) -> None:
    """Put a lost or damaged manifest back, from its copy and the journal.

    \b
    Example: headct store rebuild store
    """  # noqa: D301
    from headct.store.rebuild import rebuild_index

    print(f"{rebuild_index(store)} scans in the manifest; now run `headct store verify`")


@commands.command("stats")
def stats(store: StorePath) -> None:
    """Counts by state and reason, grid and size of a store.

    \b
    Example: headct store stats store
    """  # noqa: D301
    from headct.store.stats import describe
    from headct.store.store import open_store

    for name, value in describe(open_store(store)).items():
        print(f"{name:24} {value}")


@commands.command("show")
def show(
    store: StorePath,
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path("contact-sheet.png"),
    scan: Scans = None,
    n: Annotated[int, typer.Option(min=1, help="Scans to show, spread over the store.")] = 24,
    window: Annotated[str, typer.Option(help="brain, blood, bone or stroke.")] = "brain",
) -> None:
    """Write a contact sheet: four axial slices per scan, the patient's right on the left.

    \b
    Example: headct store show store --out sheet.png --window bone
    """  # noqa: D301
    from headct.store.show import contact_sheet
    from headct.store.store import open_store
    from headct.volume.window import BLOOD, BONE, BRAIN, STROKE

    windows = {w.name: w for w in (BRAIN, BLOOD, BONE, STROKE)}
    if window not in windows:
        raise UsageError(f"no window named {window!r}", remedy=f"one of: {', '.join(windows)}")
    opened = open_store(store)
    contact_sheet(opened, _chosen(opened, scan, n), out, window=windows[window])
    print(out)


@commands.command("export")
def export(
    store: StorePath,
    out: Annotated[Path, typer.Option(help="Folder for SCAN_ID.nii.gz.")],
    scan: Scans = None,
) -> None:
    """Write scans as NIfTI: HU int16 on the canonical grid, with their true affine.

    \b
    Example: headct store export store --out nifti --scan c-0123456789abcdef
    """  # noqa: D301
    from headct.progress import track
    from headct.store.store import open_store
    from headct.volume.nifti import write_nifti

    opened = open_store(store)
    chosen = _chosen(opened, scan, len(opened))
    for scan_id in track(chosen, "export", total=len(chosen)):
        write_nifti(out / f"{scan_id}.nii.gz", opened[scan_id])
    print(f"{len(chosen)} scans in {out}")


def _chosen(store: Store, scan: list[str] | None, n: int) -> list[str]:
    """The scans asked for, or n of them spread over the store."""
    if not len(store):
        raise UsageError("the store is empty", remedy="ingest scans into it first")
    if scan:
        return [store.scan_ids[store.row_of(scan_id)] for scan_id in scan]
    n = min(n, len(store))
    return [store.scan_ids[i * len(store) // n] for i in range(n)]
