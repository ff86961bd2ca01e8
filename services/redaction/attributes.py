"""The profile applied to every element of a data set, at every depth (PS3.15 E.1.1)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from services.redaction import content, dates, private, unlisted_text, values, words
from services.redaction.codes import MEANING, Mode, coded
from services.redaction.dates import TEMPORAL
from services.redaction.dummies import WORD, dummy
from services.redaction.echoes import Echoes, kinds, names_instance
from services.redaction.profile import Action, Option, Profile, unlisted
from services.redaction.receipt import Counts
from services.redaction.terms import STRUCTURAL, checked_terms
from services.redaction.text import DEFAULT, decode, encodings
from shared.date_shift import DateShift, capped_age
from shared.dicom import is_uid
from shared.dicom_encoding import PIXEL_TAGS, TEXT_VRS, Element, Elements, Encoded, dictionary_vr
from shared.pseudonyms import Pseudonyms

_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_CHARACTER_SET: Final = 0x00080005
_REMOVED: Final = {
    action: action.value for action in (Action.REMOVE, Action.UNKNOWN, Action.CURVE, Action.OVERLAY, Action.SILENT)
}
_FREE_TEXT: Final = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})
_WORDY: Final = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
_UNLISTED: Final = _WORDY | {"UR"}
_SEVERAL: Final = frozenset({"LO", "SH", "UC"})
_LENGTHS: Final = {"AE": 16, "CS": 16, "LO": 64, "SH": 16}
"""Most characters of one value (PS3.5 6.2)."""
_CLEANED_TEXT: Final = frozenset({0x0040A160, 0x00700006})
"""Text Value and Unformatted Text Value: cleaned wherever what holds them is."""
_UNMOVED: Final = DateShift(0, None)
_NOTHING: Final[Mapping[int, Action]] = {}
_SAID: Final = dict.fromkeys(content.VALUES, Action.KEEP)
_SAID_MOVED: Final = dict.fromkeys(content.VALUES, Action.SHIFT)
_SAID_DATES: Final = frozenset({0x0040A120, 0x0040A121})
_BYTES: Final = frozenset({"OB", "OW"})


class Cleaner:
    """One object on its way through the profile."""

    def __init__(
        self,
        profile: Profile,
        pseudonyms: Pseudonyms,
        counts: Counts,
        original: Encoded,
        sop_class: str,
        subject: str,
    ) -> None:
        plan = profile.plan(sop_class)
        options = profile.options
        self._actions = (plan.root, plan.nested)
        self._plain = (plan.plain_root, plan.plain_nested)
        self._pseudonyms = pseudonyms
        self._counts = counts
        self._original = original
        self._subject = subject
        self._keep_uids = Option.RETAIN_UIDS in options
        self._keep_dates = Option.RETAIN_FULL_DATES in options
        self._move_dates = Option.RETAIN_MODIFIED_DATES in options
        self._shift = _UNMOVED
        if self._move_dates:
            self._shift = dates.shift(original, pseudonyms, subject, uids_stay=self._keep_uids)
        self._keep_private = Option.RETAIN_SAFE_PRIVATE in options
        self._said: frozenset[private.Key] = frozenset()
        if self._keep_private and profile.trust_private_characteristics:
            self._said = private.declared(original.data_set, DEFAULT, little=original.little)
        self._rules = content.rules(options)
        clean_content = Option.CLEAN_STRUCTURED_CONTENT in options
        self._in_place = clean_content and content.has_references(original.data_set)
        self._echoes = Echoes(_identifiers(original.data_set, DEFAULT, profile.retained))
        self.blocks: set[tuple[int, str]] = set()
        """Private groups and creators of which something is left."""

    def cleaned(self) -> Elements:
        """The data set by the profile, sorted by tag; pixel data as it was."""
        return self._data_set(self._original.data_set, DEFAULT, Mode.PLAIN, 0)

    def _data_set(
        self,
        elements: Elements,
        inherited: Sequence[str],
        mode: Mode,
        depth: int,
        over: Mapping[int, Action] = _NOTHING,
    ) -> Elements:
        """One data set or item. over: actions of this content item that go before the profile's."""
        encoding = encodings(elements, inherited)
        actions = self._actions[depth > 0]
        kept: dict[int, Element] = {}
        privates: Elements = []
        public: bool | None = None
        for element in elements:
            tag = self._counts.tag = element.tag
            action = actions.get(tag)
            if action is None:
                action = unlisted(tag)
            if over:
                action = over.get(tag, action)
            if action is Action.PRIVATE:
                privates.append(element)
                continue
            if action in _REMOVED or (depth and tag in PIXEL_TAGS):
                self._counts.add(_REMOVED.get(action, "X"))
                continue
            if mode is Mode.CLEAN and tag in _CLEANED_TEXT and tag not in over:
                action = Action.TEXT
            done = _HANDLERS[action](self, element, encoding, mode, depth)
            if done is None:
                continue
            self._counts.tag = tag  # the items of a sequence have named theirs
            soften = mode is not Mode.PLAIN or tag == MEANING or tag in unlisted_text.CODES
            if soften and action is Action.KEEP and done.items is None and tag not in over:
                public = values.is_public_code(elements) if public is None else public
                done = self._in_item(done, public, mode)
            kept[tag] = done
        if privates:
            self._private(privates, elements, kept, encoding, depth)
        return [kept[tag] for tag in sorted(kept)]

    def _in_item(self, element: Element, public: bool, mode: Mode) -> Element:
        """A kept value by what it stands in; the meaning of a code is free text everywhere."""
        if mode is Mode.PLAIN:
            if element.tag == MEANING:
                return coded(element, public, Mode.CLEAN) or element
            text = decode(element.value, DEFAULT)
            if not text or unlisted_text.is_code(element.tag, text, public=public):
                return element
            self._counts.add("C")
            return self._labelled(element, element.vr, text)
        return coded(element, public, mode) or self._softened(element, mode)

    def _empty(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        if element.tag in (_PATIENT_NAME, _PATIENT_ID) and mode is Mode.PLAIN:
            return self._dummy(element, encoding, mode, depth)
        vr = _outgoing_vr(element)
        self._counts.add("Z", int(bool(element.items or element.value)))
        return Element(element.tag, vr, b"", [] if vr == "SQ" else None)

    def _dummy(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        vr = _outgoing_vr(element)
        if vr == "SQ":
            if element.items is None:
                self._counts.add("X")
                return None
            self._counts.add("D")
            return self._items(element, encoding, Mode.STRICT, depth)
        if element.items is None and not (bytes(element.value).strip(b"\0 ") if vr in TEXT_VRS else element.value):
            return Element(element.tag, vr)
        if vr == "UI":
            return self._uid(element, encoding, mode, depth)
        self._counts.add("D")
        if element.tag in (_PATIENT_ID, _PATIENT_NAME):
            if not depth:
                # Without a Patient ID the name is all that tells of a pass before this one.
                text = decode(element.value, encoding)
                said = text if self._pseudonyms.is_subject(text) else self._subject
                return Element(element.tag, vr, said.encode())
            return Element(element.tag, vr, self._person(element, encoding).encode())
        if element.tag == _CHARACTER_SET:  # one that is none
            return None
        term = checked_terms(element.tag, WORD) if vr == "CS" else None
        return dummy(element, vr) if term is None else Element(element.tag, vr, term)

    def _person(self, element: Element, encoding: Sequence[str]) -> str:
        """A pseudonym for a name or number inside an item, where no issuer stands beside it."""
        text = "" if element.items is not None else decode(element.value, encoding)
        return self._pseudonyms.subject(text)

    def _uid(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        if element.items is not None:
            return self._items(element, encoding, mode, depth)
        mapped, changed = [], False
        for raw in decode(element.value, DEFAULT).split("\\"):
            uid = raw.strip("\0 ")
            new = uid if values.is_public_uid(uid) or not uid else self._pseudonyms.uid(uid)
            changed |= new != uid
            mapped.append(new)
        self._counts.add("U", int(changed))
        return Element(element.tag, "UI", "\\".join(mapped).encode())

    def _items(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element:
        items = [self._data_set(item, encoding, mode, depth + 1) for item in element.items or []]
        return Element(element.tag, "SQ", b"", items)

    def _keep(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        """An attribute that the profile keeps: descended into, or judged by its VR, or dropped where it is no such."""
        expected = dictionary_vr(element.tag)
        if element.items is not None or expected == "SQ":
            if element.items is None or expected not in ("SQ", "UN"):
                self._counts.add("UNKNOWN")
                return None
            return self._items(element, encoding, mode, depth)
        # Every reader takes the character set as a CS, whatever VR stands there.
        vr = expected if element.vr == "UN" or element.tag == _CHARACTER_SET else element.vr
        listed = element.tag in self._actions[depth > 0]  # kept by an option, not for want of a rule
        if vr == "UN" and listed:
            self._counts.add("UNKNOWN")  # newer than our dictionary: nobody knows what it is
            return None
        return self._leaf(element, vr, expected, encoding, depth, listed=listed)

    def _leaf(
        self, element: Element, vr: str, expected: str, encoding: Sequence[str], depth: int, *, listed: bool
    ) -> Element | None:
        """A value that is kept, as far as it is what its VR says and names nobody."""
        kind = {vr, expected}
        value = element.value
        if "UI" in kind:
            return self._kept_uid(element, encoding, depth, listed=listed)
        if kind & TEMPORAL:
            return self._kept_date(element, vr if vr in TEMPORAL else expected, encoding, listed=listed)
        if "AS" in kind and listed:
            return self._kept_age(element, encoding)
        if kind & {"PN", "AS"} and not listed:
            return self._dummy(Element(element.tag, vr, value), encoding, Mode.PLAIN, depth)
        if not values.plausible(element.tag, vr, expected, value):
            self._counts.add("UNKNOWN")
            return None
        if vr in _FREE_TEXT and value:
            if vr == "CS":
                checked = checked_terms(element.tag, bytes(value).rstrip(b"\0 "))
                if checked is not None:
                    self._counts.add("TERM")
                    element = Element(element.tag, vr, checked)
            elif not self._fits(value, vr, encoding):
                self._counts.add("LENGTH")
                return dummy(element, vr)
            if element.tag not in STRUCTURAL and self._names_somebody(element, encoding):
                self._counts.add("C")
                return self._without_echo(element, encoding) if vr == "CS" else dummy(element, vr)
            if vr in _UNLISTED and not listed and not (element.tag >> 16) & 1:
                element = self._unlisted(element, vr, encoding)
        return element if element.vr == vr else Element(element.tag, vr, element.value, None, element.fragments)

    def _unlisted(self, element: Element, vr: str, encoding: Sequence[str]) -> Element:
        """Text that no table lists: the words and technical tokens that name nobody, or something in its place."""
        tag, text = element.tag, decode(element.value, encoding)
        if tag == MEANING or tag in unlisted_text.CODES:
            return element  # judged with the code's scheme
        left = unlisted_text.checked(tag, vr, text)
        if left == text or text.encode() == WORD:
            return element
        self._counts.add("C")
        left = unlisted_text.checked(tag, vr, _ascii(text))  # as it would be written: a letter less is another word
        if left is not None:
            return Element(tag, vr, left.encode())
        return self._labelled(element, vr, text) if unlisted_text.refers(tag) else dummy(element, vr)

    def _labelled(self, element: Element, vr: str, text: str) -> Element:
        """A pseudonym for what leads to another place of the object: the same for the same."""
        if vr not in ("LO", "SH", "UC"):
            return dummy(element, vr)
        return Element(element.tag, vr, self._pseudonyms.label("text", text).encode())

    def _kept_uid(self, element: Element, encoding: Sequence[str], depth: int, *, listed: bool) -> Element | None:
        if listed or self._keep_uids:
            uids = [uid.strip("\0 ") for uid in decode(element.value, DEFAULT).split("\\")]
            if all(not uid or is_uid(uid) for uid in uids):
                return Element(element.tag, "UI", element.value)
        return self._uid(element, encoding, Mode.PLAIN, depth)

    def _kept_date(self, element: Element, vr: str, encoding: Sequence[str], *, listed: bool) -> Element:
        """A date or time that no rule names goes by its VR: it stays, is moved, or becomes a dummy."""
        text = decode(element.value, encoding)
        if not text:
            return Element(element.tag, vr)
        if element.tag in _SAID_DATES and text[:8] in self._echoes:
            self._counts.add("DATE")  # a report says when somebody was born, and no option keeps that
            return dummy(element, vr)
        if (self._keep_dates or listed) and dates.is_moment(vr, text):
            return element if element.vr == vr else Element(element.tag, vr, element.value)
        if self._move_dates:
            moved = dates.moved(self._shift, element.tag, vr, text)
            if moved is not None:
                self._counts.add("SHIFTED")
                return Element(element.tag, vr, moved.encode())
        self._counts.add("DATE")
        return dummy(element, vr)

    def _kept_age(self, element: Element, encoding: Sequence[str]) -> Element:
        text = decode(element.value, encoding)
        ages = [capped_age(part) for part in text.split("\\")]
        age = "\\".join(ages)
        if text and not all(ages):
            self._counts.add("D")
            return dummy(element, "AS")
        self._counts.add("AGE", int(age != text))
        return Element(element.tag, "AS", age.encode())

    def _fits(self, value: bytes | memoryview, vr: str, encoding: Sequence[str]) -> bool:
        """Whether no value is longer than its VR allows: what is may be anything."""
        most = _LENGTHS.get(vr)
        if most is None or len(value) <= most:
            return True
        return all(len(part) <= most for part in decode(value, encoding).split("\\"))

    def _names_somebody(self, element: Element, encoding: Sequence[str]) -> bool:
        """Whether kept text repeats an identifier, or holds the UID of an instance that this run may keep no more."""
        text = decode(element.value, encoding)
        return text in self._echoes or (not self._keep_uids and names_instance(text))

    def _without_echo(self, element: Element, encoding: Sequence[str]) -> Element:
        """A Code String with a dummy for the term that names somebody; the others stay, so that their places do."""
        terms = bytes(element.value).split(b"\\")
        kept = [WORD if decode(term, encoding) in self._echoes else term for term in terms]
        left = Element(element.tag, "CS", b"\\".join(kept))
        return dummy(element, "CS") if kept == terms or self._names_somebody(left, encoding) else left

    def _softened(self, element: Element, mode: Mode) -> Element:
        """What is left of a value inside content that becomes a dummy (terms and counts, no text and no measure) or is
        cleaned (of text, the words that name nobody)."""
        if not element.value or element.value == WORD or element.vr in ("CS", "UI", "US", "UL", "SS", "SL", "AT"):
            return element
        if element.vr in TEMPORAL or element.tag in STRUCTURAL:
            return element
        if mode is Mode.CLEAN:
            if element.vr not in TEXT_VRS or element.vr in ("DS", "IS", "AS"):
                return element
            text = self._words(element, DEFAULT, element.vr) if element.vr in _WORDY else b""
            if text == bytes(element.value).rstrip(b"\0 "):
                return element
            self._counts.add("C")
            return Element(element.tag, element.vr, text) if text else dummy(element, element.vr)
        self._counts.add("D")
        return dummy(element, element.vr)

    def _text(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        """Free text of which the words stay that name nobody; a sequence whose content is cleaned."""
        if element.items is not None:
            return self._items(element, encoding, Mode.CLEAN, depth)
        vr = _outgoing_vr(element)
        if vr not in _WORDY:
            return self._plainly(element, encoding, mode, depth)
        if not bytes(element.value).strip(b"\0 "):
            return Element(element.tag, vr)
        text = self._words(element, encoding, vr)
        if not text:
            return self._plainly(element, encoding, mode, depth)
        self._counts.add("C", int(text != bytes(element.value).rstrip(b"\0 ")))
        return Element(element.tag, vr, text)

    def _words(self, element: Element, encoding: Sequence[str], vr: str) -> bytes:
        """The cleaned text in ASCII; empty where nothing is left."""
        text = decode(element.value, encoding)
        parts = text.split("\\") if vr in _SEVERAL else [text]
        cleaned = [words.cleaned(_ascii(part))[: _LENGTHS.get(vr, 10240)].strip() for part in parts]
        cleaned = [part if part not in self._echoes else "" for part in cleaned]
        joined = "\\".join(cleaned)
        return joined.encode() if any(cleaned) and joined not in self._echoes else b""

    def _moved(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        vr = _outgoing_vr(element)
        if element.items is None:
            text = decode(element.value, encoding)
            if not text and vr in TEXT_VRS:
                return Element(element.tag, vr)
            if vr in TEMPORAL:
                moved = dates.moved(self._shift, element.tag, vr, text)
                if moved is not None:
                    self._counts.add("SHIFTED")
                    return Element(element.tag, vr, moved.encode())
            elif dates.ZONE.fullmatch(text):  # Timezone Offset From UTC: without it moments are no moments
                return Element(element.tag, vr, element.value)
        return self._plainly(element, encoding, mode, depth)

    def _label(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        """The name of a device on the network: a pseudonym of it, so that one device stays one."""
        vr = _outgoing_vr(element)
        text = decode(element.value, encoding) if element.items is None else ""
        if vr not in ("AE", "LO", "SH") or not text:
            return self._plainly(element, encoding, mode, depth)
        self._counts.add("C")
        labels = [self._pseudonyms.label("device", part.strip()) if part.strip() else "" for part in text.split("\\")]
        return Element(element.tag, vr, "\\".join(labels).encode())

    def _content(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        """Content items, each by its concept."""
        if element.items is None:
            self._counts.add("UNKNOWN")
            return None
        items = []
        for item in element.items:
            self._counts.tag = element.tag
            action = content.action(item, self._rules)
            self._counts.add("CONTENT", int(action in (Action.REMOVE, Action.DUMMY)))
            if action is Action.REMOVE and not self._in_place:
                continue
            how = Mode.STRICT if action in (Action.REMOVE, Action.DUMMY) else Mode.CLEAN
            over = {Action.KEEP: _SAID, Action.SHIFT: _SAID_MOVED}.get(action, _NOTHING)
            done = self._data_set(item, encoding, how, depth + 1, over)
            if action is Action.KEEP and content.cap_age(done):
                self._counts.tag = element.tag
                self._counts.add("AGE")
            items.append(done)
        return Element(element.tag, "SQ", b"", items)

    def _graphics(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        if element.items is None:
            return self._plainly(element, encoding, mode, depth)
        return self._items(element, encoding, Mode.CLEAN, depth)

    def _plainly(self, element: Element, encoding: Sequence[str], mode: Mode, depth: int) -> Element | None:
        """What the profile does to the attribute where nothing can be cleaned."""
        action = self._plain[depth > 0].get(element.tag, Action.DUMMY)
        if action not in _WITHOUT_CLEANING:
            self._counts.add("X")
            return None
        return _HANDLERS[action](self, element, encoding, mode, depth)

    def _private(
        self, found: Elements, elements: Elements, kept: dict[int, Element], encoding: Sequence[str], depth: int
    ) -> None:
        """Private elements that are known to be safe, with their creators; the others are left out."""
        if not self._keep_private:
            for element in found:
                self._counts.tag = element.tag
                self._counts.add("PRIVATE")
            return
        named = private.creators(elements, encoding)
        used: set[tuple[int, int]] = set()
        for element in found:
            self._counts.tag = element.tag
            group, number = element.tag >> 16, element.tag & 0xFFFF
            creator = named.get((group, number >> 8), "")
            done = self._safe(element, creator, encoding, depth) if number > 0xFF and creator else None
            if done is not None:
                kept[element.tag] = done
                used.add((group, number >> 8))
                self.blocks.add((group, creator))
            elif (group, number) not in named:
                self._counts.tag = element.tag
                self._counts.add("PRIVATE")
        for element in found:
            self._counts.tag = element.tag
            place = element.tag >> 16, element.tag & 0xFFFF
            if place in used:
                kept[element.tag] = Element(element.tag, "LO", element.value)
            elif place in named:
                self._counts.add("PRIVATE")

    def _safe(self, element: Element, creator: str, encoding: Sequence[str], depth: int) -> Element | None:
        vr = private.vr_of(element, creator, self._said)
        if vr is None or not creator.isascii() or len(creator) > 64 or creator in self._echoes:
            return None
        if vr == "SQ":
            return self._items(element, encoding, Mode.PLAIN, depth) if element.items is not None else None
        if element.items is not None or (element.vr not in (vr, "UN") and not {vr, element.vr} <= _BYTES):
            return None
        if vr == "UN" and decode(element.value, DEFAULT) in self._echoes:
            return None
        return self._leaf(Element(element.tag, vr, element.value), vr, vr, encoding, depth, listed=False)


_Handler = Callable[[Cleaner, Element, Sequence[str], Mode, int], Element | None]
_HANDLERS: Final[dict[Action, _Handler]] = {
    Action.EMPTY: Cleaner._empty,
    Action.DUMMY: Cleaner._dummy,
    Action.UID: Cleaner._uid,
    Action.KEEP: Cleaner._keep,
    Action.TEXT: Cleaner._text,
    Action.SHIFT: Cleaner._moved,
    Action.LABEL: Cleaner._label,
    Action.CONTENT: Cleaner._content,
    Action.GRAPHICS: Cleaner._graphics,
}


_WITHOUT_CLEANING: Final = frozenset({Action.EMPTY, Action.DUMMY, Action.UID})


def _ascii(text: str) -> str:
    """The text without accents: it has to fit whatever character set the object has."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKD", text.replace("ß", "ss")).encode("ascii", "ignore").decode()


def _outgoing_vr(element: Element) -> str:
    """VR for a value of our own making: the dictionary's, whatever the original claimed."""
    vr = dictionary_vr(element.tag)
    return vr if vr != "UN" or element.vr not in TEXT_VRS else element.vr


def _identifiers(elements: Elements, inherited: Sequence[str], retained: frozenset[int]) -> Iterator[tuple[str, str]]:
    """What names somebody, wherever it stands, by the table or as a person's name, unless the profile keeps it."""
    encoding = encodings(elements, inherited)
    for element in elements:
        if element.items is not None:
            for item in element.items:
                yield from _identifiers(item, encoding, retained)
            continue
        kind = kinds().get(element.tag) or ("person" if element.vr == "PN" else None)
        if kind and 0 < len(element.value) <= 1024 and element.tag not in retained:
            yield kind, decode(element.value, encoding, person=kind == "person")
