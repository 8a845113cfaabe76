#!/usr/bin/env bash
# pyzmq 27.3.0 (libzmq 4.3.5)
#
# A socket with RECONNECT_IVL=-1 ("do not connect again") throws away messages that it has received
# and that nobody has read yet, in the first poll() after the peer has gone.
#
# Why it matters: "-1" reads as a choice about what is dialled later. Who takes it for a bus that
# dials anew by itself loses the last words of each peer: a result that had arrived, or the reason
# of a refusal. recv() without poll() still reads them, so a small test does not show it.
#
# zbus: sets 2**30 ms in its place, and no socket of its lives that long
# (tests/test_transport.py: test_the_last_words_of_a_listener_are_heard_by_who_was_busy).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check pyzmq==27.3.0

venv/bin/python -I - <<'PYTHON'
import sys
import time

import zmq

print(f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}")
COUNT = 5


def read_after_the_peer_has_gone(interval, *, poll):
    """How many of COUNT messages can be read that had come before the peer closed."""
    with zmq.Context() as context:
        listener = context.socket(zmq.ROUTER)
        port = listener.bind_to_random_port("tcp://127.0.0.1")
        dialler = context.socket(zmq.DEALER)
        dialler.reconnect_ivl = interval
        gone = dialler.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        dialler.connect(f"tcp://127.0.0.1:{port}")
        dialler.send(b"hello")
        name, _ = listener.recv_multipart()
        for number in range(COUNT):
            listener.send_multipart([name, b"%d" % number])
        assert dialler.poll(10_000), "nothing came"
        time.sleep(1)  # they are all here, and the application is busy
        listener.close(linger=1000)
        assert gone.poll(10_000), "the end was not seen"
        time.sleep(0.3)
        count = 0
        try:
            while not poll or dialler.poll(500):
                dialler.recv(zmq.NOBLOCK)
                count += 1
        except zmq.Again:
            pass
        dialler.disable_monitor()
        gone.close(linger=0)
        dialler.close(linger=0)
    return count


seen = {}
for label, interval in (("2**30", 2**30), ("-1", -1)):
    for poll in (False, True):
        seen[label, poll] = read_after_the_peer_has_gone(interval, poll=poll)
        how = "poll, recv" if poll else "recv alone"
        print(f"  RECONNECT_IVL {label:6}{how:11} expected {COUNT}, seen {seen[label, poll]}")

if list(seen.values()) != [COUNT, COUNT, COUNT, 0]:
    sys.exit("CHANGED: a poll with -1 no longer takes the messages, or something else does")
print("as described: with -1 a poll throws away what had been received")
PYTHON
