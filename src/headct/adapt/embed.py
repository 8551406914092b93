"""The body of `headct embed`: a store, or files on their way through one, -> a feature table."""

from __future__ import annotations

import tempfile
from pathlib import Path

from headct.adapt.features import FeatureTable, tabulate, write_features
from headct.adapt.foreign import ForeignEncoder
from headct.adapt.scoring import featuriser
from headct.errors import Refusal, UsageError
from headct.ingest.pipeline import Tally, ingest
from headct.model.embed import Bundle
from headct.store.layout import STORE_JSON
from headct.store.store import Store, open_store
from headct.volume.stretched import require_hu


def embed_source(
    source: Path,
    out: Path,
    kind: str,
    bundle: Bundle | None,
    *,
    init_seed: int = 0,
    key: Path | None = None,
) -> Tally | None:
    """Write the feature table of a store, or of DICOM and NIfTI files.

    Files go through the same ingest as an archive, into a store that is not kept: the same checks,
    the same names, the same voxels.

    Args:
        source: store, folder of anything, DICOM or NIfTI file.
        out: Parquet file to write.
        kind: encoder, random-init, histogram or blocks.
        bundle: the encoder; of random-init its architecture; None for the others.
        init_seed: of the weights of random-init.
        key: key file of the pseudonyms of files.

    Returns:
        What ingest said about files; None for a store.

    Raises:
        MismatchError: the bundle wants another preprocessing than the store has.
        Refusal: no file is a head CT that can be read.
        UsageError: a floor of files: without a bundle no grid is known; or a bundle whose windows
            come before the grid.
    """
    if bundle is not None:
        require_hu(bundle.preprocessing)
    if (source / STORE_JSON).is_file():
        write_features(out, _embed(open_store(source), kind, bundle, init_seed))
        return None
    if bundle is None:
        raise UsageError("a floor wants a store", remedy="run `headct ingest` first")
    with tempfile.TemporaryDirectory(prefix="headct-embed-") as folder:
        tally = ingest([source], Path(folder), bundle.preprocessing, key_file=key)
        store = open_store(folder)
        if not len(store):
            raise _nothing_taken(tally)
        write_features(out, _embed(store, kind, bundle, init_seed))
    return tally


def embed_foreign(source: Path, out: Path, encoder: ForeignEncoder, *, init_seed: int = 0) -> None:
    """Write the feature table of a store by an encoder of other authors.

    Raises:
        StoreError: the source is no store.
    """
    store = open_store(source)
    spacing_mm_zyx = store.preprocessing.spacing_mm_zyx
    table = tabulate(
        store,
        lambda hu: encoder.vectors(hu, spacing_mm_zyx),
        source=encoder.source,
        bundle_hash=encoder.hash,
        init_seed=init_seed,
        batch_scans=1,
    )
    write_features(out, table)


def _nothing_taken(tally: Tally) -> Refusal:
    reasons = [f"{n} {reason}" for (_, reason), n in sorted(tally.reasons.items())]
    return Refusal(
        f"no head CT among {tally.n_seen} inputs: {', '.join(reasons)}",
        remedy="see docs/reference/reason-codes.md",
    )


def _embed(store: Store, kind: str, bundle: Bundle | None, init_seed: int) -> FeatureTable:
    if bundle is not None:
        bundle.preprocessing.require_same(store.preprocessing, "the bundle", "the store")
    featurise = featuriser(kind, store.preprocessing.spacing_mm_zyx, bundle, init_seed)
    bundle_hash = "" if bundle is None else bundle.hash
    return tabulate(store, featurise, source=kind, bundle_hash=bundle_hash, init_seed=init_seed)
