"""The datapath cases: several scenarios at once, measured in turns (README.md, "Method")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import native
from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.native import Endpoints
from benchmarks.scenario import Scenario
from benchmarks.stats import interleaved, median_of

FIRST_PORT = 5001
BYTES_TO_GBIT = 8e-9
REPETITIONS_A_GATE = 20


@dataclass
class _Running:
    """A scenario that is up, and its samples."""

    scenario: Scenario
    ends: Endpoints
    samples: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, context: Context, mode: str, port: int) -> None:
        before = self.scenario.flow_inserts() if mode == "crr" else None
        result = native.measure(self.ends, mode, context.seconds, context.cpu, port)
        rate = result.rate * BYTES_TO_GBIT if mode == "stream" else result.rate
        self.samples.setdefault(mode, []).append(rate)
        if before is not None:
            inserts = (self.scenario.flow_inserts() or 0) - before
            self.samples.setdefault("flow_inserts", []).append(inserts / result.count)


class Datapath(Case):
    """Scenarios that do the same thing in different ways."""

    def __init__(
        self,
        name: str,
        scenarios: Sequence[Callable[[], Scenario]],
        modes: Sequence[str],
        comparisons: tuple[Comparison, ...],
    ) -> None:
        self.name = name
        self.comparisons = comparisons
        self._scenarios = scenarios
        self._modes = modes

    def steps(self, context: Context) -> int:
        return len(self._scenarios) * (1 + context.repetitions * len(self._modes))

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        made: list[Scenario] = []
        try:
            running = self._set_up(context, outcome, made)
            self._measure_all(context, outcome, running)
        finally:
            for scenario in made:
                self._tear_down(scenario, outcome)
        for one in running:
            for metric, samples in one.samples.items():
                outcome.measured[one.scenario.name, metric] = median_of(samples)
                outcome.samples[one.scenario.name, metric] = samples
        return outcome

    def _set_up(self, context: Context, outcome: Outcome, made: list[Scenario]) -> list[_Running]:
        running = []
        for make in self._scenarios:
            scenario = make()
            made.append(scenario)
            context.progress.step(f"{self.name}: set-up of {scenario.name}")
            try:
                running.append(_Running(scenario, scenario.setup()))
            except Exception as error:  # whatever it is, it is this scenario's failure and not the others'
                outcome.fail(scenario.name, error)
                self._tear_down(scenario, outcome)
        return running

    def _measure_all(self, context: Context, outcome: Outcome, running: list[_Running]) -> None:
        port = FIRST_PORT
        for repetition in range(context.repetitions):
            for mode in self._modes:
                if repetition % REPETITIONS_A_GATE == 0:
                    context.gate.wait()
                for one in interleaved(running, repetition):
                    name = one.scenario.name
                    if name in outcome.failures:
                        continue
                    context.progress.step(
                        f"{self.name}: {mode}, {name} ({repetition + 1}/{context.repetitions})"
                    )
                    try:
                        one.measure(context, mode, port)
                    except Exception as error:  # as above
                        outcome.fail(name, error)
                port += 1  # makes every tuple of the next measurement a new one

    def _tear_down(self, scenario: Scenario, outcome: Outcome) -> None:
        try:
            scenario.teardown()
        except Exception as error:  # as above; the next scenario has to be removed all the same
            outcome.fail(scenario.name, error)
