/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* other.c - a map of the same name as one in basics.c and with another value. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} t_hash SEC(".maps");

SEC("tc")
int t_other(struct __sk_buff *skb)
{
	__u32 key = 0, *value = bpf_map_lookup_elem(&t_hash, &key);

	return value ? *value : 5;
}

char _license[] SEC("license") = "GPL";
