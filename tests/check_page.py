"""Opens a run's report.html in headless Chromium and checks that its script ran: ``python tests/check_page.py RUN``.

Not part of the tests, which check the page's text: a browser is too much to ask of every machine. It writes screenshots
beside the page, ``page-top.png`` and ``page-slide.png``, to be looked at.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=10000",
]


def chromium(page: str, *options: str) -> str:
    """Standard output of Chromium on ``page``, with a profile of its own."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "no Chromium found: install one (Debian: apt install chromium)"
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", *options, page]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def main(run: Path) -> None:
    """Checks the page of ``run``."""
    page = (run / "report.html").resolve().as_uri()
    dom = chromium(f"{page}#slide=0", "--dump-dom")
    tables = len(re.findall(r"<table", dom))
    assert dom.count("Copy as LaTeX</button>") == tables > 0, "the buttons of the tables are missing"
    if "map-0" in dom:
        assert not re.search(r'id="viewer"[^>]*hidden', dom), "the map of the first slide did not open"
        assert re.search(r'id="v-name"[^>]*>[^<]+<', dom), "the viewer does not name its slide"
    for name, address, size in (("top", page, "1280,1500"), ("slide", f"{page}#slide=0", "1280,6000")):
        chromium(address, f"--window-size={size}", f"--screenshot={run.resolve() / f'page-{name}.png'}")
        assert (run / f"page-{name}.png").stat().st_size > 10_000
    print(f"{tables} tables, screenshots in {run}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
