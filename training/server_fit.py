"""What a job needs of its server: refused before it starts where the server lacks it, told where it differs.

Nothing that a config asks for is dropped without a word: a key is refused, changed with its reason as its origin, or
stands in the plan's warnings and the run's alerts as a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..backends.connection import remote
from ..backends.servers import Server, known_server, require_protobuf, server_of
from ..core.errors import BackendError, ConfigError
from ..core.names import BackendName
from ..core.settings import Origin, Settings
from .config import TrainingConfig

AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)
# Whether a config needs it, the key that says so, what the server lacks then, and the way out.
Need = tuple[Callable[[TrainingConfig], bool], str, Callable[[Server], bool], str, str]


def server_of_config(backend: BackendName, base_url: str | None) -> Server:
    """What a job's backend is; only a cluster is asked.

    Raises:
        BackendError: If a cluster does not answer, or not as a Tinker server does.
    """
    if backend == "cluster":
        return server_of(remote(backend, base_url))
    return known_server("tinker" if backend == "tinker" else "engine")


def fitted(settings: Settings[AnyConfig]) -> Settings[AnyConfig]:
    """The settings with ``apply_to`` as the server adapts it, where it leaves no choice.

    Raises:
        BackendError: If the cluster does not answer, or cannot do what every job of this kind needs.
        ConfigError: If a setting asks for what the server lacks; it names the setting and a way out.
    """
    config = settings.config
    server = server_of_config(config.backend, config.base_url)
    _require_training(server, config)
    for asks, key, lacks, problem, fix in _NEEDS:
        if asks(config) and lacks(server):
            raise ConfigError(f"{server.title} {problem}", where=settings.place(key), fix=fix)
    losses = server.abilities.losses
    loss = getattr(config, "loss_fn", "cross_entropy")
    if losses is not None and loss not in losses:
        of_policies = [name for name in losses if name != "cross_entropy"]
        fix = f"It has {', '.join(of_policies)}" if of_policies else "Use another server"
        raise ConfigError(f"{server.title} has no loss {loss}", where=settings.place("loss_fn"), fix=fix)
    return _with_layers(settings, server)


def _require_training(server: Server, config: TrainingConfig) -> None:
    address = config.base_url or config.backend
    require_protobuf(server, where=address)
    if server.sampling_error and (hasattr(config, "group_size") or _validates_by_sampler(config)):
        raise BackendError(
            f"it could not sample one token: {server.sampling_error}",
            where=address,
            fix="Look at the server's log; RL, and held-out rows of SFT, need samples",
        )
    losses, scale = server.abilities.losses, server.abilities.loss_scale
    by_gradient = scale == "mean" and losses is not None and "importance_sampling" not in losses
    if _is_dpo(config) and by_gradient:
        raise BackendError(
            f"{server.title} averages its losses and has none with advantages, which DPO would need",
            where=address,
            fix="Use loss: reward_model, or backend: embedded",
        )


def _with_layers(settings: Settings[AnyConfig], server: Server) -> Settings[AnyConfig]:
    can, config = server.abilities, settings.config
    if can.chooses_layers is not False or can.adapts is None or config.apply_to == can.adapts:
        return settings
    adapted = ", ".join(can.adapts)
    if settings.origins["apply_to"].kind in {"file", "override"}:
        raise ConfigError(
            f"{server.title} adapts {adapted} whatever it is asked for",
            where=settings.place("apply_to"),
            fix=f"Set apply_to: [{adapted}], or leave it out",
        )
    reason = f"{server.title} adapts {adapted} whatever it is asked for"
    return settings.derived({"apply_to": (can.adapts, Origin(kind="derived", reason=reason))})


def differences(config: TrainingConfig) -> list[str]:
    """How a run on the config's server differs from one on the platform, for the plan and the run's alerts.

    Raises:
        BackendError: If the cluster does not answer, or not as a Tinker server does.
    """
    if config.backend != "cluster":
        return []
    server = server_of_config(config.backend, config.base_url)
    can = server.abilities
    told = [f"{server.title}: {note}" for note in server.notes]
    if server.sampling_error:
        told.append(f"{server.title} could not sample one token: {server.sampling_error}")
    if can.chooses_layers is False and can.adapts is not None:
        told.append(f"{server.title} adapts {', '.join(can.adapts)} alone: parameters and capacity are counted so")
    elif can.chooses_layers is not True:
        told.append(f"whether {server.title} heeds apply_to is not known: parameters and capacity assume that it does")
    if can.loss_scale == "mean":
        told.append(
            f"{server.title} averages losses where the platform sums them: what is sent makes up for it, so that the "
            "updates are the same" + ("; a batch is sent twice, as DPO always is" if _is_dpo(config) else "")
        )
    elif can.loss_scale is None:
        told.append(
            f"whether {server.title} sums losses or averages them is not known: if it averages, the learning rate, DPO "
            "and what weighs rows mean something else"
        )
    if can.ttl is False and config.checkpoint_ttl_hours is not None and config.checkpoint_every != 0:
        told.append(
            f"{server.title} has no expiry: periodic checkpoints, and the weights of every sampling, stay until they "
            "are deleted"
        )
    if can.ended_runs is False:
        told.append(
            f"{server.title} samples a run only while it is loaded: later its weights are loaded anew, which takes one "
            "of its places for adapters"
        )
    return told


def _is_dpo(config: TrainingConfig) -> bool:
    return getattr(config, "loss", None) in {"dpo", "ipo", "dpo_norm"}


def _validates_by_sampler(config: TrainingConfig) -> bool:
    """SFT and reward models score held-out rows as prompts."""
    return config.val_file is not None and not _is_dpo(config) and not hasattr(config, "group_size")


_NEEDS: tuple[Need, ...] = (
    (
        lambda c: c.grad_clip > 0,
        "grad_clip",
        lambda s: s.abilities.grad_clip is False,
        "does not clip gradients, and drops the setting",
        "Set grad_clip: 0, with a smaller learning_rate if steps are too large",
    ),
    (
        _validates_by_sampler,
        "val_file",
        lambda s: s.abilities.prompt_logprobs is False,
        "gives no log-probabilities of a prompt, by which held-out rows are scored",
        "Leave val_file out, and judge the result with run_judge_eval",
    ),
    (
        lambda c: bool(getattr(c, "kl_coef", 0)),
        "kl_coef",
        lambda s: s.abilities.prompt_logprobs is False,
        "gives no log-probabilities of a prompt, which the KL to a reference needs",
        "Set kl_coef: 0",
    ),
    (
        lambda c: _is_dpo(c) and getattr(c, "ref_model", None) not in {None, "base"},
        "ref_model",
        lambda s: s.abilities.prompt_logprobs is False,
        "gives no log-probabilities of a prompt, by which a reference of its own is measured",
        "Leave ref_model out (the weights the run starts from), or set it to base",
    ),
    (
        lambda c: getattr(c, "max_steps_off_policy", None) is not None,
        "max_steps_off_policy",
        lambda s: s.abilities.older_weights is False,
        "samples a run's older weights in the place of those under training, and would lose steps",
        "Leave max_steps_off_policy out",
    ),
)
