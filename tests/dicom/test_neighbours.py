"""A strange slice is noticed; ordinary anatomy, noise, tilt, metal and blank ends are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from headct.dicom.index import index_paths
from headct.dicom.neighbours import strange_slices
from headct.dicom.reasons import Reason
from headct.dicom.series import read_stacks
from headct.errors import Refusal
from headct.phantom.plan import plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series

Volume = np.ndarray


@pytest.fixture(scope="module")
def heads() -> dict[str, tuple[Volume, Volume]]:
    """Two heads each of thin (3 mm) and thick (6 mm) slices, [slice row column] HU."""
    found = {}
    for name, matrix, step_mm in (("thin", 96, 3.0), ("thick", 64, 6.0)):
        preset = PhantomPreset(n_train=2, max_matrix=matrix, min_slice_mm=step_mm, seed=3)
        first, second = (rendered_series(preset, s)[0].hu for s in plan_studies(preset)[:2])
        found[name] = first, second
    return found


def tilted(hu: Volume) -> Volume:
    """Every slice half a pixel further along the rows than the one below."""
    return np.stack(
        [ndimage.shift(z.astype(float), (i / 2 - 8, 0), order=1, cval=-1024)
         for i, z in enumerate(hu)]
    ).astype(np.int16)  # fmt: skip


def noisy(hu: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(0, 60, hu.shape)
    return (hu + noise).clip(-1024, 3071).astype(np.int16)


def with_metal(hu: Volume) -> Volume:
    """Three slices with streaks of 500 HU, as around fillings."""
    out, side = hu.copy(), hu.shape[1]
    y, x = np.mgrid[:side, :side] - side / 2
    for z in range(8, 11):
        for n in range(6):
            beam = abs(y * np.cos(n + z / 9) + x * np.sin(n + z / 9)) < 2
            out[z] = (out[z] + np.where(beam, (-1) ** n * 500, 0)).clip(-1024, 3071)
    return out


def with_blank_ends(hu: Volume) -> Volume:
    blank = np.full_like(hu[:2], -1024)
    return np.concatenate([blank, hu, blank])


def cropped(hu: Volume) -> Volume:
    return hu[len(hu) // 3 : -len(hu) // 4]


ORDINARY: dict[str, Callable[[Volume], Volume]] = {
    "as it is": lambda hu: hu,
    "from the top": lambda hu: hu[::-1],
    "tilted": tilted,
    "noisy": noisy,
    "with metal": with_metal,
    "with blank ends": with_blank_ends,
    "cropped": cropped,
}


@pytest.mark.parametrize("name", ["thin", "thick"])
@pytest.mark.parametrize("change", ORDINARY)
def test_ordinary_stack_is_not_suspected(heads, name: str, change: str) -> None:
    assert strange_slices(ORDINARY[change](heads[name][0])) == []


@pytest.mark.parametrize("name", ["thin", "thick"])
@pytest.mark.parametrize("apart", [1, 3, 13])
def test_two_slices_that_changed_places_are_found(heads, name: str, apart: int) -> None:
    hu = heads[name][0].copy()
    a = len(hu) // 2 - apart // 2
    hu[[a, a + apart]] = hu[[a + apart, a]]
    found = strange_slices(hu)
    assert found
    assert all(min(abs(z - a), abs(z - a - apart)) <= 1 for z in found)


@pytest.mark.parametrize("name", ["thin", "thick"])
def test_slice_of_another_patient_is_found(heads, name: str) -> None:
    hu, other = heads[name][0].copy(), heads[name][1]
    middle = len(hu) // 2
    hu[middle] = np.roll(other[middle], 4, axis=1)
    assert middle in strange_slices(hu)


def test_two_halves_of_two_patients_are_found(heads) -> None:
    one, other = heads["thin"]
    middle = min(len(one), len(other)) // 2
    both = np.concatenate([one[:middle], np.roll(other[middle:], 5, axis=2)])
    found = strange_slices(both)
    assert found
    assert set(found) <= {middle - 1, middle}


def test_a_blank_slice_inside_is_found(heads) -> None:
    hu = heads["thin"][0].copy()
    hu[20] = -1024
    assert 20 in strange_slices(hu)


def test_too_few_slices_to_tell(heads) -> None:
    assert strange_slices(heads["thick"][0][10:13]) == []


def test_no_real_scan_is_suspected(real_data: Path) -> None:
    n_read = 0
    for folder in sorted(path for path in (real_data / "real").iterdir() if path.is_dir()):
        for series in index_paths([folder]).series:
            for stack in read_stacks(series):
                assert isinstance(stack, Refusal) or Reason.SUSPECT_SLICE not in stack.flags
                n_read += not isinstance(stack, Refusal)
    assert n_read >= 4
