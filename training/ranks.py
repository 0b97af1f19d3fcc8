"""Which LoRA ranks a backend takes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sota_ml_researcher.core.errors import ConfigError

RULE = "lora.rank.power_of_two"


class RankCheck(BaseModel):
    """Whether a backend takes a rank, and which ranks near it it does."""

    model_config = ConfigDict(frozen=True)

    rank: int
    accepted: bool
    nearest: tuple[int, ...] = Field(description="accepted ranks nearest to it, the smaller first; itself if accepted")
    reason: str
    rule_id: str = RULE


def accepted_rank(rank: int, backend: str, *, max_rank: int | None = None) -> RankCheck:
    """Say whether ``backend`` takes ``rank``: hosted Tinker only powers of two, the embedded engine any from 1.

    Args:
        rank: The rank asked for.
        backend: ``embedded``, ``tinker`` or ``cluster`` (which is not known to refuse any).
        max_rank: The platform's largest for this model, where known.
    """
    limit = max_rank if backend == "tinker" else None
    below, above = _neighbours(rank, backend)
    if limit is not None and rank > limit:
        return RankCheck(rank=rank, accepted=False, nearest=(limit,), reason=f"the largest for this model is {limit}")
    if rank < 1:
        return RankCheck(rank=rank, accepted=False, nearest=(1,), reason="a rank is at least 1")
    if below == rank:
        return RankCheck(rank=rank, accepted=True, nearest=(rank,), reason=f"the {backend} backend takes it")
    nearest = tuple(r for r in (below, above) if limit is None or r <= limit)
    return RankCheck(rank=rank, accepted=False, nearest=nearest, reason="Tinker takes powers of two only")


def require_accepted_rank(rank: int, backend: str, *, where: str = "lora_rank", max_rank: int | None = None) -> None:
    """Refuse a rank that the backend would refuse.

    Raises:
        ConfigError: If it would; the message names the nearest accepted ranks.
    """
    check = accepted_rank(rank, backend, max_rank=max_rank)
    if not check.accepted:
        choices = " or ".join(str(near) for near in check.nearest)
        raise ConfigError(f"rank {rank} is not accepted: {check.reason}", where=where, fix=f"Use {choices}")


def smallest_accepted(least: int, backend: str, *, largest: int) -> int | None:
    """The smallest accepted rank that is at least ``least``, or None if it is above ``largest``."""
    least = max(1, least)
    below, above = _neighbours(least, backend)
    rank = below if below == least else above
    return rank if rank <= largest else None


def _neighbours(rank: int, backend: str) -> tuple[int, int]:
    """The accepted ranks next to ``rank``; both are ``rank`` itself where it is accepted."""
    if backend != "tinker" or rank < 1:
        return rank, rank
    below = 1 << (rank.bit_length() - 1)
    return (below, below) if below == rank else (below, 2 * below)
