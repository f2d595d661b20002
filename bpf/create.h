/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * create.h - from a decision to flow entries.
 *
 * sw_first_packet() walks the layers and, where the decision needs it, leaves one entry, or a pair where the two sides
 * of the connection look different. The second entry (the target's side) is inserted first: whoever finds the first one
 * finds both.
 */
#ifndef SAMEWIRE_CREATE_H
#define SAMEWIRE_CREATE_H

#include "deliver.h"
#include "expire.h"
#include "first.h"
#include "refuse.h"

#define SW_FULL (-102)
#define SW_ANSWERED_TICKS 4 /* an answered datagram's port may be taken after so long: a slow second answer has come */

/* The rewriting parts of both directions, from p->first and p->out. */
SW_INLINE void sw_compose(struct sw_packet *p)
{
	if (!sw_same_address(&p->out.source, &p->first.source) || p->out.source_port != p->first.source_port) {
		p->forward.flags |= SW_REWRITE_SOURCE;
		p->reverse.flags |= SW_REWRITE_DESTINATION;
	}
	if (!sw_same_address(&p->out.destination, &p->first.destination) ||
	    p->out.destination_port != p->first.destination_port) {
		p->forward.flags |= SW_REWRITE_DESTINATION;
		p->reverse.flags |= SW_REWRITE_SOURCE;
	}
	sw_copy_address(&p->forward.source, &p->out.source);
	sw_copy_address(&p->forward.destination, &p->out.destination);
	p->forward.source_port = p->out.source_port;
	p->forward.destination_port = p->out.destination_port;
	sw_copy_address(&p->reverse.source, &p->first.destination);
	sw_copy_address(&p->reverse.destination, &p->first.source);
	p->reverse.source_port = p->first.destination_port;
	p->reverse.destination_port = p->first.source_port;
}

#ifndef TRACE
/* Fills the common part of p->flow. */
SW_INLINE void sw_start_flow(struct sw_packet *p, __u8 direction, __u8 flags)
{
	struct sw_flow *flow = &p->flow;

	flow->port[0] = p->port[0];
	flow->port[1] = p->port[1];
	flow->generation[0] = p->generation[0];
	flow->generation[1] = p->generation[1];
	flow->rule[0] = p->rule[0];
	flow->rule[1] = p->rule[1];
	flow->seen_tick = sw_packet_tick(p);
	flow->slot = 0;
	flow->peer_scope = 0;
	flow->flags = flags | (direction ? SW_FLOW_INITIATOR : 0) | (p->is_direct ? SW_FLOW_DIRECT : 0);
	flow->tcp[0] = flags & SW_FLOW_SECOND ? 0 : p->tcp_flags;
	flow->tcp[1] = 0;
	flow->arrival = p->first_arrival;
	flow->reserved[0] = 0;
	flow->reserved[1] = 0;
	flow->backend = p->backend;
	flow->service = p->backend ? p->service : 0;
}

SW_INLINE void sw_set_action(struct sw_flow *flow, __u8 direction, const struct sw_action *action)
{
	if (direction)
		sw_copy_action(&flow->action[1], action);
	else
		sw_copy_action(&flow->action[0], action);
}
#endif

/* Inserts the second entry (the target's side) under the tuple p->out. */
__noinline int sw_try_second(void)
{
	struct sw_packet *p = sw_packet_here();
#ifdef TRACE
	if (!p)
		return -22;
	sw_key_of(&p->other, &p->out, p->out_scope, p->family, p->protocol);
	if (sw_same_key(&p->other, &p->gone[0]) || sw_same_key(&p->other, &p->gone[1]))
		return 0;
	return bpf_map_lookup_elem(&sw_flows, &p->other) ? SW_EEXIST : 0;
#else
	struct sw_flow *flow;

	if (!p)
		return -22;
	flow = &p->flow;
	p->other_direction = sw_key_of(&p->other, &p->out, p->out_scope, p->family, p->protocol);
	sw_compose(p);
	sw_start_flow(p, p->other_direction, SW_FLOW_PAIR | SW_FLOW_SECOND);
	flow->peer_scope = p->first_scope | p->aside;
	__builtin_memset(flow->action, 0, sizeof(flow->action));
	sw_set_action(flow, !p->other_direction, &p->reverse);
	return sw_insert(1);
#endif
}

/*
 * Whether a pair of this packet's protocol only waits to be forgotten: a connection that has ended (so Linux:
 * nf_nat_may_kill()), and not a moment ago; a question (DNS, a ping) that was answered once, some seconds ago.
 */
SW_INLINE int sw_is_over(const struct sw_packet *p, const struct sw_flow *first, const struct sw_flow *held, __u32 now)
{
	__u32 idle = sw_idle_ticks(first, now), held_idle = sw_idle_ticks(held, now);
	__u8 flags = first->flags | held->flags;

	if (held_idle < idle)
		idle = held_idle;
	if (p->protocol == IPPROTO_TCP)
		return idle && sw_is_closing(first->tcp[0] | held->tcp[0], first->tcp[1] | held->tcp[1], held->flags);
	if (p->protocol != IPPROTO_UDP && !sw_is_icmp(p))
		return 0;
	return idle >= SW_ANSWERED_TICKS && (flags & (SW_FLOW_REPLIED | SW_FLOW_STREAM)) == SW_FLOW_REPLIED;
}

/*
 * A second entry is in our way. If its first one is gone it is a leftover: remove it. Returns 1 if it was. A young one
 * without a first is no leftover: another CPU is just about to insert the first. over: a pair that only waits to be
 * forgotten goes too.
 */
SW_INLINE int sw_clear_way(struct sw_packet *p, int over)
{
	struct sw_flow *first, *held = bpf_map_lookup_elem(&sw_flows, &p->other);
	__u32 now = sw_now_tick();
#ifndef TRACE
	__u32 seen = held ? held->seen_tick : 0;
#endif

	if (!held || !(held->flags & SW_FLOW_SECOND))
		return 0;
	sw_partner_key(&p->other, held, &p->flow_key);
	first = bpf_map_lookup_elem(&sw_flows, &p->flow_key);
	if (!first && sw_idle_ticks(held, now) < SW_ORPHAN_TICKS)
		return 0;
	if (first && (!over || !sw_is_over(p, first, held, now)))
		return 0;
#ifdef TRACE
	sw_copy_key(&p->gone[0], &p->flow_key);
	sw_copy_key(&p->gone[1], &p->other);
#else
	/*
	 * Only one CPU may: another that has found the same pair would remove what this one puts in its place. What is
	 * held has not been seen in this tick; what is put there has.
	 */
	if (__sync_val_compare_and_swap(&held->seen_tick, seen, now) != seen)
		return 0;
	if (first)
		sw_remove_entry(&p->flow_key, first->slot);
	sw_remove_entry(&p->other, held->slot);
#endif
	return 1;
}

/* The search for a source port. */
struct sw_search {
	int result;
	__u32 over; /* second time: ports of what only waits to be forgotten will do */
};

/* How many ports of the pool are for this connection. */
SW_INLINE __u32 sw_nat_size(const struct sw_packet *p, const struct sw_config *config)
{
	__u32 size = config->nat_port_high - config->nat_port_low + 1;

	return p->nat_ports && p->nat_ports < size ? p->nat_ports : size;
}

/*
 * Which source ports may be tried: from a place of the connection's own on. An endpoint that may not use all of the
 * pool has a part of its own (or shares some of it).
 */
static long sw_try_port(__u32 index, void *context)
{
	struct sw_search *search = context;
	struct sw_packet *p = sw_packet_here();
	struct sw_config *config = sw_config_here();
	__u32 low, size, port;

	if (!p || !config)
		return 1;
	size = sw_nat_size(p, config);
	low = config->nat_port_high - config->nat_port_low + 2 - size; /* places for the part */
	low = config->nat_port_low + ((__u64)sw_hash_word(0, p->first_port) * low >> 32);
	port = ((__u64)sw_hash_tuple(&p->first) * size >> 32) + index;
	port = low + (port >= size ? port - size : port);
	p->out.source_port = bpf_htons(port);
	/* Its own port would be no translation. Only where the address stays, too: PreserveDIP. */
	if (p->out.source_port == p->first.source_port && p->reverse.fate == SW_TO_INGRESS)
		return 0;
	search->result = sw_try_second();
	if (search->result == SW_EEXIST && search->over && sw_clear_way(p, 1))
		search->result = sw_try_second();
	if (search->result == SW_EEXIST)
		sw_count(SW_COUNTER_NAT_RETRIES);
	return search->result != SW_EEXIST;
}

/* ICMP that can be told from others by its identifier, which may be 0: an echo request, or later fragments of one. */
SW_INLINE int sw_has_identifier(const struct sw_packet *p)
{
	return p->first.source_port || p->icmp_type == (p->family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST);
}

/* Inserts the second entry, choosing a source port where one must or can be chosen. */
__noinline int sw_insert_second(void)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_config *config = sw_config_here();
	struct sw_search search = { .result = SW_EEXIST };
	__u32 tries;
	int result;

	if (!p || !config || config->nat_port_high < config->nat_port_low)
		return -22;
	if (!p->wants_snat || !(sw_has_ports(p->protocol) || sw_is_icmp(p))) {
		result = sw_try_second();
		if (result == SW_EEXIST && sw_clear_way(p, 0))
			result = sw_try_second();
		if (result != SW_EEXIST)
			return result;
	}
	if (!sw_has_ports(p->protocol) && !(sw_is_icmp(p) && sw_has_identifier(p)))
		return SW_EEXIST;
	tries = sw_nat_size(p, config);
	if (tries > SW_NAT_TRIES)
		tries = SW_NAT_TRIES;
	bpf_loop(tries, sw_try_port, &search, 0);
	if (search.result == SW_EEXIST && (p->protocol != IPPROTO_TCP || p->tcp_flags == SW_TCP_SYN)) {
		search.over = 1;
		bpf_loop(tries, sw_try_port, &search, 0);
	}
	return search.result;
}

SW_INLINE int sw_insert_failed(struct sw_packet *p, int error)
{
	if (error != SW_EEXIST)
		return SW_FULL;
	if (sw_has_ports(p->protocol) || sw_is_icmp(p))
		return sw_drop_at(p, p->first_port, SW_LAYER_NAT, SW_REASON_NAT_EXHAUSTED, 0);
	return sw_drop_at(p, p->first_port, SW_LAYER_NAT, SW_REASON_NAT_PROTOCOL, 0);
}

#ifndef TRACE
/* Another CPU (or a crossing first packet) has inserted this very flow: its decision is the flow's. */
SW_INLINE int sw_adopt(struct __sk_buff *skb, struct sw_packet *p)
{
	struct sw_flow *flow = bpf_map_lookup_elem(&sw_flows, &p->flow_key);

	if (!flow)
		return sw_drop(p, SW_LAYER_FLOW, SW_REASON_INTERNAL);
	sw_count(SW_COUNTER_FLOW_ADOPTED);
	sw_count_in_flow(skb, p, flow->slot, p->direction);
	sw_copy_action(&p->chosen, p->direction ? &flow->action[1] : &flow->action[0]);
	return SW_GO_ON;
}

/* The first entry, under p->flow_key (or the only one). */
SW_INLINE int sw_insert_first(struct sw_packet *p, __u8 direction, int pair)
{
	struct sw_flow *flow = &p->flow;
	int error;

	sw_start_flow(p, direction, pair ? SW_FLOW_PAIR : 0);
	__builtin_memset(flow->action, 0, sizeof(flow->action));
	sw_set_action(flow, direction, &p->forward);
	if (pair)
		flow->peer_scope = p->out_scope;
	else
		sw_set_action(flow, !direction, &p->reverse);
	error = sw_insert(0);
	if (error && pair) {
		struct sw_flow *second = bpf_map_lookup_elem(&sw_flows, &p->other);

		if (second)
			sw_remove_entry(&p->other, second->slot);
	}
	return error;
}
#endif

/* Inserts what the walk decided, for the first packet in hand. Leaves its action in p->chosen. May return SW_FULL. */
__noinline int sw_create(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	int error, pair;
#ifndef TRACE
	__u8 direction;
#endif

	SW_USE_CONTEXT(skb);
	if (!p)
		return TC_ACT_SHOT;
	/* Only a request may open an ICMP flow that is to be translated: other types have no identifier. */
	if (p->wants_snat && sw_is_icmp(p) && !sw_has_identifier(p))
		return sw_drop_at(p, p->first_port, SW_LAYER_NAT, SW_REASON_NAT_PROTOCOL, 0);
	sw_key_of(&p->flow_key, &p->first, p->first_scope | p->aside, p->family, p->protocol);
	sw_key_of(&p->other, &p->out, p->out_scope, p->family, p->protocol);
	pair = p->wants_snat || !sw_same_key(&p->flow_key, &p->other);
	if (pair) {
		error = sw_insert_second();
		if (error)
			return sw_insert_failed(p, error);
	}
	sw_compose(p);
#ifndef TRACE
	/* Again: sw_clear_way() may have used the room for our own key. */
	direction = sw_key_of(&p->flow_key, &p->first, p->first_scope | p->aside, p->family, p->protocol) & 1;
	error = sw_insert_first(p, direction, pair);
	if (error == SW_EEXIST)
		return sw_adopt(skb, p);
	if (error)
		return sw_insert_failed(p, error);
	sw_count_in_flow(skb, p, p->flow.slot, p->direction);
#endif
	sw_copy_action(&p->chosen, &p->forward);
	return SW_GO_ON;
}

/* A packet without a flow: the walk, then a flow if the decision needs one. */
__noinline int sw_first_packet(struct __sk_buff *skb)
{
	struct sw_packet *p = sw_packet_here();
	int verdict;
#ifndef TRACE
	int tries;
#endif

	if (!p)
		return TC_ACT_SHOT;
	sw_copy_tuple(&p->first, &p->tuple);
	p->first_arrival = p->arrival;
	p->first_scope = p->scope;
	p->first_port = p->port_id;
	p->kept = 0;
	verdict = sw_walk(skb);
	if (verdict == SW_REFUSED)
		return sw_refuse(skb, SW_REASON_NO_BACKEND);
	if (verdict == SW_UNROUTED) /* as any router: who has another address to try does so at once */
		return sw_answer_error(skb, p,
				       p->family == 4 ? ICMP_DEST_UNREACH << 8 | ICMP_NET_UNREACH :
							ICMPV6_DEST_UNREACH << 8 | ICMPV6_NOROUTE);
	if (verdict == SW_DENIED)
		return TC_ACT_SHOT;
	if (verdict != SW_GO_ON)
		return verdict;
	sw_count(SW_COUNTER_FIRST_PACKETS);
	if (!p->needs_flow && !p->aside) {
		sw_count(SW_COUNTER_STATELESS);
		sw_copy_action(&p->chosen, &p->forward);
	} else {
		verdict = sw_create(skb);
#ifndef TRACE
		/* Again: another CPU may have been quicker to use the room. */
		for (tries = 0; tries < SW_RECYCLE_TRIES && verdict == SW_FULL && sw_recycle(); tries++)
			verdict = sw_create(skb);
#endif
		if (verdict == SW_FULL)
			return sw_drop_at(p, p->first_port, SW_LAYER_FLOW, SW_REASON_FLOW_TABLE_FULL, 0);
		if (verdict != SW_GO_ON)
			return verdict;
	}
	return sw_finish(skb);
}

#endif /* SAMEWIRE_CREATE_H */
