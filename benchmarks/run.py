"""Runs the suites one after another and renders what they measured: ``python benchmarks/run.py [--device cuda]``.

Installs and builds nothing: the packages of the Python that runs it. Results go to
``benchmarks/results/<cpu|gpu>-<machine>/``, one JSON a suite, and are replaced suite by suite.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import render

HERE = Path(__file__).parent
ON_GPU = ["test_kernels", "test_segments", "test_steps"]


def folder_of(document: dict, results: Path) -> Path:
    about = document["mil_zoo"]
    slug = re.sub(r"[^a-z0-9]+", "-", about["machine"].lower()).strip("-")
    return results / f"{'gpu' if about['device'] == 'cuda' else 'cpu'}-{slug}{'-tiny' * about['tiny']}"


def run_suite(suite: str, device: str, only: str, tiny: bool, results: Path) -> tuple[int, Path | None]:
    """The exit code of a suite, and the folder that its results went to (None where there are none)."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "suite.json"
        command = [sys.executable, "-m", "pytest", str(HERE / f"{suite}.py"), f"--benchmark-json={output}"]
        options = [f"--device={device}", "--benchmark-disable-gc", "-p", "no:cacheprovider", "--timeout=0", "-k", only]
        code = subprocess.run([*command, *options, *["--tiny"] * tiny], check=False).returncode
        if not output.exists() or not output.read_text():
            return code, None
        document = json.loads(output.read_text())
    for benchmark in document["benchmarks"]:
        benchmark["stats"].pop("data", None)
    document["machine_info"].pop("node", None)
    folder = folder_of(document, results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{suite.removeprefix('test_')}.json").write_text(json.dumps(document, indent=1) + "\n")
    return code, folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="*", help="names such as test_kernels; default: all that the device can run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="of the suites' tests, as pytest -k takes it")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal whose numbers mean nothing")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    every = sorted(path.stem for path in HERE.glob("test_*.py"))
    suites = arguments.suites or [suite for suite in every if arguments.device == "cpu" or suite in ON_GPU]
    codes, folder = [], None
    for suite in suites:
        code, written = run_suite(suite, arguments.device, arguments.only, arguments.tiny, arguments.results)
        codes.append(code)
        folder = written or folder
    if folder:
        render.render(folder)
        print(f"\n{(folder / 'table.md').read_text()}\n{folder}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
