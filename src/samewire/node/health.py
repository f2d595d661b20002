"""What ``/v2/health`` says."""

from __future__ import annotations

from typing import Any

import samewire
from samewire.node.node import Node


def health(node: Node) -> dict[str, Any]:
    """The node's state in a few lines. ``status`` is ``ok`` or ``degraded``."""
    last = node.auditor.last
    lost = node.store.lost()
    problems = [*([lost] if lost else []), *([node.trouble] if node.trouble else []), *last.failed]
    if not node.uplink.ifindex:
        problems.append(f"uplink {node.config.uplink or 'of the default route'} is missing")
    if not node.devices.tunnel_up:
        problems.append(f"no overlay can be made: UDP port {node.config.vxlan_port} (vxlan_port) is in use")
    problems += [f"endpoint {endpoint_id}: {reason}" for endpoint_id, reason in node.auditor.degraded.items()]
    return {
        "status": "degraded" if problems else "ok",
        "name": node.config.name,
        "version": samewire.__version__,
        "uplink": {
            "name": node.uplink.name,
            "mtu": node.uplink.mtu,
            "addresses": [str(prefix) for prefix in node.uplink.addresses],
        },
        "ports": len(node.switch.ports),
        "problems": problems,
        "degraded_endpoints": node.auditor.degraded,
        "last_audit": {
            "at_unix_s": last.at_unix_s,
            "duration_s": last.duration_s,
            "differences": len(last.differences),
            "repaired": last.repaired,
        },
    }
