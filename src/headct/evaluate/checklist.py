"""Reporting checklists, filled with what the tool knows and open where people must write.

Every item of CLAIM 2024 and of TRIPOD+AI is in checklist.toml under its number.

Source:
    Tejani et al. 2024, Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024
    update, Radiology: Artificial Intelligence 6(4). Collins et al. 2024, TRIPOD+AI statement,
    BMJ 385:e078378.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from headct.evaluate.history import Account, Pretraining
from headct.evaluate.results import Results, Row

ITEMS = "checklist.toml"
AUTHORS = "for the authors to write"


@dataclass(frozen=True)
class Item:
    """One line of a checklist.

    Attributes:
        topic: what should be reported.
        claim: numbers of the items of CLAIM 2024.
        tripod: numbers of the items of TRIPOD+AI.
        text: what is known.
        known: whether the tool says it all; False leaves the rest, or all of it, to people.
    """

    topic: str
    claim: str
    tripod: str
    text: str
    known: bool


def checklist(
    results: Results, account: Account | None, pretrained: Pretraining | None
) -> list[Item]:
    """The lines in the order of a paper."""
    facts = _facts(results, account, pretrained)
    shown = facts | {
        name: "give --store to show it" for name in ("groups", "flow") if not facts[name]
    }
    shown |= {name: "none" for name in ("internal", "external") if not facts[name]}
    text = resources.files("headct.evaluate").joinpath(ITEMS).read_text(encoding="utf-8")
    return [
        Item(
            topic=item["topic"],
            claim=item.get("claim", ""),
            tripod=item.get("tripod", ""),
            text=item.get("text", AUTHORS).format(authors=AUTHORS, **shown),
            known=bool(facts[item["known"]]) if isinstance(item["known"], str) else item["known"],
        )
        for item in tomllib.loads(text)["items"]
    ]


def as_markdown(items: list[Item]) -> str:
    """A table to fill in and to submit with a paper."""
    lines = [
        "| | topic | CLAIM 2024 | TRIPOD+AI | |",
        "|---|---|---|---|---|",
        *(
            f"| {'x' if i.known else ' '} | {i.topic} | {i.claim} | {i.tripod} | {i.text} |"
            for i in items
        ),
    ]
    return "\n".join(lines) + "\n"


def _facts(
    results: Results, account: Account | None, pretrained: Pretraining | None
) -> dict[str, str]:
    """What the items name; empty where it is not known."""
    config, run = results.summary["config"], results.run
    flow = training = ""
    if account is not None:
        states = ", ".join(f"{n} {state}" for state, n in account.states)
        flow = f"{account.n_seen} inputs: {states}; reasons in the account of ingest"
    if pretrained is not None:
        training = f"pretraining: {pretrained.n_steps} steps, {pretrained.n_scans} scans seen; "
    n_scans = sum(site["n_scans"] for site in results.sites)
    n_patients = sum(site["n_patients"] for site in results.sites)
    return {
        "findings": ", ".join(results.findings),
        "sites": ", ".join(site["site"] or "not named" for site in results.sites),
        "tested": f"{n_scans} test scans of {n_patients} patients",
        "internal": _sites([site for site in results.sites if site["internal"]]),
        "external": _sites([site for site in results.sites if not site["internal"]]),
        "methods": ", ".join(results.methods),
        "encoders": _hashes(results, "bundle_hash"),
        "preprocessing": _hashes(results, "preprocessing_hash"),
        "version": run["headct"],
        "packages": ", ".join(f"{name} {version}" for name, version in run["packages"].items()),
        "level": f"{config['level']:.0%}",
        "n_boot": str(config["n_boot"]),
        "seed": str(config["seed"]),
        "groups": ", ".join(sorted({row["dimension"] for row in results.tables["subgroups"]})),
        "flow": flow,
        "training": training,
    }


def _sites(sites: list[Row]) -> str:
    return "; ".join(
        f"{site['site'] or 'not named'}: {site['n_scans']} scans of {site['n_patients']} patients"
        for site in sites
    )


def _hashes(results: Results, name: str) -> str:
    found = {about[name] for about in results.summary["methods"] if about[name]}
    return ", ".join(sorted(found)) or "none"
