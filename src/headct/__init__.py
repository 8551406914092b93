"""headct: from a hospital's head CT archive to a 3D foundation model, and to its use.

volume = headct.read_series("folder or file")     HU, geometry
store = headct.open_store("STORE")                 many canonical volumes
bundle = headct.load_bundle("BUNDLE")              a trained encoder
embedding = bundle.embed("folder or file")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headct.errors import HeadctError as HeadctError
    from headct.model.bundle import Bundle as Bundle
    from headct.model.bundle import Embedding as Embedding
    from headct.model.bundle import load_bundle as load_bundle
    from headct.store.store import Store as Store
    from headct.store.store import open_store as open_store
    from headct.volume.read import read_series as read_series
    from headct.volume.volume import Volume as Volume

_HOME = {
    "HeadctError": "headct.errors",
    "Volume": "headct.volume.volume",
    "read_series": "headct.volume.read",
    "Store": "headct.store.store",
    "open_store": "headct.store.store",
    "Bundle": "headct.model.bundle",
    "Embedding": "headct.model.bundle",
    "load_bundle": "headct.model.bundle",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `headct --help` must not load torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'headct' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
