"""One path -> one volume: a DICOM folder or file, or a NIfTI file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from headct.dicom.index import NIFTI_SUFFIXES, Index, index_paths
from headct.dicom.reasons import Reason
from headct.dicom.series import MIN_SLICES, Stack, StackPlan, plan_stacks, read_stack
from headct.errors import Refusal, UsageError
from headct.volume.nifti import read_nifti
from headct.volume.volume import Volume, affine_from_dicom


def read_series(path: str | Path, *, series: int | None = None) -> Volume:
    """Read a CT series in HU on its native grid, with its true affine.

    Nothing is resampled: a tilted gantry stays as shear in the affine. Only the header and the
    pixels decide; see `docs/explanation/series-to-volume.md`.

    Args:
        path: a folder of DICOM files in any layout, one (enhanced) DICOM file, or a NIfTI file.
        series: which volume to take, from 1, where the folder holds several; they are numbered
            by the name of their first file.

    Raises:
        UsageError: the path does not exist, or `series` is out of range.
        Refusal: no readable series, several of them, or the one there is not fit to be read;
            `code` is the reason.
    """
    path = Path(path)
    if path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES):
        return read_nifti(path)
    found = _readable(index_paths([path]))
    if series is None and len(found) > 1:
        raise Refusal(
            f"there are {len(found)} series here",
            code=Reason.SEVERAL_SERIES,
            remedy=f"choose one by its number: series=1 to series={len(found)}",
        )
    if series is not None and not 1 <= series <= len(found):
        raise UsageError(f"there is no series {series}", remedy=f"there are {len(found)} here")
    chosen = found[(series or 1) - 1]
    return read_nifti(chosen) if isinstance(chosen, Path) else to_volume(read_stack(chosen))


def to_volume(stack: Stack) -> Volume:
    """The volume of a DICOM stack: LPS becomes RAS in array order, nothing else changes."""
    grid = stack.plan.grid
    step = {
        "step": "read",
        "format": "dicom",
        "shape_zyx": list(stack.hu.shape),
        "step_mm": round(grid.step_mm, 4),
        "tilt_degrees": round(grid.tilt_degrees, 3),
        "transfer_syntax": stack.header.syntax,
    }
    flags = tuple(str(flag) for flag in stack.flags)
    return Volume(stack.hu, affine_from_dicom(stack.affine_lps), (step,), flags)


def _readable(index: Index) -> list[StackPlan | Path]:
    """What can be read, in order; where nothing can, the reason why."""
    plans = [plan for series in index.series for plan in plan_stacks(series, min_slices=MIN_SLICES)]
    stacks = [plan for plan in plans if isinstance(plan, StackPlan)]
    if stacks or index.nifti:
        return [*stacks, *index.nifti]
    refusals = [plan for plan in plans if isinstance(plan, Refusal)]
    if len(refusals) == 1:
        raise refusals[0]
    reasons = Counter([r.code for r in refusals] or [str(o.reason) for o in index.outcomes])
    if len(reasons) == 1 and not refusals and len(index.outcomes) == 1:
        outcome = index.outcomes[0]
        raise Refusal(outcome.message or outcome.reason.meaning, code=outcome.reason)
    listed = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    raise Refusal(
        f"no series can be read here ({listed or 'no files'})",
        code=Reason.NO_SERIES,
        remedy="see docs/reference/reason-codes.md for what the codes mean",
    )
