"""Has checkpoints stamped by a time-stamping authority (RFC 3161), beside the sequencer and never in its way."""

import threading
import time
from pathlib import Path

from services.audit import store
from services.audit.log import Log
from services.audit.store import Stamp
from shared import logs, stamps
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Stamping
from shared.stamps import StampError
from stepwedge.audit.v1 import audit_pb2

_KEEP_SECONDS = 30.0

_logger = logs.get_logger(__name__)


class Stamper:
    """Asks for a stamp again and again; what fails is tried again a minute later, and told when it lasts too long."""

    def __init__(self, log: Log, settings: Stamping, *, retry_seconds: float = 60.0) -> None:
        """Raises CONFIGURATION where the certificates of the authority cannot be read."""
        self._log = log
        self._settings = settings
        self._retry = min(retry_seconds, settings.interval_seconds)
        self._certificates = _read(settings.certificates)
        self._stopped = threading.Event()
        self._stamped_size = 0
        self._missing_since: float | None = None
        self._alerted = False
        self._thread = threading.Thread(target=self._run, name="stamps", daemon=True)

    def start(self) -> None:
        """Begin."""
        with self._log.store.reading() as connection:
            kept = store.stamps(connection, 2**62)
        self._stamped_size = kept[-1].size if kept else 0
        self._thread.start()

    def close(self) -> None:
        """Stop; a request that is under way is not waited for longer than it may take."""
        self._stopped.set()
        self._thread.join(2 * self._settings.timeout_seconds + 1)

    def _run(self) -> None:
        while True:
            try:
                done = self._stamp()
            except Exception as error:  # noqa: BLE001 - the log goes on without stamps, and this thread lives
                _logger.error("a checkpoint could not be stamped", **logs.describe(error))
                done = False
            self._watch(done)
            if self._stopped.wait(self._settings.interval_seconds if done else self._retry):
                return

    def _stamp(self) -> bool:
        """Have the newest checkpoint stamped; whether there is nothing left to do for now."""
        head = self._log.head
        if head is None or head.size <= self._stamped_size:
            return True
        settings = self._settings
        try:
            token, _ = stamps.request(
                settings.url, head.note.encode(), self._certificates, timeout=settings.timeout_seconds
            )
        except StampError as error:
            _logger.warning("no time stamp", reason=str(error))
            return False
        made = Stamp(head.size, head.note, token, time.time_ns() // 1000)
        self._log.keep_stamp(made).result(_KEEP_SECONDS)
        self._stamped_size = head.size
        return True

    def _watch(self, done: bool) -> None:
        """Record once that no stamp could be had for too long."""
        now = time.monotonic()
        if done:
            self._missing_since, self._alerted = None, False
            return
        self._missing_since = now if self._missing_since is None else self._missing_since
        if now - self._missing_since >= self._settings.alert_seconds and not self._alerted:
            self._alerted = True
            _logger.error("no time stamp for too long", seconds=int(now - self._missing_since))
            self._log.alert(audit_pb2.AlertEvent(code=audit_pb2.ALERT_CODE_STAMP_MISSED))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        message = "audit.stamping.certificates cannot be read"
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message) from None
