"""Landlock for real, in a child process: what is not granted cannot be opened, by root neither."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shared.paths import ROOT

_PROGRAM = textwrap.dedent(
    """
    import json, sys, threading
    from pathlib import Path
    from shared.confine import confine

    folder = Path(sys.argv[1])
    confined = confine(read=[folder / "read", folder / "one" / "file", folder / "absent"], write=[folder / "write"])

    def outcome(action):
        try:
            action()
        except OSError as error:
            return type(error).__name__
        return "ok"

    def attempts():
        return {
            "read": outcome(lambda: (folder / "read" / "file").read_bytes()),
            "list": outcome(lambda: list((folder / "read").iterdir())),
            "write into read": outcome(lambda: (folder / "read" / "file").write_bytes(b"x")),
            "create in read": outcome(lambda: (folder / "read" / "new").touch()),
            "read the one file": outcome(lambda: (folder / "one" / "file").read_bytes()),
            "read its neighbour": outcome(lambda: (folder / "one" / "neighbour").read_bytes()),
            "write": outcome(lambda: (folder / "write" / "new").write_bytes(b"x")),
            "read what was written": outcome(lambda: (folder / "write" / "new").read_bytes()),
            "rename": outcome(lambda: (folder / "write" / "new").rename(folder / "write" / "newer")),
            "remove": outcome(lambda: (folder / "write" / "newer").unlink()),
            "read the other": outcome(lambda: (folder / "other" / "file").read_bytes()),
            "list the other": outcome(lambda: list((folder / "other").iterdir())),
            "through a link": outcome(lambda: (folder / "read" / "link").read_bytes()),
            "through the parent": outcome(lambda: (folder / "read" / ".." / "other" / "file").read_bytes()),
            "hard link": outcome(lambda: (folder / "write" / "hard").hardlink_to(folder / "other" / "file")),
            "truncate": outcome(lambda: __import__("os").truncate(folder / "other" / "file", 0)),
        }

    found = {"main": attempts()}
    thread = threading.Thread(target=lambda: found.update(thread=attempts()))
    thread.start()
    thread.join()
    print(json.dumps({"confined": confined, **found}))
    """
)


def test_a_confined_process_opens_what_it_was_granted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("read", "one", "write", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"content")
    (tmp_path / "one" / "neighbour").write_bytes(b"content")
    (tmp_path / "read" / "link").symlink_to(tmp_path / "other" / "file")
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    if not result["confined"]:
        pytest.skip("this kernel has no Landlock")
    granted = {"read", "list", "read the one file", "write", "read what was written", "rename", "remove"}
    for thread in ("main", "thread"):
        assert {name for name, outcome in result[thread].items() if outcome == "ok"} == granted
        assert {outcome for name, outcome in result[thread].items() if name not in granted} <= {
            "PermissionError",
            "OSError",  # EXDEV, for a link across rights
        }
    assert (tmp_path / "other" / "file").read_bytes() == b"content"
