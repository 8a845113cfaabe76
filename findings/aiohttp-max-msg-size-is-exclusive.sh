#!/usr/bin/env bash
# aiohttp 3.14.5
#
# A WebSocket message of exactly max_msg_size bytes is refused and ends the connection (code 1009):
# the limit is one more than the largest message that passes, though the error says "exceeds".
#
# Why it matters: a bus cuts tensors into pieces of a round size, and takes that size for the limit.
# Each full piece then ends the connection, while every smaller message of the tests goes through.
# MAXMSGSIZE of ZeroMQ lets exactly that size pass.
#
# zbus: sends pieces of a quarter of the limit
# (tests/test_websocket.py: test_text_or_too_much_at_once_ends_the_relay).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check aiohttp==3.14.5

venv/bin/python -I - <<'PYTHON'
import asyncio
import sys

import aiohttp
from aiohttp import WSMsgType, web

print(f"aiohttp {aiohttp.__version__}")
LIMIT = 1000


async def echo(request):
    socket = web.WebSocketResponse(max_msg_size=LIMIT)
    await socket.prepare(request)
    message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        await socket.send_str("taken")
    elif message.type is WSMsgType.ERROR:
        print(f"  the server's error: {message.data}")
    await socket.close()
    return socket


async def answers():
    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    seen = {}
    async with aiohttp.ClientSession() as session:
        for size in (LIMIT - 1, LIMIT, LIMIT + 1):
            async with session.ws_connect(url) as socket:
                await socket.send_bytes(bytes(size))
                seen[size] = (await asyncio.wait_for(socket.receive(), 30)).data
    await runner.cleanup()
    return seen


seen = asyncio.run(answers())
expected = {LIMIT - 1: "taken", LIMIT: "taken", LIMIT + 1: 1009}
for size, what in seen.items():
    print(f"  {size} bytes, max_msg_size={LIMIT}: expected {expected[size]}, seen {what}")
if seen != expected | {LIMIT: 1009}:
    sys.exit("CHANGED: max_msg_size is no longer exclusive, or refuses in another way")
print("as described: a message of exactly max_msg_size is refused")
PYTHON
