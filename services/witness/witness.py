"""What a witness does with a checkpoint: every check of C2SP tlog-witness, in its order, with its status."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus

from services.witness.state import State
from shared import logs
from shared.transparency import merkle
from shared.transparency.add_checkpoint import SIZE_TYPE, AddCheckpoint
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import BadSignatureError, Checkpoint, MalformedNoteError, Note, VerificationKey
from shared.transparency.rotation import Rotation, Term, signers, terms
from shared.web import Answer

_logger = logs.get_logger(__name__)


class Witness:
    """Cosigns the checkpoints of known logs, each only if it extends the one before; any thread may ask."""

    def __init__(
        self,
        cosigner: Cosigner,
        logs_of: Iterable[VerificationKey],
        state: State,
        *,
        rotations: Sequence[Rotation] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises MalformedNoteError where a log has the witness's own key, or a rotation does not follow."""
        self._cosigner = cosigner
        self._terms: dict[str, list[Term]] = {}
        for term in terms(logs_of, rotations):
            if term.key.public == cosigner.key.public:
                raise MalformedNoteError("a log has the witness's own key")  # tlog-cosignature: one key, one signer
            self._terms.setdefault(term.key.name, []).append(term)
        self._state = state
        self._clock = clock
        # From the comparison with what is held until the new one is durable: without it a slower request for a
        # smaller tree would overwrite the larger one (the race that the specification describes).
        self._one_at_a_time = threading.Lock()

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer one request: 200 with the cosignature, or 400, 403, 404, 409, 422, 500."""
        try:
            asked = AddCheckpoint.parse(body)
        except MalformedNoteError as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n")
        known = self._terms.get(asked.checkpoint.origin)
        if known is None:
            return Answer(HTTPStatus.NOT_FOUND, "this witness does not know the log\n")
        try:
            signed_by = {(key.name, key.id) for key in signers(asked.note, known, asked.checkpoint.size)}
        except BadSignatureError as error:
            return Answer(HTTPStatus.FORBIDDEN, f"{error}\n")
        if asked.old_size > asked.checkpoint.size:
            return Answer(HTTPStatus.BAD_REQUEST, "the old size is larger than the checkpoint's\n")
        signatures = tuple(one for one in asked.note.signatures if (one.name, one.key_id) in signed_by)
        with self._one_at_a_time:
            answer = self._advance(asked, Note(asked.note.text, signatures))
        _logger.info("a checkpoint was submitted", code=answer.status.name, index=asked.checkpoint.size)
        return answer

    def _advance(self, asked: AddCheckpoint, note: Note) -> Answer:
        following = asked.checkpoint
        held = self._state.newest(following.origin) or Checkpoint(following.origin, 0, merkle.EMPTY_ROOT)
        if asked.old_size != held.size:
            return Answer(HTTPStatus.CONFLICT, f"{held.size}\n", SIZE_TYPE)
        if following.size == held.size and following.root != held.root:
            # Two trees of one size: the log signed both. The content type tells it from a mere difference in size.
            self._state.keep_evidence(following.origin, note)
            _logger.error("a signed checkpoint contradicts the one before", index=following.size)
            return Answer(HTTPStatus.CONFLICT, "the checkpoint has another root than the one that is held\n")
        if not merkle.verify_consistency(held.size, following.size, held.root, following.root, asked.proof):
            # The log signed this: with the checkpoint that we hold it may prove that the log forked. Where only the
            # proof is wrong, it proves nothing and harms nobody.
            self._state.keep_evidence(following.origin, note)
            _logger.error("a signed checkpoint does not extend the one before", index=following.size)
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, "the checkpoint does not extend the one that is held\n")
        cosignature = self._cosigner.cosign(note.text, int(self._clock()))
        if following.size != held.size or self._state.newest(following.origin) is None:
            try:
                cosigned = Note(note.text, (*note.signatures, cosignature))
                self._state.keep(following.origin, cosigned, self._cosigner.key)
            except OSError as error:
                _logger.error("the state could not be written", **logs.describe(error))
                return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "the witness cannot remember the checkpoint\n")
        return Answer(HTTPStatus.OK, cosignature.line)
