"""DICOMweb: QIDO-RS to find, WADO-RS to fetch."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO

import requests
from dicomweb_client.api import DICOMwebClient
from requests.auth import AuthBase

from headct.errors import HeadctError, UsageError
from headct.pacs.address import Pacs
from headct.pacs.connection import SeriesRecord, Throttle, TransferError

USER_VARIABLE, PASSWORD_VARIABLE = "HEADCT_PACS_USER", "HEADCT_PACS_PASSWORD"
PAGE = 200
CHUNK_BYTES = 1 << 18
TAGS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "Modality": "00080060",
    "BodyPartExamined": "00180015",
    "NumberOfSeriesRelatedInstances": "00201209",
}
SERIES_FIELDS = ("Modality", "BodyPartExamined", "NumberOfSeriesRelatedInstances")


class DicomWeb:
    """A DICOMweb server. Images are written byte by byte as they come, in their own encoding."""

    def __init__(self, pacs: Pacs) -> None:
        self.pacs = pacs
        self.throttle = Throttle(pacs.images_per_s)
        self.session = _PlainWildcards()
        _authorize(self.session, pacs.token_file)
        timeout = (min(pacs.timeout_s, 20.0), pacs.timeout_s)
        self.client = DICOMwebClient(
            pacs.url, session=self.session, permissive_uid=True, timeout=timeout
        )
        self.client.set_http_retry_params(retry=False)  # we wait and try again ourselves
        self.timeout = timeout

    def check(self) -> None:
        """One question with one answer.

        Raises:
            HeadctError: no answer, or a refusal.
        """
        try:
            with _as_transfer_error():
                self.client.search_for_studies(limit=1)
        except TransferError as error:
            raise HeadctError(
                f"the PACS does not answer as DICOMweb: {error}",
                code="pacs-unreachable",
                remedy="check host, port and path, and that it may be reached from here",
            ) from error

    def find_studies(self, keys: dict[str, str]) -> list[str]:
        """See `Connection`."""
        # not every server decodes a space in a query either
        keys = {name: value.replace(" ", "?") for name, value in keys.items()}
        found: dict[str, None] = {}
        while True:
            with _as_transfer_error():
                page = self.client.search_for_studies(
                    limit=PAGE, offset=len(found), search_filters=keys
                )
            n_before = len(found)
            found.update(dict.fromkeys(_text(study, "StudyInstanceUID") for study in page))
            # a server may ignore the limit, and one that ignores the offset says nothing new
            if len(page) < PAGE or len(found) == n_before:
                return [uid for uid in found if uid]

    def find_series(self, study_uid: str) -> list[SeriesRecord]:
        """See `Connection`."""
        with _as_transfer_error():
            try:
                answer = self.client.search_for_series(study_uid, fields=SERIES_FIELDS)
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code == 404:
                    return []
                raise
        records = [_record(series) for series in answer]
        return sorted((r for r in records if r.uid), key=lambda r: r.uid)

    def fetch(self, study_uid: str, series: SeriesRecord, folder: Path) -> None:
        """See `Connection`."""
        url = f"{self.pacs.url}/studies/{study_uid}/series/{series.uid}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with (
            _as_transfer_error(),
            self.session.get(
                url, headers={"Accept": accept}, stream=True, timeout=self.timeout
            ) as answer,
        ):
            answer.raise_for_status()
            self._write(answer, folder)

    def _write(self, answer: requests.Response, folder: Path) -> None:
        n_files = 0

        def new_file() -> BinaryIO:
            nonlocal n_files
            n_files += 1
            self.throttle.wait()
            return (folder / f"{n_files:06d}.dcm").open("xb")

        kind = Message()
        kind["content-type"] = answer.headers.get("content-type", "")
        chunks = answer.iter_content(CHUNK_BYTES)
        if kind.get_content_type() == "application/dicom":
            with new_file() as handle:
                handle.writelines(chunks)
        elif kind.get_boundary() is None:
            raise TransferError("the answer holds no images")
        else:
            write_parts(chunks, str(kind.get_boundary()).encode("latin-1"), new_file)

    def close(self) -> None:
        """Let go."""
        self.session.close()


def write_parts(chunks: Iterator[bytes], boundary: bytes, new_file: Callable[[], BinaryIO]) -> None:
    """Write the parts of a multipart answer to files, as they come.

    Raises:
        TransferError: the answer ends before its closing mark.

    Source:
        RFC 2046, 5.1.1.
    """
    mark = b"\r\n--" + boundary
    data = b"\r\n"
    file: BinaryIO | None = None
    try:
        for chunk in chunks:
            data += chunk
            while True:
                at = data.find(mark) if file is not None else _part_start(data, mark)
                if at < 0:
                    break
                if file is not None:
                    file.write(data[:at])
                    file.close()
                    file, data = None, data[at:]
                else:
                    file, data = new_file(), data[at:]
            if file is not None and len(data) > len(mark):
                file.write(data[: -len(mark)])
                data = data[-len(mark) :]
    finally:
        if file is not None:
            file.close()
    if file is not None or not data.startswith(mark + b"--"):
        raise TransferError("the answer was cut off")


def _part_start(data: bytes, mark: bytes) -> int:
    """First byte of the next part's content; -1 where it has not come, or there is none."""
    at = data.find(mark)
    if at < 0 or data[at + len(mark) :].startswith(b"--"):
        return -1
    head = data.find(b"\r\n\r\n", at + len(mark))
    return head + 4 if head >= 0 else -1


@contextmanager
def _as_transfer_error() -> Iterator[None]:
    """What the libraries raise, as ours: without the URL, since that holds UIDs.

    Raises:
        TransferError: worth another try.
        HeadctError: the PACS wants other credentials.
    """
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            raise HeadctError(
                f"the PACS does not let us in (HTTP {code})",
                code="pacs-refused",
                remedy=f"give --token-file, {USER_VARIABLE} and {PASSWORD_VARIABLE}, or ~/.netrc",
            ) from None
        raise TransferError(f"the PACS answered with HTTP {code}") from None
    except (requests.exceptions.ChunkedEncodingError, requests.ReadTimeout):
        raise TransferError("the connection was lost on the way", gone=True) from None
    except requests.exceptions.SSLError:
        raise TransferError("the certificate of the PACS is not trusted", gone=True) from None
    except requests.ConnectionError:
        raise TransferError("no connection", gone=True) from None
    except (requests.RequestException, ValueError):
        raise TransferError("an answer that cannot be read") from None


def _authorize(session: requests.Session, token_file: Path | None) -> None:
    """Token, else user and password, else what requests finds in ~/.netrc."""
    user = os.environ.get(USER_VARIABLE)
    if token_file is not None:
        session.auth = _Bearer(_read_token(token_file))  # as a header, ~/.netrc would win
    elif user:
        session.auth = (user, os.environ.get(PASSWORD_VARIABLE, ""))


class _PlainWildcards(requests.Session):
    """Leaves `*` and `?` in a query as they are, which RFC 3986 allows: some servers need it."""

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        prepared = super().prepare_request(request)
        prepared.url = (prepared.url or "").replace("%2A", "*").replace("%3F", "?")
        return prepared


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def _read_token(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as handle:
            mode = os.fstat(handle.fileno()).st_mode
            token = handle.read(16384).strip()
    except (OSError, ValueError) as error:
        raise UsageError("the token file cannot be read", remedy="check --token-file") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError("the token file can be read by others", remedy="chmod 600 it")
    if not token or not token.isprintable() or " " in token:
        raise UsageError("the token file holds no token", remedy="one line, the token alone")
    return token


def _record(series: dict[str, Any]) -> SeriesRecord:
    n_images = _text(series, "NumberOfSeriesRelatedInstances")
    return SeriesRecord(
        _text(series, "SeriesInstanceUID"),
        _text(series, "Modality").upper(),
        _text(series, "BodyPartExamined").upper(),
        int(n_images) if n_images.isdecimal() else None,
    )


def _text(dataset: dict[str, Any], keyword: str) -> str:
    values = dataset.get(TAGS[keyword], {}).get("Value") or [""]
    return str(values[0]).strip()
