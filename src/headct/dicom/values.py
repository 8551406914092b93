"""Raw bytes of an element -> text, numbers, ages; what cannot be read is NaN, None or empty."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Literal

Order = Literal["little", "big"]
CODECS = {
    "ISO_IR 192": "utf-8",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 127": "iso8859_6",
    "ISO_IR 126": "iso8859_7",
    "ISO_IR 138": "iso8859_8",
    "ISO_IR 148": "iso8859_9",
    "ISO_IR 203": "iso8859_15",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 166": "tis_620",
    "ISO 2022 IR 58": "gb2312",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
"""Python's name of a defined character set; all others are read as UTF-8 or Latin-1."""


def plain_text(raw: bytes | None) -> str:
    """ASCII or Latin-1 text without padding."""
    return raw.decode("latin-1").strip(" \0") if raw else ""


def code(raw: bytes | None) -> str:
    """Text in capitals."""
    return plain_text(raw).upper()


def codes(raw: bytes | None) -> tuple[str, ...]:
    """Several values in capitals."""
    return tuple(part.strip() for part in code(raw).split("\\")) if raw else ()


def person_name(raw: bytes | None) -> str:
    """A name or number of a person in one spelling, for comparisons only."""
    return tidy(plain_text(raw))


def tidy(text: str) -> str:
    """Capitals, single spaces, no carets."""
    return " ".join(text.upper().replace("^", " ").split())


def number(raw: bytes | None) -> float | None:
    """The first of the numbers."""
    found = numbers(raw)
    return found[0] if found else None


def numbers(raw: bytes | None) -> tuple[float, ...] | None:
    """All numbers; None where the element is empty."""
    text = plain_text(raw)
    if not text:
        return None
    return tuple(_float(part) for part in text.split("\\"))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def count(raw: bytes | None, order: Order) -> int | None:
    """An unsigned short; None where it is missing or not two bytes."""
    return int.from_bytes(raw, order) if raw and len(raw) == 2 else None


def frame_count(raw: bytes | None) -> float:
    """NumberOfFrames; one where it is missing."""
    found = number(raw)
    return 1.0 if found is None else found


def was_lossy(raw: bytes | None) -> bool:
    """LossyImageCompression."""
    return plain_text(raw) == "01"


def free_text(raw: bytes | None, charset: tuple[str, ...] = ()) -> str:
    """Text for people, in the character set that the file names; what does not decode is lost.

    Source:
        DICOM PS3.3 C.12.1.1.2; escape sequences as in PS3.5 6.1.2.5.
    """
    if not raw:
        return ""
    if b"\x1b" in raw:
        codec = "iso2022_jp_2" if b"\x1b$)" not in raw else "iso2022_kr"
    else:
        codec = next((CODECS[name] for name in charset if name in CODECS), "latin-1")
        if codec == "latin-1":
            codec = "latin-1" if _is_not_utf8(raw) else "utf-8"
    return raw.decode(codec, "ignore").strip(" \0")


def _is_not_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def age_between(birth: str, day: str) -> float | None:
    """Whole years between two DA values; None where one is missing or no date."""
    try:
        born, seen = (datetime.strptime(text[:8], "%Y%m%d") for text in (birth, day))
    except ValueError:
        return None
    years = (seen - born).days / 365.25
    return min(float(int(years)) if years >= 1 else years, 90.0) if years >= 0 else None


def is_there(raw: bytes | None) -> bool:
    """Whether the file has the element at all."""
    return raw is not None


def maker(raw: bytes | None) -> str:
    """Manufacturer in its own spelling where it is a known one; `other` for any other text.

    Text that somebody typed could name a person: only known words go on to the manifest.
    """
    return _known(plain_text(raw), MAKERS)


def device(raw: bytes | None) -> str:
    """Model of a known family of scanners; `other` for any other text."""
    return _known(plain_text(raw), FAMILIES)


def _known(text: str, pattern: re.Pattern[str]) -> str:
    if not text:
        return ""
    plain = re.fullmatch(r"[A-Za-z0-9 .,/+()&_-]{1,48}", text) and pattern.search(text)
    short = all(len(word) <= 12 for word in pattern.sub(" ", text).split())
    return text if plain and short else "other"


def kernel_name(text: str) -> str:
    """Convolution kernel: a short code such as `H31s` or `FC26`, or a known word; else `other`."""
    first = text.split("\\")[0].strip()
    known = KERNEL_CODE.fullmatch(first) or KERNEL_WORD.fullmatch(first)
    tail = re.fullmatch(r"[A-Za-z0-9 \\.+-]{0,12}", text[len(first) :])
    return text if not text or (known and tail) else "other"


def sex(raw: bytes | None) -> str:
    """M, F or O."""
    text = code(raw)
    return text if text in ("M", "F", "O") else ""


def age(raw: bytes | None) -> float | None:
    """AS (`034Y`, `006M`) in years; over 89 becomes 90, as HIPAA's safe harbour asks."""
    found = re.fullmatch(r"(\d{1,4})([YMWD])", code(raw), re.ASCII)
    if found is None:
        return None
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}[found[2]]
    return min(int(found[1]) / per_year, 90.0)


MAKERS = re.compile(
    r"SIEMENS|GE MEDICAL|GENERAL ELECTRIC|^GE\b|GE HEALTHCARE|PHILIPS|TOSHIBA|CANON|HITACHI|NEUSOFT"
    r"|SHIMADZU|PICKER|ELSCINT|MARCONI|UIH|UNITED IMAGING|NEUROLOGICA|SAMSUNG|MINFOUND|ANKE|MOBIUS"
    r"|FUJIFILM|BRAINLAB|MEDTRONIC|XORAN|PLANMECA|NEWTOM|QR S|IMAGING SCIENCES|CARESTREAM|VATECH"
    r"|MORITA|KAVO|SIRONA|ACUITAS|ARINETA|XINGAO|HEADCT",
    re.IGNORECASE,
)
FAMILIES = re.compile(
    r"SOMATOM|SENSATION|EMOTION|DEFINITION|PERSPECTIVE|SPIRIT|NAEOTOM|BIOGRAPH|SYMBIA|VOLUME ZOOM"
    r"|LIGHTSPEED|BRIGHTSPEED|HISPEED|OPTIMA|DISCOVERY|REVOLUTION|GENESIS|CT9|CT8|PROSPEED|SYTEC"
    r"|BRILLIANCE|INGENUITY|ICT\b|IQON|INCISIVE|MX ?8000|GEMINI|TOMOSCAN|SPECTRAL CT|ACCESS CT"
    r"|AQUILION|ASTEION|ACTIVION|ALEXION|XPRESS|XVISION|AUKLET|SUPRIA|SCENARIA|ECLOS|ROBUSTO|PRATICO"
    r"|NEUVIZ|UCT|ANATOM|SCINTCARE|AIRO|CERETOM|BODYTOM|OMNITOM|NEWTOM|I-CAT|MINICAT|PROMAX|SKYVIEW"
    r"|O-ARM|ARTIS|XPER|ALLURA|SIMULATOR|PHANTOM|CT SCANNER",
    re.IGNORECASE,
)
KERNEL_CODE = re.compile(
    r"[A-Za-z]{0,3}\d{1,3}[A-Za-z]{0,2}[+-]?|[A-Za-z]{1,2}[+-]?|FC\d\d-?[A-Z]?"
)
KERNEL_WORD = re.compile(
    r"(SOFT|STND|STANDARD|STD|DETAIL|BONE ?PLUS|BONE ?\+?|EDGE|ULTRA|LUNG|CHST|SHARP|SMOOTH|BRAIN"
    r"|HEAD|NORMAL|MEDIUM|HIGH|LOW|ORBIT|SINUS|EAR|INNER EAR|ACOUSTIC|FILTER|HARD|FINE|SPINE|BODY)"
    r"([ _-]?(\d{1,3}|HR|PLUS|XT|[A-Z]))?[+-]?",
    re.IGNORECASE,
)
