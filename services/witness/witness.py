"""What a witness does with a checkpoint: every check of C2SP tlog-witness, in its order, with its status."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus

from services.witness.state import State
from shared import logs
from shared.transparency import merkle
from shared.transparency.add_checkpoint import SIZE_TYPE, AddCheckpoint
from shared.transparency.cosignature import Cosigner
from shared.transparency.note import BadSignatureError, Checkpoint, MalformedNoteError, Note, VerificationKey
from shared.transparency.rotation import Rotation, Term, signers, terms
from shared.transparency.tlog_proof import TlogProof
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
        """`rotations` are those that the operator gave, beside those that the state keeps.

        Raises MalformedNoteError where a log has the witness's own key, or a rotation does not follow.
        """
        self._cosigner = cosigner
        self._logs = list(logs_of)
        self._rotations = list(dict.fromkeys([*rotations, *self._learned(state, rotations)]))
        self._terms = self._terms_of(self._rotations)
        self._state = state
        self._clock = clock
        # From the comparison with what is held until the new one is durable: without it a slower request for a
        # smaller tree would overwrite the larger one (the race that the specification describes).
        self._one_at_a_time = threading.Lock()

    def _learned(self, state: State, given: Sequence[Rotation]) -> Iterator[Rotation]:
        """Changes that the state keeps, as far as the logs' keys as they are given now lead to them."""
        known = {str(key) for key in self._logs} | {str(one.new) for one in given}
        for rotation in sorted((Rotation.of(one) for one in state.rotations()), key=lambda one: one.from_size):
            if str(rotation.old) in known:
                known.add(str(rotation.new))
                yield rotation

    def _terms_of(self, rotations: Sequence[Rotation]) -> dict[str, list[Term]]:
        found: dict[str, list[Term]] = {}
        for term in terms(self._logs, rotations):
            if term.key.public == self._cosigner.key.public:
                raise MalformedNoteError("a log has the witness's own key")  # tlog-cosignature: one key, one signer
            found.setdefault(term.key.name, []).append(term)
        return found

    def add_rotation(self, body: bytes) -> Answer:
        """Learn a change of a log's key from its proof: 200; 400, 403, 404, 409 or 500, and then nothing was learned.

        Taken only where its checkpoint is the one that is held, that is, cosigned here under the key before: so a
        change belongs to the one history that this witness knows, and whoever stole the key before gains nothing by it
        that a checkpoint of a fork would not give.
        """
        try:
            proof = TlogProof.parse(body)
            rotation = Rotation.of(proof)
        except (MalformedNoteError, BadSignatureError) as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n")
        if rotation.old.name not in self._terms:
            return Answer(HTTPStatus.NOT_FOUND, "this witness does not know the log\n")
        with self._one_at_a_time:
            answer = self._learn(rotation, proof)
        _logger.warning("a change of a log's key was submitted", code=answer.status.name, index=rotation.from_size)
        return answer

    def _learn(self, rotation: Rotation, proof: TlogProof) -> Answer:
        if rotation in self._rotations:
            return Answer(HTTPStatus.OK, "")
        held = self._state.newest(rotation.old.name)
        if held is None or (held.size, held.root) != (rotation.from_size, proof.checkpoint.root):
            return Answer(HTTPStatus.CONFLICT, f"{held.size if held else 0}\n", SIZE_TYPE)
        try:
            following = self._terms_of([*self._rotations, rotation])
        except MalformedNoteError as error:
            return Answer(HTTPStatus.FORBIDDEN, f"{error}\n")
        try:
            self._state.keep_rotation(proof)
        except OSError as error:
            _logger.error("a rotation could not be written", **logs.describe(error))
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, "the witness cannot remember the change\n")
        self._rotations.append(rotation)
        self._terms = following
        return Answer(HTTPStatus.OK, "")

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
