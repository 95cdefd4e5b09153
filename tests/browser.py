"""A real browser without network that says what it sees on a page."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

DARK, LIGHT = 0, 1  # Blink's PreferredColorScheme

# Appended to a copy of the page: says in its title what the browser made of it.
INSPECT = """
<script>
addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)]
  const ink = element => getComputedStyle(element).stroke
  document.title = JSON.stringify({
    headline: document.querySelector("h1").innerText,
    text: document.body.innerText,
    images: all("img").map(image => [image.alt, image.naturalWidth]),
    charts: all("svg.chart").map(chart => [chart.ariaLabel, chart.getBoundingClientRect().width]),
    strokes: [...new Set(all("svg.chart path").map(ink))],
    strips: all("svg.strip").length,
    scripts: all("script").length,
    loads: performance.getEntriesByType("resource").map(load => load.name).filter(name => !name.startsWith("data:")),
    beyond: document.documentElement.scrollWidth - innerWidth,
  })
})
</script>
"""


def chromium(*arguments: str) -> str:
    """Runs headless Chromium without network; returns what it printed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("Chromium is missing: install it (apt-get install chromium), the report is tested in a browser")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    answer = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def look(page: Path, width: int = 1200, scheme: int = LIGHT) -> dict[str, Any]:
    """What a browser sees on a page."""
    copy = page.with_name("inspected.html")
    copy.write_text(page.read_text() + INSPECT)
    size, colours = f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"
    dom = chromium(size, colours, "--dump-dom", copy.as_uri())
    (title,) = re.findall("<title>(.*?)</title>", dom, re.DOTALL)
    seen: dict[str, Any] = json.loads(html.unescape(title))
    return seen
