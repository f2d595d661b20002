"""What the daemon of a node with 250 pods costs: CPU time from its start on, resident memory."""

from __future__ import annotations

from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.cni import SamewireSubject, check_attached, container_ids
from benchmarks.errors import BenchError
from benchmarks.netns import Sandbox
from benchmarks.ours import NAME
from benchmarks.stats import median_of

PODS = 250


class Scale(Case):
    """One daemon, 250 pods with OutBoundNAT, attached through the CNI client."""

    name = "scale"

    def __init__(self, comparisons: tuple[Comparison, ...]) -> None:
        self.comparisons = comparisons

    def steps(self, context: Context) -> int:
        return 2

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        subject = SamewireSubject()
        with Sandbox("scale") as sandbox:
            context.progress.step(f"scale: {PODS} pod namespaces")
            pods = sandbox.many([f"p{index}" for index in range(PODS)])
            context.progress.step(f"scale: ADD of {PODS} pods")
            try:
                plugin = subject.open(sandbox)
                plugin.execute("ADD", container_ids(pods))
                check_attached(pods, attached=True)
                if subject.daemon is None:
                    raise BenchError("the daemon is not there")
                outcome.measured[NAME, "cpu"] = median_of([subject.daemon.cpu_s()])
                outcome.measured[NAME, "memory"] = median_of([subject.daemon.resident_mb()])
            except Exception as error:  # reported beside the other cases' figures
                outcome.fail(NAME, error)
            finally:
                subject.close()
        return outcome
