/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * expire.h - flows that go: those past their time (ageing), and those that nobody would miss in a full table (recycling).
 */
#ifndef SAMEWIRE_EXPIRE_H
#define SAMEWIRE_EXPIRE_H

#include "flow.h"

#define SW_RECYCLE_FLOWS 64  /* flows looked at when the table is full, */
#define SW_RECYCLE_STEP 4    /* so many slots in one go, */
#define SW_RECYCLE_STEPS 256 /* and so often: half of the slots are free, and those cost little */
#define SW_RECYCLE_TRIES 3   /* for one packet */
#define SW_AGE_SLICE 4096    /* slots looked at per tick of the timer, */
#define SW_AGE_STEP 16	     /* so many in one go */
#define SW_AGE_PERIOD_NS 50000000ULL
#define SW_HALF_CLOSED_TICKS 3353 /* an hour, as kube-proxy has conntrack wait: the other end may be slow */

/*
 * 2 h 4 min after the last packet, the least that a connection is kept (RFC 5382): ends that wait send again every two
 * minutes, those that are silent ask after two hours whether the other is there (RFC 1122).
 */
#define SW_LEAST_TICKS 6929

#ifndef TRACE
SW_INLINE __u32 sw_idle_limit(struct sw_config *config, __u8 family, __u8 protocol, __u8 initiator, __u8 target,
			      __u8 flags)
{
	if (protocol == IPPROTO_TCP) {
		if (sw_is_closing(initiator, target, flags))
			return config->idle_tcp_closing;
		if (!(flags & SW_FLOW_REPLIED))
			return config->idle_tcp_half_open;
		if ((initiator | target) & SW_TCP_FIN)
			return SW_HALF_CLOSED_TICKS;
		if (flags & SW_FLOW_DENIED || sw_is_one_way(target, flags)) /* the target's RST was not seen */
			return SW_LEAST_TICKS;
		return config->idle_tcp_established;
	}
	if (protocol == IPPROTO_UDP)
		return flags & SW_FLOW_STREAM ? config->idle_udp_stream : config->idle_udp_single;
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return config->idle_icmp;
	return config->idle_other;
}

struct sw_slice {
	__u64 start;
	__u32 mask;
	__u32 now;
	__u32 wanted; /* recycling stops after this many; 0: ageing */
};

/*
 * The flow in a slot: removed if it is past its time (ageing) or nobody would miss it (recycling). Returns 1 when enough
 * are recycled. Global: verified once.
 */
__noinline int sw_look_at_flow(__u32 slot, __u32 now, __u32 wanted)
{
	struct sw_packet *p = sw_packet_here();
	struct sw_config *config = sw_config_here();
	struct sw_flow_key *held = bpf_map_lookup_elem(&sw_flow_slots, &slot);
	__u8 initiator, target, flags, kept, orphan = 0;
	struct sw_flow *flow, *other = 0;
	__u32 idle, limit;

	if (!held || !p || !config)
		return 1;
	sw_copy_key(&p->flow_key, held);
	if (!p->flow_key.family || p->flow_key.family == SW_SLOT_CLAIMED) /* since the caller looked */
		return 0;
	flow = bpf_map_lookup_elem(&sw_flows, &p->flow_key);
	if (!flow || flow->slot != slot) {
		/* The entry is written before its slot, so this slot's entry is gone: removed, or made anew elsewhere. */
		if (!wanted)
			__sync_val_compare_and_swap(sw_slot_word(held), sw_key_word(&p->flow_key), 0);
		return 0;
	}
	initiator = flow->tcp[0];
	target = flow->tcp[1];
	flags = flow->flags;
	idle = sw_idle_ticks(flow, now);
	if (flags & SW_FLOW_PAIR) {
		sw_partner_key(&p->flow_key, flow, &p->other);
		other = bpf_map_lookup_elem(&sw_flows, &p->other);
		if (other) {
			__u32 other_idle = sw_idle_ticks(other, now);

			initiator |= other->tcp[0];
			target |= other->tcp[1];
			flags |= other->flags & (SW_FLOW_REPLIED | SW_FLOW_STREAM);
			if (other_idle < idle)
				idle = other_idle;
		} else {
			orphan = idle >= SW_ORPHAN_TICKS;
		}
	}
	/* A handshake that the initiator has not ended: nobody may be there who has asked for it (SYN flood). */
	if (p->flow_key.protocol == IPPROTO_TCP && !(initiator & SW_TCP_DATA))
		flags &= ~SW_FLOW_REPLIED;
	limit = sw_idle_limit(config, p->flow_key.family, p->flow_key.protocol, initiator, target, flags);
	if (wanted) {
		/* As Linux's conntrack: what has been answered once (DNS, a ping) is no connection to be kept. */
		kept = p->flow_key.protocol == IPPROTO_TCP ? SW_FLOW_REPLIED : SW_FLOW_STREAM;
		p->looked_at++;
		if ((flags & SW_FLOW_PAIR && !other && !orphan) || /* another CPU is about to insert the other */
		    (flags & kept && !sw_is_closing(initiator, target, flags)))
			return p->looked_at >= SW_RECYCLE_FLOWS;
		sw_count(SW_COUNTER_FLOW_RECYCLED);
	} else {
		if (idle <= limit && !orphan)
			return 0;
		sw_count(SW_COUNTER_FLOW_AGED);
	}
	sw_remove_flow();
	if (!wanted)
		return 0;
	p->recycled++;
	return p->recycled >= wanted;
}

/* A few slots of a slice. Most are free: those cost no call each. */
SW_INLINE long sw_look_at_step(struct sw_slice *slice, __u64 start, int slots)
{
	int i;

	for (i = 0; i < slots; i++) {
		__u32 slot = (start + i) & slice->mask;
		struct sw_flow_key *held = bpf_map_lookup_elem(&sw_flow_slots, &slot);

		if (!held)
			return 1;
		if (held->family && held->family != SW_SLOT_CLAIMED &&
		    sw_look_at_flow(slot, slice->now, slice->wanted))
			return 1;
	}
	return 0;
}

static long sw_look_at_slots(__u32 index, void *context)
{
	struct sw_slice *slice = context;

	return sw_look_at_step(slice, slice->start + index * SW_AGE_STEP, SW_AGE_STEP);
}

/*
 * The hand of a clock: a search goes on where the last one has found what it wanted. So what has stood longest goes
 * first, and who makes the most flows loses the most. Where there was nothing it goes on anywhere else: free slots, and
 * flows that are kept, stand in blocks that no search would come to the end of.
 */
static long sw_recycle_slots(__u32 index, void *context)
{
	struct sw_cursors *cursors = sw_cursors_here();
	struct sw_packet *p = sw_packet_here();
	struct sw_slice *slice = context;
	__u8 recycled;
	long enough;

	if (!cursors || !p)
		return 1;
	recycled = p->recycled;
	enough = sw_look_at_step(slice, __sync_fetch_and_add(&cursors->recycle, SW_RECYCLE_STEP), SW_RECYCLE_STEP);
	if (p->recycled == recycled)
		cursors->recycle = bpf_get_prandom_u32();
	return enough;
}

/*
 * Makes room in a full table. Returns the number of flows removed. They are counted in the scratch: a counter on the
 * stack has known values, and the verifier would go through the whole search again for each, in 30,000 instructions.
 */
__noinline int sw_recycle(void)
{
	struct sw_config *config = sw_config_here();
	struct sw_packet *p = sw_packet_here();
	struct sw_slice slice = { .wanted = 2 };

	if (!config || !p)
		return 0;
	p->recycled = 0;
	p->looked_at = 0;
	slice.mask = config->flow_slots - 1;
	slice.now = sw_now_tick();
	bpf_loop(SW_RECYCLE_STEPS, sw_recycle_slots, &slice, 0);
	return p->recycled;
}
#endif /* !TRACE */

#endif /* SAMEWIRE_EXPIRE_H */
