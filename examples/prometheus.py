"""A replay that Prometheus watches: at each scrape its statistics are served as metrics, in a
thread, by HTTP.

    python examples/prometheus.py [PORT]

Look at http://127.0.0.1:9100/metrics while it runs, or let a Prometheus scrape it; it is over after
ten seconds, or fewer: `python examples/prometheus.py 9100 2`.
"""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request

from prometheus_client import CollectorRegistry, start_http_server

import areplay
from areplay.metrics import ReplayCollector

SPEC = areplay.Spec(obs=((4,), "float32"), reward=((), "float32"))


async def explore(actor: areplay.Actor) -> None:
    """About a thousand rows a second."""
    while not actor.stopping:
        obs = actor.rng.normal(size=4).astype("float32")
        await actor.add(obs=obs, reward=obs.sum())
        await asyncio.sleep(0.001)


async def main(port: int, seconds: float) -> None:
    """Serve metrics while batches are taken; in the end, show some of them as Prometheus gets
    them."""
    async with areplay.Replay(SPEC, capacity=100_000) as replay:
        registry = CollectorRegistry()
        registry.register(ReplayCollector(replay))
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        print(f"metrics at {url}", flush=True)
        async with replay.actors(explore, 2), replay.batches(batch_size=256) as batches:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await anext(batches)
                await asyncio.sleep(0.01)  # learn
            with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
                lines = answer.read().decode().splitlines()
        print(
            "\n".join(
                line
                for line in lines
                if line.startswith(("areplay_actor_rows", "areplay_batches", "areplay_queue"))
            )
        )
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    options = sys.argv[1:]
    areplay.run(
        main(int(options[0]) if options else 9100, float(options[1]) if options[1:] else 10.0)
    )
