"""Running the engine from a terminal: one process, one store, one address."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ..core.errors import BackendError, ConfigError, ModelError, ResearcherError
from ..core.files import write_atomically
from ..core.http_guard import MIN_KEY_LENGTH, check_names, in_url
from ..core.paths import ENGINE_KEY_FILE, engine_folder, writable_folder

KEY_VARIABLE = "ML_RESEARCHER_ENGINE_KEY"
_STOP_GRACE_S = 30
# How many times longer an idle engine waits while a client is there.
_PATIENCE = 9

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code. What cannot be served is one line on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return _serve(options)
    except ResearcherError as error:
        print(f"ml-researcher engine: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # uvicorn has ended in order and passes the signal on
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ml-researcher engine", description="Serve the Tinker protocol on this machine, without an account."
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME_OR_PATH",
        help="a model folder or id, or NAME=PATH; repeat",
    )
    parser.add_argument("--any-local-model", action="store_true", help="let clients name any model folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 picks a free one (default 8765)")
    parser.add_argument("--store", type=Path, help="folder for checkpoints (default: below ML_RESEARCHER_HOME)")
    parser.add_argument("--idle-timeout", type=float, default=0, metavar="S", help="stop after S idle seconds; 0 never")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16")
    parser.add_argument("--quantize", choices=["nf4"], help="4-bit base weights (CUDA only)")
    parser.add_argument("--threads", type=int, help="CPU threads to compute with")
    parser.add_argument(
        "--adapter-memory",
        type=float,
        metavar="GIB",
        help="most memory for adapters in training (default: half of the machine's); more of them wait for room",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name clients call it by; repeat"
    )
    parser.add_argument(
        "--queue-timeout",
        type=_seconds,
        default=45,
        metavar="S",
        help="let go of what a client queued once it was silent for S seconds (default 45; clients beat every 10)",
    )
    parser.add_argument(
        "--session-timeout",
        type=_seconds,
        default=900,
        metavar="S",
        help="free the adapters of a client once it was silent for S seconds (default 900)",
    )
    parser.add_argument("--api-key", help=argparse.SUPPRESS)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError("give seconds, at least 1")
    return value


def _serve(options: argparse.Namespace) -> int:
    from filelock import FileLock, Timeout

    named = named_models(options.model)
    if not named and not options.any_local_model:
        raise ConfigError("no model to serve", where="--model", fix="Give --model PATH, or --any-local-model")
    if options.api_key is not None:
        raise ConfigError(
            "a key on a command line is shown to everybody on this machine",
            where="--api-key",
            fix=f"Leave it out, and the engine makes a key; or set {KEY_VARIABLE}",
        )
    check_names(options.host, options.allow_host)
    folder = writable_folder(options.store.expanduser().absolute()) if options.store else engine_folder()
    lock = FileLock(folder / "engine.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BackendError(_other_engine(folder), where=str(folder), fix="Use it, stop it, or give --store") from error
    with lock, _listen(options.host, options.port) as listener:
        return _run(options, named, folder, listener, key_of(folder))


def key_of(folder: Path) -> str:
    """The key of the engine whose store is ``folder``: that of the environment, or the one made at its first start.

    It is kept in the folder, readable for its owner alone, for clients on this machine.

    Raises:
        ConfigError: If the key cannot be one.
    """
    file = folder / ENGINE_KEY_FILE
    given = os.environ.pop(KEY_VARIABLE, "")  # what the engine starts inherits the environment; this is not for it
    kept = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    key = given or kept or f"tml-{secrets.token_urlsafe(32)}"
    where = KEY_VARIABLE if given else str(file)
    if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"a key has at least {MIN_KEY_LENGTH} characters, all of them visible ASCII", where=where)
    if not key.startswith("tml-"):
        raise ConfigError("the Tinker SDK sends only keys that begin with tml-", where=where)
    write_atomically(file, f"{key}\n")
    return key


def _run(options: argparse.Namespace, named: dict[str, str], folder: Path, listener: socket.socket, key: str) -> int:
    import psutil
    import uvicorn

    from .api.application import build_app
    from .api.connections import BoundedConnection, most_connections
    from .compute.custom_loss import compile_custom_loss
    from .compute.loading import tune_allocator
    from .compute.model import load_model
    from .interface import LoadOptions
    from .service.base_models import BaseModels
    from .service.service import Engine
    from .service.store import Store

    tune_allocator()  # before any other thread allocates
    load = LoadOptions(options.device, options.dtype, options.quantize, options.threads)
    models = BaseModels(named, any_local=options.any_local_model, options=load, load=load_model)
    room = options.adapter_memory * 2**30 if options.adapter_memory else psutil.virtual_memory().total / 2
    engine = Engine(
        Store(folder),
        models,
        adapter_bytes=room,
        compile_loss=compile_custom_loss,
        queue_timeout_s=options.queue_timeout,
        session_timeout_s=options.session_timeout,
    )
    engine.scheduler.run_now(lambda: [models.get(name) for name in named])
    address = f"http://{in_url(options.host)}:{listener.getsockname()[1]}"

    def stop_if_idle() -> None:
        # A client that is there may be waiting for a judge or for a person, which takes longer than an idle minute.
        patience = options.idle_timeout * (_PATIENCE if engine.has_clients() else 1)
        if patience and time.monotonic() - engine.scheduler.last_work > patience:
            logger.info("Idle for %.0f s: stopping", patience)
            os.kill(os.getpid(), signal.SIGTERM)

    app = build_app(engine, api_key=key, host=options.host, allow_hosts=options.allow_host, on_idle=stop_if_idle)
    BoundedConnection.most = most_connections()
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_STOP_GRACE_S,
        timeout_keep_alive=120,
    )
    discovery = folder / "engine.json"
    details = {"url": address, "pid": os.getpid(), "started": time.time(), "version": version("sota-ml-researcher")}
    write_atomically(discovery, json.dumps({**details, "key_file": ENGINE_KEY_FILE}))
    print(f"listening on {address}", flush=True)
    file = shlex.quote(str(folder / ENGINE_KEY_FILE))
    print(f'for the SDK: export TINKER_BASE_URL={address} TINKER_API_KEY="$(cat {file})"', flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        discovery.unlink(missing_ok=True)
    return 0


def named_models(values: Sequence[str]) -> dict[str, str]:
    """``--model`` values as name -> folder or id.

    Raises:
        ModelError: If a folder is named that is not there, or is not a model.
    """
    named: dict[str, str] = {}
    for value in values:
        name, _, target = value.rpartition("=")
        name = name or target
        folder = Path(target).expanduser()
        looks_local = folder.exists() or target.startswith((".", "/", "~"))
        if looks_local and not (folder / "config.json").is_file():
            raise ModelError("no model there (no config.json)", where=target, fix="Give a Hugging Face model folder")
        if not looks_local and target.count("/") != 1:
            raise ModelError("neither a folder nor an id of the form org/model", where=target)
        named[name] = str(folder.resolve()) if looks_local else target
        if looks_local:
            named.setdefault(str(folder.resolve()), named[name])
    return named


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off for each connection; without, every answer waited
    # 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise BackendError(
            f"cannot listen on {host}:{port} ({error.strerror})", where="--port", fix="Choose another, or 0 for any"
        ) from error
    return listener


def _other_engine(folder: Path) -> str:
    try:
        other = json.loads((folder / "engine.json").read_bytes())
        return f"an engine already uses this store: {other['url']} (pid {other['pid']})"
    except (OSError, ValueError, KeyError):
        return "an engine already uses this store, and is just starting"
