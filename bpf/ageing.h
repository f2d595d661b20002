/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * ageing.h - the timer that looks through all slots of the flow table, a slice at a time.
 */
#ifndef SAMEWIRE_AGEING_H
#define SAMEWIRE_AGEING_H

#include <linux/errno.h>

#include "expire.h"

struct sw_ageing {
	struct bpf_timer timer;
};

SW_MAP(sw_ageing, BPF_MAP_TYPE_ARRAY, __u32, struct sw_ageing, 1, 0);

static int sw_age(void *map, __u32 *key, struct sw_ageing *ageing)
{
	struct sw_cursors *cursors = sw_cursors_here();
	struct sw_config *config = sw_config_here();
	struct sw_slice slice = {};
	__u32 slots;

	if (cursors && config && config->flow_slots) {
		slots = config->flow_slots < SW_AGE_SLICE ? config->flow_slots : SW_AGE_SLICE;
		slice.start = cursors->age;
		slice.mask = config->flow_slots - 1;
		slice.now = sw_now_tick();
		bpf_loop((slots + SW_AGE_STEP - 1) / SW_AGE_STEP, sw_look_at_slots, &slice, 0);
		cursors->age += slots;
		sw_count(SW_COUNTER_AGEING_TICKS);
	}
	bpf_timer_start(&ageing->timer, SW_AGE_PERIOD_NS, 0);
	return 0;
}

/*
 * The kernel takes the timer's memory without waiting for a lock (from 6.18 on), so there may be none for the moment. The
 * daemon asks again.
 */
#define SW_AGEING_AGAIN 5

SEC("tc")
int sw_start_ageing(struct __sk_buff *skb)
{
	struct sw_ageing *ageing;
	__u32 zero = 0;
	long error;

	ageing = bpf_map_lookup_elem(&sw_ageing, &zero);
	if (!ageing)
		return 1;
	error = bpf_timer_init(&ageing->timer, &sw_ageing, 1 /* CLOCK_MONOTONIC */);
	if (error == -ENOMEM)
		return SW_AGEING_AGAIN;
	if (error && error != -EBUSY) /* EBUSY: there since the last start */
		return 4;
	if (bpf_timer_set_callback(&ageing->timer, sw_age)) /* a new program takes over from the old one's callback */
		return 2;
	return bpf_timer_start(&ageing->timer, SW_AGE_PERIOD_NS, 0) ? 3 : 0;
}

#endif /* SAMEWIRE_AGEING_H */
