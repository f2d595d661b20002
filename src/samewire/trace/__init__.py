"""Why did this packet go, or die, there? Traces, views of the switch, health checks, captures.

For the daemon: ``service.routes(context)`` (POST /v2/switch/trace), ``views.routes(context)`` (GET
/v2/switch/endpoints|ports|layers|flows|drops|tables) and ``doctor_service.routes(provider)`` (GET /v2/doctor);
``context`` implements `samewire.trace.context.TraceContext`. For those who ask: ``follow.follow`` runs a trace over
several nodes, ``render`` shows it. Everything but the routes and ``follow`` is pure.
"""
