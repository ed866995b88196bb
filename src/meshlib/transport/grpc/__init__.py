"""The gRPC transport: channels that ask the engine for every attempt and own one inner channel for each endpoint.

A call of the application becomes a `RequestView` (`request`), the engine picks an endpoint, and the attempt is a call on that
endpoint's inner channel (`endpoint`, kept in `endpoints`), sent as grpcio would send it. How it ended is turned into an event
(`judge`), and what the engine decides is raised or returned in grpcio's own forms (`errors`). Blocking unary calls have a driver
of their own (`sync_unary`), which costs little; futures, streams and hedging are driven by events (`sync_flight`). Unary calls
that go well run along a straight line, `sync_lane` and `aio_lane`, which are compiled where the engine is.
"""
