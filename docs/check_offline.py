"""Fails where a built page would load something from a network: a script, style, image or font of another host."""

import re
import sys
from pathlib import Path

# What a browser loads by itself; links that a reader follows are no matter.
HOST = r"""["']?\s*(?:https?:)?//[^"'\s>)]+"""
LOADED = re.compile(
    rf"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|srcset|data)\s*=\s*{HOST}"
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon|shortcut icon|modulepreload|preconnect))"""
    rf"[^>]*\bhref\s*=\s*{HOST}"
    rf"|@import\s+(?:url\()?{HOST}|\burl\({HOST}",
    re.IGNORECASE,
)


def main(folder: Path) -> None:
    pages = [path for kind in ("*.html", "*.css") for path in sorted(folder.rglob(kind))]
    if not pages:
        sys.exit(f"{folder} holds no page; build the site first: make docs")
    found = [
        f"{path.relative_to(folder)}: {match.group(0)[:200]}"
        for path in pages
        for match in LOADED.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        sys.exit("these pages would load something from a network:\n" + "\n".join(found))
    print(f"site: {len(pages)} pages and styles load nothing from a network")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
