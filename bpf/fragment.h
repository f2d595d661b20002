/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * fragment.h - later fragments borrow the ports of their datagram's first one.
 *
 * The table is bounded (LRU). A fragment whose first has not been seen is a counted drop: without ports there is no
 * flow, no ACL verdict and no NAT for it, and its datagram is sent again as a whole.
 */
#ifndef SAMEWIRE_FRAGMENT_H
#define SAMEWIRE_FRAGMENT_H

#include "account.h"

#define SW_UNKNOWN (-103)
#define SW_FRAGMENT_TICKS 30 /* a little more than a stack keeps the pieces */

/* Returns SW_GO_ON, or SW_UNKNOWN for a later fragment whose first has not been seen. */
SW_COLD static __noinline int sw_fragment(struct sw_packet *p)
{
	struct sw_fragment_key key = {
		.id = p->fragment_id,
		.scope = p->scope,
		.family = p->family,
		.protocol = p->protocol,
	};
	struct sw_fragment *seen;

	sw_copy_address(&key.source, &p->tuple.source);
	sw_copy_address(&key.destination, &p->tuple.destination);
	if (p->fragment == SW_FRAGMENT_FIRST) {
#ifndef TRACE
		struct sw_fragment ports = {
			.source_port = p->tuple.source_port,
			.destination_port = p->tuple.destination_port,
			.seen_tick = sw_now_tick(),
		};

		bpf_map_update_elem(&sw_fragments, &key, &ports, BPF_ANY);
#endif
		return SW_GO_ON;
	}
	seen = bpf_map_lookup_elem(&sw_fragments, &key);
	if (!seen || sw_now_tick() - seen->seen_tick > SW_FRAGMENT_TICKS)
		return SW_UNKNOWN;
	p->tuple.source_port = seen->source_port;
	p->tuple.destination_port = seen->destination_port;
	return SW_GO_ON;
}

#endif /* SAMEWIRE_FRAGMENT_H */
