/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * account.h - drops, counters, and in the traced build the step records.
 */
#ifndef SAMEWIRE_ACCOUNT_H
#define SAMEWIRE_ACCOUNT_H

#include "packet.h"

SW_INLINE void sw_count(__u32 counter)
{
#ifndef TRACE
	__u64 *value = bpf_map_lookup_elem(&sw_counters, &counter);

	if (value)
		*value += 1;
#endif
}

/* A rule of a port has decided on a connection. side: SW_ACL_IN, SW_ACL_OUT, or SW_COUNTED_*. Global: verified once. */
__noinline int sw_count_rule(__u32 port, __u32 rule, __u32 side)
{
#ifndef TRACE
	struct sw_rule_count_key key = { .port = port, .rule = rule, .side = side };
	__u64 one = 1, *value = bpf_map_lookup_elem(&sw_rule_counts, &key);

	if (!value && bpf_map_update_elem(&sw_rule_counts, &key, &one, BPF_NOEXIST) == -17 /* EEXIST */)
		value = bpf_map_lookup_elem(&sw_rule_counts, &key);
	if (value)
		*value += 1;
#endif
	return 0;
}

#ifdef TRACE
SW_INLINE struct sw_trace_output *sw_trace_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_trace_output, &zero);
}

static __noinline void sw_step_record(struct sw_packet *p, __u32 layer_verdict, __u32 kind, __u32 rule, __u32 target)
{
	struct sw_trace_output *out = sw_trace_here();
	struct sw_trace_step *step;
	__u32 n;

	if (!out)
		return;
	n = out->count;
	if (n >= SW_TRACE_STEPS)
		return;
	step = &out->step[n];
	step->layer = layer_verdict & 0xff;
	step->verdict = (layer_verdict >> 8) & 0xff;
	step->reason = (layer_verdict >> 16) & 0xff;
	step->kind = kind;
	step->rule = rule;
	step->target = target;
	sw_copy_address(&step->source, &p->out.source);
	sw_copy_address(&step->destination, &p->out.destination);
	step->source_port = p->out.source_port;
	step->destination_port = p->out.destination_port;
	out->count = n + 1;
}
#endif

/* One layer's record, with the tuple as it stands in p->out. Nothing in the untraced build. */
SW_INLINE void sw_step(struct sw_packet *p, __u8 layer, __u8 verdict, __u8 kind, __u32 rule, __u32 target)
{
#ifdef TRACE
	sw_step_record(p, layer | (__u32)verdict << 8, kind, rule, target);
#endif
}

#ifndef TRACE
static __noinline int sw_emit_drop(struct sw_packet *p)
{
	struct sw_drop_event *event = bpf_ringbuf_reserve(&sw_events, sizeof(*event), 0);

	if (!event)
		return 0;
	event->time_ns = bpf_ktime_get_ns();
	event->drop = p->drop;
	sw_copy_address(&event->source, &p->tuple.source);
	sw_copy_address(&event->destination, &p->tuple.destination);
	event->source_port = p->tuple.source_port;
	event->destination_port = p->tuple.destination_port;
	event->scope = p->scope;
	event->family = p->family;
	event->protocol = p->protocol;
	event->reserved = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
#endif

/* Counts a drop against a port (the arrival device when 0) and returns the verdict. Global: verified once. */
SW_COLD __noinline int sw_count_drop(__u32 port, __u32 layer, __u32 reason, __u32 rule)
{
	struct sw_packet *p = sw_packet_here();
#ifdef TRACE
	struct sw_trace_output *out = sw_trace_here();

	if (!p)
		return TC_ACT_SHOT;
	sw_step_record(p, (layer & 0xff) | SW_STEP_DROP << 8 | (reason & 0xff) << 16, 0, rule, port);
	if (out) {
		out->fate = SW_TO_NOWHERE;
		out->drop_layer = layer;
		out->drop_reason = reason;
	}
#else
	struct sw_config *config = sw_config_here();
	__u64 one = 1, *value;
	long error = 0;

	if (!p)
		return TC_ACT_SHOT;
	p->drop.port = port ? port : p->port_id ? p->port_id : p->device;
	p->drop.rule = rule;
	p->drop.layer = layer;
	p->drop.reason = reason;
	p->drop.arrival = p->arrival;
	p->drop.reserved = 0;
	value = bpf_map_lookup_elem(&sw_drops, &p->drop);
	if (!value) {
		error = bpf_map_update_elem(&sw_drops, &p->drop, &one, BPF_NOEXIST);
		if (error == -17 /* EEXIST */)
			value = bpf_map_lookup_elem(&sw_drops, &p->drop);
	}
	if (value)
		*value += 1;
	else if (error)
		sw_count(SW_COUNTER_DROPS_UNNAMED);
	if (config && config->flags & SW_CONFIG_EVENTS)
		sw_emit_drop(p);
#endif
	return TC_ACT_SHOT;
}

#ifdef TRACE
SW_INLINE int sw_final(struct sw_packet *p, __u8 layer, __u8 fate, __u32 target)
{
	struct sw_trace_output *out = sw_trace_here();

	sw_step_record(p, layer | SW_STEP_FINAL << 8, fate, 0, target);
	if (out)
		out->fate = fate;
	return TC_ACT_OK;
}
#endif

SW_INLINE int sw_drop_at(struct sw_packet *p, __u32 port, __u8 layer, __u8 reason, __u32 rule)
{
	sw_count_drop(port, layer, reason, rule);
	return TC_ACT_SHOT; /* a constant, so that callers' other paths are verified apart */
}

SW_INLINE int sw_drop(struct sw_packet *p, __u8 layer, __u8 reason)
{
	return sw_drop_at(p, 0, layer, reason, 0);
}

#endif /* SAMEWIRE_ACCOUNT_H */
