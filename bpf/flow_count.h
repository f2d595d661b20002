/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * flow_count.h - what each flow has sent and got, where that is counted (flow_counters in the daemon's configuration).
 */
#ifndef SAMEWIRE_FLOW_COUNT_H
#define SAMEWIRE_FLOW_COUNT_H

#include "account.h"
#include "tables.h"

#ifndef TRACE
SW_INLINE struct sw_flow_count *sw_find_flow_count(__u32 slot, __u8 direction)
{
	__u32 index = direction ? slot + sw_counted_slots : slot;

	return bpf_map_lookup_elem(&sw_flow_counts, &index);
}

SW_INLINE void sw_clear_flow_counts(__u32 slot)
{
	struct sw_flow_count *forth, *back;

	if (!sw_counted_slots)
		return;
	forth = sw_find_flow_count(slot, 0);
	back = sw_find_flow_count(slot, 1);
	if (!forth || !back)
		return;
	forth->packets = 0;
	forth->bytes = 0;
	back->packets = 0;
	back->bytes = 0;
}
#endif

/* The packet in hand is one of the flow in a slot. Two CPUs may have packets of the same direction at once. */
SW_INLINE void sw_count_in_flow(struct __sk_buff *skb, const struct sw_packet *p, __u32 slot, __u8 direction)
{
#ifndef TRACE
	struct sw_flow_count *count;
	__u32 packets, bytes, size;

	if (!sw_counted_slots)
		return;
	count = sw_find_flow_count(slot, direction);
	if (!count)
		return;
	bytes = skb->len - SW_L3;
	packets = skb->gso_segs;
	size = skb->gso_size;
	if (!packets) /* of a virtual machine's NIC: it does not say of how many it has made one */
		packets = size ? (skb->len - p->payload_offset + size - 1) / size : 1;
	if (packets > 1) { /* each packet on the wire has its own headers */
		bytes += (packets - 1) * (p->payload_offset - SW_L3);
	} else if (p->ip_bytes < bytes) { /* padded to the least that Ethernet takes */
		bytes = p->ip_bytes;
	}
	__sync_fetch_and_add(&count->packets, packets);
	__sync_fetch_and_add(&count->bytes, bytes);
#endif
}

#endif /* SAMEWIRE_FLOW_COUNT_H */
