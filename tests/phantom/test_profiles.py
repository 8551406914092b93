"""Site profiles of an archive: kept with it, not mixed up, not changed half way."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.cli import phantom as cli
from headct.errors import UsageError
from headct.phantom.archive import write_archive
from headct.phantom.plan import plan_studies
from headct.phantom.profile import load_preset, load_site

SMALL = (
    *(f"n_{part}=0" for part in ("tune", "test", "external", "pool")),
    "n_train=2",
    "max_matrix=32",
    "min_slice_mm=15",
    "faults=false",
)
PROFILE = """
name = "hospital-b"
noise_sd_hu = [1.0, 2.0]
[[scanners]]
manufacturer = "Philips"
model = "Brilliance 64"
kernel = "UB"
"""


def test_an_archive_keeps_its_profiles_and_goes_on_with_no_others(tmp_path: Path) -> None:
    own, folder = tmp_path / "own.toml", tmp_path / "archive"
    own.write_text(PROFILE)
    preset = load_preset("tiny", [*SMALL, f'sites=["hospital-a", "{own.as_posix()}"]'])
    write_archive(preset, folder, 1)
    kept = sorted(path.name for path in (folder / "sites").iterdir())
    assert kept == ["hospital-a.toml", "hospital-b.toml"]
    assert load_site(folder / "sites" / "hospital-b.toml") == load_site(own)
    write_archive(preset, folder, 1)
    own.write_text(PROFILE.replace("2.0", "9.0"))
    with pytest.raises(UsageError, match=r"another sites/hospital-b\.toml"):
        write_archive(preset, folder, 1)


def test_the_profile_of_a_shortcut_is_kept(tmp_path: Path) -> None:
    mark = ['shortcut.finding="iph"', 'shortcut.site="hospital-c"', "shortcut.strength=1"]
    write_archive(load_preset("tiny", [*SMALL, *mark]), tmp_path / "archive", 1)
    assert load_site(tmp_path / "archive" / "sites" / "hospital-c.toml") == load_site("hospital-c")


@pytest.mark.parametrize("key", ["sites", "shortcut"])
def test_two_profiles_of_one_name_are_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(PROFILE)
    own = (tmp_path / "own.toml").as_posix()
    asked = {
        "sites": f'sites=["hospital-b", "{own}"]',
        "shortcut": f'shortcut={{finding="iph", site="{own}", strength=1.0}}',
    }
    with pytest.raises(UsageError, match="two profiles have the name 'hospital-b'"):
        cli.phantom(tmp_path / "out", preset="tiny", overrides=[*SMALL, asked[key]], jobs=1)
    assert not (tmp_path / "out").exists()


def test_an_archive_without_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sites: .*at least 1 is wanted"):
        cli.phantom(tmp_path / "out", preset="tiny", overrides=["sites=[]"], jobs=1)


@pytest.mark.parametrize("setting", ["n_train=500001", "n_external=500001", "n_pool=400001"])
def test_more_scans_than_patients_have_numbers_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=setting.split("=")[0]):
        plan_studies(load_preset("tiny", [*SMALL, setting]))
