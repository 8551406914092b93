"""The body of `headct embed`: a store, or one series, -> a feature table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headct.adapt.features import FeatureTable, tabulate, write_features
from headct.adapt.scoring import featuriser
from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.errors import UsageError
from headct.model.embed import Bundle
from headct.store.layout import STORE_JSON
from headct.store.store import Store, open_store
from headct.volume.canonical import to_canonical
from headct.volume.read import read_series


def embed_source(
    source: Path,
    out: Path,
    kind: str,
    bundle: Bundle | None,
    *,
    init_seed: int = 0,
    key: Path | None = None,
) -> None:
    """Write the feature table of a store, or of one DICOM series or NIfTI file.

    Args:
        source: store, DICOM folder or file, NIfTI file.
        out: Parquet file to write.
        kind: encoder, random-init, histogram or blocks.
        bundle: the encoder; of random-init its architecture; None for the others.
        init_seed: of the weights of random-init.
        key: key file for the name of a series that is in no store.

    Raises:
        MismatchError: the bundle wants another preprocessing than the store has.
        Refusal: the series is not a head CT that can be read.
        UsageError: a floor of files: without a bundle no grid is known.
    """
    if (source / STORE_JSON).is_file():
        table = _embed_store(open_store(source), kind, bundle, init_seed)
    elif bundle is None:
        raise UsageError("a floor wants a store", remedy="run `headct ingest` first")
    else:
        table = _embed_series(source, kind, bundle, init_seed, load_key(key))
    write_features(out, table)


def _embed_store(store: Store, kind: str, bundle: Bundle | None, init_seed: int) -> FeatureTable:
    if bundle is not None:
        bundle.preprocessing.require_same(store.preprocessing, "the bundle", "the store")
    featurise = featuriser(kind, store.preprocessing.spacing_mm_zyx, bundle, init_seed)
    bundle_hash = "" if bundle is None else bundle.hash
    return tabulate(store, featurise, source=kind, bundle_hash=bundle_hash, init_seed=init_seed)


def _embed_series(
    source: Path, kind: str, bundle: Bundle, init_seed: int, key: bytes
) -> FeatureTable:
    volume = to_canonical(read_series(source), bundle.preprocessing)
    featurise = featuriser(kind, bundle.preprocessing.spacing_mm_zyx, bundle, init_seed)
    name = np.array([Pseudonymizer(key).source_id(source.resolve())], dtype=object)
    nobody = np.array([""], dtype=object)
    return FeatureTable(
        scan_id=name,
        patient_id=nobody,
        study_id=nobody,
        vectors=featurise(volume.hu[None].astype(np.int16)),
        source=kind,
        bundle_hash=bundle.hash,
        preprocessing_hash=bundle.preprocessing.hash,
        init_seed=init_seed,
    )
