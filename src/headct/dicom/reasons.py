"""Why an input was not taken, or was taken with a warning: one enum, one line of meaning each."""

from __future__ import annotations

from enum import StrEnum

from headct.errors import Refusal


class Status(StrEnum):
    """The four states that an input can end in; seen = the sum of all four, always."""

    ACCEPTED = "accepted"
    FLAGGED = "flagged"
    REFUSED = "refused"
    SKIPPED = "skipped"


class Reason(StrEnum):
    """A kebab-case reason code, the status that it leads to, and its meaning in one line.

    Attributes:
        status: `refused` and `skipped` end an input; `flagged` is kept beside an accepted scan.
        meaning: one line for people.
    """

    status: Status
    meaning: str

    def __new__(cls, code: str, status: Status, meaning: str) -> Reason:
        """An enum member that is its own code as text."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.status = status
        member.meaning = meaning
        return member

    # The file itself
    NOT_DICOM = "not-dicom", Status.SKIPPED, "Neither DICOM nor NIfTI (a note, a picture, a table)."
    DIRECTORY_FILE = "directory-file", Status.SKIPPED, "A DICOMDIR or its helper; holds no image."
    NOT_IMAGE = "not-image", Status.SKIPPED, "A DICOM object without an image: SR, PR, KO, RT, PDF."
    SPECIAL_FILE = "special-file", Status.SKIPPED, "A pipe, socket, device or dangling link."
    NO_PERMISSION = "no-permission", Status.REFUSED, "The file or folder may not be read."
    EMPTY_FILE = "empty-file", Status.REFUSED, "The file has no bytes."
    UNREADABLE = "unreadable", Status.REFUSED, "The file is damaged, or its pixels do not decode."
    TRUNCATED = "truncated", Status.REFUSED, "The file ends before its header or pixels do."
    TOO_LARGE = "too-large", Status.REFUSED, "The header claims more voxels than a scan can have."
    NO_TRANSFER_SYNTAX = "no-transfer-syntax", Status.REFUSED, "The transfer syntax is not named."
    UNSUPPORTED_TRANSFER_SYNTAX = (
        "unsupported-transfer-syntax",
        Status.REFUSED,
        "The transfer syntax is unknown, or no decoder for it is here.",
    )
    NO_PIXEL_DATA = "no-pixel-data", Status.REFUSED, "An image object without pixels."
    BAD_PIXEL_FORMAT = "bad-pixel-format", Status.REFUSED, "Bits, sign or size of pixels disagree."

    # Archives, and what a PACS sends
    ENCRYPTED = "encrypted", Status.REFUSED, "A member of a zip file that needs a password."
    ARCHIVE_BOMB = "archive-bomb", Status.REFUSED, "The archive unpacks to absurdly many bytes."
    UNSAFE_NAME = "unsafe-name", Status.REFUSED, "A member whose name leads out of its archive."
    UNSUPPORTED_ARCHIVE = (
        "unsupported-archive",
        Status.REFUSED,
        "An archive that is not opened: 7z, rar, or nested too deep.",
    )
    NOT_ON_PACS = "not-on-pacs", Status.REFUSED, "The PACS has no such study, or no series in it."
    TRANSFER_FAILED = "transfer-failed", Status.REFUSED, "The PACS did not send all of it."

    # What kind of image it is
    NOT_CT = "not-ct", Status.REFUSED, "Another modality (MR, PET, segmentation, ...)."
    MODALITY_CONFLICT = "modality-conflict", Status.REFUSED, "Modality and SOP class disagree."
    LOCALIZER = "localizer", Status.REFUSED, "A scout or localizer."
    SECONDARY_CAPTURE = "secondary-capture", Status.REFUSED, "A screen copy, dose page or summary."
    BURNED_IN_TEXT = "burned-in-text", Status.REFUSED, "The header says that text is in the pixels."
    COLOUR = "colour", Status.REFUSED, "Colour pixels (RGB, palette); CT numbers are lost."
    EIGHT_BIT = "eight-bit", Status.REFUSED, "Eight-bit pixels; CT numbers are lost."
    DERIVED_IMAGE = (
        "derived-image",
        Status.REFUSED,
        "Computed from images: a map, projection or 3D.",
    )

    # Which files make one volume
    MIXED_PATIENTS = "mixed-patients", Status.REFUSED, "One series UID with several patients."
    DAMAGED_MEMBER = "damaged-member", Status.REFUSED, "A file of the series is unreadable."
    CONFLICT = "conflict", Status.REFUSED, "One image UID with different contents."
    DUPLICATE_CONFLICT = "duplicate-conflict", Status.REFUSED, "One position, different pixels."
    SEVERAL_SERIES = "several-series", Status.REFUSED, "The path holds several series; choose one."
    NO_SERIES = "no-series", Status.REFUSED, "The path holds no readable series."
    SINGLE_SLICE = "single-slice", Status.REFUSED, "One slice is no volume."
    TOO_FEW_SLICES = "too-few-slices", Status.REFUSED, "Too few slices for a volume."
    DUPLICATES_DROPPED = "duplicates-dropped", Status.FLAGGED, "Exact duplicates were read once."
    SPLIT_SERIES = "split-series", Status.FLAGGED, "One of several volumes under one series UID."
    NO_PATIENT_ID = "no-patient-id", Status.FLAGGED, "PatientID is empty; the study stands for it."

    POSSIBLE_LOSS = (
        "possible-loss",
        Status.FLAGGED,
        "An unreadable file beside the series may be its first or last slice.",
    )
    SUSPECT_SLICE = (
        "suspect-slice",
        Status.FLAGGED,
        "A slice does not fit its neighbours: out of order, or of another patient.",
    )

    # Geometry
    NO_GEOMETRY = (
        "no-geometry",
        Status.REFUSED,
        "Position, orientation or pixel spacing is missing.",
    )
    BAD_GEOMETRY = (
        "bad-geometry",
        Status.REFUSED,
        "Geometry is not finite, orthogonal or plausible.",
    )
    MISSING_SLICES = "missing-slices", Status.REFUSED, "The steps between slices show gaps."
    NON_UNIFORM_SPACING = "non-uniform-spacing", Status.REFUSED, "Steps between slices vary."
    GANTRY_TILT = "gantry-tilt", Status.FLAGGED, "A sheared stack; kept with its true affine."
    NOT_AXIAL = "not-axial", Status.REFUSED, "Coronal, sagittal or steep oblique slices."
    REFORMATTED = (
        "reformatted",
        Status.FLAGGED,
        "A reformat (MPR) or derived image, not an original reconstruction.",
    )
    THICK_SLICES = "thick-slices", Status.FLAGGED, "Slices are thicker than the criteria like."
    FRAME_CONFLICT = "frame-conflict", Status.FLAGGED, "sform and qform of a NIfTI file disagree."
    NO_FRAME = "no-frame", Status.FLAGGED, "NIfTI without sform and qform; left and right assumed."
    SINGULAR_AFFINE = "singular-affine", Status.REFUSED, "The affine cannot be inverted."
    NOT_3D = "not-3d", Status.REFUSED, "The NIfTI image is not one 3D volume."

    # Values
    NO_RESCALE = "no-rescale", Status.REFUSED, "RescaleSlope or RescaleIntercept is missing."
    BAD_RESCALE = (
        "bad-rescale",
        Status.REFUSED,
        "Rescale is zero, negative, not a number or absurd.",
    )
    NOT_HU = "not-hu", Status.REFUSED, "The values are not Hounsfield units."
    NOT_FINITE = "not-finite", Status.REFUSED, "The values hold NaN or infinity."
    LOSSY = "lossy", Status.FLAGGED, "The pixels were compressed with loss."
    MONOCHROME1 = "monochrome1", Status.REFUSED, "Inverted grey scale; the values may be inverted."
    UNUSED_BITS = "unused-bits", Status.FLAGGED, "Junk in unused bits of the pixels was masked out."
    IMPLAUSIBLE_HU = "implausible-hu", Status.REFUSED, "Air or brain is not at its CT number."
    SUSPECT_HU = "suspect-hu", Status.FLAGGED, "Air or brain is a little off its CT number."
    CONSTANT_IMAGE = "constant-image", Status.REFUSED, "All values are the same, or nearly so."

    # Is it the head CT that we want
    NOT_HEAD = "not-head", Status.REFUSED, "No head in the image."
    OTHER_BODY_PART = "other-body-part", Status.REFUSED, "The header names another body part."
    NO_BRAIN = "no-brain", Status.REFUSED, "A skull without a brain in it, or a phantom."
    PARTIAL_HEAD = "partial-head", Status.FLAGGED, "Part of the head is outside the scan."
    VERTEX_CUT = "vertex-cut", Status.FLAGGED, "The scan ends below the vertex."
    POSE_UNSURE = "pose-unsure", Status.FLAGGED, "Head pose not found; the scanner's axes are kept."
    CONTRAST = "contrast", Status.FLAGGED, "Contrast agent was given."
    SUSPECT_CONTRAST = (
        "suspect-contrast",
        Status.FLAGGED,
        "Vessels are as bright as with contrast agent, and the header names none.",
    )
    BONE_KERNEL = "bone-kernel", Status.FLAGGED, "Reconstructed with a bone kernel."
    CHILD = "child", Status.FLAGGED, "Younger than the criteria say."
    METAL = "metal", Status.FLAGGED, "Much metal in the image."
    SPECTRAL = "spectral", Status.FLAGGED, "A virtual image of one energy from a dual-energy scan."
    POST_MORTEM = "post-mortem", Status.FLAGGED, "The header says that the scan is post mortem."
    CONE_BEAM = "cone-beam", Status.FLAGGED, "A cone-beam scan; its CT numbers are not calibrated."
    NOT_IN_TABLE = "not-in-table", Status.REFUSED, "No row of the criteria table fits the series."
    NOT_CHOSEN = "not-chosen", Status.SKIPPED, "A twin of the same acquisition was chosen."
    TWIN = "twin", Status.SKIPPED, "The same image came in under another name."


def reason_of(refusal: Refusal) -> Reason:
    """The reason behind a Refusal that this package or `volume` raised."""
    return Reason.__members__[refusal.code.upper().replace("-", "_")]
