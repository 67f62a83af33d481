"""Everything that only a GPU can show, in one command of a few minutes: ``python benchmarks/gpu_check.py``.

Needs torch, triton, numpy and what the package imports; builds and downloads nothing. Every step runs in processes of
its own with its own time limit, and whatever fails or hangs, the rest goes on. Results are written at once, a row a
line, to ``rows.jsonl`` of the folder (``benchmarks/results/gpu-<name>``), and as one table to ``table.md`` and
``results.json`` at the end. Steps, most important first:

- device: name, versions, clocks; bandwidth of a copy, rates of matrix products (what floors are made of)
- correct: every op with a Triton version in float32, bfloat16, float16 against the reference in float64
- models: a training step of each aggregator against the CPU in float64, losses and every gradient
- pytest: tests/kernels/test_triton.py on the device; compile: the kernels of the steps that follow
- replays: trainings whose steps are replayed as CUDA graphs against the same ones handed over kernel by kernel
- ops, steps: times beside floors, PyTorch Geometric and plain PyTorch
- scale: SRMIL on 2 x 10^5 (training) and 10^6 patches (evaluation)
- epoch, kernels, profile, waits: an epoch of ``fit``; where the device and the host spend a step; which steps wait

``--quick`` rehearses every line with tiny sizes, also on a CPU under Triton's interpreter; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Step(NamedTuple):
    """A step: seconds that it may take, processes that it is split among, and the module and function that it is."""

    seconds: int
    parts: int
    function: str


# Steps of one line run at the same time: those that compile more than they compute, and nothing that is timed.
STAGES: list[dict[str, Step]] = [
    {"device": Step(40, 1, "device.run")},
    {
        "pytest": Step(110, 4, ""),
        "compile": Step(110, 8, "speed.compile_all"),
        "correct": Step(110, 5, "correct.run"),
        "models": Step(110, 3, "models.run"),
    },
    {"replays": Step(120, 8, "replays.run")},
    {"steps": Step(120, 1, "speed.steps")},
    {"epoch": Step(70, 1, "speed.epoch")},
    {"ops": Step(60, 1, "ops.run")},
    {"kernels": Step(40, 1, "speed.kernels")},
    {"waits": Step(50, 1, "speed.waits"), "profile": Step(50, 1, "speed.profile")},
    {"scale": Step(45, 1, "scale.run")},
]


def main() -> None:
    """Runs the steps that were asked for, or one part of one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results/gpu-<name>")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--seconds", type=int, default=420, help="after which no further step starts")
    parser.add_argument("--quick", action="store_true", help="a rehearsal with tiny sizes")
    parser.add_argument("--part", nargs=3, metavar=("STEP", "PART", "PARTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out or HERE / "results" / f"gpu-{_device_name()}"
    out.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        _run_part(out.resolve(), arguments.quick, *arguments.part)
        return
    start = time.monotonic()
    for stage in STAGES:
        wanted = {name: step for name, step in stage.items() if not arguments.only or name in arguments.only}
        left = arguments.seconds - (time.monotonic() - start)
        if wanted and left < 5:
            _write(out, step=",".join(wanted), what="skipped", error="no time was left")
        elif wanted:
            _run_stage(out.resolve(), arguments.quick, wanted, left)
        _render(out)
    print((out / "table.md").read_text())


def _device_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "rehearsal"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _run_stage(out: Path, quick: bool, stage: dict[str, Step], left: float) -> None:
    """Starts all parts of a stage's steps and waits for them, each until its limit."""
    running: list[tuple[str, float, subprocess.Popen[bytes], Path]] = []
    begun = time.monotonic()
    for name, step in stage.items():
        for part in range(step.parts):
            log = out / "logs" / f"{name}-{part}.txt"
            log.parent.mkdir(exist_ok=True)
            command = [sys.executable, str(HERE / "gpu_check.py"), "--out", str(out), *["--quick"] * quick]
            command += ["--part", name, str(part), str(step.parts)]
            threads = {} if len(stage) == step.parts == 1 else {"OMP_NUM_THREADS": "1"}
            with log.open("wb") as file:
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | threads, start_new_session=True
                )
            running.append((name, begun + min(left, step.seconds * (20 if quick else 1)), process, log))
    for name, deadline, process, log in running:
        status = "done"
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
            if code:
                status = f"exit code {code}: " + " / ".join(log.read_text(errors="replace").splitlines()[-3:])[:600]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = "stopped at its time limit"
        seconds = round(time.monotonic() - begun, 1)
        failed = {} if status == "done" else {"error": status}
        _write(out, step=name, what=f"process {log.stem}", seconds=seconds, **failed)


def _write(out: Path, **row: Any) -> None:
    line = json.dumps(row)
    with (out / "rows.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def _run_part(out: Path, quick: bool, name: str, part: str, parts: str) -> None:
    step = next(stage[name] for stage in STAGES if name in stage)
    if name == "pytest":
        _run_pytest(out, quick, int(part), int(parts))
        return
    sys.path.insert(0, str(HERE))
    sys.path.insert(0, str(HERE.parent))  # the checkout's own package, installed or not
    from gpu.absent import stand_in

    stand_in()
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from importlib import import_module

    from gpu.common import Check

    from mil_zoo.kernels import backends

    # What a GPU is compared with is the reference; the interpreter, which a rehearsal has instead of a GPU, is slow.
    interpreted = not torch.cuda.is_available() and name == "models"
    backends._PREFERENCE["cpu"] = ("triton", "reference") if interpreted else ("reference",)

    module, _, function = step.function.partition(".")
    getattr(import_module(f"gpu.{module}"), function)(Check(out, name, int(part), int(parts), quick))


def _run_pytest(out: Path, quick: bool, part: int, parts: int) -> None:
    """The tests of the Triton kernels; each process takes some of them."""
    expressions = [
        "graph_attention or pieces or infinite or triton_that_runs",
        "segment or argmax",
        "half or dropped or dropout_in or dropout_linear or without_a_gradient",
        "not (graph_attention or pieces or infinite or triton_that_runs or segment or argmax or half or dropped or "
        "dropout_in or dropout_linear or without_a_gradient or sm_90)",
    ]
    chosen = " or ".join(f"({e})" for e in expressions[part::parts])
    if quick:
        chosen = ["seeded", "argmax", "triton_that_runs", "dropped"][part % 4]
    report = out / "logs" / f"pytest-{part}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
    command += [f"--rootdir={HERE.parent}", "--tb=short", f"--junitxml={report}", "-k", chosen]
    command.append("tests/kernels/test_triton.py")
    paths = [str(HERE.parent), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if _device_name() == "rehearsal":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(command, cwd=HERE.parent, check=False, env=environment)
    text = report.read_text() if report.exists() else ""
    counts = {key: int(value) for key, value in re.findall(r'(tests|failures|errors|skipped)="(\d+)"', text)}
    failed = re.findall(r'<testcase [^>]*? name="([^"]+)"[^>]*>\s*<(?:failure|error) message="([^"]{0,300})', text)
    _write(out, step="pytest", what=f"tests/kernels/test_triton.py, part {part}", **counts, failed=failed)
    sys.exit(done.returncode)


def _render(out: Path) -> None:
    """``results.json`` and ``table.md`` from the rows written so far."""
    path = out / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = ["# What a GPU shows", ""]
    for row in rows:
        if row["step"] == "device" and row["what"] in ("machine", "rates"):
            facts = ", ".join(f"{k} {_short(v)}" for k, v in row.items() if k not in ("step", "what"))
            lines += [f"{row['what'].capitalize()}: {facts}.", ""]
    lines += _correctness(rows) + _times(rows) + _rest(rows)
    (out / "table.md").write_text("\n".join(lines) + "\n")


def _correctness(rows: list[dict[str, Any]]) -> list[str]:
    checked = [row for row in rows if "largest_error" in row]
    if not checked:
        return []
    passed = sum(row["passed"] for row in checked)
    lines = [f"## Correctness: {passed} of {len(checked)} comparisons within what is allowed", ""]
    lines += [
        "| step | precision | comparisons | largest error | where | allowed | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in checked:
        split = row["step"] == "correct"
        op = row["what"].split()[0] if split else "step of an aggregator"
        groups.setdefault((op, row["what"].rpartition(", ")[2] if split else "float32"), []).append(row)
    for (op, precision), found in groups.items():
        worst = max(found, key=lambda row: row["largest_error"] / row["allowed"])
        failed = [row["what"] for row in found if not row["passed"]]
        lines.append(
            f"| {op} | {precision} | {len(found)} | {worst['largest_error']:.1e} | {worst['what']} (tensor "
            f"{worst['of_tensor']}) | {worst['allowed']:.1e} | {'; '.join(failed) or 'none'} |"
        )
    return [*lines, ""]


def _times(rows: list[dict[str, Any]]) -> list[str]:
    timed = [row for row in rows if "milliseconds" in row]
    if not timed:
        return []
    lines = [
        "## Times",
        "",
        "Medians, forward and backward unless it says forward or evaluation; the device's cache (L2)",
        "is overwritten before every call. `host`: the time of handing the work over.",
        "",
    ]
    lines += [
        "| what | by | precision | time (ms) | host (ms) | floor (ms) | time / floor | faster than | peak (MiB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in timed:
        ours = row.get("by", "").startswith(("mil_zoo", "triton"))
        rest = [other for other in timed if other["what"] == row["what"] and other is not row]
        rest = [other for other in rest if other.get("precision") == row.get("precision")]
        rest = [other for other in rest if not other.get("by", "").startswith(("mil_zoo", "triton"))]
        ratios = [f"{other['by']} {other['milliseconds'] / row['milliseconds']:.2f}x" for other in rest] if ours else []
        cells = [
            row["what"],
            row.get("by", ""),
            row.get("precision", ""),
            *(_short(row.get(k)) for k in ("milliseconds", "host_milliseconds", "floor_ms", "times_the_floor")),
            ", ".join(ratios),
            _short(row.get("peak_mib")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _rest(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["## Everything else", ""]
    for row in rows:
        if "largest_error" in row or "milliseconds" in row or (row["step"] == "device" and "error" not in row):
            continue
        values = ", ".join(f"{k}: {_short(v)}" for k, v in row.items() if k not in ("step", "what"))
        lines.append(f"- {row['step']}, {row['what']}: {values}")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
