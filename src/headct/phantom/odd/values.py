"""Odd values: bits, sign, rescale, padding, units, units that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import (
    Slices,
    hu_of,
    odd,
    pixels,
    set_pixels,
    setting,
    slices,
    store_as,
    variants,
)

COPIES = "MONOCHROME1, 8-bit or RGB copies, secondary capture, lossy"
RESCALE = "rescale missing, slope 0, type not HU, per-slice rescale, intercept"
PADDING = "padding (-2000, -3024, -32768, with or without PixelPaddingValue)"
PLAUSIBLE = "HU implausible (air not near -1000, brain not near 20..50), constant image"

variants(
    COPIES,
    "refused:secondary-capture",
    secondary_capture_class=setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
    multiframe_capture_class=setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3"),
    screen_save=setting(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
)
variants(
    COPIES,
    "flagged:lossy",
    said_to_be_lossy=setting(LossyImageCompression="01", LossyImageCompressionRatio="12"),
)
variants(
    RESCALE,
    "refused:no-rescale",
    neither=setting(RescaleSlope=None, RescaleIntercept=None),
    no_slope=setting(RescaleSlope=None),
    no_intercept=setting(RescaleIntercept=None),
    empty_intercept=setting(RescaleIntercept=""),
)
variants(
    RESCALE,
    "refused:bad-rescale",
    zero=setting(RescaleSlope="0"),
    negative=setting(RescaleSlope="-1"),
    absurd=setting(RescaleIntercept="1e9"),
    tiny=setting(RescaleSlope="1e-9"),
)
variants(
    RESCALE,
    "refused:not-hu",
    optical_density=setting(RescaleType="OD"),
    unspecified=setting(RescaleType="US"),
    iodine_in_mg_per_ml=setting(RescaleType="MGML"),
)
variants(
    RESCALE,
    "accepted",
    no_type=setting(RescaleType=None),
    lower_case=setting(RescaleType="hu"),
)
variants(
    RESCALE,
    "refused:implausible-hu",
    intercept_zero_but_stored_with_offset=setting(RescaleIntercept="0"),
    slope_of_two=setting(RescaleSlope="2"),
)
variants(
    RESCALE,
    "refused:not-head|refused:implausible-hu",
    intercept_twice=setting(RescaleIntercept="-2048"),
    a_tenth=setting(RescaleSlope="0.1", RescaleIntercept="-100"),
)


def _layout(name: str, verdict: str = "accepted", row: str = RESCALE, **layout: Any) -> None:
    def make(series: HeadSeries, _: Path) -> Slices:
        return slices(series, lambda i, z: store_as(i, hu_of(i), **layout))

    odd(row, verdict, name=name)(make)


U16: dict[str, Any] = {"PixelRepresentation": 0, "BitsStored": 16, "HighBit": 15}
S16: dict[str, Any] = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}
U12: dict[str, Any] = {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11}
S12: dict[str, Any] = {"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11}
_layout("signed-hu-as-it-is", **S16, RescaleIntercept="0")
_layout("intercept-8192", **U16, RescaleIntercept="-8192")
_layout("intercept-1000", **U16, RescaleIntercept="-1000")
_layout("half-steps", **U16, RescaleIntercept="-1024.5", RescaleSlope="0.5")
_layout("float-slope", **S16, RescaleIntercept="-3.25", RescaleSlope="0.31250")
_layout("unsigned-with-32768", **U16, RescaleIntercept="-32768")
_layout("exponent-notation", **U12, RescaleIntercept="-1.024E+03", RescaleSlope="1.0e0")


@odd(RESCALE, "accepted")
def per_slice_rescale(series: HeadSeries, _: Path) -> Slices:
    return slices(
        series,
        lambda i, z: store_as(
            i,
            hu_of(i),
            **U16,
            RescaleSlope=f"{0.5 + 0.05 * z:.2f}",
            RescaleIntercept=f"{-1024 - z}",
        ),
    )


@odd(RESCALE, "refused:no-rescale")
def one_slice_without(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setting(RescaleSlope=None)(i, z) if z == 20 else None)


@odd(RESCALE, "flagged:unused-bits")
def junk_in_unused_bits(series: HeadSeries, _: Path) -> Slices:
    def junk(image: Any, z: int) -> None:
        store_as(image, hu_of(image), **U12, RescaleIntercept="-1024")
        set_pixels(image, pixels(image) | np.uint16(0xA000))

    return slices(series, junk)


@odd(RESCALE, "flagged:unused-bits")
def signed_12_in_16_bits_without_sign_extension(series: HeadSeries, _: Path) -> Slices:
    def cut(image: Any, z: int) -> None:
        store_as(image, hu_of(image).clip(-2048, 2047), **S12, RescaleIntercept="0")
        set_pixels(image, pixels(image).view(np.uint16) & np.uint16(0x0FFF))

    return slices(series, cut)


@odd(RESCALE, "accepted")
def stored_in_the_upper_bits(series: HeadSeries, _: Path) -> Slices:
    def shifted(image: Any, z: int) -> None:
        store_as(image, hu_of(image), **U12, RescaleIntercept="-1024")
        set_pixels(image, pixels(image) << 4)
        image.HighBit = 15

    return slices(series, shifted)


@odd(RESCALE, "accepted")
def signed_one_bit_more(series: HeadSeries, _: Path) -> Slices:
    layout = {"PixelRepresentation": 1, "BitsStored": 13, "HighBit": 12}
    return slices(series, lambda i, z: store_as(i, hu_of(i), **layout, RescaleIntercept="0"))


@odd(RESCALE, "refused:bad-pixel-format")
def high_bit_below_the_bits(series: HeadSeries, _: Path) -> Slices:
    return slices(series, setting(BitsStored=12, HighBit=7))


@odd(RESCALE, "refused:bad-pixel-format")
def more_bits_stored_than_allocated(series: HeadSeries, _: Path) -> Slices:
    return slices(series, setting(BitsStored=24, HighBit=23))


@odd(RESCALE, "refused:bad-pixel-format")
def thirty_two_bits(series: HeadSeries, _: Path) -> Slices:
    def wide(image: Any, z: int) -> None:
        values = pixels(image).astype("<i4")
        image.BitsAllocated = image.BitsStored = 32
        image.HighBit = 31
        set_pixels(image, values)

    return slices(series, wide)


@odd(RESCALE, "refused:not-hu")
def a_modality_lut_instead(series: HeadSeries, _: Path) -> Slices:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def with_lut(image: Any, z: int) -> None:
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [16, 0, 16])
        table.ModalityLUTType = "HU"
        table.add_new("LUTData", "OW", bytes(32))
        image.ModalityLUTSequence = Sequence([table])

    return slices(series, with_lut)


def _padded(
    name: str, hu_outside: int, tag: int | None, verdict: str = "accepted", **layout: Any
) -> None:
    def make(series: HeadSeries, _: Path) -> Slices:
        def pad(image: Any, z: int) -> None:
            hu = hu_of(image)
            store_as(image, hu, **layout)
            stored = pixels(image)
            y, x = np.mgrid[-1 : 1 : 1j * stored.shape[0], -1 : 1 : 1j * stored.shape[1]]
            stored[y**2 + x**2 > 1] = np.int64(hu_outside).astype(stored.dtype)
            set_pixels(image, stored)
            if tag is not None:
                image.add_new("PixelPaddingValue", "SS" if tag < 0 else "US", tag)

        return slices(series, pad)

    odd(PADDING, verdict, name=name)(make)


_padded("minus-2000-tagged", -2000, -2000, **S16, RescaleIntercept="-1024")
_padded("minus-2000-untagged", -2000, None, **S16, RescaleIntercept="-1024")
_padded("minus-3024-untagged", -3024, None, **S16, RescaleIntercept="0")
_padded("minus-32768-untagged", -32768, None, **S16, RescaleIntercept="-1024")
_padded("minus-32768-tagged", -32768, -32768, **S16, RescaleIntercept="0")
_padded("63536-unsigned-tagged", 63536, 63536, **U16, RescaleIntercept="-1024")
_padded("63536-unsigned-untagged", 63536, None, **U16, RescaleIntercept="-1024")
_padded("65535-unsigned-tagged", 65535, 65535, **U16, RescaleIntercept="-1024")
_padded("zero-tagged", 0, 0, **U12, RescaleIntercept="-1000")
_padded("4095-tagged", 4095, 4095, **U12, RescaleIntercept="-1024")
_padded("zero-tagged-in-tissue", 0, 0, **S16, RescaleIntercept="0")
_padded("tag-that-lies", 0, -2000, **U12, RescaleIntercept="-1024")


@odd(PLAUSIBLE, "refused:constant-image")
def all_the_same(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: store_as(i, hu_of(i) * 0))


@odd(PLAUSIBLE, "refused:not-head")
def air_only(series: HeadSeries, _: Path) -> Slices:
    rng = np.random.default_rng(0)
    return slices(
        series, lambda i, z: store_as(i, rng.normal(-1000, 8, (i.Rows, i.Columns)).clip(-1024))
    )


@odd(PLAUSIBLE, "refused:implausible-hu")
def inverted(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: store_as(i, (-hu_of(i)).clip(-1024, 1024)))


@odd(PLAUSIBLE, "refused:implausible-hu")
def scaled_to_0_255(series: HeadSeries, _: Path) -> Slices:
    return slices(
        series,
        lambda i, z: store_as(
            i, ((hu_of(i) + 1024) / 2471 * 255).clip(0), **S16, RescaleIntercept="0"
        ),
    )


@odd(PLAUSIBLE, "refused:implausible-hu")
def brain_window_only(series: HeadSeries, _: Path) -> Slices:
    return slices(
        series, lambda i, z: store_as(i, hu_of(i).clip(0, 80), **S16, RescaleIntercept="0")
    )


@odd(PLAUSIBLE, "flagged:suspect-hu")
def air_at_minus_900(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: store_as(i, hu_of(i).clip(-900)))


@odd(PLAUSIBLE, "refused:implausible-hu")
def noise(series: HeadSeries, _: Path) -> Slices:
    rng = np.random.default_rng(1)
    return slices(series, lambda i, z: set_pixels(i, rng.integers(0, 4000, (64, 64)).astype("<u2")))
