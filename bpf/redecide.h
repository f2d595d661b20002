/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * redecide.h - flows that have been decided: noting what their packets say, removing them, and judging them again.
 */
#ifndef SAMEWIRE_REDECIDE_H
#define SAMEWIRE_REDECIDE_H

#include "create.h"

#define SW_ASIDE (-110) /* the entry is another connection's, the packet in hand is of one that stands aside */

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

/* Whether the initiator's packet in hand is of another one: who began has gone, and the address is somebody else's. */
SW_COLD static __noinline int sw_is_of_another(struct sw_packet *p, const struct sw_flow *flow)
{
	struct sw_endpoint *owner;

	if (flow->port[0])
		return !sw_find_port(flow->port[0]);
	owner = p->port_id ? sw_find_endpoint(p->scope, p->family, &p->tuple.source) : 0;
	return owner && owner->port == p->port_id;
}

/*
 * Whether the packet in hand is its sender's own: what is sent to a service's backend itself, from a port that has called
 * the service. Where the source was translated, only the node may send it, and its packets do not come here.
 */
SW_INLINE int sw_is_in_the_way(const struct sw_packet *p, const struct sw_flow *second)
{
	const struct sw_action *reverse = sw_served(second) ? &second->action[1] : &second->action[0];

	return second->flags & SW_FLOW_SECOND && !(reverse->flags & SW_REWRITE_DESTINATION) &&
	       second->arrival == p->arrival && p->key.scope <= SW_SCOPE_MAX;
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
	if (!side && sw_is_of_another(p, flow)) {
		sw_forget(p, flow);
		return SW_GO_ON;
	}
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
		p->first_scope = sw_plain_scope(p->flow_key.scope);
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
				return p->unserved && sw_is_in_the_way(p, flow) ? SW_ASIDE : sw_finish(skb);
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

#endif /* SAMEWIRE_REDECIDE_H */
