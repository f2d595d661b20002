// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The least a same-node switch can do: look the destination up and hand the packet to its port. No state, no
 * policy, no rewriting, no counters. It is the limit that the Samewire switch is compared with.
 *
 * Attached to the ingress of the host end of each pod's veth. The pods know one another's MAC addresses (static
 * neighbours), as if the switch had answered ARP.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);   /* IPv4 address, network order */
	__type(value, __u32); /* ifindex of the host end of that pod's veth */
} ports SEC(".maps");

SEC("tc")
int stateless(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 destination, *ifindex;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_OK;
	destination = ip->daddr;
	ifindex = bpf_map_lookup_elem(&ports, &destination);
	if (!ifindex)
		return TC_ACT_SHOT;
	return bpf_redirect_peer(*ifindex, 0);
}

char _license[] SEC("license") = "GPL";
