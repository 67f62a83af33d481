"""Builds the wheel, installs it into an environment of its own, and runs it from another directory.

The environment sees the packages this one has (they are the declared dependencies), but not this checkout.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        files = zipfile.ZipFile(wheel).namelist()
        shipped = [
            f"mil_zoo/_{path.relative_to(ROOT)}"
            for part in ("configs", "data_cards")
            for path in (ROOT / part).rglob("*")
            if path.suffix in (".yaml", ".md")
        ]
        modules = [str(path.relative_to(ROOT)) for path in (ROOT / "mil_zoo").rglob("*.py")]
        missing = [path for path in [*shipped, *modules] if path not in files]
        if missing:
            sys.exit(f"the wheel lacks {', '.join(missing)}")
        environment = folder / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
        # Dependencies from the environment that runs this check, the package itself from the wheel.
        site = next(path for path in sys.path if path.endswith("site-packages"))
        (next(environment.glob("lib/python*/site-packages")) / "dependencies.pth").write_text(f"{site}\n")
        home = run(python, "-c", "import mil_zoo; print(mil_zoo.__file__)", cwd=folder).strip()
        if not home.startswith(str(environment.resolve())) and not home.startswith(str(environment)):
            sys.exit(f"mil_zoo was imported from {home}, not from the wheel")
        run(environment / "bin" / "mil-zoo", "models", cwd=folder)
        run(environment / "bin" / "mil-zoo", "datasets", cwd=folder)
        out = folder / "run"
        run(
            environment / "bin" / "mil-zoo",
            "bench",
            "--models",
            "abmil,mean",
            "--folds",
            "2",
            "--epochs",
            "1",
            "--out",
            out,
            cwd=folder,
        )
        if not (out / "table.csv").is_file():
            sys.exit("the wheel's bench wrote no table.csv")
    print("wheel: built, installed apart, found its configs and data cards, ran a bench")


if __name__ == "__main__":
    main()
