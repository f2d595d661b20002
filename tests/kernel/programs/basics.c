/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* basics.c - one map of every type, and small tc programs: what the tests of kernel/bpf load. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAP(name, map_type, key_type, value_type, entries, flags) \
	struct {                                                  \
		__uint(type, map_type);                           \
		__uint(max_entries, entries);                     \
		__uint(map_flags, flags);                         \
		__type(key, key_type);                            \
		__type(value, value_type);                        \
	} name SEC(".maps")

struct t_prefix {
	__u32 bits;
	__u8 address[4];
};

struct t_seen {
	__u32 ifindex;
	__u32 ingress_ifindex;
	__u32 mark;
	__u32 priority;
	__u32 gso_size;
	__u32 cb[5];
	__u64 answer;
	__u8 nested[2][3];
	__u16 tail;
};

enum t_colour {
	T_RED = 3,
	T_BLUE = -1,
};

MAP(t_hash, BPF_MAP_TYPE_HASH, __u32, __u64, 16384, 0);
MAP(t_array, BPF_MAP_TYPE_ARRAY, __u32, __u64, 8, 0);
MAP(t_lru, BPF_MAP_TYPE_LRU_HASH, __u32, __u64, 16384, 0);
MAP(t_trie, BPF_MAP_TYPE_LPM_TRIE, struct t_prefix, __u64, 16384, BPF_F_NO_PREALLOC);
MAP(t_cpu_hash, BPF_MAP_TYPE_PERCPU_HASH, __u32, __u64, 16384, BPF_F_NO_PREALLOC);
MAP(t_cpu_array, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u32, 8, 0);
MAP(t_seen, BPF_MAP_TYPE_ARRAY, __u32, struct t_seen, 1, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} t_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} t_calls SEC(".maps");

const volatile __u8 t_byte = 1;
const volatile __u64 t_answer = 42;
const volatile __s32 t_signed = 7;
volatile enum t_colour t_colour = T_RED;

SEC("tc")
int t_constants(struct __sk_buff *skb)
{
	return t_byte * 1000 + (int)t_answer + t_signed;
}

SEC("tc")
int t_look(struct __sk_buff *skb)
{
	struct t_seen seen = {};
	__u32 zero = 0;

	seen.ifindex = skb->ifindex;
	seen.ingress_ifindex = skb->ingress_ifindex;
	seen.mark = skb->mark;
	seen.priority = skb->priority;
	seen.gso_size = skb->gso_size;
	for (int i = 0; i < 5; i++)
		seen.cb[i] = skb->cb[i];
	seen.answer = t_answer;
	bpf_map_update_elem(&t_seen, &zero, &seen, BPF_ANY);
	skb->mark = seen.mark + 1;
	skb->priority = seen.priority + 1;
	skb->cb[2] = 77;
	return TC_ACT_OK;
}

/* Swaps the link addresses, and adds eight bytes in front of the network header. */
SEC("tc")
int t_rewrite(struct __sk_buff *skb)
{
	__u8 first[ETH_ALEN], second[ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, first, ETH_ALEN) || bpf_skb_load_bytes(skb, ETH_ALEN, second, ETH_ALEN))
		return TC_ACT_SHOT;
	bpf_skb_store_bytes(skb, 0, second, ETH_ALEN, 0);
	bpf_skb_store_bytes(skb, ETH_ALEN, first, ETH_ALEN, 0);
	if (bpf_skb_adjust_room(skb, 8, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	return -5;
}

SEC("tc")
int t_count(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 one = 1, *count;

	count = bpf_map_lookup_elem(&t_cpu_hash, &zero);
	if (count)
		*count += 1;
	else
		bpf_map_update_elem(&t_cpu_hash, &zero, &one, BPF_ANY);
	return TC_ACT_OK;
}

/* Marks the packet with its ifindex, so that two programs in a row can be told apart from one. */
SEC("tc")
int t_pass(struct __sk_buff *skb)
{
	__u32 key = skb->ifindex;
	__u64 one = 1, *count;

	count = bpf_map_lookup_elem(&t_hash, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&t_hash, &key, &one, BPF_ANY);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int t_tail(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &t_calls, 1);
	return 99;
}

SEC("tc")
int t_send(struct __sk_buff *skb)
{
	__u32 head;

	if (bpf_skb_load_bytes(skb, 0, &head, sizeof(head)))
		return 1;
	return bpf_ringbuf_output(&t_events, &head, sizeof(head), 0) ? 2 : 0;
}

const volatile __be32 t_vip = 0;
const volatile __u16 t_port = 0;

SEC("cgroup/connect4")
int t_connect4(struct bpf_sock_addr *ctx)
{
	if (ctx->user_ip4 == t_vip) {
		ctx->user_ip4 = bpf_htonl(0x7f000001);
		ctx->user_port = bpf_htons(t_port);
	}
	return 1;
}

SEC("cgroup/connect4")
int t_refuse4(struct bpf_sock_addr *ctx)
{
	return ctx->user_ip4 != t_vip;
}

char _license[] SEC("license") = "GPL";
