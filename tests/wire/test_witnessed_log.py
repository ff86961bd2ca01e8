"""The log with its witnesses, all of them real processes or servers; and the attacks that only a witness can catch."""

import asyncio
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.audit.__main__ import write_export
from services.audit.witnesses import Away, Client, Refused, Witnesses
from shared import keys
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.paths import ROOT
from shared.pki import Credentials
from shared.settings import Audit, Settings, WitnessOfLog
from shared.transparency.cosignature import Cosigner, WitnessKey, cosigners
from shared.transparency.note import Checkpoint, Note
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import KEY, Producer, close, fill, open_log
from tests.unit.witness.making import WITNESS_KEY
from tests.wire.test_audit import Running, append, export, start
from tests.wire.witness_house import House, running
from verifier import verify

ORIGIN = "stepwedge/audit"


@pytest.fixture
def settings(make_settings: Callable[[str], Settings], tmp_path: Path) -> Settings:
    made = make_settings("")
    made.audit.database = f"sqlite:///{tmp_path / 'audit.db'}"
    made.audit.witness_interval_seconds = 0.05
    made.audit.witness_timeout_seconds = 1.0
    keys.create(made.cluster.keys, origin=ORIGIN, development=True)
    return made


@pytest.fixture
def house(settings: Settings, tmp_path: Path) -> Iterator[House]:
    """A witness that runs, and that the settings name."""
    with running(House(tmp_path / "one", "witness.example/one", [vkey(settings)])) as made:
        settings.audit.witnesses = [WitnessOfLog(url=made.url, vkey=made.vkey)]
        settings.audit.quorum = 1
        yield made


def vkey(settings: Settings) -> str:
    return (settings.cluster.keys / keys.VERIFICATION).read_text().strip()


Minted = Callable[[Identity], Credentials]


@asynccontextmanager
async def served(settings: Settings, credentials: Minted) -> AsyncIterator[Running]:
    log, stop = await start(settings, credentials)
    try:
        yield log
    finally:
        await stop()


async def newest(log: Running) -> audit_pb2.GetCheckpointResponse:
    answer: audit_pb2.GetCheckpointResponse = await log(Identity.AUDITOR).GetCheckpoint(
        audit_pb2.GetCheckpointRequest(), timeout=10
    )
    return answer


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)
    return found


async def cosigned(log: Running, size: int) -> Note:
    """The newest cosigned checkpoint, once it covers `size` entries."""

    async def there() -> Note | None:
        text = (await newest(log)).cosigned_checkpoint
        note = Note.parse(text.encode()) if text else None
        return note if note is not None and Checkpoint.parse(note.text).size >= size else None

    note: Note = await until(there)
    return note


async def alerts(log: Running, code: int) -> list[audit_pb2.AlertEvent]:
    request = audit_pb2.QueryEntriesRequest(kind=audit_pb2.RECORD_KIND_ALERT)
    page = await log(Identity.AUDITOR).QueryEntries(request, timeout=10)
    return [entry.record.alert for entry in page.entries if entry.record.alert.code == code]


def proved(archive: Path, settings: Settings, *witnesses: str, **given: Any) -> int:
    return verify.verify(str(archive), key=vkey(settings), witnesses=list(witnesses), **given).code


async def exported(log: Running, file: Path) -> Path:
    file.write_bytes(await export(log))
    return file


# An honest log.


async def test_a_quorum_of_two_cosigns_and_the_export_is_proved_with_both(
    settings: Settings, credentials: Minted, tmp_path: Path
) -> None:
    names = ("one", "two")
    houses = [House(tmp_path / name, f"witness.example/{name}", [vkey(settings)]) for name in names]
    with running(houses[0]), running(houses[1]):
        settings.audit.witnesses = [WitnessOfLog(url=house.url, vkey=house.vkey) for house in houses]
        settings.audit.quorum = 2
        both = [WitnessKey.parse(house.vkey) for house in houses]
        async with served(settings, credentials) as log:
            producer = Producer()
            for number in range(6):
                await append(log, producer, producer.received(number))
            assert len(cosigners(await cosigned(log, 6), both)) == 2
            await append(log, producer, *(producer.received(number) for number in range(6, 200)))
            archive = await exported(log, tmp_path / "export.zip")
            report = verify.verify(str(archive), key=log.vkey, witnesses=[house.vkey for house in houses])
            assert (report.code, report.size, report.cosigned_size) == (verify.PROVED, 200, 200)
            assert not await alerts(log, audit_pb2.ALERT_CODE_WITNESS_REFUSED)
        for house in houses:
            assert house.stop() == 0
    # Nobody runs any more: what was kept is enough.
    # With the records of the export and of the query for alerts.
    assert write_export(settings.audit.database, tmp_path / "offline.zip") == 202
    assert proved(tmp_path / "offline.zip", settings, *(house.vkey for house in houses)) == verify.PROVED


async def test_the_end_of_the_log_is_cosigned_when_it_drains(
    settings: Settings, credentials: Minted, house: House, tmp_path: Path, database_url: str
) -> None:
    settings.audit.database = database_url
    settings.audit.witness_interval_seconds = 3600.0
    async with served(settings, credentials) as log:
        producer = Producer()
        await append(log, producer, *(producer.received(number) for number in range(9)))
        assert (await newest(log)).cosigned_checkpoint == ""
    assert write_export(settings.audit.database, tmp_path / "export.zip") == 9
    assert proved(tmp_path / "export.zip", settings, house.vkey) == verify.PROVED


async def test_without_witnesses_the_log_goes_on_says_so_once_and_is_cosigned_when_they_are_back(
    settings: Settings, credentials: Minted, house: House, tmp_path: Path
) -> None:
    settings.audit.quorum_alert_seconds = 0.3
    async with served(settings, credentials) as log:
        producer = Producer()
        await append(log, producer, *(producer.received(number) for number in range(5)))
        await cosigned(log, 5)
        house.stop()
        began = time.monotonic()
        for number in range(5, 25):
            await append(log, producer, producer.received(number))
        assert time.monotonic() - began < 5, "appends waited for a witness"
        await until(lambda: alerts(log, audit_pb2.ALERT_CODE_QUORUM_MISSED))
        await append(log, producer, producer.received(25))
        report = verify.verify(str(await exported(log, tmp_path / "away.zip")), key=log.vkey, witnesses=[house.vkey])
        assert (report.code, report.cosigned_size) == (verify.MISSING_WITNESS, 5)
        assert report.size >= 27
        assert proved(tmp_path / "away.zip", settings) == verify.PROVED
        assert len(await alerts(log, audit_pb2.ALERT_CODE_QUORUM_MISSED)) == 1
        house.start()
        await cosigned(log, 27)
        assert proved(await exported(log, tmp_path / "back.zip"), settings, house.vkey) == verify.PROVED


async def test_a_witness_that_never_answers_holds_up_neither_appends_nor_the_other_witness(
    settings: Settings, credentials: Minted, house: House
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_key = str(Cosigner("witness.example/silent", WITNESS_KEY).key)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings.audit.witnesses = [WitnessOfLog(url=url, vkey=silent_key), *settings.audit.witnesses]
        async with served(settings, credentials) as log:
            producer = Producer()
            began = time.monotonic()
            for number in range(20):
                await append(log, producer, producer.received(number))
            assert time.monotonic() - began < 5
            await cosigned(log, 20)


async def test_over_tls_the_log_asks_only_who_shows_a_certificate_that_it_trusts(
    settings: Settings, credentials: Minted, tmp_path: Path
) -> None:
    own = credentials(Identity.AUDIT)
    files = ("--certificate", str(own.certificate), "--certificate-key", str(own.key))
    with running(House(tmp_path / "one", "witness.example/one", [vkey(settings)], *files)) as house:
        url = f"https://localhost:{house.address.rpartition(':')[2]}"
        settings.audit.witnesses = [WitnessOfLog(url=url, vkey=house.vkey)]
        settings.audit.quorum = 1
        async with served(settings, credentials) as log:
            producer = Producer()
            await append(log, producer, *(producer.received(number) for number in range(3)))
            await exported(log, tmp_path / "export.zip")
            assert (await newest(log)).cosigned_checkpoint == "", "a certificate of an unknown CA was trusted"
        assert proved(tmp_path / "export.zip", settings, house.vkey) == verify.MISSING_WITNESS
        settings.audit.witnesses = [WitnessOfLog(url=url, vkey=house.vkey, ca=str(own.ca))]
        async with served(settings, credentials) as log:
            await cosigned(log, 3)
            archive = await exported(log, tmp_path / "export.zip")
        assert proved(archive, settings, house.vkey) == verify.PROVED
        command = ["verify", "--export", str(archive), "--key", vkey(settings), "--witness", house.vkey]
        stranger = str(Cosigner("witness.example/stranger", WITNESS_KEY).key)
        for more, status in (([], 0), (["--witness", stranger], 7), (["--witness", stranger, "--quorum", "1"], 0)):
            said = subprocess.run(
                [sys.executable, "-m", "cli", *command, *more], cwd=ROOT, capture_output=True, timeout=60, check=False
            )
            assert said.returncode == status, said.stderr


# The log changes its key, and the witness runs on.


async def rotate(log: Running) -> audit_pb2.RotateKeyResponse:
    done: audit_pb2.RotateKeyResponse = await log(Identity.OPERATOR).RotateKey(audit_pb2.RotateKeyRequest(), timeout=30)
    return done


async def test_a_witness_learns_of_each_new_key_from_the_log_and_keeps_it(
    settings: Settings, credentials: Minted, house: House, tmp_path: Path
) -> None:
    first = vkey(settings)
    async with served(settings, credentials) as log:
        producer = Producer()
        await append(log, producer, producer.received(0))
        await cosigned(log, 1)
        changes = []
        for number in range(1, 4):
            changes.append((await rotate(log)).from_size)
            # At once, so that the checkpoint of both keys is no more the newest when the witness is asked.
            await append(log, producer, *(producer.received(20 * number + place) for place in range(5)))
            await cosigned(log, changes[-1] + 5)
        archive = await exported(log, tmp_path / "export.zip")
        report = verify.verify(str(archive), key=first, witnesses=[house.vkey])
        assert (report.code, [one["from_size"] for one in report.rotations]) == (verify.PROVED, changes)
        # Started again with the first key alone, it still knows them.
        assert house.stop() == 0
        house.start()
        await append(log, producer, producer.received(100))
        await cosigned(log, report.size + 1)
        assert not await alerts(log, audit_pb2.ALERT_CODE_WITNESS_REFUSED)


async def test_a_witness_that_was_away_while_the_key_changed_twice_catches_up(
    settings: Settings, credentials: Minted, house: House
) -> None:
    async with served(settings, credentials) as log:
        producer = Producer()
        await append(log, producer, producer.received(0))
        await cosigned(log, 1)
        house.stop()
        for number in range(1, 3):
            await rotate(log)
            await append(log, producer, producer.received(number))
        house.start()
        await cosigned(log, 5)


async def test_a_witness_without_our_extension_is_away_until_its_operator_names_the_key(
    settings: Settings, credentials: Minted, tmp_path: Path
) -> None:
    asked: list[bytes] = []

    def other_make(body: bytes) -> tuple[int, bytes]:
        asked.append(body)
        return 403, b"unknown key\n"

    with answering(other_make) as url:
        settings.audit.witnesses = [WitnessOfLog(url=url, vkey=str(LIAR.key))]
        settings.audit.quorum = 1
        async with served(settings, credentials) as log:
            await append(log, Producer(), Producer().received(0))
            await rotate(log)
            await append(log, Producer(), Producer().received(1))
            assert (await newest(log)).cosigned_checkpoint == ""
            assert not await alerts(log, audit_pb2.ALERT_CODE_WITNESS_REFUSED)
    assert asked


# A witness that lies.


@contextmanager
def answering(make: Callable[[bytes], tuple[int, bytes]]) -> Iterator[str]:
    """A server that answers whatever `make` makes of the request; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = make(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 409:
                self.send_header("Content-Type", "text/plain" if b"root" in body else "text/x.tlog.size")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


LIAR = Cosigner("witness.example/liar", WITNESS_KEY)


def text_of(body: bytes) -> str:
    return body.decode().partition("\n\n")[2].rpartition("\n\n")[0] + "\n"


LIES: dict[str, Callable[[bytes], tuple[int, bytes]]] = {
    "a signature of something else": lambda body: (200, LIAR.cosign("x\n", 5).line.encode()),
    "another's signature": lambda body: (
        200,
        Cosigner("w.example", WITNESS_KEY).cosign(text_of(body), 5).line.encode(),
    ),
    "no signature": lambda body: (200, b""),
    "no line": lambda body: (200, b"\xff\xfe"),
    "a flood": lambda body: (200, b"x" * 1_000_000),
    "a conflict without a size": lambda body: (409, b"\n"),
    "a conflict with words": lambda body: (409, b"12 and a half\n"),
    "a conflict again and again": lambda body: (409, b"1\n"),
    "a redirection": lambda body: (302, b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_witness_says_wrongly_does_not_count(lie: str, tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    try:
        fill(log, 3)
        head = log.head
        assert head is not None
        with answering(LIES[lie]) as url:
            client = Client(url, LIAR.key)
            with pytest.raises(Away):
                client.ask(head, lambda size: [])
            client.close()
        with answering(lambda body: (200, LIAR.cosign(text_of(body), 5).line.encode())) as url:
            client = Client(url, LIAR.key)
            assert LIAR.key.time_of(Note.parse(head.note.encode()).text, client.ask(head, lambda size: [])) == 5
            client.close()
    finally:
        close(log)


def test_a_conflict_that_is_not_of_sizes_is_another_history(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    try:
        fill(log, 3)
        assert log.head is not None
        with answering(lambda body: (409, b"another root\n")) as url:
            client = Client(url, LIAR.key)
            with pytest.raises(Refused):
                client.ask(log.head, lambda size: [])
            client.close()
    finally:
        close(log)


def test_a_witness_with_the_key_of_the_log_is_refused(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    try:
        same = Client("http://127.0.0.1:1", Cosigner("w.example", KEY).key)
        with pytest.raises(StepwedgeError) as refused:
            Witnesses(log, [same], Audit(listen="127.0.0.1:0"))
        assert refused.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    finally:
        close(log)


def test_one_witness_under_two_names_does_not_make_a_quorum_of_two(tmp_path: Path) -> None:
    alias = Cosigner("witness.example/alias", WITNESS_KEY)
    with pytest.raises(ValueError, match="two witnesses have one key"):
        Audit(
            witnesses=[WitnessOfLog(url="http://a", vkey=str(one.key)) for one in (LIAR, alias)],
            quorum=2,
        )
    with pytest.raises(ValueError, match="more than there are"):
        Audit(witnesses=[WitnessOfLog(url="http://a", vkey=str(LIAR.key))], quorum=2)
    log = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)

    def answers(cosigner: Cosigner) -> Callable[[bytes], tuple[int, bytes]]:
        return lambda body: (200, cosigner.cosign(text_of(body), 5).line.encode())

    try:
        fill(log, 3)
        with answering(answers(LIAR)) as one, answering(answers(alias)) as two:
            lenient = Audit(witness_interval_seconds=0.05, witness_timeout_seconds=1.0)
            for quorum, reached in ((2, False), (1, True)):
                lenient.quorum = quorum
                asking = Witnesses(log, [Client(one, LIAR.key), Client(two, alias.key)], lenient)
                asking.start()
                assert asking.wait_for(3) is reached
                asking.close()
    finally:
        close(log)


# The attacks: with the real key and every right on the log's files.


def forge(settings: Settings, folder: Path, count: int, first: int = 50_000) -> str:
    """Another history of the log, signed with the real key; the URL of its database."""
    folder.mkdir()
    url = f"sqlite:///{folder / 'audit.db'}"
    log = open_log(url, folder, key=keys.signing_key(settings.cluster.keys), origin=ORIGIN)
    fill(log, count, first=first)
    close(log)
    return url


async def honest(settings: Settings, credentials: Minted, count: int) -> None:
    """A log of `count` records, the last of them under a cosignature."""
    async with served(settings, credentials) as log:
        producer = Producer()
        for start_at in range(0, count, 100):
            batch = range(start_at, min(count, start_at + 100))
            await append(log, producer, *(producer.received(number) for number in batch))
        await cosigned(log, count)


@pytest.mark.parametrize("count", [12, 40, 70])
async def test_attack_2_a_log_written_anew_and_signed_with_the_real_key_is_refused_by_the_witness(
    count: int, settings: Settings, credentials: Minted, house: House, tmp_path: Path
) -> None:
    await honest(settings, credentials, 40)
    write_export(settings.audit.database, tmp_path / "before.zip")
    assert proved(tmp_path / "before.zip", settings, house.vkey) == verify.PROVED
    settings.audit.database = forge(settings, tmp_path / "forged", count)
    settings.audit.high_water.unlink()
    async with served(settings, credentials) as log:  # the insider's log starts, and takes records
        producer = Producer()
        await append(log, producer, producer.received(1))
        refusals = await until(lambda: alerts(log, audit_pb2.ALERT_CODE_WITNESS_REFUSED))
        assert refusals[0].about == f"witness-{WitnessKey.parse(house.vkey).id.hex()}"
        archive = await exported(log, tmp_path / "forged.zip")
        assert (await newest(log)).cosigned_checkpoint == ""
    assert proved(archive, settings) == verify.PROVED, "without a witness nobody can tell"
    assert proved(archive, settings, house.vkey) == verify.MISSING_WITNESS
    assert proved(archive, settings, older=str(tmp_path / "before.zip")) in (verify.FORKED, verify.TRUNCATED)
    if count >= 40:
        assert list((house.folder / "state.evidence").iterdir()), "the forgery was signed: it is its own proof"


async def test_attack_4_of_two_histories_the_witness_cosigns_one(
    settings: Settings, credentials: Minted, house: House, tmp_path: Path
) -> None:
    await honest(settings, credentials, 20)
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "audit.db").read_bytes())
    for suffix in ("-wal", "-shm"):
        beside = tmp_path / f"audit.db{suffix}"
        if beside.exists():
            (tmp_path / f"copy.db{suffix}").write_bytes(beside.read_bytes())
    results = {}
    for name, first in (("audit", 1000), ("copy", 2000)):
        settings.audit.database = f"sqlite:///{tmp_path / name}.db"
        settings.audit.high_water = tmp_path / f"{name}.mark"
        async with served(settings, credentials) as log:
            producer = Producer()
            await append(log, producer, *(producer.received(first + number) for number in range(10)))
            archive = await exported(log, tmp_path / f"{name}.zip")
            assert proved(archive, settings) == verify.PROVED, "each of the two is whole in itself"
            results[name] = proved(archive, settings, house.vkey)
            refused = bool(await alerts(log, audit_pb2.ALERT_CODE_WITNESS_REFUSED))
            assert refused is (name == "copy")
    assert results == {"audit": verify.PROVED, "copy": verify.MISSING_WITNESS}


async def test_attack_5_a_backup_of_yesterday_is_noticed_by_the_witness(
    settings: Settings, credentials: Minted, house: House, tmp_path: Path
) -> None:
    await honest(settings, credentials, 20)
    yesterday = {path: path.read_bytes() for path in tmp_path.glob("audit.db*") if path.is_file()}
    mark = settings.audit.high_water.read_bytes()
    async with served(settings, credentials) as log:
        producer = Producer()
        await append(log, producer, *(producer.received(1000 + number) for number in range(30)))
        await cosigned(log, 50)
    write_export(settings.audit.database, tmp_path / "today.zip")
    for path in tmp_path.glob("audit.db*"):
        path.unlink()
    for path, content in yesterday.items():
        path.write_bytes(content)
    with pytest.raises(StepwedgeError, match="once had 50"):  # the high-water mark alone
        await start(settings, credentials)
    settings.audit.high_water.write_bytes(mark)  # the insider puts that back, too
    async with served(settings, credentials) as log:
        producer = Producer()
        await append(log, producer, *(producer.received(2000 + number) for number in range(3)))
        await until(lambda: alerts(log, audit_pb2.ALERT_CODE_WITNESS_REFUSED))
        archive = await exported(log, tmp_path / "restored.zip")
        assert proved(archive, settings) == verify.PROVED
        report = verify.verify(str(archive), key=log.vkey, witnesses=[house.vkey])
        # Yesterday's own cosignature covers what yesterday had, and the verifier says how far.
        assert (report.code, report.cosigned_size) == (verify.MISSING_WITNESS, 20)
        assert proved(archive, settings, older=str(tmp_path / "today.zip")) in (verify.FORKED, verify.TRUNCATED)
        await append(log, producer, *(producer.received(3000 + number) for number in range(40)))
        assert proved(await exported(log, tmp_path / "longer.zip"), settings, house.vkey) == verify.MISSING_WITNESS
