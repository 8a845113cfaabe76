#!/usr/bin/env bash
# aiohttp 3.14.5
#
# receive(timeout=...) of a WebSocket counts from the last ping, not from the call: as long as the
# other side pings more often than that, it never ends.
#
# Why it matters: a bus pings through proxies to keep a silent link open. That ping then takes the
# time limit from the one who waits for an answer: a peer that does nothing but ping holds its place
# for good. asyncio.wait_for around the same call keeps the time.
#
# zbus: measures the time itself (tests/test_websocket.py: test_pings_alone_hold_no_place).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check aiohttp==3.14.5

venv/bin/python -I - <<'PYTHON'
import asyncio
import contextlib
import sys
import time

import aiohttp
from aiohttp import web

print(f"aiohttp {aiohttp.__version__}")
TIMEOUT, EVERY, PINGS = 1.0, 0.25, 16  # pings for four seconds, then silence


async def ping(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    with contextlib.suppress(ConnectionResetError):  # the client has gone
        for _ in range(PINGS):
            await asyncio.sleep(EVERY)
            await socket.ping()
        await socket.receive()
    return socket


async def waited(app_url, wait):
    async with aiohttp.ClientSession() as session, session.ws_connect(app_url) as socket:
        start = time.monotonic()
        try:
            await wait(socket)
        except asyncio.TimeoutError:
            return time.monotonic() - start
        sys.exit("something came, though nothing was sent")


async def main():
    app = web.Application()
    app.router.add_get("/", ping)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    own = await waited(url, lambda socket: socket.receive(timeout=TIMEOUT))
    outer = await waited(url, lambda socket: asyncio.wait_for(socket.receive(), TIMEOUT))
    await runner.cleanup()
    return own, outer


own, outer = asyncio.run(main())
print(f"  pings every {EVERY} s for {PINGS * EVERY:.0f} s, and no message")
print(f"  wait_for(receive(), {TIMEOUT})   expected about {TIMEOUT} s, seen {outer:.1f} s")
print(f"  receive(timeout={TIMEOUT})       expected about {TIMEOUT} s, seen {own:.1f} s")
if own < 2 * TIMEOUT:
    sys.exit("CHANGED: receive(timeout=) ends in spite of the pings")
if outer >= 2 * TIMEOUT:
    sys.exit("wait_for was late as well: this machine is too busy to tell, run it again")
print("as described: each ping begins the timeout anew")
PYTHON
