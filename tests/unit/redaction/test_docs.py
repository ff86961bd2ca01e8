"""docs/redaction.md tells of options what the tables say; `python -m tests.unit.redaction.test_docs` renews it."""

from pathlib import Path

from services.redaction.conformance import markdown
from services.redaction.profile import Profile

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "redaction.md"
BEGIN, END = "<!-- conformance -->\n", "<!-- /conformance -->"


def _with_table(text: str) -> str:
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + markdown() + "\n\n" + END + rest.split(END)[1]


def test_the_conformance_table_in_the_documents_is_that_of_the_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert _with_table(text) == text


def test_the_profile_that_the_documents_show_compiles() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    source = text.split("```toml\n")[1].split("```")[0]
    profile = Profile.parse(source.encode())
    assert profile.name == "trial-7"


if __name__ == "__main__":
    DOCUMENT.write_text(_with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
