"""Every text of every page has its words in every language, and the reader's wish decides which."""

import re
from pathlib import Path

import pytest

from services.console import wording
from services.console.pages.guarding import ACTS, PURPOSES
from services.console.pages.guide import FIRST_STEPS, WHAT_TO_DO
from services.console.pages.studies import REVIEW_REASONS
from services.console.web import NAVIGATION
from shared import reasons
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2

CONSOLE = Path(wording.__file__).parent
TEXT = re.compile(r"""_\(\s*"([^"]+)"|_\(\s*'([^']+)'|wording\(\s*"([^"]+)"\s*[,)]""")


MESSAGE = re.compile(r'(?:invalid|not_found|StepwedgeError)\((?:ErrorCode\.[A-Z_]+, )?"([^"{]+)"')


def messages() -> set[str]:
    """Every sentence that the console itself says on an error page."""
    return {text for file in CONSOLE.rglob("*.py") for text in MESSAGE.findall(file.read_text("utf-8"))}


def texts() -> set[str]:
    """Every text that a page or the paper shows."""
    files = [*CONSOLE.glob("templates/*.html"), *CONSOLE.rglob("*.py")]
    found = {next(filter(None, match)) for file in files for match in TEXT.findall(file.read_text("utf-8"))}
    return (
        found
        | {title for _, title, _ in NAVIGATION}
        | set(REVIEW_REASONS.values())
        | set(WHAT_TO_DO.values())
        | {text for steps in FIRST_STEPS.values() for _, *words in steps for text in words}
        | set(ACTS.values())
        | set(PURPOSES.values())
    )


def codes() -> set[str]:
    """Every code that a page calls by its words."""
    enums = (
        (common_pb2.Verdict, "VERDICT_"),
        (common_pb2.Outcome, "OUTCOME_"),
        (common_pb2.Structure, "STRUCTURE_"),
        (common_pb2.Reason, "REASON_"),
        (ingest_pb2.StudyState, "STUDY_STATE_"),
        (audit_pb2.RecordKind, "RECORD_KIND_"),
        (audit_pb2.EventOutcome, "EVENT_OUTCOME_"),
    )
    return {name.removeprefix(prefix) for enum, prefix in enums for name, number in enum.items() if number} | {
        "SERVING",
        "DEGRADED",
        "DOWN",
        "PROVED",
        "NOT_PROVED",
        "radiographer",
        "operator",
        "auditor",
        "administrator",
    }


@pytest.mark.parametrize("language", sorted(wording.languages()))
def test_every_code_has_its_words(language: str):
    assert not codes() - set(wording.languages()[language]._words)


@pytest.mark.parametrize("language", sorted(set(wording.languages()) - {"en"}))
def test_every_text_and_every_reason_is_translated(language: str):
    known = set(wording.languages()[language]._words)
    assert not texts() - known
    assert len(messages()) > 30
    assert not messages() - known
    assert not set(reasons.WORDS.values()) - known


@pytest.mark.parametrize("language", sorted(set(wording.languages()) - {"en"}))
def test_a_translation_fills_the_same_fields(language: str):
    fields = re.compile(r"\{(\w+)\}")
    for text, words in wording.languages()[language]._words.items():
        assert sorted(fields.findall(text)) == sorted(fields.findall(words)), text


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        ("", "", "en"),
        ("", "de-DE,de;q=0.9,en;q=0.8", "de"),
        ("", "fr, en;q=0.5, de;q=0.7", "de"),
        ("", "de;q=0, en;q=0.1", "en"),
        ("de", "en", "de"),
        ("xx", "de", "de"),
        ("", "de;q=nonsense,,;;", "en"),
    ],
)
def test_the_reader_decides(cookie: str, accepted: str, language: str):
    assert wording.chosen(cookie, accepted).language == language
