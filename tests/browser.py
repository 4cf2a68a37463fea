"""A page as headless Chromium shows it."""

import html
import json
import re
import shutil
import subprocess

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
)


def looked_at(page: str, expression: str, folder, width: int = 1180, dark: bool = False):
    """What the JavaScript expression gives in the page, `width` pixels wide, of its window w and document d. Nothing may be on the console, nor be
    fetched from elsewhere."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine")
    assert not re.search(r"""(src|href)=["']https?:|url\(["']?https?:|@import""", page), "an external asset"
    script = f"""onload = () => {{ const w = document.querySelector("iframe").contentWindow, d = w.document;
    const found = document.createElement("pre"); found.id = "found"; found.textContent = JSON.stringify({expression});
    document.body.replaceChildren(found); }}"""
    frame = f'<iframe style="width:{width}px; height:900px; border:0" srcdoc="{html.escape(page)}"></iframe>'
    file = folder / "looked_at.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{frame}<script>{script}</script></body>')
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([browser, *flags, file.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S).group(1)))


def readable(page: str, folder) -> None:
    """On a desk and on a phone, on a light and on a dark ground: nothing wider than the window, no letter of a figure below 8 pixels, and text that
    stands out from its ground."""
    brightness = "(c => { const [r, g, b] = c.match(/\\d+/g).map(Number); return (2 * r + 5 * g + b) / 8; })"
    told = f"""[w.innerWidth, d.documentElement.scrollWidth,
    Math.min(99, ...[...d.querySelectorAll("svg text")].map(x => parseFloat(w.getComputedStyle(x).fontSize) * Math.hypot(x.getScreenCTM().a, x.getScreenCTM().b))),
    {brightness}(w.getComputedStyle(d.body).color), {brightness}(w.getComputedStyle(d.body).backgroundColor)]"""
    for width, dark in ((1180, False), (1180, True), (375, False), (375, True)):
        inner, needed, least, text, ground = looked_at(page, told, folder, width, dark)
        assert inner == width and needed <= width, (width, needed)
        assert least >= 8, (width, least)
        assert (text - ground > 128) if dark else (ground - text > 128), (dark, text, ground)
