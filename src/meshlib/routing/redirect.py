"""Answers that the configuration gives by itself: redirects, direct responses, and https where TLS is required."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from meshlib.errors import LocalReply
from meshlib.resources.route import DirectResponse, Redirect, Route, RouteConfiguration, VirtualHost
from meshlib.routing.authority import port_start
from meshlib.routing.format import OPERATORS, FormatContext, compile_format
from meshlib.routing.headers import set_header
from meshlib.routing.plan import edit_response, response_levels
from meshlib.routing.reply import finish_reply
from meshlib.routing.request import Headers, RequestView, ResponseView
from meshlib.routing.rewrite import compile_path_rewrite, split_path

__all__ = ["Answer", "compile_direct_response", "compile_redirect", "https_redirect"]

Answer = Callable[[RequestView, FormatContext | None], LocalReply]

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def compile_redirect(
    redirect: Redirect, route: Route, virtual_host: VirtualHost, config: RouteConfiguration
) -> Answer:
    """RedirectAction: scheme, host, port and path are replaced where given, the query is kept unless stripped."""
    rewrite = compile_path_rewrite(redirect.prefix_rewrite, redirect.regex_rewrite, route.match.path)
    finish = _finisher(redirect.response_code, route, virtual_host, config)

    def answer(request: RequestView, context: FormatContext | None) -> LocalReply:
        if rewrite is not None:
            request = _rewritten(request, rewrite(request.path))
        scheme = redirect.scheme or request.scheme
        port = f":{redirect.port}" if redirect.port else ""
        host = redirect.host or _host(request, scheme, port)
        path = _redirected_path(redirect, request.path)
        return finish(request, context, f"{scheme}://{host}{port}{path}", b"")

    return answer


def compile_direct_response(
    direct: DirectResponse, route: Route, virtual_host: VirtualHost, config: RouteConfiguration
) -> Answer:
    """DirectResponseAction. With 201 or 3xx the request's own URL becomes the location, as in Envoy."""
    finish = _finisher(direct.status, route, virtual_host, config)
    shown = None
    if direct.body_format is not None:
        shown = compile_format(direct.body_format, OPERATORS, missing="-")
    located = direct.status == HTTPStatus.CREATED or 300 <= direct.status < 400

    def answer(request: RequestView, context: FormatContext | None) -> LocalReply:
        location = f"{request.scheme}://{request.authority}{request.path}" if located else ""
        body = direct.body
        if shown is not None:
            context = context or FormatContext(request)
            context.body = body.decode("utf-8", "replace")
            body = shown(context).encode("utf-8", "surrogateescape")
        return finish(request, context, location, body)

    return answer


def https_redirect(request: RequestView) -> LocalReply | None:
    """The 301 of require_tls; None when the request came over https. The authority stays, with its port.

    x-forwarded-proto says what it came over, else the scheme. Nobody is internal without internal_address_config, so
    EXTERNAL_ONLY and ALL are the same.
    """
    if (request.first("x-forwarded-proto") or request.scheme) == "https":
        return None
    location = f"https://{request.authority}{request.path}"
    return LocalReply(301, (("location", location), ("content-length", "0")))


def _rewritten(request: RequestView, path: str) -> RequestView:
    """The request as response edits see it after a rewrite."""

    headers = list(request.headers)
    set_header(headers, "x-envoy-original-path", request.path)
    return RequestView(
        method=request.method, scheme=request.scheme, authority=request.authority, path=path, headers=headers
    )


def _host(request: RequestView, scheme: str, port: str) -> str:
    """The request's authority, without its port if the redirect gives one or the old scheme's default would be wrong."""
    authority = request.authority
    start = port_start(authority)
    if start < 0:
        return authority
    if port or (scheme != request.scheme and authority[start:] == _DEFAULT_PORTS.get(request.scheme)):
        return authority[:start]
    return authority


def _redirected_path(redirect: Redirect, path: str) -> str:
    if redirect.path:
        if "?" in redirect.path:
            return _absolute(redirect.path)
        path = redirect.path + split_path(path)[1]
    return _absolute(split_path(path)[0] if redirect.strip_query else path)


def _absolute(path: str) -> str:
    return path if path.startswith("/") else "/" + path


Finish = Callable[[RequestView, FormatContext | None, str, bytes], LocalReply]


def _finisher(status: int, route: Route, virtual_host: VirtualHost, config: RouteConfiguration) -> Finish:
    """The last step of every answer: location, the response edits of all levels, then length and type."""
    levels = response_levels(route, virtual_host, config)

    def finish(request: RequestView, context: FormatContext | None, location: str, body: bytes) -> LocalReply:
        headers: Headers = [("location", location)] if location else []
        if levels:
            context = context or FormatContext(request)
            context.request = request
            context.response, context.local_reply = ResponseView(status, headers), True
            edit_response(levels, headers, context)
        return finish_reply(status, headers, body)

    return finish
