"""Stand-alone proofs and the rotation of the signing key, over gRPC and by the command, verified apart."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shared import keys
from shared.errors import ErrorCode
from shared.identity import Identity
from shared.pki import Credentials
from shared.settings import Audit, Cluster, Settings
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import Producer
from tests.wire.test_audit import Running, append, code_of, export, start
from verifier import verify


@pytest.fixture
def settings_here(tmp_path: Path, pki_folder: Path) -> Settings:
    return Settings(
        cluster=Cluster(data=tmp_path, pki=pki_folder),
        audit=Audit(listen="127.0.0.1:0", metrics="", database=f"sqlite:///{tmp_path / 'audit.db'}"),
    )


@pytest.fixture
async def running(
    settings_here: Settings, credentials: Callable[[Identity], Credentials]
) -> AsyncIterator[tuple[Running, Settings]]:
    made, stop = await start(settings_here, credentials)
    yield made, settings_here
    await stop()  # type: ignore[misc]


def by_the_verifier(*words: str) -> int:
    command = [sys.executable, "-I", "-S", verify.__file__, *words]
    return subprocess.run(command, capture_output=True, check=False).returncode


async def test_a_proof_is_handed_out_and_verified_apart_also_across_a_rotation(
    running: tuple[Running, Settings], tmp_path: Path
) -> None:
    audit, settings = running
    ingest = Producer()
    await append(audit, ingest, ingest.received(1), ingest.received(2))
    auditor, operator = audit(Identity.AUDITOR), audit(Identity.OPERATOR)
    before = await auditor.GetProof(audit_pb2.GetProofRequest(index=1), timeout=20)
    (tmp_path / "before.tlog-proof").write_text(before.proof)
    assert by_the_verifier("proof", str(tmp_path / "before.tlog-proof"), "--key", audit.vkey) == verify.PROVED

    done = await operator.RotateKey(audit_pb2.RotateKeyRequest(), timeout=60)
    assert (done.old_key, done.new_key != done.old_key) == (audit.vkey, True)
    await append(audit, ingest, ingest.received(3))
    after = await auditor.GetProof(audit_pb2.GetProofRequest(index=0), timeout=20)
    for name, text in (("after", after.proof), ("rotation", done.proof)):
        (tmp_path / f"{name}.tlog-proof").write_text(text)
    after_file, rotation = str(tmp_path / "after.tlog-proof"), str(tmp_path / "rotation.tlog-proof")
    assert by_the_verifier("proof", after_file, "--key", audit.vkey) == verify.BAD_SIGNATURE
    assert by_the_verifier("proof", after_file, "--key", audit.vkey, "--rotation", rotation) == verify.PROVED
    assert by_the_verifier("proof", after_file, "--key", done.new_key) == verify.PROVED
    # The file of the public keys holds both now, and the first of them alone leads to the second.
    known = settings.cluster.keys / keys.VERIFICATION
    assert known.read_text().split() == [done.old_key, done.new_key]
    (tmp_path / "log.zip").write_bytes(await export(audit))
    for key in (audit.vkey, done.new_key, str(known)):
        assert by_the_verifier(str(tmp_path / "log.zip"), "--key", key) == verify.PROVED


@pytest.mark.parametrize("who", [Identity.AUDITOR, Identity.INGEST, Identity.CONSOLE, Identity.PACS])
async def test_only_an_operator_rotates_the_key(who: Identity, running: tuple[Running, Settings]) -> None:
    audit, settings = running
    refused = audit(who).RotateKey(audit_pb2.RotateKeyRequest(), timeout=20)
    assert await code_of(refused) == ErrorCode.ERROR_CODE_PERMISSION_DENIED
    assert (settings.cluster.keys / keys.VERIFICATION).read_text().split() == [audit.vkey]


async def test_records_are_taken_while_the_key_is_changed(running: tuple[Running, Settings], tmp_path: Path) -> None:
    audit, _ = running

    async def busy(number: int) -> None:
        producer = Producer()
        for step in range(20):
            await append(audit, producer, producer.received(1000 * number + step))

    first = Producer()
    await append(audit, first, first.received(1))  # so that no connection is still to be made
    tasks = [asyncio.create_task(busy(number)) for number in range(1, 5)]
    changes = [
        (await audit(Identity.OPERATOR).RotateKey(audit_pb2.RotateKeyRequest(), timeout=60)).from_size for _ in range(3)
    ]
    await asyncio.gather(*tasks)
    (tmp_path / "log.zip").write_bytes(await export(audit))
    report = verify.verify(str(tmp_path / "log.zip"), key=audit.vkey)
    assert (report.code, [one["from_size"] for one in report.rotations]) == (verify.PROVED, changes), report.problems
    assert report.kinds["RECEIVED"] == 81


async def test_a_proof_of_what_is_not_there_is_refused_with_its_code(running: tuple[Running, Settings]) -> None:
    audit, _ = running
    ingest = Producer()
    await append(audit, ingest, ingest.received(1))
    for request, code in (
        (audit_pb2.GetProofRequest(index=10**6), ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND),
        (audit_pb2.GetProofRequest(index=2**64 - 1), ErrorCode.ERROR_CODE_ENTRY_NOT_FOUND),
        (audit_pb2.GetProofRequest(index=0, size=10**6), ErrorCode.ERROR_CODE_INVALID_REQUEST),
    ):
        assert await code_of(audit(Identity.AUDITOR).GetProof(request, timeout=20)) == code


async def test_the_command_writes_proofs_and_rotates(
    running: tuple[Running, Settings], pki_folder: Path, tmp_path: Path
) -> None:
    audit, _ = running
    ingest = Producer()
    await append(audit, ingest, ingest.received(1))
    config = tmp_path / "cluster.toml"
    config.write_text(
        f'[cluster]\ndata = "{tmp_path}"\npki = "{pki_folder}"\n'
        f'[audit]\nlisten = "{audit.server.address}"\naddress = "{audit.server.address}"\n'
    )

    async def command(*words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", *words, "--config", str(config),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    file = tmp_path / "first.tlog-proof"
    status, said = await command("log", "proof", "--index", "0", "-o", str(file))
    assert status == 0, said
    assert by_the_verifier("proof", str(file), "--key", audit.vkey) == verify.PROVED
    assert (await command("log", "proof", "--index", "0", "-o", str(file)))[0] == 66
    assert (await command("log", "proof", "--index", "9999", "-o", str(tmp_path / "x")))[0] == 67
    status, said = await command("log", "rotate-key", "-o", str(tmp_path), "--json")
    assert status == 0, said
    told = json.loads(said.splitlines()[-1])
    assert told["old_key"] == audit.vkey
    status, said = await command("log", "proof", "--index", "0", "-o", str(file), "--force")
    assert status == 0, said
    words = ("proof", str(file), "--key", audit.vkey, "--rotation", told["file"])
    assert by_the_verifier(*words) == verify.PROVED
