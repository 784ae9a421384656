"""The page through a gateway: it needs to know of no fleet."""

from typing import Any

import pytest

from tests.fakes.live import color_of
from tests.serving.cluster.conftest import StartFleet
from tests.serving.test_browser import CHROMIUM, SHOWN, Page, chromium, sync_api  # noqa: F401

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; scripts/live_tools.sh installs it"),
]


def test_the_page_goes_on_when_its_host_is_emptied_and_when_it_dies(
    start: StartFleet,
    chromium: Any,  # noqa: F811
) -> None:
    fleet = start(hosts=3, slots=1, save_every_s=1)
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = Page(context.new_page(), f"http://localhost:{fleet.fleet.port}/")
    page.begin("a red car")
    page.until_color(color_of("a red car"))
    page.until_shown(40)
    owner = next(name for name, count in fleet.fleet.running().items() if count)
    fleet.ask("POST", f"/v1/admin/hosts/{owner}/drain")
    shown = page.page.evaluate(SHOWN)
    page.until_shown(shown + 60)
    page.page.keyboard.type("a blue boat")
    page.page.keyboard.press("Enter")
    page.until_color(color_of("a blue boat"))
    owner = next(name for name, count in fleet.fleet.running().items() if count)
    fleet.fleet.hosts.kill(owner)
    shown = page.page.evaluate(SHOWN)
    page.until_shown(shown + 60)
    assert np_close(page.color(), color_of("a blue boat"))
    assert page.faults == []
    context.close()


def np_close(one: Any, other: Any) -> bool:
    return bool(abs(one - other).max() <= 25)
