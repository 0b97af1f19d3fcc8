"""Run inside a sandbox to see that it is one: prints ``isolated``, or what is wrong. Standard library only."""

import os
import socket


def problem() -> str:
    """What this program can do and should not."""
    if os.getuid() == 0:
        return "it runs as root"
    for folder in ("/", "/sandbox", "/dev", "/usr"):
        try:
            with open(f"{folder}/written", "w"):  # noqa: PTH123
                return f"{folder} can be written to"
        except OSError:
            continue
    try:
        socket.socket(40).close()  # AF_VSOCK
        return "the hypervisor can be reached"
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
