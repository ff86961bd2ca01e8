"""Profiles: what a file may ask for, what is refused and in which words, and what each option makes of an attribute."""

from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from services.redaction.conformance import main, markdown
from services.redaction.profile import PROFILES, Action, Option, Profile, attributes
from shared.errors import ErrorCode, StepwedgeError

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SR = "1.2.840.10008.5.1.4.1.1.88.33"


def refused(text: str) -> str:
    """The words with which a profile is refused."""
    with pytest.raises(StepwedgeError) as caught:
        Profile.parse(text.encode())
    assert caught.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    return caught.value.message


def tag(keyword: str) -> int:
    """Tag of a keyword."""
    found = tag_for_keyword(keyword)
    assert found is not None
    return found


HEAD = 'edition = "2026c"\n'
OVERRIDE = '[[override]]\nattribute = "{}"\naction = "{}"\nreason = "{}"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('edition = "2023"', "2026c"),
        ("edition = ", "cannot be read"),
        (HEAD + "keep = 1", "keep"),
        (HEAD + 'options = ["retain-everything"]', "option other than"),
        (HEAD + 'options = "retain-uids"', "no list"),
        (HEAD + 'options = ["retain-full-dates", "retain-modified-dates"]', "retain-full-dates and retain-modified"),
        (HEAD + 'trust_private_characteristics = "yes"', "neither true nor false"),
        (HEAD + "[pixels]\nmost_boxes = 5", "does not ask for clean-pixels"),
        (HEAD + 'options = ["clean-pixels"]\n[pixels]\ntext = "paint"', "[pixels] is wrong"),
        (HEAD + OVERRIDE.format("PatientName", "K", "why not"), "PatientName names somebody"),
        (HEAD + OVERRIDE.format("(0010,0020)", "K", "why not"), "names somebody"),
        (HEAD + OVERRIDE.format("KVP", "X", ""), "no reason"),
        (HEAD + OVERRIDE.format("KVP", "Q", "r"), "action other than"),
        (HEAD + OVERRIDE.format("KVP", "U", "r"), "no UID"),
        (HEAD + OVERRIDE.format("NoSuchThing", "X", "r"), "data dictionary does not have"),
        (HEAD + OVERRIDE.format("PatientIdentityRemoved", "X", "r"), "not open"),
        (HEAD + OVERRIDE.format("KVP", "X", "r") * 2, "two overrides of KVP"),
        (HEAD + '[[override]]\nattribute = "KVP"\n', "other keys"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    assert words in refused(text)


def test_an_override_goes_before_the_table_and_the_options() -> None:
    text = HEAD + OVERRIDE.format("StudyDescription", "K", "ours are codes")
    text += OVERRIDE.format("(0018,0060)", "X", "tells our protocol")
    profile = Profile.parse(text.encode())
    plan = profile.plan(CT)
    assert plan.root[tag("StudyDescription")] is Action.KEEP
    assert plan.nested[tag("KVP")] is Action.REMOVE
    assert profile.digest != Profile.parse(HEAD.encode()).digest


def test_a_profile_is_pinned_by_its_digest(tmp_path: Path) -> None:
    file = PROFILES / "basic.toml"
    digest = Profile.load(file).digest
    assert len(digest) == 64
    assert Profile.load(file, digest).digest == Profile.basic().digest == digest
    with pytest.raises(StepwedgeError) as caught:
        Profile.load(file, "0" * 64)
    assert caught.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    with pytest.raises(StepwedgeError):
        Profile.load(tmp_path / "absent.toml")


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_profile_that_we_ship_compiles(path: Path) -> None:
    profile = Profile.load(path)
    assert profile.name == path.stem
    assert profile.methods[0][0] == "113100"
    assert len(profile.methods) == 1 + len(profile.options)


@pytest.mark.parametrize(
    ("keyword", "sop_class", "action"),
    [
        ("InstanceCreationDate", CT, Action.REMOVE),  # X/D, Type 3
        ("StationName", CT, Action.REMOVE),  # X/Z/D, Type 3
        ("SeriesDate", CT, Action.REMOVE),  # X/D, Type 3
        ("ContentDate", ENHANCED_CT, Action.DUMMY),  # Z/D, Type 1
        ("ContentDate", CT, Action.EMPTY),  # Z/D, Type 2C
        ("DeviceSerialNumber", ENHANCED_CT, Action.DUMMY),  # X/Z/D, Type 1
        ("DeviceSerialNumber", CT, Action.REMOVE),  # X/Z/D, Type 3
        ("AcquisitionContextSequence", ENHANCED_CT, Action.EMPTY),  # X/Z, Type 2
        ("ReferencedImageSequence", CT, Action.UID),
        ("PresentationCreationDate", "1.2.840.10008.5.1.4.1.1.11.1", Action.DUMMY),  # X, yet Type 1
    ],
)
def test_a_compound_action_is_decided_by_the_type_in_the_iod(keyword: str, sop_class: str, action: Action) -> None:
    assert Profile.basic().plan(sop_class).root[tag(keyword)] is action


def test_every_cell_of_the_table_is_honoured_by_its_option() -> None:
    """Every K of an option keeps; every C cleans; an empty cell leaves what the Basic Profile does."""
    columns = {
        Option.RETAIN_UIDS: "uids",
        Option.RETAIN_DEVICE_IDENTITY: "device",
        Option.RETAIN_INSTITUTION_IDENTITY: "institution",
        Option.RETAIN_PATIENT_CHARACTERISTICS: "patient",
        Option.RETAIN_FULL_DATES: "full_dates",
        Option.RETAIN_MODIFIED_DATES: "modified_dates",
        Option.CLEAN_DESCRIPTORS: "descriptors",
        Option.CLEAN_STRUCTURED_CONTENT: "structured",
        Option.CLEAN_GRAPHICS: "graphics",
    }
    basic = Profile.basic()
    cells = 0
    cleaning = {Action.TEXT, Action.SHIFT, Action.LABEL, Action.CONTENT, Action.GRAPHICS}
    for option, column in columns.items():
        profile = Profile.of([option])
        for row in attributes():
            number = int(row["tag"], 16)
            if number >> 16 in (0, 2, 4):
                continue  # of no data set
            action = profile.action(number)
            cell = row[column]
            cells += bool(cell)
            if cell == "K":
                assert action is Action.KEEP, (option, row["name"])
            elif cell == "C" and action is not basic.action(number):
                assert action in cleaning, (option, row["name"])
            elif cell == "C":  # a date that many people share is not moved
                assert option is Option.RETAIN_MODIFIED_DATES, row["name"]
            else:
                assert action is basic.action(number), (option, row["name"])
    assert cells > 600


def test_the_conformance_table_tells_every_option_from_the_tables() -> None:
    text = markdown()
    for option in Option:
        assert f"| `{option}` | 1131" in text
    assert "| `retain-full-dates` | 113106 | 169 | 0 |" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["basic", "StudyDate"], "(0008,0020) StudyDate: empty"),
        (["research", "(0008,0020)"], "StudyDate: shift"),
        (["basic", "ContentDate"], "dummy"),
        (["quality", "StationName"], "StationName: keep"),
    ],
)
def test_what_a_profile_does_to_an_attribute_can_be_asked(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert words in capsys.readouterr().out
    assert main(["no-such-profile"]) == 2
