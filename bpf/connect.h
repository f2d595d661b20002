/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * connect.h - from flow entries to a packet's fate.
 *
 * sw_switch() is the whole of a packet's way once the arrival is known: one look-up of the unified flow; a hit is
 * applied, a stale hit is re-decided, a miss walks the layers.
 */
#ifndef SAMEWIRE_CONNECT_H
#define SAMEWIRE_CONNECT_H

#include "near.h"
#include "redecide.h"

#define SW_STALE (-101)
#define SW_LOST (-107)
#define SW_UNSERVED (-108) /* stale, too, and of no use for the packet in hand */

/* Of a pair: whether the packet in hand goes the way that the partner serves. Nobody who may would send it here. */
SW_INLINE int sw_is_unserved(const struct sw_flow *flow, __u8 side)
{
	return flow->flags & SW_FLOW_PAIR && side != !!(flow->flags & SW_FLOW_SECOND);
}

/* A pure SYN on a flow: has the old connection ended? Then it is removed, and the SYN walks as a first packet. */
SW_COLD static __noinline int sw_is_reopened(struct sw_packet *p, struct sw_flow *flow)
{
	__u8 initiator = flow->tcp[0], target = flow->tcp[1];

	if (flow->flags & SW_FLOW_PAIR) {
		struct sw_flow *other;

		sw_partner_key(&p->key, flow, &p->other);
		other = bpf_map_lookup_elem(&sw_flows, &p->other);
		if (other) {
			initiator |= other->tcp[0];
			target |= other->tcp[1];
		}
	}
	if (!((initiator | target) & (SW_TCP_FIN | SW_TCP_RST)))
		return 0;
	sw_forget(p, flow);
	return 1;
}

/* Whether the packet's connection stands aside: then p->key is its key. Its packets are judged one by one. */
SW_COLD static __noinline int sw_stands_aside(struct sw_packet *p)
{
	struct sw_flow *flow;

	if (p->scope > SW_SCOPE_MAX)
		return 0;
	p->key.scope |= SW_SCOPE_ASIDE;
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (flow && flow->arrival == p->arrival && p->direction == (flow->flags & SW_FLOW_INITIATOR) &&
	    !(p->tcp_flags == SW_TCP_SYN && sw_is_reopened(p, flow))) {
		p->aside = SW_SCOPE_ASIDE;
		return 1;
	}
	p->key.scope = p->scope;
	return 0;
}

/*
 * Answers by the tunnel to what has left by the uplink as it was: another node's own process has been called, and that
 * node's way to pods is the tunnel. p->key is then the key that they would have by the uplink.
 */
SW_COLD static __noinline int sw_is_answered_by_tunnel(struct sw_packet *p, const struct sw_flow *flow)
{
	const struct sw_action *forward = sw_served(flow) ? &flow->action[1] : &flow->action[0];

	if (p->arrival != SW_FROM_TUNNEL || flow->arrival != SW_FROM_POD || forward->fate != SW_TO_UPLINK ||
	    flow->flags & (SW_FLOW_SECOND | SW_FLOW_DIRECT) ||
	    forward->flags & (SW_REWRITE_SOURCE | SW_REWRITE_DESTINATION))
		return 0;
	p->key.scope = flow->peer_scope;
	return !!bpf_map_lookup_elem(&sw_flows, &p->key);
}

/*
 * A packet that goes nowhere: of that kind, or there was no way back when the flow was judged. When routes have changed
 * since, it may have one: the flow must not wait for its initiator, who may wait for this very packet.
 */
SW_COLD static __noinline int sw_to_nowhere(struct sw_packet *p, const struct sw_flow *flow, __u8 side)
{
	const struct sw_port *own = flow->port[0] ? sw_find_port(flow->port[0]) : 0;
	const struct sw_port *target = flow->port[1] ? sw_find_port(flow->port[1]) : 0;
	int in_the_way = sw_is_unserved(flow, side) && sw_is_in_the_way(p, flow);

	if (in_the_way ? sw_stands_aside(p) : sw_is_answered_by_tunnel(p, flow))
		return SW_STALE;
	if ((flow->port[0] && (!own || sw_generation_of(own) != flow->generation[0])) ||
	    (flow->port[1] && (!target || sw_generation_of(target) != flow->generation[1])))
		return sw_is_unserved(flow, side) ? SW_UNSERVED : SW_STALE;
	if (!sw_is_unserved(flow, side))
		return sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
	return in_the_way ? SW_ASIDE : sw_drop(p, SW_LAYER_FLOW, SW_REASON_MARTIAN);
}

/*
 * A flow's backend has been removed. The next packet of a client that keeps no state, and a SYN, go to another one; a
 * connection ends, and whoever has just spoken is told so. Its address may be somebody else's by now.
 */
SW_COLD __noinline int sw_lost_backend(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_flow *flow;
	__u8 side;

	SW_USE_CONTEXT(skb);
	if (!p)
		return TC_ACT_SHOT;
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (!flow)
		return SW_GO_ON;
	side = p->direction != (flow->flags & SW_FLOW_INITIATOR);
	p->service = flow->service;
	sw_forget(p, flow);
	if (!side && (p->protocol != IPPROTO_TCP || p->tcp_flags == SW_TCP_SYN))
		return SW_GO_ON;
	sw_count(SW_COUNTER_LB_ENDED);
	sw_count_service(p->service, SW_COUNT_ENDED);
	sw_drop_at(p, 0, SW_LAYER_LB, SW_REASON_BACKEND_GONE, p->service);
	return p->protocol == IPPROTO_TCP ? sw_answer_reset(skb, p) : TC_ACT_SHOT;
}

/*
 * A datagram, or a SYN that is sent again, on a flow that has no backend: is its destination a service's by now, or what
 * goes to the node's own stack a host port's? Clients that send for ever from one port, and connects that wait, would
 * never get to one that has come after they began.
 */
SW_COLD static __noinline int sw_is_taken_over(struct sw_packet *p, __u32 fate)
{
	sw_copy_tuple(&p->first, &p->tuple);
	p->first_arrival = p->arrival;
	p->first_scope = p->scope;
	if (sw_service_of(p, 0))
		return 1;
	return sw_is_host_address(p->scope, p->family, &p->tuple.destination) &&
	       (sw_service_of(p, 1) || (fate == SW_TO_HOST && sw_portmap_of(p)));
}

/*
 * Whether a backend is in another network than the flow leads to: the route to its node has come or gone. What pods send is
 * judged again by their ports, and goes by the routes of their own network.
 */
SW_INLINE int sw_has_moved(const struct sw_flow *flow, const struct sw_near_backend *backend)
{
	return flow->arrival != SW_FROM_POD && !(flow->flags & SW_FLOW_DIRECT) && flow->peer_scope != backend->scope;
}

/*
 * As sw_tunnel_guard() has it: what a pod here or the node has sent does not come back to go its way again, and nobody behind
 * the tunnel answers for a pod here.
 */
SW_COLD static __noinline int sw_comes_round(struct sw_packet *p, const struct sw_flow *flow, __u8 side)
{
	__u32 number = side ? flow->port[1] : flow->port[0];
	const struct sw_port *sender = sw_near_port(p, number);

	if (number && (!sender || sender->generation != (side ? flow->generation[1] : flow->generation[0])))
		return SW_STALE;
	return sw_drop(p, SW_LAYER_DECAP, SW_REASON_SPOOFED_IP);
}

/* A hit: check that it is still true, then apply it. Returns a verdict, SW_STALE, SW_LOST, SW_ASIDE, or SW_GO_ON: no flow. */
SW_INLINE int sw_hit(struct __sk_buff *skb, struct sw_packet *p, struct sw_flow *flow)
{
	const struct sw_action *action = p->direction ? &flow->action[1] : &flow->action[0];
	__u8 side = p->direction != (flow->flags & SW_FLOW_INITIATOR);
	const struct sw_near_backend *backend = 0;
	const struct sw_port *target = 0;
	const struct sw_nexthop *hop = 0;

	if (flow->flags & SW_FLOW_HOST) {
		sw_touch(p, flow, side); /* its answers: an idle connection of the node keeps its port */
		sw_count_in_flow(skb, p, flow->slot, p->direction);
		return SW_PASS;
	}
	if (p->tcp_flags == SW_TCP_SYN && sw_is_reopened(p, flow))
		return SW_GO_ON;
	if (action->fate == SW_TO_NOWHERE)
		return sw_to_nowhere(p, flow, side);
	if (flow->backend) {
		backend = sw_near_backend(p, flow->backend);
		if (!backend)
			return SW_LOST;
	}
	if (!side && !flow->backend && !(flow->flags & SW_FLOW_DIRECT) &&
	    (p->tcp_flags == SW_TCP_SYN || (p->protocol == IPPROTO_UDP && flow->seen_tick != sw_packet_tick(p))) &&
	    sw_is_taken_over(p, action->fate)) {
		sw_forget(p, flow);
		return SW_GO_ON;
	}
	if (p->arrival == SW_FROM_TUNNEL &&
	    (side ? flow->port[1] != 0 : flow->arrival == SW_FROM_POD || flow->arrival == SW_FROM_HOST))
		return sw_comes_round(p, flow, side);
	if (p->port_id && p->port_generation != (side ? flow->generation[1] : flow->generation[0]))
		return SW_STALE;
	switch (action->fate) {
	case SW_TO_PORT:
		target = sw_near_port(p, action->target);
		if (!target || target->generation != (side ? flow->generation[0] : flow->generation[1]))
			return SW_STALE;
		if (flow->flags & SW_FLOW_DIRECT && p->arrival == SW_FROM_TUNNEL && !side &&
		    !sw_same_mac(p->inner_mac, target->mac))
			return SW_STALE; /* the first node has chosen another endpoint here */
		break;
	case SW_TO_UPLINK:
	case SW_TO_TUNNEL:
		hop = sw_near_nexthop(p, action->target);
		if (!hop || (backend && !side && sw_has_moved(flow, backend)))
			return SW_STALE;
		break;
	default:
		break;
	}
	if (flow->flags & SW_FLOW_DIRECT && flow->arrival == SW_FROM_TUNNEL && side && hop &&
	    p->protocol == IPPROTO_TCP && !p->tcp_flags && sw_clamp_mss(skb, p, hop->mtu))
		return sw_drop(p, SW_LAYER_LB, SW_REASON_INTERNAL);
	sw_touch(p, flow, side);
	sw_count_in_flow(skb, p, flow->slot, p->direction);
#ifdef TRACE
	{
		struct sw_trace_output *out = sw_trace_here();

		if (out)
			out->flow_hit = 1;
		sw_copy_tuple(&p->out, &p->tuple);
		sw_transpose_tuple(&p->out, action);
		sw_step(p, SW_LAYER_FLOW, SW_STEP_REWRITE, action->fate, side ? 0 : flow->rule[0], action->target);
	}
#endif
	return sw_apply(skb, p, action, target, hop, 1);
}

/* The packet's flow. Returns a verdict, SW_ASIDE, or SW_GO_ON: it is gone. */
SW_INLINE int sw_follow(struct __sk_buff *skb, struct sw_packet *p, struct sw_flow *flow)
{
	int verdict = sw_hit(skb, p, flow);

	if (verdict == SW_STALE || verdict == SW_UNSERVED) {
		p->unserved = verdict == SW_UNSERVED;
		return sw_redecide(skb);
	}
	return verdict == SW_LOST ? sw_lost_backend(skb) : verdict;
}

/*
 * What opens a connection may open it aside. Of one that goes on, and is not known to stand there, the backend knew the
 * client by another port.
 */
SW_COLD static __noinline int sw_open_aside(struct sw_packet *p)
{
#ifndef TRACE
	struct sw_cursors *cursors = sw_cursors_here();
#endif

	if (p->protocol != IPPROTO_UDP && (p->protocol != IPPROTO_TCP || p->tcp_flags != SW_TCP_SYN))
		return sw_drop(p, SW_LAYER_FLOW, SW_REASON_MARTIAN);
#ifndef TRACE
	if (cursors)
		cursors->asides = 1;
#endif
	p->aside = SW_SCOPE_ASIDE;
	return SW_GO_ON;
}

/* No flow has the packet's key: the pair that was in the way of one that stands aside may be gone. */
SW_INLINE int sw_missed(struct sw_packet *p)
{
	struct sw_cursors *cursors = sw_cursors_here();

	if (!cursors || !cursors->asides || (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP))
		return SW_GO_ON;
	return sw_stands_aside(p) ? SW_STALE : SW_GO_ON;
}

/* p->arrival, scope, port_id, port_generation and the parsed packet are set. */
SW_INLINE int sw_switch(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_flow *flow;
	int verdict;

	p->aside = 0;
	p->direction = sw_make_key(&p->key, &p->tuple, p->scope, p->family, p->protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	verdict = flow ? sw_hit(skb, p, flow) : sw_missed(p);
	if (verdict == SW_STALE || verdict == SW_UNSERVED) {
		p->unserved = verdict == SW_UNSERVED;
		verdict = sw_redecide(skb);
	} else if (verdict == SW_LOST) {
		verdict = sw_lost_backend(skb);
	}
	if (verdict == SW_ASIDE)
		verdict = sw_open_aside(p);
	return verdict == SW_GO_ON ? sw_first_packet(skb) : verdict;
}

#endif /* SAMEWIRE_CONNECT_H */
