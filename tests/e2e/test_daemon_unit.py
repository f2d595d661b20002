"""The daemon with no more capabilities than its systemd unit leaves it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.node import NodeNet, daemon, overlay, poll

pytestmark = pytest.mark.root

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "samewire.service"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 1003
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{port: 80, protocol: TCP, nodePort: 1004}]
"""
POLICIES = (
    {"Type": "OutBoundNAT", "Settings": {}},
    {"Type": "QOS", "Settings": {"MaximumIncomingBandwidthInBytes": 10**6}},
    {"Type": "L4Proxy", "Settings": {"Port": "15001", "Destination": "10.244.0.9:15001"}},
)


@pytest.mark.parametrize("mode", ["kernel", "userspace"])
def test_capabilities_of_the_unit_are_enough(net: NodeNet, tmp_path: Path, mode: str) -> None:
    """Node ports may begin below 1024, and with them those of health checks."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "service.yaml").write_text(SERVICE)
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in line.split())
    settings = {
        "manifests": str(manifests),
        "proxy_mode": mode,
        "node_port_range": [1000, 2000],
        "healthz_listen": ":1001",
        "metrics_listen": ":1002",
    }
    with daemon(net, tmp_path, **settings) as node:
        node.under = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", "--inh-caps=-all"]
        node.start()
        node.request("POST", "/v2/networks", overlay(subnet6="fd00:244::/64"))
        mac = {"Type": "SourceMacAddress", "Settings": {"SourceMacAddress": "0E-2A-99-00-00-01"}}
        subnet = {"Subnets": [{"IpAddressPrefix": "10.88.0.0/24"}]}
        node.request(
            "POST", "/v2/networks", {"Name": "l2", "Type": "L2Bridge", "Policies": [mac], "Ipams": [subnet]}
        )
        policies = [{"name": "EndpointPolicy", "value": value} for value in POLICIES]
        node.add("pod", net.pod(), node.conf(policies=policies))
        poll("services are in the switch", lambda: not node.request("GET", "/v2/services")[0].get("error"))
        assert node.request("GET", "/v2/doctor") == {"healthy": True, "findings": []}
        assert "ermission" not in node.log.read_text()
        assert '"level":"error"' not in node.log.read_text()
