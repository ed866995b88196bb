"""Make the pictures of the admin's page in docs/images, from a small mesh with some traffic.

python -m tests.admin.screenshots
"""

from __future__ import annotations

import random
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright

import meshlib
from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.httpx import MeshTransport
from meshlib.testing import Behaviour, Reply, Request, Reset, Upstream, messages, service
from tests.admin.test_page import CHROMIUM, PHONE, WIDE

FOLDER = Path(__file__).parent.parent.parent / "docs" / "images"
NAMES = ("catalog", "reviews", "ratings", "cart", "checkout", "payments", "shipping", "search", "inventory")
CALLERS = 3
WARM_UP = 14.0
NODE = {
    "id": "shop-front-7c9d",
    "cluster": "shop-front",
    "metadata": {"WORKLOAD_NAME": "shop-front", "NAMESPACE": "shop"},
}


def answer(request: Request) -> Behaviour:
    if "broken" in request.target:
        return Reset()
    if "refused" in request.target:
        return Reply(status=503)
    return Reply(delay=random.choice((0.0, 0.0, 0.002, 0.02)))


def sick(request: Request) -> Behaviour:
    """An endpoint whose ratings always fail, until it is ejected."""
    return Reply(status=503) if "stars" in request.target else answer(request)


def documents(upstreams: list[Upstream]) -> list[dict[str, Any]]:
    found = []
    for name in NAMES:
        document = service(name, *(upstream.address for upstream in upstreams))
        for resource in document["resources"]:
            if resource["@type"] == proto.CLUSTER:
                resource["outlier_detection"] = {
                    "consecutive_5xx": 3 if name == "ratings" else 20,
                    "base_ejection_time": "60s",
                    "max_ejection_percent": 40,
                    "enforcing_success_rate": 0,
                }
            if resource["@type"] == proto.ROUTE:
                (route,) = resource["virtual_hosts"][0]["routes"]
                route["route"]["retry_policy"] = {"retry_on": "5xx,reset", "num_retries": 2}
        found.append(document)
    return found


def call(mesh: meshlib.Mesh, stop: threading.Event) -> None:
    with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
        while not stop.wait(random.random() * 0.02):
            name = NAMES[min(int(random.expovariate(0.4)), len(NAMES) - 1)]
            chance = random.random()
            path = f"{'stars' if name == 'ratings' else 'items'}/{random.randrange(1000)}"
            if chance < 0.02 and name == "cart":
                path = "broken"
            elif chance < 0.05 and name in ("payments", "ratings"):
                path = "refused"
            client.get(f"http://{name}/{path}")


def main() -> None:
    if CHROMIUM is None:
        sys.exit("there is no Chromium on this machine: install Debian's package chromium")
    FOLDER.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with ExitStack() as stack:
        upstreams = [stack.enter_context(Upstream(each)) for each in (answer, answer, sick)]
        control_plane = stack.enter_context(ControlPlane(ResourceStore(messages(*documents(upstreams)))))
        bootstrap = control_plane.bootstrap() | {"node": NODE}
        mesh = stack.enter_context(meshlib.Mesh(bootstrap=bootstrap))
        serving = stack.enter_context(mesh.admin().serve("127.0.0.1:0"))
        callers = [threading.Thread(target=call, args=(mesh, stop)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = browser.new_page(viewport=WIDE)
            page.goto(serving.url)
            time.sleep(WARM_UP)
            page.screenshot(path=FOLDER / "page-services.png")
            page.click("nav a[href='#/graph']")
            page.wait_for_selector("svg.graph .edge")
            page.screenshot(path=FOLDER / "page-graph.png")
            page.click("nav a[href='#/calls']")
            page.fill("#filter", "refused")
            page.click("tbody th a")
            page.wait_for_selector(".attempts li")
            page.screenshot(path=FOLDER / "page-call.png")
            page.set_viewport_size(PHONE)
            page.fill("#filter", "")
            page.click("nav a[href='#/services']")
            page.wait_for_selector(".signals")
            page.screenshot(path=FOLDER / "page-phone.png")
            page.click("nav a[href='#/graph']")
            page.wait_for_selector("svg.graph .edge")
            page.screenshot(path=FOLDER / "page-phone-graph.png")
        finally:
            stop.set()
            for caller in callers:
                caller.join()
            browser.close()


if __name__ == "__main__":
    main()
