/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* rejected.c - reads past the packet after many instructions: a verifier log of many pages, its reason at the end. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("tc")
int t_rejected(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 500; i++)
		asm volatile("%0 += %1" : "+r"(sum) : "i"(i));
	return sum + *(__u8 *)(data + 20);
}

char _license[] SEC("license") = "GPL";
