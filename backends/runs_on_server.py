"""Making a run from a saved state, and letting go of one, on servers of this and of the earlier protocol."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Mapping

import tinker

from .connection import Backend
from .servers import server_of

_TIMEOUT_S = 15.0
logger = logging.getLogger(__name__)


async def run_from_state(
    backend: Backend,
    service: tinker.ServiceClient,
    state: str,
    *,
    optimizer: bool = False,
    user_metadata: Mapping[str, str] | None = None,
) -> tinker.TrainingClient:
    """A run that begins with the weights of a training state.

    Args:
        backend: Where.
        service: A client of it.
        state: A ``tinker://`` path of training weights.
        optimizer: Whether the optimizer's moments are restored too.
        user_metadata: Kept with the run's checkpoints.

    Raises:
        tinker.TinkerError: If there is no such state, or the server refuses.
    """
    metadata = dict(user_metadata) if user_metadata else None
    if (await asyncio.to_thread(server_of, backend)).abilities.loads_new_runs is not False:
        make = service.create_training_client_from_state
        if optimizer:
            make = service.create_training_client_from_state_with_optimizer
        return await make(state, user_metadata=metadata)
    rest = tinker.RestClient(base_url=backend.base_url, api_key=backend.api_key)
    saved = await rest.get_weights_info_by_tinker_path(state)
    rank = saved.lora_rank or 32
    run = await service.create_lora_training_client(
        saved.base_model,
        rank=rank,
        train_mlp=saved.train_mlp is not False,
        train_attn=saved.train_attn is not False,
        train_unembed=saved.train_unembed is not False,
        user_metadata=metadata,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the SDK: newer servers make the run and load it at once
        load = run.load_state_with_optimizer if optimizer else run.load_state  # pyright: ignore[reportDeprecated]
        loading = load(state)
    await loading
    return run


async def let_go(backend: Backend, run: tinker.TrainingClient) -> None:
    """Free a run's place among the server's adapters, where the end of its session does not. Its checkpoints stay."""
    if (await asyncio.to_thread(server_of, backend)).abilities.ends_sessions is not False:
        return
    import httpx2

    url, headers = f"{backend.base_url}/api/v1/unload_model", {"X-API-Key": backend.api_key}
    try:
        async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as client:
            await client.post(url, json={"model_id": run.model_id, "type": "unload_model"}, headers=headers)
    except httpx2.HTTPError as error:  # the server lets go by itself once it hears nothing
        logger.info("The run was not unloaded: %s", error)
