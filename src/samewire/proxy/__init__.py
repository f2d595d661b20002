"""Services: Kubernetes' Services and EndpointSlices become HCN load balancers.

`members`, `topology`, `frontends`, `compile` and `table` are pure; `controller`, `healthchecks` and `daemon` have
the effects.
"""
