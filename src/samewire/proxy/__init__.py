"""Services: Kubernetes' Services and EndpointSlices become HCN load balancers.

`members`, `topology`, `frontends`, `compile`, `table` and `health` are pure; `controller` and `healthserver` have the
effects, by way of a writer: `writer` for the switch, `userspace` with `relay` before it in user mode.
"""
