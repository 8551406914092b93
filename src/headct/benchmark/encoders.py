"""Features and tokens of the encoders of a benchmark: computed once, again where one changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headct.adapt.embed import embed_foreign, embed_source
from headct.adapt.foreign import load_foreign
from headct.adapt.token_table import write_tokens
from headct.atomic import write_json
from headct.benchmark.spec import ON_VECTORS, BenchmarkSpec, EncoderSpec
from headct.model.bundle import load_bundle
from headct.model.device import choose_device
from headct.store.store import open_store


@dataclass(frozen=True)
class Encoding:
    """What a worker needs to make the features of an encoder.

    Attributes:
        name: of the encoder in the spec.
        verbs: of the methods that read it.
    """

    spec: BenchmarkSpec
    out: Path
    name: str
    verbs: frozenset[str]


def prepare(encoding: Encoding) -> None:
    """Features of an encoder, once; those of another bundle or store are made again."""
    spec, out, name, verbs = encoding.spec, encoding.out, encoding.name, encoding.verbs
    encoder, store = spec.encoders[name], open_store(spec.store)
    bundle = load_bundle(encoder.bundle, device=choose_device()) if encoder.bundle else None
    voxels = store.manifest["hu_sha256"].to_pylist()
    wanted = [encoder_identity(encoder), store.preprocessing.hash, list(store.scan_ids), voxels]
    identity = {"made from": hashlib.sha256(json.dumps(wanted).encode()).hexdigest()}
    about = out / "features" / f"{name}.json"
    if read_record(about) != identity:
        for stale in (table_path(spec, out, name), tokens_path(out, name)):
            if encoder.features is None and stale.is_file():
                stale.unlink()
            elif stale.is_dir():
                shutil.rmtree(stale)
        write_json(about, identity)
    if verbs & set(ON_VECTORS) and encoder.features is None:
        path = table_path(spec, out, name)
        if not path.exists() and encoder.encoder is not None:
            foreign = load_foreign(encoder.encoder, encoder.weights, encoder.random_init)
            embed_foreign(spec.store, path, foreign, init_seed=encoder.random_init or 0)
        elif not path.exists():
            kind = encoder.floor or ("encoder" if encoder.random_init is None else "random-init")
            embed_source(spec.store, path, kind, bundle, init_seed=encoder.random_init or 0)
    if "attentive" in verbs and bundle is not None and encoder.random_init is None:
        write_tokens(tokens_path(out, name), store, bundle)


def read_record(path: Path) -> dict[str, Any]:
    """What a file of jobs or features says; empty where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def encoder_identity(encoder: EncoderSpec) -> str:
    """What the features of an encoder depend on, besides the scans."""
    if encoder.bundle is not None:
        return f"{load_bundle(encoder.bundle).hash} {encoder.random_init}"
    for file in (encoder.features, encoder.weights):
        if file is not None:
            return sha256_of(file)
    return f"{encoder.floor or encoder.encoder} {encoder.random_init}"


def sha256_of(file: Path) -> str:
    """What tells the content of a file from another, 16 hex digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def table_path(spec: BenchmarkSpec, out: Path, name: str) -> Path:
    """Where the vectors of an encoder are."""
    return spec.encoders[name].features or out / "features" / f"{name}.parquet"


def tokens_path(out: Path, name: str) -> Path:
    """Where the tokens of an encoder are."""
    return out / "features" / f"{name}.tokens"
