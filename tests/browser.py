"""A real browser, for MLflow's runs page and for the project's pages.

python tests/browser.py URL FILE.png takes a picture for docs/: of a server's runs page, or of a page by its
file URL, as lessons.html#torch_autograd-L29, with a width and a scheme after it.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from pipeline.tracking.store import TRAINING

FLAGS = [
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1600,900",
]


def is_missing() -> str:
    absent = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
    return f"{' and '.join(absent)} is not installed" if absent else ""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def runs_page(server: str, *expected: str) -> tuple[str, bytes]:
    """The text of the runs page in a fresh profile, and a picture of it, when it shows all of `expected`.

    Nothing is clicked.
    """
    return mlflow_page(f"{server}/#/experiments/1/runs?{TRAINING}", *expected)


def mlflow_page(url: str, *expected: str, alone: bool = False) -> tuple[str, bytes]:
    """The same for any page of MLflow; if it should be `alone`, the assistant beside it is closed."""
    with chromium() as browser:
        browser.get(url)
        deadline, text = time.monotonic() + 40, ""
        while not all(name in text for name in expected):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page does not show {[name for name in expected if name not in text]}: {text}")
            time.sleep(0.5)
            text = browser.find_element(By.TAG_NAME, "body").text
        time.sleep(1)
        if alone:
            browser.find_element(By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']").click()
            time.sleep(1)
        return text, browser.get_screenshot_as_png()


def violations(browser: webdriver.Chrome) -> list[str]:
    """The violations that axe-core finds on the open page and calls serious or critical."""
    (folder,) = find_spec("axe_playwright_python").submodule_search_locations  # pyright: ignore[reportOptionalMemberAccess, reportGeneralTypeIssues, reportOptionalIterable]
    browser.execute_script(Path(folder, "axe.min.js").read_text())
    browser.set_script_timeout(120)  # it checks every pair of colours, and tests run in parallel
    violations = browser.execute_async_script("axe.run({resultTypes: ['violations']}).then(arguments[0])")["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def prefer(browser: webdriver.Chrome, scheme: str, motion: str = "reduce") -> None:
    """A light or a dark page. Scrolling takes no time unless `motion` is "no-preference"."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    wanted = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def whole_page(url: str, width: int, scheme: str) -> bytes:
    """A picture of a whole page, light or dark. For a URL with a fragment it is the part that a window shows."""
    with chromium() as browser:
        prefer(browser, scheme)
        browser.set_window_size(width, 1100)
        browser.get(url)
        if "#" not in url:
            height = browser.execute_script("return document.documentElement.scrollHeight")
            browser.set_window_size(width, height + 100)
        return browser.get_screenshot_as_png()


if __name__ == "__main__":
    url, file, *how = sys.argv[1:]
    width, scheme = how or ("1000", "light")
    report = url.startswith("file:")
    picture = whole_page(url, int(width), scheme) if report else runs_page(url, "numpy_arrays", "tensorflow_scan")[1]
    Path(file).write_bytes(picture)
