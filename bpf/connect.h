/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * connect.h - from flow entries to a packet's fate.
 *
 * sw_switch() is the whole of a packet's way once the arrival is known: one look-up of the unified flow; a hit is
 * applied, a stale hit is re-decided, a miss walks the layers.
 */
#ifndef SAMEWIRE_CONNECT_H
#define SAMEWIRE_CONNECT_H

#include "create.h"
#include "near.h"

#define SW_STALE (-101)
#define SW_LOST (-107)
#define SW_UNSERVED (-108) /* stale, too, and of no use for the packet in hand */

/* Removes the flow under p->key, both entries of a pair; the traced build only remembers which those are. */
SW_INLINE void sw_forget(struct sw_packet *p, const struct sw_flow *flow)
{
#ifdef TRACE
	sw_copy_key(&p->gone[0], &p->key);
	if (flow->flags & SW_FLOW_PAIR)
		sw_partner_key(&p->key, flow, &p->gone[1]);
#else
	sw_copy_key(&p->flow_key, &p->key);
	sw_remove_flow();
#endif
}

SW_INLINE void sw_touch(struct sw_packet *p, struct sw_flow *flow, __u8 side)
{
#ifndef TRACE
	__u32 now = sw_packet_tick(p);
	__u8 *seen = side ? &flow->tcp[1] : &flow->tcp[0];

	if (flow->seen_tick != now) {
		flow->seen_tick = now;
		if ((flow->flags & (SW_FLOW_REPLIED | SW_FLOW_STREAM)) == SW_FLOW_REPLIED)
			flow->flags |= SW_FLOW_STREAM;
		/* Whose RST that was goes on: it was out of the window, or somebody else's (RFC 6146, 3.5.2.2). */
		if (p->tcp_flags == SW_TCP_DATA)
			*seen &= ~SW_TCP_RST;
	}
	if (p->tcp_flags & ~*seen)
		*seen |= p->tcp_flags;
	/* Direct replies are not seen here: whoever goes on has got one. */
	if ((side || flow->flags & SW_FLOW_DIRECT) && !(flow->flags & SW_FLOW_REPLIED))
		flow->flags |= SW_FLOW_REPLIED;
#endif
}

/* Translated to what was the node's address, and there is another one now: nothing comes to the old one any more. */
SW_COLD static __noinline int sw_has_lost_source(struct sw_packet *p, const struct sw_action *forward)
{
	return !sw_same_address(&forward->source, &p->out.source) &&
	       !sw_is_host_address(SW_SCOPE_UPLINK, p->family, &forward->source) &&
	       sw_is_host_address(SW_SCOPE_UPLINK, p->family, &p->out.source);
}

/* Whether a walk came to what a flow was made for: the same target in the same scope, and translated if it must be. */
SW_INLINE int sw_still_true(struct sw_packet *p, const struct sw_flow *first, const struct sw_action *forward)
{
	const struct sw_addr *destination = &p->first.destination;
	__be16 port = p->first.destination_port;
	__u16 scope = first->flags & SW_FLOW_PAIR ? first->peer_scope : p->first_scope;

	if (forward->flags & SW_REWRITE_DESTINATION) {
		destination = &forward->destination;
		port = forward->destination_port;
	}
	if (p->wants_snat && (!(forward->flags & SW_REWRITE_SOURCE) || sw_has_lost_source(p, forward)))
		return 0;
	return scope == p->out_scope && port == p->out.destination_port &&
	       sw_same_address(destination, &p->out.destination);
}

/* Brings an action to what the walk found; its rewriting part stays. */
SW_INLINE void sw_refresh(struct sw_action *action, const struct sw_action *found)
{
	action->fate = found->fate;
	action->target = found->target;
	action->flags = (action->flags & ~SW_DECREMENT) | (found->flags & SW_DECREMENT);
}

SW_INLINE void sw_refresh_entry(struct sw_packet *p, struct sw_flow *flow)
{
	flow->port[1] = p->port[1];
	flow->rule[0] = p->rule[0];
	flow->rule[1] = p->rule[1];
	flow->generation[0] = p->generation[0];
	flow->generation[1] = p->generation[1];
	flow->flags &= ~SW_FLOW_DENIED;
}

/*
 * An ACL denies the flow's connection now. Its packets are dropped, so what they say of its end is not noted: the other end
 * has not been told, and goes on.
 */
SW_INLINE void sw_note_denied(struct sw_packet *p, struct sw_flow *flow)
{
#ifndef TRACE
	flow->seen_tick = sw_packet_tick(p);
	flow->flags |= SW_FLOW_DENIED;
#endif
}

/* Of a pair: whether the packet in hand goes the way that the partner serves. Nobody who may would send it here. */
SW_INLINE int sw_is_unserved(const struct sw_flow *flow, __u8 side)
{
	return flow->flags & SW_FLOW_PAIR && side != !!(flow->flags & SW_FLOW_SECOND);
}

/*
 * A packet that goes nowhere: of that kind, or there was no way back when the flow was judged. When routes have changed
 * since, it may have one: the flow must not wait for its initiator, who may wait for this very packet.
 */
SW_COLD static __noinline int sw_to_nowhere(struct sw_packet *p, const struct sw_flow *flow, __u8 side)
{
	const struct sw_port *own = flow->port[0] ? sw_find_port(flow->port[0]) : 0;
	const struct sw_port *target = flow->port[1] ? sw_find_port(flow->port[1]) : 0;

	if ((flow->port[0] && (!own || sw_generation_of(own) != flow->generation[0])) ||
	    (flow->port[1] && (!target || sw_generation_of(target) != flow->generation[1])))
		return sw_is_unserved(flow, side) ? SW_UNSERVED : SW_STALE;
	return sw_is_unserved(flow, side) ? sw_drop(p, SW_LAYER_FLOW, SW_REASON_MARTIAN) :
					 sw_drop(p, SW_LAYER_ROUTE, SW_REASON_NO_ROUTE);
}

/* p->chosen of a flow that is still true: its action in the direction of the packet in hand, as the walk has found it. */
SW_COLD static __noinline void sw_choose_action(struct sw_packet *p, const struct sw_action *action,
						const struct sw_action *found)
{
	sw_copy_action(&p->chosen, action);
	sw_refresh(&p->chosen, found);
	if (p->unserved)
		p->chosen.fate = SW_TO_NOWHERE;
}

/* Whether it is a pod's connection that leaves by the uplink. */
SW_COLD static __noinline int sw_leaves(const struct sw_flow *first)
{
	__u8 fate = first->flags & SW_FLOW_INITIATOR ? first->action[1].fate : first->action[0].fate;

	return fate == SW_TO_UPLINK && sw_find_port(first->port[0]);
}

/* Whom the initiator's direct packets are for, where none of them is in hand. */
SW_INLINE void sw_recall_mac(struct sw_packet *p, const struct sw_flow *first)
{
	struct sw_port *target = first->flags & SW_FLOW_DIRECT ? sw_find_port(first->port[1]) : 0;

	if (target)
		sw_copy_mac(p->inner_mac, target->mac);
	else
		__builtin_memset(p->inner_mac, 0, sizeof(p->inner_mac));
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
 * A flow's port or next hop has changed since it was decided. The initiator's tuple walks the layers again: if it is
 * still allowed to the same target, both entries are brought up to date in place (an established NAT mapping stays);
 * otherwise the flow is removed, and only the initiator's own packet may open a new one (SW_GO_ON). But for a TCP
 * connection that an ACL denies now: without its flow, what the target goes on sending would be a connection of its own.
 */
SW_COLD __noinline int sw_redecide(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_flow *flow, *first, *second;
	__u8 initiator, side;
	int verdict = SW_GO_ON;

	if (!p)
		return TC_ACT_SHOT;
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (!flow)
		return SW_GO_ON;
	sw_count(SW_COUNTER_FLOW_REDECIDED);
	side = p->direction != (flow->flags & SW_FLOW_INITIATOR);
	p->leaves = 0;
	first = flow;
	second = flow;
	sw_copy_key(&p->flow_key, &p->key);
	if (flow->flags & SW_FLOW_PAIR) {
		sw_partner_key(&p->key, flow, &p->other);
		if (flow->flags & SW_FLOW_SECOND) {
			first = bpf_map_lookup_elem(&sw_flows, &p->other);
			sw_copy_key(&p->flow_key, &p->other);
		} else {
			second = bpf_map_lookup_elem(&sw_flows, &p->other);
		}
	}
	if (first && second) {
		initiator = first->flags & SW_FLOW_INITIATOR;
		sw_tuple_of_key(&p->first, &p->flow_key, initiator);
		p->first_arrival = first->arrival;
		p->first_scope = p->flow_key.scope;
		p->first_port = first->port[0];
		p->leaves = sw_leaves(first);
		p->kept = first->backend;
		p->kept_direct = !!(first->flags & SW_FLOW_DIRECT);
		if (p->arrival != SW_FROM_TUNNEL)
			sw_recall_mac(p, first);
		verdict = sw_walk(skb);
		if (verdict == SW_GO_ON) {
			struct sw_action *forward = initiator ? &first->action[1] : &first->action[0];
			/* A second entry serves !initiator of its own key; a single one the same of its only key. */
			__u8 back = !(second->flags & SW_FLOW_INITIATOR);
			struct sw_action *reverse = back ? &second->action[1] : &second->action[0];

			if (sw_still_true(p, first, forward)) {
				sw_choose_action(p, side ? reverse : forward, side ? &p->reverse : &p->forward);
#ifndef TRACE
				sw_refresh(forward, &p->forward);
				sw_refresh(reverse, &p->reverse);
				sw_refresh_entry(p, first);
				sw_refresh_entry(p, second);
				if (p->chosen.fate != SW_TO_NOWHERE) {
					sw_touch(p, flow, side);
					sw_count_in_flow(skb, p, flow->slot, p->direction);
				}
#endif
				return sw_finish(skb);
			}
		}
	}
	if (verdict == SW_DENIED) {
		if (p->protocol != IPPROTO_TCP || (side && p->tcp_flags == SW_TCP_SYN))
			sw_forget(p, flow);
		else
			sw_note_denied(p, flow);
		return TC_ACT_SHOT;
	}
	if (verdict == SW_UNROUTED)
		verdict = TC_ACT_SHOT;
	/* No route out for the moment. It keeps its port: far ends know it by that, and the node's stack would reset them. */
	if (verdict == TC_ACT_SHOT && p->leaves)
		return verdict;
	sw_forget(p, flow);
	if (verdict == SW_REFUSED)
		return side ? sw_drop(p, SW_LAYER_LB, SW_REASON_NO_BACKEND) : sw_refuse(skb, SW_REASON_NO_BACKEND);
	/* What is not the switch's any more may go to the node's stack, but only as it came from the wire. */
	if (verdict != SW_GO_ON && !(side && verdict == SW_PASS))
		return verdict;
	return side ? sw_drop(p, SW_LAYER_FLOW, SW_REASON_NO_ENDPOINT) : SW_GO_ON;
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

/* A hit: check that it is still true, then apply it. Returns a verdict, SW_STALE, SW_LOST, or SW_GO_ON: no flow. */
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
	/* As sw_tunnel_guard() has it: what a pod here has sent does not come back to go its way again. */
	if (p->arrival == SW_FROM_TUNNEL && !side && flow->arrival == SW_FROM_POD) {
		target = sw_near_port(p, flow->port[0]);
		if (!target || target->generation != flow->generation[0])
			return SW_STALE;
		return sw_drop(p, SW_LAYER_DECAP, SW_REASON_SPOOFED_IP);
	}
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

/* p->arrival, scope, port_id, port_generation and the parsed packet are set. */
SW_INLINE int sw_switch(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_flow *flow;
	int verdict;

	p->direction = sw_make_key(&p->key, &p->tuple, p->scope, p->family, p->protocol);
	flow = bpf_map_lookup_elem(&sw_flows, &p->key);
	if (flow) {
		verdict = sw_hit(skb, p, flow);
		if (verdict == SW_STALE || verdict == SW_UNSERVED) {
			p->unserved = verdict == SW_UNSERVED;
			verdict = sw_redecide(skb);
		} else if (verdict == SW_LOST) {
			verdict = sw_lost_backend(skb);
		}
		if (verdict != SW_GO_ON)
			return verdict;
	}
	return sw_first_packet(skb);
}

#endif /* SAMEWIRE_CONNECT_H */
