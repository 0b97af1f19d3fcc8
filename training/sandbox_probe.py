"""Run inside a sandbox to see that it is one: prints ``isolated``, or what is wrong. Standard library only."""

import os
import socket


def problem() -> str:
    """What this program can do and should not."""
    if os.getuid() == 0:
        return "it runs as root"
    try:
        with open("/sandbox/written", "w"):  # noqa: PTH123
            return "the root can be written to"
    except OSError:
        pass
    with socket.socket() as probe:
        probe.settimeout(1)
        try:
            probe.connect(("192.0.2.1", 9))
            return "there is a network"
        except OSError as error:
            if isinstance(error, TimeoutError):
                return "there is a route to the network"
    return ""


if __name__ == "__main__":
    print(problem() or "isolated")
