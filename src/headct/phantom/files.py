"""The bytes of DICOM files: encoding a series quickly, changing and recompressing single files.

The header is encoded once per series; per slice only five elements and the pixels are put between
its pieces (0.2 ms a slice, against 1.7 ms for a whole write by pydicom).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import pairwise

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

UID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "headct/phantom")


def phantom_uid(*names: object) -> str:
    """A 2.25 UID that is a pure function of its names.

    Source:
        DICOM PS3.5 B.2 (UUID-derived UIDs), RFC 4122 version 5.
    """
    return f"2.25.{uuid.uuid5(UID_NAMESPACE, '/'.join(map(str, names))).int}"


class SeriesEncoder:
    """The encoded header of a series, cut where an element differs from slice to slice."""

    def __init__(self, ds: Dataset, transfer_syntax: str) -> None:
        self._deflated = transfer_syntax == DeflatedExplicitVRLittleEndian
        meta = meta_header(ds.SOPClassUID, "", transfer_syntax)
        del meta.MediaStorageSOPInstanceUID
        self._meta = [_encoded(meta[:0x00020003]), _encoded(meta[0x00020004:])]
        cuts = [0, 0x00080018, 0x00200013, 0x00200032, 0x00201041, 0x7FE00010]
        self._pieces = [_encoded(ds[start:stop]) for start, stop in pairwise(cuts)]

    def file(self, uid: str, number: int, position: list[str], pixels: bytes) -> bytes:
        """The file of one slice."""
        to_uid, to_number, to_position, to_location, to_pixels = self._pieces
        body = b"".join(
            (
                to_uid + _element(0x0008, 0x0018, b"UI", uid),
                to_number + _element(0x0020, 0x0013, b"IS", str(number)),
                to_position + _element(0x0020, 0x0032, b"DS", "\\".join(position)),
                to_location + _element(0x0020, 0x1041, b"DS", position[2]),
                to_pixels + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixels)),
                pixels,
            )
        )
        return self._preamble_and_meta(uid) + (_deflate(body) if self._deflated else body)

    def _preamble_and_meta(self, uid: str) -> bytes:
        version, rest = self._meta
        meta = version + _element(0x0002, 0x0003, b"UI", uid) + rest
        length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(meta))
        return bytes(128) + b"DICM" + length + meta


def _encoded(ds: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return bytes(buffer.getvalue())


def _element(group: int, element: int, vr: bytes, text: str) -> bytes:
    """One explicit little-endian element of text, padded to even length as its VR wants."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def _deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(body) + packer.flush()
    return packed + b"\0" * (len(packed) % 2)


def edited(files: Sequence[bytes], change: Callable[[Dataset, int], None]) -> list[bytes]:
    """The files after `change(image, z)`, which alters each dataset in place."""
    changed = []
    for z, file in enumerate(files):
        image = dcmread(BytesIO(file))
        change(image, z)
        changed.append(file_bytes(image))
    return changed


def file_bytes(image: Dataset) -> bytes:
    """A whole DICOM file, with the meta header completed from the dataset."""
    buffer = BytesIO()
    dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()


def recompress(file: bytes, transfer_syntax: str) -> bytes:
    """The same image in a compressed transfer syntax."""
    image = dcmread(BytesIO(file))
    image.compress(transfer_syntax, generate_instance_uid=False)
    return file_bytes(image)


def meta_header(sop_class: str, sop_instance: str, transfer_syntax: str) -> FileMetaDataset:
    """File meta information; the same bytes whatever library version writes it."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = sop_instance
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = phantom_uid("implementation")
    meta.ImplementationVersionName = "HEADCT_PHANTOM"
    return meta
