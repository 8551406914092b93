"""The body of `headct embed`: a store, or files on their way through one, -> a feature table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headct.adapt.earlier import Maker, is_made, require_no_other
from headct.adapt.features import Vectors, tabulate, write_features
from headct.adapt.foreign import ForeignEncoder
from headct.adapt.known_scans import scans_of_store
from headct.adapt.scoring import Hu, featuriser
from headct.errors import Refusal, UsageError
from headct.ingest.pipeline import Tally, ingest
from headct.model.embed import Bundle
from headct.store.ahead import SCANS_AT_ONCE
from headct.store.layout import STORE_JSON
from headct.store.store import Store, open_store
from headct.volume.stretched import require_hu


@dataclass(frozen=True)
class Embedded:
    """What embedding gave.

    Attributes:
        n_scans: rows of the feature table.
        is_new: whether it was written now; an equal one is left as it is.
        tally: what ingest said about files; None for a store.
    """

    n_scans: int
    is_new: bool
    tally: Tally | None = None


def embed_source(
    source: Path,
    out: Path,
    kind: str,
    bundle: Bundle | None,
    *,
    init_seed: int = 0,
    key: Path | None = None,
) -> Embedded:
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

    Raises:
        MismatchError: the bundle wants another preprocessing than the store has.
        Refusal: no file is a head CT that can be read.
        UsageError: a floor of files: without a bundle no grid is known; or a bundle whose windows
            come before the grid; or `out` is something else than a table of (some of) these scans.
    """
    if bundle is not None:
        require_hu(bundle.preprocessing)
    if (source / STORE_JSON).is_file():
        return _embed(open_store(source), out, kind, bundle, init_seed)
    if bundle is None:
        raise UsageError("a floor wants a store", remedy="run `headct ingest` first")
    maker = Maker(kind, bundle.hash, bundle.preprocessing.hash, init_seed)
    require_no_other(out, maker)  # before hours of ingest
    with tempfile.TemporaryDirectory(prefix="headct-embed-") as folder:
        tally = ingest([source], Path(folder), bundle.preprocessing, key_file=key)
        store = open_store(folder)
        if not len(store):
            raise _nothing_taken(tally)
        return replace(_embed(store, out, kind, bundle, init_seed), tally=tally)


def embed_foreign(
    source: Path, out: Path, encoder: ForeignEncoder, *, init_seed: int = 0
) -> Embedded:
    """Write the feature table of a store by an encoder of other authors.

    Raises:
        StoreError: the source is no store.
        UsageError: `out` is something else than a table of (some of) these scans.
    """
    store = open_store(source)
    spacing_mm_zyx = store.preprocessing.spacing_mm_zyx
    maker = Maker(encoder.source, encoder.hash, store.preprocessing.hash, init_seed)
    return _write(out, store, lambda hu: encoder.vectors(hu, spacing_mm_zyx), maker, batch_scans=1)


def _nothing_taken(tally: Tally) -> Refusal:
    reasons = [f"{n} {reason}" for (_, reason), n in sorted(tally.reasons.items())]
    return Refusal(
        f"no head CT among {tally.n_seen} inputs: {', '.join(reasons)}",
        remedy="see docs/reference/reason-codes.md",
    )


def _embed(store: Store, out: Path, kind: str, bundle: Bundle | None, init_seed: int) -> Embedded:
    if bundle is not None:
        bundle.preprocessing.require_same(store.preprocessing, "the bundle", "the store")
    featurise = featuriser(kind, store.preprocessing.spacing_mm_zyx, bundle, init_seed)
    bundle_hash = "" if bundle is None else bundle.hash
    return _write(
        out, store, featurise, Maker(kind, bundle_hash, store.preprocessing.hash, init_seed)
    )


def _write(
    out: Path,
    store: Store,
    featurise: Callable[[Hu], Vectors],
    maker: Maker,
    batch_scans: int = SCANS_AT_ONCE,
) -> Embedded:
    if is_made(out, maker, scans_of_store(store)):
        return Embedded(len(store), is_new=False)
    table = tabulate(
        store,
        featurise,
        source=maker.source,
        bundle_hash=maker.bundle_hash,
        init_seed=maker.init_seed,
        batch_scans=batch_scans,
    )
    write_features(out, table)
    return Embedded(len(store), is_new=True)
