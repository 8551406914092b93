"""What the free text of a header says about a scan, in the languages of hospitals."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from headct.dicom.header import Header

WITHOUT_CONTRAST = (
    r"\b(W ?/ ?O|WO|WITHOUT|NO|NON|NONE|NOT|NIL|OHNE|SANS|SIN|SENZA|SEM|ZONDER|UDEN|UTAN|UTEN|BEZ"
    r")\b[ /-]*(IV|I V|INTRAVENOUS|PRODUIT DE|MEZZO DI|MEDIO DE|MEIO DE|ANY)?[ /-]*"
    r"(CONTRAST\w*|CONTR|CON|KM|IV|INJ\w*|INJECTION|IODE|MDC|CTE|C|CE|K|KONTRAST\w*|AGENT)\b",
    r"\bNON ?-?(CON|CE|ENHANCED|CONTRAST\w*)\b|\bNCCT\b|\bNECT\b|\bUNENHANCED\b|\bPLAIN\b",
    r"\bNATIV\w*\b",
    r"\bSANS (INJ\w*|PRODUIT)( DE)?( PRODUIT)?( DE)?( CONTRASTE)?\b|\bS/C\b",
    r"\bC ?-(?!\w)|\bPRE ?-?(CONTRAST\w*|KM)\b|\bSC\b|\bNO\b|\bNONE\b|单纯平扫|平扫|単純|비조영",
)
"""Said of a scan without contrast; taken out before WITH_CONTRAST is asked."""
WITH_CONTRAST = (
    r"\bCONTRAST\w*\b|\bKONTRAST\w*\b|\bCONTR\b|\bKM\b|\bINJECT\w*\b|\bIODE?\b|\bMDC\b",
    r"\bC ?\+|\+ ?C\b|\bC ?/ ?C\b|\bCECT\b|\bENHANCED\b(?! CONV| MULTI)",
    r"\bPOST ?-?(IV|GAD|INJ|CON|C)\b|\bGADO\w*\b",
    r"\bW(/|ITH)? ?IV\b|\bAVEC INJ\w*\b|\bAPRES INJ\w*\b|造影|增强|조영",
    r"\bCTA\b|\bCTV\b|\bANGIO\w*\b|\bVENO\w*\b|\bARTERIAL\b|\bPORTAL\b|\bPERFUSION\w*\b|\bCTP\b",
    r"\bIOHEXOL\b|\bIOPAMIDOL\b|\bIOMERON\b|\bOMNIPAQUE\b|\bULTRAVIST\b|\bISOVUE\b|\bVISIPAQUE\b",
)
POST_MORTEM = (
    r"\bPOST ?-?MORTEM\b|\bPM ?-?CT\b|\bPMCT\b|\bVIRTOPS\w*\b|\bVIRTUAL AUTOPS\w*\b|\bCADAV\w*\b",
    r"\bFORENSIC\b|\bAUTOPS\w*\b|\bLEICHE\b|\bDECEASED\b|\bPMI\b",
)
CONE_BEAM = (
    r"\bCBCT\b|\bCONE ?-?BEAM\b|\bDVT\b|\bDYNA ?CT\b|\bXPER ?CT\b|\bINNOVA ?CT\b|\bFLAT ?-?PANEL\b",
    r"\bO-?ARM\b|\bNEWTOM\b|\bI-?CAT\b|\bMINICAT\b|\bPLANMECA\b|\bPROMAX\b|\bXORAN\b|\bKAVO\b",
)
BONE = (
    r"\bBONE\w*\b|\bKNOCHEN\w*\b|\bOSSEU\w*\b|\bOSSEO\w*\b|\bOSSO\b|\bHUESO\b|\bOS\b|\bBOT\b|\bOSEO\b",
    r"骨",
)
HEADS = (
    r"HEAD|BRAIN|SKULL|CRANI|CRANE|CEREB|CEPHAL|NEURO|STROKE|KOPF|SCHAE?DEL|HIRN|TETE|ENCEPH|ENCEF",
    r"CABEZA|CABECA|TESTA|CAPO|HOOFD|HERSEN|HJERN|HOVED|HUVUD|SKALLE|HLAVA|GLOWA|MOZG|ORBIT|SINUS",
    r"PNS|FACE|FACIAL|GESICHT|TBONE|TEMPORAL|PETROUS|\bIAC|PITUIT|SELLA|MAXILLO|PLASTIC|头|颅|脑|頭|머리",
)
OTHERS = (
    r"CHEST|THORA|LUNG|ABD|PELV|SPINE|HEART|CARDIAC|CORON|AORT|LIVER|KIDNEY|COLON|BREAST|NECK|HALS",
    r"ARM|LEG|KNEE|HIP|FOOT|HAND|WRIST|ELBOW|SHOULDER|ANKLE|FEMUR|TIBIA|HUMER|EXTREM|WHOLE ?BODY",
    r"BECKEN|BAUCH|WIRBEL|HWS|LWS|BWS|KNIE|RACHIS|POUMON|GENOU|COLUMNA|TORACE|TORAX|RODILLA|ADDOME",
    r"LUMB|SACR|CERVICAL|TAP\b|CAP\b|胸|腹|腰|脊|가슴|복부",
)


def plain(text: str) -> str:
    """Capitals without accents; umlauts lose their dots, underscores and carets divide words."""
    parts = unicodedata.normalize("NFKD", text.upper())
    bare = "".join(c for c in parts if not unicodedata.combining(c))
    return unicodedata.normalize("NFKC", re.sub(r"[_^\s]+", " ", bare)).strip()


def says(texts: Iterable[str], patterns: Iterable[str], *, but: Iterable[str] = ()) -> bool:
    """Whether one of the patterns is in one of the texts, after what `but` finds is taken out."""
    for text in map(plain, texts):
        for pattern in but:
            text = re.sub(pattern, " ", text)
        if any(re.search(pattern, text) for pattern in patterns):
            return True
    return False


def texts_of(header: Header) -> Iterator[str]:
    """Description of the series, its protocol and that of the study."""
    yield from (header.series_description, header.protocol, header.study_description)


def speaks_of_contrast(header: Header, with_: Iterable[str], without: Iterable[str]) -> bool:
    """Whether contrast was given: by its own elements, else by the nearest text that tells.

    The description of the series goes before that of the study, since a study "without and with"
    has both kinds of series.
    """
    if header.contrast:
        return bool(says([header.contrast], [r"\w"], but=[*without, r"^0*\.?0*$"]))
    for text in (header.series_description, header.protocol):
        if says([text], without):
            return says([text], with_, but=without)
        if says([text], with_):
            return True
    return says([header.study_description], with_, but=without)
