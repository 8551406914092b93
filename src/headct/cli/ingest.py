"""`headct ingest`: any archive -> a store of canonical head CT volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headct.cli.cluster import (
    EngineKind,
    RayAddress,
    SlurmMinutes,
    SlurmPartition,
    SlurmSet,
    chosen_engine,
)
from headct.cli.tally import print_tally
from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.ingest.worklist import Remote
    from headct.volume.preprocessing import Preprocessing

PACS = "From a PACS"
PACS_CONNECTIONS = 4
"""Processes, and so connections, where the user does not say."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("ingest")(ingest)


def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders or files (DICOM, NIfTI, zip, tar), dicomweb://HOST:PORT/PATH, "
            "dicomwebs://HOST/PATH, dicom://AET@HOST:PORT.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The store; made, or added to.")],
    grid: Annotated[
        str, typer.Option(help="Canonical grid: demo, small, base or fmct-hu.")
    ] = "base",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Grid key=value, e.g. spacing_mm_zyx=[4,1,1]; repeatable."),
    ] = None,
    criteria: Annotated[
        Path | None, typer.Option(help="TOML rule, or CSV table of description, kVp, kernel.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, tasks or jobs at once; default: all cores."),
    ] = None,
    engine: EngineKind = "local",
    ray_address: RayAddress = None,
    slurm_partition: SlurmPartition = None,
    slurm_minutes: SlurmMinutes = 240,
    slurm_set: SlurmSet = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Key of the pseudonyms; default $HEADCT_KEY_FILE or ~/.config/headct."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Name of the hospital, for the manifest.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Private folder for what is unpacked or fetched, for the while."),
    ] = None,
    studies: Annotated[
        Path | None,
        typer.Option(
            help="List of StudyInstanceUIDs or accession numbers: text or CSV.",
            rich_help_panel=PACS,
        ),
    ] = None,
    dates: Annotated[
        str | None,
        typer.Option(help="Study dates, e.g. 20200101-20201231.", rich_help_panel=PACS),
    ] = None,
    description: Annotated[
        str, typer.Option(help="Study description; * and ? match.", rich_help_panel=PACS)
    ] = "",
    body_part: Annotated[
        str, typer.Option(help="Body part of a series, or none given.", rich_help_panel=PACS)
    ] = "",
    modality: Annotated[
        str, typer.Option(help="Series of other modalities stay.", rich_help_panel=PACS)
    ] = "CT",
    aet: Annotated[
        str, typer.Option(help="Our AE title for C-GET.", rich_help_panel=PACS)
    ] = "HEADCT",
    listen: Annotated[
        str | None,
        typer.Option(help="C-MOVE to our receiver AET@HOST:PORT.", rich_help_panel=PACS),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a bearer token (DICOMweb).", rich_help_panel=PACS),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds of silence.", rich_help_panel=PACS)
    ] = 120.0,
    max_rate: Annotated[
        float | None,
        typer.Option(min=0.01, help="Images a second, at most.", rich_help_panel=PACS),
    ] = None,
    deface: Annotated[
        bool,
        typer.Option("--deface/--no-deface", help="Defacing is not there yet: only --no-deface."),
    ] = False,
) -> None:
    """Turn a raw archive into a store: right head CT volumes in, everything else with a reason.

    Interrupted, the same command goes on; a second run changes nothing. Exit code 1 means that
    some inputs were refused: see STORE/summary.html and STORE/items.jsonl.

    \b
    Examples:
      headct ingest archive/dicom --out store --grid demo
      headct ingest /data/ct old.zip a.nii.gz --out store --jobs 16
      headct ingest /data/ct --out store --engine slurm --jobs 64 --work /scratch/me
      headct ingest dicomweb://pacs:8042/dicom-web --studies list.csv --out store
      headct ingest dicom://PACS@pacs:104 --dates 20240101-20240131 --out store
    """  # noqa: D301
    if deface:
        raise UsageError("defacing is not there yet", remedy="leave --deface out")
    from headct.ingest.criteria import load_criteria
    from headct.ingest.pipeline import ingest as run
    from headct.workers import cores

    addresses = [source for source in sources if "://" in source]
    remote = None
    if addresses:
        jobs = jobs or min(PACS_CONNECTIONS, cores())
        remote = _remote(
            addresses,
            studies,
            {"modality": modality, "body_part": body_part, "description": description},
            dates,
            {"aet": aet, "listen": listen},
            {"token_file": token_file, "timeout_s": timeout, "images_per_s": max_rate},
        )
    elif studies or dates or description or body_part or listen or token_file:
        raise UsageError("options for a PACS, but no PACS", remedy="give dicom://AET@HOST:PORT")
    tally = run(
        [Path(source) for source in sources if "://" not in source],
        out,
        _preprocessing(grid, overrides or []),
        load_criteria(criteria),
        engine=chosen_engine(
            engine, jobs, ray_address, (slurm_partition, slurm_minutes, slurm_set)
        ),
        key_file=key,
        site=site,
        work=work,
        remote=remote,
    )
    print_tally(tally)
    typer.echo(f"store: {out}, summary: {out / 'summary.html'}")
    if tally.statuses["refused"]:
        raise typer.Exit(1)


def _remote(
    addresses: list[str],
    studies: Path | None,
    texts: dict[str, str],
    dates: str | None,
    ours: dict[str, str | None],
    manners: dict[str, Any],
) -> Remote:
    from headct.ingest.worklist import Remote
    from headct.pacs.address import parse_address, parse_listen, require_ae_title
    from headct.pacs.wanted import Query, parse_days, read_study_list

    if len(addresses) > 1:
        raise UsageError("more than one PACS", remedy="give one command for each")
    if studies is None and dates is None and not texts["description"]:
        raise UsageError(
            "that would ask for everything that the PACS has",
            remedy="give --studies LIST, --dates or --description",
        )
    first_day, last_day = parse_days(dates) if dates else (None, None)
    texts = texts | {name: texts[name].upper() for name in ("modality", "body_part")}
    pacs = replace(
        parse_address(addresses[0]),
        calling=require_ae_title(ours["aet"] or ""),
        listen=parse_listen(ours["listen"]) if ours["listen"] else None,
        **manners,
    )
    query = Query(**texts, first_day=first_day, last_day=last_day)
    return Remote(pacs, query, read_study_list(studies) if studies else None)


def _preprocessing(grid: str, overrides: list[str]) -> Preprocessing:
    from headct.config import apply_overrides, check
    from headct.volume.preprocessing import PRESETS, Preprocessing

    if grid not in PRESETS:
        raise UsageError(f"no grid named {grid!r}", remedy=f"one of: {', '.join(PRESETS)}")
    values = PRESETS[grid].model_dump(exclude={"hash"})
    apply_overrides(values, overrides)
    return check(values, Preprocessing, f"the grid {grid}")
