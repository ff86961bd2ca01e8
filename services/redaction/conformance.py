"""What a profile does, told from the tables that do it: the conformance table of the documents, and single attributes.

python -m services.redaction.conformance                       the table of options, in Markdown
python -m services.redaction.conformance PROFILE [KEYWORD...]  a profile's digest and counts, or what happens to
                                                               attributes ("StudyDate", "(0008,0020)")
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import keyword_for_tag

from services.redaction import content, unlisted_text
from services.redaction.facts import objects, rows
from services.redaction.profile import COLUMNS, EDITION, Action, Option, Profile, attributes, iods, tag_of, unlisted
from shared.errors import StepwedgeError
from shared.pixel_decoder import DECODED

_HERE: Final = {
    Option.CLEAN_PIXELS: "Text in the pixels is looked for on every frame and blanked without a new lossy step; what "
    "stays in doubt is refused.",
    Option.CLEAN_FACES: "Nothing is defaced: an object is refused unless it can show no face, by its modality and body "
    "part, or has no pixels. An object that passes says so in (0028,0302).",
    Option.CLEAN_GRAPHICS: "Graphic annotations stay; of their text, the words of our vocabulary. Curves are removed, "
    "and overlays.",
    Option.CLEAN_STRUCTURED_CONTENT: "Content items go by Table E.3.4-1, by concept and value type. One that it does "
    "not list keeps numbers, references, codes of public schemes, and of its text the words of our vocabulary; names "
    "of people become pseudonyms or dummies. In a report whose items refer to each other by place, none is left out: "
    "it becomes a dummy.",
    Option.CLEAN_DESCRIPTORS: "An allow-list, no hunt for names: of a description those words stay that our vocabulary "
    "has (words of the standard's own names and code meanings, and of examinations in some languages, without common "
    "names of people), and numbers of at most three digits. Nothing left: as in the Basic Profile.",
    Option.RETAIN_FULL_DATES: "Dates and times stay where they are what their VR says; else a dummy.",
    Option.RETAIN_MODIFIED_DATES: "All dates of a person move back by one number of days that the key makes. Dates "
    "that many people share (calibration, manufacture, versions), placeholders, and dates more than 31 days from the "
    "examination do not move but go, so that none tells the number. Times of day stay.",
    Option.RETAIN_PATIENT_CHARACTERISTICS: "They stay; an age over 89 years becomes 90, and "
    "free text keeps the words of clean-descriptors.",
    Option.RETAIN_DEVICE_IDENTITY: "Serial numbers, names of stations and the like stay; AE titles become labels, the "
    "same for the same.",
    Option.RETAIN_UIDS: "UIDs stay where they are UIDs.",
    Option.RETAIN_SAFE_PRIVATE: "Private elements of Table E.3.10-1 stay, found by group, creator and element, and "
    "those that the object itself calls safe in (0008,0300) unless the profile says otherwise. Values are judged like "
    "public ones. What is left is described in (0008,0300).",
    Option.RETAIN_INSTITUTION_IDENTITY: "The institution stays.",
}


def options() -> Iterator[dict[str, str]]:
    """One row an option: code of CID 7050, name, how many attributes it keeps and cleans, what it does here."""
    codes = {row["option"]: row["code"] for row in rows("methods.csv")}
    for option in Option:
        column = COLUMNS[option][0] if option in COLUMNS else ""
        cells = Counter(row[column] for row in attributes()) if column else Counter()
        yield {
            "option": str(option),
            "code": codes[option],
            "kept": str(cells["K"]),
            "cleaned": str(cells["C"]),
            "here": _HERE[option],
        }


def refused() -> Iterator[dict[str, str]]:
    """One row a kind of object that is refused, and why."""
    table = objects()["refused"]
    for section in ("sop_classes", "transfer_syntaxes"):
        for uid, why in table[section].items():
            yield {"uid": uid, "why": why}


def transfer_syntaxes() -> Iterator[dict[str, str]]:
    """One row a transfer syntax whose pixels can be looked at, and blanked: UID, name, how deep."""
    for uid, depth in DECODED.items():
        yield {"uid": uid, "name": UID_dictionary[uid][0], "depth": depth}


def markdown() -> str:
    """The conformance table of docs/redaction.md."""
    basic = Counter(row["basic"] for row in attributes())
    actions = ", ".join(f"{action} {count}" for action, count in sorted(basic.items()))
    rules = content.rules(())
    lines = [
        f"Table E.1-1, edition {EDITION}: {len(attributes())} attributes ({actions}); Table E.3.4-1: {len(rules)} "
        f"content items; {len(set(iods().values()))} IODs decide between the members of a compound action.",
        "",
        "| option | CID 7050 | keeps | cleans | here |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['option']}` | {row['code']} | {row['kept']} | {row['cleaned']} | {row['here']} |" for row in options()
    ]
    lines += ["", "| refused | why |", "|---|---|"]
    lines += [f"| {row['uid']} | {row['why']} |" for row in refused()]
    lines += ["", "Pixels of these transfer syntaxes are looked at; with `clean-pixels` every other is refused (video,"]
    lines += [
        "retired processes of JPEG, JPEG 2000 Part 2, JPEG XL):",
        "",
        "| transfer syntax | | bits |",
        "|---|---|---|",
    ]
    lines += [f"| {row['uid']} | {row['name']} | {row['depth']} |" for row in transfer_syntaxes()]
    return "\n".join(lines)


def effective(profile: Profile, attribute: str) -> str:
    """What a profile does to one attribute: at the root and in items, by the IODs where they differ."""
    tag = tag_of(attribute)
    found: dict[str, set[str]] = {}
    for sop_class, iod in iods().items():
        plan = profile.plan(sop_class)
        root, nested = (_words(actions.get(tag), tag) for actions in (plan.root, plan.nested))
        found.setdefault(root if root == nested else f"{root}; in items {nested}", set()).add(iod)
    most = max(found, key=lambda words: len(found[words]))
    others = "".join(f"; {words} in {', '.join(sorted(found[words]))}" for words in found if words != most)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword_for_tag(tag)}: {most}{others}"


def _words(action: Action | None, tag: int) -> str:
    if action is None and unlisted(tag) is Action.KEEP and unlisted_text.is_judged(tag):
        return "keep, of its text the known words and short tokens"
    action = unlisted(tag) if action is None else action
    return action.name.lower()


def main(arguments: Iterable[str]) -> int:
    """Print; 2 where a profile or an attribute is none."""
    name, *asked = [*arguments] or [""]
    try:
        lines = list(_told(name, asked)) if name else [markdown()]
    except StepwedgeError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _told(name: str, asked: Iterable[str]) -> Iterator[str]:
    profile = Profile.load(Profile.file(name))
    taken = ", ".join(profile.options) or "no options"
    yield f"{profile.name}: PS3.15 {profile.edition}, {taken}, {profile.digest}"
    for override in profile.overrides:
        yield f"override of {keyword_for_tag(override.tag)}: {override.action.name.lower()} ({override.reason})"
    for attribute in asked:
        yield effective(profile, attribute)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
