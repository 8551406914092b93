"""Acquisition that goes with disease, on request: for tests of shortcut learning.

A share of the patients is scanned by a marked protocol: half of them on the whole, more of those
with a finding. `strength` is the difference between the two shares: 0 says nothing of the disease,
1 all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headct.errors import UsageError
from headct.phantom.acquisition import draw_acquisition
from headct.phantom.profile import PhantomPreset, Shortcut, Where, load_site, site_for
from headct.phantom.scan import ScanSpec
from headct.phantom.site import SiteProfile

SHORTCUT = 16
"""Last word of the seed of these draws."""


def with_shortcut(
    spec: ScanSpec, preset: PhantomPreset, site: SiteProfile, where: Where | None
) -> ScanSpec:
    """The scan as the preset's shortcut has it: another protocol, the same head and findings.

    Args:
        spec: as `draw_scan` made it.
        preset: with a shortcut or without.
        site: where the patient is scanned, with the slices that the preset asks for.
        where: the split of the study; None for one that has none.
    """
    shortcut = preset.shortcut
    if shortcut is None or where not in shortcut.splits or not applies(shortcut, site):
        return spec
    rng = np.random.default_rng([spec.seed, spec.patient, spec.scan, SHORTCUT])
    share = 0.5 + (0.5 if _has(spec, shortcut) else -0.5) * shortcut.strength
    protocol = _protocol(preset, shortcut, site, marked=bool(rng.random() < share))
    return replace(spec, acquisition=draw_acquisition(rng, protocol, preset))


def applies(shortcut: Shortcut, site: SiteProfile) -> bool:
    """Whether the site has both a protocol with the mark and one without."""
    if shortcut.site is not None:
        return site.name != load_site(shortcut.site).name
    kernels = {scanner.kernel for scanner in site.scanners}
    return shortcut.kernel in kernels and len(kernels) > 1


def require_shortcut(preset: PhantomPreset, sites: tuple[SiteProfile, ...]) -> None:
    """Check that the first site can do what the preset's shortcut asks for.

    Raises:
        UsageError: no such site; the site's own; a kernel that it lacks or has alone.
    """
    shortcut = preset.shortcut
    if shortcut is None or applies(shortcut, sites[0]):
        return
    if shortcut.site is not None:
        raise UsageError(
            f"shortcut.site: {shortcut.site!r} is the first site itself",
            remedy="name another site profile, whose protocol the marked patients get",
        )
    kernels = ", ".join(sorted({scanner.kernel for scanner in sites[0].scanners}))
    raise UsageError(
        f"shortcut.kernel: {shortcut.kernel!r} must be one of several kernels of {sites[0].name!r}",
        remedy=f"its kernels are: {kernels}",
    )


def _has(spec: ScanSpec, shortcut: Shortcut) -> bool:
    if shortcut.finding == "midline_shift":
        return abs(spec.midline_shift_mm) >= spec.shift_label_mm
    return any(lesion.finding == shortcut.finding for lesion in spec.lesions)


def _protocol(
    preset: PhantomPreset, shortcut: Shortcut, site: SiteProfile, marked: bool
) -> SiteProfile:
    """The site's profile for patients with the mark or without."""
    if shortcut.site is None:
        chosen = tuple(s for s in site.scanners if (s.kernel == shortcut.kernel) == marked)
        return site.model_copy(update={"scanners": chosen})
    return site_for(preset, shortcut.site) if marked else site
