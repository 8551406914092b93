"""The pretrainings that `recipe.py` holds side by side: ours, its terms, and FM-CT's recipes."""

from __future__ import annotations

from dataclasses import dataclass

from pretraining import ON

ONE = "views.crop.n_global=1"  # L_cls alone compares two large crops of a scan
NO_LAT, NO_CLS = "objective.lat.weight=0", "objective.cls={weight=0}"
LAT = ("objective.lat.weight=0.5", "objective.lat.ramp=[0.1,0.3]")
CLS = ("objective.cls.weight=0.01", "objective.cls.ramp=[0.1,0.3]")


@dataclass(frozen=True)
class Arm:
    """A pretraining: a recipe and changes to it."""

    recipe: str
    set: tuple[str, ...] = ()


def _faithful(encoder: str, grid: tuple[int, int, int], width: int, heads: int) -> tuple[str, ...]:
    n = grid[0] * grid[1] * grid[2]
    decoder = (f"objective.decoder.width={width}", f"objective.decoder.heads={heads}")
    return (
        *(f"encoder.preset={encoder}", f"encoder.n_tokens={n}"),
        *(f"encoder.position_grid_zyx={list(grid)}", *decoder),
    )


@dataclass(frozen=True)
class Size:
    """Grid and length of all pretrainings of a matrix."""

    grid: str
    n_pool: int
    batch: int
    budget_s: float
    arms: dict[str, Arm]


NUMBERS = ("n_pool", "batch", "budget_s")
"""What of a size a call may change."""
DEMO_FMCT = _faithful("demo", (6, 8, 6), 192, 3)
SMALL_FMCT = _faithful("small", (12, 15, 12), 384, 6)
# a run of a hundred steps: at the recipe's momentum of 0.996 the teacher would stay where it began
SHORT_DINO = ("objective.cls.centring.n_prototypes=1024", "optim.momentum=0.95")
# what a run of minutes needs on any grid (decision 0039)
SHORT_ADAMW = ("views.keep_clean=true", "views.crop.global_fraction=[1,1]")
SHORT = (*SHORT_ADAMW, "optim.muon_lr=6e-3")
SIZES = {
    "tiny": Size(
        grid="demo",
        n_pool=4000,
        batch=16,
        budget_s=120,
        arms={
            "ours": Arm("mae"),
            "with-lat": Arm("demo", (ONE, *LAT, NO_CLS)),
            "with-cls": Arm("demo", (NO_LAT, *CLS)),
            "joint": Arm("demo", (*LAT, *CLS)),
            "without-pix": Arm("demo", (*LAT, *CLS, *ON, "objective.mae.weight=0")),
            "fmct-dino": Arm("fmct-dino", (*DEMO_FMCT, *SHORT_DINO)),
            "fmct-mae": Arm("fmct-mae", (*DEMO_FMCT, "optim.lr=1e-3")),
        },
    ),
    "small": Size(
        grid="small",
        n_pool=20_000,
        batch=64,
        budget_s=300,
        arms={
            "ours": Arm("mae-small"),
            "joint": Arm("small", SHORT),
            "adamw": Arm("small", (*SHORT_ADAMW, NO_LAT, NO_CLS)),
            "fmct-dino": Arm("fmct-dino", (*SMALL_FMCT, *SHORT_DINO, "accumulate=2")),
            "fmct-mae": Arm("fmct-mae", (*SMALL_FMCT, "optim.lr=1e-3")),
        },
    ),
}
