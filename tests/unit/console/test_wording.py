"""Every text of every page has its words in every language, and the reader's wish decides which."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.console import wording
from services.console.dossier import ACTIONS, HOW_TO_CHECK
from services.console.pages.guarding import ACTS, PURPOSES
from services.console.pages.guide import FIRST_STEPS, WHAT_TO_DO
from services.console.pages.people import SEES
from services.console.pages.studies import REVIEW_REASONS
from services.console.web import NAVIGATION
from services.inference.findings import MEASUREMENTS
from services.ingest.drift import CONFIDENCE
from shared import reasons
from shared.errors import MEANING
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from stepwedge.ingest.v1 import ingest_pb2

SAYING = (
    *(
        f"services/inference/{name}.py"
        for name in ("assess", "chest", "collimation", "header", "in_the_way", "coverage")
    ),
    "services/ingest/collation.py",
    "services/ingest/explain.py",
)
NEVER_SHOWN = {
    "the file is larger than 2 GiB",
    "the file cannot be read",
    "brightness above the lungs",
    "the image has one value only",
    "settled without an assessment",
}
"""Of the command line and of measures, not of findings, or a part of a sentence."""
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
        | {HOW_TO_CHECK}
        | set(ACTIONS.values())
        | set(SEES.values())
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
        *MEASUREMENTS,
        CONFIDENCE,
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


GERMAN = wording.languages()["de"]


@pytest.mark.parametrize(
    ("said", "own"),
    [
        (
            "Done: revision 1 is REJECT (LUNG_MARGIN_TOP, BLANK_IMAGE).",
            "Fertig: Fassung 1 lautet Verwerfen (LUNG_MARGIN_TOP, BLANK_IMAGE).",
        ),
        (
            "The last step failed with OBJECT_CORRUPT, after 3 attempts while it waits for audit: the object store is "
            "full or nearly so.",
            "Der letzte Schritt schlug fehl mit OBJECT_CORRUPT, nach 3 Versuchen und während sie auf audit wartet: "
            "der Objektspeicher ist voll oder fast voll.",
        ),
        (
            "It waits for what has not come: 2 announced instances, what the rule chest asks for.",
            "Sie wartet auf das, was noch nicht kam: 2 angekündigte Bilder, was die Regel chest verlangt.",
        ),
        ("Put back in the queue by operator.", "Wieder eingereiht von operator."),
        ("Nobody said this before {x}.", "Nobody said this before {x}."),
    ],
)
def test_what_a_service_says_is_said_in_german_with_its_names_as_they_are(said: str, own: str):
    assert GERMAN.said(said) == own
    assert wording.languages()["en"].said(said) == said


def test_every_meaning_of_an_error_and_every_step_of_a_story_is_said_in_german():
    """The sentences stand in `explain.py` and in the checks; their fixed parts must fit a sentence of the file."""
    said = set(MEANING.values()) | {text for file in SAYING for text in sentences(file)}
    assert len(said) > 130
    unknown = sorted(text for text in said if GERMAN.said(text) == text)
    assert not unknown


def sentences(file: str) -> Iterator[str]:
    """What a module says as a whole sentence in a constant: a finding's words."""
    if not (CONSOLE.parent.parent / file).exists():
        return
    tree = ast.parse((CONSOLE.parent.parent / file).read_text("utf-8"))
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described | parts:
            text = node.value
            if text.count(" ") >= 2 and text[0].islower() and text not in NEVER_SHOWN and not text.startswith("log "):
                yield text


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


def test_a_further_language_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for file in wording.FOLDER.glob("*.toml"):
        (tmp_path / file.name).write_text(file.read_text("utf-8"))
    (tmp_path / "fr.toml").write_text('[words]\n"Work list" = "Liste de travail"\n')
    monkeypatch.setattr(wording, "FOLDER", tmp_path)
    wording.languages.cache_clear()
    try:
        french = wording.chosen("", "fr-CH, de;q=0.5")
        assert (french.language, french("Work list"), french("Help")) == ("fr", "Liste de travail", "Help")
    finally:
        monkeypatch.undo()
        wording.languages.cache_clear()
