"""The client, on asyncio: asks `books`, prints who answered. Exit code 0 when no call failed and the canary had its part."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc

from examples.grpc_app.books import CANARY
from examples.grpc_app.channels import aio_channel
from examples.grpc_app.stubs import messages, services

CALLS = 100
AT_ONCE = 8


async def ask(stub: Any, metadata: Sequence[tuple[str, str]]) -> list[Any]:
    """The books of many calls, or the errors in their place."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Any:
        async with gate:
            try:
                return await stub.GetBook(messages.BookRequest(book=number), metadata=metadata, timeout=10.0)
            except grpc.aio.AioRpcError as error:
                return error

    return list(await asyncio.gather(*(one(number) for number in range(CALLS))))


def report(title: str, answers: list[Any]) -> Counter[str]:
    failed = [answer for answer in answers if isinstance(answer, grpc.RpcError)]
    versions = Counter(answer.rating.version for answer in answers if isinstance(answer, messages.Book))
    print(f"{title}: {CALLS} calls, {len(failed)} failed")
    for version, count in sorted(versions.items()):
        print(f"  rated by reviews {version}: {count}")
    for error in failed[:3]:
        print(f"  {error.code().name}: {error.details()}")
    return versions


async def main() -> int:
    async with aio_channel("books:9080") as channel:
        stub = services.BooksStub(channel)
        everyone = report("everyone", await ask(stub, ()))
        canary = report(f"with {CANARY}: always", await ask(stub, ((CANARY, "always"),)))
    sys.stdout.flush()
    good = everyone.total() == CALLS and everyone.keys() == {"v1", "v2"} and canary == {"v2": CALLS}
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
