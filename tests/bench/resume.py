#!/usr/bin/env python3
"""Opens connections one after the other, each with the session of the one before, asks for `/small` on each, and prints
how many there were. Fails if one was not resumed."""

import socket
import ssl
import sys
import time

port, seconds = int(sys.argv[1]), float(sys.argv[2])
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE


def connection(session):
    with socket.create_connection(("127.0.0.1", port)) as tcp, context.wrap_socket(tcp, session=session) as tls:
        if session is not None and not tls.session_reused:
            sys.exit("a session was not resumed")
        tls.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := tls.recv(65536):
            answer += piece
        if not answer.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"not a response: {answer[:100]!r}")
        return tls.session


session = connection(None)
end, count = time.monotonic() + seconds, 0
while time.monotonic() < end:
    session = connection(session)
    count += 1
print(count)
