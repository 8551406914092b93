"""A short reporting checklist, filled with what the tool knows and open where people must write.

Items follow CLAIM 2024 and TRIPOD+AI in substance; the wording is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from headct.evaluate.history import Account, Pretraining
from headct.evaluate.results import Results

TO_WRITE = "for the authors to write"


@dataclass(frozen=True)
class Item:
    """One line: what should be reported, and what is known; `known` False leaves it to people."""

    topic: str
    text: str
    known: bool = True


def checklist(
    results: Results, account: Account | None, pretrained: Pretraining | None
) -> list[Item]:
    """The lines in the order of a paper."""
    sites = results.sites
    names = ", ".join(site["site"] or "not named" for site in sites)
    n_scans = sum(site["n_scans"] for site in sites)
    n_patients = sum(site["n_patients"] for site in sites)
    config = results.summary["config"]
    external = [site for site in sites if not site["internal"]]
    return [
        Item("Data source and dates", f"sites: {names}; dates: {TO_WRITE}", known=False),
        Item("Eligibility", TO_WRITE, known=False),
        _flow(account),
        Item("De-identification", "keyed pseudonyms; no identifiers in tables or in this report"),
        Item("Reference standard and readers", TO_WRITE, known=False),
        Item("Partitions", "by patient; checked: no patient is in two splits"),
        Item("Test set", f"{n_scans} scans of {n_patients} patients, read once after training"),
        Item("Prevalence", "per finding and site in the table of the cohort"),
        Item("Missing labels", "unknown labels are left out per finding, never counted as absent"),
        _training(pretrained),
        Item("Thresholds", "fixed on tune patients, carried to every site unchanged"),
        Item(
            "Uncertainty",
            f"{config['level']:.0%} intervals from {config['n_boot']} resamples of patients, "
            f"seed {config['seed']}",
        ),
        Item("Comparisons", "paired on the same patients; DeLong with patients as clusters; Holm"),
        Item("Calibration", "expected calibration error, Brier score, reliability curves"),
        Item(
            "External testing",
            f"{len(external)} external site(s)" if external else "none in this evaluation",
            known=bool(external),
        ),
        Item("Subgroups and fairness", f"not in this report: {TO_WRITE}", known=False),
        Item("Failure analysis", "missed scans are shown beside found ones; causes: " + TO_WRITE),
        Item("Intended use and limits", "research use only; see Limits"),
        Item("Code and data availability", TO_WRITE, known=False),
    ]


def _flow(account: Account | None) -> Item:
    if account is None:
        return Item("Flow of cases", "give --store to show it", known=False)
    states = ", ".join(f"{n} {state}" for state, n in account.states)
    return Item("Flow of cases", f"{account.n_seen} inputs: {states}; reasons below")


def _training(pretrained: Pretraining | None) -> Item:
    if pretrained is None:
        return Item("Model and training", "hashes below; give --run to show pretraining", False)
    return Item(
        "Model and training",
        f"pretraining: {pretrained.n_steps} steps, {pretrained.n_scans} scans seen; hashes below",
    )
