"""Native volume -> canonical volume: one grid in mm around the head, resampled once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headct.dicom.reasons import Reason
from headct.errors import GeometryError, Refusal
from headct.volume.head import Head, find_head
from headct.volume.masks import box_of
from headct.volume.pose import find_pose, in_own_frame
from headct.volume.preprocessing import Preprocessing
from headct.volume.resample import (
    closest_ras,
    is_parallel,
    nearest,
    resample,
    resample_turned,
)
from headct.volume.stretched import to_stretched
from headct.volume.volume import AIR_HU, MAX_HU, MIN_HU, Volume


def to_canonical(volume: Volume, preprocessing: Preprocessing, head: Head | None = None) -> Volume:
    """The volume on the canonical grid.

    The grid is centred in the plane on the box of the cranium and reaches `vertex_margin_mm` above
    the vertex. Its axes are the scanner's S, A and R, or with `pose = "aligned"` those of the head;
    where the head's pose is unsure they are the scanner's, and the volume is flagged `pose-unsure`.
    Voxels keep their size in mm, unless the preprocessing is one of those that stretch the head to
    a cube (`fmct-hu`).

    Args:
        volume: HU, any axis order, any orientation; a sheared affine is straightened.
        preprocessing: shape, spacing and pose of the grid.
        head: from `find_head` on the volume in closest-RAS order, where it is known already.

    Returns:
        HU int16 [z y x], clipped to -1024..3071, AIR_HU outside the scan and away from the head.
        The last provenance entry holds what `to_native` needs.

    Raises:
        Refusal: no head in the volume (`not-head`).
        UsageError: the preprocessing makes windows, no volume: see `to_channels`.
    """
    if preprocessing.stretched is not None:
        return to_stretched(volume, preprocessing)
    hu, native = closest_ras(volume.hu, volume.affine_zyx)
    head = head or find_head(hu, native)
    if head is None:
        raise Refusal("no head in the volume", remedy="see the series", code="not-head")
    placed, to_aligned, pose = _placed(head, preprocessing)
    target = np.linalg.inv(to_aligned) @ canonical_affine(placed, preprocessing)
    shape = preprocessing.shape_zyx
    is_turned = placed is not head
    out = np.full(shape, AIR_HU, np.int16)
    kept = _kept(head, target, shape)
    box = box_of(kept)
    if box is not None:
        corner = np.eye(4)
        corner[:3, 3] = [part.start for part in box]
        inside = kept[box]
        if is_turned:
            resampled = resample_turned(hu, native, target @ corner, inside.shape)
        else:
            resampled = resample(hu, native, target @ corner, inside.shape, inside)
        np.rint(resampled, out=resampled).clip(MIN_HU, MAX_HU, out=resampled)
        np.copyto(out[box], resampled, where=inside, casting="unsafe")
    flags = (str(Reason.POSE_UNSURE),) if pose.get("kind") == "scanner" else ()
    return volume.with_step(
        {
            "step": "canonical",
            "preprocessing": preprocessing.hash,
            "resampling": _resampling(hu.shape, native, target, is_turned),
            "native_shape_zyx": list(volume.shape_zyx),
            "native_affine_zyx": volume.affine_zyx.ravel().tolist(),
            "vertex_mm": placed.vertex_mm,
            "centre_mm_yx": list(placed.centre_mm_yx),
            "size_mm_zyx": list(placed.size_mm_zyx),
        }
        | ({"pose": pose} if pose else {}),
        hu=out,
        affine_zyx=target,
        flags=volume.flags + flags,
    )


def _placed(
    head: Head, preprocessing: Preprocessing
) -> tuple[Head, NDArray[np.float64], dict[str, Any]]:
    """The head as the grid shall see it, world -> that frame, and what to record of the pose."""
    if preprocessing.pose == "scanner":
        return head, np.eye(4), {}
    pose = find_pose(head)
    record: dict[str, Any] = {
        "kind": "aligned" if pose.sure else "scanner",
        "to_aligned": pose.to_aligned.ravel().tolist(),
        "match": round(pose.match, 3),
        "covered": round(pose.covered, 3),
        "symmetry": round(pose.symmetry, 3),
        "turned_deg": round(pose.turned_deg, 2),
        "reference": pose.reference,
    }
    if not pose.sure:
        return head, np.eye(4), record
    return in_own_frame(head, pose, preprocessing.vertex_margin_mm), pose.to_aligned, record


def _resampling(
    shape: tuple[int, ...],
    native: NDArray[np.float64],
    target: NDArray[np.float64],
    is_turned: bool,
) -> str:
    if is_turned:
        return "turned"
    return "separable" if is_parallel(shape, native, target) else "general"


def canonical_affine(head: Head, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """The grid's affine: voxel (z, y, x, 1) -> mm of the frame that the head is given in."""
    affine = np.diag([*preprocessing.spacing_mm_zyx, 1.0])
    half_mm = [
        mm * (n - 1) / 2
        for n, mm in zip(preprocessing.shape_zyx, preprocessing.spacing_mm_zyx, strict=True)
    ]
    top_mm = head.vertex_mm + preprocessing.vertex_margin_mm
    affine[0, 3] = top_mm - preprocessing.fov_mm_zyx[0] + preprocessing.spacing_mm_zyx[0] / 2
    affine[1:3, 3] = np.asarray(head.centre_mm_yx) - half_mm[1:]
    return affine


def to_native(volume: Volume) -> Volume:
    """A canonical volume (or a map on its grid) back on the grid of the series it came from.

    Linear interpolation; outside the canonical grid the value is AIR_HU.

    Raises:
        GeometryError: the volume was not made by `to_canonical`.
    """
    step = next((s for s in reversed(volume.provenance) if s["step"] == "canonical"), None)
    if step is None:
        raise GeometryError("the volume has no canonical step in its provenance")
    native = np.asarray(step["native_affine_zyx"]).reshape(4, 4)
    matrix = np.linalg.inv(volume.affine_zyx) @ native
    out = np.empty(tuple(step["native_shape_zyx"]), np.float32)
    ndimage.affine_transform(
        volume.hu.astype(np.float32),
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=out.shape,
        output=out,
        order=1,
        mode="grid-constant",
        cval=AIR_HU,
    )
    return volume.with_step({"step": "native"}, hu=out, affine_zyx=native)


def _kept(head: Head, target: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Target voxels in the head or next to it; table and holder are not."""
    return np.asarray(nearest(head.surround, np.linalg.inv(head.affine_zyx) @ target, shape))
