"""What the daemon of a node with 250 pods costs: CPU time from its start on, resident memory.

Beside it what the kernel takes for such pods: the network messages of an ADD, sent by a C program and nothing more.
"""

from __future__ import annotations

from benchmarks import native, peers
from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.cni import SamewireSubject, check_attached, container_ids
from benchmarks.errors import BenchError
from benchmarks.netns import Sandbox
from benchmarks.ours import NAME
from benchmarks.stats import median_of

PODS = 250
KERNEL_ALONE = "the kernel alone"


class Scale(Case):
    """One daemon, 250 pods with OutBoundNAT, attached through the CNI client."""

    name = "scale"

    def __init__(self, comparisons: tuple[Comparison, ...]) -> None:
        self.comparisons = comparisons

    def steps(self, context: Context) -> int:
        return 3

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        for name, measure in ((KERNEL_ALONE, self._kernel_alone), (NAME, self._daemon)):
            try:
                measure(context, outcome)
            except Exception as error:  # reported beside the other cases' figures
                outcome.fail(name, error)
        return outcome

    @staticmethod
    def _kernel_alone(context: Context, outcome: Outcome) -> None:
        context.progress.step(f"scale: {PODS} veth pairs with a program")
        with Sandbox("bare") as sandbox:
            node, _ = peers.outside_wire(sandbox)
            pods = sandbox.many([f"p{index}" for index in range(PODS)])
            times_ms = native.bare_pairs(pods, node, sandbox.tmp)
            check_attached(pods, attached=True)
        outcome.measured[KERNEL_ALONE, "attach_cpu"] = median_of([sum(times_ms) / PODS])

    @staticmethod
    def _daemon(context: Context, outcome: Outcome) -> None:
        subject = SamewireSubject()
        with Sandbox("scale") as sandbox:
            context.progress.step(f"scale: {PODS} pod namespaces")
            pods = sandbox.many([f"p{index}" for index in range(PODS)])
            context.progress.step(f"scale: ADD of {PODS} pods")
            try:
                plugin = subject.open(sandbox)
                daemon = subject.daemon
                if daemon is None:
                    raise BenchError("the daemon is not there")
                start_s = daemon.cpu_s()
                plugin.execute("ADD", container_ids(pods))
                check_attached(pods, attached=True)
                cpu_s = daemon.cpu_s()
                outcome.measured[NAME, "cpu"] = median_of([cpu_s])
                outcome.measured[NAME, "adds_cpu"] = median_of([cpu_s - start_s])
                outcome.measured[NAME, "start_cpu"] = median_of([start_s])
                outcome.measured[NAME, "attach_cpu"] = median_of([(cpu_s - start_s) * 1e3 / PODS])
                outcome.measured[NAME, "memory"] = median_of([daemon.resident_mb()])
            finally:
                subject.close()
