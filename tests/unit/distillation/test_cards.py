"""What the model card says of how a student was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distillation import cards
from distillation.__main__ import _before


def test_the_card_tells_of_every_run_that_a_student_came_through_and_who_taught_it(tmp_path: Path) -> None:
    def run(name: str, steps: int, **more: Any) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        said = {"plan": {"seed": steps}, "steps_done": steps, "seconds": 60, "teachers": {}, **more}
        (tmp_path / name / "run.json").write_text(json.dumps(said))
        return said

    run("taught", 100, teachers={"teacher1": "ab" * 32})
    run("then", 200, **_before(tmp_path / "taught" / "average.pt", False))
    last = run("edges", 300, **_before(tmp_path / "then" / "average.pt", True))
    told = cards._lineage(last)
    assert told.startswith("100 steps of 16 images, seed 100, 1 minutes on CPU, taught by an ensemble")
    assert "teacher1: SHA-256 abababababababab" in told
    assert 0 < told.index("; then 200 steps") < told.index("; only where the lungs end learnt in 300 steps")
