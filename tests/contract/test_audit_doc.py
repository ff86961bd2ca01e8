"""docs/audit.md against the tree: every test that it names exists, every attack is there, the statuses are those."""

import ast
import re

from shared.paths import ROOT
from verifier import verify

TEXT = (ROOT / "docs" / "audit.md").read_text("utf-8")
ATTACKS = ROOT / "tests" / "attacks"


def _tests(folder: str) -> set[str]:
    found = set()
    for file in (ROOT / folder).rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", TEXT))
    assert len(named) > 60
    assert sorted(named - _tests("tests")) == []


def test_every_row_of_rules_and_attacks_names_a_test() -> None:
    attacks = TEXT.partition("## The 18 attacks")[2].partition("### What stays open")[0]
    rules = TEXT.partition("## What the rules ask for")[2].partition("## What to do")[0]
    rows = [line for part in (attacks, rules) for line in part.splitlines() if line.startswith("|")]
    for row in rows:
        if not row.startswith(("| #", "| rule", "|---")):
            assert "`test_" in row, row


def test_each_of_the_18_attacks_has_its_file_and_its_row_with_tests_of_that_file() -> None:
    for number in range(1, 19):
        (file,) = ATTACKS.glob(f"test_{number:02}_*.py")
        (row,) = re.findall(rf"^\| {number} \|.*$", TEXT, re.MULTILINE)
        names = re.findall(r"`(test_[a-z0-9_]+)`", row)
        assert names
        assert all(
            name.startswith(f"test_{number:02}_") and f"def {name}(" in file.read_text("utf-8") for name in names
        )


def test_the_statuses_are_those_of_the_verifier() -> None:
    (said,) = re.findall(r"Exit status of `verifier/verify.py`: (.*?)\.", TEXT.replace("\n", " "))
    pairs = {
        int(number): words.strip().upper().replace(" ", "_") for number, words in re.findall(r"(\d) ([a-z ]+)", said)
    }
    assert pairs == verify.WORDS


def test_every_file_that_it_names_is_there() -> None:
    for path in set(re.findall(r"`((?:tests|verifier|docs)/[a-z0-9_/.]+)`", TEXT)):
        assert (ROOT / path).exists(), path
    for module in set(re.findall(r"python -m (tests[a-z0-9_.]+)", TEXT)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
