/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * sctp.h - SCTP's CRC32c (RFC 9260, appendix A), which covers the ports, when a port is replaced.
 *
 * A CRC is linear: the new one differs from the old one by that of the changed bits followed by as many zero bytes as
 * the packet has behind them, which is their product with a power of x modulo the polynomial. So the packet is not read.
 */
#ifndef SAMEWIRE_SCTP_H
#define SAMEWIRE_SCTP_H

#include "account.h"

#define SW_CRC32C 0x82f63b78U /* Castagnoli's polynomial, reflected: the highest bit is x^0 */
#define SW_CRC_X8 0x00800000U

/* Global: the verifier goes through its steps once, not for each of its 32 uses. */
__noinline __u32 sw_crc_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;
	int i;

	for (i = 0; i < 32; i++) {
		product ^= a & -(b >> 31);
		b <<= 1;
		a = a >> 1 ^ (SW_CRC32C & -(a & 1));
	}
	return product;
}

/* The CRC of what `crc` is the CRC of, with so many zero bytes behind it. Global: verified once. */
__noinline __u32 sw_crc_extend(__u32 crc, __u32 bytes)
{
	__u32 power = SW_CRC_X8;
	int i;

	for (i = 0; i < 16; i++) {
		__u32 extended = sw_crc_multiply(crc, power);

		if (bytes >> i & 1)
			crc = extended;
		power = sw_crc_multiply(power, power);
	}
	return crc;
}

/* Bytes from the SCTP header to the end of the packet, as IP has it: a short frame is padded. */
SW_INLINE __u32 sw_sctp_length(struct __sk_buff *skb, const struct sw_packet *p)
{
	__be16 length;

	if (bpf_skb_load_bytes(skb, SW_L3 + (p->family == 4 ? 2 : 4), &length, 2))
		return 0;
	return bpf_ntohs(length) + SW_L3 + (p->family == 4 ? 0 : sizeof(struct ipv6hdr)) - p->l4_offset;
}

/* Replaces a port. Returns 0 or a reason. */
static __noinline int sw_rewrite_sctp_port(struct __sk_buff *skb, struct sw_packet *p, __be16 from, __be16 to,
					   int is_source)
{
	__u32 changed = (__u32)(__u16)(from ^ to) << (is_source ? 0 : 16);
	__u32 offset = p->l4_offset;
	__le32 checksum;

	if (p->fragment) /* the rest of the packet is not here */
		return SW_REASON_NAT_PROTOCOL;
	if (bpf_skb_load_bytes(skb, offset + 8, &checksum, 4))
		return SW_REASON_INTERNAL;
	if (checksum) { /* zero: left to a NIC */
		checksum ^= sw_crc_extend(changed, sw_sctp_length(skb, p) & 0xffff);
		if (bpf_skb_store_bytes(skb, offset + 8, &checksum, 4, 0))
			return SW_REASON_INTERNAL;
	}
	return bpf_skb_store_bytes(skb, offset + (is_source ? 0 : 2), &to, 2, 0) ? SW_REASON_INTERNAL : 0;
}

#endif /* SAMEWIRE_SCTP_H */
