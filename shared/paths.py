"""Where the parts of the checkout lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Root of the checkout, or of the container's application folder, which is laid out alike."""

POLICY = ROOT / "shared" / "policy.toml"
"""The policy that turns findings into verdicts, unless the settings name another."""

MODEL = ROOT / "models" / "chest-student" / "0.5.0"
"""The released model that inference serves, unless the settings name another."""


def displayed(path: str) -> str:
    """Return `path` without the machine's own folders: below the checkout relative to it, else from site-packages on.

    Log lines and tracebacks must not depend on where the product is installed.
    """
    root = f"{ROOT}/"
    if path.startswith(root) and "site-packages/" not in path:
        return path[len(root) :]
    for marker in ("site-packages/", "dist-packages/"):
        if marker in path:
            return path.rsplit(marker, 1)[1]
    return "/".join(Path(path).parts[-2:])
