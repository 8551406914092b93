"""Every error that headct raises on purpose.

    HeadctError                 code, message, remedy; exit code 1
    ├── UsageError              the command or the recipe is wrong; exit code 2
    ├── Refusal                 one series or file is not taken, with a reason code
    ├── GeometryError           a volume's geometry is impossible or not supported
    ├── StoreError              a store is missing, damaged, locked or of another version
    ├── MismatchError           preprocessing, architecture or recipe differ from what was saved
    ├── LabelError              a label table cannot be used as it is
    ├── CheckpointError         a checkpoint or bundle is missing, damaged or of another model
    └── TrainingError           training cannot go on (non-finite loss, too many unreadable scans)

Messages never quote a patient-identifying value: they name pseudonymous ids, columns and tags.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PACKAGE = Path(__file__).parent


class HeadctError(Exception):
    """An error with a code for machines and a remedy for people.

    Args:
        message: what is wrong, in one sentence, without identifiers.
        remedy: what the user can do about it.
        code: short stable name, kebab-case; defaults to the class's own.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if code is not None:
            self.code = code


class UsageError(HeadctError):
    """The command line or a recipe is wrong; nothing was started."""

    code = "usage"
    exit_code = 2


class Refusal(HeadctError):  # noqa: N818
    """One series or file is not taken; `code` is the reason code that goes into items.jsonl."""

    code = "refused"


class GeometryError(HeadctError):
    """A volume's geometry is impossible, or not supported by the operation."""

    code = "geometry"


class StoreError(HeadctError):
    """A store is missing, damaged, locked by another writer, or of another format version."""

    code = "store"


class MismatchError(HeadctError):
    """Preprocessing, architecture or recipe differ from those of the data or weights."""

    code = "mismatch"


class LabelError(HeadctError):
    """A label table cannot be used as it is."""

    code = "labels"


class CheckpointError(HeadctError):
    """A checkpoint or bundle is missing, damaged, or belongs to another model."""

    code = "checkpoint"


class TrainingError(HeadctError):
    """Training cannot go on."""

    code = "training"


def place_of(error: Exception) -> str:
    """Kind and place of an error that nobody expected, without its text, which can quote a file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(PACKAGE)] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
