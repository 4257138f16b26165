"""Which hosts answer: a connection that is refused has reached its host, one without any answer has not."""

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

_PORT = 9  # nobody listens there, and the refusal is the answer
_PATIENCE_S = 3.0
_AT_ONCE = 32


def without_answer(hosts: Iterable[str]) -> list[str]:
    """Those of some hosts, by name, that do not answer this one within 3 seconds; a name that nobody knows and a
    firewall that drops connections look the same.
    """
    names = sorted(set(hosts))
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(names)))) as pool:
        return [name for name, answers in zip(names, pool.map(_answers, names), strict=True) if not answers]


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, _PORT), timeout=_PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
