"""What the README tells a new user to do works as it says."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language: str, number: int) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found[number]


@contextmanager
def reviews(text: str) -> Iterator[int]:
    """A version of the reviews service; yields its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )


def test_the_first_example_answers_from_the_configured_versions(tmp_path: Path) -> None:
    with reviews("reviews v1") as first, reviews("reviews v2") as second:
        configuration = block("yaml", 0).replace("8101", str(first)).replace("8102", str(second))
        (tmp_path / "mesh.yaml").write_text(configuration)
        (tmp_path / "example.py").write_text(block("python", 0))
        done = run(tmp_path, "-W", "error", "example.py")
    assert done.returncode == 0, done.stderr
    answers = set(re.findall(r"'(.*?)'", done.stdout))
    assert "reviews v1" in answers
    assert answers <= {"reviews v1", "reviews v2"}
    assert done.stderr == ""


def test_the_example_is_valid_and_explained(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(block("yaml", 0))
    assert run(tmp_path, "-m", "meshlib.cli", "validate", "mesh.yaml").returncode == 0
    explained = run(tmp_path, "-m", "meshlib.cli", "explain", "mesh.yaml", "http://reviews/")
    assert explained.returncode == 0, explained.stderr
    for fact in ("reviews-v1", "127.0.0.1:81", "2 s", "connect-failure"):
        assert fact in explained.stdout


def test_the_suggested_mistake_is_reported_with_file_line_and_field(tmp_path: Path) -> None:
    broken = block("yaml", 0).replace("domains: [reviews]", "domain: [reviews]")
    assert broken != block("yaml", 0)
    (tmp_path / "mesh.yaml").write_text(broken)
    done = run(tmp_path, "-m", "meshlib.cli", "validate", "mesh.yaml")
    line = broken[: broken.index("domain: [reviews]")].count("\n") + 1
    assert done.returncode == 1
    assert done.stderr.startswith(f"mesh.yaml:{line}: virtual_hosts[0].domain: ")


def test_every_linked_page_exists() -> None:
    root = Path(__file__).parent.parent
    for page in (
        root / "README.md",
        *(root / "docs").glob("*.md"),
        root / "CONTRIBUTING.md",
        root / "CHANGELOG.md",
    ):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
