"""Which scans must stay together, and train / tune / test that keeps them so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headct.errors import LabelError

SPLITS = ("train", "tune", "test")
FRACTIONS = (0.6, 0.15, 0.25)


@dataclass(frozen=True)
class Groups:
    """Scans that share a patient, a study or an image are one group."""

    index: np.ndarray
    """Number of the group of each scan."""
    names: np.ndarray
    """One patient name per group: the first of its pseudonyms in the store, or a number."""
    of_patient: np.ndarray
    """The same by patient alone: tells which kind of sharing a fault is."""


def group_scans(
    patient_id: np.ndarray, study_id: np.ndarray, named_patient: np.ndarray, sha256: np.ndarray
) -> tuple[Groups, list[str]]:
    """Groups that no split may cut, and notes on what they rest on.

    Args:
        patient_id: pseudonyms in the store, [n]; empty where the scan names nobody.
        study_id: [n]; empty where there is none.
        named_patient: patients as the label table names them, [n]; empty where it does not.
        sha256: of the voxels, [n]: the same image under two names is one group.
    """
    of_patient = _components([patient_id, study_id, named_patient])
    index = _components([patient_id, study_id, named_patient, sha256])
    first: dict[int, str] = {}
    for name, number in sorted(zip(patient_id.tolist(), index.tolist(), strict=True)):
        if name:
            first.setdefault(number, name)
    names = np.array([first.get(n, f"group-{n}") for n in index.tolist()], dtype=object)
    notes = []
    anonymous = int(((patient_id == "") & (named_patient == "")).sum())
    if anonymous:
        notes.append(f"{anonymous} scans name no patient: each is taken for a patient of its own")
    known = sha256[sha256 != ""]
    doubled = len(known) - len(np.unique(known))
    if doubled:
        notes.append(f"{doubled} scans hold the same image as another; they stay in one split")
    return Groups(index, names, of_patient), notes


def _components(keys: list[np.ndarray]) -> np.ndarray:
    n = len(keys[0])
    first, second = [], []
    for key in keys:
        _, first_at, number = np.unique(key.astype(str), return_index=True, return_inverse=True)
        given = key != ""
        first.append(np.flatnonzero(given))
        second.append(first_at[number][given])
    rows, columns = np.concatenate(first), np.concatenate(second)
    links = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n, n))
    return np.asarray(connected_components(links, directed=False)[1])


def require_disjoint(split: np.ndarray, groups: Groups) -> None:
    """Raise LabelError where a patient or an image is in two splits."""
    patients = _crossing(split, groups.of_patient)
    if patients:
        raise LabelError(
            f"{patients} patient{'s' if patients > 1 else ''} in more than one split",
            remedy="split by patient, or leave out the column split: it is then drawn by patient",
        )
    images = _crossing(split, groups.index)
    if images:
        raise LabelError(
            f"{images} image{'s' if images > 1 else ''} under two names in more than one split",
            remedy="the voxels are equal: keep one of each, or put both in one split",
        )


def _crossing(split: np.ndarray, group: np.ndarray) -> int:
    pairs = np.unique(np.stack([group.astype(str), split.astype(str)]), axis=1)
    return len(pairs.T) - len(np.unique(pairs[0]))


def draw_splits(group: np.ndarray, seed: int) -> np.ndarray:
    """The split of each scan: 60 / 15 / 25 % of the groups in train / tune / test."""
    names = np.unique(group)
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    edges = np.round(np.cumsum(FRACTIONS)[:2] * len(names))
    split_of_group = np.array(SPLITS, dtype=object)[np.searchsorted(edges, rank, side="right")]
    return np.asarray(split_of_group[np.searchsorted(names, group)])
