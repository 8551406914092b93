"""`headct doctor`: what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from headct.workers import cores

REQUIRED = ("numpy", "scipy", "pydicom", "nibabel", "zarr", "tensorstore", "pyarrow")
TRAINING = ("torch", "safetensors", "scikit-learn", "matplotlib")
CODECS = {
    "JPEG lossless": "gdcm",
    "JPEG-LS": "jpeg_ls",
    "JPEG 2000": "openjpeg",
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Say what this machine can do: packages, codecs, processor, memory, disk, accelerator.

    Exit code 1 where something that headct needs is missing.

    Example:  headct doctor
    """
    rows = [*_packages(), *_codecs(), *_machine(), *_accelerator(), _torchvision()]
    table = Table("", "what", "found", title="headct doctor", title_justify="left")
    for fine, what, found in rows:
        table.add_row("[green]ok[/]" if fine else "[red]no[/]", what, found)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if not all(fine for fine, _, _ in rows):
        print("what to do: `make env` for packages; else free disk or memory")
        raise typer.Exit(1)


def _packages() -> list[tuple[bool, str, str]]:
    rows = [(sys.version_info >= (3, 11), "Python >= 3.11", platform.python_version())]
    for name in (*REQUIRED, *TRAINING):
        try:
            rows.append((True, name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((False, name, "missing"))
    return rows


def _codecs() -> list[tuple[bool, str, str]]:
    return [
        (util.find_spec(module) is not None, f"{name} decoder", module)
        for name, module in CODECS.items()
    ]


def _machine() -> list[tuple[bool, str, str]]:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    rows = [
        (True, "processor cores", str(cores())),
        (free_gb > 5, "free disk here", f"{free_gb:.0f} GB"),
    ]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
        rows.append((memory_gb > 6, "memory", f"{memory_gb:.0f} GB"))
    return rows


def _accelerator() -> list[tuple[bool, str, str]]:
    if util.find_spec("torch") is None:
        return []
    import torch

    if torch.cuda.is_available():
        from headct.views.backend import why_no_kernels

        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        why = why_no_kernels(torch.device("cuda"))
        kernels = "Triton" if why is None else f"torch's operations, which take longer: {why}"
        found = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
        return [(True, "GPU", found), (True, "views and patches", kernels)]
    bf16 = (
        torch.cpu._is_avx512_bf16_supported()
        if hasattr(torch.cpu, "_is_avx512_bf16_supported")
        else False
    )
    speed = (
        "bf16 in hardware" if bf16 else "float32 only: pretraining takes about 2.5 times as long"
    )
    return [(True, "GPU", "none: the CPU is used"), (True, "CPU training", speed)]


def _torchvision() -> tuple[bool, str, str]:
    absent = util.find_spec("torchvision") is None
    return (
        absent,
        "no torchvision",
        "absent" if absent else "present: it breaks the CPU build of torch",
    )
