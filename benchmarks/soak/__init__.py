"""Rotation under load: `python -m benchmarks.soak` (`make soak`).

The development CA renews short-lived SVIDs over the Workload API, and its root rotates, while all four clients (httpx and gRPC,
blocking and asyncio) call two servers without a pause. No call may fail, none may be cut in the middle, and no call may begin on
a connection that is more than one rotation old. The CA, each server and the clients are processes of their own.
"""
