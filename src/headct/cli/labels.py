"""`headct labels`: what public sets and health records say of scans -> one label table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.labels.table import Labelled

Out = Annotated[Path, typer.Option(help="The label table: .csv or .parquet.")]
Dicom = Annotated[list[Path], typer.Option("--dicom", help="Folder or archive of its DICOM.")]
Work = Annotated[
    Path | None, typer.Option("--work", help="Where archives are unpacked for the while.")
]
Key = Annotated[
    Path | None, typer.Option("--key", help="Key file of ingest; default as in `headct ingest`.")
]
Split = Annotated[
    str, typer.Option("--split", help="Percent of patients in train,tune,test; or external.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the split.")]
Site = Annotated[str, typer.Option(help="Name of the site in results.")]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="Write the labels by scan of this store; say what is left over."),
]

DEFAULT_SPLIT = "60,15,25"


class Rule(StrEnum):
    """What holds where tables disagree."""

    error = "error"
    present = "present"
    absent = "absent"
    unknown = "unknown"
    first = "first"


commands = typer.Typer(
    help="Make label tables from public sets and health records.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(commands, name="labels")


@commands.command("vocabulary")
def print_vocabulary() -> None:
    """Print the shared names of findings, what each implies, and what data sets call it.

    Example: headct labels vocabulary
    """
    from headct.labels.vocabulary import vocabulary

    for name, term in vocabulary().items():
        implies = f" (implies {term.parent})" if term.parent else ""
        typer.echo(f"{name}: {term.meaning}{implies}")
        if term.aliases:
            typer.echo(f"    also {', '.join(term.aliases)}")


@commands.command("rsna")
def rsna(
    labels: Annotated[Path, typer.Argument(help="stage_2_train.csv.")],
    dicom: Dicom,
    out: Out,
    store: StorePath = None,
    split: Split = DEFAULT_SPLIT,
    seed: Seed = 0,
    site: Site = "rsna",
    key: Key = None,
    work: Work = None,
) -> None:
    """RSNA 2019: labels of slices become labels of series, which the DICOM headers name.

    Example: headct labels rsna stage_2_train.csv --dicom stage_2_train --out rsna.csv
    """
    from headct.dicom.pseudonym import load_key
    from headct.labels.rsna import read_rsna

    found = read_rsna(labels, dicom, load_key(key), work)
    _write(found, out, store, split, seed, site)


@commands.command("cq500")
def cq500(
    labels: Annotated[Path, typer.Argument(help="reads.csv.")],
    dicom: Dicom,
    out: Out,
    store: StorePath = None,
    split: Split = DEFAULT_SPLIT,
    seed: Seed = 0,
    site: Site = "cq500",
    key: Key = None,
    work: Work = None,
) -> None:
    """CQ500: what at least two of the three readers say, for all series of a scan.

    Example: headct labels cq500 reads.csv --dicom CQ500 --split external --out cq500.csv
    """
    from headct.dicom.pseudonym import load_key
    from headct.labels.cq500 import read_cq500

    found = read_cq500(labels, dicom, load_key(key), work)
    _write(found, out, store, split, seed, site)


@commands.command("ct-ich")
def ct_ich(
    root: Annotated[Path, typer.Argument(help="Folder with ct_scans/ and the table.")],
    out: Out,
    store: StorePath = None,
    split: Split = DEFAULT_SPLIT,
    seed: Seed = 0,
    site: Site = "ct-ich",
    key: Key = None,
) -> None:
    """CT-ICH of PhysioNet: labels of slices become labels of NIfTI scans.

    Example: headct labels ct-ich ct-ich-1.3.1 --split external --out ct-ich.csv
    """
    from headct.dicom.pseudonym import load_key
    from headct.labels.ct_ich import read_ct_ich

    _write(read_ct_ich(root, load_key(key)), out, store, split, seed, site)


@commands.command("bhsd")
def bhsd(
    root: Annotated[Path, typer.Argument(help="Folder with images/ and 'ground truths/'.")],
    out: Out,
    classes: Annotated[
        str | None, typer.Option(help="What the numbers in the masks mean, e.g. 1=edh,2=iph.")
    ] = None,
    store: StorePath = None,
    split: Split = DEFAULT_SPLIT,
    seed: Seed = 0,
    site: Site = "bhsd",
    key: Key = None,
) -> None:
    """BHSD: a bleed is present where the mask has a voxel of its number.

    The numbers are assumed to be 1=edh,2=iph,3=ivh,4=sah,5=sdh: check that for your copy.

    Example: headct labels bhsd label_192 --out bhsd.csv
    """
    from headct.dicom.pseudonym import load_key
    from headct.labels.bhsd import CLASSES, read_bhsd, read_classes

    meaning = read_classes(classes) if classes else CLASSES
    _write(read_bhsd(root, load_key(key), meaning), out, store, split, seed, site)


@commands.command("records")
def records(
    diagnoses: Annotated[Path, typer.Argument(help="patient_id, code, date, system.")],
    out: Out,
    scans: Annotated[
        Path | None, typer.Option(help="Table of the scans: patient_id, study_uid, date.")
    ] = None,
    dicom: Annotated[
        list[Path] | None,
        typer.Option("--dicom", help="Instead of --scans: folder or archive with the scans."),
    ] = None,
    rules: Annotated[
        str, typer.Option(help="TOML file of rules, or the name of those that come along.")
    ] = "ten-findings",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Rule key=value, e.g. follow_up_days=90; repeatable."),
    ] = None,
    why: Annotated[
        Path | None, typer.Option(help="Write what decided each label: a CSV file.")
    ] = None,
    show_rules: Annotated[
        bool, typer.Option("--show-rules", help="Print the rules as they are used, and go on.")
    ] = False,
    store: StorePath = None,
    split: Split = DEFAULT_SPLIT,
    seed: Seed = 0,
    site: Site = "records",
    key: Key = None,
    work: Work = None,
) -> None:
    """Health records: diagnoses around the date of a scan become its labels, by rules.

    No date and no identifier gets into the table.

    Example: headct labels records diagnoses.csv --scans scans.csv --out labels.csv

    Of DICOM: headct labels records diagnoses.csv --dicom archive --out labels.csv

    Yours: headct labels records diagnoses.csv --scans scans.csv --rules mine.toml
           --why why.csv --store store --out labels.csv
    """
    if (scans is None) == (dicom is None):
        raise UsageError("give --scans or --dicom, one of them", remedy="they say who, and when")
    from headct.config import to_toml
    from headct.dicom.pseudonym import load_key
    from headct.labels.records import describe_reasons, read_records, write_reasons
    from headct.labels.rule import load_rules
    from headct.labels.scan_dates import dates_of_dicom, dates_of_table

    chosen = load_rules(rules, overrides or ())
    if show_rules:
        typer.echo(to_toml(chosen))
    dates = dates_of_table(scans) if scans else dates_of_dicom(dicom or [], work)
    found, reasons = read_records(diagnoses, dates, chosen, load_key(key))
    typer.echo(f"{len(found.rows)} studies, and what decided:")
    for line in describe_reasons(found, reasons):
        typer.echo(line)
    if why is not None:
        write_reasons(why, found, reasons)
    _write(found, out, store, split, seed, site)


@commands.command("merge")
def merge(
    tables: Annotated[list[Path], typer.Argument(help="Label tables, yours or of importers.")],
    out: Out,
    on_conflict: Annotated[
        Rule, typer.Option(help="What holds where tables disagree about a scan.")
    ] = Rule.error,
    keep: Annotated[
        str | None, typer.Option(help="Findings not in the vocabulary to take as they are: a,b.")
    ] = None,
    store: StorePath = None,
    split: Annotated[
        str, typer.Option("--split", help="keep, or as in the importers: drawn anew.")
    ] = "keep",
    seed: Seed = 0,
    site: Annotated[str, typer.Option(help="Of rows that name no site.")] = "",
    key: Key = None,
) -> None:
    """Several label tables become one, with findings named by the vocabulary.

    Tables that name scans differently (series, studies) need --store.

    Example: headct labels merge rsna.csv cq500.csv --store store --out labels.csv
    """
    from headct.dicom.pseudonym import Pseudonymizer, load_key
    from headct.labels.merge import merge as join
    from headct.labels.own import holds_identifiers, read_own

    if out.resolve() in {table.resolve() for table in tables}:
        raise UsageError("--out is one of the tables", remedy="give another --out")
    raw = any(holds_identifiers(table) for table in tables)
    names = Pseudonymizer(load_key(key)) if raw else None
    own = [read_own(table, names, keep.split(",") if keep else ()) for table in tables]
    if store is not None:
        own = _of_store(own, store)
    found = join(own, [table.name for table in tables], on_conflict.value)
    _write(found, out, None, split, seed, site)


def _of_store(tables: list[Labelled], path: Path) -> list[Labelled]:
    from headct.labels.to_store import to_scans
    from headct.store.labels import refused_ids
    from headct.store.layout import ITEMS
    from headct.store.store import open_store

    store = open_store(path)
    return to_scans(tables, store.manifest, refused_ids(store.path / ITEMS))


def _write(
    found: Labelled, out: Path, store: Path | None, split: str, seed: int, site: str
) -> None:
    from headct.labels.table import (
        describe,
        describe_findings,
        read_splits,
        with_splits,
        write_table,
    )

    splits = None if split == "keep" else read_splits(split, seed)
    if store is not None:
        found = _of_store([found], store)[0]
    rows = with_splits(found, splits, site)
    write_table(out, found.key, rows)
    unit = found.key.removesuffix("_id")
    word = {"scan": "scans", "series": "series", "study": "studies"}[unit]
    typer.echo(f"{found.n_read} rows read, {len(rows)} {word} labelled")
    for line in (*found.notes, *describe(rows), *describe_findings(rows)):
        typer.echo(line)
    typer.echo(f"labels: {out}")
