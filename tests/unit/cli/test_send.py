"""Sending files by C-STORE, to a real storage SCP on a real port."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt

from cli.send import Context, Peer, parse_peer, read_head, send, status_words, succeeded, summary
from shared.errors import StepwedgeError

CT = Path(get_testdata_file("CT_small.dcm"))
MR_JPEG2000 = Path(get_testdata_file("MR_small_jp2klossless.dcm"))
MR_BIG_ENDIAN = Path(get_testdata_file("MR_small_bigendian.dcm"))


class Archive:
    """A storage SCP that keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.answer = 0x0000
        self.abort_at: set[int] = set()
        self.associations = 0
        self.lock = threading.Lock()
        self.entity = AE(ae_title="ARCHIVE")

    def start(self, contexts: list[tuple[str, str]]) -> int:
        for sop_class, syntax in contexts:
            self.entity.add_supported_context(sop_class, syntax)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count)]
        self.server = self.entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        return int(self.server.socket.getsockname()[1])

    def _count(self, _event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        with self.lock:
            number = len(self.received) + 1
            if number in self.abort_at:
                self.abort_at.discard(number)
                event.assoc.abort()
                return 0xC000
            self.received.append((str(event.context.transfer_syntax), event.request.DataSet.getvalue()))
        return self.answer


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    archive = Archive()
    yield archive
    archive.server.shutdown()


def to(port: int) -> Peer:
    return Peer("127.0.0.1", port, "ARCHIVE", "TESTER")


def data_set_of(path: Path) -> bytes:
    """The bytes after the file meta information (PS3.10 7.1)."""
    data = path.read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    return data[132 + 12 + meta.FileMetaInformationGroupLength :]


EVERY_SYNTAX = [
    (CTImageStorage, ExplicitVRLittleEndian),
    (MRImageStorage, JPEG2000Lossless),
    (MRImageStorage, "1.2.840.10008.1.2.2"),
]


def test_each_file_arrives_byte_for_byte_in_its_own_transfer_syntax(archive: Archive) -> None:
    files = [CT, MR_JPEG2000, MR_BIG_ENDIAN]
    results = send(files, to(archive.start(EVERY_SYNTAX)))
    assert [(sent.ok, sent.code) for sent in results] == [(True, "0x0000")] * 3
    assert archive.received == [(str(read_head(file).context.transfer_syntax), data_set_of(file)) for file in files]
    assert archive.associations == 1


def test_a_file_in_a_syntax_that_the_peer_does_not_take_fails_alone_and_is_not_converted(archive: Archive) -> None:
    port = archive.start([(CTImageStorage, ExplicitVRLittleEndian), (MRImageStorage, ExplicitVRLittleEndian)])
    results = send([CT, MR_JPEG2000], to(port))
    assert [(sent.path, sent.ok, sent.code) for sent in results] == [
        (CT, True, "0x0000"),
        (MR_JPEG2000, False, "SOP_CLASS_MISMATCH"),
    ]
    assert len(archive.received) == 1


def test_every_file_fails_with_its_own_result_where_the_peer_takes_none_of_them(archive: Archive) -> None:
    results = send([MR_JPEG2000, MR_BIG_ENDIAN], to(archive.start([(CTImageStorage, ExplicitVRLittleEndian)])))
    assert [sent.code for sent in results] == ["SOP_CLASS_MISMATCH"] * 2


def test_what_is_not_dicom_is_reported_by_code_and_the_rest_is_sent(archive: Archive, tmp_path: Path) -> None:
    empty, words, cut = tmp_path / "empty", tmp_path / "words.txt", tmp_path / "cut.dcm"
    empty.write_bytes(b"")
    words.write_text("not an image at all, and longer than a preamble " * 9)
    cut.write_bytes(CT.read_bytes()[:150])
    results = {sent.path: sent for sent in send([empty, words, cut, CT], to(archive.start(EVERY_SYNTAX)))}
    assert {path: sent.code for path, sent in results.items()} == {
        empty: "NOT_DICOM",
        words: "NOT_DICOM",
        cut: "MALFORMED_DICOM",
        CT: "0x0000",
    }


def test_a_refusal_is_a_failure_with_its_status(archive: Archive) -> None:
    port = archive.start(EVERY_SYNTAX)
    archive.answer = 0xA700
    (sent,) = send([CT], to(port))
    assert (sent.ok, sent.code, sent.words) == (False, "0xA700", "refused: out of resources")


def test_a_warning_is_stored(archive: Archive) -> None:
    port = archive.start(EVERY_SYNTAX)
    archive.answer = 0xB000
    (sent,) = send([CT], to(port))
    assert sent.ok


def test_an_association_aborted_in_the_middle_is_opened_again_and_nothing_is_lost(archive: Archive) -> None:
    port = archive.start(EVERY_SYNTAX)
    archive.abort_at = {2}
    results = send([CT, MR_JPEG2000, MR_BIG_ENDIAN], to(port))
    assert all(sent.ok for sent in results)
    assert (len(archive.received), archive.associations) == (3, 2)


def test_more_contexts_than_one_association_carries_take_several(archive: Archive, tmp_path: Path) -> None:
    files = []
    contexts = []
    body = data_set_of(CT)
    for number, context in enumerate(AllStoragePresentationContexts[:130]):
        meta = pydicom.dcmread(CT, stop_before_pixels=True).file_meta
        meta.MediaStorageSOPClassUID = context.abstract_syntax
        meta.MediaStorageSOPInstanceUID = generate_uid()
        stream = io.BytesIO()
        write_file_meta_info(stream, meta)
        files.append(tmp_path / f"{number:03}.dcm")
        files[-1].write_bytes(bytes(128) + b"DICM" + stream.getvalue() + body)
        contexts.append((str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
    results = send(files, to(archive.start(contexts)))
    assert all(sent.ok for sent in results), summary(results)
    assert [sent.path for sent in results] == files
    assert archive.associations == 2


def test_nobody_listening_is_one_error_and_no_result() -> None:
    archive = Archive()
    port = archive.start(EVERY_SYNTAX)
    archive.server.shutdown()
    with pytest.raises(StepwedgeError) as caught:
        send([CT], to(port))
    assert caught.value.name == "DEPENDENCY_UNAVAILABLE"


def test_a_rejected_association_says_why(archive: Archive) -> None:
    archive.entity.require_called_aet = True
    port = archive.start(EVERY_SYNTAX)
    with pytest.raises(StepwedgeError) as caught:
        send([CT], Peer("127.0.0.1", port, "SOMEONE", "TESTER"))
    assert caught.value.name == "PERMISSION_DENIED"
    assert "called ae title" in caught.value.message


def test_a_file_announces_its_class_its_syntax_and_its_instance() -> None:
    head = read_head(MR_JPEG2000)
    assert head.context == Context(MRImageStorage, JPEG2000Lossless)
    assert head.sop_instance == pydicom.dcmread(MR_JPEG2000).file_meta.MediaStorageSOPInstanceUID


@pytest.mark.parametrize(
    ("status", "words", "stored"),
    [
        (0x0000, "stored", True),
        (0xB007, "stored; data set does not match SOP class", True),
        (0xA702, "refused: out of resources", False),
        (0xA912, "refused: data set does not match SOP class", False),
        (0xC123, "refused: cannot understand", False),
        (0x0124, "not authorised", False),
        (0x1234, "failed", False),
    ],
)
def test_each_status_has_its_words(status: int, words: str, stored: bool) -> None:
    assert (status_words(status), succeeded(status)) == (words, stored)


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:65536", "host:x", "host:١"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(StepwedgeError) as caught:
        parse_peer(address, "A", "B")
    assert caught.value.name == "INVALID_REQUEST"


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert parse_peer("[::1]:104", "A", "B") == Peer("::1", 104, "A", "B")


@pytest.mark.parametrize("title", ["", " ", "SEVENTEEN_LETTERS", "BACK\\SLASH", "TÄST", "A\nB"])
def test_what_is_not_an_ae_title_is_refused(title: str) -> None:
    with pytest.raises(StepwedgeError):
        parse_peer("host:1", title, "B")
