"""No log line can name a patient, whoever writes it and however it fails."""

import ast
import json
import subprocess
import sys
import textwrap

from shared import logs
from shared.paths import ROOT

CANARY = ("DOE", "JANE", "19700101", "4711")


def _run(body: str, *, returncode: int = 0) -> list[dict[str, object]]:
    program = textwrap.dedent(
        """
        import asyncio, logging, sys, threading, warnings
        from shared import logs
        logs.configure("test", "DEBUG")
        log = logs.get_logger("services.test")
        NAME = "DOE^JANE"
        """
    ) + textwrap.dedent(body)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == returncode, ended.stderr
    assert ended.stdout == ""
    for word in CANARY:
        assert word not in ended.stderr
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_a_line_holds_the_service_the_time_and_the_fields_that_are_allowed() -> None:
    (line,) = _run('log.info("study decided", study="2.25.123", verdict="ACCEPT", duration_seconds=1.5, count=3)')
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {
        "event": "study decided", "level": "info", "logger": "services.test", "service": "test", "study": "2.25.123",
        "verdict": "ACCEPT", "duration_seconds": 1.5, "count": 3,
    }  # fmt: skip


def test_fields_that_are_not_allowed_are_dropped_and_counted() -> None:
    (line,) = _run('log.info("received", patient=NAME, birth_date="19700101", study="2.25.1")')
    assert line["dropped_fields"] == 2
    assert line["study"] == "2.25.1"


def test_values_that_do_not_look_like_a_name_of_ours_are_withheld() -> None:
    (line,) = _run(
        """
        log.info("received", study="1.2.840.4711", series=["2.25.1", NAME], instance={"n": NAME}, key="DOE JANE",
                 subject="4711")
        """
    )
    assert line["study"] == line["key"] == line["subject"] == "[withheld]"
    assert line["series"] == ["2.25.1", "[withheld]"]
    assert line["instance"] == "[dict]"


def test_an_event_that_is_no_constant_phrase_is_withheld() -> None:
    lines = _run('log.info(f"received {NAME}"); log.info("born 19700101"); log.info(NAME)')
    assert [line["event"] for line in lines] == ["withheld: an event is a constant phrase"] * 3


def test_an_exception_shows_its_type_its_frames_and_its_causes_and_no_word() -> None:
    lines = _run(
        """
        def inner():
            raise KeyError(NAME)
        try:
            try:
                inner()
            except KeyError as error:
                raise ValueError(f"{NAME} 4711") from error
        except ValueError:
            log.exception("it failed")
            log.error("it failed again", exc_info=True)
            logging.getLogger("asyncio").exception("library says %s", NAME)
        """
    )
    assert [line["error_type"] for line in lines] == ["builtins.ValueError"] * 3
    assert all(line["causes"] == ["builtins.KeyError"] and line["frames"] for line in lines)


def test_libraries_are_heard_from_warning_on_and_their_words_are_withheld() -> None:
    lines = _run(
        """
        for name in ("pydicom", "pynetdicom.acse", "sqlalchemy.engine", "grpc", "unknown.library"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(level, "value %s in %r", NAME, {"PatientID": "4711"}, stack_info=True)
        warnings.warn(f"Invalid value for VR PN: {NAME}")
        """
    )
    assert [line["logger"] for line in lines] == [
        "pydicom", "pynetdicom.acse", "sqlalchemy.engine", "grpc", "unknown.library", "py.warnings",
    ]  # fmt: skip
    assert {line["event"] for line in lines} == {"message of a library"}


def test_a_library_that_logs_wrongly_does_not_print_its_arguments() -> None:
    _run('logging.getLogger("pydicom").warning("%d", NAME)')


def test_what_nobody_catches_is_one_line_without_words() -> None:
    lines = _run(
        """
        def fails():
            raise RuntimeError(NAME)
        thread = threading.Thread(target=fails); thread.start(); thread.join()

        class Unraisable:
            def __del__(self):
                raise RuntimeError(NAME)
        made = Unraisable(); del made

        async def loses():
            logs.watch_loop(asyncio.get_running_loop())
            task = asyncio.ensure_future(asyncio.to_thread(fails))
            await asyncio.wait([task])
            del task
            import gc; gc.collect()
        asyncio.run(loses())
        raise RuntimeError(NAME)
        """,
        returncode=1,
    )
    assert [line["event"] for line in lines] == [
        "uncaught error in a thread", "error that could not be raised", "unhandled error in the event loop",
        "uncaught error",
    ]  # fmt: skip
    assert {line["error_type"] for line in lines} == {"builtins.RuntimeError"}


def test_a_line_inside_a_trace_bears_its_id() -> None:
    (line,) = _run(
        """
        from shared import tracing
        tracing.configure("test")
        with tracing.span("x"):
            log.info("inside")
        """
    )
    assert len(str(line["trace_id"])) == 32


def test_code_that_only_uses_ours_finds_no_line_in_its_output() -> None:
    program = 'from shared import logs; logs.get_logger("shared.x").error("something")'
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_every_log_call_of_the_product_is_a_constant_phrase_with_allowed_fields() -> None:
    levels = {"debug", "info", "warning", "error", "critical", "exception"}
    calls, wrong = 0, []
    for package in ("shared", "services", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in levels
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in {"_log", "log", "logger", "_logger"}
                ):
                    continue
                calls += 1
                phrase = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                fields = {keyword.arg for keyword in node.keywords if keyword.arg} - {"exc_info"}
                allowed = fields <= logs.ALLOWED_FIELDS
                kept = logs.keep_allowed(None, "", {"event": phrase})["event"] == phrase
                if not (allowed and kept and len(node.args) == 1):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert calls > 10
    assert wrong == []
