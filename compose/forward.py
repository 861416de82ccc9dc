#!/usr/bin/env python3
"""Passes TCP connections on, for compose.inspect.yml.

    forward.py PORT=HOST:PORT …
"""

import asyncio
import contextlib
import signal
import sys


async def copy(reader, writer):
    """Until the sender ends; what it ends, the receiver is told, and may still answer."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def pass_on(client, to_client, host, port):
    try:
        server, to_server = await asyncio.open_connection(host, port)
    except OSError as error:
        print(f"inspect: {host}:{port}: {error}", flush=True)
        to_client.close()
        return
    # Whichever side breaks off, the other is closed.
    with contextlib.suppress(OSError):
        await asyncio.gather(copy(client, to_server), copy(server, to_client))
    to_server.close()
    to_client.close()


async def main():
    servers = []
    for argument in sys.argv[1:]:
        listen, target = argument.split("=")
        host, port = target.rsplit(":", 1)
        connected = lambda reader, writer, to=(host, int(port)): pass_on(reader, writer, *to)
        servers.append(await asyncio.start_server(connected, "0.0.0.0", int(listen)))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


asyncio.run(main())
