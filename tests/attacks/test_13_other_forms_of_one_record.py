"""Attack 13: a record that reads one way here and another way there: the same key twice, NaN, -0, another Unicode form.

An insider signs such records with the real key. There is one form of each record, and the verifier takes no other.
"""

import json
import unicodedata
from collections.abc import Callable

from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from tests.attacks import insider
from tests.attacks.calling import code_of
from tests.attacks.scene import ALTERED, Place, Scene
from tests.unit.audit.making import Producer

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "a member twice": lambda leaf: b'{"outcome":"MAJOR_FAILURE",' + leaf[1:],
    "a member twice, nested": lambda leaf: leaf.replace(b'"event":{', b'"event":{"channel":"GRPC",', 1),
    "NaN": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":NaN', 1),
    "infinity": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":-Infinity', 1),
    "minus zero": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":-0', 1),
    "a float that is whole": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":1.0', 1),
    "an exponent": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":1e3', 1),
    "a space": lambda leaf: leaf.replace(b'":', b'": ', 1),
    "a line break behind it": lambda leaf: leaf + b"\n",
    "members in another order": lambda leaf: json.dumps(
        dict(reversed(json.loads(leaf).items())), separators=(",", ":")
    ).encode(),
    "an escaped letter": lambda leaf: leaf.replace(b'"producer":"ingest"', b'"producer":"\\u0069ngest"', 1),
    "an escaped slash": lambda leaf: leaf.replace(b"received/", b"received\\/", 1),
    "a byte order mark": lambda leaf: b"\xef\xbb\xbf" + leaf,
    "UTF-16": lambda leaf: leaf.decode().encode("utf-16"),
    "an overlong byte": lambda leaf: leaf.replace(b"ingest", b"\xc1\xa9ngest", 1),
    "a lone surrogate": lambda leaf: leaf.replace(b'"producer":"ingest"', b'"producer":"\\ud800"', 1),
    "a number too large": lambda leaf: leaf.replace(b'"conflict":false', b'"conflict":' + b"9" * 5000, 1),
}


def test_13_a_record_in_any_other_form_is_altered_though_the_real_key_signed_it(scene: Scene, copy: Place) -> None:
    records = insider.leaves_of(copy)
    bent = dict(zip(range(20, 20 + 2 * len(FORMS), 2), FORMS.values(), strict=True))
    for index, bend in bent.items():
        assert bend(records[index]) != records[index], index
        records[index] = bend(records[index])
    place_by_place(copy, records, bent)
    insider.rebuild_tree(copy, records)
    insider.sign_anew(copy, records, copy.signer)
    told = scene.judge(copy.export())
    assert told.code == ALTERED
    assert told.indexes == list(bent)


def place_by_place(place: Place, records: list[bytes], which: dict[int, Callable[[bytes], bytes]]) -> None:
    for index in which:
        place.sql('UPDATE entries SET leaf = :leaf WHERE "index" = :place', leaf=records[index], place=index)


UNICODE = {
    "composed": "caf\u00e9",
    "decomposed": unicodedata.normalize("NFD", "caf\u00e9"),
    "right to left": "abc\u202etxt",
    "of no width": "in\u200bgest",
    "a look-alike": "\u0456ngest",  # a Cyrillic i
    "full-width digits": "\uff11\uff12",
    "a null": "a\x00b",
}


def test_13_text_that_has_more_than_one_form_does_not_come_into_a_record(scene: Scene, copy: Place) -> None:
    with scene.town.serving(copy) as service:
        stub = service.stub(Identity.INGEST)
        for text in UNICODE.values():
            for field in ("idempotency_key", "study", "trace_id"):
                made = Producer().received(90_000)
                setattr(made, field, text)
                request = audit_pb2.AppendRequest(records=[made])
                assert code_of(lambda request=request: stub.Append(request, timeout=20)) == "INVALID_REQUEST"
