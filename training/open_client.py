"""Opening the adapter that a job trains, with the client that fits what the server computes."""

from __future__ import annotations

import asyncio

import tinker

from ..backends.connection import Backend
from ..backends.runs_on_server import run_from_state
from ..backends.servers import server_of
from .client import TrainingClient
from .config import TrainingConfig
from .mean_loss_client import MeanLossClient


async def open_training_client(
    backend: Backend,
    config: TrainingConfig,
    *,
    model: str,
    renderer: str,
    job_id: str,
    resume_from: str | None = None,
    tokens: int = 0,
) -> TrainingClient:
    """The adapter a job trains: fresh on the layers it chose, from saved weights, or where an attempt stopped.

    Args:
        backend: Where.
        config: The job's settings.
        model: The base model's wire name.
        renderer: Name of the chat format, kept with the checkpoints.
        job_id: The job, kept with the session.
        resume_from: A training state of this job, whose optimizer's moments are restored too.
        tokens: Tokens sent for that state.
    """
    service = tinker.ServiceClient(
        base_url=backend.base_url,
        api_key=backend.api_key,
        user_metadata={"ml_researcher_job": job_id},
        display_name=config.run_name or job_id,
    )
    metadata = {"renderer_name": renderer}
    if resume_from is not None:
        inner = await run_from_state(backend, service, resume_from, optimizer=True, user_metadata=metadata)
    elif config.load_checkpoint is not None:
        inner = await run_from_state(backend, service, config.load_checkpoint, user_metadata=metadata)
    else:
        inner = await service.create_lora_training_client(
            model,
            rank=config.lora_rank,
            seed=config.seed,
            train_mlp="mlp" in config.apply_to,
            train_attn="attn" in config.apply_to,
            train_unembed="unembed" in config.apply_to,
            user_metadata=metadata,
        )
    server = await asyncio.to_thread(server_of, backend)
    kind = MeanLossClient if server.abilities.loss_scale == "mean" else TrainingClient
    return kind(inner, config, backend, tokens=tokens)
