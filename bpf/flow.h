/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * flow.h - the unified flow table: insertion, removal, TCP state.
 *
 * Invariant of a pair: the first entry (the initiator's side) is inserted after the second and removed before it, so a
 * second entry alone is an orphan and a first entry alone cannot be seen for longer than a removal takes.
 */
#ifndef SAMEWIRE_FLOW_H
#define SAMEWIRE_FLOW_H

#include "account.h"
#include "flow_count.h"
#include "tables.h"

#define SW_SLOT_TRIES 16
#define SW_SLOT_CLAIMED 0xff /* family of a slot whose flow is being inserted */
#define SW_ORPHAN_TICKS 4    /* a second entry without its first is removed after this */

#define SW_EEXIST (-17)

SW_INLINE void sw_copy_key(struct sw_flow_key *to, const struct sw_flow_key *from)
{
	sw_copy_address(&to->address[0], &from->address[0]);
	sw_copy_address(&to->address[1], &from->address[1]);
	to->port[0] = from->port[0];
	to->port[1] = from->port[1];
	to->scope = from->scope;
	to->family = from->family;
	to->protocol = from->protocol;
}

SW_INLINE int sw_same_key(const struct sw_flow_key *a, const struct sw_flow_key *b)
{
	return sw_same_address(&a->address[0], &b->address[0]) && sw_same_address(&a->address[1], &b->address[1]) &&
	       a->port[0] == b->port[0] && a->port[1] == b->port[1] && a->scope == b->scope &&
	       a->family == b->family && a->protocol == b->protocol;
}

/* The last word of a key in a slot (scope, family, protocol): 0 = free. Written in one go, and after the rest. */
SW_INLINE __u32 *sw_slot_word(struct sw_flow_key *held)
{
	return (__u32 *)&held->scope;
}

SW_INLINE __u32 sw_key_word(const struct sw_flow_key *key)
{
	return *(const __u32 *)&key->scope;
}

/* Of a key: the network's, also where the flow stands aside. */
SW_INLINE __u16 sw_plain_scope(__u16 scope)
{
	return scope < SW_SCOPE_DIRECT ? scope & ~SW_SCOPE_ASIDE : scope;
}

/* Ticks since a flow was seen. Another CPU may have seen it a tick after `now` was read. */
SW_INLINE __u32 sw_idle_ticks(const struct sw_flow *flow, __u32 now)
{
	__s32 idle = now - flow->seen_tick;

	return idle > 0 ? idle : 0;
}

/* The direction that an entry serves (a single entry serves both; then the initiator's). */
SW_INLINE __u8 sw_served(const struct sw_flow *flow)
{
	__u8 initiator = flow->flags & SW_FLOW_INITIATOR;

	return flow->flags & SW_FLOW_SECOND ? !initiator : initiator;
}

SW_INLINE void sw_tuple_of_key(struct sw_tuple *t, const struct sw_flow_key *key, __u8 direction)
{
	if (direction) {
		sw_copy_address(&t->source, &key->address[1]);
		sw_copy_address(&t->destination, &key->address[0]);
		t->source_port = key->port[1];
		t->destination_port = key->port[0];
	} else {
		sw_copy_address(&t->source, &key->address[0]);
		sw_copy_address(&t->destination, &key->address[1]);
		t->source_port = key->port[0];
		t->destination_port = key->port[1];
	}
}

SW_INLINE void sw_transpose_tuple(struct sw_tuple *t, const struct sw_action *action)
{
	if (action->flags & SW_REWRITE_SOURCE) {
		sw_copy_address(&t->source, &action->source);
		t->source_port = action->source_port;
	}
	if (action->flags & SW_REWRITE_DESTINATION) {
		sw_copy_address(&t->destination, &action->destination);
		t->destination_port = action->destination_port;
	}
}

/* The key of the other entry of a pair: what this entry's packets look like after their transposition. */
__noinline int sw_partner_key(const struct sw_flow_key *key, const struct sw_flow *flow, struct sw_flow_key *partner)
{
	struct sw_tuple t;
	__u8 served;

	if (!key || !flow || !partner)
		return 0;
	served = sw_served(flow);
	sw_tuple_of_key(&t, key, served);
	sw_transpose_tuple(&t, served ? &flow->action[1] : &flow->action[0]);
	return sw_key_of(partner, &t, flow->peer_scope, key->family, key->protocol);
}

/* DSR, on the node that the client has called: replies go by another way, with what they say of the connection's end. */
SW_INLINE int sw_is_one_way(__u8 target, __u8 flags)
{
	return flags & SW_FLOW_DIRECT && !target;
}

SW_INLINE int sw_is_closing(__u8 initiator, __u8 target, __u8 flags)
{
	if (sw_is_one_way(target, flags))
		return initiator & (SW_TCP_FIN | SW_TCP_RST);
	return ((initiator | target) & SW_TCP_RST) || (initiator & target & SW_TCP_FIN);
}

#ifndef TRACE
SW_INLINE void sw_release_slot(__u32 slot, const struct sw_flow_key *key)
{
	struct sw_flow_key *held = bpf_map_lookup_elem(&sw_flow_slots, &slot);

	if (held && sw_same_key(held, key))
		__sync_val_compare_and_swap(sw_slot_word(held), sw_key_word(key), 0);
}

/* key: in a map's memory (kernel 6.1 takes no other as a key from a global function's argument). */
static __noinline int sw_remove_entry(const struct sw_flow_key *key, __u32 slot)
{
	sw_release_slot(slot, key);
	if (bpf_map_delete_elem(&sw_flows, key) == 0)
		sw_count(SW_COUNTER_FLOWS_REMOVED);
	return 0;
}

/* Removes the flow under p->flow_key, both entries of a pair: the first one first. Uses p->other. */
__noinline int sw_remove_flow(void)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_flow *flow, *other;
	__u32 slot;

	if (!p)
		return 0;
	flow = bpf_map_lookup_elem(&sw_flows, &p->flow_key);
	if (!flow)
		return 0;
	slot = flow->slot;
	if (!(flow->flags & SW_FLOW_PAIR))
		return sw_remove_entry(&p->flow_key, slot);
	sw_partner_key(&p->flow_key, flow, &p->other);
	other = bpf_map_lookup_elem(&sw_flows, &p->other);
	if (flow->flags & SW_FLOW_SECOND) {
		if (other)
			sw_remove_entry(&p->other, other->slot);
		return sw_remove_entry(&p->flow_key, slot);
	}
	sw_remove_entry(&p->flow_key, slot);
	if (other)
		sw_remove_entry(&p->other, other->slot);
	return 0;
}

/*
 * A free slot, claimed for the caller, or -1. The next one of this CPU, and where that is taken a random one: flows that
 * were made together and live long stand in one block, and a search that meets it must not go through all of it.
 */
SW_INLINE int sw_claim_slot(struct sw_packet *p)
{
	struct sw_config *config = sw_config_here();
	struct sw_flow_key claimed = { .family = SW_SLOT_CLAIMED };
	int i;

	if (!config)
		return -1;
	for (i = 0; i < SW_SLOT_TRIES; i++) {
		__u32 slot = p->next_slot & (config->flow_slots - 1);
		struct sw_flow_key *held = bpf_map_lookup_elem(&sw_flow_slots, &slot);

		if (held && !held->family &&
		    !__sync_val_compare_and_swap(sw_slot_word(held), 0, sw_key_word(&claimed))) {
			p->next_slot = slot + 1;
			return slot;
		}
		p->next_slot = bpf_get_prandom_u32();
	}
	return -1;
}

/*
 * Inserts p->flow, if nothing is there, under p->other (second) or p->flow_key. Returns 0, SW_EEXIST, or another
 * negative number when the table is full.
 */
__noinline int sw_insert(__u32 second)
{
	struct sw_packet *p = sw_packet_here();
	const struct sw_flow_key *key;
	struct sw_flow_key *held;
	int slot, error;
	__u32 index;

	if (!p)
		return -7;
	slot = sw_claim_slot(p);
	if (slot < 0)
		return -7;
	index = slot;
	sw_clear_flow_counts(index);
	held = bpf_map_lookup_elem(&sw_flow_slots, &index);
	if (!held)
		return -7;
	key = second ? &p->other : &p->flow_key;
	p->flow.slot = index;
	error = bpf_map_update_elem(&sw_flows, key, &p->flow, BPF_NOEXIST);
	if (error) {
		__sync_lock_test_and_set(sw_slot_word(held), 0);
		return error;
	}
	sw_copy_address(&held->address[0], &key->address[0]);
	sw_copy_address(&held->address[1], &key->address[1]);
	held->port[0] = key->port[0];
	held->port[1] = key->port[1];
	__sync_lock_test_and_set(sw_slot_word(held), sw_key_word(key));
	sw_count(SW_COUNTER_FLOW_INSERTS);
	return 0;
}
#endif /* !TRACE */

#endif /* SAMEWIRE_FLOW_H */
