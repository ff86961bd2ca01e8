"""Run a witness, or make the key and the empty state of one.

`python -m services.witness --init --name NAME` makes them and prints the witness's verification key; without `--init`
it serves until SIGTERM. Exit status: 0; 78 where starting again without a change is useless; 1 for any other refusal
to start; 2 for wrong arguments.
"""

import argparse
import os
import signal
import ssl
import sys
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.witness.server import Server
from services.witness.settings import WitnessSettings, load
from services.witness.state import State
from services.witness.witness import Witness
from shared import keys, logs
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import host_and_port
from shared.transparency.add_checkpoint import PATH, ROTATION_PATH
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import BadSignatureError, MalformedNoteError, VerificationKey
from shared.transparency.rotation import Rotation
from shared.transparency.tlog_proof import TlogProof

DRAIN_SECONDS = 5.0
"""How long a request in progress may still take at the end."""

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 78


def create(settings: WitnessSettings, name: str) -> str:
    """Make the key (0600) and the empty state; the verification key. Raises CONFIGURATION where one is there."""
    if settings.key.exists():
        raise _wrong("the key of the witness is there already")
    try:
        cosigner = Cosigner(name, Ed25519PrivateKey.generate())
    except MalformedNoteError as error:
        raise _wrong(str(error)) from None
    try:
        # The state first: a key without a state does not serve, and a second --init would be refused.
        State.create(settings.state, cosigner.key)
        keys.write_new(settings.key, f"{cosigner.secret()}\n".encode(), 0o600)
    except OSError:
        raise _wrong("the key or the state of the witness cannot be written") from None
    return str(cosigner.key)


def cosigner_of(file: Path) -> Cosigner:
    """The private key in a file. Raises CONFIGURATION, also where others may read it."""
    try:
        if file.stat().st_mode & 0o077:
            raise _wrong("the key of the witness may be read by others; its mode must be 0600")
        return Cosigner.parse(file.read_text("ascii"))
    except OSError:
        raise _wrong("the key of the witness cannot be read; `stepwedge witness --init` makes one") from None
    except ValueError:
        raise _wrong("the key of the witness is damaged") from None


def log_keys(texts: list[str]) -> list[VerificationKey]:
    """The keys of the logs. Raises CONFIGURATION where there is none or one is wrong."""
    if not texts:
        raise _wrong("a witness needs the verification key of a log (--log)")
    try:
        # Of a log that changed its key the file audit.vkey has a line for each.
        return [VerificationKey.parse(line) for text in texts for line in text.split()]
    except MalformedNoteError as error:
        raise _wrong(f"a log's key: {error}") from None


def rotations_of(files: list[Path]) -> list[Rotation]:
    """The changes of keys that files prove. Raises CONFIGURATION where one does not."""
    found = []
    for file in files:
        try:
            found.append(Rotation.of(TlogProof.parse(file.read_bytes())))
        except OSError:
            raise _wrong(f"the proof of a rotation {file.name} cannot be read") from None
        except (MalformedNoteError, BadSignatureError) as error:
            raise _wrong(f"the proof of a rotation {file.name}: {error}") from None
    return found


def serve(settings: WitnessSettings, stop: threading.Event) -> None:
    """Serve until `stop`; says "ready witness HOST:PORT" on stdout. Raises CONFIGURATION, DEPENDENCY_UNAVAILABLE."""
    cosigner = cosigner_of(settings.key)
    known, rotations = log_keys(settings.logs), rotations_of(settings.rotations)
    state = State(settings.state, cosigner.key)
    try:
        try:
            witness = Witness(cosigner, known, state, rotations=rotations)
        except MalformedNoteError as error:
            raise _wrong(f"the keys of the logs: {error}") from None
        host, port = host_and_port(settings.listen)
        try:
            answers = {PATH: witness.add_checkpoint, ROTATION_PATH: witness.add_rotation}
            server = Server(host, port, answers, tls=_tls(settings))
        except OSError:
            message = "the witness cannot listen at its address"
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, message) from None
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="accept", daemon=True)
        thread.start()
        shown = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
        sys.stdout.write(f"ready witness {shown}:{server.server_port}\n")
        sys.stdout.flush()
        try:
            stop.wait()
        finally:
            server.drain(DRAIN_SECONDS)
    finally:
        state.close()


def run_until_stopped(settings: WitnessSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(settings, stop)


def _tls(settings: WitnessSettings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.certificate_key)
    except (OSError, ValueError):
        raise _wrong("the certificate of the witness or its key cannot be used") from None
    return context


def _wrong(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.witness", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file: listen, state, key, logs, certificate, certificate_key")
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--state", type=Path, metavar="FILE")
    parser.add_argument("--key", type=Path, metavar="FILE")
    parser.add_argument("--log", action="append", metavar="VKEY", help="a log's verification key; may be repeated")
    parser.add_argument(
        "--rotation", action="append", type=Path, metavar="FILE", help="proof of a change of a log's key"
    )
    parser.add_argument("--certificate", type=Path, metavar="FILE")
    parser.add_argument("--certificate-key", type=Path, metavar="FILE")
    parser.add_argument("--init", action="store_true", help="make the key and the state, print the verification key")
    parser.add_argument("--name", help="with --init: the witness's name, such as hospital.example/compliance")
    given = parser.parse_args()
    if given.init and not given.name:
        parser.error("--init needs --name")
    return given


def _run() -> int:
    given = _arguments()
    os.umask(0o077)
    logs.configure("witness")
    try:
        settings = load(
            given.config,
            listen=given.listen,
            state=given.state,
            key=given.key,
            logs=given.log,
            rotations=given.rotation,
            certificate=given.certificate,
            certificate_key=given.certificate_key,
        )
        if given.init:
            sys.stdout.write(f"{create(settings, given.name)}\n")
        else:
            run_until_stopped(settings)
    except StepwedgeError as error:
        sys.stderr.write(f"error {error.name}: {error.message}\n")
        return EXIT_CONFIGURATION if error.code == ErrorCode.ERROR_CODE_CONFIGURATION else EXIT_FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(_run())
