"""Generate the Python stubs of every contract into `stepwedge/` at the checkout's root.

Called by the install (setup.py) and by `make stubs`; what it writes is never committed. Contracts that do not compile
leave the stubs that there are.
"""

import os
import shutil
import sys
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

PROTOS = Path(__file__).resolve().parent
ROOT = PROTOS.parent


def generate() -> None:
    """Compile every .proto below `protos/`; raise SystemExit with protoc's status if one does not compile."""
    from grpc_tools import protoc

    # protoc finds its mypy plug-ins beside the interpreter that runs it.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with TemporaryDirectory(dir=ROOT, prefix=".stubs-") as written:
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={PROTOS}",
                f"--proto_path={resources.files('grpc_tools') / '_proto'}",
                f"--python_out={written}",
                f"--grpc_python_out={written}",
                f"--mypy_out={written}",
                f"--mypy_grpc_out={written}",
                *sources,
            ]
        )
        if status:
            raise SystemExit(status)
        made = Path(written) / "stepwedge"
        for folder in [made, *(p for p in made.rglob("*") if p.is_dir())]:
            (folder / "__init__.py").write_text("")
            (folder / "py.typed").write_text("")
        shutil.rmtree(ROOT / "stepwedge", ignore_errors=True)
        made.rename(ROOT / "stepwedge")


if __name__ == "__main__":
    sys.exit(generate())
