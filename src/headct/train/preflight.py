"""Before the first step: is RUN ours to write, do recipe, store and ranks fit each other.

`checked_plan` is all that can be known without a device: the run itself calls it, and so does who
only queues it as a job.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from headct.config import load_recipe
from headct.errors import CheckpointError, MismatchError, StoreError, UsageError
from headct.model.tokens import grid_shape
from headct.objective.dino_config import KOLEO_FROM_SCANS
from headct.objective.joint import JointObjective
from headct.store.lock import WriterLock
from headct.store.store import Store
from headct.train.checkpoint import newest_first, read_checkpoint, require_same_identity
from headct.train.feed import view_maker
from headct.train.optim import make_optimizer
from headct.train.recipe import PretrainRecipe
from headct.train.trackers import require_trackers
from headct.train.watch import LabelledSubset
from headct.views.batch import ViewMaker


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run is made of, checked part by part against each other.

    Attributes:
        n_scans: of one micro-batch on one rank.
        maker: of its views.
        identity: what must stay the same for the run to go on.
        left_out: what the recipe asks for and will not get, in words.
    """

    n_scans: int
    maker: ViewMaker
    identity: dict[str, str]
    left_out: list[str]


def checked_plan(
    recipe: PretrainRecipe,
    store: Store,
    folder: Path,
    world_size: int,
    watch: LabelledSubset | None = None,
) -> Plan:
    """Look at all that can be wrong before the first step and needs no device to be seen.

    Args:
        recipe: of the run.
        store: of its scans.
        folder: RUN; it is only read.
        world_size: ranks.
        watch: labelled scans, where there are some.

    Raises:
        UsageError: the recipe contradicts itself, the grid or the number of ranks; a tracker that
            is asked for cannot be used; RUN is something else.
        StoreError: the store is empty.
        MismatchError: grids differ; RUN holds a run of another recipe or store.
    """
    require_grid(recipe, store)
    if watch is not None:
        store.preprocessing.require_same(
            watch.store.preprocessing, "the store", "the store of the labelled scans"
        )
    n_scans = scans_per_rank(recipe, world_size)
    maker = view_maker(recipe, store)
    require_patches_to_mask(recipe, maker)
    require_trackers(recipe.record.trackers)
    with torch.device("meta"):  # no memory, no numbers: only whether its parts fit
        make_optimizer(JointObjective(recipe.objective, recipe.encoder), recipe.optim)
    identity = {
        "preprocessing": store.preprocessing.hash,
        "recipe": recipe.hash,
        "store": store_hash(store),
    }
    require_same_recipe(folder, recipe)
    for path in newest_first(folder / "checkpoints")[:1]:
        with suppress(CheckpointError):  # damaged: the run looks for the one before
            require_same_identity(read_checkpoint(path, verify=False).identity, identity)
    return Plan(n_scans, maker, identity, what_is_left_out(recipe, world_size))


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold RUN for this process; the system lets go of it when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(folder / ".lock")
    try:
        lock.acquire()
    except StoreError as error:
        raise CheckpointError(
            f"another process is training into {folder.name}",
            remedy="wait until it is done, or give another --out",
            code="run-locked",
        ) from error
    try:
        yield
    finally:
        lock.release()


def require_grid(recipe: PretrainRecipe, store: Store) -> None:
    """Raise where the store is empty or its voxels are not those the encoder is made for."""
    if len(store) == 0:
        raise StoreError("the store holds no scans", remedy="ingest some first", code="empty")
    wanted, found = recipe.encoder.spacing_mm_zyx, store.preprocessing.spacing_mm_zyx
    if any(abs(a - b) > 1e-6 for a, b in zip(wanted, found, strict=True)):
        raise MismatchError(
            f"the encoder is made for voxels of {wanted} mm, the store has {found} mm (z y x)",
            remedy="ingest with the recipe's grid, or choose the encoder preset of the store's",
        )
    shape, table = store.preprocessing.shape_zyx, recipe.encoder.position_grid_zyx
    if table is None and store.preprocessing.stretched is not None:
        raise MismatchError(
            "the store's heads are stretched to a cube, and the encoder's positions are in mm",
            remedy="take fmct-dino or fmct-mae, or ingest with a grid in mm",
        )
    patches = grid_shape(shape, recipe.encoder.patch_voxels_zyx)
    if table not in (None, patches):
        raise MismatchError(
            f"the encoder has positions for {table} patches, the store {patches} (z y x)",
            remedy=f'--set "encoder.position_grid_zyx={list(patches)}"',
        )


def require_same_recipe(folder: Path, recipe: PretrainRecipe) -> None:
    """Raise where RUN holds another run, or something that is no run."""
    config = folder / "config.toml"
    if config.is_file():
        try:
            earlier = load_recipe(config, PretrainRecipe)
        except UsageError as error:
            raise MismatchError(
                f"{folder.name} holds a run that this headct cannot read", remedy="another --out"
            ) from error
        if keys := recipe.differences(earlier):
            raise MismatchError(
                f"{folder.name} holds a run of another recipe; different: {', '.join(keys[:8])}",
                remedy="give the recipe and --set of that run to go on, or another --out",
            )
    elif folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise UsageError(
            f"{folder.name} is not empty and holds no run", remedy="give an empty folder as --out"
        )


def scans_per_rank(recipe: PretrainRecipe, world_size: int) -> int:
    """Scans of one micro-batch on one rank."""
    share, rest = divmod(recipe.batch, world_size * recipe.accumulate)
    if rest or share == 0:
        raise UsageError(
            f"a batch of {recipe.batch} cannot be shared by {world_size} ranks"
            f" x {recipe.accumulate} micro-batches",
            remedy="choose a batch that is a multiple of both",
        )
    return share


def require_patches_to_mask(recipe: PretrainRecipe, maker: ViewMaker) -> None:
    """Raise where a large crop can be too small for a mask."""
    fewest = math.prod(min(n) // p for n, p in zip(maker.global_edges, maker.patch, strict=True))
    if recipe.views.mask.ratio[1] > 0 and fewest < 2:
        raise UsageError(
            "a global crop can be a single patch, and a mask leaves one to see and one to predict",
            remedy="raise views.crop.global_fraction, or take smaller patches",
        )


def what_is_left_out(recipe: PretrainRecipe, world_size: int) -> list[str]:
    """What the recipe asks for and its shares of the batch are too small for, in words."""
    cls = recipe.objective.cls
    n_scans = scans_per_rank(recipe, world_size)
    if cls.prototypes is None or cls.prototypes.koleo == 0 or n_scans >= KOLEO_FROM_SCANS:
        return []
    return [
        f"KoLeo is left out: it compares {KOLEO_FROM_SCANS} scans or more, and a micro-batch of a"
        f" rank has {n_scans} ({recipe.batch} in {world_size} ranks x {recipe.accumulate}"
        " micro-batches); lower accumulate, take fewer ranks or raise batch, or, where that is"
        f" meant, --set objective.cls.{cls.objective}.koleo=0"
    ]


def store_hash(store: Store) -> str:
    """16 hex digits over the preprocessing and the voxels of all scans in their order."""
    values = [store.preprocessing.hash, *store.manifest["hu_sha256"].to_pylist()]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
