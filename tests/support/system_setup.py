"""What tests need from the system, found or fetched before any of them runs: a browser, a font, Git (`make system`).

A browser is looked for, then fetched by playwright, then by the system's package manager; each step says what it does.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
                "/Applications/Chromium.app/Contents/MacOS/Chromium")  # fmt: skip
FONTS = ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "~/.fonts", "~/.local/share/fonts")
DOWNLOAD_S, INSTALL_S = 240, 600  # longest waits
PLAYWRIGHT_CHROMIUM = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
"""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome that starts: the system's, else playwright's own."""
    for path in [*filter(None, map(shutil.which, NAMES)), *filter(os.path.exists, APPLICATIONS)]:
        if _starts(path):
            return path
    done = subprocess.run([sys.executable, "-c", PLAYWRIGHT_CHROMIUM], capture_output=True, text=True)
    path = done.stdout.strip()
    return path if path and _starts(path) else None


def find_font() -> str | None:
    """A folder with a font in it."""
    suffixes = {".ttf", ".otf", ".ttc", ".pfb", ".woff2"}
    folders = [Path(folder).expanduser() for folder in FONTS]
    return next((str(f) for f in folders if any(path.suffix in suffixes for path in f.rglob("*"))), None)


def find_git() -> str | None:
    return shutil.which("git")


def playwright_install() -> bool:
    """Fetch playwright's Chromium; whether that worked."""
    return _run([sys.executable, "-m", "playwright", "install", "chromium"], DOWNLOAD_S)


def package_install(package: str) -> bool:
    """Install a package of Debian's or Ubuntu's, as root; whether that worked."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        _say(f"  apt-get install {package}: needs apt-get, and root")
        return False
    _run(["apt-get", "update", "-q"], INSTALL_S)
    return _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", package], INSTALL_S)


def provide(what: str, find: Callable[[], str | None], ways: Sequence[Callable[[], bool]], advice: str) -> bool:
    """Find something, trying one way after the other to get it where it is not there; whether it is there then."""
    place = find()
    for way in ways if place is None else ():
        _say(f"{what}: none found; trying to get one")
        way()
        if place := find():
            break
    _say(f"{what}: {place}" if place else f"No {what} found, and none could be fetched: {advice}, then run this again.")
    return place is not None


def main() -> int:
    """0 if everything is there, else 1."""
    needs = [
        ("browser", find_browser, [playwright_install, lambda: package_install("chromium")],
         "install Chromium or Google Chrome (Debian, Ubuntu: apt-get install chromium)"),
        ("font", find_font, [lambda: package_install("fonts-dejavu-core")],
         "install any TrueType font (Debian, Ubuntu: apt-get install fonts-dejavu-core)"),
        ("git", find_git, [lambda: package_install("git")], "install Git (Debian, Ubuntu: apt-get install git)"),
    ]  # fmt: skip
    return 0 if all(provide(*need) for need in needs) else 1


def _starts(path: str) -> bool:
    """Whether a browser runs: a stub that stands for a package, or one whose libraries are missing, does not."""
    try:
        command = [path, "--version", "--no-sandbox"]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: Sequence[str], seconds: int) -> bool:
    """Run a command for so long at most, with all that it started; whether it ended well."""
    _say(f"  {' '.join(command)} (at most {seconds} s)")
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _say("  not done in that time: given up")
            return False


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
