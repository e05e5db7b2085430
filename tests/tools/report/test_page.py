"""report.html: self-contained, says the verdict, and plays both videos of a pair as one in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sana_edge.tools.report.page import precision_strip, render
from sana_edge.tools.report.schema import Report

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


def test_page_loads_nothing_from_elsewhere(report: Report, report_folder: Path) -> None:
    page = render(report, report_folder)
    sources = re.findall(r"""(?:src|href|url)\\s*[=(]\\s*["']?([^"')\s>]+)""", page)
    assert all(source.startswith("data:video/mp4;base64,") for source in sources)
    assert page.count("data:video/mp4;base64,") == 4
    assert not re.search(r"https?://", page)


def test_page_escapes_what_users_wrote(report: Report, report_folder: Path) -> None:
    evil = replace(report, candidates=[replace(report.candidates[0], name="<script>alert(1)</script>")])
    assert "<script>alert" not in render(evil, report_folder)


def test_strip_puts_layers_in_rows_and_blocks_in_columns() -> None:
    layers = {"proj_out": "bf16", "blocks.0.ff.conv_point": "fp8", "blocks.2.ff.conv_point": "nvfp4"}
    strip = precision_strip(layers)
    assert strip == {"rows": {"ff.conv_point": ["fp8", "", "nvfp4"]}, "count": 3, "others": {"proj_out": "bf16"}}


@pytest.fixture
def browser() -> Iterator[Any]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600"):
        options.add_argument(argument)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_videos_play_step_and_stop_together(report: Report, report_folder: Path, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    page = tmp_path / "report.html"
    page.write_text(render(report, report_folder), encoding="utf-8")
    browser.get(page.as_uri())
    player = browser.find_element(By.CSS_SELECTOR, ".player")
    videos = player.find_elements(By.TAG_NAME, "video")
    fps = report.protocol.fps

    def wait(script: str) -> None:
        WebDriverWait(browser, 20).until(lambda d: d.execute_script(script, *videos))

    def frames() -> list[int]:
        return [int(browser.execute_script("return arguments[0].currentTime", v) * fps) for v in videos]

    wait("return arguments[0].readyState >= 2 && arguments[1].readyState >= 2")
    player.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert frames() == [2, 2]
    readout = player.find_element(By.TAG_NAME, "output").text
    clip = report.candidates[0].clips[0]
    assert readout.startswith("frame 3 of 17") and f"{clip.psnr[2]:.1f} dB" in readout

    player.send_keys(Keys.END)
    assert frames() == [16, 16]
    player.send_keys(Keys.HOME, " ")
    wait("return !arguments[0].paused && !arguments[1].paused && arguments[0].currentTime > 0.3")
    player.find_element(By.CSS_SELECTOR, ".play").click()
    wait("return arguments[0].paused && arguments[1].paused")
    first, second = frames()
    assert first == second
    problems = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert problems == []
