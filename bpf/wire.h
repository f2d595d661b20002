/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * wire.h - ARP (RFC 826) and ICMP for IPv4 (RFC 792), as far as the switch speaks them.
 *
 * <linux/if_arp.h> and <linux/icmp.h> include the C library's <sys/socket.h>, which for a target that is not x86-64
 * wants <gnu/stubs-32.h>: only a machine with 32-bit libraries has that file.
 */
#ifndef SAMEWIRE_WIRE_H
#define SAMEWIRE_WIRE_H

#include <linux/types.h>

#define ARPHRD_ETHER 1
#define ARPOP_REQUEST 1
#define ARPOP_REPLY 2

struct arphdr {
	__be16 ar_hrd;
	__be16 ar_pro;
	__u8 ar_hln;
	__u8 ar_pln;
	__be16 ar_op;
};

#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

#define ICMP_NET_UNREACH 0 /* codes of ICMP_DEST_UNREACH */
#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED 4

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 unused;
	__be16 mtu; /* with ICMP_FRAG_NEEDED, RFC 1191 */
};

#endif /* SAMEWIRE_WIRE_H */
