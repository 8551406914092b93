"""Content checks say what is wrong with a volume in the words of the reason codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headct.volume.check import check_content
from headct.volume.head import find_head
from headct.volume.resample import closest_ras
from headct.volume.volume import Volume


def reasons(volume: Volume) -> list[str]:
    hu, affine = closest_ras(volume.hu, volume.affine_zyx)
    return [str(reason) for reason, _ in check_content(hu, find_head(hu, affine))]


def changed(volume: Volume, change: Any) -> Volume:
    hu = volume.hu.astype(np.int32)
    return replace(volume, hu=np.clip(change(hu), -1024, 3071).astype(np.int16))


def test_plain_head_has_nothing_to_say(scanner_head: Volume) -> None:
    assert reasons(scanner_head) == []


def test_constant_image(scanner_head: Volume) -> None:
    assert reasons(changed(scanner_head, lambda hu: hu * 0 + 40)) == ["constant-image"]


def test_air_alone_is_no_head(scanner_head: Volume) -> None:
    noise = np.random.default_rng(0).integers(-20, 20, scanner_head.hu.shape)
    assert reasons(changed(scanner_head, lambda hu: hu * 0 - 990 + noise)) == ["not-head"]


def test_missing_intercept_is_implausible(scanner_head: Volume) -> None:
    assert reasons(changed(scanner_head, lambda hu: hu + 1024)) == ["implausible-hu"]


def test_offset_of_scanner_is_suspect_or_implausible(scanner_head: Volume) -> None:
    assert reasons(changed(scanner_head, lambda hu: hu + 80)) == ["suspect-hu", "implausible-hu"]
    assert reasons(changed(scanner_head, lambda hu: hu + 300)) == ["implausible-hu"]
    assert reasons(changed(scanner_head, lambda hu: hu + 35)) == ["suspect-hu"]


def test_empty_skull_has_no_brain(model: Any, scanner_head: Volume) -> None:
    inside = model.depth_on(scanner_head) < 0.85
    assert reasons(changed(scanner_head, lambda hu: np.where(inside, -1000, hu))) == ["no-brain"]


def test_water_and_soft_bodies_are_no_head(scanner_head: Volume) -> None:
    soft = changed(scanner_head, lambda hu: np.where(hu > -300, np.minimum(hu, 40), hu))
    assert reasons(soft) == ["not-head"]


def test_cut_at_the_vertex(scanner_head: Volume) -> None:
    assert reasons(replace(scanner_head, hu=scanner_head.hu[:38])) == ["vertex-cut"]


def test_part_of_a_head(scanner_head: Volume) -> None:
    assert reasons(replace(scanner_head, hu=scanner_head.hu[28:])) == ["partial-head"]
    assert reasons(replace(scanner_head, hu=scanner_head.hu[:, :, 24:])) == ["partial-head"]


def test_metal(model: Any, scanner_head: Volume) -> None:
    inside = model.depth_on(scanner_head) < 0.2
    assert reasons(changed(scanner_head, lambda hu: np.where(inside, 3000, hu))) == ["metal"]
