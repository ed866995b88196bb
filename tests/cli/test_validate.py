"""`meshlib validate`: exit codes, and one line for each problem."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from meshlib.cli.app import app
from tests.cli.conftest import Meshlib


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


def broken(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def test_valid_files_and_folders(folder: Path) -> None:
    result = run(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("3 resources, all valid\n")
    assert run(folder / "cluster.yml").stdout == "1 resource, all valid\n"


def test_quiet(folder: Path) -> None:
    result = run("--quiet", folder)
    assert (result.exit_code, result.output) == (0, "")


def test_what_is_not_applied_is_a_note(folder: Path) -> None:
    place = f"note: {folder / 'routes.yaml'}:30: virtual_hosts[0].routes[6].route.request_mirror_policies: "
    assert place + "not applied by this version" in run(folder).stdout.splitlines()


def test_every_problem_has_a_line(folder: Path) -> None:
    routes, cluster = folder / "routes.yaml", folder / "cluster.yml"
    broken(routes, ("status: 418", "status: 99"), ("num_retries: 4", "num_retrys: 4"))
    broken(cluster, ("port_value: 8101", "port_value: 70000"))
    result = run(folder)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 2  # a file's resource that cannot be read is not looked into further
    assert lines[0].startswith(f"{routes}:21: virtual_hosts[0].routes[2].route.retry_policy.num_retrys: ")
    assert lines[1].startswith(
        f"{cluster}:8: load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: "
    )


def test_a_wrong_value(folder: Path) -> None:
    routes = folder / "routes.yaml"
    broken(routes, ("status: 418", "status: 99"))
    (line,) = run(routes).stderr.splitlines()
    assert line.startswith(f"{routes}:13: virtual_hosts[0].routes[1].direct_response.status: ")


def test_broken_yaml(folder: Path) -> None:
    file = folder / "cluster.yml"
    broken(file, ("endpoints:", "endpoints: ["))
    result = run(file)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{file}:")
    assert int(result.stderr.split(":")[1]) > 0


def test_a_resource_twice(folder: Path) -> None:
    (folder / "again.yaml").write_text((folder / "cluster.yml").read_text())
    result = run(folder)
    assert result.exit_code == 1
    assert "another Cluster named 'api'" in result.stderr


def test_impossible_tls_is_refused(folder: Path) -> None:
    file = folder / "cluster.yml"
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    common = "common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2}}"
    broken(
        file,
        (
            "  name: api\n",
            f'  name: api\n  transport_socket: {{name: tls, typed_config: {{"@type": {tls}, {common}}}}}\n',
        ),
    )
    result = run(file)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{file}:4: transport_socket")


def test_wrong_usage(folder: Path) -> None:
    for arguments in ((), (folder / "nothing.yaml",), ("--nonsense", folder)):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")


def test_as_a_process(meshlib: Meshlib, folder: Path) -> None:
    done = meshlib("validate", folder)
    assert (done.returncode, done.stderr) == (0, "")
    broken(folder / "routes.yaml", ("status: 418", "status: 99"))
    done = meshlib("validate", folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert meshlib("validate").returncode == 2
