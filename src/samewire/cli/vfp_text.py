"""What `samewire vfp` prints: ports, layers, rules, flows and tuples as vfpctrl does, a field a line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samewire.counted import counted
from samewire.vfp.rule_names import rule_in, rule_text

Json = dict[str, Any]


def blocks(fields: Mapping[str, object]) -> str:
    """One thing as vfpctrl prints it: a field a line."""
    return "\n".join(f"{name}: {value}" for name, value in fields.items() if value not in ("", None, ()))


def port_fields(port: Json) -> Mapping[str, object]:
    endpoint = port.get("endpoint") or {}
    return {
        "Port": port["id"],
        "  Kind": port["kind"],
        "  Name": endpoint.get("port_name") or port["interface"],
        "  Friendly name": endpoint.get("name", ""),
        "  Endpoint": endpoint.get("id", ""),
        "  Network": endpoint.get("network", ""),
        "  MAC address": port["mac"],
        "  Addresses": ", ".join(port["addresses"]),
        "  VLAN": port["vlan"] or "",
        "  Flags": ", ".join(port["flags"]),
        "  Generation": port["generation"],
        "  Dropped": counted(port.get("dropped", 0), "packet"),
    }


def layer_fields(layer: Json) -> Mapping[str, object]:
    groups = ", ".join(
        f"{g['name']} ({g['direction']}, {counted(len(g['rules']), 'rule')})" for g in layer["groups"]
    )
    return {
        "Layer": layer["name"],
        "  Groups": groups or "none",
        "  Judged": _judged(layer),
        "  Dropped": counted(layer.get("dropped", 0), "packet"),
    }


def _judged(decider: Json) -> str:
    """How many connections a layer or rule has decided on."""
    count = decider.get("judged")
    return "not counted" if count is None else counted(count, "connection")


def rule_fields(rule: Json) -> Mapping[str, object]:
    return {
        "Rule": rule.get("name") or rule["id"] or "-",
        "  Port": rule.get("port", ""),
        "  Policy": rule.get("policy", ""),
        "  Layer": f"{rule['layer']} {rule['group']}",
        "  Priority": rule["priority"],
        "  Conditions": "; ".join(rule["conditions"]),
        "  Action": rule["action"],
        "  Object": rule.get("object", ""),
        "  Judged": _judged(rule),
    }


def _ends(ends: Json) -> str:
    return (
        f"{ends['protocol']} {ends['source']} {ends['source_port']} "
        f"{ends['destination']} {ends['destination_port']}"
    )


def _sent(end: Json) -> str:
    """What one end of a flow has sent; "" where it is not counted."""
    return (
        ""
        if end.get("packets") is None
        else f"{counted(end['packets'], 'packet')}, {counted(end['bytes'], 'byte')}"
    )


def flow_fields(flow: Json) -> Mapping[str, object]:
    return {
        "Flow": _ends(flow["ends"]),
        "  Translated": _ends(flow["translated"]) if flow["translated"] else "",
        "  State": flow["state"],
        "  From": flow["initiator"]["name"],
        "  To": flow["target"]["name"],
        "  Rules": ", ".join(rule_text(rule) for rule in flow["rules"] if rule),
        "  Sent": _sent(flow["initiator"]),
        "  Answered": _sent(flow["target"]),
        "  Idle": f"{flow['idle_s']} s",
    }


def _rule_of(step: Json) -> str:
    """A step's rule as `list-rules` calls it."""
    return rule_in(step["layer"], step["rule"])


def step_fields(step: Json) -> Mapping[str, object]:
    return {
        "Layer": step["layer"],
        "  Verdict": step["verdict"],
        "  Rule": _rule_of(step),
        "  Matched": step["matched"],
        "  Tuple": _ends(step["ends"]) if step["ends"] else "",
    }


def fate_fields(answer: Json) -> Mapping[str, object]:
    drop = answer.get("drop") or {}
    steps = "".join(
        f"\n    {step['layer']}: {step['verdict']}"
        + (f", rule {_rule_of(step)}" if step["rule"] else "")
        + (f" ({step['matched']})" if step["matched"] else "")
        for step in answer["steps"]
    )
    return {
        "Tuple": _ends(answer["received"]),
        "  Layers": steps,
        "  Flow": "an established flow decided" if answer.get("established") else "",
        "  Fate": answer["fate"],
        "  Dropped": f"{drop['layer']}: {drop['reason']}. {drop['explanation']}" if drop else "",
        "  Leaves as": _ends(answer["sent"]) if answer["fate"] != "dropped" else "",
        "  Delivered to": (answer.get("endpoint") or {}).get("name", ""),
    }
