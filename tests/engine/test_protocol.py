"""The unmodified SDK and cookbook against a live engine process."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import tinker
from engine_support import KEY, TOKENS, Running, datum, post, step, trainer
from tinker import types


@pytest.fixture(scope="module")
def engine(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    running = Running(tiny_weights, tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


def test_training_lowers_the_loss_and_reports_a_logprob_for_each_token(engine: Running) -> None:
    client = trainer(engine)
    losses = [step(client) for _ in range(6)]
    assert losses[-1] < losses[0] * 0.95
    output = client.forward([datum(TOKENS)], "cross_entropy").result()
    logprobs = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    assert logprobs.shape == (len(TOKENS) - 1,)
    assert output.metrics["loss:sum"] == pytest.approx(-logprobs.sum(), rel=1e-5)


def test_a_state_with_its_optimizer_goes_on_exactly_where_it_was(engine: Running) -> None:
    client = trainer(engine)
    for _ in range(3):
        step(client)
    path = client.save_state("three").result().path
    undisturbed = [step(client) for _ in range(3)]
    again = engine.service().create_training_client_from_state_with_optimizer(path).result()
    assert [step(again) for _ in range(3)] == undisturbed
    fresh = engine.service().create_training_client_from_state(path).result()
    assert step(fresh) == undisturbed[0]
    assert step(fresh) != undisturbed[1]  # its moments start anew


def test_adapters_of_several_clients_do_not_touch_each_other(engine: Running) -> None:
    first, second = trainer(engine), trainer(engine)
    before = step(second, lr=0.0)
    for _ in range(3):
        step(first)
    assert step(second, lr=0.0) == before


def test_sampling_from_a_checkpoint_scores_as_training_does(engine: Running) -> None:
    client = trainer(engine)
    for _ in range(4):
        step(client)
    path = client.save_weights_for_sampler("s").result().path
    trained = client.forward([datum(TOKENS)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    sampler = engine.service().create_sampling_client(model_path=path).result()
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result()
    assert scored[0] is None
    assert scored[1:] == pytest.approx(trained.tolist(), abs=1e-4)
    snapshot = client.save_weights_and_get_sampling_client()
    assert snapshot.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result()[1:] == pytest.approx(
        scored[1:], abs=1e-5
    )


def test_samples_of_one_seed_differ_from_each_other_and_repeat_as_a_set(engine: Running) -> None:
    sampler = engine.service().create_sampling_client(base_model="tiny").result()
    params = types.SamplingParams(max_tokens=8, temperature=1.0, seed=5)
    prompt = types.ModelInput.from_ints(TOKENS[:5])
    runs = [[s.tokens for s in sampler.sample(prompt, 4, params).result().sequences] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({tuple(t) for t in runs[0]}) == 4


def test_runs_and_checkpoints_can_be_listed_kept_and_deleted(engine: Running) -> None:
    client = trainer(engine)
    step(client)
    path = client.save_state("kept", ttl_seconds=7200).result().path
    rest = tinker.RestClient(base_url=engine.url, api_key=KEY)
    run_id = path.removeprefix("tinker://").split("/")[0]
    assert rest.get_training_run(run_id).result().lora_rank == 4
    (saved,) = rest.list_checkpoints(run_id).result().checkpoints
    assert saved.expires_at is not None
    assert rest.get_weights_info_by_tinker_path(path).result().base_model == "tiny"
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(run_id).result().checkpoints == []
    with pytest.raises(tinker.NotFoundError, match="never saved, or deleted, or expired"):
        rest.get_weights_info_by_tinker_path(path).result()


@pytest.mark.parametrize(
    ("items", "loss", "message"),
    [
        ([datum([5, 6, 10**6])], "cross_entropy", "vocabulary"),
        ([datum(TOKENS, [float("nan")] * (len(TOKENS) - 1))], "cross_entropy", "nan|finite"),
        ([datum(TOKENS, [1.0] * 3)], "cross_entropy", "length|shape"),
        ([datum(list(range(3, 203)) * 3)], "cross_entropy", "context|long|positions"),
        ([datum(TOKENS)], "no_such_loss", "unknown loss"),
    ],
)
def test_wrong_data_fails_with_a_sentence_and_the_client_lives_on(
    engine: Running, items: list[types.Datum], loss: Any, message: str
) -> None:
    client = trainer(engine)
    before = step(client, lr=0.0)
    with pytest.raises(tinker.RequestFailedError, match=f"(?i){message}"):
        client.forward_backward(items, loss).result()
    assert step(client, lr=0.0) == before


def test_an_unknown_model_is_refused_by_name(engine: Running) -> None:
    with pytest.raises(tinker.BadRequestError, match="does not serve"):
        engine.service().create_lora_training_client(base_model="no/such", rank=4).result()


def test_malformed_and_unknown_requests_get_a_sentence(engine: Running) -> None:
    assert post(engine, "forward_backward", b"\xff\xff\xff").status_code == 400
    assert post(engine, "create_session", b"[]").status_code == 400
    assert post(engine, "create_model", b"{}").status_code == 422
    assert post(engine, "nonsense", b"{}").status_code == 404
    gone = post(engine, "retrieve_future", {"request_id": "x"})
    assert gone.status_code == 410


def test_checkpoints_survive_a_kill_and_a_restart(tiny_weights: Path, tmp_path: Path) -> None:
    first = Running(tiny_weights, tmp_path)
    client = trainer(first)
    step(client)
    path = client.save_state("kept").result().path
    expected = step(client, lr=0.0)
    first.stop(signal.SIGKILL)
    second = Running(tiny_weights, tmp_path)
    try:
        again = second.service().create_training_client_from_state_with_optimizer(path).result()
        assert step(again, lr=0.0) == expected
    finally:
        second.stop()


def test_a_second_engine_on_one_store_and_a_taken_port_are_refused(
    engine: Running, tiny_weights: Path, tmp_path: Path
) -> None:
    def attempt(*extra: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "sota_ml_researcher.engine", "--model", str(tiny_weights), *extra]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr.strip().splitlines()[-1]

    details = httpx2.get(f"{engine.url}/api/v1/healthz").json()
    store = next(Path(a) for a in engine.process.args[engine.process.args.index("--store") + 1 :])  # type: ignore
    code, message = attempt("--port", "0", "--store", str(store))
    assert (code, engine.url in message, str(details["pid"]) in message) == (2, True, True)
    code, message = attempt("--port", engine.url.rsplit(":", 1)[1], "--store", str(tmp_path))
    assert code == 2
    assert "cannot listen on 127.0.0.1" in message
    code, message = attempt("--host", "0.0.0.0", "--store", str(tmp_path))
    assert (code, "Add --allow-host NAME" in message) == (2, True)
    code, message = attempt("--api-key", KEY, "--store", str(tmp_path))
    assert (code, KEY in message, "ML_RESEARCHER_ENGINE_KEY" in message) == (2, False, True)


@pytest.mark.parametrize(
    ("model", "message"), [("/nowhere", "no model there"), ("nonsense", "neither a folder nor an id")]
)
def test_a_model_that_cannot_be_served_is_one_line(model: str, message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sota_ml_researcher.engine", "--model", model, "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_is_checked_where_one_is_set(tiny_weights: Path, tmp_path: Path) -> None:
    guarded = Running(
        tiny_weights,
        tmp_path,
    )
    try:
        with pytest.raises(tinker.AuthenticationError):
            tinker.RestClient(base_url=guarded.url, api_key="tml-other").get_server_capabilities().result()
        models = (
            tinker.RestClient(base_url=guarded.url, api_key=KEY).get_server_capabilities().result().supported_models
        )
        assert "tiny" in [m.model_name for m in models]
    finally:
        guarded.stop()


def test_the_cookbooks_own_supervised_loop_runs_unmodified(
    engine: Running, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinker_cookbook import renderers, tokenizer_utils
    from tinker_cookbook.supervised import train
    from tinker_cookbook.supervised.data import FromConversationFileBuilder
    from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
    from transformers import AutoTokenizer

    rows = [[{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": str(i)}] for i in range(40)]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    tokenizer_utils.register_tokenizer("tiny", lambda: AutoTokenizer.from_pretrained(tiny_weights))
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer="tiny",
        renderer_name="qwen3_instruct",
        max_length=128,
        batch_size=8,
        train_on_what=renderers.TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )
    config = train.Config(
        log_path=str(tmp_path / "log"),
        model_name="tiny",
        recipe_name="test",
        dataset_builder=FromConversationFileBuilder(common_config=common, file_path=str(data), test_size=8),
        learning_rate=1e-2,
        base_url=engine.url,
        save_every=2,
        eval_every=2,
    )
    asyncio.run(train.main(config))
    logged = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged] == [0, 1, 2, 3]
    assert logged[-1]["train_mean_nll"] < logged[0]["train_mean_nll"]
    assert "test/nll" in logged[2]
    assert (tmp_path / "log" / "checkpoints.jsonl").exists()
