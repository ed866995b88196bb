"""grpcio's own ``xds:///`` client (C-core), fed with the same resources by the embedded control plane.

It is shown beside Envoy and never fails a run: gRPC leaves out much of what Envoy does, by design. C-core reads its bootstrap
from the environment once for each process, so the calls are made in a process of their own, which this module is as well.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from conformance.outcome import Run
from conformance.resources import CLUSTER, ENDPOINTS, LISTENER
from conformance.runners.drive import drive
from conformance.runners.grpc_client import GrpcClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from conformance.case import Case
    from conformance.resources import Compiled

PATIENCE = 0.7
"""Seconds for a call whose case sets no deadline: C-core does not know the timeout of a route."""

_ADS = {"ads": {}, "resource_api_version": "V3"}


class CcoreRunner:
    """Serves all gRPC cases, a Listener each, and has a child process make the calls. A context manager."""

    def __init__(self, cases: Mapping[str, tuple[Case, Compiled]]) -> None:
        self._cases = {name: entry for name, entry in cases.items() if entry[0].protocol == "grpc"}
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> CcoreRunner:
        if self._cases:
            self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(10)
            self._process.stdout.close()
        self._stack.close()

    def run(self, case: Case, compiled: Compiled) -> Run:
        """Have the child send the requests of ``case``."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(case, self._process.stdin)
        self._process.stdin.flush()
        return Run(outcomes=pickle.load(self._process.stdout))

    def rejection(self, case: Case, compiled: Compiled) -> str | None:
        """Not asked: a case without a request has no protocol of its own."""
        raise NotImplementedError(case.name)

    def _start(self) -> None:
        from meshlib.testing import messages, serve  # here, so that the child does without

        served = [
            resource for case, compiled in self._cases.values() for resource in _resources(case, compiled)
        ]
        control_plane = self._stack.enter_context(serve())
        control_plane.store.replace(messages({"resources": served}))
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(control_plane.bootstrap())}
        environment.pop("GRPC_XDS_BOOTSTRAP", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env=environment,
        )


def _listener(case: Case) -> str:
    """The name of the case's Listener: a target without slashes."""
    return case.name.replace("/", ".")


def _resources(case: Case, compiled: Compiled) -> list[dict[str, Any]]:
    """The resources of ``case`` as gRPC wants them: an api_listener, and the endpoints of static clusters by EDS."""
    found: list[dict[str, Any]] = [
        {"@type": LISTENER, "name": _listener(case), "api_listener": {"api_listener": compiled.hcm}},
        *compiled.others,
    ]
    for cluster in copy.deepcopy(compiled.clusters):
        if cluster["@type"] == CLUSTER and cluster.get("type") == "STATIC":
            assignment = cluster.pop("load_assignment")
            for index, locality in enumerate(assignment.get("endpoints", ())):
                locality.setdefault("locality", {"zone": f"zone{index}"})
                locality.setdefault("load_balancing_weight", 1)
            cluster |= {"type": "EDS", "eds_cluster_config": {"eds_config": _ADS}}
            found.append({"@type": ENDPOINTS, **assignment})
        found.append(cluster)
    return found


def _channel(listener: str, host: str) -> grpc.Channel:
    options = (("grpc.enable_http_proxy", 0), ("grpc.default_authority", host))
    return grpc.insecure_channel(f"xds:///{listener}", options=options)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The child: cases in, outcomes out, until there are no more."""
    with contextlib.suppress(EOFError):
        while True:
            case: Case = pickle.load(requests)
            open_channel = functools.partial(_channel, _listener(case))
            with contextlib.closing(GrpcClient(open_channel, default_timeout=PATIENCE)) as client:
                pickle.dump(drive(case, client.send), answers)
            answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
