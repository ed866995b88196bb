"""What the blocking and the asyncio exchange share: reading the engine's actions, and finding attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshlib.engine.actions import Accept, Action, CancelAttempt, Connect, Fail, Park, Reply, Start
from meshlib.engine.call import Call
from meshlib.engine.engine import Engine
from meshlib.engine.events import Event
from meshlib.errors import MeshError
from meshlib.identity.refusal import explained
from meshlib.runtime.ahead import mypyc_attr
from meshlib.transport.http.exchange import (
    CANCELLED,
    Answer,
    Attempt,
    OriginalRequest,
    UnsupportedActionError,
    decode_headers,
)
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.message import Response
from meshlib.transport.http.pool import Shelf

__all__ = ["CallAttempts"]


@mypyc_attr(allow_interpreted_subclasses=True)
class CallAttempts:
    """The attempts that one call has under way. Subclasses say what each action does to a connection."""

    __deletable__ = ("call",)
    # Defaults of the class: a call sets what differs, and a call that goes well sets few of them.
    call: Call
    _engine: Engine
    _request: OriginalRequest
    _attempts: list[Attempt]
    _monotonic: Callable[[], float]
    _later: list[Event] | None = None
    _answer: Answer | None = None
    _accepted: Attempt | None = None
    _broken: TransportFailure | None = None
    _woken = False
    _told_complete = True
    _received = 0

    def _carry_out(self, actions: Sequence[Action]) -> Event | None:
        """Carry out the actions in order. The event that follows at once, None when it must be waited for.

        More of them are kept in `_later`: two parked attempts may be served together.
        """
        event: Event | None = None
        for action in actions:
            if isinstance(action, Start):
                event = self._start(action)
            elif isinstance(action, Accept):
                self._accept(action)
            elif isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
            elif isinstance(action, Connect):
                found = self._connect(action)
                if event is None or found is None:
                    event = event or found
                elif self._later is None:
                    self._later = [found]
                else:
                    self._later.append(found)
            elif isinstance(action, Park):
                self._park(action)
            elif isinstance(action, Fail):
                raise self._explained(action.error)
            elif isinstance(action, Reply):
                self._answer = Answer.local(action.reply, self.call.info)
            else:
                raise UnsupportedActionError(action)
        return event

    def _cancel(self, number: int) -> None:
        attempt = self._find(number)
        if attempt is not None:
            self._release(attempt)

    def _describe(self, number: int, connection: Any) -> None:
        """The attempt's request is about to be sent over this connection, and an access log shows what that is like."""
        attempt = self.call.attempts[number - 1]
        attempt.connection = connection.describe()
        attempt.sent_at = self._monotonic()
        attempt.whole = self._told_complete

    def _account(self, response: Response | None) -> None:
        """For those who observe the call: what has gone over the wire, before the engine hears of an end."""
        call = self.call
        if not call.observed:
            return
        received, trailers = self._received, None
        if response is not None:
            for chunk in response.chunks:
                received += len(chunk)
            if response.trailing:
                trailers = decode_headers(response.trailers)
        call.account(self._uploaded(), received, trailers=trailers)

    def _abandon(self, error: BaseException | None = None) -> None:
        """Something was raised, or nobody wants more: the engine hears that the call is over, and nothing stays open."""
        if self.call.observed and error is not None:
            self.call.error = error
        for action in self.call.handle(CANCELLED, self._monotonic()):
            if isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
        for attempt in list(self._attempts):
            self._release(attempt)

    def _explained(self, error: MeshError) -> MeshError:
        """With the reason of TLS, when that kept the last attempt from connecting."""
        if self._broken is None:
            return error
        return explained(error, self._broken.__cause__)

    def _shelf(self, start: Start) -> Shelf:
        """Where a connection for it may wait."""
        endpoint = start.endpoint
        return (endpoint, self._authority(start)) if endpoint.way.named else endpoint

    def _authority(self, start: Start) -> str:
        """Whom TLS takes the request to be for."""
        header = start.endpoint.way.name_header
        if header:
            for name, value in self._request.view.headers if start.headers is None else start.headers:
                if name == header:
                    return value
        return start.authority

    def _find(self, number: int | None) -> Attempt | None:
        for attempt in self._attempts:
            if attempt.number == number:
                return attempt
        return None

    def _uploaded(self) -> int:
        """How many bytes the request body has, as far as the application has given it."""
        raise NotImplementedError

    def _start(self, action: Start) -> Event | None:
        """Take an idle connection; the event says what is missing."""
        raise NotImplementedError

    def _connect(self, action: Connect) -> Event | None:
        """Use the connection that was handed over, or begin to open one."""
        raise NotImplementedError

    def _park(self, action: Park) -> None:
        """The attempt stands in its endpoint's queue, or the call waits for configuration."""
        raise NotImplementedError

    def _accept(self, action: Accept) -> None:
        """This attempt's response is the answer."""
        raise NotImplementedError

    def _release(self, attempt: Attempt) -> None:
        """The attempt is over: its connection goes back to the pool if it can serve another call, else it is closed."""
        raise NotImplementedError
