"""A study's DICOM files in folders, with what is planted among them, as they lie in hospitals."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from headct.phantom.decoys import HeadSeries
from headct.phantom.faults import FAULTS, Fault
from headct.phantom.plan import Study

BESIDE = (FAULTS["localizer"], FAULTS["dose-report"])
"""What lies in the same folder as the scan in a study of mixed layout."""


@dataclass
class Folder:
    """Files of a study by their path in its folder, and what is planted among them."""

    files: dict[str, bytes] = field(default_factory=dict)
    planted: list[tuple[Fault, str, bytes]] = field(default_factory=list)

    def add(self, folder: str, files: list[bytes], first: int = 1, suffix: str = "") -> None:
        """Put the files of a series into a sub-folder."""
        names = (f"{folder}IM{first + i:04d}{suffix}" for i in range(len(files)))
        self.files.update(zip(names, files, strict=True))


def arranged(study: Study, series: HeadSeries) -> Folder:
    """The files of the study in the folders that its layout asks for."""
    folder = Folder()
    if study.fault is not None:
        _plant(folder, FAULTS[study.fault], series)
    elif study.layout == "plain":
        folder.add("SE0002/", series.files())
    elif study.layout == "spread":
        files = series.files()
        folder.add("PART1/", files[::2])
        folder.add("PART2/", files[1::2])
    else:
        folder.add("", series.files(), suffix=".dcm")
        for n, fault in enumerate(BESIDE):
            files = fault.plant(series)
            folder.planted.append((fault, "", files[0]))
            folder.add("", files, first=901 + n, suffix=".dcm")
    return folder


def _plant(folder: Folder, fault: Fault, series: HeadSeries) -> None:
    files = fault.plant(series)
    if fault.replaces:
        folder.add("SE0002/", files)
        folder.planted.append((fault, "SE0002", files[0]))
        return
    folder.add("SE0002/", series.files())
    where = f"EXTRA/{fault.name.upper()}" if fault.per_file else "SE0900"
    if fault.per_file:
        folder.files[where] = files[0]
    else:
        folder.add(f"{where}/", files)
    folder.planted.append((fault, where, files[0]))


def write_folder(archive: Path, study: Study, folder: Folder) -> None:
    """Write the study's files; its folder appears whole."""
    staged = archive / ".staging" / f"{study.index:06d}"
    final = archive / "dicom" / study.folder
    shutil.rmtree(staged, ignore_errors=True)
    for path, content in folder.files.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).write_bytes(content)
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(final)
