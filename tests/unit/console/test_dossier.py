"""What a dossier says on paper, of whatever stands in it."""

from datetime import UTC, datetime

from services.console import dossier
from services.console.wording import languages
from tests.wire.console_house import words_of

HEAD = dossier.Head("log\n7\nroot\n", 7, b"", "log", "log+key", trusted=True, signed=True, cosigned=None)


def cosigned(*names: str, holds: bool, known: int = 2) -> dossier.Cosigned:
    at = datetime(2026, 11, 22, 12, tzinfo=UTC)
    return dossier.Cosigned("log\n5\nroot\n", 5, tuple((name, at) for name in names), known, 2, holds)


def test_a_name_that_no_font_has_is_told_by_its_numbers_and_not_as_empty_boxes():
    who = (("Name", "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"), ("Sex", "M"))
    of = dossier.Dossier("2.25.1", HEAD, (), datetime.now(UTC), "auditor", identity=who)
    paper = words_of(dossier.as_pdf(of, languages()["de"], site="M\u00fcnchen <b>"))
    assert "Yamada^Tarou=" in paper
    assert "u5c71" in paper
    assert "M\\374nchen < b >" in paper  # as a PDF writes it, word by word


def test_a_log_that_its_witnesses_do_not_bear_out_is_not_sound():
    english = languages()["en"]
    for seen, sound, said in (
        (None, True, "No witness has cosigned."),
        (cosigned(holds=False, known=0), True, "named no witness"),
        (cosigned("one", "two", holds=True), True, "These cosignatures hold"),
        (cosigned("one", holds=False), False, "TOO FEW COSIGNATURES HOLD: 1 of 2."),
        (cosigned("one", "two", holds=False), False, "DO NOT BEAR THIS LOG OUT"),
    ):
        head = dossier.Head("", 7, b"", "log", "", trusted=True, signed=True, cosigned=seen)
        assert head.sound is sound
        assert said in dossier.witnessed(seen, english)[-1]
