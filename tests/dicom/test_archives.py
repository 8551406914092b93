"""Archives are opened like folders, and traps in them do no harm."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import warnings
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from headct.dicom.index import Index, index_paths
from headct.dicom.reasons import Reason
from headct.dicom.series import StackPlan, plan_stacks
from headct.dicom.spool import spooling
from headct.errors import HeadctError, Refusal


@pytest.fixture
def spool(tmp_path):
    with spooling(tmp_path / "work", "test") as folder:
        yield folder


@pytest.fixture
def box(tmp_path):
    folder = tmp_path / "box"
    folder.mkdir()
    return folder


def plans(index: Index) -> list[StackPlan | Refusal]:
    return [plan for series in index.series for plan in plan_stacks(series)]


def codes(index: Index) -> list[str]:
    return sorted(str(outcome.reason) for outcome in index.outcomes)


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def slices(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def require_whole(index: Index, n_slices: int = 12) -> None:
    (plan,) = plans(index)
    assert isinstance(plan, StackPlan), plan
    assert len(plan.headers) == n_slices
    assert not plan.flags


PACKERS = {
    "a.tar": lambda data: data,
    "a.tar.gz": gzip.compress,
    "a.tgz": gzip.compress,
    "a.tar.bz2": bz2.compress,
    "a.tar.xz": lzma.compress,
    "a.tar.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    "no suffix": gzip.compress,
}


@pytest.mark.parametrize("name", PACKERS)
def test_tar_files_are_read_like_folders(scan, box, spool, name):
    (box / name).write_bytes(PACKERS[name](tarred(slices(scan()))))
    index = index_paths([box], spool=spool)
    require_whole(index)
    assert index.n_files == 12


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_files_are_read_like_folders(scan, box, spool, method):
    require_whole(index_paths([zipped(box / "study.zip", slices(scan()), method)], spool=spool))


def test_one_series_over_archives_and_folders(scan, box, spool):
    files = list(slices(scan()).items())
    zipped(box / "one.zip", dict(files[:4]))
    (box / "two.tar").write_bytes(tarred(dict(files[4:8])))
    for name, data in files[8:]:
        (box / f"{name}.gz").write_bytes(gzip.compress(data))
    require_whole(index_paths([box], spool=spool))


def test_processes_change_nothing(scan, box, spool):
    for n, (name, data) in enumerate(slices(scan()).items()):
        zipped(box / f"{n}.zip", {name: data, "note.txt": b"x"})
    alone = index_paths([box], spool=spool)
    together = index_paths([box], spool=spool, jobs=2)
    require_whole(together)
    assert [o.path for o in together.outcomes] == [o.path for o in alone.outcomes]
    assert sorted(together.places.values()) == sorted(alone.places.values())


def test_archives_in_archives_to_a_depth(scan, box, spool):
    inner = zipped(box / "inner", slices(scan())).read_bytes()
    for name in ("b.zip", "c.zip"):
        inner = zipped(box / "inner", {name: inner, "note.txt": b"x"}).read_bytes()
    (box / "inner").rename(box / "good.zip")
    require_whole(index_paths([box], spool=spool))
    zipped(box / "good.zip", {"d.zip": inner, "e.zip": inner})
    index = index_paths([box], spool=spool)
    assert not index.series
    assert codes(index).count(Reason.UNSUPPORTED_ARCHIVE) == 2


def test_without_a_spool_an_archive_is_no_dicom(scan, box):
    index = index_paths([zipped(box / "a.zip", slices(scan()))])
    assert codes(index) == [Reason.NOT_DICOM]


def test_documents_are_not_opened(box, spool):
    zipped(box / "report.docx", {"word/document.xml": b"<w/>"})
    assert codes(index_paths([box], spool=spool)) == [Reason.NOT_DICOM]


def everything_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "work" not in path.parts[len(folder.parts) :][:1]}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_member_names_that_lead_out_write_nothing_outside(scan, tmp_path, box, spool, kind):
    members = slices(scan())
    absolute = str(tmp_path / "outside-absolute")
    odd = {"../../outside": b"x", absolute: b"x", "..\\up.dcm": b"x", "a\nb;$(rm)": b"x"}
    if kind == "zip":
        zipped(box / "a.zip", members | odd)
    else:
        (box / "a.tar").write_bytes(tarred(members | odd))
    before = everything_below(tmp_path)
    index = index_paths([box], spool=spool)
    assert everything_below(tmp_path) == before
    require_whole(index)
    assert codes(index) == [Reason.NOT_DICOM] * 2 + [Reason.UNSAFE_NAME] * 2


def test_a_slice_with_a_name_that_leads_out_is_not_quietly_left_out(scan, box, spool):
    files = list(slices(scan(shuffle_seed=1)).items())
    hostile = {f"../{files[0][0]}": files[0][1]}
    (plan,) = plans(index_paths([zipped(box / "a.zip", dict(files[1:]) | hostile)], spool=spool))
    assert isinstance(plan, Refusal)
    assert plan.code == Reason.DAMAGED_MEMBER


def test_links_and_devices_in_archives_are_skipped(scan, tmp_path, box, spool):
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(next(iter(slices(scan("other")).values())))
    buffer = io.BytesIO(tarred(slices(scan())))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for kind, target in (
            (tarfile.SYMTYPE, str(secret)),
            (tarfile.LNKTYPE, str(secret)),
            (tarfile.CHRTYPE, ""),
            (tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(f"odd{kind!r}.dcm")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    (box / "a.tar").write_bytes(buffer.getvalue())
    with zipfile.ZipFile(box / "b.zip", "w") as archive:
        info = zipfile.ZipInfo("link.dcm")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(secret))
    index = index_paths([box], spool=spool)
    require_whole(index)
    assert codes(index) == [Reason.SPECIAL_FILE] * 5


@pytest.mark.parametrize(
    "name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.zst", "a.tar.bz2"]
)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_archive_that_was_cut_off_is_refused_whole(scan, box, spool, name, share):
    members = slices(scan())
    if name == "a.zip":
        data = zipped(box / name, members).read_bytes()
    else:
        # the two empty blocks at the end are not counted: they may be long
        data = PACKERS[name](tarred(members)[: -(10240 - 1024)])
    (box / name).write_bytes(data[: int(len(data) * share)])
    index = index_paths([box], spool=spool)
    assert not index.series
    assert codes(index) in ([Reason.TRUNCATED], [Reason.UNREADABLE])
    assert not [path for path in spool.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_tar_file_cut_between_two_members_is_not_taken_for_a_shorter_one(scan, box, spool):
    members = slices(scan())
    size = len(next(iter(members.values())))
    whole = 512 + -(-size // 512) * 512
    (box / "a.tar").write_bytes(tarred(members)[: whole * 7])
    assert codes(index_paths([box], spool=spool)) == [Reason.TRUNCATED]


def test_a_damaged_member_is_a_damaged_slice(scan, box, spool):
    members = slices(scan())
    path = zipped(box / "a.zip", members, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(members["IM0003.dcm"][-2000:]) + 50] ^= 1
    path.write_bytes(bytes(data))
    index = index_paths([box], spool=spool)
    assert codes(index) == [Reason.UNREADABLE]
    (plan,) = plans(index)
    assert isinstance(plan, Refusal)
    assert plan.code == Reason.DAMAGED_MEMBER


def test_an_encrypted_member_is_named_and_its_series_refused(scan, box, spool):
    path = zipped(box / "a.zip", slices(scan()), zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    data[6] |= 1
    path.write_bytes(bytes(data))
    index = index_paths([box], spool=spool)
    assert codes(index) == [Reason.ENCRYPTED]
    (plan,) = plans(index)
    assert isinstance(plan, Refusal)


def test_archives_of_other_kinds_are_refused_by_name(box, spool):
    (box / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    (box / "b.rar").write_bytes(b"Rar!\x1a\x07" + bytes(100))
    (box / "c.zip").write_bytes(bytes(300))
    assert codes(index_paths([box], spool=spool)) == [
        Reason.UNREADABLE,
        Reason.UNSUPPORTED_ARCHIVE,
        Reason.UNSUPPORTED_ARCHIVE,
    ]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.gz", "nested.zip"])
def test_a_decompression_bomb_is_refused_and_leaves_nothing(
    box, spool, name, monkeypatch, tmp_path
):
    monkeypatch.setattr("headct.dicom.archives.FREE_BYTES", 1 << 20)
    zeros = bytes(16 << 20)
    if name == "a.zip":
        zipped(box / name, {"IM1.dcm": zeros})
    elif name == "a.gz":
        (box / name).write_bytes(gzip.compress(zeros))
    elif name == "nested.zip":
        zipped(tmp_path / "inner", {"IM1.dcm": zeros})
        zipped(box / name, {f"{n}.zip": (tmp_path / "inner").read_bytes() for n in range(8)})
    else:
        (box / name).write_bytes(PACKERS[name](tarred({"IM1.dcm": zeros})))
    index = index_paths([box], spool=spool)
    assert set(codes(index)) == {Reason.ARCHIVE_BOMB}
    assert not [path for path in spool.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_long_tar_header_is_not_read_into_memory(box, spool):
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, 300 << 20
    head = info.tobuf(tarfile.GNU_FORMAT)
    (box / "a.tar.gz").write_bytes(gzip.compress(head + bytes(64 << 20), 1))
    assert codes(index_paths([box], spool=spool)) == [Reason.ARCHIVE_BOMB]


def test_too_many_members_are_a_bomb(box, spool, monkeypatch):
    monkeypatch.setattr("headct.dicom.compressed.MAX_MEMBERS", 100)
    zipped(box / "a.zip", {str(n): b"" for n in range(200)})
    assert codes(index_paths([box], spool=spool)) == [Reason.ARCHIVE_BOMB]


def test_two_members_of_one_name_are_two_files(scan, box, spool):
    data = list(slices(scan()).values())
    with warnings.catch_warnings(), zipfile.ZipFile(box / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")  # zipfile minds the second one
        for one in data:
            archive.writestr("IM.dcm", one)
    index = index_paths([box], spool=spool)
    require_whole(index)
    assert len(set(index.places.values())) == 12


def test_a_full_disk_is_said_with_a_remedy(scan, box, spool, monkeypatch):
    zipped(box / "a.zip", slices(scan()))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headct.dicom.archives._Unpacker.open", full)
    with pytest.raises(HeadctError, match="disk is full") as error:
        index_paths([box], spool=spool)
    assert "--work" in error.value.remedy


def test_a_dicomdir_is_passed_over_whatever_it_says(scan):
    folder = scan()
    records = []
    for name in ("IM0000", "GONE", "OUTSIDE/X"):
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name.split("/")
        record.ReferencedSOPInstanceUIDInFile = "1.2.3"
        records.append(record)
    directory = Dataset()
    directory.FileSetID, directory.DirectoryRecordSequence = "LIES", records
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom minds the lies
        directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    index = index_paths([folder])
    assert codes(index) == [Reason.DIRECTORY_FILE]
    require_whole(index)


def test_the_spool_is_private_and_gone_afterwards(tmp_path):
    with spooling(tmp_path / "work", "one") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").write_text("x")
    assert not folder.exists()


def test_a_spool_takes_away_what_a_killed_run_left_and_nothing_else(tmp_path):
    work = tmp_path / "work"
    left, strange, mine = (work / f"headct-spool-{n}" for n in ("one-dead", "one-odd", "two-dead"))
    for folder in (left, strange, mine):
        (folder / "study").mkdir(parents=True)
    (left / ".lock").touch()
    (mine / ".lock").touch()
    (tmp_path / "target").mkdir()
    (work / "headct-spool-one-link").symlink_to(tmp_path / "target")
    with spooling(work, "one") as first, spooling(work, "one") as second:
        assert first != second
        assert first.exists()
        assert not left.exists()
    assert not first.exists()
    assert strange.exists()
    assert mine.exists()
    assert (tmp_path / "target").exists()


def test_header_of_a_tar_without_magic(scan, box, spool):
    """Tar files of 1979 have no magic word; the suffix tells."""
    data = bytearray(tarred({"IM1.dcm": b"x" * 600}))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (box / "a.tar").write_bytes(bytes(data))
    assert codes(index_paths([box], spool=spool)) == [Reason.UNREADABLE]
