/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * bucket.h - the bandwidth cap of what an endpoint sends: a token bucket, over the limit is dropped.
 */
#ifndef SAMEWIRE_BUCKET_H
#define SAMEWIRE_BUCKET_H

#include "account.h"

#define SW_NS_PER_S 1000000000ULL

static __noinline int sw_police(struct __sk_buff *skb, struct sw_packet *p)
{
#ifdef TRACE
	return SW_GO_ON;
#else
	struct sw_bucket *bucket = bpf_map_lookup_elem(&sw_buckets, &p->port_id);
	__u64 now, passed, tokens, length = skb->wire_len;

	if (!bucket)
		return SW_GO_ON;
	now = bpf_ktime_get_ns();
	passed = now - bucket->last_ns;
	tokens = bucket->tokens_bytes;
	if (passed >= SW_NS_PER_S) {
		tokens = bucket->burst_bytes;
	} else {
		tokens += passed * bucket->rate_bytes_per_s / SW_NS_PER_S;
		if (tokens > bucket->burst_bytes)
			tokens = bucket->burst_bytes;
	}
	/* One port's packets come from one pod, mostly one CPU; a lost update lets a packet more or less pass. */
	bucket->last_ns = now;
	if (tokens < length) {
		bucket->tokens_bytes = tokens;
		return sw_drop(p, SW_LAYER_QOS, SW_REASON_RATE);
	}
	bucket->tokens_bytes = tokens - length;
	return SW_GO_ON;
#endif
}

#endif /* SAMEWIRE_BUCKET_H */
