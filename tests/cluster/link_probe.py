"""One end of a TCP connection whose rate and round trip are measured; a script of its own, run on a node."""

import socket
import sys
import time

_ROUNDS = 20
_PIECE = bytes(1 << 16)
_PATIENCE_S = 60.0


def answer() -> None:
    """Tell a port, echo the rounds, then take what comes and say when it is all there."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(_PATIENCE_S)
        print(server.getsockname()[1], flush=True)
        peer, _ = server.accept()
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.settimeout(_PATIENCE_S)
        for _ in range(_ROUNDS):
            peer.sendall(peer.recv(1))
        left = int(peer.recv(16))
        peer.sendall(b"!")
        while left:
            left -= len(peer.recv(min(left, len(_PIECE))))
        peer.sendall(b"!")


def ask(address: str, port: int, megabytes: float) -> None:
    """Print 10^6 bits a second and the milliseconds of a round trip."""
    with socket.create_connection((address, port), timeout=_PATIENCE_S) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rounds = []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            peer.sendall(b"?")
            peer.recv(1)
            rounds.append(time.perf_counter() - begin)
        round_s = min(rounds)  # more is not the link's, but that of a busy machine
        total = int(megabytes * 1e6)
        peer.sendall(str(total).encode().ljust(16))
        peer.recv(1)
        begin, left = time.perf_counter(), total
        while left:
            piece = _PIECE[:left]
            peer.sendall(piece)
            left -= len(piece)
        peer.recv(1)
        seconds = time.perf_counter() - begin - round_s
    print(8 * total / seconds / 1e6, 1000 * round_s)


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        answer()
    else:
        ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
