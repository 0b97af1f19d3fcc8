import subprocess
import sys
from pathlib import Path

import pytest

from sota_ml_researcher.backends import meter as meter_module
from sota_ml_researcher.backends.estimate import estimate_cost
from sota_ml_researcher.backends.meter import Meter, Usage, read_usage
from sota_ml_researcher.backends.prices import BackendPrices, ModelPrice, PriceTable, require_price_for_cap
from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.jobs.budget import Budget
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.training.sft.config import SftConfig

PRICE = ModelPrice(train=2.0, prefill=1.0, cached_prefill=0.2, sample=4.0)


def table(**models: ModelPrice) -> PriceTable:
    return PriceTable.model_validate(
        {"as_of": "2026-10-07", "source": "test", "backends": {"tinker": BackendPrices(models=models)}}
    )


class Context:
    """The worker's side of a budget."""

    def __init__(self, folder: Path, *, over_all: str | None = None) -> None:
        self.job_id, self.folder, self.attempt = "sft-1", folder, 1
        self.alerts: list[str] = []
        self.costs: list[float] = []
        self.over_all = over_all

    def started(self, total_steps: int) -> None: ...
    def progress(self, step: int) -> None: ...
    def stop_requested(self) -> str | None:
        return None

    def alert(self, level: str, message: str, *, step: int | None = None) -> None:
        self.alerts.append(message)

    def judged(self, total_usd: float) -> None: ...

    def spent(self, cost_usd: float, *, is_whole: bool) -> str | None:
        self.costs.append(cost_usd)
        self.is_whole = is_whole
        return self.over_all


def test_a_million_tokens_cost_the_listed_price() -> None:
    # 1M x 2 + 2M x 1 + 10M x 0.2 + 0.5M x 4 = 2 + 2 + 2 + 2
    used = Usage(train=1_000_000, prefill=2_000_000, cached_prefill=10_000_000, sample=500_000)
    assert used.cost(PRICE) == pytest.approx(8.0)


def test_an_unknown_price_is_unknown_only_when_it_is_needed() -> None:
    assert Usage(train=5).cost(None) is None
    assert Usage(train=5, sample=1).cost(ModelPrice(train=1.0)) is None
    assert Usage(train=5).cost(ModelPrice(train=1.0)) == pytest.approx(5e-6)


def test_a_job_stops_before_the_step_that_would_pass_its_cap(tmp_path: Path) -> None:
    meter = Meter(tmp_path, PRICE, free=False, cap_usd=0.01)  # 5,000 trained tokens
    steps = 0
    while not meter.exhausted():
        meter.count(train=900)
        meter.step_done()
        steps += 1
    assert steps == 5  # the sixth would make it 5,400
    assert meter.cost_usd == pytest.approx(0.009)


def test_a_resumed_job_goes_on_counting_and_a_higher_cap_lets_it(tmp_path: Path) -> None:
    first = Meter(tmp_path, PRICE, free=False, cap_usd=0.002)
    first.count(train=900)
    first.step_done()
    assert first.exhausted()
    second = Meter(tmp_path, PRICE, free=False, cap_usd=0.01)
    assert second.usage == Usage(train=900) == read_usage(tmp_path)
    assert not second.exhausted()


def test_the_alert_comes_once_at_four_fifths_and_the_stop_says_the_way_out(tmp_path: Path) -> None:
    context = Context(tmp_path)
    meter = Meter(tmp_path, PRICE, free=False, cap_usd=0.01)
    budget = Budget(context, meter)
    spent: list[bool] = []
    for step in range(1, 8):
        spent.append(budget.is_spent())
        meter.count(train=900)
        budget.step_done(step)
    assert spent == [False] * 5 + [True] * 2
    assert len(context.alerts) == 2
    assert "of the $0.01 cap is spent" in context.alerts[0]
    assert "resume_job with a higher max_cost_usd" in context.alerts[1]


def test_a_cap_across_jobs_stops_one_that_has_none(tmp_path: Path) -> None:
    context = Context(tmp_path, over_all="all jobs of this month have cost $5")
    budget = Budget(context, Meter(tmp_path, PRICE, free=False, cap_usd=None))
    assert budget.is_spent()
    assert "this month" in context.alerts[0]


def test_what_judges_cost_is_part_of_the_jobs_cost_and_survives_a_resume(tmp_path: Path) -> None:
    context = Context(tmp_path)
    budget = Budget(context, Meter(tmp_path, None, free=True, cap_usd=None))
    budget.judged(0.25)
    budget.settle()
    assert context.costs == [0.25]
    assert Meter(tmp_path, None, free=True, cap_usd=None).cost_usd == 0.25


def test_judges_dollars_count_across_jobs_where_the_price_of_tokens_is_unknown(tmp_path: Path) -> None:
    context = Context(tmp_path, over_all="all jobs of this month have cost $5")
    meter = Meter(tmp_path, ModelPrice(train=2.0), free=False, cap_usd=None)
    budget = Budget(context, meter)
    meter.count(train=500_000, sample=1000)
    budget.judged(4.0)
    assert budget.is_spent()
    assert (context.costs, context.is_whole, meter.cost_usd) == ([5.0], False, None)


def test_the_known_part_of_an_unknown_cost_counts_in_the_month(own_home: Path) -> None:
    registry = Registry()
    job = registry.create(kind="grpo", name="n", backend="tinker", base_model="m", runs=own_home / "runs")
    for cost in (1.0, 3.0):
        registry.note_cost(job.id, cost, is_whole=False)
    assert (registry.spent_this_month(), registry.get(job.id).cost_usd) == (3.0, None)
    registry.note_cost(job.id, 7.0)
    assert (registry.spent_this_month(), registry.get(job.id).cost_usd) == (7.0, 7.0)


def test_a_free_backend_costs_nothing_and_an_unknown_price_stays_unknown(tmp_path: Path) -> None:
    free, unknown = (Meter(tmp_path, None, free=f, cap_usd=None) for f in (True, False))
    for meter in (free, unknown):
        meter.count(train=10)
    assert (free.cost_usd, unknown.cost_usd) == (0.0, None)


@pytest.mark.parametrize("cap", [0, -1, float("nan"), float("inf")])
def test_a_cap_that_is_no_positive_number_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match="max_cost_usd"):
        SftConfig(base_model="demo", train_file="demo:sft_train", max_cost_usd=cap)


def test_a_cap_without_a_known_price_is_refused_with_the_way_out() -> None:
    config = SftConfig(base_model="no/such", train_file="x", backend="tinker", max_cost_usd=1.0)
    with pytest.raises(ConfigError, match=r"price of no/such is unknown.*prices.yaml"):
        require_price_for_cap(config, table())
    with pytest.raises(ConfigError, match="has no prices"):
        require_price_for_cap(config.model_copy(update={"backend": "embedded"}), table())


def test_an_estimate_has_a_range_and_a_date_and_says_unknown() -> None:
    usages = [Usage(train=1_000_000 * n) for n in (1, 2, 3)]
    known = estimate_cost(table(m=PRICE), "tinker", "m", usages)
    assert (known.low, known.expected, known.high, known.price_date) == (2.0, 4.0, 6.0, "2026-10-07")
    assert estimate_cost(table(), "tinker", "m", usages).expected is None
    assert estimate_cost(table(), "embedded", "m", usages).expected == 0.0


def test_judges_that_answer_quickly_are_not_held_up_by_bookkeeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Path] = []
    monkeypatch.setattr(meter_module, "write_atomically", lambda path, text: writes.append(path))
    context = Context(tmp_path)
    budget = Budget(context, Meter(tmp_path, None, free=True, cap_usd=1.0))
    for call in range(1, 1001):
        budget.judged(call * 1e-4)
        budget.step_done(call)
        assert not budget.is_spent()
    assert len(writes) <= 5 and len(context.costs) <= 20  # as many as seconds, and quarters of them, began
    budget.settle()
    assert context.costs[-1] == pytest.approx(0.1)
    budget.judged(1.01)
    assert budget.is_spent()  # the cap itself is looked at every time


def test_a_resumed_job_that_counts_up_again_never_costs_less_than_before(tmp_path: Path) -> None:
    budget = Budget(Context(tmp_path), Meter(tmp_path, None, free=True, cap_usd=None))
    budget.judged(0.5)
    budget.settle()
    meter = Meter(tmp_path, None, free=True, cap_usd=None)
    again = Budget(Context(tmp_path), meter)
    again.judged(0.1)
    assert meter.cost_usd == 0.5
    again.judged(0.6)
    assert meter.cost_usd == 0.6


def test_the_sdk_is_not_loaded_before_the_first_connection(tmp_path: Path) -> None:
    """It brings torch: 260 MB that an evaluation of answer files does without."""
    (tmp_path / "config.yaml").write_text("backend: embedded\n")
    code = f"""
import sys
from pathlib import Path
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.worker import Worker

registry, runs = Registry(), Path({str(tmp_path / "runs")!r})
worker = Worker(registry, registry.create(kind="sft", name="x", backend="embedded", base_model="demo", runs=runs))
with worker.metered(Path({str(tmp_path / "config.yaml")!r})):
    print("tinker" in sys.modules)
    worker.connect("cluster", "http://127.0.0.1:9").count(train=5)
    print("tinker" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_usage(folder).train == 5
