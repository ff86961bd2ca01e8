"""Redaction beside its peers, on the same objects in the same run: objects per CPU-second, crashes, leaks.

    python -m benchmarks.redaction [--labels] [FOLDER ...]

`--labels`: no speeds, but what the allow-list for text that no table lists takes from these objects: how many values of
these attributes there are, how many change, and in which attributes.

Peers are measured where they are installed; they are no dependency of ours. In an environment of their own:

    python -m venv --system-site-packages /tmp/peers
    /tmp/peers/bin/pip install dicom-anonymizer dicognito deid
    /tmp/peers/bin/python -m benchmarks.redaction

Objects are those of pydicom's wheel and of the folders named. Every tool reads, redacts and writes in memory, in one
process, the tools taking turns; the best of `ROUNDS` rounds counts. Leaks are counted on an object with one unique
value in each place where identity hides (tests/unit/redaction/canaries.py).
"""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pydicom
from pydicom.datadict import keyword_for_tag

from services.redaction import unlisted_text
from services.redaction.engine import redact
from services.redaction.profile import Action, Profile
from services.redaction.profile import unlisted as unlisted_action
from shared.errors import StepwedgeError
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import everything, table

ROUNDS = 5
CODE_MEANING = 0x00080104
LISTED = frozenset(tag for tag, _, _ in table())
Tool = Callable[[bytes], bytes]


def ours() -> Tool:
    """The engine on headers, its residual check included: what the peers do too."""
    return _engine(Profile.basic())


def with_pixels() -> Tool:
    """The default profile: text in the pixels of every frame is looked for and blanked, too."""
    return _engine(Profile.load(Profile.file("basic-pixels")))


def _engine(profile: Profile) -> Tool:
    pseudonyms = Pseudonyms(bytes(32))
    return lambda data: redact(data, pseudonyms, profile).data


def _through_pydicom(change: Callable[[pydicom.Dataset], pydicom.Dataset | None]) -> Tool:
    def run(data: bytes) -> bytes:
        ds = pydicom.dcmread(io.BytesIO(data))
        ds = change(ds) or ds
        out = io.BytesIO()
        ds.save_as(out)
        return out.getvalue()

    return run


def nothing() -> Tool:
    """pydicom alone: read, walk, write."""

    def walk(ds: pydicom.Dataset) -> None:
        for _ in ds.iterall():
            pass

    return _through_pydicom(walk)


def bare() -> Tool:
    """pydicom alone: read and write; it hands on most elements without looking into them."""
    return _through_pydicom(lambda ds: None)


def dicom_anonymizer() -> Tool:
    """dicom-anonymizer with its newest table."""
    from dicomanonymizer import simpledicomanonymizer as tool

    def rules() -> dict:
        return tool.initialize_actions("dicomfields_2026c")

    return _through_pydicom(lambda ds: tool.anonymize_dataset(ds, base_rules_gen=rules))


def dicognito() -> Tool:
    """dicognito as it comes."""
    from dicognito.anonymizer import Anonymizer

    anonymizer = Anonymizer(seed="benchmark")
    return _through_pydicom(anonymizer.anonymize)


def deid() -> Tool:
    """deid with its default recipe."""
    from deid.config import DeidRecipe
    from deid.dicom.parser import DicomParser

    recipe = DeidRecipe()

    def change(ds: pydicom.Dataset) -> pydicom.Dataset:
        parser = DicomParser(ds, recipe=recipe)
        parser.parse(remove_private=False)
        return parser.dicom

    return _through_pydicom(change)


TOOLS: dict[str, tuple[str, Callable[[], Tool]]] = {
    "stepwedge": ("", ours),
    "stepwedge, basic-pixels": ("", with_pixels),
    "pydicom, bare read and write": ("pydicom", bare),
    "pydicom, read, walk, write": ("pydicom", nothing),
    "dicom-anonymizer": ("dicom-anonymizer", dicom_anonymizer),
    "dicognito": ("dicognito", dicognito),
    "deid": ("deid", deid),
}


def tools() -> Iterator[tuple[str, Tool]]:
    """Every tool that is installed, with its version."""
    for name, (package, make) in TOOLS.items():
        try:
            version = f" {metadata.version(package)}" if package else ""
            yield name + version, make()
        except (ImportError, metadata.PackageNotFoundError):
            print(f"{name}: not installed, left out")


def objects(folders: list[Path]) -> list[bytes]:
    """Objects that pydicom reads without being forced to."""
    bundle = Path(pydicom.__file__).parent / "data"
    found = []
    for path in sorted(path for folder in [bundle, *folders] for path in folder.rglob("*.dcm")):
        try:
            data = path.read_bytes()
            pydicom.dcmread(io.BytesIO(data)).save_as(io.BytesIO())
        except Exception:  # noqa: BLE001 - whatever it is, no tool could read it
            continue
        found.append(data)
    return found


def round_of(tool: Tool, data: list[bytes]) -> tuple[float, int, int]:
    """CPU-seconds for all objects, refusals with a code, crashes."""
    refused = crashed = 0
    begun = time.process_time()
    for one in data:
        try:
            tool(one)
        except StepwedgeError:
            refused += 1
        except Exception:  # noqa: BLE001 - what is counted
            crashed += 1
    return time.process_time() - begun, refused, crashed


def leaks(tool: Tool, planted_object: bytes, planted: dict[bytes, str]) -> str:
    """How many canaries are left, or that the tool failed."""
    try:
        left = tool(planted_object).lower()
    except Exception:  # noqa: BLE001 - what is told
        return "crash"
    return str(sum(value.lower() in left for value in planted))


def unlisted(ds: pydicom.Dataset) -> Iterator[tuple[tuple[object, ...], int, str]]:
    """Place, tag and value of text that Table E.1-1 does not list, at every depth; codes aside."""
    for element in ds:
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                for place, tag, text in unlisted(item):
                    yield (int(element.tag), number, *place), tag, text
        elif is_text(int(element.tag)) and str(element.value or "").strip():
            yield (int(element.tag),), int(element.tag), str(element.value)


def is_text(tag: int) -> bool:
    """Whether the allow-list for text that no table lists judges the attribute, and it is no part of a code."""
    named = tag in unlisted_text.CODES or tag == CODE_MEANING or tag in LISTED or not keyword_for_tag(tag)
    return not named and unlisted_action(tag) is Action.KEEP and unlisted_text.is_judged(tag)


def labels(data: list[bytes]) -> None:
    """What the allow-list changed, and in which attributes; values are not printed."""
    tool, read, values, kept, changed = ours(), 0, 0, 0, Counter[str]()
    for one in data:
        try:
            after = {place: text for place, _, text in unlisted(pydicom.dcmread(io.BytesIO(tool(one))))}
        except StepwedgeError:
            continue
        read += 1
        for place, tag, text in unlisted(pydicom.dcmread(io.BytesIO(one))):
            values += 1
            if after.get(place, text) == text:
                kept += 1
            else:
                changed[keyword_for_tag(tag)] += 1
    print(f"{read} objects; of {values} values of text that no table lists {values - kept} changed:")
    for keyword, count in changed.most_common():
        print(f"  {count:4} {keyword}")


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    folders = [argument for argument in sys.argv[1:] if argument != "--labels"]
    data = objects([Path(argument) for argument in folders])
    if "--labels" in sys.argv[1:]:
        labels(data)
        return
    planted_object, planted = everything()
    print(
        f"{len(data)} objects, {sum(map(len, data)) / 1e6:.1f} MB; {len(planted)} canaries; best of {ROUNDS} rounds\n"
    )
    measured = list(tools())
    best = {name: float("inf") for name, _ in measured}
    failed = {name: (0, 0) for name, _ in measured}
    for _ in range(ROUNDS):
        for name, tool in measured:
            spent, *counts = round_of(tool, data)
            best[name] = min(best[name], spent)
            failed[name] = (counts[0], counts[1])
    print(f"{'tool':36}{'objects/CPU-s':>14}{'refused':>9}{'crashed':>9}{'leaks':>7}")
    figures = {}
    for name, tool in measured:
        refused, crashed = failed[name]
        figures[name] = (len(data) - refused - crashed) / best[name]  # only what was done counts
        print(f"{name:36}{figures[name]:14.0f}{refused:9}{crashed:9}{leaks(tool, planted_object, planted):>7}")
    print()
    for name, figure in list(figures.items())[1:]:
        print(f"stepwedge is {figures['stepwedge'] / figure:.2f} times as fast as {name}")


if __name__ == "__main__":
    main()
