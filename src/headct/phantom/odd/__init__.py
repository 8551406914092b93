"""Inputs that no ingest expects, each with what must become of it: RELIABILITY section 1.

`ODD` holds them all, in the order of the modules below.
"""

from headct.phantom.odd import (
    beside,
    bodies,
    bombs,
    files,
    geometry,
    kinds,
    nifti,
    objects,
    several,
    values,
)
from headct.phantom.odd.entry import ODD, Odd

__all__ = ["ODD", "Odd"]
_ = (beside, bodies, bombs, files, geometry, kinds, nifti, objects, several, values)
