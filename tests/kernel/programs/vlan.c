/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* vlan.c - what a VLAN's device does, for kernels without: an interface on which all is in one VLAN. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} t_vlan SEC(".maps");

static __always_inline __u32 own(void)
{
	__u32 key = 0, *value = bpf_map_lookup_elem(&t_vlan, &key);

	return value ? *value : 0;
}

SEC("tc")
int t_tag(struct __sk_buff *skb)
{
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), own()) ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc")
int t_untag(struct __sk_buff *skb)
{
	if (!skb->vlan_present || (skb->vlan_tci & 0xfff) != own())
		return TC_ACT_SHOT;
	return bpf_skb_vlan_pop(skb) ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
