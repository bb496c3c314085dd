"""A real browser on MLflow's runs page: python tests/browser.py URL FILE.png takes the picture in docs/."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

FLAGS = [
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1500,740",
]
COLUMNS = ["tags.`device_name`", "metrics.`step_seconds_median`", "metrics.`test_loss`", "metrics.`test_r2`"]
COLUMNS += ["metrics.`gradient_relative_error`", "metrics.`predictions_relative_difference`"]

CLOSED = "[col-id*='Run Name'] button:has(path[d^='M7.25 7.25V4.5'])"  # the plus before a parent run


def is_missing() -> str:
    absent = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
    return f"{' and '.join(absent)} is not installed" if absent else ""


def runs_page(server: str, *expected: str, experiment: str = "1") -> tuple[str, bytes]:
    """The text of the runs page and a picture of it, when all of `expected` stand there."""
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.get(f"{server}/#/experiments/{experiment}/runs")
        time.sleep(3)
        # What a user would click: the columns, the parent's rows opened, the assistant's panel shut.
        key = f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState'
        state = json.loads(browser.execute_script("return localStorage.getItem(arguments[0])", key) or "{}")
        state |= {"selectedColumns": COLUMNS}
        browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, json.dumps(state))
        browser.execute_script("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
        browser.refresh()
        deadline, text = time.monotonic() + 40, ""
        while not all(name in text for name in expected):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page does not show {[name for name in expected if name not in text]}: {text}")
            for parent in browser.find_elements(By.CSS_SELECTOR, CLOSED):
                parent.click()
            time.sleep(0.5)
            text = browser.find_element(By.TAG_NAME, "body").text
        time.sleep(1)
        return text, browser.get_screenshot_as_png()
    finally:
        browser.quit()


if __name__ == "__main__":
    _, picture = runs_page(sys.argv[1], "numpy_arrays", "tensorflow_scan")
    Path(sys.argv[2]).write_bytes(picture)
