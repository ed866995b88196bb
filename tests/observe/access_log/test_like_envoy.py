"""The same requests through a real Envoy and through meshlib: the same lines, but for moments, ports and request ids."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshlib.resources import operators
from meshlib.testing import Hang, Reply, Request, Reset, Upstream
from meshlib.testing.upstream import Behaviour
from tests.observe.access_log.envoy import both_logs, closed_port

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d{4})"), r"<moment\1>"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<id>"),
)
VARYING = {
    "DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "COMMON_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_HEADER_SERVICE_TIME",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
}
"""Numbers of milliseconds: whether there is one is compared."""

OWN_ENDS = {
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_TLS_SESSION_ID",
}
"""Numbers of connections and of their ports, one after the other: only the digits differ."""

CALLER = {name for name in operators.LOGGED if name.startswith("DOWNSTREAM_")}
"""Of a connection that there is not: the caller is this process."""

ARGUMENTS = {
    "CLUSTER_METADATA": "of.cluster:a:b",
    "COMMON_DURATION": "DS_RX_BEG:US_RX_BEG:us",
    "DYNAMIC_METADATA": "m:k",
    "ENVIRONMENT": "MESHLIB_NOT_SET",
    "FILTER_STATE": "k",
    "METADATA": "ROUTE:of.route:name",
    "QUERY_PARAM": "b",
    "REQUEST_HEADER": "x-a",
    "RESPONSE_HEADER": "x-b",
    "RESPONSE_TRAILER": "x",
    "UPSTREAM_FILTER_STATE": "k",
    "UPSTREAM_METADATA": "of.endpoint:workload",
}
ALL = {
    name: f"%{name}({ARGUMENTS[name]})%" if name in ARGUMENTS else f"%{name}%"
    for name in sorted(operators.LOGGED - CALLER - set(operators.BY_FORMATTER.values()))
}

TEXT = (
    "%REQ(x-a)%|%REQ(x-a):3%|%REQ(none?x-a)%|%REQ(:path)%|%REQ(:AUTHORITY)%|%PATH%|%PATH(NQ:PATH)%|%PATH(WQ:ORIG)%"
    "|%QUERY_PARAMS%|%QUERY_PARAMS(DECODED)%|%QUERY_PARAM(b):3%|%RESP(x-b)%|%RESP(none?x-b):1%|%ENVIRONMENT(MESHLIB_NOT_SET)%"
    "|%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%|%UPSTREAM_HOST_NAME_WITHOUT_PORT%|%GRPC_STATUS%|%GRPC_STATUS(NUMBER)%"
    "|%REQ(x-added)%|%RESP(x-from-route)%|%COMMON_DURATION(a:b)%|%START_TIME(%Y%%%F)%|100%%\n"
)
MIXED = {
    "number": "%BYTES_SENT%",
    "text": "<%BYTES_SENT%>",
    "constant": 2,
    "large": 1000000,
    "larger": 123456789012,
    "small": 0.00001,
    "fraction": 1.5,
    "negative": -20,
    "true": True,
    "null": None,
    "list": ["%PROTOCOL%", {"b": "1", "a": "%REQ(none)%"}, None, []],
    "literal": "100%%",
    "empty": "",
    "header": "%REQ(x-a)%",
    "mixed": "<%REQ(x-a)%>",
    "missing": "<%REQ(none)%>",
    "short": "%REQ(x-a):3%",
    "nested": {"x": {"y": "%REQ(none)%"}},
    "nothing": {},
    "parameter": "%QUERY_PARAM(b)%",
    'key"\u00e9\n': 'value"\u00e9\n\x7f',
}
METADATA = {
    name: f"%{each}%"
    for name, each in {
        "object": "CLUSTER_METADATA(of.cluster)",
        "deep": "METADATA(CLUSTER:of.cluster:a:b)",
        "too deep": "CLUSTER_METADATA(of.cluster:a:b:c)",
        "number": "CLUSTER_METADATA(of.cluster:number)",
        "fraction": "CLUSTER_METADATA(of.cluster:fraction)",
        "large": "CLUSTER_METADATA(of.cluster:large)",
        "list": "CLUSTER_METADATA(of.cluster:list)",
        "yes": "CLUSTER_METADATA(of.cluster:yes)",
        "null": "CLUSTER_METADATA(of.cluster:null)",
        "text": "METADATA(CLUSTER:of.cluster:text):3",
        "cut object": "METADATA(CLUSTER:of.cluster:a):5",
        "nobody's": "CLUSTER_METADATA(nobody)",
        "route": "METADATA(ROUTE:of.route)",
        "virtual host": "METADATA(VIRTUAL_HOST:of.host:name)",
        "listener": "METADATA(LISTENER:of.listener:name)",
        "endpoint": "METADATA(UPSTREAM_HOST:of.endpoint)",
        "dynamic": "METADATA(DYNAMIC:any)",
    }.items()
}
FORMATS: dict[str, dict[str, Any]] = {
    "default": {},
    "all": {"log_format": {"json_format": ALL}},
    "text": {"log_format": {"text_format_source": {"inline_string": TEXT}}},
    "text-omitting": {
        "log_format": {"text_format_source": {"inline_string": TEXT}, "omit_empty_values": True}
    },
    "json": {"log_format": {"json_format": MIXED}},
    "json-omitting": {"log_format": {"json_format": MIXED, "omit_empty_values": True}},
    "metadata": {"log_format": {"json_format": {**METADATA, "all": "|".join(METADATA.values())}}},
    "metadata-text": {
        "log_format": {"text_format_source": {"inline_string": "|".join(METADATA.values()) + "\n"}}
    },
    "metadata-omitting": {"log_format": {"json_format": METADATA, "omit_empty_values": True}},
    "older": {"json_format": {"a": "%REQ(x-a)%", "n": "%RESPONSE_CODE%"}},
}


def answer(request: Request) -> Behaviour:
    if "reset" in request.target:
        return Reset()
    if "late" in request.target:
        return Hang()
    status = 503 if "503" in request.target else 200
    return Reply(status=status, body=b"hello world", headers=(("x-b", "1"), ("x-b", "2")))


def labels(key: str, **values: Any) -> dict[str, Any]:
    return {"filter_metadata": {key: values}}


OF_CLUSTER = labels(
    "of.cluster",
    a={"b": "deep", "\u00e9": []},
    number=2,
    fraction=1.5,
    large=1e21,
    list=[1, "x", {"q": None}],
    yes=True,
    null=None,
    text='quote"',
)


def static(name: str, port: int | None, **fields: Any) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoint = {
        "endpoint": {"address": address, "hostname": "host.example:99"},
        "metadata": labels("of.endpoint", workload="w;n"),
    }
    locality = {"lb_endpoints": [endpoint], "metadata": labels("of.endpoint", workload="of the locality")}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [locality] if port else []},
        "metadata": OF_CLUSTER,
        **fields,
    }


def header(key: str, value: str) -> dict[str, Any]:
    return {"header": {"key": key, "value": value}}


ROUTES: list[dict[str, Any]] = [
    {
        "name": "rewritten",
        "metadata": labels("of.route", name="rewritten", number=1),
        "match": {"prefix": "/old"},
        "route": {"cluster": "up", "prefix_rewrite": "/new"},
        "request_headers_to_add": [header("x-added", "yes")],
        "response_headers_to_add": [header("x-from-route", "%ENVIRONMENT(MESHLIB_NOT_SET)%|%PATH(NQ)%")],
    },
    {
        "name": "direct",
        "metadata": labels("of.route", name="direct"),
        "match": {"prefix": "/direct"},
        "direct_response": {"status": 404, "body": {"inline_string": "no"}},
    },
    {"match": {"prefix": "/unknown"}, "route": {"cluster": "unknown"}},
    {
        "match": {"prefix": "/refused"},
        "route": {"cluster": "dead", "retry_policy": {"retry_on": "connect-failure", "num_retries": 1}},
    },
    {"match": {"prefix": "/empty"}, "route": {"cluster": "empty"}},
    {
        "name": "retried",
        "match": {"prefix": "/retried"},
        "route": {"cluster": "up", "retry_policy": {"retry_on": "5xx", "num_retries": 1}},
    },
    {"name": "moved", "match": {"prefix": "/moved"}, "redirect": {"path_redirect": "/a"}},
    {"name": "late", "match": {"prefix": "/late"}, "route": {"cluster": "up", "timeout": "0.05s"}},
    {"name": "plain", "match": {"prefix": "/a"}, "route": {"cluster": "up"}},
]


def requests() -> list[httpx.Request]:
    def get(path: str, *headers: tuple[str, bytes], method: str = "GET", body: bytes = b"") -> httpx.Request:
        given = [(b"user-agent", b"test"), *((name.encode(), value) for name, value in headers)]
        return httpx.Request(method, f"http://svc.example{path}", headers=given, content=body or None)

    return [
        get("/a"),
        get("/old/p?q=1&b=%41%2b+x&b=2", ("x-a", b"one"), ("x-a", b"two"), method="POST", body=b"abc"),
        get("/a?b", ("x-a", 'quote" slash\\ \u00e9'.encode()), ("x-request-id", b"of-the-caller")),
        get("/a?b=%22%c3%a9&c=%4", ("x-a", b'\xff\xfe"\\x\xc3'), ("x-forwarded-for", b"10.0.0.1")),
        get("/a?x&b=", ("x-a", b"tab\there")),
        get("/direct?b=%zz"),
        get("/unknown"),
        get("/refused", ("x-a", b"")),
        get("/empty"),
        get("/retried/503"),
        get("/a/503"),
        get("/a/reset"),
        get("/moved?x=1"),
        get("/late"),
        get("/a", method="HEAD"),
        get("/no/route"),
        get("/a", ("content-type", b"application/grpc"), method="POST", body=b"\0\0\0\0\0"),
        get("/unknown", ("content-type", b"application/grpc"), method="POST"),
    ]


def test_the_same_lines(tmp_path: Path) -> None:
    with Upstream(answer) as upstream:
        dead = closed_port()
        clusters = [static("up", upstream.port), static("dead", dead), static("empty", None)]
        theirs, ours = both_logs(FORMATS, ROUTES, clusters, requests(), tmp_path)
    different = []
    for name in FORMATS:
        assert len(theirs[name]) == len(ours[name]) == len(requests())
        for number, (expected, found) in enumerate(zip(theirs[name], ours[name])):
            a, b = masked(name, expected), masked(name, found)
            if a != b:
                different.append((name, number, a, b))
    assert not different, "\n".join(f"{n} {i}\n  {a!r}\n  {b!r}" for n, i, a, b in different)


def masked(name: str, line: str) -> object:
    for pattern, mask in MASKS:
        line = pattern.sub(mask, line)
    if name == "all":
        members = json.loads(line)
        members["RESPONSE_HEADERS_BYTES"] = (
            members["RESPONSE_HEADERS_BYTES"] > 0
        )  # `date` and `server` are not added here
        if members["UPSTREAM_HOST"] is None:
            members["REQUEST_HEADERS_BYTES"] = (
                members["REQUEST_HEADERS_BYTES"] > 0
            )  # nor what goes to endpoints
        return {
            key: "number" if key in VARYING and value is not None else value
            for key, value in members.items()
            if key not in OWN_ENDS
        } | {key: re.sub(r"[1-9]\d*$", "<n>", str(members[key])) for key in OWN_ENDS}
    if name == "default":
        # Duration and upstream service time.
        return re.sub(r"(\d+ \d+) \d+ (\d+|-) \"", r'\1 <ms> <ms> "', line)
    return line
