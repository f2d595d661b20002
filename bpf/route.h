/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * route.h - where a connection's packets go: there, by where its first one has come from, and back.
 *
 * Input and output as in first.h, whose layer ROUTE this is. Steps return SW_GO_ON or a verdict.
 */
#ifndef SAMEWIRE_ROUTE_H
#define SAMEWIRE_ROUTE_H

#include "account.h"
#include "tables.h"

#define SW_TO_NODE (-106) /* an address of the node itself */
#define SW_UNROUTED (-109) /* dropped: a pod's packet, and there is no route; whoever has begun with it is to be told */

/* An on-link address of a network: its owner, here or behind another node. */
SW_INLINE int sw_local_target(struct sw_packet *p, __u16 scope)
{
	struct sw_endpoint *endpoint = sw_find_endpoint(scope, p->family, &p->out.destination);

	if (!endpoint)
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT);
	if (endpoint->port) {
		p->forward.fate = SW_TO_PORT;
		p->forward.target = endpoint->port;
	} else {
		p->forward.fate = SW_TO_TUNNEL;
		p->forward.target = endpoint->nexthop;
	}
	return SW_GO_ON;
}

/* Out of a network of its own, to an endpoint of the underlay that is here: nobody on the wire would answer for it. */
static __noinline void sw_stay_here(struct sw_packet *p)
{
	struct sw_endpoint *endpoint = sw_find_endpoint(p->out_scope, p->family, &p->out.destination);

	if (endpoint && endpoint->port) {
		p->forward.fate = SW_TO_PORT;
		p->forward.target = endpoint->port;
	}
}

/* ROUTE for what a pod sends. Most of it needs nothing else, so that a counter would be a great part of it. */
SW_INLINE int sw_route_from_pod(struct sw_packet *p)
{
	struct sw_route *route = sw_find_way(p->route_set, p->first_scope, p->family, &p->out.destination);

	if (!route) {
		sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
		return SW_UNROUTED;
	}
#ifndef TRACE
	if (sw_counted_slots && p->first_port)
		sw_count_rule(p->first_port, route->nexthop, SW_COUNTED_ROUTE + route->kind);
#endif
	p->route_flags = route->flags;
	switch (route->kind) {
	case SW_ROUTE_HOST:
		return SW_TO_NODE;
	case SW_ROUTE_LOCAL:
		return sw_local_target(p, p->first_scope);
	case SW_ROUTE_TUNNEL:
		p->forward.fate = SW_TO_TUNNEL;
		break;
	case SW_ROUTE_UPLINK:
		p->forward.fate = SW_TO_UPLINK;
		p->out_scope = route->scope;
		break;
	default:
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	}
	p->forward.target = route->nexthop;
	if (route->flags & SW_ROUTE_DECREMENT)
		p->forward.flags |= SW_DECREMENT;
	if (p->out_scope != p->first_scope)
		sw_stay_here(p);
	return SW_GO_ON;
}

/* What comes from the wire: a host port, a pod on the underlay's subnet, or not ours. */
SW_INLINE int sw_route_from_uplink(struct sw_packet *p)
{
	struct sw_route *route = sw_find_route(p->first_scope, p->family, &p->out.destination);

	if (!route)
		return SW_PASS;
	if (route->kind == SW_ROUTE_LOCAL) {
		struct sw_endpoint *endpoint = sw_find_endpoint(p->first_scope, p->family, &p->out.destination);

		if (!endpoint || !endpoint->port)
			return SW_PASS;
		p->forward.fate = SW_TO_PORT;
		p->forward.target = endpoint->port;
		return SW_GO_ON;
	}
	/* In a VLAN the node has its own devices, or is not there. */
	return route->kind == SW_ROUTE_HOST && p->first_scope == SW_SCOPE_UPLINK ? SW_TO_NODE : SW_PASS;
}

/* DECAP: the inner source must be behind another node. */
SW_INLINE int sw_tunnel_guard(struct sw_packet *p)
{
	struct sw_endpoint *owner;

	if (p->first_arrival != SW_FROM_TUNNEL)
		return SW_GO_ON;
	owner = sw_find_endpoint(p->first_scope, p->family, &p->first.source);
	return owner && owner->port ? sw_drop(p, SW_LAYER_DECAP, SW_REASON_SPOOFED_IP) : SW_GO_ON;
}

/*
 * DECAP: nor is it the node itself. (Direct packets are not asked: what a process here sends to another node's VIP may come
 * back as one.) A wider route to the node's stack is a user's, and says nothing of who is the node.
 */
SW_INLINE int sw_poses_as_node(struct sw_packet *p)
{
	struct sw_route *route;

	if (p->first_arrival != SW_FROM_TUNNEL)
		return 0;
	route = sw_find_route(p->first_scope, p->family, &p->first.source);
	return route && route->kind == SW_ROUTE_HOST && route->bits == (p->family == 4 ? 32 : 128);
}

/* ROUTE for what comes through the tunnel, in the scope that DECAP has found. */
SW_INLINE int sw_route_from_tunnel(struct sw_packet *p)
{
	struct sw_route *route = sw_find_route(p->first_scope, p->family, &p->out.destination);

	if (!route)
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	if (route->kind == SW_ROUTE_HOST)
		return SW_TO_NODE;
	if (route->kind != SW_ROUTE_LOCAL)
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	if (sw_local_target(p, p->first_scope) != SW_GO_ON)
		return TC_ACT_SHOT;
	if (p->forward.fate != SW_TO_PORT) /* no transit from tunnel to tunnel */
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ENDPOINT);
	return SW_GO_ON;
}

/* What the node itself sends, or forwards: pods here, or pods behind other nodes. To itself: what lo has handed over. */
SW_INLINE int sw_route_from_host(struct sw_packet *p)
{
	struct sw_route *route = sw_find_route(p->first_scope, p->family, &p->out.destination);

	if ((!route || route->kind == SW_ROUTE_HOST) && sw_is_node(p->family, &p->out.destination))
		return SW_TO_NODE;
	if (!route)
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	if (route->kind == SW_ROUTE_LOCAL)
		return sw_local_target(p, p->first_scope);
	if (route->kind != SW_ROUTE_TUNNEL)
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	p->forward.fate = SW_TO_TUNNEL;
	p->forward.target = route->nexthop;
	return SW_GO_ON;
}

/*
 * Whether the client of a direct packet is a pod here: it has called a node that does not know it for one, and waits for
 * what comes by the uplink. Then it has an address of the underlay, or a flow that left by it (its own or the node's
 * address).
 */
SW_COLD static __noinline int sw_is_client_here(struct sw_packet *p)
{
	struct sw_endpoint *endpoint = sw_find_endpoint(SW_SCOPE_UPLINK, p->family, &p->first.source);
	struct sw_flow *flow;

	if (endpoint && endpoint->port)
		return 1;
	sw_key_of(&p->other, &p->first, SW_SCOPE_UPLINK, p->family, p->protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->other);
	return flow && flow->arrival == SW_FROM_POD;
}

/* Where answers to a direct packet go, if not back through the tunnel: to a pod of another node (PreserveDIP). */
SW_INLINE int sw_route_direct_back(struct sw_packet *p, const struct sw_route *route)
{
	if (sw_is_client_here(p)) {
		p->reverse.fate = SW_TO_INGRESS;
		p->reverse.flags |= p->out_scope != SW_SCOPE_UPLINK ? SW_DECREMENT : 0;
		/*
		 * PreserveDIP: under one key with what the client has sent, the answer that comes round would be its
		 * own.
		 */
		if (p->out_scope == SW_SCOPE_UPLINK && sw_same_address(&p->out.destination, &p->first.destination))
			p->wants_snat = 1;
	} else if (route && route->kind == SW_ROUTE_UPLINK) {
		p->reverse.fate = SW_TO_UPLINK;
		p->reverse.target = route->nexthop;
		p->reverse.flags |= route->flags & SW_ROUTE_DECREMENT ? SW_DECREMENT : 0;
	} else if (route && route->kind == SW_ROUTE_HOST) {
		/* A process here, by an address that the first node does not know as ours. */
		p->reverse.fate = SW_TO_HOST;
	}
	return p->reverse.fate != SW_TO_NOWHERE;
}

/* The same where the target has a route of its own to the initiator. */
SW_INLINE void sw_route_own_back(struct sw_packet *p, const struct sw_route *own)
{
	switch (own->kind) {
	case SW_ROUTE_HOST:
		p->reverse.fate = SW_TO_HOST;
		return;
	case SW_ROUTE_TUNNEL:
		p->reverse.fate = SW_TO_TUNNEL;
		break;
	case SW_ROUTE_UPLINK:
		p->reverse.fate = SW_TO_UPLINK;
		if (p->first_arrival == SW_FROM_TUNNEL)
			p->needs_flow = 1; /* the NAT layer must not take its answers for a new connection */
		break;
	default:
		return;
	}
	p->reverse.target = own->nexthop;
	p->reverse.flags |= own->flags & SW_ROUTE_DECREMENT ? SW_DECREMENT : 0;
}

/*
 * Whether answers to what the node has sent come by lo: they are from the node itself, or from a VIP, to which no route
 * leads by samewire0.
 */
SW_INLINE int sw_is_answered_by_lo(const struct sw_packet *p)
{
	return p->protocol == IPPROTO_SCTP && (p->backend || sw_is_node(p->family, &p->first.destination));
}

/* Where the target's packets go: back to wherever the initiator is. */
SW_INLINE void sw_route_back(struct sw_packet *p)
{
	__u16 scope = p->first_scope == SW_SCOPE_DIRECT ? SW_SCOPE_UPLINK : p->first_scope;
	struct sw_route *route, *own = 0;
	struct sw_endpoint *endpoint;

	switch (p->first_arrival) {
	case SW_FROM_POD:
		p->reverse.fate = SW_TO_PORT;
		p->reverse.target = p->first_port;
		if (p->forward.fate == SW_TO_UPLINK && p->route_flags & SW_ROUTE_DECREMENT)
			p->reverse.flags |= SW_DECREMENT;
		return;
	case SW_FROM_HOST:
		p->reverse.fate = SW_TO_HOST;
		if (sw_is_answered_by_lo(p))
			p->reverse.target = SW_LOOPBACK;
		return;
	default:
		break;
	}

	route = sw_find_route(scope, p->family, &p->first.source);
	/* What answers in another's name, the node's or a service's, goes the way that the question has come. */
	if (p->route_set && p->out_scope == scope && sw_same_address(&p->out.destination, &p->first.destination))
		own = sw_find_own_route(p->route_set, p->family, &p->first.source, route);
	if (p->is_direct && p->first_arrival == SW_FROM_TUNNEL && sw_route_direct_back(p, own ?: route))
		return;
	if (own) {
		sw_route_own_back(p, own);
		return;
	}
	if (!route)
		return;
	if (p->first_arrival == SW_FROM_UPLINK && route->kind == SW_ROUTE_UPLINK) {
		p->reverse.fate = SW_TO_UPLINK;
		p->reverse.target = route->nexthop;
		if (p->out_scope != p->first_scope || p->forward.fate == SW_TO_UPLINK)
			p->reverse.flags |= SW_DECREMENT;
	} else if (p->first_arrival == SW_FROM_TUNNEL && route->kind == SW_ROUTE_TUNNEL) {
		p->reverse.fate = SW_TO_TUNNEL;
		p->reverse.target = route->nexthop;
		p->reverse.flags |= SW_DECREMENT;
	} else if (p->first_arrival == SW_FROM_TUNNEL && route->kind == SW_ROUTE_LOCAL) {
		endpoint = sw_find_endpoint(p->first_scope, p->family, &p->first.source);
		if (!endpoint || !endpoint->nexthop)
			return;
		p->reverse.fate = SW_TO_TUNNEL;
		p->reverse.target = endpoint->nexthop;
	}
}

#endif /* SAMEWIRE_ROUTE_H */
