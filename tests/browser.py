"""Looks at pages in headless Chromium: widths × colour schemes, all by one start of the browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
WIDTHS = (390, 1280)  # a phone's, a desktop's
SCRIPT = Path(__file__).with_name("browser.js")


def look(pages, folder):
    """What was seen of every page (name -> html) in every way, and the lines of the console."""
    given = json.dumps([pages, WIDTHS]).replace("<", "\\u003c")
    frame = folder / "frame.html"
    script = SCRIPT.read_text("utf-8")
    script = f"<script>const given = {given};\n{script}</script>"
    frame.write_text(f"<!doctype html><meta charset=utf-8><body>{script}", "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000",
               "--dump-dom", frame.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
