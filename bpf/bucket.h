/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * bucket.h - the bandwidth cap of what an endpoint sends: a token bucket, over the limit is dropped.
 *
 * The one that shapes is a TBF on the pod's end of the veth: dropping holds TCP at a quarter of the rate where round
 * trips are microseconds. This one, a little deeper and with the same count of bytes, is for pods that have taken the
 * TBF off, and drops nothing that has passed it.
 */
#ifndef SAMEWIRE_BUCKET_H
#define SAMEWIRE_BUCKET_H

#include "account.h"

#define SW_NS_PER_S 1000000000ULL
#define SW_MAX_BURST (1ULL << 33) /* bytes; in nanoseconds it still fits 64 bits */
#define SW_POLICE_TRIES 4

SW_COLD static __noinline int sw_police(struct __sk_buff *skb, struct sw_packet *p)
{
#ifdef TRACE
	return SW_GO_ON;
#else
	struct sw_bucket *bucket = bpf_map_lookup_elem(&sw_buckets, &p->port_id);
	__u64 now, cost, depth, length = skb->len;
	int i;

	if (!bucket || !bucket->rate_bytes_per_s)
		return SW_GO_ON;
	if (skb->gso_segs > 1) /* each packet on the wire has its own headers */
		length += (__u64)(skb->gso_segs - 1) * p->payload_offset;
	depth = bucket->burst_bytes < SW_MAX_BURST ? bucket->burst_bytes : SW_MAX_BURST;
	depth = depth * SW_NS_PER_S / bucket->rate_bytes_per_s;
	cost = length * SW_NS_PER_S / bucket->rate_bytes_per_s;
	now = bpf_ktime_get_ns();
	for (i = 0; i < SW_POLICE_TRIES; i++) {
		__u64 full = bucket->full_ns;
		__u64 after = (full > now ? full : now) + cost;

		if (after > now + depth)
			return sw_drop(p, SW_LAYER_QOS, SW_REASON_RATE);
		if (__sync_val_compare_and_swap(&bucket->full_ns, full, after) == full)
			break;
	}
	return SW_GO_ON;
#endif
}

#endif /* SAMEWIRE_BUCKET_H */
