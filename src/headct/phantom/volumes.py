"""How large haemorrhages are in patients: severity is a quantile of their volume.

Source:
    BHSD (Wu et al. 2023), sums per scan and type of the volumes in the table of its lesions (CC0),
    https://github.com/DIDSR/framework-for-synthetic-ICH-to-assess-AI-generalizability.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Haemorrhage = Literal["edh", "sdh", "sah", "iph", "ivh"]
HAEMORRHAGES: tuple[Haemorrhage, ...] = get_args(Haemorrhage)

QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
VOLUME_ML: dict[Haemorrhage, tuple[float, ...]] = {
    "edh": (0.35, 0.45, 0.78, 2.2, 5.1, 15.9, 31.0, 38.0, 60.0),
    "sdh": (0.5, 0.69, 1.0, 2.3, 6.0, 23.0, 60.0, 74.0, 110.0),
    "sah": (0.1, 0.2, 0.3, 0.9, 2.0, 9.7, 22.0, 44.0, 60.0),
    "iph": (0.2, 0.35, 0.7, 2.3, 9.3, 32.0, 58.0, 83.0, 100.0),
    "ivh": (0.1, 0.14, 0.25, 0.6, 2.3, 8.4, 23.0, 45.0, 55.0),
}
"""ml at each of QUANTILES; the ends are drawn in, since the table's are single patients."""


def volume_ml(finding: Haemorrhage, severity: float) -> float:
    """The volume at a quantile; a severity above 1 goes on at the slope of the last tenth."""
    log_ml = np.log(VOLUME_ML[finding])
    inside = float(np.interp(severity, QUANTILES, log_ml))
    beyond = max(0.0, severity - 1) * float(log_ml[-1] - log_ml[-3]) / 0.1
    return float(np.exp(inside + min(beyond, 0.2)))


def quantile(u: float, preset_severity: float) -> float:
    """Severity of a finding: u in [0, 1), shifted up by a preset above 1 and down by one below."""
    return float(u ** (1 / preset_severity**2))
