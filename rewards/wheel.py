"""Stage ``make wheel``: problems, judgement and doctor as one wheel, ``slotwise``.

``data`` and ``rewards`` cannot be installed under such common names: the files are copied below
``slotwise``, ``rewards/environments`` to its top, and what they import of one another is renamed.
The wheel is written here (packaging.python.org: binary distribution format), by Python alone.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from data.common.errors import run_main
from data.common.flags import Parser

ROOT = Path(__file__).resolve().parents[1]
#: Folders, and files of the pipeline that the doctor imports.
PARTS = (
    "data", "rewards", "pipeline/health", "pipeline/__init__.py", "pipeline/doctor.py",
    "pipeline/train/__init__.py", "pipeline/train/checkpoints.py", "pipeline/model/__init__.py",
    "pipeline/model/processes.py",
)  # fmt: skip
_TOP = "rewards/environments"
_IMPORT = re.compile(r"^( *)(from|import) (data|rewards|pipeline)\b", re.MULTILINE)
#: The wheel's metadata, below ``slotwise-0.1.0.dist-info``.
_FACTS = {
    "METADATA": """\
Metadata-Version: 2.1
Name: slotwise
Version: 0.1.0
Summary: Scheduling problems with proven optima, their verifier and rewards
License: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: filelock
Requires-Dist: jinja2
Requires-Dist: ortools>=9.12
Requires-Dist: pyyaml
Requires-Dist: rich
Requires-Dist: scipy
""",
    "WHEEL": """\
Wheel-Version: 1.0
Generator: slotwise
Root-Is-Purelib: true
Tag: py3-none-any
""",
    "entry_points.txt": """\
[console_scripts]
slotwise-doctor = slotwise.pipeline.doctor:command
""",
}
_NAME = "slotwise-0.1.0"


def _files() -> Iterator[Path]:
    for part in (ROOT / name for name in PARTS):
        yield from sorted([*part.rglob("*.py"), *part.rglob("*.md")]) if part.is_dir() else [part]


def contents() -> dict[str, str]:
    """The files of the wheel by their place in it, all but the list of them."""
    files: dict[str, str] = {}
    for path in _files():
        inside = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = text.replace(f"from {_TOP.replace('/', '.')}", "from slotwise")
            text = _IMPORT.sub(r"\1\2 slotwise.\3", text)
        files[f"slotwise/{inside.removeprefix(f'{_TOP}/')}"] = text
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    facts = {**_FACTS, "licenses/LICENSE": licence}
    return files | {f"{_NAME}.dist-info/{name}": text for name, text in facts.items()}


def build(out: Path) -> Path:
    """Write the wheel into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    path, record = out / f"{_NAME}-py3-none-any.whl", f"{_NAME}.dist-info/RECORD"
    files, lines = contents(), []
    for name, text in files.items():
        digest = urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{len(text.encode())}\n")
    files[record] = "".join([*lines, f"{record},,\n"])
    with ZipFile(path, "w") as wheel:
        for name, text in files.items():
            entry = ZipInfo(name)  # whose time is always the same one
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, text.encode(), ZIP_DEFLATED)
    return path


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder (default: dist)")
    print(f"pip install {build(parser.parse_args().out)}")


if __name__ == "__main__":
    run_main(main)
