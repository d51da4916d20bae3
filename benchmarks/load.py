"""Load for a service on this machine: a light HTTP/1.1 client in a process of its own, which reads each answer.

    python benchmarks/load.py < plan.json > found.json

A plan has the address, the `bodies` to post to /recommend, how many `connections`, and either a `rate` (requests a
second, arrivals of a Poisson process with a seed) or none, and then each connection sends as soon as it has its answer.
`requests` are sent in all, the bodies in turn. Latencies are counted from the moment a request was planned for, so a
service that stalls is charged for everyone who came meanwhile. `lists` names a file of every version's lists, against
which each answer is held; `told` makes it print how many answers there are, after each so many.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

CLOSE = 1e-4  # of a score: rounding is far below it, another version's scores are far above


class Load:
    """One run of a plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        host, _, port = plan["address"].removeprefix("http://").partition(":")
        self.host, self.port = host, int(port)
        bodies = [json.dumps(body).encode() for body in plan["bodies"]]
        self.users = [[query.get("user_id") for query in body["queries"]] for body in plan["bodies"]]
        head = f"POST /recommend HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
        self.raw = [head.encode() + f"{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self.lists = json.loads(Path(plan["lists"]).read_text()) if plan.get("lists") else None
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.mixed = 0
        self.queries = 0

    async def run(self) -> dict[str, Any]:
        """Send everything, and say what came back."""
        due: asyncio.Queue[tuple[int, float | None]] = asyncio.Queue()
        senders = [asyncio.create_task(self._send(due)) for _ in range(self.plan["connections"])]
        start = time.perf_counter()
        draw = random.Random(1)
        at = start
        for number in range(self.plan["requests"]):
            if self.plan.get("rate"):
                at += draw.expovariate(self.plan["rate"])
                if (early := at - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                due.put_nowait((number, at))
            else:
                due.put_nowait((number, None))
        for _ in senders:
            due.put_nowait((-1, None))
        await asyncio.gather(*senders)
        return {
            "seconds": time.perf_counter() - start,
            "latencies_ms": [round(1000 * one, 3) for one in self.latencies],
            "statuses": self.statuses,
            "versions": self.versions,
            "mixed": self.mixed,
            "queries": self.queries,
        }

    async def _send(self, due: asyncio.Queue[tuple[int, float | None]]) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        while True:
            number, planned = await due.get()
            if number < 0:
                writer.close()
                return
            body = number % len(self.raw)
            start = time.perf_counter() if planned is None else planned
            writer.write(self.raw[body])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            self.latencies.append(time.perf_counter() - start)
            self._judge(head.split()[1].decode(), answer, body)

    def _judge(self, status: str, answer: bytes, body: int) -> None:
        self.statuses[status] += 1
        if status == "200":
            document = json.loads(answer)
            version = document["model"]["version"]
            self.versions[version] += 1
            self.queries += len(document["answers"])
            if self.lists is not None:
                self.mixed += not self._whole(self.lists[version], document["answers"], self.users[body])
        done = sum(self.statuses.values())
        if self.plan.get("told") and done % self.plan["told"] == 0:
            print(done, file=sys.stderr, flush=True)

    def _whole(self, lists: dict[str, list[float]], answers: list[dict[str, Any]], users: list[str]) -> bool:
        """Whether every list is that of the version: by scores, since items of equal score may change places."""
        return all(
            len(answer["scores"]) == len(lists[user])
            and all(abs(a - b) < CLOSE for a, b in zip(answer["scores"], lists[user], strict=True))
            for answer, user in zip(answers, users, strict=True)
        )


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Load(json.load(sys.stdin)).run())))
