"""Other kinds of images, other bodies, other moments: what the criteria decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import (
    Slices,
    hu_of,
    odd,
    setting,
    slices,
    store_as,
    variants,
)

OTHER = "MR, PET, conflict of Modality and SOP class, other body part (by tag and by content)"
RULES = (
    "contrast, bone kernel, thick reformats, cropped or partial head, infant, metal, post-mortem"
)
BESIDE = "notes, PDF, DICOMDIR, thumbnails, SR / PR / KO / RT objects, localizers"

CT = "1.2.840.10008.5.1.4.1.1."


def written_lower_case(image: Any, _: int) -> None:
    image.add(DataElement("BodyPartExamined", "CS", "head", validation_mode=0))


def with_agent_sequence(image: Any, _: int) -> None:
    """As enhanced and newer plain images name the agent."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "7140000", "SCT", "Iohexol"
    image.ContrastBolusAgentSequence = Sequence([code])


variants(
    OTHER,
    "refused:not-ct",
    mr=setting(Modality="MR", SOPClassUID=CT + "4"),
    pet=setting(Modality="PT", SOPClassUID=CT + "128"),
    spect=setting(Modality="NM", SOPClassUID=CT + "20"),
    ultrasound=setting(Modality="US", SOPClassUID=CT + "6.1"),
    angiography=setting(Modality="XA", SOPClassUID=CT + "12.1"),
    radiograph=setting(Modality="CR", SOPClassUID=CT + "1"),
)
variants(
    OTHER,
    "refused:modality-conflict",
    ct_class_named_mr=setting(Modality="MR"),
    mr_class_named_ct=setting(SOPClassUID=CT + "4"),
    ct_class_named_pt=setting(Modality="PT"),
)
variants(
    OTHER,
    "accepted",
    body_part_missing=setting(BodyPartExamined=None),
    body_part_lower_case=written_lower_case,
    body_part_brain=setting(BodyPartExamined="BRAIN"),
    body_part_with_spaces=setting(BodyPartExamined="HEAD  AND NECK"),
    body_part_kopf=setting(BodyPartExamined="KOPF", StudyDescription="CT Schädel nativ"),
    body_part_cabeza=setting(BodyPartExamined="CABEZA"),
    body_part_tete=setting(BodyPartExamined="TETE"),
    body_part_head_ct=setting(BodyPartExamined="HEAD_CT"),
    body_part_nonsense=setting(BodyPartExamined="UNKNOWN"),
)
variants(
    OTHER,
    "refused:other-body-part",
    head_tagged_as_chest=setting(BodyPartExamined="CHEST"),
    head_tagged_as_abdomen=setting(BodyPartExamined="ABDOMEN"),
    head_tagged_as_spine=setting(BodyPartExamined="CSPINE"),
    head_tagged_as_extremity=setting(BodyPartExamined="EXTREMITY"),
)
variants(
    RULES,
    "flagged:contrast",
    agent=setting(ContrastBolusAgent="IOPAMIDOL 300"),
    agent_yes=setting(ContrastBolusAgent="YES"),
    route_only=setting(ContrastBolusRoute="IV"),
    volume_only=setting(ContrastBolusVolume="80"),
    agent_sequence=with_agent_sequence,
    text_post_contrast=setting(SeriesDescription="Axial post contrast"),
    text_with_contrast=setting(StudyDescription="CT HEAD W CONTRAST"),
    text_cta=setting(SeriesDescription="CTA COW 0.6"),
    text_angio=setting(StudyDescription="CT ANGIO HEAD AND NECK"),
    text_german=setting(SeriesDescription="Schaedel mit KM 5.0"),
    text_french=setting(SeriesDescription="CRANE AVEC INJECTION"),
    text_spanish=setting(StudyDescription="TC CRANEO CON CONTRASTE"),
    text_dutch=setting(SeriesDescription="Hersenen met contrast"),
    text_italian=setting(SeriesDescription="encefalo con mdc"),
    text_c_plus=setting(SeriesDescription="Head C+ 5mm"),
    text_venogram=setting(SeriesDescription="CT VENOGRAM"),
    text_delayed=setting(ProtocolName="Head post iodine", SeriesDescription="POST IV"),
)
variants(
    RULES,
    "accepted",
    agent_none=setting(ContrastBolusAgent="NONE"),
    agent_no=setting(ContrastBolusAgent="NO CONTRAST"),
    text_without=setting(StudyDescription="CT HEAD WITHOUT CONTRAST"),
    text_wo=setting(StudyDescription="CT BRAIN W/O CONTRAST"),
    text_non_contrast=setting(SeriesDescription="NON-CONTRAST HEAD"),
    text_noncon=setting(SeriesDescription="NONCON 5MM"),
    text_nativ=setting(SeriesDescription="Schaedel nativ ohne KM"),
    text_sans=setting(SeriesDescription="CRANE SANS INJECTION"),
    text_sin=setting(StudyDescription="TC CRANEO SIN CONTRASTE"),
    agent_sequence_empty=setting(ContrastBolusAgentSequence=Sequence([])),
    text_enhanced_conversion=setting(SeriesDescription="Axial (enhanced conversion)"),
    text_c_minus=setting(SeriesDescription="Head C- 5mm"),
)
variants(
    RULES,
    "flagged:bone-kernel",
    siemens_h60=setting(ConvolutionKernel="H60s"),
    siemens_hr68=setting(ConvolutionKernel=["Hr68h", "3"]),
    siemens_j70=setting(ConvolutionKernel="J70h"),
    ge_bone=setting(ConvolutionKernel="BONEPLUS"),
    ge_edge=setting(ConvolutionKernel="EDGE"),
    toshiba_fc30=setting(ConvolutionKernel="FC30"),
    toshiba_fc81=setting(ConvolutionKernel="FC81"),
    philips_yc=setting(ConvolutionKernel="YC"),
    bone_by_text=setting(ConvolutionKernel=None, SeriesDescription="Bone 1.0"),
    bone_by_german_text=setting(ConvolutionKernel=None, SeriesDescription="Knochen 1.0"),
)
variants(
    RULES,
    "accepted",
    siemens_h31=setting(ConvolutionKernel="H31s"),
    siemens_hr40=setting(ConvolutionKernel=["Hr40f", "2"]),
    toshiba_fc26=setting(ConvolutionKernel="FC26"),
    toshiba_fc64=setting(ConvolutionKernel="FC64"),
    philips_ub=setting(ConvolutionKernel="UB"),
    ge_stnd=setting(ConvolutionKernel="STANDARD"),
    no_kernel=setting(ConvolutionKernel=None),
)
variants(
    RULES,
    "flagged:child",
    six_weeks=setting(PatientAge="006W"),
    ten_days=setting(PatientAge="010D"),
    seven_months=setting(PatientAge="007M"),
    seventeen=setting(PatientAge="017Y"),
    newborn_by_dates=setting(PatientAge=None, PatientBirthDate="20180501", StudyDate="20180524"),
)
variants(
    RULES,
    "accepted",
    eighteen=setting(PatientAge="018Y"),
    very_old=setting(PatientAge="104Y"),
    no_age=setting(PatientAge=None, PatientBirthDate=None),
    adult_in_months=setting(PatientAge="240M"),
)
variants(
    RULES,
    "refused:derived-image",
    mip=setting(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]),
    perfusion_map=setting(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CBF"]),
    siemens_perfusion=setting(ImageType=["DERIVED", "SECONDARY", "OTHER", "CT_PERFUSION", "TTP"]),
    subtraction=setting(ImageType=["DERIVED", "PRIMARY", "AXIAL", "SUBTRACTION"]),
    virtual_non_contrast=setting(
        ImageType=["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 SPI", "DET_VNC"]
    ),
    iodine_map=setting(ImageType=["DERIVED", "PRIMARY", "IODINE_MAP"]),
    effective_z=setting(ImageType=["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"]),
    rendered=setting(ImageType=["DERIVED", "SECONDARY", "3D_RENDERING"]),
    mip_by_text=setting(
        ImageType=["DERIVED", "SECONDARY", "REFORMATTED"], SeriesDescription="MIP AX 20"
    ),
    perfusion_by_text=setting(
        ImageType=["DERIVED", "SECONDARY"], SeriesDescription="Perfusion Tmax"
    ),
)
variants(
    RULES,
    "flagged:reformatted,spectral",
    monoenergetic=setting(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MONOENERGETIC"]),
    mono_by_text=setting(ImageType=["DERIVED", "PRIMARY"], SeriesDescription="Mono 70 keV"),
)
variants(
    RULES,
    "flagged:reformatted",
    mpr=setting(ImageType=["DERIVED", "SECONDARY", "MPR"]),
    derived_axial=setting(ImageType=["DERIVED", "SECONDARY", "AXIAL"]),
    philips_reformat=setting(ImageType=["DERIVED", "PRIMARY", "REFORMATTED", "AVERAGE"]),
    siemens_csa_mpr=setting(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR"]),
)
variants(
    RULES,
    "accepted",
    image_type_missing=setting(ImageType=None),
    siemens_helical=setting(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]),
    toshiba_volume=setting(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "HELICAL"]),
)
variants(
    RULES,
    "refused:localizer",
    localizer=setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    topogram=setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]),
)
variants(
    RULES,
    "flagged:post-mortem",
    post_mortem_text=setting(StudyDescription="PMCT whole body"),
    post_mortem_words=setting(StudyDescription="Post mortem CT head"),
    virtopsy=setting(SeriesDescription="Virtopsy Kopf"),
)
variants(
    RULES,
    "flagged:cone-beam",
    cone_beam_text=setting(SeriesDescription="CBCT head"),
    cone_beam_device=setting(ManufacturerModelName="NewTom VGi", SeriesDescription="DVT"),
)


@odd(RULES, "flagged:suspect-contrast")
def contrast_by_content(series: HeadSeries, _: Path) -> Slices:
    """Sinus and circle of Willis at 300 HU, and not a word in the header."""

    def enhance(image: Any, z: int) -> None:
        hu = hu_of(image)
        y, x = np.mgrid[: hu.shape[0], : hu.shape[1]]
        for cy, cx in ((44, 32), (30, 27), (30, 37), (26, 32)):
            inside = ((y - cy) ** 2 + (x - cx) ** 2 < 4) & (hu > 0) & (hu < 90)
            hu[inside] = 330
        store_as(image, hu)

    return slices(series, enhance)


@odd(RULES, "flagged:metal")
def big_clip(series: HeadSeries, _: Path) -> Slices:
    def clip(image: Any, z: int) -> None:
        hu = hu_of(image)
        if 12 < z < 18:
            hu[30:36, 30:36] = 3071
        store_as(image, hu)

    return slices(series, clip)


@odd(RULES, "flagged:thick-slices")
def ten_millimetres(series: HeadSeries, _: Path) -> Slices:
    return slices(series)[::2]


@odd(RULES, "flagged:vertex-cut")
def no_vertex(series: HeadSeries, _: Path) -> Slices:
    return slices(series)[:20]


@odd(RULES, "flagged:partial-head")
def only_the_top(series: HeadSeries, _: Path) -> Slices:
    return slices(series)[-14:]


@odd(RULES, "flagged:partial-head")
def field_of_view_too_small(series: HeadSeries, _: Path) -> Slices:
    def crop(image: Any, z: int) -> None:
        store_as(image, hu_of(image)[:, 20:])

    return slices(series, crop)


@odd(RULES, "flagged:no-brain")
def empty_skull(series: HeadSeries, _: Path) -> Slices:
    def emptied(image: Any, z: int) -> None:
        hu = hu_of(image)
        hu[(hu > -200) & (hu < 100)] = -1000
        store_as(image, hu)

    return slices(series, emptied)
