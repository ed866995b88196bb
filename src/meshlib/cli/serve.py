"""meshlib serve"""

from __future__ import annotations

import json
import signal

import click

from meshlib.cli.config import CONFIG, fail
from meshlib.controlplane import ControlPlane, FileFeed
from meshlib.errors import ConfigError
from meshlib.runtime.signals import Signals

__all__ = ["serve"]


@click.command()
@CONFIG
@click.option(
    "--listen",
    default="127.0.0.1:18000",
    show_default=True,
    help="Where to serve ADS; port 0 takes a free one.",
)
@click.option("--node-id", default="meshlib", show_default=True, help="The node id in the printed bootstrap.")
def serve(config: tuple[str, ...], listen: str, node_id: str) -> None:
    """Serve configuration files over ADS to meshlib, Envoy and gRPC's own xDS clients.

    Prints the address and the bootstrap that a client needs. The files are read again when they change; a bad edit is
    reported with file and line, and the last good version goes on being served. Ctrl-C ends it.
    """
    feed = FileFeed(config, report=lambda line: click.echo(line, err=True))
    try:
        feed.load()
        control_plane = ControlPlane(feed.store, listen=listen).start()
    except ConfigError as error:
        fail(str(error).splitlines())
    stop = Signals((signal.SIGINT, signal.SIGTERM))
    with control_plane, feed:
        click.echo(f"serving ADS on {control_plane.address}")
        click.echo("bootstrap for clients, as a file (GRPC_XDS_BOOTSTRAP) or as it is:")
        click.echo(f"export GRPC_XDS_BOOTSTRAP_CONFIG='{json.dumps(control_plane.bootstrap(node_id))}'")
        stop.next()
