from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import files
from meshlib.resources.yamltext import Text, TextError

CLUSTER = {"@type": proto.CLUSTER, "name": "c", "connect_timeout": "1s"}

MESH = """\
    # a comment
    resources:
    - "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
      name: web
      virtual_hosts:
      - name: all
        domains: ["*"]
        routes:
        - match: {prefix: /a}
          route: {cluster: a}
        - match:
            prefix: /b
          route:
            cluster: b
            timeout: 2s
          typedPerFilterConfig:
            envoy.filters.http.fault:
              "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
              abort: {http_status: 503}
    ---
    "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
    name: a
    """


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(dedent(text))
    return path


def problems(*sources: files.Source) -> list[str]:
    return [str(problem) for problem in files.load(sources).problems]


def test_documents_files_folders_and_dictionaries_form_one_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    write(folder, "2.yml", '"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: second')
    (folder / "1.json").write_text(json.dumps({"resources": [{**CLUSTER, "name": "first"}]}))
    write(folder, "notes.txt", "not: read")
    write(folder, ".hidden.yaml", "not: read")
    config = files.load(
        [write(tmp_path, "mesh.yaml", MESH), folder, {"resources": [CLUSTER]}, CLUSTER | {"name": "d"}]
    )
    assert config.problems == ()
    assert [r.name for r in config.resources] == ["web", "a", "first", "second", "c", "d"]
    assert [r.type_url for r in config.resources] == [proto.ROUTE, *[proto.CLUSTER] * 5]
    assert [Path(r.file).name for r in config.resources] == [
        "mesh.yaml",
        "mesh.yaml",
        "1.json",
        "2.yml",
        "config[2]",
        "config[3]",
    ]
    assert [r.line for r in config.resources] == [3, 21, 1, 1, 0, 0]
    assert config.resources[0].message.virtual_hosts[0].routes[1].route.timeout.seconds == 2


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("", 3),
        ("name", 4),
        ("virtual_hosts", 5),
        ("virtual_hosts[0]", 6),
        ("virtual_hosts[0].domains[0]", 7),
        ("virtual_hosts[0].routes[0].match.prefix", 9),
        ("virtual_hosts[0].routes[1].match.prefix", 12),
        ("virtual_hosts[0].routes[1].route.timeout", 15),
        ("virtual_hosts[0].routes[1].route.retry_policy.retry_on", 13),
        ("virtual_hosts[0].routes[9]", 8),
        ('virtual_hosts[0].routes[1].typed_per_filter_config["envoy.filters.http.fault"].abort', 19),
        ("virtual_hosts[0].routes[1].typed_per_filter_config[envoy.filters.http.fault].abort", 19),
        ("virtual_hosts[0].routes[1].typed_per_filter_config.envoy.filters.http.fault.abort.http_status", 19),
        ("nonsense..[", 3),
    ],
)
def test_a_field_is_found_by_its_path(tmp_path: Path, path: str, line: int) -> None:
    (route, _) = files.load([write(tmp_path, "mesh.yaml", MESH)]).resources
    assert files.locate(route, path) == line


def test_lines_of_json_with_tabs(tmp_path: Path) -> None:
    text = json.dumps({"resources": [{"@type": proto.CLUSTER, "nme": "a\tb"}]}, indent="\t")
    path = write(tmp_path, "c.json", text)
    assert problems(path) == [
        f"{path}:5: nme: unknown field of envoy.config.cluster.v3.Cluster; did you mean 'name'?"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resources: [", ":1: did not find expected node content"),
        ("a: 1\n b: 2", ":2: mapping values are not allowed"),
        ("- 1", ":1: a document must be a mapping with 'resources:' or with '@type'"),
        ("a: 1", ":1: neither 'resources:' nor '@type' is here"),
        ("resources: 3", ":1: resources: must be a list"),
        ("resources:\n- 3", ":2: a resource must be a mapping with '@type'"),
        ("resources:\n- name: a", ":2: @type: missing: write for example"),
        ("resources: []\nresorces: []", ":2: resorces: unknown field beside 'resources:'"),
        ("static_resources: {}", ":1: this is an Envoy bootstrap"),
        (
            "apiVersion: v1\nkind: Gateway",
            ":2: kind: Gateway: Istio and Gateway API objects are not supported yet",
        ),
        (
            'resources:\n- "@type": a/envoy.config.cluster.v3.Cluter\n  name: x',
            ":2: @type: unknown type 'envoy.config.cluster.v3.Cluter'; did you mean 'envoy.config.cluster.v3.Cluster'?",
        ),
        (
            'resources:\n- "@type": a/envoy.extensions.filters.http.router.v3.Router',
            ":2: @type: envoy.extensions.filters.http.router.v3.Router is not a resource by itself",
        ),
        (f'resources:\n- "@type": {proto.CLUSTER}\n  connect_timeout: 1s', ":2: name: must not be empty"),
        (
            f'resources:\n- "@type": {proto.CLUSTER}\n  name: a\n  lb_policy: BEST',
            ":4: lb_policy: 'BEST' is not one of ROUND_ROBIN",
        ),
        (
            f'"@type": {proto.CLUSTER}\nname: a\nconnect_timeout: 5',
            ":3: connect_timeout: Duration JSON value not a string: 5",
        ),
        ("a: 1\nb: 2\na: 3", ":3: the key 'a' stands here twice"),
        ("a: !!python/object:os.system 1", ":1: could not determine a constructor"),
        ("a: *nowhere", ":1: found undefined alias"),
        ("[" * 5000, ":1: "),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}{expected}")
    assert "\n" not in problem


def test_mistakes_of_json(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.json", '{"resources": [}')
    assert problems(path) == [f"{path}:1: not JSON: Expecting value (column 16)"]
    path.write_text('{"a": 1, "a": 2}')
    assert problems(path) == [f"{path}:1: the key 'a' stands twice in one object"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    assert problems(tmp_path / "no.yaml", tmp_path / "empty", tmp_path / "latin.yaml") == [
        f"{tmp_path}/no.yaml: no such file or folder",
        f"{tmp_path}/empty: a folder without *.yaml, *.yml or *.json files",
        f"{tmp_path}/latin.yaml: not UTF-8 text (byte 3)",
    ]


def test_an_empty_document_is_nothing(tmp_path: Path) -> None:
    assert files.load([write(tmp_path, "e.yaml", "---\n---\nresources:\n")]) == files.FileConfig(
        resources=(), problems=()
    )


def test_a_name_may_be_used_once_for_each_type(tmp_path: Path) -> None:
    endpoint = {"@type": proto.ENDPOINT, "cluster_name": "c"}
    path = write(
        tmp_path,
        "a.yaml",
        f"resources:\n- {json.dumps(CLUSTER)}\n- {json.dumps(endpoint)}\n- {json.dumps(CLUSTER)}\n",
    )
    config = files.load([path])
    assert len(config.resources) == 2
    assert [str(p) for p in config.problems] == [
        f"{path}:4: name: there is another Cluster named 'c' at {path}:2; remove or rename one"
    ]


def test_a_mistake_leaves_the_other_resources(tmp_path: Path) -> None:
    config = files.load(
        [{"resources": [CLUSTER, {**CLUSTER, "name": 3}, {**CLUSTER, "name": "d"}]}, "/does/not/exist"]
    )
    assert [r.name for r in config.resources] == ["c", "d"]
    assert [p.file for p in config.problems] == ["config[0]", "/does/not/exist"]


def test_a_discovery_resource_is_unwrapped() -> None:
    wrapped = {
        "@type": "type.googleapis.com/envoy.service.discovery.v3.Resource",
        "name": "c",
        "resource": CLUSTER,
    }
    (resource,) = files.load([{"resources": [wrapped]}]).resources
    assert (resource.name, resource.type_url) == ("c", proto.CLUSTER)
    wrapped = {"@type": wrapped["@type"], "resource": {**CLUSTER, "x": 1}}
    assert problems({"resources": [wrapped]}) == [
        "config[0]: x: unknown field of envoy.config.cluster.v3.Cluster"
    ]


def test_validate_puts_the_mistakes_of_a_decoder_at_their_line(tmp_path: Path) -> None:
    def decode(type_url: str, message: proto.Message) -> Any:
        if type_url == proto.ROUTE:
            raise ResourceError(
                "virtual_hosts[0].routes[1].match", "wrong", type_url=type_url, name=message.name
            )
        return message

    path = write(tmp_path, "mesh.yaml", dedent(MESH) + "---\nresources: 3\n")
    assert [str(p) for p in files.validate(files.load([path]), decode)] == [
        f"{path}:24: resources: must be a list",
        f"{path}:11: virtual_hosts[0].routes[1].match: wrong",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2020-01-01", "2020-01-01"),
        ("12:30:45", "12:30:45"),
        ("=", "="),
        ("0x10", 16),
        ("-7", -7),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e3", "1e3"),
        ("true", True),
        ("~", None),
        ("'5'", "5"),
    ],
)
def test_scalars_of_yaml(text: str, value: object) -> None:
    assert Text(f"a: {text}").documents == [{"a": value}]


def test_merge_keys_and_aliases() -> None:
    text = Text("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nsame: *b\n")
    assert text.documents == [{"base": {"x": 1, "y": 2}, "use": {"x": 1, "y": 3}, "same": {"x": 1, "y": 2}}]
    assert [text.line(0, p) for p in ("use.y", "use.x", "same.y")] == [4, 1, 1]


@given(st.text(max_size=60))
def test_any_text_is_documents_or_a_text_error(text: str) -> None:
    for is_json in (False, True):
        try:
            parsed = Text(text, is_json=is_json)
        except TextError:
            continue
        assert parsed.line(0, "a.b[0]") >= 1


@given(
    st.recursive(
        st.integers() | st.text(max_size=5),
        lambda i: st.lists(i) | st.dictionaries(st.text(max_size=12), i),
        max_leaves=6,
    )
)
def test_any_value_is_resources_or_problems(value: Any) -> None:
    config = files.load(
        [{"resources": value}, {"resources": [value]}, {"@type": proto.CLUSTER, "name": value}]
    )
    assert config.problems or config.resources
