"""Redacts damaged objects in a process of their own and counts what became of them.

    python -m tests.unit.redaction.mutation_run [COUNT] [FIRST_SEED] [PROFILE ...]

Each object is made from one of the sources by its seed alone, so that a failure can be repeated: by damage to its bytes
(`mutations.mutated`), and from seed 1,000,000,000 on by changes to its structure (`mutations.rearranged`).
What is counted as a failure: a process that dies, an exception that is no refusal, more than 10 s for one object, an
output that pydicom cannot read and save, an output that a second redaction changes, and memory over the bound.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import pydicom

from services.redaction.engine import redact
from services.redaction.profile import PROFILES, Profile
from shared.errors import StepwedgeError
from shared.pseudonyms import Pseudonyms
from tests.unit.redaction.canaries import everything
from tests.unit.redaction.mutations import mutated, rearranged

SECONDS = 10.0
MEMORY_BYTES = 2 << 30
"""Address space that a child may have; an object here has at most 300 kB."""
BLOCK = 1000
FAILURES = ("crash", "died", "hang", "unsaveable", "second pass differs", "memory")
STRUCTURAL = 1_000_000_000
SLACK = 5.0
LONGEST = 900.0
"""Wall-clock seconds without a word after which a child that computes nothing hangs, too: others use the machine."""


def sources() -> list[bytes]:
    """Small objects of pydicom's wheel, and the one with a canary in every place."""
    bundle = Path(pydicom.__file__).parent / "data"
    files = [path for path in sorted(bundle.rglob("*.dcm")) if path.stat().st_size < 300_000]
    return [path.read_bytes() for path in files] + [everything()[0]]


def made(objects: list[bytes], seed: int) -> bytes:
    """The damaged object of a seed."""
    return (rearranged if seed >= STRUCTURAL else mutated)(objects[seed % len(objects)], seed)


def one(data: bytes, pseudonyms: Pseudonyms, profile: Profile) -> str:
    """What becomes of one object, in a word or a code."""
    begun = _computed()
    try:
        first = redact(data, pseudonyms, profile).data
    except StepwedgeError as error:
        done = error.name
    except Exception as error:
        return f"crash {type(error).__name__}"
    else:
        done = "redacted"
        try:
            pydicom.dcmread(io.BytesIO(first)).save_as(io.BytesIO())
        except Exception as error:
            return f"unsaveable {type(error).__name__}"
        try:
            if redact(first, pseudonyms, profile).data != first:
                return "second pass differs"
        except StepwedgeError as error:
            return f"second pass differs {error.name}"
    return "hang" if _computed() - begun > SECONDS else done


def _computed() -> float:
    """Processor seconds of this process and of its children that ended, as a decoder that is stopped does."""
    return sum(os.times()[:4])


def _block(seeds: range, profile: str, results: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    pseudonyms, compiled, objects = Pseudonyms(bytes(range(32))), Profile.load(PROFILES / f"{profile}.toml"), sources()
    for seed in seeds:
        results.send((seed, ""))
        results.send((seed, one(made(objects, seed), pseudonyms, compiled)))
    results.send((-1, str(_most_memory())))


def _most_memory() -> int:
    """The most memory that this process took, KiB: of its own, where ru_maxrss also knows what it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def run(seeds: range, profile: str = "basic") -> tuple[Counter[str], list[tuple[int, str]], int]:
    """What became of the objects; the failures with their seeds; the most memory that a process took, bytes."""
    counts: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    most = 0
    todo = [seeds[at : at + BLOCK] for at in range(0, len(seeds), BLOCK)]
    while todo:
        block = todo.pop(0)
        done, at, memory = _child(block, profile)
        sys.stderr.write(f"{profile}: {sum(counts.values()) + len(done)} of {len(seeds)}, {len(failed)} failed\n")
        for seed, what in done:
            counts[what] += 1
            if what.startswith(FAILURES):
                failed.append((seed, what))
        most = max(most, memory)
        if at is not None:  # the child died, or hung, with this one
            counts["died"] += 1
            failed.append((at, "died"))
            if at + 1 < block.stop:
                todo.insert(0, range(at + 1, block.stop))
    return counts, failed, most


def _child(block: range, profile: str) -> tuple[list[tuple[int, str]], int | None, int]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_block, args=(block, profile, theirs))
    process.start()
    theirs.close()
    done: list[tuple[int, str]] = []
    under_way: int | None = block.start
    memory = 0
    with contextlib.suppress(EOFError):
        while _says_something(ours, process.pid or 0):
            seed, what = ours.recv()
            if seed < 0:
                under_way, memory = None, int(what) * 1024
                break
            under_way = seed
            if what:
                done.append((seed, what))
    process.kill()
    process.join()
    return done, under_way, memory


def _says_something(child: Connection, pid: int) -> bool:
    """Wait for a child's next word, as long as it has not computed too long for it."""
    begun, spent = time.monotonic(), _processor_seconds(pid)
    while not child.poll(1.0):
        if _processor_seconds(pid) - spent > SECONDS + SLACK or time.monotonic() - begun > LONGEST:
            return False
    return True


def _processor_seconds(pid: int) -> float:
    """What a process has computed; 0 where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(spent) for spent in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run and print, a line of JSON for each profile."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for profile in sys.argv[3:] or ["basic"]:
        begun = time.monotonic()
        counts, failed, most = run(range(first, first + count), profile)
        told = {
            "profile": profile,
            "objects": sum(counts.values()),
            "outcomes": dict(counts.most_common()),
            "failed": failed[:50],
            "most_memory_mb": most // 1_000_000,
            "seconds": round(time.monotonic() - begun),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
