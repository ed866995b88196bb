"""The page in a real Chromium: what it shows of a running Mesh, by mouse, by keyboard, and to a screen reader.

Chromium is the machine's own (Debian's package `chromium`); MESHLIB_CHROMIUM names another one. Without it the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from playwright.sync_api import ViewportSize, sync_playwright

import meshlib
from meshlib import proto
from meshlib.admin.admin import Serving
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.httpx import MeshTransport
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware
from meshlib.testing import Reply, Request, Upstream, messages, service

CHROMIUM = os.environ.get("MESHLIB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.once,
    pytest.mark.shared_workers,
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
VIEWS = ("services", "graph", "endpoints", "routes", "calls", "traces", "configuration", "certificates")
TAG = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


def configuration(address: str, *names: str, endpoints: int = 1) -> list[dict[str, Any]]:
    """Services of these names; what `bad` has is refused."""
    documents = []
    for number, name in enumerate(names):
        others = [f"127.{1 + number // 200}.{number % 200}.{each + 1}:9" for each in range(endpoints - 1)]
        document = service(name, address, *others)
        for resource in document["resources"]:
            if resource["@type"] == proto.CLUSTER:
                resource["outlier_detection"] = {
                    "consecutive_5xx": 3,
                    "base_ejection_time": "300s",
                    "max_ejection_percent": 100,
                    "enforcing_success_rate": 0,
                }
                if name == "bad":
                    resource["lb_policy"] = "CLUSTER_PROVIDED"
            if resource["@type"] == proto.ROUTE:
                (route,) = resource["virtual_hosts"][0]["routes"]
                route["route"]["retry_policy"] = {"retry_on": "5xx", "num_retries": 1}
            if resource["@type"] == proto.ENDPOINT:
                for endpoint in resource["endpoints"][0]["lb_endpoints"][1:]:
                    endpoint["health_status"] = "UNHEALTHY"
        documents.append(document)
    return documents


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    def answer(request: Request) -> Reply:
        return Reply(status=503 if "fail" in request.target else 200)

    with Upstream(answer) as running:
        yield running


@pytest.fixture(scope="module")
def control_plane(upstream: Upstream) -> Iterator[ControlPlane]:
    documents = configuration(upstream.address, "reviews", "ratings", "bad", endpoints=2)
    with ControlPlane(ResourceStore(messages(*documents))) as running:
        yield running


def recorded() -> meshlib.Observe:
    return meshlib.Observe(tracing=TracerProvider(shutdown_on_exit=False))


def front(mesh: meshlib.Mesh, client: httpx.Client) -> httpx.WSGITransport:
    """A service that makes two calls for each request, one of which fails."""

    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for path in ("reviews/shown", "ratings/fail"):
            client.get(f"http://{path}")
        start_response("204 No Content", [])
        return []

    return httpx.WSGITransport(MeshMiddleware(app, Inbound(mesh)))


@pytest.fixture(scope="module")
def shown(control_plane: ControlPlane) -> Iterator[Serving]:
    """The admin of a Mesh that has made some calls: good ones, a retried one, and failing ones that eject an endpoint."""
    with (
        meshlib.Mesh(bootstrap=control_plane.bootstrap("front"), observe=recorded()) as mesh,
        httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client,
        mesh.admin().serve("127.0.0.1:0") as serving,
    ):
        for _ in range(5):
            assert client.get("http://reviews/books").status_code == 200
        assert client.get(f"http://reviews/{TAG}").status_code == 200
        assert client.get("http://ratings/fail?token=not-to-be-seen").status_code == 503
        assert client.get("http://ratings/fail").status_code == 503
        assert client.get("http://bad/").status_code == 503
        with httpx.Client(transport=front(mesh, client), base_url="http://front") as outside:
            assert outside.get("/basket?token=not-to-be-seen").status_code == 204
        yield serving


@pytest.fixture(params=[WIDE, PHONE], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, shown: Serving) -> Iterator[Any]:
    yield from opened(browser, shown, request.param)


@pytest.fixture
def wide(browser: Any, shown: Serving) -> Iterator[Any]:
    yield from opened(browser, shown, WIDE)


def opened(browser: Any, serving: Serving, size: ViewportSize) -> Iterator[Any]:
    """The page. Whatever its scripts complain about fails the test, a breach of its own content policy too."""
    context = browser.new_context(viewport=size, reduced_motion="reduce")
    complaints: list[str] = []
    made = context.new_page()
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    made.goto(serving.url)
    made.wait_for_selector("tbody tr")
    yield made
    context.close()
    assert complaints == []


def open_view(page: Any, view: str) -> None:
    page.click(f"nav a[href='#/{view}']")
    page.wait_for_selector(f"nav a[href='#/{view}'][aria-current=page]")
    page.wait_for_function(
        "view => document.getElementById('view').getAttribute('aria-label').toLowerCase() === view", arg=view
    )


def refreshed(page: Any) -> None:
    """The page has asked by itself, and has drawn the answer: only then does it ask once more."""
    for _ in range(2):
        with page.expect_request(lambda request: "mesh.json" in request.url):
            pass


def row(page: Any, caption: str, heading: str) -> dict[str, str]:
    """The cells of a row of a table, by column."""
    found = page.locator(
        f"table:has(caption:text-is('{caption}')) tbody tr", has=page.locator("th", has_text=heading)
    ).first
    cells = found.locator("td").all()
    return {cell.get_attribute("data-label"): cell.inner_text().strip() for cell in cells}


def test_services_and_their_golden_signals(page: Any) -> None:
    assert page.inner_text("#health").startswith("ready, connected")
    assert page.locator("table:has(caption:text-is('Services')) tbody tr").count() == 3
    assert "does not exist" in row(page, "Services", "bad")["Endpoints"]
    reviews, ratings = row(page, "Services", "reviews"), row(page, "Services", "ratings")
    assert reviews["Errors"].endswith("0 %")
    assert "100 %" in ratings["Errors"]
    assert "1 of 2" in reviews["Endpoints"]
    assert "1 ejected" in ratings["Endpoints"]
    assert reviews["Security"].endswith("plaintext")


def test_ejections_say_why_and_until_when(page: Any) -> None:
    ejected = row(page, "Ejected endpoints", "127.0.0.1")
    assert "consecutive_5xx" in ejected["Why"]
    assert " min" in ejected["Back"]
    assert page.inner_text("nav a[href='#/services'] .pill") == "1"


def test_the_graph(page: Any) -> None:
    open_view(page, "graph")
    picture = page.locator("svg.graph")
    assert "4 services and 3 edges" in picture.get_attribute("aria-label")
    edges = [each.get_attribute("aria-label") for each in picture.locator("[role=img]").all()]
    assert any("calls reviews" in edge and "0 % failing, plaintext" in edge for edge in edges)
    assert set(picture.locator(".name").all_text_contents()) >= {"reviews", "ratings"}
    assert page.locator("table:has(caption:text-is('Edges')) tbody tr").count() == 3


DRAWN = """async ([name, names, pairs]) => {
  const made = (await import(`./static/${name}.js`))[name === "tree" ? "tree" : "drawing"];
  const nodes = names.map((id) => ({ id, kind: "service" }));
  const figures = { rate: 1, error_rate: 0, total: 1, errors_total: 0, p50: 1, p99: 2, tls: true, mtls: true };
  const edges = pairs.map(([source, destination]) => ({ source, destination, ...figures }));
  const picture = made({ nodes, edges }, { note: () => "", pick: null });
  document.getElementById("view").replaceChildren(picture);
  const { width } = picture.viewBox.baseVal;
  const boxes = [...picture.querySelectorAll(".box")].map((each) => each.parentNode.getCTM());
  return [boxes.map(({ e, f }) => [e, f]), picture.querySelectorAll("path.edge").length, width];
}"""


@pytest.mark.parametrize("how", ["drawing", "tree"])
@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        ("ab", []),
        ("abcd", ["ab", "ac", "bd", "cd"]),
        ("abc", ["ab", "bc", "ca"]),
        ("ab", ["aa", "ab", "ba"]),
        ("abcdefgh", ["ab", "bc", "cd", "de", "ef", "fg", "gh"]),
    ],
)
def test_any_graph_is_drawn_with_each_service_once(wide: Any, how: str, names: str, pairs: list[str]) -> None:
    wide.click("#live")
    wide.wait_for_timeout(200)
    boxes, edges, width = wide.evaluate(DRAWN, [how, list(names), [list(pair) for pair in pairs]])
    assert len({tuple(place) for place in boxes}) == len(names)
    assert edges == len(pairs)
    if how == "tree":
        assert width < 440


def test_the_graph_fits_a_phone(browser: Any, shown: Serving) -> None:
    for page in opened(browser, shown, PHONE):
        open_view(page, "graph")
        boxes = [each.bounding_box() for each in page.locator("svg.graph .box").all()]
        assert len(boxes) == 4
        assert all(each["x"] >= 0 and each["x"] + each["width"] <= PHONE["width"] for each in boxes)


def test_a_node_of_the_graph_leads_to_its_endpoints_by_keyboard(wide: Any) -> None:
    open_view(wide, "graph")
    wide.focus("[data-key='node-ratings']")
    wide.keyboard.press("Enter")
    wide.wait_for_selector("h2:text-is('Endpoints of ratings')")


def test_endpoints(page: Any) -> None:
    open_view(page, "endpoints")
    page.select_option("[data-key=cluster]", "ratings")
    page.wait_for_selector("h2:text-is('Endpoints of ratings')")
    assert "ejected" in row(page, "Endpoints of ratings", "127.0.0.1:")["Health"]
    assert "unhealthy" in row(page, "Endpoints of ratings", "127.1.1.1:9")["Health"]


def test_routes(page: Any) -> None:
    open_view(page, "routes")
    assert "reviews" in row(page, "Routes", "/*")["Goes to"] + row(page, "Routes", "/*")["Route"]


def test_a_call_and_its_decision(page: Any) -> None:
    open_view(page, "calls")
    page.click("a:text-is('GET ratings/fail')")
    page.wait_for_selector("h2:text-is('Why it went there')")
    said = page.inner_text(".split")
    assert "ratings of ratings" in said
    assert "5xx; 2 attempts" in said
    assert page.locator(".attempts li").count() == 2
    assert "retried" in page.locator(".attempts li").first.inner_text()
    page.click("a:text-is('Close')")
    page.wait_for_selector(".split", state="detached")


def test_what_peers_send_is_text_and_secrets_are_not_there(page: Any) -> None:
    page.on("dialog", lambda dialog: pytest.fail("a script of a peer ran"))
    open_view(page, "calls")
    assert "%3Cimg" in page.content() or TAG.replace("<", "&lt;").replace(">", "&gt;") in page.content()
    assert page.locator("main img").count() == 0
    assert "not-to-be-seen" not in page.content()
    assert "token=[redacted]" in page.content()


def test_a_trace_and_its_waterfall(page: Any) -> None:
    open_view(page, "traces")
    assert "failed inside" in row(page, "Recent traces", "GET /basket")["Outcome"]
    page.click("a:text-is('GET /basket?token=[redacted]')")
    page.wait_for_selector("h2:text-is('GET /basket?token=[redacted]')")
    spans = page.locator("table:has(caption:text-is('Spans of the trace')) tbody tr")
    assert spans.count() == 6, "a request, two calls, and three attempts: one was retried"
    said = [line.replace("\n", " ") for line in spans.locator("th").all_inner_texts()]
    assert said[0].startswith("serves GET /basket")
    assert said[1].startswith("calls GET reviews/shown")
    assert said[2].startswith("attempt at 127.0.0.1:")
    assert said[3].startswith("calls GET ratings/fail")
    indents = [
        page.evaluate("each => parseFloat(getComputedStyle(each).paddingLeft)", each.element_handle())
        for each in spans.locator("th > div").all()
    ]
    assert indents[0] < indents[1] == indents[3] < indents[2]
    assert spans.locator("svg.bar rect.bad").count() >= 1
    page.click("a:text-is('GET ratings/fail')")
    page.wait_for_selector("h2:text-is('Why it went there')")
    page.click("dl.facts a[href^='#/traces/']")
    page.wait_for_selector("h2:text-is('GET /basket?token=[redacted]')")
    page.click("a:text-is('Close')")
    page.wait_for_selector(".waterfall", state="detached")


def test_a_trace_by_keyboard(wide: Any) -> None:
    open_view(wide, "traces")
    wide.focus("th a:text-is('GET /basket?token=[redacted]')")
    wide.keyboard.press("Enter")
    wide.wait_for_selector(".waterfall")


def test_a_trace_that_nobody_remembers(browser: Any, shown: Serving) -> None:
    page = browser.new_page(viewport=WIDE)  # Chromium complains about the 404
    page.goto(f"{shown.url}/#/traces/{'ab' * 16}")
    page.wait_for_selector("text=No process remembers anything of this trace any longer.")
    page.close()


def test_without_traces_the_page_says_what_to_do(browser: Any, control_plane: ControlPlane) -> None:
    with (
        meshlib.Mesh(bootstrap=control_plane.bootstrap("front")) as mesh,
        httpx.Client(transport=MeshTransport(mesh)) as client,
        mesh.admin().serve("127.0.0.1:0") as serving,
    ):
        client.get("http://reviews/")
        for page in opened(browser, serving, PHONE):
            open_view(page, "traces")
            assert "trace.set_tracer_provider(TracerProvider())" in page.inner_text("main pre")
            assert "None of the 1 calls" in page.inner_text("main")
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_requests_that_were_served(page: Any) -> None:
    open_view(page, "calls")
    assert row(page, "Requests served", "GET /basket")["Outcome"].endswith("204")


def test_refused_configuration(page: Any) -> None:
    assert page.inner_text("nav a[href='#/configuration'] .pill") == "1"
    open_view(page, "configuration")
    refused = row(page, "Refused resources", "cds bad")
    assert "lb_policy" in refused["Why"]
    assert "nothing" in refused["In force"]


def test_the_waterfall_fits(page: Any) -> None:
    open_view(page, "traces")
    page.click("a:text-is('GET /basket?token=[redacted]')")
    page.wait_for_selector(".waterfall")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_every_view_fits(page: Any) -> None:
    """No view is wider than the screen, and none hides its heading."""
    for view in VIEWS:
        open_view(page, view)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view
        assert page.locator("main h2").first.is_visible()


def test_the_filter(page: Any) -> None:
    page.fill("#filter", "rat")
    page.wait_for_selector("h2:text-is('1 service')")
    page.fill("#filter", "nowhere")
    page.wait_for_selector("text=No service fits the filter.")
    page.keyboard.press("Escape")
    page.wait_for_selector("h2:text-is('3 services')")


def test_a_table_is_ordered_by_a_column(wide: Any) -> None:
    def names() -> list[str]:
        return list(wide.locator("table:has(caption:text-is('Services')) tbody th").all_inner_texts())

    wide.click("th button:text-is('Service')")
    wide.wait_for_selector("th[aria-sort=ascending]")
    assert names() == ["bad", "ratings", "reviews"]
    wide.click("th button:has-text('Service')")
    wide.wait_for_selector("th[aria-sort=descending]")
    assert names() == ["reviews", "ratings", "bad"]


def test_keyboard_alone(wide: Any) -> None:
    wide.keyboard.press("Tab")
    assert wide.evaluate("document.activeElement.textContent") == "Skip to the content"
    wide.keyboard.press("/")
    assert wide.evaluate("document.activeElement.id") == "filter"
    wide.focus("nav a[href='#/calls']")
    wide.keyboard.press("Enter")
    wide.wait_for_selector("nav a[href='#/calls'][aria-current=page]")
    assert wide.evaluate("document.activeElement.id") == "view"
    assert wide.inner_text("#told").startswith("Calls of")


def test_the_page_stays_alive_and_can_be_held(wide: Any) -> None:
    refreshed(wide)
    with wide.expect_response(lambda answer: "mesh.json" in answer.url):
        wide.click("#live")
    assert wide.get_attribute("#live", "aria-pressed") == "false"
    wide.wait_for_timeout(300)  # the answer is drawn
    asked: list[str] = []
    wide.on("request", lambda request: asked.append(request.url))
    held = wide.inner_text("#process")
    for view in ("routes", "calls", "configuration", "certificates", "graph", "services"):
        open_view(wide, view)
    assert wide.inner_text("#process") == held, "all views are of the moment in which it was held"
    assert [url for url in asked if ".json" in url] == []


def test_what_is_the_same_stays_where_it_is(wide: Any) -> None:
    """A refresh takes neither the focus, nor a selection, nor what a screen reader stands on."""
    wide.evaluate("window.marked = document.querySelector('tbody tr'); marked.querySelector('a').focus()")
    wide.evaluate("getSelection().selectAllChildren(marked.querySelector('a'))")
    refreshed(wide)
    assert wide.evaluate("marked.isConnected && marked.contains(document.activeElement)")
    assert wide.evaluate("String(getSelection())") == wide.evaluate("marked.querySelector('a').textContent")


def test_nothing_is_said_again_and_again(wide: Any) -> None:
    """What a screen reader says by itself: which view it is, and changes of the process's state. Not every two seconds."""
    wide.evaluate(
        """() => { window.told = [];
            for (const each of document.querySelectorAll('[aria-live], [role=status], [role=alert]'))
                new MutationObserver(() => told.push(each.textContent))
                    .observe(each, { childList: true, subtree: true, characterData: true });
        }"""
    )
    for _ in range(2):
        refreshed(wide)
    assert wide.evaluate("told") == []


@pytest.mark.parametrize(
    ("view", "what"), [("calls", "GET ratings/fail"), ("traces", "GET /basket?token=[redacted]")]
)
def test_what_is_opened_has_the_focus_and_escape_closes_it(wide: Any, view: str, what: str) -> None:
    open_view(wide, view)
    opener = wide.locator(f"main th a:text-is('{what}')").first
    key = opener.get_attribute("data-key")
    opener.focus()
    wide.keyboard.press("Enter")
    wide.wait_for_function("() => document.activeElement.dataset.key === 'opened'")
    wide.keyboard.press("Escape")
    wide.wait_for_selector("[data-key=opened]", state="detached")
    wide.wait_for_function("key => document.activeElement.dataset.key === key", arg=key)


def test_tab_goes_through_the_whole_page_and_out_of_it(page: Any) -> None:
    """In the order of the page, each stop is visible, and none holds it."""
    stops: list[list[Any]] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
                const each = document.activeElement;
                if (each === document.body) return null;
                const { outlineStyle, outlineWidth } = getComputedStyle(each);
                const all = [...document.querySelectorAll('*')];
                return [all.indexOf(each), outlineStyle !== 'none' && outlineWidth !== '0px', each.outerHTML.slice(0, 80)];
            }"""
        )
        if stop is None:
            break
        stops.append(stop)
    else:
        pytest.fail("the focus never leaves the page")
    places = [place for place, _, _ in stops]
    assert places == sorted(places)
    assert [html for _, visible, html in stops if not visible] == []
    assert len(stops) > 15


def test_names_for_everything_that_acts(page: Any) -> None:
    """Each control and each table has a name, each heading cell a scope, each view one heading of the first level."""
    for view in VIEWS:
        open_view(page, view)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('a, button, input, select, [role=link], table, [role=region]')]
                .filter((each) => !(each.getAttribute('aria-label') || each.textContent.trim()
                    || each.labels?.length || each.querySelector?.('title, caption')))
                .map((each) => each.outerHTML)"""
        )
        assert nameless == []
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("h1").count() == 1


def test_tables_are_tables_for_a_screen_reader(page: Any) -> None:
    """What Chromium tells assistive technology: also where a phone's rows are laid out as grids."""
    session = page.context.new_cdp_session(page)
    for view in ("services", "graph", "routes", "calls"):
        open_view(page, view)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        roles = Counter(node["role"]["value"] for node in nodes if not node["ignored"] and "role" in node)
        rows = page.locator("main tbody tr").count()
        assert roles["row"] == rows + page.locator("main thead tr").count(), view
        assert roles["rowheader"] == rows, view
        assert roles["columnheader"] == page.locator("main thead th").count() > 0, view
        assert roles["main"] == roles["navigation"] == roles["banner"] == 1, view


def test_an_address_that_means_nothing(browser: Any, shown: Serving) -> None:
    for page in opened(browser, shown, WIDE):
        for address, caption in (
            ("#/calls/%", "Recent calls"),
            ("#/nowhere", "Services"),
            ("#/calls/x", "Recent calls"),
            ("#/routes/%E0%A4%A", "Routes"),
        ):
            page.evaluate("address => { location.hash = address; }", address)
            page.wait_for_selector(f"table:has(caption:text-is('{caption}')) tbody tr")


CONTRAST = """() => {
  const light = (text) => {
    const parts = text.match(/[0-9.]+/g).map((each) => each / 255);
    const [r, g, b] = parts.map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const poor = [];
  for (const each of document.querySelectorAll('main *, header *, nav *')) {
    if (each.closest('svg') || ![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [one, other] = [light(getComputedStyle(each).color), light(ground(each))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${each.tagName} ${each.className} ${each.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_its_ground(wide: Any, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 to 1."""
    wide.emulate_media(color_scheme=scheme)
    for view in VIEWS:
        open_view(wide, view)
        assert wide.evaluate(CONTRAST) == [], view


def test_two_hundred_services(browser: Any, upstream: Upstream) -> None:
    names = [f"service-{number:03d}" for number in range(200)]
    with (
        meshlib.Mesh(config=configuration(upstream.address, *names, endpoints=25)) as mesh,
        httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client,
        mesh.admin().serve("127.0.0.1:0") as serving,
    ):
        for name in names:
            client.get(f"http://{name}/")
        for page in opened(browser, serving, WIDE):
            assert page.locator("table:has(caption:text-is('Services')) tbody tr").count() == 200
            open_view(page, "graph")
            assert page.locator("svg.graph .edge").count() == 24
            assert page.locator("table:has(caption:text-is('Edges')) tbody tr").count() == 200
            open_view(page, "endpoints")
            page.wait_for_selector("[data-key=cluster]")
            assert page.locator("[data-key=cluster] option").count() == 200
            assert page.locator("tbody tr").count() == 25


def test_a_process_that_has_gone(browser: Any, control_plane: ControlPlane) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    with meshlib.Mesh(bootstrap=control_plane.bootstrap("short")) as mesh:
        mesh.wait_ready("reviews:80")
        with mesh.admin().serve("127.0.0.1:0") as serving:
            page.goto(serving.url)
            page.wait_for_selector("tbody tr")
        page.wait_for_selector("#health.bad:text-is('the process does not answer')")
        assert page.locator("tbody tr").count() > 0, "what was known stays"
        page.click("nav a[href='#/routes']")
        page.wait_for_selector("text=Routes: the process does not answer")
        page.click("nav a[href='#/services']")
        page.wait_for_selector("tbody tr")
        assert page.inner_text("#health") == "the process does not answer"
    context.close()
