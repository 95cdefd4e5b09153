"""A real browser without network: what it sees on a page."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

DARK, LIGHT = 0, 1  # Blink's PreferredColorScheme

# Appended to a copy of the page: writes into its title what the browser made of it.
INSPECT = """
<script>
addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)]
  document.title = JSON.stringify({
    headline: document.querySelector("h1").innerText,
    text: document.body.innerText.replaceAll(/\\s+/g, " "),
    images: all("img").map(image => [image.alt, image.naturalWidth]),
    charts: all("svg.chart").map(chart => [chart.ariaLabel, chart.getBoundingClientRect().width]),
    strokes: [...new Set(all("svg.chart path").map(path => getComputedStyle(path).stroke))],
    scripts: all("script").length,
    loads: performance.getEntriesByType("resource").map(load => load.name).filter(name => !name.startsWith("data:")),
    beyond: document.documentElement.scrollWidth - innerWidth,
  })
})
</script>
"""


def look(page: Path, width: int = 1200, scheme: int = LIGHT) -> dict[str, Any]:
    """What headless Chromium without network sees on a page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("Chromium is missing: install it (apt-get install chromium), the report is tested in a browser")
    copy = page.with_name("inspected.html")
    copy.write_text(page.read_text() + INSPECT)
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"]
    answer = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    (title,) = re.findall("<title>(.*?)</title>", answer.stdout, re.DOTALL)
    seen: dict[str, Any] = json.loads(html.unescape(title))
    return seen
