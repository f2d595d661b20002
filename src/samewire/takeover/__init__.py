"""Taking a node over from flannel and kube-proxy, and the way back.

`find` reads what is there, by the node's own tools; `links`, `iptables`, `conflists` say what it means (pure); `plan`
turns it into steps (pure), which `apply` carries out. Every step may be repeated, and every run makes its plan from
what is there then: a run that was cut off is finished by the next one. docs/guides/takeover.md is the runbook.
"""
