"""Choosing a GPU, with torch's answers replaced: each thing that can be wrong is one sentence with a way out."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.engine.compute import cuda
from sota_ml_researcher.engine.compute.adapter import memory_errors
from sota_ml_researcher.engine.compute.attention_layout import Heads, Rotary
from sota_ml_researcher.engine.compute.cuda import Repeatably
from sota_ml_researcher.engine.compute.loading import choose_device, choose_dtype
from sota_ml_researcher.engine.compute.packed_cache import Cache
from sota_ml_researcher.engine.compute.sampling_choice import Cuts, choose
from sota_ml_researcher.engine.interface import OutOfMemoryError

BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


class Machine:
    """What torch says of this machine's GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._bin = bin_folder
        self.current: list[Any] = []
        monkeypatch.setenv("PATH", str(bin_folder))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def with_driver(self) -> None:
        program = self._bin / "nvidia-smi"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)

    def with_cards(self, count: int, capability: tuple[int, int] = (9, 0), broken: str = "") -> None:
        patch = self._monkeypatch.setattr
        patch(torch.cuda, "is_available", lambda: True)
        patch(torch.cuda, "device_count", lambda: count)
        patch(torch.cuda, "get_device_name", lambda index=0: f"Card {index}")
        patch(torch.cuda, "get_device_capability", lambda _index=0: capability)
        patch(torch.cuda, "get_arch_list", lambda: BUILT_FOR)
        patch(torch.cuda, "set_device", self.current.append)
        real = torch.ones

        def ones(*size: int, device: Any = None) -> torch.Tensor:
            if broken:
                raise RuntimeError(broken)
            return real(*size)

        patch(cuda.torch, "ones", ones)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def refusal(asked: str) -> str:
    with pytest.raises(ConfigError) as raised:
        choose_device(asked)
    said = str(raised.value)
    assert said.startswith("--device: ")
    assert "\n" not in said
    assert raised.value.fix
    return said


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:1", "auto:0", "mps:0", ""])
def test_an_unknown_device_is_refused_with_those_there_are(asked: str) -> None:
    assert refusal(asked) == f"--device: unknown device {asked!r}. Choose among auto, cpu, cuda, mps, cuda:N."


def test_a_torch_without_cuda_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA. Install a build with CUDA" in refusal("cuda")


def test_a_driver_that_does_not_fit_is_told_from_none(machine: Machine) -> None:
    assert "no NVIDIA GPU and no driver of one is here" in refusal("cuda")
    machine.with_driver()
    said = refusal("cuda")
    assert f"torch {torch.__version__} finds no GPU, though an NVIDIA driver is here: it does not fit CUDA 13.0" in said
    assert "Update the driver, or install a torch built for an older CUDA" in said


def test_gpus_that_a_variable_hides_are_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.with_driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES='-1' hides every GPU. Unset it" in refusal("cuda")


def test_a_first_call_that_fails_is_one_sentence(machine: Machine) -> None:
    machine.with_cards(1, broken="CUDA error: system not yet initialized\nCUDA kernel errors might be reported later")
    said = refusal("cuda:0")
    assert f"cuda:0 does not work with torch {torch.__version__}: CUDA error: system not yet initialized. See" in said


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (8, 0), (8, 9), (10, 3), (12, 0), (13, 0)])
def test_a_card_that_torch_was_not_built_for_is_refused(machine: Machine, capability: tuple[int, int]) -> None:
    machine.with_cards(1, capability)
    if capability >= (8, 0):  # by code of its generation, or by what is compiled for later ones
        assert choose_device("cuda") == torch.device("cuda")
        return
    said = refusal("cuda")
    assert (
        f"has no kernels for Card 0 (compute capability {capability[0]}.{capability[1]}): it was built for sm_75"
        in said
    )


def test_a_card_of_a_number_that_is_not_there_is_refused(machine: Machine) -> None:
    machine.with_cards(2)
    assert "there is no cuda:7: the GPUs are cuda:0 to cuda:1 here. Choose one of these" in refusal("cuda:7")
    machine.with_cards(1)
    assert "there is no cuda:1: cuda:0 is the only GPU here" in refusal("cuda:1")


def test_of_several_cards_one_is_taken_and_that_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.with_cards(2)
    with caplog.at_level(logging.INFO):
        assert choose_device("cuda:1") == torch.device("cuda:1")
    assert machine.current == [1]
    assert "2 GPUs here, and one engine computes on one: cuda:1 (Card 1)" in caplog.text
    caplog.clear()
    machine.with_cards(1)
    with caplog.at_level(logging.INFO):
        assert choose_device("auto") == torch.device("cuda")
    assert not caplog.messages


def test_auto_says_why_it_passes_a_gpu_over(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_device("auto").type != "cuda"
    assert not caplog.messages
    machine.with_driver()
    assert choose_device("auto").type != "cuda"
    assert "The GPU is not used: --device: torch" in caplog.text
    machine.with_cards(1, (6, 1))
    assert choose_device("auto").type != "cuda"
    assert "has no kernels for Card 0" in caplog.text


def test_bf16_is_chosen_only_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float32


def test_training_on_a_gpu_adds_up_in_a_fixed_order() -> None:
    assert Repeatably(torch.device("cuda"))(torch.are_deterministic_algorithms_enabled)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not Repeatably(torch.device("cpu"))(torch.are_deterministic_algorithms_enabled)


def test_an_operation_without_a_fixed_order_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tried = list[bool]()

    def work() -> str:
        tried.append(torch.are_deterministic_algorithms_enabled())
        if tried[-1]:
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")
        return "done"

    repeatably = Repeatably(torch.device("cuda"))
    assert (repeatably(work), repeatably(work)) == ("done", "done")
    assert tried == [True, False, False]
    assert len(caplog.messages) == 1
    with pytest.raises(RuntimeError, match="something else"):
        Repeatably(torch.device("cuda"))(lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_memory_is_given_back_only_when_there_was_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = list[weakref.ref[Any]]()
    given_back = list[bool]()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(alive[0]() is None))

    def step() -> None:
        large = np.zeros(8)
        alive.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with memory_errors("this request"):
        pass
    assert not given_back
    with pytest.raises(OutOfMemoryError, match="this request does not fit"), memory_errors("this request"):
        step()
    assert given_back == [True], "what the failed step held is free before the cache is emptied"


@pytest.mark.parametrize("window", [None, 20])
def test_a_step_of_sampling_asks_the_device_for_nothing_but_its_tokens(window: int | None) -> None:
    nowhere = torch.device("meta")  # a device that cannot answer
    heads = Heads(query=4, key=2, size=8, scale=0.3, window=window)
    cache = Cache(1, [5, 70], [2, 3], 100, heads, torch.float32, nowhere)
    cache.fill(0, *torch.empty(2, 75, 2, 8, device=nowhere))
    late = Cache(1, [9], [1], 100, heads, torch.float32, nowhere)
    late.fill(0, *torch.empty(2, 9, 2, 8, device=nowhere))

    def step(rows: int) -> torch.Tensor:
        cache.advance()
        rotary = Rotary(*torch.empty(2, rows, 1, 8, device=nowhere))
        return cache.attend(0, torch.empty(rows, 64, device=nowhere), rotary, heads)

    assert step(5).shape == (5, 32)
    cache.join(late)
    assert step(6).shape == (6, 32)
    cache.keep(torch.tensor([0, 5, 4]))
    assert step(3).shape == (3, 32)
    cuts = Cuts.of([1.0, 0.0, 0.7], [1.0, 0.9, 1.0], [-1, -1, 5], 300, nowhere)
    tokens, logprobs = choose(torch.empty(3, 300, device=nowhere), cuts, torch.empty(3, device=nowhere))
    assert tokens.shape == logprobs.shape == (3,)
