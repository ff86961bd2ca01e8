"""The DICOM door, with real associations from a real peer: what is stored, what is answered, what is left behind."""

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from services.ingest.door import data_set_offset
from services.ingest.wrapping import file_meta
from tests.shared_material import SHARED, needs_shared
from tests.wire.cluster import eventually
from tests.wire.ingest_house import DX, House, Sender, data_set, dx, house, part10
from tests.wire.ports import port

SETTINGS = """
max_object_bytes = 4000000
max_associations = 8
calling_ae_titles = ["MODALITY", "BAD-SCU"]
"""
EXPLICIT = str(ExplicitVRLittleEndian)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file."""

    with house(tmp_path_factory.mktemp("dimse"), port, SETTINGS) as made:
        for said in (b"", b"\x01\x00\x00"):
            connection = socket.create_connection(made.dimse, timeout=30)
            connection.sendall(said)
            _SILENT.append((connection, time.monotonic()))
        yield made


# Opened first and looked at last, so that no test waits for them: one says nothing, one half of a PDU's header.
_SILENT: list[tuple[socket.socket, float]] = []


def sender(at_home: House, *contexts: tuple[str, str]) -> Sender:
    return Sender(at_home.dimse, contexts or [(DX, EXPLICIT)])


def test_echo_succeeds_when_an_object_would_be_accepted(at_home: House):
    with sender(at_home, ("1.2.840.10008.1.1", str(ImplicitVRLittleEndian))) as one:
        assert one.association.send_c_echo().Status == 0x0000


def test_an_object_is_kept_byte_for_byte_and_recorded_before_success_is_said(at_home: House):
    ds = dx()
    with sender(at_home) as one:
        assert one.store(ds).Status == 0x0000
        # At this moment, and not at some later one, everything is there.
        expected = file_meta(DX, ds.SOPInstanceUID, EXPLICIT) + data_set(ds)
        digest = sha256(expected).hexdigest()
        assert at_home.stored()[digest] == expected
        study = at_home.study(ds.StudyInstanceUID)
        assert study is not None
        (instance,) = study.instances
        assert (instance.sha256, instance.size_bytes) == (digest, len(expected))
        records = [record for record in at_home.entries(instance=instance.pseudonym) if record.HasField("received")]
        assert [(r.received.channel, r.received.sop_class_uid, r.received.size_bytes) for r in records] == [
            ("DIMSE", DX, len(expected))
        ]
        assert records[0].pins.input_commitment


def test_the_same_object_again_is_the_same_success_without_a_second_record(at_home: House):
    ds = dx()
    with sender(at_home) as one:
        assert [one.store(ds).Status for _ in range(3)] == [0, 0, 0]
    study = at_home.study(ds.StudyInstanceUID)
    assert study is not None
    assert len(study.instances) == 1
    assert (
        len([key for key in at_home.record_keys() if key.startswith(f"received/{study.instances[0].pseudonym}")]) == 1
    )


def test_the_same_uid_with_other_content_is_kept_beside_the_first_and_both_are_flagged(at_home: House):
    first = dx(seed=1)
    second = dx(study=first.StudyInstanceUID, series=first.SeriesInstanceUID, instance=first.SOPInstanceUID, seed=2)
    with sender(at_home) as one:
        assert [one.store(first).Status, one.store(second).Status] == [0, 0]
    study = at_home.in_state(first.StudyInstanceUID, "DONE", revision=1)
    assert [instance.conflict for instance in study.instances] == [True, True]
    assert len({instance.sha256 for instance in study.instances} & set(at_home.stored())) == 2
    decision = study.decisions[-1]
    assert decision.verdict == 2, "REVIEW"
    assert 15 in decision.reasons, "INSTANCE_CONFLICT"


def broken(name: str) -> tuple[bytes, str, str]:
    """Content, announced SOP class and announced SOP instance of a bad object."""
    ds = dx()
    whole, uid = data_set(ds), str(ds.SOPInstanceUID)
    if name == "a lying SOP instance":
        return whole, DX, generate_uid(None)
    if name == "a lying modality":
        ds.Modality = "MR"
        return data_set(ds), DX, uid
    if name == "a lying SOP class in the data set":
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        return data_set(ds), DX, uid
    if name == "a document in an image":
        del ds.PixelData
        ds.EncapsulatedDocument = b"%PDF"
        return data_set(ds), DX, uid
    if name == "not DICOM":
        return b"\x89PNG\r\n" * 100, DX, uid
    if name == "nothing at all":
        return b"\0\0", DX, uid
    if name == "a wrong length":
        at = whole.index(b"\x10\x00\x20\x00LO") + 6
        return whole[:at] + b"\xff\xff" + whole[at + 2 :], DX, uid
    if name == "two gigabytes claimed":
        at = whole.index(b"\xe0\x7f\x10\x00") + 8
        return whole[:at] + struct.pack("<I", 0x7FFFFFFF) + whole[at + 4 :], DX, uid
    if name == "a UID with path characters":
        ds.SOPInstanceUID = "../../etc/passwd"
        return data_set(ds), DX, "../../etc/passwd"
    if name == "a study without a UID":
        del ds.StudyInstanceUID
        return data_set(ds), DX, uid
    if name == "a UID too long to be one":
        return whole, DX, "1." + "2" * 80
    if name == "an object over the limit":
        ds.PixelData = bytes(4_100_000)
        return data_set(ds), DX, uid
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "status", "comment"),
    [
        ("a lying SOP instance", 0xA900, "SOP_CLASS_MISMATCH"),
        ("a lying SOP class in the data set", 0xA900, "SOP_CLASS_MISMATCH"),
        ("a lying modality", 0xA900, "SOP_CLASS_MISMATCH"),
        ("a document in an image", 0xA900, "SOP_CLASS_MISMATCH"),
        ("not DICOM", 0xC000, "MALFORMED_DICOM"),
        ("nothing at all", 0xC000, "MALFORMED_DICOM"),
        ("a wrong length", 0xC000, "MALFORMED_DICOM"),
        ("two gigabytes claimed", 0xC000, "MALFORMED_DICOM"),
        ("a UID with path characters", 0x0117, "INVALID_UID"),
        ("a study without a UID", 0x0117, "INVALID_UID"),
        ("a UID too long to be one", 0x0117, "INVALID_UID"),
        ("an object over the limit", 0xC020, "OBJECT_TOO_LARGE"),
    ],
)
def test_a_bad_object_is_answered_with_its_status_and_the_association_goes_on(
    at_home: House, name: str, status: int, comment: str
):
    content, sop_class, sop_instance = broken(name)
    before = set(at_home.stored())
    with sender(at_home) as one:
        answer = one.store_bytes(content, sop_class, sop_instance)
        assert (hex(answer.Status), answer.ErrorComment) == (hex(status), comment)
        assert set(at_home.stored()) == before, "nothing of it was kept"
        assert at_home.incoming_files() == []
        assert one.store(dx()).Status == 0x0000


def test_a_data_set_truncated_at_any_byte_is_refused_or_whole(at_home: House):
    ds = dx()
    whole = data_set(ds)
    cuts = sorted({*range(0, len(whole), 61), len(whole) - 1, len(whole) - 512, len(whole) - 513})
    with sender(at_home) as one:
        for cut in cuts:
            answer = one.store_bytes(whole[:cut] or b"\0\0", DX, str(ds.SOPInstanceUID))
            # Between two elements the rest is well-formed: then what is missing says which status it is.
            assert answer.Status in (0xC000, 0xC010, 0xA900, 0x0117) or cut >= len(whole) - 524, cut


def test_an_association_aborted_in_the_middle_leaves_nothing_and_the_next_one_works(at_home: House):
    ds = dx()
    ds.PixelData = bytes(3_000_000)
    content = data_set(ds)
    before = set(at_home.stored())
    with sender(at_home) as one:
        one.association.dimse.maximum_pdu_size  # noqa: B018
        header = 16384
        request = one.association
        request._reactor_checkpoint.clear()
        one.send(content[:header], DX, str(ds.SOPInstanceUID))
        request.abort()
    with sender(at_home) as one:
        assert one.store(dx()).Status == 0
    eventually(lambda: at_home.incoming_files() == [], 10, what="no half-received file")
    assert len(set(at_home.stored()) - before) <= 2
    assert at_home.study(ds.StudyInstanceUID) is None


def raw_association(address: tuple[str, int]) -> socket.socket:
    """An association that is spoken by hand: presentation context 1, DX, explicit little endian."""
    connection = socket.create_connection(address, timeout=20)

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(content)) + content

    context = item(0x20, bytes([1, 0, 0, 0]) + item(0x30, DX.encode()) + item(0x40, EXPLICIT.encode()))
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    body = (
        struct.pack(">HH", 1, 0)
        + b"ANY-SCP".ljust(16)
        + b"BAD-SCU".ljust(16)
        + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + context
        + user
    )
    connection.sendall(struct.pack(">BBI", 1, 0, len(body)) + body)
    answer = connection.recv(65536)
    assert answer[0] == 2, "A-ASSOCIATE-AC"
    return connection


def command(sop_instance: str | None = "1.2.3", field: int = 1, class_element: int = 2, data_set: int = 0) -> bytes:
    """The command set of a request (a C-STORE's, if not said otherwise), implicit little endian; None leaves out."""

    def element(number: int, value: bytes | None) -> bytes:
        if value is None:
            return b""
        value += b"\0" * (len(value) & 1)
        return struct.pack("<HHI", 0, number, len(value)) + value

    rest = (
        element(class_element, DX.encode())
        + element(0x0100, struct.pack("<H", field))
        + element(0x0110, struct.pack("<H", 1))
        + element(0x0700, struct.pack("<H", 0))
        + element(0x0800, struct.pack("<H", data_set))
        + element(0x1000, None if sop_instance is None else sop_instance.encode())
    )
    return element(0x0000, struct.pack("<I", len(rest))) + rest


def answered(connection: socket.socket, seconds: float = 5) -> dict[int, bytes]:
    """The elements of the next response's command set, by element number."""

    def read(count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = connection.recv(count - len(found))
            assert piece, "the association ended"
            found += piece
        return found

    connection.settimeout(seconds)
    kind, _, length = struct.unpack(">BBI", read(6))
    assert kind == 4, "P-DATA-TF"
    rest, found = read(length)[6:], {}
    while rest:
        _, number, size = struct.unpack("<HHI", rest[:8])
        found[number], rest = rest[8 : 8 + size], rest[8 + size :]
    return found


def pdv(control: int, content: bytes, context: int = 1) -> bytes:
    return struct.pack(">IBB", len(content) + 2, context, control) + content


def p_data(*values: bytes) -> bytes:
    body = b"".join(values)
    return struct.pack(">BBI", 4, 0, len(body)) + body


BAD_PDUS = {
    "a PDU that claims two gigabytes": struct.pack(">BBI", 4, 0, 0x7FFFFFFF) + b"x" * 1000,
    "an unknown PDU type": struct.pack(">BBI", 0x55, 0, 4) + b"abcd",
    "a value longer than its PDU": struct.pack(">BBI", 4, 0, 6) + struct.pack(">IBB", 5000, 1, 3),
    "a value of no length": struct.pack(">BBI", 4, 0, 6) + struct.pack(">IBB", 0, 1, 3),
    "a data set before any command": p_data(pdv(2, b"data")),
    "a command that is no command": p_data(pdv(3, b"\xff" * 64)),
    "a data set in another context": p_data(pdv(3, command())) + p_data(pdv(2, b"data", context=3)),
    "a second command inside a data set": p_data(pdv(3, command()), pdv(0, b"data"), pdv(3, command())),
    "a command without end": b"".join(p_data(pdv(1, b"\0" * 8000)) for _ in range(4)),
}


@pytest.mark.parametrize("name", sorted(BAD_PDUS))
def test_a_peer_that_breaks_the_upper_layer_is_aborted_and_nobody_else_suffers(at_home: House, name: str):
    with raw_association(at_home.dimse) as bad:
        bad.sendall(BAD_PDUS[name])
        bad.settimeout(10)
        answer = bad.recv(4096)
        assert answer == b"" or answer[0] == 7, "closed, or A-ABORT first"
    with sender(at_home) as one:
        assert one.store(dx()).Status == 0
    eventually(lambda: at_home.incoming_files() == [], 10, what="no half-received file")


NO_DATA_SET = struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)
REFUSED = {
    "a C-STORE whose instance UID is empty": (command(""), 0x8001, 0x0117),
    "a C-STORE without an instance UID": (command(None), 0x8001, 0x0117),
    "a C-STORE without a class UID": (command(class_element=0x0003), 0x8001, 0xA900),
    "a C-FIND": (command(None, 0x0020), 0x8020, 0x0211),
    "a C-GET": (command(None, 0x0010), 0x8010, 0x0211),
    "an N-ACTION": (command(None, 0x0130, class_element=0x0003), 0x8130, 0x0211),
    "an N-CREATE": (command(field=0x0140), 0x8140, 0x0211),
    "an N-GET without data": (command(None, 0x0110, 0x0003, data_set=0x0101), 0x8110, 0x0211),
    "a C-ECHO to a storage class": (command(None, 0x0030, data_set=0x0101), 0x8030, 0x0122),
}
"""A request on a storage context that is not served: its command set, the response's command field, and its status."""


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_request_that_is_not_served_is_answered_at_once_and_the_association_goes_on(at_home: House, name: str):
    request, field, status = REFUSED[name]
    with raw_association(at_home.dimse) as peer:
        for _ in range(2):
            peer.sendall(p_data(pdv(3, request)))
            if NO_DATA_SET not in request:
                peer.sendall(p_data(pdv(0, b"\x08\x00" * 4000)) + p_data(pdv(2, b"\x08\x00")))
            answer = answered(peer)
            assert (answer[0x0100], answer[0x0120]) == (struct.pack("<H", field), struct.pack("<H", 1))
            assert hex(int.from_bytes(answer[0x0900], "little")) == hex(status)
    eventually(lambda: at_home.incoming_files() == [], 10, what="no half-received file")


def test_a_response_that_nobody_asked_for_ends_the_association_at_once(at_home: House):
    with raw_association(at_home.dimse) as peer:
        peer.sendall(p_data(pdv(3, command(field=0x8001, data_set=0x0101))))
        peer.settimeout(5)
        assert peer.recv(4096)[:1] in (b"", b"\x07"), "closed, or A-ABORT first"


def test_a_connection_cut_inside_a_data_set_leaves_nothing(at_home: House):
    bad = raw_association(at_home.dimse)
    bad.sendall(p_data(pdv(3, command())) + p_data(pdv(0, b"\x08\x00" * 4000)))
    eventually(lambda: len(at_home.incoming_files()) == 1, 10, what="a file being received")
    bad.close()
    eventually(lambda: at_home.incoming_files() == [], 10, what="no half-received file")


def test_more_associations_than_allowed_are_rejected_and_those_before_go_on(at_home: House):
    eventually(lambda: "stepwedge_ingest_open_associations 0.0" in metrics(at_home), 15, what="no open association")
    open_ones = [sender(at_home) for _ in range(8)]
    try:
        ninth = sender(at_home)
        assert ninth.association.is_rejected
        assert open_ones[0].store(dx()).Status == 0
    finally:
        for one in open_ones:
            one.association.release()


def metrics(at_home: House) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://{at_home.settings.ingest.metrics}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    "syntax",
    [
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless
        "1.2.840.10008.1.2.4.201",  # HTJ2K Lossless
        "1.2.840.10008.1.2.4.102",  # MPEG-4 AVC/H.264
        "1.2.840.113619.5.2",  # private
    ],
)
def test_every_transfer_syntax_and_private_classes_are_accepted(at_home: House, syntax: str):
    with sender(at_home, (DX, syntax), ("1.3.12.2.1107.5.9.1", syntax)) as one:
        assert len(one.association.accepted_contexts) == 2


def test_an_object_of_a_private_class_is_kept_and_its_record_does_not_name_the_class(at_home: House):
    ds = dx()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    with sender(at_home, ("1.3.12.2.1107.5.9.1", EXPLICIT)) as one:
        assert one.store(ds).Status == 0
    study = at_home.study(ds.StudyInstanceUID)
    assert study is not None
    (record,) = [r for r in at_home.entries(instance=study.instances[0].pseudonym) if r.HasField("received")]
    assert record.received.sop_class_uid == "private"


def real_objects() -> list[Path]:
    found = [Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm")]
    found += [Path(str(get_testdata_file(name))) for name in ("image_dfl.dcm", "MR_small_bigendian.dcm")]
    if SHARED is not None:
        names = ("693_J2KR.dcm", "liver_rle.dcm", "JPEG-LL.dcm", "nih_dx_chest.dcm", "RG1_J2KI.dcm")
        found += [SHARED / "data" / "dicom" / name for name in names]
    return found


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in real_objects()])
def test_a_real_object_of_another_maker_is_kept_as_it_was_sent(at_home: House, path: Path):
    header = dcmread(path, stop_before_pixels=True)
    sop_class, syntax = str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
    data = path.read_bytes()
    content = data[data_set_offset(data) :]
    with sender(at_home, (sop_class, syntax)) as one:
        answer = one.store_bytes(content, sop_class, str(header.SOPInstanceUID))
        assert answer.Status == 0, answer.get("ErrorComment")
    study = at_home.study(header.StudyInstanceUID)
    assert study is not None
    stored = at_home.stored()
    assert any(stored[instance.sha256].endswith(content) for instance in study.instances)


@needs_shared
def test_every_object_of_the_material_gets_a_status_and_ingest_goes_on(at_home: House):
    assert SHARED is not None
    for path in sorted((SHARED / "data" / "dicom").glob("*.dcm")):
        header = dcmread(path, stop_before_pixels=True, force=True)
        sop_class = str(header.get("SOPClassUID", DX))
        data = path.read_bytes()
        syntax = str(getattr(header.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian))
        if len(data) > 3_900_000:
            continue
        with sender(at_home, (sop_class, syntax)) as one:
            one.store_bytes(data[data_set_offset(data) :], sop_class, str(header.get("SOPInstanceUID", "1.2")))


def test_senders_side_by_side_all_get_through(at_home: House):
    from concurrent.futures import ThreadPoolExecutor

    studies = [generate_uid(None) for _ in range(4)]

    def send(study: str) -> list[int]:
        with sender(at_home) as one:
            return [one.store(dx(study=study, seed=number)).Status for number in range(10)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(send, studies)) == [[0] * 10] * 4
    for uid in studies:
        study = at_home.in_state(uid, "DONE", revision=1)
        assert len(study.instances) == 10


def test_a_peer_that_is_not_on_the_list_is_rejected(at_home: House):
    assert Sender(at_home.dimse, [(DX, EXPLICIT)], "STRANGER").association.is_rejected


def test_a_connection_that_asks_for_nothing_or_for_half_of_something_does_not_hold_its_place_for_ever(at_home: House):
    assert len(_SILENT) == 2
    while _SILENT:
        silent, since = _SILENT.pop()
        with silent:
            looked = time.monotonic()
            assert silent.recv(1) == b"", "closed by ingest"
            # On a busy machine this test's turn may come later than that; then it was closed before it was looked at.
            assert time.monotonic() - since < 20 or time.monotonic() - looked < 1


VERSION_2 = struct.pack(">BBIHH", 1, 0, 68, 2, 0) + b"STEPWEDGE".ljust(16) + b"MODALITY".ljust(16) + bytes(32)
ENDED = {
    "nothing": b"",
    "what is no PDU": b"GET / HTTP/1.1\r\n\r\n",
    "a PDU out of place": struct.pack(">BBI", 5, 0, 4) + bytes(4),
    "an abort": struct.pack(">BBI", 7, 0, 4) + bytes(4),
    "a request of another protocol version": VERSION_2,
}
"""What a connection says that never becomes an association."""


@pytest.mark.parametrize("name", sorted(ENDED))
def test_a_connection_that_is_over_holds_no_place(at_home: House, name: str):
    for _ in range(3 * 8):  # twice as many connections as associations are let in
        with socket.create_connection(at_home.dimse, timeout=10) as one:
            one.sendall(ENDED[name])
            with suppress(OSError):  # ended by a reset, which is an end as well
                one.shutdown(socket.SHUT_WR)
                while one.recv(1024):
                    pass
    with sender(at_home, (DX, EXPLICIT)) as well:
        assert well.store(dx()).Status == 0


def test_the_door_says_nothing_about_its_maker_but_its_own_name(at_home: House):
    ae = AE("MODALITY")
    ae.add_requested_context(DX)
    association = ae.associate(*at_home.dimse)
    assert association.acceptor.implementation_version_name == "STEPWEDGE"
    association.release()


def test_an_object_that_comes_by_both_doors_is_one_object(at_home: House):
    from tests.wire.ingest_house import submit

    ds = dx()
    with sender(at_home) as one:
        assert one.store(ds).Status == 0
    answer = submit(at_home.ingest(), part10(ds))
    assert (answer.duplicate, answer.conflict) == (True, False)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_a_worker_that_dies_is_replaced_and_what_it_held_can_be_sent_again(at_home: House):
    (nursery,) = children(at_home.processes["ingest"].pid)
    before = set(children(nursery))
    assert before
    ds = dx()
    with sender(at_home) as one:
        assert one.store(ds).Status == 0
        for pid in before:
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(set(children(nursery)) - before) == len(before), 30, what="as many new workers")
    with sender(at_home) as again:
        assert again.store(ds).Status == 0
        assert again.store(dx()).Status == 0
