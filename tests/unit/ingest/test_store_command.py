"""The command sets of C-STORE, held against those of pynetdicom."""

import struct
from io import BytesIO

import pytest
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from services.ingest import store_command

CT = "1.2.840.10008.5.1.4.1.1.2"


def request(**members: object) -> C_STORE:
    one = C_STORE()
    one.MessageID, one.Priority, one.AffectedSOPClassUID, one.AffectedSOPInstanceUID = 7, 0, CT, "1.2.3.45"
    one.DataSet = BytesIO(b"data")
    for name, value in members.items():
        setattr(one, name, value)
    return one


def command_of(one: C_STORE) -> bytes:
    message = C_STORE_RQ()
    message.primitive_to_message(one)
    return b"".join(
        bytes(value[1:])
        for pdata in message.encode_msg(1, 0)
        for _, value in pdata.presentation_data_value_list
        if value[0] & 1
    )


def test_what_pynetdicom_writes_is_read():
    found = store_command.read(command_of(request()))
    assert found is not None
    assert (found.message_id, found.sop_class, found.sop_instance) == (7, CT, "1.2.3.45")
    moved = request(MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=3)
    assert store_command.read(command_of(moved)) is not None


@pytest.mark.parametrize("longest_pdu", [0, 1 << 18, 40, 7])
@pytest.mark.parametrize(("status", "comment"), [(0, ""), (0xA700, "STORAGE_FULL")])
def test_what_is_answered_is_what_pynetdicom_reads(status: int, comment: str, longest_pdu: int):
    asked = store_command.read(command_of(request()))
    assert asked is not None
    values = list(store_command.values(store_command.answer(asked, status, comment), longest_pdu))
    assert all(len(store_command.pdu(1, value)) <= 6 + longest_pdu for value in values if longest_pdu)
    message = DIMSEMessage()
    for value in values:
        pdu = store_command.pdu(1, value)
        assert struct.unpack(">BxI", pdu[:6]) == (4, len(pdu) - 6)
        primitive = P_DATA()
        primitive._presentation_data_value_list = [(1, pdu[11:])]
        done = message.decode_msg(primitive)
    assert done
    assert isinstance(message, C_STORE_RSP)
    read = message.message_to_primitive()
    assert (read.Status, read.MessageIDBeingRespondedTo) == (status, 7)
    assert (read.AffectedSOPClassUID, read.AffectedSOPInstanceUID) == (CT, "1.2.3.45")
    assert (read.ErrorComment or "") == comment


def test_what_is_not_usual_is_left_to_pynetdicom():
    usual = command_of(request())
    assert store_command.read(usual) is not None
    for cut in range(1, len(usual)):
        assert store_command.read(usual[:cut]) is None
    assert store_command.read(b"") is None
    assert store_command.read(usual + usual) is None
    assert store_command.read(usual.replace(b"1.2.3.45", b"1.2.3.x5")) is None
    assert store_command.read(usual + struct.pack("<HHIH", 0, 0x1035, 2, 0)) is None
    assert store_command.read(usual + struct.pack("<HHI", 8, 0x1035, 0)) is None
    no_data_set = usual.replace(struct.pack("<HHIH", 0, 0x0800, 2, 1), struct.pack("<HHIH", 0, 0x0800, 2, 0x0101))
    assert store_command.read(no_data_set) is None
